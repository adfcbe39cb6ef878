"""The four steps of docs/contributing.md, followed in a copy of the project."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = (ROOT / "docs" / "contributing.md").read_text().split("## A method in four steps")[1]
METHOD, OBSTACLE = re.findall(r"```python\n(.*?)```", STEPS, flags=re.DOTALL)


@pytest.fixture
def copied(tmp_path):
    """The package, its docs and scripts, with the weights where they are."""
    ignored = shutil.ignore_patterns("__pycache__", "weights")
    shutil.copytree(ROOT / "consist", tmp_path / "consist", ignore=ignored)
    (tmp_path / "consist" / "mini" / "weights").symlink_to(ROOT / "consist" / "mini" / "weights")
    for name in ("docs", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def run(folder, *command):
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_method_is_added_in_four_steps(copied):
    file = copied / "consist" / "methods" / "mean_token.py"
    file.write_text(METHOD + "\n" + OBSTACLE)
    page = copied / "docs" / "methods.md"
    marks = "<!-- fields mean-token -->\n<!-- /fields mean-token -->\n"
    page.write_text(page.read_text() + f"\n## `mean-token`\n\n{marks}")
    run(copied, "scripts/write_docs.py")
    run(copied, "scripts/write_docs.py", "--check")

    row = "| `mean-token` | the mean token of the anchors | ours |"
    assert row in (copied / "README.md").read_text()
    assert "| `anchors` | `2` | The images that are seen" in page.read_text()
    stub = (copied / "consist" / "__init__.pyi").read_text()
    assert "from .methods.mean_token import MeanToken as MeanToken" in stub
    known = "import consist; print(consist.METHODS['mean-token'] is consist.MeanToken)"
    assert run(copied, "-c", known) == "True\n"

    scenes = ["a cat in paris", "a cat in a garden", "a cat on a beach"]
    drawn = ["--method", "mean-token", "--steps", "1", "--out", "drawn"]
    run(copied, "-m", "consist", "batch", *scenes, *drawn)
    assert (copied / "drawn" / "002.png").exists()
    code = (
        "from consist.methods import build; print(build({'name': 'mean-token'}).obstacle('extend'))"
    )
    assert run(copied, "-c", code) == "it is an example\n"


def test_the_docs_and_the_typed_names_are_up_to_date():
    written = runpy.run_path(str(ROOT / "scripts" / "write_docs.py"))["written"]
    stale = [path for path, text in written() if path.read_text(encoding="utf-8") != text]
    assert not stale, "run python scripts/write_docs.py"
