"""A folder of photos: what is in it, how each is described, and how it is cut to size.

It must not know models.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers.training_utils import generate_aspect_ratio_buckets
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor

from consist.errors import ConsistError
from consist.runs.folder import RunFolder
from consist.runs.pictures import open_picture

log = logging.getLogger("consist")

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
CAPTIONS = "metadata.jsonl"
MANY = 100  # photos; one subject is learned from a handful
NAMED = 5  # files of a list that are named


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A picture on the disk, and the words for it."""

    path: Path
    caption: str
    width: int  # pixels, upright
    height: int
    digest: str  # of the file's bytes: 16 hex digits

    def read(self) -> Image.Image:
        """Its pixels, upright, mode RGB; what is transparent is white."""
        return open_picture(self.path)


@dataclass(frozen=True, kw_only=True)
class View:
    """How a photo is cut: scaled until it just covers the size, then cropped."""

    width: int  # pixels
    height: int
    x: float = 0.5  # of what hangs over, how much is cut on the left: 0 to 1
    y: float = 0.5  # and above
    flipped: bool = False  # left and right, before it is cut


def read_photos(folder: Path, prompt: str = "") -> list[Photo]:
    """The photos of a folder by name, all of which can be read; other files are named and skipped.

    A photo's caption is ``text`` in its line of ``metadata.jsonl``, else the text file of its
    name, else the prompt.

    Raises:
        ConsistError: There is no photo, one is damaged or has neither caption nor prompt, or the
            folder holds a run.
    """
    if not folder.is_dir():
        raise ConsistError(f"{folder} is not a folder of photos")
    if RunFolder(folder).record_path.exists():
        raise ConsistError(f"{folder} is a run, not a folder of photos; give it as --from-run")
    files = sorted(path for path in folder.iterdir() if path.name != CAPTIONS)
    pictures = [path for path in files if path.is_file() and path.suffix.lower() in SUFFIXES]
    texts = {path.with_suffix(".txt") for path in pictures}
    if stray := [path.name for path in files if path not in texts and path not in pictures]:
        log.warning("%s: skipped what is no photo: %s", folder, listed(stray))
    if not pictures:
        raise ConsistError(f"{folder} has no photos; known are {', '.join(sorted(SUFFIXES))}")
    captions = read_captions(folder)
    if absent := sorted(captions.keys() - {path.name for path in pictures}):
        log.warning("%s describes photos that are not there: %s", CAPTIONS, listed(absent))
    photos = [
        read_photo(path, captions.get(path.name) or text_beside(path) or prompt)
        for path in pictures
    ]
    warn_of_number(folder, len(photos))
    return photos


def photos_of_run(folder: Path, prompt: str = "", class_prompt: str = "") -> list[Photo]:
    """The pictures of a finished run, described by their prompts.

    Where a prompt names the class ("a cat" in "a cat in Paris"), ``prompt`` takes its place.

    Raises:
        ConsistError: The folder holds no run that is finished.
    """
    run = RunFolder(folder)
    record = run.read_record()
    if not record.get("finished"):
        raise ConsistError(f"the run in {folder} is not finished; finish it first")
    captions = [image["prompt"] for image in record["images"]]
    if prompt and class_prompt:
        captions = [caption.replace(class_prompt, prompt, 1) for caption in captions]
    elif prompt:
        captions = [prompt for _ in captions]
    return [read_photo(run.picture_path(i), caption) for i, caption in enumerate(captions)]


def read_photo(path: Path, caption: str) -> Photo:
    """One photo with its caption.

    Raises:
        ConsistError: It is damaged, or nothing says what it shows.
    """
    width, height = open_picture(path).size
    if not caption.strip():
        text = path.with_suffix(".txt").name
        raise ConsistError(f"nothing says what {path.name} shows; give a prompt or {text}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return Photo(path=path, caption=caption.strip(), width=width, height=height, digest=digest)


def text_beside(path: Path) -> str:
    """What the text file of a photo's name says; nothing where there is none."""
    beside = path.with_suffix(".txt")
    return read_text(beside).strip() if beside.exists() else ""


def read_captions(folder: Path) -> dict[str, str]:
    """The captions of ``metadata.jsonl`` by file name; none where there is no such file.

    Raises:
        ConsistError: A line is not a JSON object with ``file_name`` and ``text``.
    """
    path = folder / CAPTIONS
    captions: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines() if path.exists() else [], 1):
        try:
            row = json.loads(line) if line.strip() else None
            if row is not None:
                captions[str(row["file_name"])] = str(row["text"])
        except (ValueError, KeyError, TypeError):
            raise ConsistError(
                f'{path}, line {number}: expected {{"file_name": "…", "text": "…"}}, not {line:.60}'
            ) from None
    return captions


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        ConsistError: It cannot be read as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConsistError(f"{path} cannot be read as text: {error}") from error


def warn_of_number(folder: Path, count: int) -> None:
    """Says so where photos are too few or too many to learn one subject."""
    if count == 1:
        log.warning("%s has one photo: its pose and background are learned as well", folder)
    elif count > MANY:
        log.warning("%s has %d photos; one subject needs 3 to 20 good ones", folder, count)


def listed(names: list[str]) -> str:
    """The first of some names, and how many more there are.

    >>> listed(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d, e and 1 more'
    """
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def bucket_sizes(resolution: int, multiple: int, many: bool) -> list[tuple[int, int]]:
    """Sizes (width, height) of about ``resolution`` squared pixels.

    Args:
        resolution: Pixels, a multiple of ``multiple``.
        multiple: What both sides are multiples of.
        many: Whether there is a size for photos of each shape, or the square alone.
    """
    if not many:
        return [(resolution, resolution)]
    sizes = generate_aspect_ratio_buckets(resolution, divisibility=multiple)
    return [(width, height) for height, width in sizes]


def nearest_size(photo: Photo, sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The size whose shape is nearest to a photo's, by the ratio of the sides' ratios."""
    shape = math.log(photo.width / photo.height)
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1]) - shape))


def middle_view(photo: Photo, sizes: list[tuple[int, int]]) -> View:
    """The middle of a photo, in the size nearest to its shape."""
    width, height = nearest_size(photo, sizes)
    return View(width=width, height=height)


def placement(width: int, height: int, view: View) -> tuple[int, int, int, int]:
    """To which (width, height) an image is scaled for a view, and its first (row, column) there.

    >>> placement(200, 100, View(width=64, height=64))
    (128, 64, 0, 32)
    """
    scale = max(view.width / width, view.height / height)
    width = max(view.width, round(width * scale))
    height = max(view.height, round(height * scale))
    return (
        width,
        height,
        round((height - view.height) * view.y),
        round((width - view.width) * view.x),
    )


def cut(image: Image.Image, view: View) -> Image.Image:
    """What a view shows of an image."""
    width, height, top, left = placement(*image.size, view)
    upright = ImageOps.mirror(image) if view.flipped else image
    scaled = upright.resize((width, height), Image.Resampling.LANCZOS)
    return scaled.crop((left, top, left + view.width, top + view.height))


def as_pixels(image: Image.Image) -> Tensor:
    """An RGB image as float32 ``(3, h, w)`` in -1..1."""
    values = torch.from_numpy(np.array(image, dtype=np.float32))
    return rearrange(values, "h w c -> c h w") / 127.5 - 1


def described(photos: list[Photo], caption: str) -> list[Photo]:
    """The same photos with one caption for all."""
    return [replace(photo, caption=caption) for photo in photos]
