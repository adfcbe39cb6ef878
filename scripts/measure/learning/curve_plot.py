"""Scores against a number such as steps: small plots side by side, with one legend.

The plot stands alone, as a file. It must not know what is plotted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from consist.evaluation.ablation.front_plot import COLORS, STYLE
from consist.evaluation.intervals import Interval
from consist.evaluation.report.html import Html, tag
from consist.evaluation.report.plots import Scale, axes, label_at, line
from consist.evaluation.report.text import ends, number

WIDE, HIGH, GAP = 300, 300, 76  # of a field, and what lies between two
LEFT, TOP = 64, 56
ROW = 17  # of the legend
FADED = 0.5  # what is drawn again where the colors are used up


@dataclass(frozen=True)
class Curve:
    """One way, at some places."""

    name: str
    points: tuple[tuple[float, Interval], ...]  # by the first number


@dataclass(frozen=True)
class Panel:
    """One plot."""

    title: str
    curves: Sequence[Curve]
    levels: Mapping[str, float]  # lines across, by what they are called


def draw_curves(panels: Sequence[Panel], across: str, title: str, note: str) -> Html:
    """Draws panels, each with the same curves, as an SVG file.

    Args:
        panels: At least one.
        across: Title of all their axes.
        title: Above all.
        note: Below the title, such as what the intervals are.
    """
    # the clearest colors for the curves that go farthest
    shown = sorted((c for panel in panels for c in panel.curves), key=lambda c: -c.points[-1][0])
    names = list(dict.fromkeys(curve.name for curve in shown))
    looks = {
        name: {
            "stroke": COLORS[i % len(COLORS)],
            "fill": COLORS[i % len(COLORS)],
            "opacity": None if i < len(COLORS) else FADED,
        }
        for i, name in enumerate(names)
    }
    parts: list[Html] = []
    for place, panel in enumerate(panels):
        drawn = _draw_panel(panel, across, looks)
        parts.append(tag("g", drawn, transform=f"translate({place * (WIDE + GAP)} 0)"))
    legend = LEFT + len(panels) * (WIDE + GAP) - GAP + 24
    for row, name in enumerate(names):
        parts.append(_dot(legend, TOP + row * ROW, looks[name]))
        parts.append(label_at(name, "start", x=legend + 10, y=TOP + row * ROW + 4))
    width, height = legend + 190, max(TOP + HIGH, TOP + len(names) * ROW) + 56
    heads = [
        tag("rect", width=width, height=height, fill="#fff"),
        label_at(title, "start", x=LEFT, y=22, class_="head"),
        label_at(note, "start", x=LEFT, y=40, class_="soft"),
    ]
    size = {"width": width, "height": height, "viewBox": f"0 0 {width} {height}"}
    return tag(
        "svg",
        tag("style", Html(STYLE)),
        heads,
        parts,
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        aria_label=title,
        **size,
    )


def _draw_panel(
    panel: Panel, across: str, looks: Mapping[str, Mapping[str, str | float | None]]
) -> Iterator[Html]:
    known = [p for curve in panel.curves for p in curve.points if not math.isnan(p[1].value)]
    levels = {name: level for name, level in panel.levels.items() if not math.isnan(level)}
    reached = [e for _, i in known for e in (i.value, i.low, i.high) if not math.isnan(e)]
    x = Scale([0.0, *(place for place, _ in known)], LEFT, LEFT + WIDE)
    y = Scale([*levels.values(), *reached, 0.0], TOP + HIGH, TOP)
    yield from axes(x, y, across, panel.title)
    for name, level in levels.items():
        yield line(LEFT, y(level), LEFT + WIDE, y(level), "zero")
        yield label_at(name, "end", x=LEFT + WIDE, y=f"{y(level) - 4:.1f}", class_="soft")
    for curve in panel.curves:
        points = [(a, i) for a, i in curve.points if not math.isnan(i.value)]
        bars = [line(x(a), y(i.low), x(a), y(i.high), "interval") for a, i in points if _spread(i)]
        links = [
            line(x(a), y(i.value), x(b), y(j.value), "link") for (a, i), (b, j) in pairwise(points)
        ]
        dots = [
            _dot(x(a), y(i.value), {}, f"{curve.name}, {a:g}: {number(i.value)} {ends(i)}")
            for a, i in points
        ]
        yield tag("g", bars, links, dots, **looks[curve.name])


def _spread(interval: Interval) -> bool:
    return not math.isnan(interval.low)


def _dot(x: float, y: float, look: Mapping[str, str | float | None], text: str = "") -> Html:
    title = [tag("title", text)] if text else []
    return tag("circle", title, cx=f"{x:.1f}", cy=f"{y:.1f}", r=3.5, **look)
