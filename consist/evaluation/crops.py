"""Pictures and masks to what scores look at: the subject alone, or the picture without it.

Pure functions of pixels; knows nothing of models, files or scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Mask: TypeAlias = NDArray[np.bool_]  # (h w)
Pixels: TypeAlias = NDArray[np.uint8]  # (h w 3)


def masked_crop(pixels: Pixels, mask: Mask, fill: int = 128) -> Pixels | None:
    """Cuts the subject out: on flat gray, in its bounding box padded to a square.

    Args:
        pixels: ``(h w 3)`` uint8.
        mask: ``(h w)`` bool.
        fill: In [0, 255].

    Returns:
        ``(s s 3)`` uint8, a copy, the box in the middle; None for an empty mask.

    Raises:
        ValueError: The shapes do not fit.
    """
    _check_picture(pixels, mask)
    if not mask.any():
        return None
    (top, left), (bottom, right) = np.argwhere(mask).min(0), np.argwhere(mask).max(0) + 1
    height, width = int(bottom - top), int(right - left)
    side = max(height, width)
    square = np.full((side, side, 3), fill, dtype=np.uint8)
    y, x = (side - height) // 2, (side - width) // 2
    box = background(pixels, ~mask, fill)[top:bottom, left:right]
    square[y : y + height, x : x + width] = box
    return square


def background(pixels: Pixels, mask: Mask, fill: int = 128) -> Pixels:
    """Replaces the subject by flat gray, ``(h w 3)`` uint8, a copy; arguments as ``masked_crop``.

    Raises:
        ValueError: The shapes do not fit.
    """
    _check_picture(pixels, mask)
    return np.where(mask[..., None], np.uint8(fill), pixels)


def masked_histogram(pixels: Pixels, mask: Mask, bins: int = 4) -> NDArray[np.float64]:
    """Counts the colors under a mask: the baseline that every identity metric must beat.

    Args:
        pixels: ``(h w 3)`` uint8.
        mask: ``(h w)`` bool.
        bins: Per channel, in [1, 256], of equal width.

    Returns:
        ``(bins^3)``, red outermost, of length 1; zero for an empty mask.

    Raises:
        ValueError: The shapes do not fit, or ``bins`` is outside [1, 256].
    """
    _check_picture(pixels, mask)
    if not 1 <= bins <= 256:
        raise ValueError(f"bins is {bins}; allowed: 1 <= bins <= 256")
    index = pixels[mask].astype(np.int64) * bins // 256
    counts = np.bincount(index @ [bins * bins, bins, 1], minlength=bins**3).astype(np.float64)
    return counts / max(float(np.linalg.norm(counts)), 1.0)


def published_foreground(image: Image.Image, mask: Mask, seed: int | Sequence[int]) -> Image.Image:
    """Replaces everything but the subject by uniform noise, as CLIP-I and DreamSim were published.

    The published script (byliutao/1Prompt1Story#12) replaces the pixels that CarveKit left at
    [130, 130, 130], without a seed. Here it is the pixels outside the mask, and the seed is given;
    another one for each picture, or the noise itself is what two pictures share.

    Args:
        mask: ``(h w)`` bool, of the picture's size.
        seed: Of an own generator; the noise is in 0..255, per pixel and channel.

    Raises:
        ValueError: The mask has another size than the picture.
    """
    pixels = np.asarray(image.convert("RGB"))
    _check_picture(pixels, mask)
    noise = np.random.default_rng(seed).integers(256, size=pixels.shape, dtype=np.uint8)
    return Image.fromarray(np.where(mask[..., None], pixels, noise))


def split_images(
    images: Sequence[Image.Image], masks: Sequence[Mask], seed: int = 0
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Gives foregrounds and backgrounds; picture ``i`` has noise from the seed ``(seed, i)``.

    Backgrounds of one set that are near each other have copied the scene.

    Raises:
        ValueError: There is not one mask of the right size per picture.
    """
    if len(images) != len(masks):
        raise ValueError(f"{len(images)} images, {len(masks)} masks; allowed: as many")
    pairs = list(enumerate(zip(images, masks, strict=True)))
    return (
        [published_foreground(image, mask, (seed, i)) for i, (image, mask) in pairs],
        [published_foreground(image, ~mask, (seed, i)) for i, (image, mask) in pairs],
    )


def _check_picture(pixels: Pixels, mask: Mask) -> None:
    if pixels.dtype != np.uint8 or pixels.shape != (*mask.shape, 3) or mask.dtype != np.bool_:
        raise ValueError(
            f"pixels are {pixels.dtype} {pixels.shape}, the mask {mask.dtype} {mask.shape}; "
            "allowed: uint8 (h w 3) and bool (h w)"
        )
