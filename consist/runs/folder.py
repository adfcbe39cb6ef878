"""The run folder: the only contract between drawing, scoring and reporting.

``run.json`` says what was asked and how it went, ``000.png`` … are the pictures with prompt, seed
and settings in their PNG text, ``isolated/`` holds the row without sharing, ``grid.png`` shows
all. Every file is written in full or not at all.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from consist.errors import ConsistError
from consist.files import write_atomically, write_png
from consist.runs.config import LATE, RunConfig
from consist.runs.grid import draw_grid
from consist.settings.fields import marked

FORMAT = 1
# the rows of a run, by their subfolders
SHARED = ""
ISOLATED = "isolated"
ROWS = (SHARED, ISOLATED)


@dataclass(frozen=True)
class RunFolder:
    """A folder that holds one run, finished or not."""

    path: Path

    @property
    def record_path(self) -> Path:
        """Where the record lies."""
        return self.path / "run.json"

    @property
    def grid_path(self) -> Path:
        """Where the picture of all pictures lies."""
        return self.path / "grid.png"

    def picture_path(self, index: int, row: str = SHARED) -> Path:
        """Where picture ``index`` of the shared row, or of the row named, lies."""
        return self.path / row / f"{index:03d}.png"

    def check(self, config: RunConfig) -> None:
        """Makes sure that ``config`` may be drawn here: in a new folder or in one of this very run.

        Raises:
            ConsistError: The folder holds something else.
        """
        if self.record_path.exists():
            if identity(self.read_config()) != identity(config):
                raise ConsistError(
                    f"{self.path} holds another run; choose another --out or remove the folder"
                )
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise ConsistError(f"{self.path} is not empty and holds no run; choose another --out")

    def read_record(self) -> dict[str, Any]:
        """The content of ``run.json``.

        Raises:
            ConsistError: It is missing, damaged or of another format.
        """
        try:
            record = json.loads(self.record_path.read_text(encoding="utf-8"))
            format_ = record["format"]
        except (FileNotFoundError, NotADirectoryError):
            raise ConsistError(f"{self.path} holds no run (no run.json)") from None
        except (ValueError, KeyError, TypeError):
            raise ConsistError(f"{self.record_path} is damaged; remove it to start over") from None
        if format_ != FORMAT:
            raise ConsistError(
                f"{self.record_path} has format {format_}; this version reads {FORMAT}"
            )
        return dict(record)

    def read_config(self) -> RunConfig:
        """What the run was asked to draw.

        Raises:
            ConsistError: As ``read_record``, or the config is of another version.
        """
        try:
            return RunConfig.from_json(self.read_record().get("config"))
        except ValueError:
            raise ConsistError(f"{self.record_path} is damaged; remove it to start over") from None

    def write_record(self, record: dict[str, Any]) -> None:
        """Writes ``run.json``."""
        text = json.dumps({"format": FORMAT, **record}, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.record_path, lambda file: file.write(text.encode()))

    def write_picture(self, index: int, row: str, image: Image.Image, text: dict[str, str]) -> None:
        """Writes one picture with ``text`` in its PNG text chunks."""
        write_png(self.picture_path(index, row), image, text)

    def read_picture(self, index: int, row: str = SHARED) -> Image.Image:
        """The pixels of a picture, mode RGB."""
        with Image.open(self.picture_path(index, row)) as image:
            return image.convert("RGB")

    def set_aside(self, index: int) -> None:
        """Keeps a picture, in all rows, as ``000.old-1.png``, or the next number that is free."""
        for path in (self.picture_path(index, row) for row in ROWS):
            if path.exists():
                names = (path.with_suffix(f".old-{number}.png") for number in count(1))
                path.rename(next(name for name in names if not name.exists()))

    def write_grid(self, rows: dict[str, list[Image.Image]], captions: list[str]) -> None:
        """Writes all pictures in one; arguments as for ``draw_grid``."""
        grid = draw_grid(rows, captions)
        write_atomically(self.grid_path, lambda file: grid.save(file, "PNG"))


def find_runs(path: Path) -> list[RunFolder]:
    """The run that a folder holds, or the runs in its subfolders, by name.

    Raises:
        ConsistError: There is none.
    """
    if (run := RunFolder(path)).record_path.exists():
        return [run]
    inside = sorted(path.iterdir()) if path.is_dir() else []
    runs = [run for run in map(RunFolder, inside) if run.record_path.exists()]
    if not runs:
        raise ConsistError(f"{path} holds no run (no run.json)")
    return runs


def identity(config: RunConfig) -> dict[str, Any]:
    """What tells runs apart, as JSON has it: all settings but whether the isolated row is drawn.

    Of a cache it counts whether there is one, and not where.
    """
    settings = {**config.to_json(), "compare": False, "cache": bool(config.cache)}
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    # what came late is told where it was asked for: other runs keep the folders that they had
    untold = {name for name, x in marked(RunConfig, LATE).items() if getattr(config, name) == x}
    return {name: value for name, value in plain.items() if name not in untold}


def default_folder(config: RunConfig, root: Path = Path("runs")) -> Path:
    """A folder named after the first prompt and all settings: the same command, the same folder."""
    words = "".join(c if c.isalnum() else " " for c in config.prompts[0].lower()).split()
    slug = "-".join(words)[:40].strip("-") or "run"
    digest = hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()
    return root / f"{slug}-{digest[:8]}"
