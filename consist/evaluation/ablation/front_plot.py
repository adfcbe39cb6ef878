"""Many settings in one plot: points with their intervals, and the front that none of them beats.

The plot stands alone, as a file. It must not know how settings were drawn or measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, pairwise, product

from consist.evaluation.intervals import Interval
from consist.evaluation.report.html import Html, tag
from consist.evaluation.report.plots import Scale, axes, label_at, line
from consist.evaluation.report.text import ends, number

LEFT, RIGHT, TOP, BOTTOM = 64, 664, 56, 496  # of the field
LEGEND, COLUMN, ROW = 700, 250, 17  # where it starts; of one entry
ROWS = 27  # of the legend, as many as fit beside the field
# of Okabe and Ito 2008, told apart by all kinds of sight; the yellow is too faint on white
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1d2126 }
.head { font-size: 15px; font-weight: 600 } .soft { fill: #5b6470 } .best { font-weight: 700 }
.grid { stroke: #e2e0db } .zero { stroke: #9aa3ad } .front { fill: none; stroke: #1d2126;
  stroke-width: 1.5; stroke-dasharray: 5 3 } .interval { stroke-opacity: .35; stroke-width: 1.2 }
.leader { stroke: #9aa3ad; stroke-width: .7 } .number { font-size: 10px }
"""

Box = tuple[float, float, float, float]  # left, top, right, bottom


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
) -> Html:
    """Draws settings as numbered points, with a legend, as an SVG file.

    Args:
        points: Numbered from 1; those without a place are left out.
        title: Above the plot.
        note: Below the title, such as what the intervals are.
        titles: Of the axes, across and up.
        better: Of each axis 1 where more is better, -1 where less is.
    """
    known = [not math.isnan(point.across.value + point.up.value) for point in points]
    labels = [str(number) for number, there in enumerate(known, 1) if there]
    shown = list(compress(points, known))
    x = Scale([0.0, *_ends(point.across for point in shown)], LEFT, RIGHT)
    y = Scale([0.0, *_ends(point.up for point in shown)], BOTTOM, TOP)
    colors = _colors(shown)
    parts = [*axes(x, y, *titles), line(x(0), TOP, x(0), BOTTOM, "zero")]
    parts += [line(LEFT, y(0), RIGHT, y(0), "zero"), _line_of_front(shown, x, y, better)]
    for point in shown:
        parts += _bars(point, x, y, colors[point.group])
    places = [(x(point.across.value), y(point.up.value)) for point in shown]
    parts += _dots(shown, places, colors)
    parts += _numbers(labels, places)
    parts += _legend(labels, shown, colors)
    columns = math.ceil(len(shown) / ROWS)
    width, height = LEGEND + max(1, columns) * COLUMN, BOTTOM + 56
    heads = [
        tag("rect", width=width, height=height, fill="#fff"),
        label_at(title, "start", x=LEFT, y=22, class_="head"),
        label_at(note, "start", x=LEFT, y=40, class_="soft"),
    ]
    return tag(
        "svg",
        tag("style", Html(STYLE)),
        [*heads, *parts],
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=title,
    )


def _ends(intervals: Iterable[Interval]) -> list[float]:
    found = [end for one in intervals for end in (one.low, one.value, one.high)]
    return [end for end in found if not math.isnan(end)]


def _colors(points: Sequence[Point]) -> dict[str, str]:
    groups = dict.fromkeys(point.group for point in points)
    return {group: COLORS[i % len(COLORS)] for i, group in enumerate(groups)}


def _line_of_front(points: Sequence[Point], x: Scale, y: Scale, better: tuple[int, int]) -> Html:
    """The border of what some point of the front beats, as a stair."""
    front = sorted((p.across.value, p.up.value) for p in points if p.best)
    worse = [min if sign > 0 else max for sign in better]
    path = front[:1]
    for a, b in pairwise(front):
        path += [(worse[0](a[0], b[0]), worse[1](a[1], b[1])), b]
    places = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in path)
    return tag("polyline", points=places, class_="front")


def _bars(point: Point, x: Scale, y: Scale, color: str) -> Iterator[Html]:
    a, b = point.across, point.up
    bars = {
        "across": (x(a.low), y(b.value), x(a.high), y(b.value)),
        "up": (x(a.value), y(b.low), x(a.value), y(b.high)),
    }
    for bar in bars.values():
        if not any(map(math.isnan, bar)):
            yield tag("g", line(*bar, "interval"), stroke=color)


def _dots(
    points: Sequence[Point], places: Sequence[tuple[float, float]], colors: Mapping[str, str]
) -> Iterator[Html]:
    for point, (x, y) in zip(points, places, strict=True):
        words = [f"{number(one.value, '+')} {ends(one)}" for one in (point.across, point.up)]
        text = tag("title", f"{point.name}: {words[0]} across, {words[1]} up")
        edge = "#1d2126" if point.best else "#fff"
        look = {"fill": colors[point.group], "stroke": edge, "stroke_width": 1.2}
        yield tag("circle", text, cx=f"{x:.1f}", cy=f"{y:.1f}", r=5 if point.best else 4, **look)


def _numbers(labels: Sequence[str], places: Sequence[tuple[float, float]]) -> Iterator[Html]:
    """A number beside each point, where it covers no point and no other number if that may be."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    for label, (x, y) in zip(labels, places, strict=True):
        wide = 3.2 * len(label)
        spots = [
            (x + far * math.cos(turn * math.pi / 4), y - far * math.sin(turn * math.pi / 4), far)
            # slanting first: intervals and the front lie level and upright
            for far, turn in product((12, 20, 30, 42), (1, 3, 7, 5, 0, 4, 2, 6))
        ]
        boxes = [(a - wide, b - 5, a + wide, b + 5) for a, b, _ in spots]
        costs = [sum(_shared(box, other) for other in taken) for box in boxes]
        best = costs.index(min(costs))
        a, b, far = spots[best]
        taken.append(boxes[best])
        if far > 12:
            yield line(x, y, a, b, "leader")
        yield label_at(label, "middle", x=f"{a:.1f}", y=f"{b + 3.5:.1f}", class_="number")


def _shared(a: Box, b: Box) -> float:
    """The area that two boxes share, and what lies outside the field."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    outside = a[0] < LEFT or a[2] > RIGHT or a[1] < TOP or a[3] > BOTTOM
    return max(0.0, wide) * max(0.0, high) + outside


def _legend(
    labels: Sequence[str], points: Sequence[Point], colors: Mapping[str, str]
) -> Iterator[Html]:
    for index, (label, point) in enumerate(zip(labels, points, strict=True)):
        left, top = LEGEND + index // ROWS * COLUMN, TOP + index % ROWS * ROW
        yield tag("circle", cx=left, cy=top, r=4, fill=colors[point.group])
        look = {"class_": "best" if point.best else None}
        yield label_at(label, "end", x=left + 26, y=top + 4, **look)
        yield label_at(point.name, "start", x=left + 32, y=top + 4, **look)
