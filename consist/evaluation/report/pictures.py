"""Pictures into the page, until it is full."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from consist.evaluation.report.readings import Reading, read_row
from consist.evaluation.report.runs import Run, Story
from consist.runs.folder import ISOLATED, RunFolder

MAX_BYTES = 24 * 2**20  # of encoded pictures; sets beyond are listed without pictures
EXACT_PX = 256  # pictures up to this side keep every pixel
LARGEST_PX = 512  # larger ones are scaled down to this side
JPEG_QUALITY = 85


@dataclass(frozen=True)
class PictureRow:
    """One row of a story: what was drawn by one group, or without sharing."""

    name: str  # the label of the group, or "isolated"
    title: str
    run: Run
    row: str
    pictures: tuple[str | None, ...]  # data URIs; None where not drawn yet

    @cached_property
    def readings(self) -> list[Reading | None]:
        """One for each picture; None where nothing was read."""
        images = [*self.run.scores.images] if self.run.scores else []
        images += [{}] * len(self.pictures)
        key = "isolated" if self.row == ISOLATED else "read"
        return read_row(images[: len(self.pictures)], key)


def picture_rows(stories: Sequence[Story]) -> dict[str, list[PictureRow]]:
    """The rows of stories by their anchors, until the page is full; at least one story."""
    rows: dict[str, list[PictureRow]] = {}
    used = 0
    # in turn of the best, the median and the worst, so that a full page still has all three
    third = len(stories) // 3 if stories[0].place else len(stories)
    for story in (story for i in range(third) for story in stories[i::third]):
        encoded = _encode(story)
        used += sum(len(uri or "") for row in encoded for uri in row.pictures)
        if rows and used > MAX_BYTES:
            break
        rows[story.anchor] = encoded
    return rows


def _encode(story: Story) -> list[PictureRow]:
    rows: list[PictureRow] = []
    isolated: dict[tuple[str | None, ...], tuple[str, Run]] = {}
    for label, run in story.runs.items():
        for row in run.rows:
            uris = tuple(encode_picture(run.folder, i, row) for i in range(len(run.prompts)))
            if row == ISOLATED:
                isolated.setdefault(uris, (label, run))
            else:
                rows.append(PictureRow(label, f"with {label}", run, row, uris))
    for uris, (label, run) in isolated.items():
        name, title = "isolated", "without sharing"
        if len(isolated) > 1:
            name, title = f"{name} {label}", f"{title}, {label}"
        rows.append(PictureRow(name, title, run, ISOLATED, uris))
    return rows


def encode_picture(folder: RunFolder, index: int, row: str) -> str | None:
    """A picture as a data URI, or None where there is none.

    Up to 256 px it is exact (PNG); a larger one is scaled to 512 px and lossy (JPEG).
    """
    try:
        image = folder.read_picture(index, row)
    except OSError:
        return None
    file = io.BytesIO()
    if max(image.size) <= EXACT_PX:
        kind = "png"
        image.save(file, "PNG", optimize=True)
    else:
        kind = "jpeg"
        image.thumbnail((LARGEST_PX, LARGEST_PX), Image.Resampling.LANCZOS)
        image.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True, subsampling=0)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
