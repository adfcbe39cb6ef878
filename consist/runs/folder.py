"""The run folder: the only contract between drawing, scoring and reporting.

``run.json`` says what was asked and how it went, ``000.png`` … are the pictures with prompt, seed
and settings in their PNG text, ``isolated/`` holds the row without sharing, ``grid.png`` shows
all. Every file is written in full or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from consist.errors import ConsistError
from consist.runs.config import SELDOM, RunConfig

FORMAT = 1
# the rows of a run, by their subfolders
SHARED = ""
ISOLATED = "isolated"
ROWS = (SHARED, ISOLATED)
COLUMNS = 5  # of a grid


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
    late = ("anchor_", "cache", "embeddings", "lora_subject")
    untold = {name for name, value in plain.items() if name.startswith(late) and not value}
    untold |= {name for name, value in SELDOM.items() if plain[name] == value}
    return {name: value for name, value in plain.items() if name not in untold}


def default_folder(config: RunConfig, root: Path = Path("runs")) -> Path:
    """A folder named after the first prompt and all settings: the same command, the same folder."""
    words = "".join(c if c.isalnum() else " " for c in config.prompts[0].lower()).split()
    slug = "-".join(words)[:40].strip("-") or "run"
    digest = hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()
    return root / f"{slug}-{digest[:8]}"


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes ``path`` in full or not at all, also when the disk is full or the process dies.

    Raises:
        ConsistError: The disk or the permissions do not allow it.
    """
    name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException as error:
        if name is not None:
            Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ConsistError(f"{path} cannot be written: {error.strerror or error}") from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_png(path: Path, image: Image.Image, text: dict[str, str]) -> None:
    """Writes a picture with ``text`` in its PNG text chunks, in full or not at all."""
    info = PngInfo()
    for key, value in text.items():
        info.add_itxt(key, value)
    write_atomically(path, lambda file: image.save(file, "PNG", pnginfo=info))


def draw_grid(rows: dict[str, list[Image.Image]], captions: list[str]) -> Image.Image:
    """One labeled picture of all: a row per method, a column per prompt.

    More than ``COLUMNS`` prompts go on below.

    Args:
        rows: Pictures by the label of their row; every row has one per caption.
        captions: Text above each column.
    """
    bands = [
        draw_band(
            {label: images[start : start + COLUMNS] for label, images in rows.items()},
            captions[start : start + COLUMNS],
        )
        for start in range(0, len(captions), COLUMNS)
    ]
    size = (max(band.width for band in bands), sum(band.height for band in bands))
    grid, top = Image.new("RGB", size, "white"), 0
    for band in bands:
        grid.paste(band, (0, top))
        top += band.height
    return grid


def draw_band(rows: dict[str, list[Image.Image]], captions: list[str]) -> Image.Image:
    """A grid of which all columns stand side by side; arguments as for ``draw_grid``."""
    cell = max(192, *(side for row in rows.values() for image in row for side in image.size))
    letter, gap = max(13, cell // 18), max(4, cell // 48)
    font = ImageFont.load_default(letter)
    line, margin = round(letter * 1.35), round(letter * 6.5)
    texts = [wrap(caption, font, cell - gap) for caption in captions]
    head = line * max(map(len, texts)) + 2 * gap
    size = (margin + len(captions) * (cell + gap), head + len(rows) * (cell + gap))
    grid = Image.new("RGB", size, "white")
    ink = ImageDraw.Draw(grid)
    for column, lines in enumerate(texts):
        left = margin + column * (cell + gap)
        for i, words in enumerate(lines):
            ink.text((left, gap + i * line), words, fill="black", font=font)
    for index, (label, images) in enumerate(rows.items()):
        top = head + index * (cell + gap)
        ink.text((gap, top + cell // 2 - line), label, fill="black", font=font)
        for column, image in enumerate(images):
            grid.paste(fit(image, cell), (margin + column * (cell + gap), top))
    return grid


def fit(image: Image.Image, cell: int) -> Image.Image:
    """Scales an image into a square cell; whole factors stay sharp."""
    scale = cell / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """Breaks text into lines no wider than ``width`` pixels, at spaces."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
