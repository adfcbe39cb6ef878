"""Scores against a number such as steps: small plots side by side, with one legend.

The plot stands alone, as a file. It must not know what is plotted.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consist.evaluation.ablation.front_plot import COLORS, head_up, list_beside
from consist.evaluation.intervals import Interval
from consist.evaluation.report.figure import GROUND, SOFT, blank, mark, to_svg
from consist.evaluation.report.text import ends, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDE, GAP = 300, 76  # of a field, and what lies between two, in pixels
STEP = 0.022  # between what stands at one place, of the width
MARKS = ("o", "D", "s")  # the next one where the colors are used up


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


def draw_curves(panels: Sequence[Panel], across: str, title: str, note: str) -> str:
    """Draws panels, each with the same curves, as an SVG file.

    Args:
        panels: At least one.
        across: Title of all their axes.
        title: Above all.
        note: Below the title, such as what the intervals are.

    Raises:
        ConsistError: matplotlib is not installed.
    """
    # the clearest marks for the curves that go farthest
    shown = sorted((c for panel in panels for c in panel.curves), key=lambda c: -c.points[-1][0])
    names = list(dict.fromkeys(curve.name for curve in shown))
    looks = {
        name: {
            "color": COLORS[i % len(COLORS)],
            "marker": MARKS[i // len(COLORS) % len(MARKS)],
        }
        for i, name in enumerate(names)
    }
    width = len(panels) * (SIDE + GAP) - GAP
    with blank(width, SIDE) as figure:
        for place, panel in enumerate(panels):
            axes = figure.add_axes((place * (SIDE + GAP) / width, 0, SIDE / width, 1))
            axes.margins(0.06)
            axes.set_xlabel(across)
            axes.set_ylabel(panel.title)
            _draw_panel(axes, panel, looks, _spread(panel.curves))
        head_up(figure.axes[0], title, note)
        for name in names:
            axes.plot([], [], ls="", ms=7, label=name, **looks[name])
        list_beside(axes)
        return to_svg(figure, title)


def _draw_panel(
    axes: Axes,
    panel: Panel,
    looks: Mapping[str, Mapping[str, Any]],
    places: Mapping[tuple[str, float], float],
) -> None:
    _draw_levels(axes, panel.levels)
    axes.set_xticks(sorted({x for _, x in places}))
    axes.update_datalim([(x, 0) for x in (0, *places.values())])
    for curve in panel.curves:
        known = [(places[curve.name, x], x, i) for x, i in curve.points if not math.isnan(i.value)]
        color = looks[curve.name]["color"]
        axes.plot([at for at, _, _ in known], [i.value for _, _, i in known], color=color, lw=1)
        for at, x, i in known:
            if not math.isnan(i.low):
                mark(axes.plot([at, at], [i.low, i.high], color=color, alpha=0.5)[0], "interval")
            (dot,) = axes.plot(at, i.value, ms=7, mec=GROUND, zorder=3, **looks[curve.name])
            mark(dot, "point", f"{curve.name}, {x:g}: {number(i.value)} {ends(i)}")


def _draw_levels(axes: Axes, levels: Mapping[str, float]) -> None:
    for name, level in levels.items():
        if not math.isnan(level):
            axes.axhline(level, color=SOFT, lw=0.8)
            # in the middle, where the fewest points stand
            at = {"xy": (0.5, level), "xycoords": axes.get_yaxis_transform()}
            look = {"ha": "center", "va": "bottom", "color": SOFT, "size": 11}
            axes.annotate(name, xytext=(0, 2), textcoords="offset points", **at, **look)


def _spread(curves: Sequence[Curve]) -> dict[tuple[str, float], float]:
    """Where the points of curves are drawn: beside each other where they stand at one place."""
    crowds: dict[float, list[str]] = defaultdict(list)
    for curve in curves:
        for x, _ in curve.points:
            crowds[x].append(curve.name)
    step = STEP * (max(crowds, default=0) or 1)
    return {
        (name, x): x + (i - (len(names) - 1) / 2) * step
        for x, names in crowds.items()
        for i, name in enumerate(names)
    }
