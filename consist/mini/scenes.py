"""The places of the mini world: one function paints one scene, never twice quite the same.

Each takes a pen, the picture's size and a random source. It must not know subjects or captions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from PIL import ImageDraw

from consist.mini.canvas import Color, Point

LAVA: Color = (255, 156, 40)
WHEEL: Color = (250, 240, 246)
BARN: Color = (196, 58, 52)


@dataclass(frozen=True)
class Brush:
    """A pen in relative units: x and y run from 0 to 1 over the picture."""

    ink: ImageDraw.ImageDraw
    size: int  # pixels, both sides

    def _px(self, points: list[Point]) -> list[Point]:
        return [(x * self.size, y * self.size) for x, y in points]

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: Color) -> None:
        self.ink.rectangle(self._px([(x0, y0), (x1, y1)]), fill=fill)

    def disc(self, x: float, y: float, rx: float, fill: Color, ry: float | None = None) -> None:
        ry = rx if ry is None else ry
        self.ink.ellipse(self._px([(x - rx, y - ry), (x + rx, y + ry)]), fill=fill)

    def poly(self, points: list[Point], fill: Color) -> None:
        self.ink.polygon(self._px(points), fill=fill)

    def line(self, points: list[Point], fill: Color, width: float) -> None:
        thick = max(1, round(width * self.size))
        self.ink.line(self._px(points), fill=fill, width=thick, joint="curve")

    def arc(self, x: float, y: float, r: float, fill: Color, width: float) -> None:
        """Draws the upper half of a ring."""
        box = self._px([(x - r, y - r), (x + r, y + r)])
        self.ink.arc(box, 180, 360, fill=fill, width=max(1, round(width * self.size)))

    def sky(self, top: Color, bottom: Color, until: float, bands: int = 12) -> None:
        """Fades from ``top`` to ``bottom`` over the height ``0..until``."""
        for i in range(bands):
            t = i / (bands - 1)
            mixed = [round(a + (b - a) * t) for a, b in zip(top, bottom, strict=True)]
            fill = (mixed[0], mixed[1], mixed[2])
            self.rect(0, until * i / bands, 1, until * (i + 1) / bands, fill)


def _sky(b: Brush, rng: Random, moods: list[tuple[Color, Color]], until: float) -> None:
    """Paints the sky of one of several times of day."""
    b.sky(*rng.choice(moods), until)


def _cloud(b: Brush, x: float, y: float, r: float, fill: Color = (255, 255, 255)) -> None:
    for dx, dr in ((-1.1, 0.7), (0, 1.0), (1.1, 0.75)):
        b.disc(x + dx * r, y + (1 - dr) * r * 0.5, r * dr, fill, r * dr * 0.75)


def paint_paris(b: Brush, rng: Random) -> None:
    ground = rng.uniform(0.66, 0.72)
    _sky(
        b,
        rng,
        [
            ((150, 178, 228), (250, 222, 208)),
            ((120, 190, 246), (226, 242, 252)),
            ((236, 140, 130), (255, 220, 160)),
        ],
        ground,
    )
    for x in (0.0, 0.22, 0.44, 0.66, 0.84):
        height = rng.uniform(0.14, 0.24)
        b.rect(x, ground - height, x + 0.2, ground, (226, 206, 176))
        b.rect(x, ground - height - 0.04, x + 0.2, ground - height, (104, 116, 140))
        for dx in (0.04, 0.12):
            b.rect(x + dx, ground - height + 0.04, x + dx + 0.04, ground - 0.04, (120, 150, 190))
    x, top = rng.choice((rng.uniform(0.14, 0.26), rng.uniform(0.74, 0.86))), rng.uniform(0.02, 0.08)
    iron, foot = (94, 70, 58), 0.15
    for side in (-1, 1):
        legs = [(x + side * foot, ground), (x + side * 0.045, ground - 0.3), (x, top)]
        b.line(legs, iron, 0.026)
    for up, half in ((0.12, 0.12), (0.3, 0.06)):
        b.rect(x - half, ground - up, x + half, ground - up + 0.03, iron)
    b.rect(0, ground, 1, 1, (176, 172, 170))
    b.rect(0, ground, 1, ground + 0.025, (146, 142, 142))


def paint_moon(b: Brush, rng: Random) -> None:
    ground = rng.uniform(0.6, 0.7)
    b.rect(0, 0, 1, 1, (16, 16, 36))
    for _ in range(26):
        b.disc(rng.random(), rng.uniform(0, ground), rng.uniform(0.004, 0.009), (248, 246, 220))
    x, y, r = rng.uniform(0.12, 0.88), rng.uniform(0.1, 0.2), rng.uniform(0.07, 0.1)
    b.disc(x, y, r, (62, 128, 222))
    b.disc(x - r * 0.25, y - r * 0.2, r * 0.5, (92, 178, 100), r * 0.35)
    b.disc(x + r * 0.4, y + r * 0.35, r * 0.35, (92, 178, 100))
    b.disc(0.5, ground + 0.9, 1.25, (168, 168, 176), 0.92)
    for _ in range(6):
        x, y, r = rng.random(), rng.uniform(ground + 0.08, 0.97), rng.uniform(0.04, 0.08)
        b.disc(x, y, r, (134, 134, 144), r * 0.45)
        b.disc(x, y + 0.008, r * 0.8, (152, 152, 162), r * 0.34)


def paint_forest(b: Brush, rng: Random) -> None:
    ground = rng.uniform(0.66, 0.74)
    _sky(b, rng, [((170, 216, 190), (214, 238, 202)), ((250, 206, 150), (236, 238, 190))], ground)
    for x in range(9):
        _fir(b, x / 8 + rng.uniform(-0.03, 0.03), ground - 0.02, 0.42, (104, 162, 120))
    b.rect(0, ground - 0.02, 1, 1, (88, 138, 66))
    for x in range(5):
        size = rng.uniform(0.5, 0.62)
        _fir(b, x / 4 + rng.uniform(-0.08, 0.08), ground + 0.04, size, (40, 102, 62))


def _fir(b: Brush, x: float, foot: float, height: float, fill: Color) -> None:
    b.rect(x - 0.02, foot - height * 0.2, x + 0.02, foot, (104, 72, 48))
    for level in range(3):
        low, half = foot - height * (0.14 + 0.25 * level), height * (0.3 - 0.07 * level)
        b.poly([(x - half, low), (x + half, low), (x, low - height * 0.4)], fill)


def paint_beach(b: Brush, rng: Random) -> None:
    sea, sand = rng.uniform(0.42, 0.5), rng.uniform(0.62, 0.7)
    _sky(b, rng, [((96, 184, 244), (206, 236, 250)), ((250, 150, 120), (255, 226, 160))], sea)
    b.disc(rng.uniform(0.3, 0.7), 0.13, 0.08, (255, 232, 120))
    b.rect(0, sea, 1, sand, (40, 128, 206))
    b.rect(0, sand - 0.03, 1, sand, (236, 248, 252))
    b.rect(0, sand, 1, 1, (244, 218, 156))
    x = rng.choice((rng.uniform(0.08, 0.18), rng.uniform(0.82, 0.92)))
    lean = rng.uniform(-0.05, 0.05)
    b.line([(x, sand + 0.08), (x + lean, 0.22)], (150, 104, 62), 0.045)
    for dx, dy in ((-0.2, 0.08), (0.2, 0.08), (-0.17, -0.06), (0.17, -0.06)):
        tip = (x + lean + dx, 0.22 + dy)
        b.poly([(x + lean, 0.17), tip, (x + lean, 0.25)], (46, 150, 74))


def paint_desert(b: Brush, rng: Random) -> None:
    ground = rng.uniform(0.6, 0.68)
    _sky(b, rng, [((255, 214, 130), (255, 238, 196)), ((250, 160, 100), (255, 214, 150))], ground)
    b.disc(rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.16), 0.075, (255, 250, 226))
    b.rect(0, ground, 1, 1, (230, 176, 104))
    b.disc(rng.uniform(0.1, 0.9), ground + 0.12, 0.55, (218, 160, 92), 0.16)
    b.rect(0, ground + 0.14, 1, 1, (230, 176, 104))
    for x in (rng.uniform(0.06, 0.2), rng.uniform(0.8, 0.94)):
        top, foot = ground - rng.uniform(0.16, 0.26), ground + 0.08
        b.line([(x, top), (x, foot)], (66, 140, 82), 0.06)
        for side in (-1, 1):
            arm = top + rng.uniform(0.08, 0.14)
            elbow = x + side * 0.08
            b.line([(x, arm + 0.04), (elbow, arm + 0.04), (elbow, arm - 0.05)], (66, 140, 82), 0.04)


def paint_snow(b: Brush, rng: Random) -> None:
    ground = rng.uniform(0.62, 0.7)
    _sky(b, rng, [((160, 186, 220), (226, 236, 246)), ((224, 180, 214), (250, 230, 226))], ground)
    for x in (rng.uniform(0.0, 0.3), rng.uniform(0.7, 1.0), rng.uniform(0.35, 0.65)):
        peak, half = ground - rng.uniform(0.34, 0.5), 0.34
        b.poly([(x - half, ground), (x, peak), (x + half, ground)], (116, 134, 168))
        cap = 0.36
        down = peak + (ground - peak) * cap
        left, right = (x - half * cap, down), (x + half * cap, down)
        b.poly([left, (x, peak), right, (x, down - 0.04)], (252, 253, 255))
    b.rect(0, ground, 1, 1, (246, 249, 253))
    for _ in range(30):
        b.disc(rng.random(), rng.random(), rng.uniform(0.006, 0.012), (255, 255, 255))


def paint_city(b: Brush, rng: Random) -> None:
    ground = rng.uniform(0.68, 0.74)
    _sky(b, rng, [((22, 20, 60), (72, 52, 116)), ((16, 30, 56), (34, 84, 110))], ground)
    x = -0.02
    while x < 1:
        width, top = rng.uniform(0.14, 0.22), rng.uniform(0.06, 0.4)
        b.rect(x, top, x + width - 0.012, ground, (38, 36, 66))
        rows = int((ground - top) / 0.09)
        for row in range(rows):
            for col in range(int(width / 0.07)):
                if rng.random() < 0.7:
                    wx, wy = x + 0.02 + col * 0.065, top + 0.03 + row * 0.09
                    b.rect(wx, wy, wx + 0.03, wy + 0.045, (252, 218, 110))
        x += width
    b.rect(0, ground, 1, 1, (62, 60, 80))
    for i in range(4):
        b.rect(0.05 + i * 0.27, 0.9, 0.18 + i * 0.27, 0.92, (230, 226, 200))


def paint_sea(b: Brush, rng: Random) -> None:
    ground = rng.uniform(0.78, 0.84)
    _sky(b, rng, [((60, 170, 222), (14, 70, 148)), ((70, 190, 190), (10, 86, 112))], 1.0)
    b.rect(0, ground, 1, 1, (214, 190, 136))
    for _ in range(5):
        x, y = rng.choice((rng.uniform(0, 0.25), rng.uniform(0.75, 1))), ground + 0.06
        top = y - rng.uniform(0.28, 0.5)
        wave = [(x + 0.03 * (-1) ** i, y - (y - top) * i / 5) for i in range(6)]
        b.line(wave, (36, 152, 104), 0.035)
    for _ in range(10):
        x, y, r = rng.random(), rng.uniform(0.03, ground), rng.uniform(0.014, 0.03)
        b.disc(x, y, r, (206, 238, 250))
        b.disc(x, y, r * 0.62, (64, 150, 206))


def paint_kitchen(b: Brush, rng: Random) -> None:
    ground = rng.uniform(0.68, 0.74)
    b.rect(0, 0, 1, 1, (252, 238, 214))
    for i in range(1, 7):
        b.line([(i / 7, 0), (i / 7, ground)], (236, 214, 182), 0.01)
        b.line([(0, i / 9), (1, i / 9)], (236, 214, 182), 0.01)
    side = rng.choice((0, 1))
    x = 0.04 + 0.66 * side
    b.rect(x, 0.2, x + 0.26, ground + 0.04, (224, 230, 236))
    b.rect(x, 0.38, x + 0.26, 0.4, (160, 170, 182))
    b.rect(x + 0.03, 0.26, x + 0.05, 0.34, (120, 130, 144))
    x = rng.uniform(0.06, 0.14) if side else rng.uniform(0.56, 0.64)
    b.rect(x, 0.08, x + 0.3, 0.36, (150, 98, 62))
    b.rect(x + 0.03, 0.11, x + 0.27, 0.33, (150, 212, 246))
    b.rect(x + 0.135, 0.11, x + 0.165, 0.33, (150, 98, 62))
    b.rect(0, ground, 1, 1, (176, 112, 74))
    for i in range(3):
        b.rect(0, ground + 0.08 * i, 1, ground + 0.08 * i + 0.012, (146, 88, 58))


def paint_library(b: Brush, rng: Random) -> None:
    ground = rng.uniform(0.74, 0.8)
    b.rect(0, 0, 1, 1, (112, 70, 46))
    spines: list[Color] = [
        (196, 64, 58),
        (226, 180, 84),
        (70, 120, 150),
        (92, 136, 90),
        (236, 224, 200),
    ]
    for row in range(3):
        low = 0.24 + row * 0.25
        x = 0.02
        while x < 0.98:
            width, height = rng.uniform(0.035, 0.06), rng.uniform(0.14, 0.19)
            b.rect(x, low - height, x + width - 0.008, low, rng.choice(spines))
            x += width
        b.rect(0, low, 1, low + 0.035, (84, 50, 34))
    b.rect(0, ground, 1, 1, (138, 44, 52))
    b.rect(0, ground, 1, ground + 0.03, (206, 160, 80))


def paint_garden(b: Brush, rng: Random) -> None:
    ground = rng.uniform(0.56, 0.64)
    _sky(b, rng, [((120, 196, 250), (220, 242, 255)), ((255, 206, 150), (255, 240, 214))], ground)
    _cloud(b, rng.uniform(0.12, 0.88), rng.uniform(0.1, 0.2), rng.uniform(0.07, 0.1))
    for i in range(9):
        x = i / 8.5 - 0.02
        b.poly(
            [(x, ground), (x, 0.4), (x + 0.04, 0.35), (x + 0.08, 0.4), (x + 0.08, ground)],
            (254, 252, 246),
        )
    b.rect(0, 0.46, 1, 0.5, (254, 252, 246))
    b.rect(0, ground, 1, 1, (112, 190, 84))
    petals: list[Color] = [(236, 84, 110), (255, 220, 90), (250, 250, 250), (190, 110, 220)]
    for _ in range(14):
        x, y = rng.random(), rng.uniform(ground + 0.05, 0.97)
        b.disc(x, y, 0.026, rng.choice(petals))
        b.disc(x, y, 0.01, (250, 176, 60))


def paint_castle(b: Brush, rng: Random) -> None:
    ground = rng.uniform(0.66, 0.72)
    _sky(b, rng, [((214, 150, 196), (255, 214, 170)), ((150, 170, 232), (250, 224, 236))], ground)
    _cloud(b, rng.uniform(0.1, 0.9), 0.12, 0.07, (255, 240, 236))
    b.disc(0.5, ground + 0.06, 0.75, (126, 168, 96), 0.14)
    x = rng.uniform(0.3, 0.7)
    stone, dark = (176, 164, 180), (140, 128, 148)
    b.rect(x - 0.26, ground - 0.3, x + 0.26, ground, stone)
    for i in range(6):
        b.rect(x - 0.26 + i * 0.095, ground - 0.35, x - 0.215 + i * 0.095, ground - 0.3, stone)
    for dx in (-0.3, 0.3):
        b.rect(x + dx - 0.08, ground - 0.44, x + dx + 0.08, ground, dark)
        roof = ground - 0.44
        b.poly([(x + dx - 0.1, roof), (x + dx, roof - 0.2), (x + dx + 0.1, roof)], (104, 66, 140))
    b.rect(0, ground, 1, 1, (134, 178, 98))
    path = [(x - 0.06, ground), (x + 0.06, ground), (x + 0.22, 1), (x - 0.22, 1)]
    b.poly(path, (222, 200, 158))


def paint_volcano(b: Brush, rng: Random) -> None:
    ground = rng.uniform(0.68, 0.74)
    _sky(b, rng, [((58, 16, 34), (236, 92, 40)), ((30, 20, 50), (190, 50, 60))], ground)
    x, top = rng.uniform(0.3, 0.7), rng.uniform(0.22, 0.3)
    for dx, dy, r in ((-0.1, -0.08, 0.09), (0.04, -0.14, 0.11), (0.15, -0.06, 0.08)):
        b.disc(x + dx, top + dy, r, (96, 82, 92), r * 0.8)
    b.poly([(x - 0.5, ground), (x - 0.1, top), (x + 0.1, top), (x + 0.5, ground)], (70, 52, 58))
    b.poly([(x - 0.1, top), (x + 0.1, top), (x, top + 0.07)], LAVA)
    for side in (-1, 1):
        bend = x + side * rng.uniform(0.08, 0.16)
        b.line([(x + side * 0.05, top), (bend, top + 0.2), (x + side * 0.26, ground)], LAVA, 0.04)
    b.rect(0, ground, 1, 1, (52, 40, 46))
    for y in (0.06, 0.18):
        crack = [(i / 5, ground + y + rng.uniform(-0.03, 0.03)) for i in range(6)]
        b.line(crack, LAVA, 0.02)


def paint_fair(b: Brush, rng: Random) -> None:
    ground = rng.uniform(0.7, 0.76)
    _sky(b, rng, [((94, 74, 160), (255, 178, 120)), ((60, 60, 130), (220, 130, 170))], ground)
    side = rng.choice((0, 1))
    x, y, r = rng.uniform(0.2, 0.28) + 0.52 * side, rng.uniform(0.32, 0.38), 0.27
    b.poly([(x - 0.16, ground), (x, y), (x + 0.16, ground), (x + 0.1, ground), (x, y + 0.1)], WHEEL)
    b.disc(x, y, r, WHEEL)
    b.disc(x, y, r - 0.025, (176, 122, 158))
    gaily: list[Color] = [(240, 78, 80), (255, 214, 84), (80, 190, 210), (130, 200, 96)]
    turn = rng.uniform(0, 1)
    for i in range(8):
        angle = (i + turn) * math.pi / 4
        tip = (x + r * math.cos(angle), y + r * math.sin(angle))
        b.line([(x, y), tip], WHEEL, 0.014)
        b.disc(*tip, 0.045, gaily[i % 4])
    x = rng.uniform(0.72, 0.84) - 0.56 * side
    for i in range(6):
        left = x - 0.2 + i * 0.4 / 6
        roof = [(left, ground - 0.2), (x, ground - 0.42), (left + 0.4 / 6, ground - 0.2)]
        color: Color = ((236, 70, 76), (255, 244, 230))[i % 2]
        b.poly(roof, color)
        b.rect(left, ground - 0.2, left + 0.4 / 6, ground, color)
    b.rect(0, ground, 1, 1, (204, 164, 116))
    for i in range(11):
        flag = [(i / 10 - 0.05, 0.03), (i / 10 + 0.05, 0.03), (i / 10, 0.11)]
        b.poly(flag, gaily[i % 4])


def paint_bedroom(b: Brush, rng: Random) -> None:
    ground = rng.uniform(0.7, 0.76)
    wall, stripe = rng.choice(
        [((204, 190, 236), (190, 174, 226)), ((186, 216, 236), (170, 203, 228))]
    )
    b.rect(0, 0, 1, 1, wall)
    for i in range(5):
        b.rect(i * 0.22, 0, i * 0.22 + 0.1, ground, stripe)
    side = rng.choice((0, 1))
    x, y = rng.uniform(0.06, 0.12) + 0.56 * side, rng.uniform(0.06, 0.1)
    b.rect(x, y, x + 0.32, y + 0.3, (252, 250, 244))
    b.rect(x + 0.025, y + 0.025, x + 0.295, y + 0.275, (34, 40, 92))
    b.disc(x + 0.2, y + 0.11, 0.06, (255, 240, 170))
    b.disc(x + 0.17, y + 0.1, 0.05, (34, 40, 92))
    b.rect(0, ground, 1, 1, (214, 170, 136))
    x = 0.6 - 0.6 * side
    b.rect(x, ground - 0.3, x + 0.4, ground + 0.12, (140, 88, 62))
    b.rect(x + 0.04, ground - 0.14, x + 0.36, ground - 0.02, (250, 248, 250))
    b.rect(x - 0.02, ground - 0.04, x + 0.42, ground + 0.16, (238, 122, 140))
    b.disc(0.5, 0.93, 0.36, (124, 196, 190), 0.07)


def paint_rain(b: Brush, rng: Random) -> None:
    ground = rng.uniform(0.66, 0.74)
    b.sky((84, 98, 122), (150, 166, 184), ground)
    for x in (rng.uniform(0.05, 0.2), rng.uniform(0.4, 0.6), rng.uniform(0.8, 0.95)):
        _cloud(b, x, rng.uniform(0.06, 0.13), rng.uniform(0.12, 0.15), (62, 72, 94))
    b.rect(0, ground, 1, 1, (98, 108, 116))
    for _ in range(4):
        x, y, r = rng.random(), rng.uniform(ground + 0.06, 0.96), rng.uniform(0.09, 0.15)
        b.disc(x, y, r, (150, 186, 216), r * 0.26)
    x = rng.choice((rng.uniform(0.06, 0.16), rng.uniform(0.84, 0.94)))
    b.rect(x - 0.015, 0.3, x + 0.015, ground + 0.06, (44, 48, 60))
    b.disc(x, 0.28, 0.055, (255, 228, 140))
    for _ in range(26):
        x, y = rng.uniform(0, 1.1), rng.uniform(0.1, 0.95)
        b.line([(x, y), (x - 0.035, y + 0.1)], (206, 226, 246), 0.013)


def paint_ship(b: Brush, rng: Random) -> None:
    sea, deck = rng.uniform(0.4, 0.46), rng.uniform(0.7, 0.76)
    _sky(b, rng, [((120, 206, 240), (232, 246, 250)), ((250, 176, 130), (255, 232, 190))], sea)
    _cloud(b, rng.uniform(0.1, 0.9), rng.uniform(0.07, 0.12), 0.07)
    b.rect(0, sea, 1, deck, (32, 112, 176))
    for i in range(3):
        wave = [(j / 8, sea + 0.05 + 0.08 * i + 0.012 * (-1) ** (i + j)) for j in range(9)]
        b.line(wave, (92, 168, 216), 0.014)
    x = rng.choice((rng.uniform(0.14, 0.24), rng.uniform(0.76, 0.86)))
    b.rect(x - 0.025, 0, x + 0.025, deck, (120, 78, 46))
    sail = rng.choice([(250, 244, 230), (222, 62, 64)])
    b.poly([(x - 0.2, 0.08), (x + 0.2, 0.08), (x + 0.15, 0.4), (x - 0.15, 0.4)], sail)
    b.rect(x - 0.22, 0.05, x + 0.22, 0.085, (120, 78, 46))
    for i in range(7):
        b.rect(i / 6.5 - 0.015, deck - 0.14, i / 6.5 + 0.025, deck, (150, 100, 58))
    b.rect(0, deck - 0.17, 1, deck - 0.13, (150, 100, 58))
    b.rect(0, deck, 1, 1, (196, 146, 92))
    for i in range(4):
        b.rect(0, deck + 0.075 * i, 1, deck + 0.075 * i + 0.012, (158, 110, 66))


def paint_cave(b: Brush, rng: Random) -> None:
    ground = rng.uniform(0.7, 0.76)
    b.rect(0, 0, 1, 1, (54, 42, 50))
    b.disc(0.5, ground, rng.uniform(0.42, 0.5), (92, 72, 78), rng.uniform(0.56, 0.66))
    for i in range(8):
        x, tip = i / 7 + rng.uniform(-0.04, 0.04), rng.uniform(0.12, 0.3)
        b.poly([(x - 0.07, 0), (x + 0.07, 0), (x, tip)], (36, 28, 36))
    b.rect(0, ground, 1, 1, (70, 56, 62))
    glows: list[Color] = [(84, 232, 232), (232, 96, 220)]
    for side in (0, 1):
        foot = rng.uniform(0.06, 0.16) + 0.78 * side
        for dx, height in ((-0.06, 0.14), (0.05, 0.18), (0.0, rng.uniform(0.26, 0.34))):
            x, low = foot + dx, ground + 0.05
            shard = [(x - 0.04, low), (x - 0.03, low - height * 0.7), (x, low - height)]
            glow = glows[side]
            b.poly([*shard, (x + 0.03, low - height * 0.7), (x + 0.04, low)], glow)
            b.line([(x, low - height), (x, low)], (250, 250, 255), 0.012)


def paint_farm(b: Brush, rng: Random) -> None:
    ground = rng.uniform(0.6, 0.66)
    b.sky(
        *rng.choice([((130, 204, 248), (240, 248, 226)), ((252, 190, 130), (255, 236, 190))]),
        ground,
    )
    b.disc(rng.uniform(0.1, 0.9), ground + 0.05, 0.5, (150, 196, 96), 0.14)
    side = rng.choice((0, 1))
    x = rng.uniform(0.2, 0.26) + 0.54 * side
    b.rect(x - 0.2, ground - 0.24, x + 0.2, ground, BARN)
    roof = [(x - 0.23, ground - 0.23), (x - 0.13, ground - 0.4), (x + 0.13, ground - 0.4)]
    b.poly([*roof, (x + 0.23, ground - 0.23)], (112, 48, 48))
    b.rect(x - 0.09, ground - 0.18, x + 0.09, ground, (252, 248, 240))
    b.rect(x - 0.07, ground - 0.16, x + 0.07, ground, BARN)
    for a, c in ((-1, 1), (1, -1)):
        cross = [(x + a * 0.08, ground - 0.17), (x + c * 0.08, ground)]
        b.line(cross, (252, 248, 240), 0.02)
    x += 0.3 - 0.6 * side
    b.rect(x - 0.06, ground - 0.36, x + 0.06, ground, (206, 212, 220))
    b.disc(x, ground - 0.36, 0.06, (170, 178, 190))
    b.rect(0, ground, 1, 1, (232, 190, 84))
    for i in range(5):
        y = ground + 0.06 + 0.075 * i
        b.rect(0, y, 1, y + 0.024, (204, 156, 58))


def paint_clouds(b: Brush, rng: Random) -> None:
    ground = rng.uniform(0.74, 0.8)
    _sky(b, rng, [((70, 150, 246), (196, 228, 255)), ((150, 120, 220), (255, 208, 226))], 1.0)
    x, y = rng.uniform(0.35, 0.65), rng.uniform(0.74, 0.82)
    arcs: list[Color] = [(238, 84, 84), (250, 170, 70), (252, 230, 100), (110, 200, 110)]
    arcs.append((90, 140, 236))
    for i, color in enumerate(arcs):
        b.arc(x, y, 0.56 - 0.034 * i, color, 0.038)
    for i in range(9):
        r = rng.uniform(0.1, 0.15)
        b.disc(i / 8 + rng.uniform(-0.03, 0.03), ground + 0.06, r, (226, 234, 250), r * 0.8)
    for i in range(8):
        r = rng.uniform(0.11, 0.15)
        b.disc(i / 7 + rng.uniform(-0.03, 0.03), ground + 0.15, r, (255, 255, 255), r * 0.8)
    b.rect(0, ground + 0.15, 1, 1, (255, 255, 255))


@dataclass(frozen=True)
class Scene:
    """A place: how it is painted and what prompts call it."""

    paint: Callable[[Brush, Random], None]
    phrase: str


SCENES: dict[str, Scene] = {
    "paris": Scene(paint_paris, "in paris"),
    "moon": Scene(paint_moon, "on the moon"),
    "forest": Scene(paint_forest, "in a forest"),
    "beach": Scene(paint_beach, "on a beach"),
    "desert": Scene(paint_desert, "in a desert"),
    "snow": Scene(paint_snow, "in the snow"),
    "city": Scene(paint_city, "in a city at night"),
    "sea": Scene(paint_sea, "under the sea"),
    "kitchen": Scene(paint_kitchen, "in a kitchen"),
    "library": Scene(paint_library, "in a library"),
    "garden": Scene(paint_garden, "in a garden"),
    "castle": Scene(paint_castle, "at a castle"),
    "volcano": Scene(paint_volcano, "on a volcano"),
    "fair": Scene(paint_fair, "at a fair"),
    "bedroom": Scene(paint_bedroom, "in a bedroom"),
    "rain": Scene(paint_rain, "in the rain"),
    "ship": Scene(paint_ship, "on a ship"),
    "cave": Scene(paint_cave, "in a cave"),
    "farm": Scene(paint_farm, "at a farm"),
    "clouds": Scene(paint_clouds, "in the clouds"),
}
