"""Whether a picture is a copy of a photo; scores such as DINO and CLIP-I reward copying.

The threshold lies between renders of the mini world that were cut, mirrored, made paler, compressed
or turned a little, and renders of the same subject in another scene: see the tests. A picture that
has nothing of a photo but its scene may count as a copy as well. Pure functions of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

SIDE = 24  # pixels that pictures are compared at: fine noise and compression do not count
SMALLEST = 16  # of which a cut-out has at least so many
LARGE = 4 * SIDE
BLUR = 3  # pixels of LARGE, so that what is cut between two pixels is still alike
COPIED = 0.9  # likeness from which a picture is a copy
CHOICES: dict[str, Any] = {
    "side_px": SIDE,
    "smallest_px": SMALLEST,
    "blur": BLUR / LARGE,
    "copied_from": COPIED,
}

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Cuts:
    """A picture at each size, and all squares of that size that are cut out of it."""

    whole: tuple[Rows, ...]  # (1 d), from the smallest on
    parts: tuple[Rows, ...]  # (n d)


class Originals:
    """Photos that a picture may be a copy of.

    Args:
        photos: At least one; of each the middle square counts.

    Raises:
        ValueError: There is none.
    """

    def __init__(self, photos: Sequence[Image.Image]):
        if not photos:
            raise ValueError("there is no photo to compare with")
        self.photos = [(cut(photo), cut(ImageOps.mirror(photo))) for photo in photos]

    def nearest(self, picture: Image.Image) -> tuple[int, float]:
        """The photo that a picture is most like, and how much: see ``likeness``."""
        own = cut(picture)
        found = [max(likeness(own, way) for way in photo) for photo in self.photos]
        return max(range(len(found)), key=found.__getitem__), max(found)


def likeness(picture: Cuts, other: Cuts) -> float:
    """The largest normalized cross-correlation of two pictures, aligned.

    Aligned means that either may be a square cut out of the other, of two thirds of its side or
    more. Tint, brightness and contrast do not count. A picture of the same subject elsewhere has
    little in common but the subject's pixels.

    Returns:
        In -1..1; 1 for the same picture.
    """
    pairs = [
        *zip(picture.whole, other.parts, strict=True),
        *zip(other.whole, picture.parts, strict=True),
    ]
    return max(float((whole @ parts.T).max()) for whole, parts in pairs)


def cut(image: Image.Image) -> Cuts:
    """The middle square of a picture and what is cut out of it, blurred."""
    square = ImageOps.fit(image.convert("RGB"), (LARGE, LARGE), Image.Resampling.BOX)
    blurred = square.filter(ImageFilter.GaussianBlur(BLUR))
    sides = range(SMALLEST, SIDE + 1)
    sizes = {side: pixels_of(blurred, side) for side in sides}
    windows = (sliding_window_view(sizes[SIDE], (side, side), (0, 1)) for side in sides)
    return Cuts(
        tuple(normalized(rearrange(sizes[side], "h w c -> 1 c (h w)")) for side in sides),
        tuple(normalized(rearrange(one, "y x c h w -> (y x) c (h w)")) for one in windows),
    )


def pixels_of(image: Image.Image, side: int) -> Rows:
    """A square picture with so many pixels on a side, ``(h w c)``."""
    return np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=np.float32)


def normalized(cuts: Rows) -> Rows:
    """Rows ``(n d)`` of length 1 from cuts ``(n c p)`` less the mean of each color.

    Those with next to no contrast are shorter.
    """
    rows = rearrange(cuts - cuts.mean(2, keepdims=True), "n c p -> n (c p)")
    found: Rows = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1.0)
    return found
