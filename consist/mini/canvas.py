"""A pencil for the mini world: outlined shapes in subject units, with a mask of the patterned coat.

It must not know what a cat or a forest is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageChops, ImageDraw

Color = tuple[int, int, int]
Point = tuple[float, float]

OUTLINE: Color = (36, 30, 44)
OUTLINE_WIDTH = 1.6  # subject units


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where subject units land in the picture.

    In subject units x runs from -50 to 50 and y from 0 (top) to 100 (ground).

    Args:
        x: Pixel column of the subject's middle.
        ground: Pixel row that it stands on.
        scale: Pixels per subject unit.
        facing: 1 keeps the drawing, -1 mirrors it.
        stretch: Factor on the width alone; below 1 is slim, above 1 is round.
    """

    x: float
    ground: float
    scale: float
    facing: int = 1
    stretch: float = 1.0

    def to_px(self, point: Point) -> Point:
        """Subject units to pixels."""
        x, y = point
        across = self.facing * self.stretch * self.scale
        return self.x + x * across, self.ground - (100 - y) * self.scale


@dataclass
class Canvas:
    """A transparent layer on which one subject is drawn part by part, back to front."""

    size: int  # pixels, both sides
    frame: Frame
    image: Image.Image = field(init=False)
    coat: Image.Image = field(init=False)  # where the pattern may go

    def __post_init__(self) -> None:
        self.image = Image.new("RGBA", (self.size, self.size), (0, 0, 0, 0))
        self.coat = Image.new("L", (self.size, self.size), 0)
        self._ink = ImageDraw.Draw(self.image)
        self._coat_ink = ImageDraw.Draw(self.coat)

    def ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        fill: Color,
        *,
        coat: bool = False,
        outline: float = OUTLINE_WIDTH,
    ) -> None:
        """Draws an ellipse around ``(x, y)`` with half axes ``rx`` and ``ry``."""
        for grow, color, inside in ((outline, OUTLINE, False), (0.0, fill, coat)):
            a = self.frame.to_px((x - rx - grow, y - ry - grow))
            b = self.frame.to_px((x + rx + grow, y + ry + grow))
            bounds = (min(a[0], b[0]), a[1], max(a[0], b[0]), b[1])
            self._ink.ellipse(bounds, fill=color)
            self._coat_ink.ellipse(bounds, fill=255 * inside)

    def box(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        fill: Color,
        *,
        radius: float = 0.0,
        coat: bool = False,
        outline: float = OUTLINE_WIDTH,
    ) -> None:
        """Draws a rectangle with rounded corners."""
        for grow, color, inside in ((outline, OUTLINE, False), (0.0, fill, coat)):
            a = self.frame.to_px((x0 - grow, y0 - grow))
            b = self.frame.to_px((x1 + grow, y1 + grow))
            bounds = (min(a[0], b[0]), a[1], max(a[0], b[0]), b[1])
            corner = (radius + grow) * self.frame.scale
            self._ink.rounded_rectangle(bounds, corner, fill=color)
            self._coat_ink.rounded_rectangle(bounds, corner, fill=255 * inside)

    def polygon(
        self,
        points: Sequence[Point],
        fill: Color,
        *,
        coat: bool = False,
        outline: float = OUTLINE_WIDTH,
    ) -> None:
        """Draws a closed polygon."""
        pixels = [self.frame.to_px(point) for point in points]
        rim = [*pixels, pixels[0], pixels[1]]
        width = max(1, round(2 * outline * self.frame.scale))
        if outline:
            self._ink.line(rim, fill=OUTLINE, width=width, joint="curve")
            self._coat_ink.line(rim, fill=0, width=width, joint="curve")
        self._ink.polygon(pixels, fill=fill)
        self._coat_ink.polygon(pixels, fill=255 * coat)

    def line(
        self,
        points: Sequence[Point],
        fill: Color,
        width: float,
        *,
        coat: bool = False,
        outline: float = OUTLINE_WIDTH,
    ) -> None:
        """Draws a line with round ends and joints, ``width`` units thick."""
        pixels = [self.frame.to_px(point) for point in points]
        for grow, color, inside in ((outline, OUTLINE, False), (0.0, fill, coat)):
            thick = max(1, round((width + 2 * grow) * self.frame.scale))
            for ink, value in ((self._ink, color), (self._coat_ink, 255 * inside)):
                ink.line(pixels, fill=value, width=thick, joint="curve")
                for x, y in (pixels[0], pixels[-1]):
                    r = thick / 2
                    ink.ellipse((x - r, y - r, x + r, y + r), fill=value)

    def paint_coat(self, pattern: Image.Image, color: Color) -> None:
        """Lays ``color`` over the coat wherever ``pattern`` (mode L, same size) is set."""
        self.image.paste(color, mask=ImageChops.multiply(self.coat, pattern))

    def tilt(self, degrees: float) -> None:
        """Turns what was drawn around the subject's middle; positive leans the way it faces."""
        middle = self.frame.to_px((0, 50))
        turn = -degrees * self.frame.facing
        self.image = self.image.rotate(turn, Image.Resampling.BICUBIC, center=middle)

    def blank(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        """Gives an empty pattern of the right size and a pen for it."""
        pattern = Image.new("L", (self.size, self.size), 0)
        return pattern, ImageDraw.Draw(pattern)
