"""Plots as SVG: an interval, a field of points, a histogram."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from consist.evaluation.intervals import Interval
from consist.evaluation.report.html import Html, tag
from consist.evaluation.report.runs import Group, Run
from consist.evaluation.report.text import count, ends, number
from consist.evaluation.scores import SCORES, Score
from consist.runs.folder import ISOLATED, SHARED

# what is plotted across and up, where both were measured; the first two that are there
PLOTS = (
    ("background", "identity"),
    ("other_scene", "identity"),
    ("clip_i_background", "clip_i_foreground"),
    ("dino_background", "dino_foreground"),
    ("dreamsim_background", "dreamsim_foreground"),
    ("clip_t", "clip_i"),
)
LEFT, RIGHT, TOP, BOTTOM = 44, 308, 10, 220  # of the field inside a plot of 316 x 262


def draw_plots(groups: Sequence[Group], ranking: str | None) -> list[Html]:
    """Two fields of points and a histogram for each group, where there is enough to plot."""
    figures: list[Html] = []
    for group in groups:
        label = f"{group.label}: " if len(groups) > 1 else ""
        measured = [pair for pair in PLOTS if all(name in group.summary for name in pair)]
        for across, up in measured[:2]:
            figures += _scatter(group.runs, across, up, label)
        figures += _histogram(group.runs, ranking, label) if ranking else []
    return [tag("div", figures, class_="plots")] if figures else []


def interval_plot(difference: Interval, reach: float, word: str) -> Html:
    """A difference and its interval on a scale from ``-reach`` to ``reach``."""
    if math.isnan(difference.value):
        return Html("")

    def at(value: float) -> float:
        return 120 + 112 * max(-1.0, min(1.0, value / reach))

    parts = [line(8, 12, 232, 12, "grid"), line(120, 2, 120, 22, "zero")]
    if not math.isnan(difference.low):
        parts.append(line(at(difference.low), 12, at(difference.high), 12, "interval"))
    parts.append(tag("circle", cx=f"{at(difference.value):.1f}", cy=12, r=4, class_="point"))
    label = f"difference {number(difference.value, '+')}, {ends(difference)}"
    return _svg(240, 24, label, parts, class_=word or "plain")


def reach_of(differences: Iterable[Interval]) -> float:
    """A round number that no difference exceeds; 0 where there is none."""
    known = [abs(e) for d in differences for e in (d.value, d.low, d.high) if not math.isnan(e)]
    return _nice(max(*known, 1e-3)) if known else 0.0


def _scatter(runs: Sequence[Run], across: str, up: str, label: str) -> list[Html]:
    """Sets by two scores, with sharing and without, each pair joined by a line."""
    points = [
        (run, row, run.value(across, row), run.value(up, row))
        for run in runs
        for row in (ISOLATED, SHARED)
    ]
    points = [(run, row, a, b) for run, row, a, b in points if not math.isnan(a + b)]
    if len(points) < 2:
        return []
    x = Scale([a for _, _, a, _ in points], LEFT, RIGHT)
    y = Scale([b for _, _, _, b in points], BOTTOM, TOP)
    parts = list(axes(x, y, SCORES[across].title, SCORES[up].title))
    for (run, _, a, b), (other, _, c, d) in pairwise(points):
        parts += [line(x(a), y(b), x(c), y(d), "link")] if run is other else []
    for run, row, a, b in points:
        parts.append(_mark(x(a), y(b), row, f"{run.name}: {number(a)}, {number(b)}"))
    title = f"{label}{SCORES[up].title} against {SCORES[across].title}"
    wishes = f"{_wish(SCORES[up])} {_wish(SCORES[across])}"
    with_ = tag("span", "● with", style="color:var(--with)")
    without = tag("span", "◇ without", style="color:var(--without)")
    note = [". ", with_, " and ", without, f" sharing; lines join a set. {wishes}"]
    return [_figure(title, parts, note)]


def _mark(x: float, y: float, row: str, text: str) -> Html:
    if row == SHARED:
        return tag("circle", tag("title", text), cx=f"{x:.1f}", cy=f"{y:.1f}", r=4.5, class_="with")
    corners = f"{x:.1f},{y - 5:.1f} {x + 5:.1f},{y:.1f} {x:.1f},{y + 5:.1f} {x - 5:.1f},{y:.1f}"
    return tag("polygon", tag("title", text), points=corners, class_="without")


def _histogram(runs: Sequence[Run], name: str, label: str) -> list[Html]:
    """How many sets changed by how much."""
    score = SCORES[name]
    gaps = [gap for run in runs if not math.isnan(gap := run.difference(name))]
    if len(gaps) < 2:
        return []
    step = _nice(max(max(gaps) - min(gaps), max(map(abs, gaps)) / 4, 1e-6) / 12)
    bins = Counter(math.floor(gap / step + 1e-9) for gap in gaps)
    x = Scale([min(0, *bins) * step, (max(-1, *bins) + 1) * step], LEFT, RIGHT, margin=0)
    y = Scale([0, max(bins.values())], BOTTOM, TOP, margin=0)
    title = f"difference in {score.title}"
    parts = list(axes(x, y, title, "sets", whole=True))
    for place, sets in bins.items():
        low, high = place * step, (place + 1) * step
        kind = "better" if (place >= 0) == (score.better > 0) else "worse"
        words = tag("title", f"{count(sets, 'set')} from {low:+.3g} to {high:+.3g}")
        left, wide = x(low) + 0.75, max(1.0, x(high) - x(low) - 1.5)
        sides = {"x": left, "y": y(sets), "width": wide, "height": BOTTOM - y(sets)}
        parts.append(tag("rect", words, **_places(sides), class_=f"bin {kind}"))
    parts.append(line(x(0), TOP, x(0), BOTTOM, "zero"))
    note = [f". Sets by how much sharing changed it. {_wish(score)}"]
    return [_figure(f"{label}{title}", parts, note)]


class Scale:
    """Numbers to places, linearly, with round ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float, margin: float = 0.06):
        low, high = min(values), max(values)
        span = (high - low) or max(abs(high), 1.0) * 0.1
        self.low, self.high = low - margin * span, max(high, low + span) + margin * span
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        """The place of a number."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Some five round numbers that lie on it."""
        step = _nice((self.high - self.low) / 5)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [place * step for place in range(first, last + 1)]


def axes(x: Scale, y: Scale, across: str, up: str, whole: bool = False) -> Iterator[Html]:
    """Lines and numbers; ``whole`` leaves out what is between whole numbers upwards."""
    for value in x.ticks():
        yield line(x(value), y.end, x(value), y.start, "grid")
        yield label_at(f"{value:.3g}", "middle", x=f"{x(value):.1f}", y=y.start + 16)
    for value in y.ticks():
        if not whole or value == int(value):
            yield line(x.start, y(value), x.end, y(value), "grid")
            yield label_at(f"{value:.3g}", "end", x=x.start - 8, y=f"{y(value) + 4:.1f}")
    yield label_at(across, "middle", x=(x.start + x.end) / 2, y=y.start + 36, class_="axis")
    turn = f"translate(11 {(y.start + y.end) / 2}) rotate(-90)"
    yield label_at(up, "middle", transform=turn, class_="axis")


def label_at(text: str, anchor: str, **more: Any) -> Html:
    """Text that starts, ends or has its "middle" at a place."""
    return tag("text", text, text_anchor=anchor, **more)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    """A line of a class."""
    return tag("line", **_places({"x1": x1, "y1": y1, "x2": x2, "y2": y2}), class_=kind)


def _places(values: Mapping[str, float]) -> dict[str, str]:
    return {key: f"{value:.1f}" for key, value in values.items()}


def _svg(width: int, height: int, label: str, parts: Iterable[Html], **more: Any) -> Html:
    return tag("svg", parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=label, **more)


def _figure(title: str, parts: Sequence[Html], note: Iterable[str]) -> Html:
    caption = tag("figcaption", tag("strong", title), note)
    return tag("figure", _svg(316, 262, title, parts), caption)


def _nice(step: float) -> float:
    """The next larger of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _wish(score: Score) -> str:
    if not score.better:
        return f"{score.title.capitalize()} is neither good nor bad."
    return f"{'Higher' if score.better > 0 else 'Lower'} {score.title} is better."
