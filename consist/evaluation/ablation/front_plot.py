"""Many settings in one plot: points with their intervals, and the front that none of them beats.

The plot stands alone, as a file. It must not know how settings were drawn or measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, pairwise, product
from typing import TYPE_CHECKING, Any

from consist.evaluation.intervals import Interval
from consist.evaluation.report.figure import GROUND, INK, SOFT, blank, mark, to_svg
from consist.evaluation.report.text import ends, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE, HIGH = 600, 440  # of the field, in pixels
ROWS = 27  # of the legend, as many as fit beside the field
FRONT = "bold, on the dashed line: no other setting is better in both"
# of Okabe and Ito 2008, told apart by all kinds of sight; the yellow is too faint on white
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")

Box = tuple[float, float, float, float]  # left, bottom, right, top


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting in the plot."""

    name: str
    group: str
    across: Interval
    up: Interval
    best: bool  # on the front


def draw_front(
    points: Sequence[Point], title: str, note: str, titles: tuple[str, str], better: tuple[int, int]
) -> str:
    """Draws settings as numbered points, with a legend, as an SVG file.

    Args:
        points: Numbered from 1; those without a place are left out.
        title: Above the plot.
        note: Below the title, such as what the intervals are.
        titles: Of the axes, across and up.
        better: Of each axis 1 where more is better, -1 where less is.

    Raises:
        ConsistError: matplotlib is not installed.
    """
    known = [not math.isnan(point.across.value + point.up.value) for point in points]
    labels = [str(number) for number, there in enumerate(known, 1) if there]
    shown = list(compress(points, known))
    colors = _colors(shown)
    with blank(WIDE, HIGH) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.margins(0.06)
        axes.axhline(0, color=SOFT, lw=0.8)
        axes.axvline(0, color=SOFT, lw=0.8)
        _draw_front(axes, shown, better)
        for point in shown:
            _draw_bars(axes, point, colors[point.group])
        for label, point in zip(labels, shown, strict=True):
            _draw_dot(axes, label, point, colors[point.group])
        wishes = ["higher is better" if sign > 0 else "lower is better" for sign in better]
        axes.set_xlabel(f"{titles[0]} ({wishes[0]})")
        axes.set_ylabel(f"{titles[1]} ({wishes[1]})")
        head_up(
            axes, title, f"{note}\nbold, on the dashed line: no other setting is better in both"
        )
        _draw_numbers(axes, labels, shown)
        legend = list_beside(axes, math.ceil(len(shown) / ROWS))
        for text, point in zip(legend, shown, strict=True):
            text.set_fontweight("bold" if point.best else "normal")
        return to_svg(figure, title)


def head_up(axes: Axes, title: str, note: str) -> None:
    """A title and what is to know, above a field and flush with it."""
    above: dict[str, Any] = {
        "xycoords": "axes fraction",
        "textcoords": "offset points",
        "xy": (0, 1),
    }
    lines = note.count("\n") + 1
    axes.annotate(note, xytext=(0, 14), va="bottom", color=SOFT, **above)
    title = title.replace("`", "").rstrip(".")
    axes.annotate(title, xytext=(0, 20 + 15 * lines), va="bottom", size=15, weight="bold", **above)


def list_beside(axes: Axes, columns: int = 1) -> Sequence[Any]:
    """Names what is drawn in a field to the right of it, and gives the texts."""
    legend = axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.03, 1),
        ncols=max(1, columns),
        frameon=False,
        borderaxespad=0,
        borderpad=0,
        handlelength=1,
        labelspacing=0.3,
    )
    return legend.get_texts()


def _colors(points: Sequence[Point]) -> dict[str, str]:
    groups = dict.fromkeys(point.group for point in points)
    return {group: COLORS[i % len(COLORS)] for i, group in enumerate(groups)}


def _draw_front(axes: Axes, points: Sequence[Point], better: tuple[int, int]) -> None:
    """The border of what some point of the front beats, as a stair."""
    front = sorted((p.across.value, p.up.value) for p in points if p.best)
    worse = [min if sign > 0 else max for sign in better]
    path = front[:1]
    for a, b in pairwise(front):
        path += [(worse[0](a[0], b[0]), worse[1](a[1], b[1])), b]
    for line in axes.plot(*zip(*path, strict=True), color=INK, lw=1.5, ls=(0, (4, 2)), zorder=3):
        mark(line, "front")


def _draw_bars(axes: Axes, point: Point, color: str) -> None:
    """Its intervals; those of the front stand out."""
    a, b = point.across, point.up
    look: dict[str, Any] = {"color": color, "lw": 1.2, "alpha": 0.8 if point.best else 0.25}
    for xs, ys in (((a.low, a.high), (b.value, b.value)), ((a.value, a.value), (b.low, b.high))):
        if not any(map(math.isnan, (*xs, *ys))):
            mark(axes.plot(xs, ys, **look)[0], "interval")


def _draw_dot(axes: Axes, label: str, point: Point, color: str) -> None:
    words = [f"{number(one.value, '+')} {ends(one)}" for one in (point.across, point.up)]
    (dot,) = axes.plot(
        point.across.value,
        point.up.value,
        "o",
        ms=10 if point.best else 8,
        color=color,
        mec=INK if point.best else GROUND,
        mew=1.2,
        zorder=4,
        label=f"{label:>2}  {point.name}",
    )
    mark(dot, "point", f"{point.name}: {words[0]} across, {words[1]} up")


def _draw_numbers(axes: Axes, labels: Sequence[str], points: Sequence[Point]) -> None:
    """A number beside each point, where it covers no point and no other number if that may be."""
    axes.autoscale_view()
    places = axes.transData.transform([(p.across.value, p.up.value) for p in points]).tolist()
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    for label, (x, y), point in zip(labels, places, points, strict=True):
        wide = 1 + 3.5 * len(label)
        spots = list(_around(x, y))
        boxes = [(x + a - wide, y + b - 5, x + a + wide, y + b + 5) for a, b in spots]
        costs = [sum(_shared(box, other) for other in taken) for box in boxes]
        best = costs.index(min(costs))
        taken.append(boxes[best])
        far = math.hypot(*spots[best]) > 13
        text = axes.annotate(
            label,
            (point.across.value, point.up.value),
            spots[best],
            textcoords="offset points",
            ha="center",
            va="center",
            size=10,
            zorder=5,
            arrowprops={"arrowstyle": "-", "color": SOFT, "lw": 0.7, "shrinkB": 0} if far else None,
        )
        mark(text, "number")


def _around(x: float, y: float) -> Iterator[tuple[float, float]]:
    """Ways from a place to others inside the field, the nearest first."""
    # slanting first: intervals and the front lie level and upright
    for far, turn in product((12, 20, 30, 42), (1, 3, 7, 5, 0, 4, 2, 6)):
        a, b = far * math.cos(turn * math.pi / 4), far * math.sin(turn * math.pi / 4)
        if 8 < x + a < WIDE - 8 and 8 < y + b < HIGH - 8:
            yield a, b


def _shared(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, wide) * max(0.0, high)
