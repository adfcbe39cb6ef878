"""The inhabitants of the mini world: one function draws one class of subject.

Each takes the canvas, its identity and a pose, and tells where hats, scarves and glasses go.
It must not know scenes, captions or training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from consist.mini.canvas import OUTLINE, Canvas, Color, Point

COLORS: dict[str, Color] = {
    "red": (214, 52, 46),
    "orange": (241, 140, 38),
    "yellow": (248, 212, 66),
    "green": (74, 168, 74),
    "blue": (58, 106, 212),
    "purple": (146, 74, 184),
    "white": (245, 243, 238),
    "black": (66, 64, 76),
}
PATTERNS = ("plain", "stripes", "spots")
BUILDS = {"slim": 0.8, "round": 1.14}  # stretch of the width
SIZES = ("small", "big")  # of the feature that a class is known by
HAIRS: dict[str, Color] = {  # of people
    "dark": (52, 38, 40),
    "blond": (244, 206, 96),
    "ginger": (206, 92, 36),
    "gray": (184, 184, 196),
}
SKINS: dict[str, Color] = {  # by hair
    "dark": (168, 112, 78),
    "blond": (250, 216, 186),
    "ginger": (255, 224, 200),
    "gray": (226, 178, 142),
}
ACCESSORIES = ("none", "hat", "scarf", "glasses")

WHITE: Color = (252, 251, 248)
PINK: Color = (244, 158, 166)
CREAM: Color = (250, 226, 190)
GOLD: Color = (242, 188, 62)
BEAK: Color = (244, 150, 44)
STEEL: Color = (188, 198, 210)
GLASS: Color = (176, 222, 242)
MANE: Color = (150, 84, 40)
WOOD: Color = (134, 92, 58)
TROUSERS: Color = (84, 96, 140)


class Look(Protocol):
    """What a drawing needs to know of a subject."""

    @property
    def coat(self) -> Color: ...
    @property
    def big(self) -> bool: ...  # the feature: ears, wheels, ...
    @property
    def hair(self) -> str: ...  # a key of HAIRS; people alone show it
    @property
    def sway(self) -> float: ...  # -1..1, moves heads, tails and legs
    @property
    def asleep(self) -> bool: ...  # eyes shut


@dataclass(frozen=True)
class Fit:
    """Where accessories sit, in subject units."""

    eyes: tuple[Point, Point]
    top: Point  # middle of the brim of a hat
    neck: Point  # middle of a scarf
    width: float  # of the head at the brim; a scarf is as wide


def _eyes(
    c: Canvas, look: Look, x: float, y: float, apart: float, r: float = 5.6
) -> tuple[Point, Point]:
    eyes = ((x - apart, y), (x + apart, y))
    for ex, ey in eyes:
        _eye(c, look, ex, ey, r)
    return eyes


def _eye(c: Canvas, look: Look, x: float, y: float, r: float) -> None:
    if look.asleep:
        c.line([(x - r, y), (x, y + r * 0.6), (x + r, y)], OUTLINE, 2.4, outline=0)
        return
    c.ellipse(x, y, r, r * 1.12, WHITE, outline=1.0)
    c.ellipse(x + 1.2, y + 0.4, r * 0.56, r * 0.64, OUTLINE, outline=0)


def _smile(c: Canvas, x: float, y: float, width: float) -> None:
    curve = [(x + width * t, y + width * 0.45 * (1 - t * t)) for t in (-1, -0.5, 0, 0.5, 1)]
    c.line(curve, OUTLINE, 1.2, outline=0.4)


def _sitting_body(c: Canvas, look: Look, belly: Color | None) -> None:
    c.ellipse(0, 76, 23, 23, look.coat, coat=True)
    if belly:
        c.ellipse(2, 80, 12, 14, belly, outline=0)
    for side in (-1, 1):
        c.ellipse(side * (13 + look.sway), 95, 10, 5, look.coat, coat=True)


def _head(c: Canvas, look: Look) -> float:
    """Draws the round head of an animal and gives its middle column."""
    x = 3 * look.sway
    c.ellipse(x, 37, 29, 24, look.coat, coat=True)
    return x


def draw_cat(c: Canvas, look: Look) -> Fit:
    tip = 52 + 6 * look.sway
    c.line([(-14, 90), (-32, 86), (-40, 70), (-38, tip)], look.coat, 7, coat=True)
    _sitting_body(c, look, None)
    x, up = 3 * look.sway, -14 if look.big else 9
    for side in (-1, 1):
        base = x + side * 17
        c.polygon([(base - 11, 26), (base + side * 6, up), (base + 11, 26)], look.coat, coat=True)
        inner = [(base - 5, 22), (base + side * 4, up + 8), (base + 5, 22)]
        c.polygon(inner, PINK, outline=0)
    _head(c, look)
    eyes = _eyes(c, look, x + 2, 34, 11)
    c.polygon([(x - 1, 42), (x + 5, 42), (x + 2, 46)], PINK, outline=0.8)
    for side in (-1, 1):
        for dy in (-2, 3):
            c.line([(x + side * 15, 44), (x + side * 33, 43 + 2 * dy)], OUTLINE, 1.0, outline=0)
    return Fit(eyes, (x, 16), (1, 62), 34)


def draw_dog(c: Canvas, look: Look) -> Fit:
    c.line([(-16, 88), (-34, 78), (-38, 64 + 5 * look.sway)], look.coat, 8, coat=True)
    _sitting_body(c, look, WHITE)
    x = _head(c, look)
    long = 29 if look.big else 11
    for side in (-1, 1):
        c.ellipse(x + side * 29, 26 + long * 0.7, 8, long, look.coat, coat=True)
    c.ellipse(x + 3, 47, 14, 11, WHITE, outline=0.8)
    c.ellipse(x + 4, 42, 6, 4, OUTLINE, outline=0)
    _smile(c, x + 4, 49, 6)
    c.ellipse(x + 4, 55, 3.4, 4, PINK, outline=0.6)
    return Fit(_eyes(c, look, x + 2, 31, 11), (x, 16), (1, 62), 34)


def draw_rabbit(c: Canvas, look: Look) -> Fit:
    c.ellipse(-25, 84, 8, 8, WHITE)
    _sitting_body(c, look, WHITE)
    x, long = 3 * look.sway, 32 if look.big else 12
    for side in (-1, 1):
        c.ellipse(x + side * 12, 20 - long * 0.55, 7.5, long, look.coat, coat=True)
        c.ellipse(x + side * 12, 20 - long * 0.55, 3.6, long * 0.75, PINK, outline=0)
    _head(c, look)
    eyes = _eyes(c, look, x + 2, 34, 12)
    c.ellipse(x + 2, 44, 3.6, 2.6, PINK, outline=0.8)
    c.box(x - 1, 49, x + 5, 56, WHITE, outline=1.0)
    return Fit(eyes, (x, 17), (1, 62), 30)


def draw_bear(c: Canvas, look: Look) -> Fit:
    for side in (-1, 1):
        c.ellipse(side * 25, 68 + 3 * side * look.sway, 7, 12, look.coat, coat=True)
    _sitting_body(c, look, CREAM)
    x, r = 3 * look.sway, 17 if look.big else 8
    for side in (-1, 1):
        c.ellipse(x + side * 22, 18, r, r, look.coat, coat=True)
        c.ellipse(x + side * 22, 18, r * 0.5, r * 0.5, CREAM, outline=0)
    _head(c, look)
    c.ellipse(x + 2, 46, 13, 10, CREAM, outline=0.8)
    c.ellipse(x + 2, 42, 5.4, 3.8, OUTLINE, outline=0)
    _smile(c, x + 2, 48, 5)
    return Fit(_eyes(c, look, x + 1, 32, 12), (x, 16), (1, 62), 32)


def draw_bird(c: Canvas, look: Look) -> Fit:
    for side in (-1, 1):
        foot = side * 9 + 2 * look.sway
        c.line([(side * 8, 80), (foot, 97)], BEAK, 3)
        c.line([(foot - 6, 98), (foot + 7, 98)], BEAK, 3)
    c.polygon([(-24, 56), (-46, 44), (-44, 66)], look.coat, coat=True)
    c.ellipse(0, 50, 29, 36, look.coat, coat=True)
    c.ellipse(4, 64, 15, 18, WHITE, outline=0)
    c.ellipse(-24, 56 + 3 * look.sway, 9, 17, look.coat, coat=True)
    long = 30 if look.big else 8
    c.polygon([(14, 34), (16 + long, 41), (14, 47)], BEAK)
    for lean in (-5, 0, 5):
        c.line([(0, 14), (lean - 2, 4)], look.coat, 3, coat=True)
    return Fit(_eyes(c, look, 5, 30, 10, 5.8), (0, 17), (2, 52), 30)


def draw_frog(c: Canvas, look: Look) -> Fit:
    for side in (-1, 1):
        c.ellipse(side * 27, 82, 13, 14, look.coat, coat=True)
        c.ellipse(side * (30 + 2 * look.sway), 96, 14, 4.4, look.coat, coat=True)
    c.ellipse(0, 78, 24, 20, look.coat, coat=True)
    c.ellipse(0, 83, 14, 13, CREAM, outline=0)
    x, r = 3 * look.sway, 16.0 if look.big else 8.0
    for side in (-1, 1):
        c.ellipse(x + side * 19, 30, r + 1, r + 1, look.coat, coat=True)
    c.ellipse(x, 48, 36, 20, look.coat, coat=True)
    eyes = ((x - 19, 29.0), (x + 19, 29.0))
    for ex, ey in eyes:
        _eye(c, look, ex, ey, r - 3)
    _smile(c, x + 1, 50, 22)
    return Fit(eyes, (x, 30), (0, 68), 26)


def draw_robot(c: Canvas, look: Look) -> Fit:
    long = 27 if look.big else 6
    c.line([(0, 16), (3 * look.sway, 16 - long)], STEEL, 2.4)
    c.ellipse(3 * look.sway, 15 - long, 5, 5, COLORS["red"])
    for side in (-1, 1):
        c.box(side * 13 - 6, 84, side * 13 + 6, 98, STEEL, radius=2)
        c.line([(side * 26, 64), (side * 37, 76 + 6 * side * look.sway)], STEEL, 6)
        c.ellipse(side * 38, 78 + 6 * side * look.sway, 6, 6, look.coat)
    c.box(-25, 56, 25, 87, look.coat, radius=4, coat=True)
    c.box(-10, 64, 14, 79, STEEL, radius=2, outline=1.0)
    for x, color in ((-4, "red"), (2, "yellow"), (8, "green")):
        c.ellipse(x, 71.5, 2.4, 2.4, COLORS[color], outline=0.4)
    c.box(-29, 16, 29, 53, look.coat, radius=7, coat=True)
    c.box(-20, 24, 22, 46, OUTLINE, radius=5, outline=0)
    eyes = ((-8.0, 33.0), (11.0, 33.0))
    for ex, ey in eyes:
        c.ellipse(ex, ey, 5.4, 1.6 if look.asleep else 5.4, (120, 236, 226), outline=0)
    c.line([(-5, 42), (8, 42)], (120, 236, 226), 1.8, outline=0)
    return Fit(eyes, (-13, 15), (0, 55), 26)


def draw_bus(c: Canvas, look: Look) -> Fit:
    r = 15.5 if look.big else 7.5
    c.box(-48, 36, 46, 88, look.coat, radius=8, coat=True)
    for x in (-41, -21):
        c.box(x, 44, x + 15, 58, GLASS, radius=2)
    c.box(1, 42, 42, 62, GLASS, radius=3)
    c.ellipse(43, 78, 4, 4, GOLD)
    for x in (-27, 24):
        c.ellipse(x, 99 - r, r, r, OUTLINE)
        c.ellipse(x, 99 - r, r * 0.5, r * 0.5, STEEL, outline=0)
    _smile(c, 24, 69, 8)
    return Fit(_eyes(c, look, 22, 52, 9, 5.4), (-2, 35), (-8, 66), 34)


def draw_box(c: Canvas, look: Look) -> Fit:
    r = 19 if look.big else 9
    for side in (-1, 1):
        c.ellipse(side * r * 0.95, 30 - r * 0.45, r, r * 0.62, GOLD)
        c.ellipse(side * r * 0.95, 30 - r * 0.45, r * 0.45, r * 0.24, OUTLINE, outline=0)
    c.box(-33, 46, 33, 98, look.coat, radius=2, coat=True)
    c.box(-6, 46, 6, 98, GOLD, outline=0.8)
    c.box(-38, 32, 38, 47, look.coat, radius=2, coat=True)
    c.box(-7, 32, 7, 47, GOLD, outline=0.8)
    eyes = _eyes(c, look, 2, 64, 16, 6)
    _smile(c, 2, 76, 9)
    return Fit(eyes, (-2 + 3 * look.sway, 32), (0, 52), 30)


def draw_teapot(c: Canvas, look: Look) -> Fit:
    long = 18 if look.big else -2
    c.line([(-26, 54), (-44, 52), (-46, 74), (-25, 84)], look.coat, 6, coat=True)
    spout = [(22, 64), (34 + long, 40), (43 + long, 42), (24, 90)]
    c.polygon(spout, look.coat, coat=True)
    c.ellipse(0, 70, 33, 28, look.coat, coat=True)
    c.ellipse(0, 45, 20, 6, look.coat, coat=True)
    c.ellipse(0, 36, 5, 5, GOLD)
    eyes = _eyes(c, look, 5, 66, 11, 6)
    _smile(c, 5, 78, 8)
    return Fit(eyes, (0, 40), (0, 52), 28)


def draw_penguin(c: Canvas, look: Look) -> Fit:
    for side in (-1, 1):
        c.ellipse(side * 11 + 2 * look.sway, 97, 11, 4, BEAK)
        flap = 8 * look.sway * side
        c.line([(side * 25, 48), (side * 37, 66 + flap)], look.coat, 9, coat=True)
    c.ellipse(0, 56, 30, 42, look.coat, coat=True)
    c.ellipse(2, 68, 20, 27, WHITE, outline=0)
    for side in (-1, 1):
        c.ellipse(2 + side * 9, 34, 11, 12, WHITE, outline=0)
    long = 22 if look.big else 3
    c.polygon([(-6, 40), (3, 45 + long), (12, 40)], BEAK)
    return Fit(_eyes(c, look, 2, 31, 10), (0, 17), (0, 58), 30)


def draw_elephant(c: Canvas, look: Look) -> Fit:
    for left in (-24, 18):
        c.box(left, 76, left + 15, 99, look.coat, radius=4, coat=True)
    c.ellipse(-6, 66, 34, 25, look.coat, coat=True)
    c.line([(-38, 60), (-46, 74 + 4 * look.sway)], look.coat, 4)
    x, r = 10 + 2 * look.sway, 26 if look.big else 10
    c.ellipse(x - 20, 36, r * 0.85, r, look.coat, coat=True)
    c.ellipse(x - 20, 36, r * 0.5, r * 0.6, PINK, outline=0)
    c.ellipse(x, 36, 24, 23, look.coat, coat=True)
    end = (x + 32, 66 + 8 * look.sway)
    c.line([(x + 17, 40), (x + 25, 58), end], look.coat, 10, coat=True)
    c.polygon([(x + 5, 53), (x + 17, 68), (x + 13, 51)], WHITE, outline=1.0)
    return Fit(_eyes(c, look, x + 3, 32, 10), (x, 16), (4, 62), 30)


def draw_lion(c: Canvas, look: Look) -> Fit:
    c.line([(-14, 90), (-34, 84), (-40, 64 + 5 * look.sway)], look.coat, 5, coat=True)
    c.ellipse(-40, 62 + 5 * look.sway, 7, 8, MANE)
    _sitting_body(c, look, CREAM)
    x, mane = 3 * look.sway, 12 if look.big else 4
    for angle in range(0, 360, 36):
        turn = math.radians(angle)
        px, py = x + 25 * math.cos(turn), 38 + 22 * math.sin(turn)
        c.ellipse(px, py, 7 + mane, 6 + mane, MANE)
    c.ellipse(x, 38, 26, 22, look.coat, coat=True)
    c.ellipse(x + 2, 47, 12, 9, CREAM, outline=0.8)
    c.polygon([(x - 4, 40), (x + 8, 40), (x + 2, 46)], OUTLINE, outline=0)
    return Fit(_eyes(c, look, x + 1, 33, 11), (x, 16), (1, 64), 36)


def draw_pig(c: Canvas, look: Look) -> Fit:
    curl = [(-30, 72), (-38, 68), (-34, 62), (-42, 60 + 3 * look.sway)]
    c.line(curl, look.coat, 2.6)
    for leg in (-24, -8, 6, 20):
        c.box(leg - 5, 84, leg + 6, 99, look.coat, radius=3, coat=True)
    c.ellipse(-2, 70, 34, 22, look.coat, coat=True)
    x, r = 8 + 3 * look.sway, 20 if look.big else 5
    c.ellipse(x, 46, 27, 24, look.coat, coat=True)
    for side in (-1, 1):
        tip = (x + side * (16 + 0.6 * r), 24 - r)
        c.polygon([(x + side * 6, 25), (x + side * 22, 33), tip], PINK)
    c.ellipse(x + 3, 52, 12, 9, PINK)
    for dx in (-2, 8):
        c.ellipse(x + dx, 52, 2.4, 3.6, OUTLINE, outline=0)
    return Fit(_eyes(c, look, x + 2, 38, 11), (x, 23), (2, 70), 30)


def _person(c: Canvas, look: Look) -> tuple[float, Color, Color]:
    """Draws legs and gives the column of the head, the hair's color and the skin's."""
    skin, hair = SKINS[look.hair], HAIRS[look.hair]
    for side in (-1, 1):
        foot = side * 9 + 3 * look.sway
        c.line([(side * 8, 80), (foot, 95)], skin, 6)
        c.ellipse(foot + 2, 97, 7, 3.4, OUTLINE, outline=0.6)
    return 2 * look.sway, hair, skin


def _arms(c: Canvas, look: Look, skin: Color) -> None:
    for side in (-1, 1):
        hand = (side * 29, 74 - 14 * max(0.0, side * look.sway))
        c.line([(side * 13, 60), hand], look.coat, 7, coat=True)
        c.ellipse(*hand, 4.6, 4.6, skin, outline=1.2)


def _face(c: Canvas, look: Look, x: float, skin: Color) -> tuple[Point, Point]:
    c.ellipse(x, 32, 22, 21, skin)
    _smile(c, x + 1, 42, 7)
    for side in (-1, 1):
        c.ellipse(x + side * 14, 39, 4, 2.6, PINK, outline=0)
    return _eyes(c, look, x + 1, 33, 9, 4.8)


def draw_girl(c: Canvas, look: Look) -> Fit:
    x, hair, skin = _person(c, look)
    long, wide = (66, 32) if look.big else (20, 25)
    c.box(x - wide, 12, x + wide, 20 + long, hair, radius=16)
    c.polygon([(-10, 52), (10, 52), (29, 86), (-29, 86)], look.coat, coat=True)
    _arms(c, look, skin)
    eyes = _face(c, look, x, skin)
    c.polygon([(x - 23, 30), (x - 12, 9), (x + 13, 9), (x + 23, 30), (x, 18)], hair)
    return Fit(eyes, (x, 14), (0, 56), 34)


def draw_boy(c: Canvas, look: Look) -> Fit:
    x, hair, skin = _person(c, look)
    for side in (-1, 1):
        c.box(side * 8 - 7, 74, side * 8 + 7, 90, TROUSERS, radius=2)
    c.box(-17, 53, 17, 80, look.coat, radius=7, coat=True)
    _arms(c, look, skin)
    eyes = _face(c, look, x, skin)
    tuft = 20 if look.big else 0
    crown = [(x - 24, 28), (x - 22, 12), (x - 12, 8 - tuft * 0.7), (x - 7, 7), (x + 1, 6 - tuft)]
    crown += [(x + 6, 7), (x + 14, 8 - tuft * 0.7), (x + 22, 12), (x + 24, 28), (x, 19)]
    c.polygon(crown, hair)
    return Fit(eyes, (x, 15), (0, 56), 34)


def draw_wizard(c: Canvas, look: Look) -> Fit:
    hair, skin, x = HAIRS[look.hair], SKINS[look.hair], 2 * look.sway
    c.line([(34, 99), (34 + 3 * look.sway, 40)], WOOD, 4)
    c.ellipse(34 + 3 * look.sway, 36, 6, 6, (120, 236, 226))
    c.polygon([(-13, 48), (13, 48), (28, 99), (-28, 99)], look.coat, coat=True)
    _arms(c, look, skin)
    eyes = _face(c, look, x, skin)
    long = 94 if look.big else 56
    c.polygon([(x - 20, 40), (x + 21, 40), (x + 1, long)], hair)
    _smile(c, x + 1, 45, 5)
    c.polygon([(x - 20, 16), (x + 8, -24), (x + 20, 16)], look.coat, coat=True)
    c.box(x - 29, 12, x + 29, 19, look.coat, radius=3, coat=True)
    return Fit(eyes, (x, 14), (0, 58), 34)


def draw_clock(c: Canvas, look: Look) -> Fit:
    r = 15 if look.big else 6
    for side in (-1, 1):
        c.line([(side * 18, 80), (side * 25, 98)], GOLD, 5)
        c.ellipse(side * 22, 24 - r * 0.3, r, r * 0.8, GOLD)
    c.ellipse(0, 56, 38, 37, look.coat, coat=True)
    c.ellipse(0, 56, 25, 24, WHITE, outline=1.0)
    for angle in range(0, 360, 90):
        turn = math.radians(angle)
        x, y = 20 * math.cos(turn), 56 + 19 * math.sin(turn)
        c.ellipse(x, y, 2.2, 2.2, OUTLINE, outline=0)
    c.line([(0, 62), (12 * look.sway, 76)], OUTLINE, 2.6, outline=0)
    c.line([(0, 62), (10, 68)], OUTLINE, 2.6, outline=0)
    return Fit(_eyes(c, look, 1, 50, 9), (0, 19), (0, 88), 34)


@dataclass(frozen=True)
class Kind:
    """A class of subject: how it is drawn and what its feature is called."""

    draw: Callable[[Canvas, Look], Fit]
    feature: str
    sizes: tuple[str, str] = SIZES  # what a small and a big feature are called
    person: bool = False  # has hair and wears its color

    def describe(self, size: str) -> str:
        """The feature in words, such as "long hair" for a girl whose feature is "big"."""
        return f"{self.sizes[SIZES.index(size)]} {self.feature}"


SUBJECTS: dict[str, Kind] = {
    "cat": Kind(draw_cat, "ears"),
    "dog": Kind(draw_dog, "ears"),
    "rabbit": Kind(draw_rabbit, "ears"),
    "bear": Kind(draw_bear, "ears"),
    "bird": Kind(draw_bird, "beak"),
    "frog": Kind(draw_frog, "eyes"),
    "penguin": Kind(draw_penguin, "beak"),
    "elephant": Kind(draw_elephant, "ears"),
    "lion": Kind(draw_lion, "mane"),
    "pig": Kind(draw_pig, "ears"),
    "girl": Kind(draw_girl, "hair", ("short", "long"), person=True),
    "boy": Kind(draw_boy, "hair", ("smooth", "spiky"), person=True),
    "wizard": Kind(draw_wizard, "beard", ("short", "long"), person=True),
    "robot": Kind(draw_robot, "antenna"),
    "bus": Kind(draw_bus, "wheels"),
    "box": Kind(draw_box, "ribbon"),
    "teapot": Kind(draw_teapot, "spout"),
    "clock": Kind(draw_clock, "bells"),
}


def paint_pattern(c: Canvas, pattern: str, color: Color) -> None:
    """Lays bold stripes or spots over a third of the coat; ``plain`` leaves it."""
    layer, ink = c.blank()
    if pattern == "stripes":
        for y in range(-30, 101, 20):
            corners = [(-60, y), (60, y), (60, y + 6.5), (-60, y + 6.5)]
            ink.polygon([c.frame.to_px(corner) for corner in corners], fill=255)
    elif pattern == "spots":
        r = 5.4 * c.frame.scale
        for row, y in enumerate(range(-30, 101, 16)):
            for x in range(-63, 64, 21):
                px, py = c.frame.to_px((x + 10.5 * (row % 2), y))
                ink.ellipse((px - r, py - r, px + r, py + r), fill=255)
    c.paint_coat(layer, color)


def draw_accessory(c: Canvas, accessory: str, color: Color, fit: Fit, asleep: bool) -> None:
    """Puts a hat, a scarf or glasses on the subject; ``none`` leaves it."""
    if accessory == "hat":
        x, y = fit.top
        half = fit.width / 2
        c.box(x - half * 0.68, y - 24, x + half * 0.68, y, color, radius=2)
        c.box(x - half * 1.3, y - 4, x + half * 1.3, y + 4, color, radius=3)
    elif accessory == "scarf":
        x, y = fit.neck
        half = fit.width / 2 + 5
        c.box(x - 15, y, x - 3, y + 24, color, radius=3)
        c.box(x - half, y - 5, x + half, y + 6, color, radius=5)
    elif accessory == "glasses":
        c.line(list(fit.eyes), color, 3.6, outline=1.0)
        for x, y in fit.eyes:
            c.ellipse(x, y, 11, 11, color, outline=1.0)
            c.ellipse(x, y, 6.6, 6.6, WHITE, outline=0)
            c.ellipse(x + 1.2, y + 0.4, 3, 1 if asleep else 3.4, OUTLINE, outline=0)
