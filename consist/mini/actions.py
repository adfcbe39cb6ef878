"""What a subject of the mini world does: how it moves, and the small things drawn around it.

It must not know subjects, scenes or captions.
"""

from __future__ import annotations

from dataclasses import dataclass

from consist.mini.canvas import OUTLINE, Canvas, Color, Point

SHADOW: Color = (70, 64, 84)
CUSHION: Color = (214, 92, 122)
TASSEL: Color = (250, 214, 110)
INK: Color = (250, 250, 250)


@dataclass(frozen=True)
class Action:
    """How an action changes a drawing.

    Args:
        word: What prompts call it; empty for the one that they leave out.
        lift: Height above the ground, in subject units.
        lean: Degrees that the subject leans by, forward.
        asleep: Whether the eyes are shut.
    """

    word: str
    lift: float = 0.0
    lean: float = 0.0
    asleep: bool = False


ACTIONS: dict[str, Action] = {
    "standing": Action(""),
    "sitting": Action("sitting", lift=13),
    "sleeping": Action("sleeping", asleep=True),
    "jumping": Action("jumping", lift=26, lean=-16),
    "dancing": Action("dancing", lift=3, lean=17),
}


def draw_prop(c: Canvas, action: str) -> None:
    """Draws what belongs to an action: a cushion, a shadow, notes or the letters of sleep.

    Args:
        c: A canvas whose frame stands on the ground, whatever the action lifts.
        action: A key of ``ACTIONS``.
    """
    if action == "sitting":
        c.ellipse(0, 95, 40, 8, CUSHION)
        for side in (-1, 1):
            c.ellipse(side * 41, 95, 4.5, 4.5, TASSEL)
    elif action == "jumping":
        c.ellipse(0, 99, 30, 4, SHADOW, outline=0)
    elif action == "sleeping":
        for x, y, r in ((34, 14, 6.0), (46, -2, 8.0)):
            _letter(c, x, y, r)
    elif action == "dancing":
        for x, y in ((-48, 20), (48, 34)):
            _note(c, x, y)


def _letter(c: Canvas, x: float, y: float, r: float) -> None:
    f = c.frame.facing  # a mirrored Z is no Z
    strokes: list[Point] = [(x - f * r, y - r), (x + f * r, y - r), (x - f * r, y + r)]
    c.line([*strokes, (x + f * r, y + r)], INK, 3.2)


def _note(c: Canvas, x: float, y: float) -> None:
    c.line([(x + 5, y), (x + 5, y - 20), (x + 13, y - 15)], OUTLINE, 3.0, outline=0.8)
    c.ellipse(x, y, 6, 5, OUTLINE, outline=0.8)
