"""A picture of the user's, as it was meant to be seen."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image, ImageOps

from consist.errors import ConsistError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")


def open_picture(path: Path | str) -> Image.Image:
    """A picture upright, as its EXIF data say, and on white where it is transparent; mode RGB.

    Raises:
        ConsistError: It is missing, damaged, too large or no picture.
    """
    upright = _open_upright(path)
    white = Image.new("RGBA", upright.size, "white")
    return Image.alpha_composite(white, upright).convert("RGB")


def open_outline(path: Path | str) -> Image.Image | None:
    """How opaque a picture is, upright; mode L. None where it is opaque all over.

    Raises:
        ConsistError: As ``open_picture``.
    """
    alpha = _open_upright(path).getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def _open_upright(path: Path | str) -> Image.Image:
    """A picture upright, in mode RGBA."""
    large = (Image.DecompressionBombWarning, Image.DecompressionBombError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                upright = ImageOps.exif_transpose(image)
    except Image.UnidentifiedImageError:
        raise ConsistError(f"{path} is none of {', '.join(FORMATS)}") from None
    except large:
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ConsistError(f"{path} has more than {limit} megapixels") from None
    # what Pillow raises for damaged files
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise unreadable(path, error) from None
    if upright.mode.startswith(("I", "F")):
        raise ConsistError(f"{path} has more than 8 bits a channel; save it with 8")
    return upright.convert("RGBA")


def unreadable(path: Path | str, error: Exception) -> ConsistError:
    """Says in one sentence why a file cannot be read."""
    reason = getattr(error, "strerror", None) or str(error)
    return ConsistError(f"{path} cannot be read: {reason}")
