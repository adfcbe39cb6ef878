"""How a picture of the mini world is rendered: one function per drawing style.

It must not know what the picture shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

PAPER = (250, 246, 236)
# what is darker than its surroundings
CONTOURS = ImageFilter.Kernel((3, 3), (1, 1, 1, 1, -8, 1, 1, 1, 1), scale=2)
PIXEL = 4  # side of a block of pixel art, in pixels


def render_flat(image: Image.Image) -> Image.Image:
    """Leaves the flat colors as they are drawn."""
    return image


def render_pencil(image: Image.Image) -> Image.Image:
    """Colored pencil: pale hatching on paper, with dark contours."""
    pale = Image.blend(image, Image.new("RGB", image.size, PAPER), 0.3)
    hatched = Image.composite(Image.new("RGB", image.size, PAPER), pale, _hatching(image.size))
    contours = image.convert("L").filter(CONTOURS).point(_softly)
    contours = ImageOps.expand(ImageOps.crop(contours, 1), 1)  # the filter skips the rim
    return ImageChops.subtract(hatched, Image.merge("RGB", (contours,) * 3))


def render_pixel(image: Image.Image) -> Image.Image:
    """Pixel art: square blocks of one color each."""
    width, height = (max(1, side // PIXEL) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def _softly(value: int) -> int:
    return min(130, max(0, value - 40))


@lru_cache(maxsize=4)
def _hatching(size: tuple[int, int]) -> Image.Image:
    """Slanted strokes, mode L: where the paper shines through."""
    width, height = size
    layer = Image.new("L", (2 * width, 2 * height), 0)
    ink = ImageDraw.Draw(layer)
    for x in range(-2 * height, 2 * width, 14):
        ink.line([(x, 2 * height), (x + 2 * height, 0)], fill=110, width=4)
    return layer.reduce(2)


@dataclass(frozen=True)
class Style:
    """A way of drawing: how it renders a picture and how prompts ask for it."""

    render: Callable[[Image.Image], Image.Image]
    prefix: str


STYLES: dict[str, Style] = {
    "flat": Style(render_flat, ""),
    "pencil": Style(render_pencil, "a pencil drawing of "),
    "pixel": Style(render_pixel, "pixel art of "),
}
