"""Shows files outside of docs/ on the site: result files, and the model card."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = ("scripts/results/*.json", "scripts/results/*.svg", "consist/mini/weights/README.md")


def on_files(files: Files, config: Any) -> Files:
    """Adds the files, each at its path from the top of the repository."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Takes one step up out of the links to them, since the site begins in docs/."""
    return re.sub(r"\]\(\.\./((?:\.\./)*(?:scripts|consist)/)", r"](\1", markdown)
