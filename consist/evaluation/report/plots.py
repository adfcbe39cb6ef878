"""Plots of the page: an interval, a field of points, a histogram. All need matplotlib."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from consist.evaluation.intervals import Interval
from consist.evaluation.report.figure import GROUND, INK, LINE, SOFT, blank, mark, to_svg
from consist.evaluation.report.html import Html, tag
from consist.evaluation.report.runs import Group, Run
from consist.evaluation.report.text import count, ends, number
from consist.evaluation.scores import SCORES, Score
from consist.runs.folder import ISOLATED, SHARED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# what is plotted across and up, where both were measured; the first two that are there
PLOTS = (
    ("background", "identity"),
    ("other_scene", "identity"),
    ("clip_i_background", "clip_i_foreground"),
    ("dino_background", "dino_foreground"),
    ("dreamsim_background", "dreamsim_foreground"),
    ("clip_t", "clip_i"),
)
WIDE, HIGH = 316, 262  # of a plot, in pixels
BARS = 12  # of a histogram, about
# the page's colors by day; the page puts its own in their place, which know the night
WITH, WITHOUT, BETTER, WORSE = "#1f5fbf", "#b4530a", "#0b6b57", "#b3261e"
COLORS = {
    INK: "ink",
    SOFT: "soft",
    LINE: "line",
    GROUND: "card",
    WITH: "with",
    WITHOUT: "without",
    BETTER: "better",
    WORSE: "worse",
}
LOOKS: dict[str, dict[str, Any]] = {
    SHARED: {"marker": "o", "s": 64, "color": WITH, "alpha": 0.8, "lw": 0},
    ISOLATED: {"marker": "D", "s": 40, "color": GROUND, "ec": WITHOUT, "lw": 1.6},
}


def draw_plots(groups: Sequence[Group], ranking: str | None) -> list[Html]:
    """Two fields of points and a histogram for each group, where there is enough to plot.

    Raises:
        ConsistError: matplotlib is not installed.
    """
    figures: list[Html] = []
    for group in groups:
        label = f"{group.label}: " if len(groups) > 1 else ""
        measured = [pair for pair in PLOTS if all(name in group.summary for name in pair)]
        for across, up in measured[:2]:
            figures += _scatter(group.runs, across, up, label)
        figures += _histogram(group.runs, ranking, label) if ranking else []
    return [tag("div", figures, class_="plots")] if figures else []


def interval_plot(difference: Interval, reach: float, word: str) -> Html:
    """A difference and its interval on a scale from ``-reach`` to ``reach``.

    Raises:
        ConsistError: matplotlib is not installed.
    """
    if math.isnan(difference.value):
        return Html("")
    color = {"better": BETTER, "worse": WORSE}.get(word, SOFT)
    with blank(240, 24) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(-1.07 * reach, 1.07 * reach), ylim=(-12, 12))
        axes.plot((-reach, reach), (0, 0), color=LINE, lw=1)
        axes.plot((0, 0), (-10, 10), color=SOFT, lw=1)
        if not math.isnan(difference.low):
            ways: dict[str, Any] = {
                "color": color,
                "lw": 2.5,
                "alpha": 0.45,
                "solid_capstyle": "round",
            }
            axes.plot((difference.low, difference.high), (0, 0), **ways)
        axes.scatter(difference.value, 0, s=64, color=color, lw=0, zorder=3)
        return _inline(figure, f"difference {number(difference.value, '+')}, {ends(difference)}")


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
    title = f"{label}{SCORES[up].title} against {SCORES[across].title}"
    with blank(WIDE, HIGH) as figure:
        axes = _axes(figure, SCORES[across].title, SCORES[up].title)
        for _, pair in groupby(points, key=lambda point: id(point[0])):
            _, _, xs, ys = zip(*pair, strict=True)
            axes.plot(xs, ys, color=SOFT, lw=0.75, alpha=0.35)
        for run, row, a, b in points:
            dot = axes.scatter(a, b, zorder=3, **LOOKS[row])
            mark(dot, "point", f"{run.name}: {number(a)}, {number(b)}")
        _tick_alone(axes.xaxis, [a for _, _, a, _ in points])
        _tick_alone(axes.yaxis, [b for _, _, _, b in points])
        plot = _inline(figure, title)
    wishes = f"{_wish(SCORES[up])} {_wish(SCORES[across])}"
    with_ = tag("span", "● with", style="color:var(--with)")
    without = tag("span", "◇ without", style="color:var(--without)")
    note = [". ", with_, " and ", without, f" sharing; lines join a set. {wishes}"]
    return [_figure(title, plot, note)]


def _tick_alone(axis: Axis, values: Collection[float]) -> None:
    """Where all values are the same, no scale is true but that one tick."""
    if len(set(values)) == 1:
        axis.set_ticks(list(set(values)))


def _histogram(runs: Sequence[Run], name: str, label: str) -> list[Html]:
    """How many sets changed by how much; a bar lies on one side of 0."""
    score = SCORES[name]
    gaps = [gap for run in runs if not math.isnan(gap := run.difference(name))]
    if len(gaps) < 2:
        return []
    step = _nice(max(max(gaps) - min(gaps), max(map(abs, gaps)) / 4, 1e-6) / BARS)
    places = [math.floor(gap / step + 1e-9) for gap in gaps]
    title = f"difference in {score.title}"
    with blank(WIDE, HIGH) as figure:
        axes = _axes(figure, title, "sets")
        axes.locator_params("y", integer=True)
        for place in sorted(set(places)):
            low, sets = place * step, places.count(place)
            color = BETTER if (place >= 0) == (score.better > 0) else WORSE
            ways: dict[str, Any] = {"align": "edge", "color": color, "alpha": 0.8, "ec": GROUND}
            (bar,) = axes.bar(low, sets, step, **ways)
            mark(bar, "bar", f"{count(sets, 'set')} from {low:+.3g} to {low + step:+.3g}")
        axes.axvline(0, color=SOFT, lw=1)
        plot = _inline(figure, title)
    note = [f". Sets by how much sharing changed it. {_wish(score)}"]
    return [_figure(f"{label}{title}", plot, note)]


def _axes(figure: Figure, across: str, up: str) -> Axes:
    """A field that fills the figure, with few round numbers at its edges."""
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    axes.margins(0.08)
    axes.locator_params(nbins=5)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    return axes


def _inline(figure: Figure, label: str) -> Html:
    """The figure as a part of the page: in its colors and letters, and on its ground."""
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_visible(False)
    text = to_svg(figure, label, tight=False)
    # what is said for the whole file would be said for the whole page
    text = re.sub(r' (width|height|version|xmlns|xmlns:xlink)="[^"]*"', "", text, count=5)
    # an id belongs to the whole page too, so that shapes stand where they are used
    shapes = dict(re.findall(r'<path id="(\w+)" d="([^"]*)"', text))
    text = re.sub(r"(?s)<defs>.*?</defs>| font-family: [^;\"]*;?", "", text)
    text = re.sub(
        r'<use xlink:href="#(\w+)" x="([^"]*)" y="([^"]*)"',
        lambda use: f'<path d="{shapes[use[1]]}" transform="translate({use[2]} {use[3]})"',
        text,
    )
    for color, name in COLORS.items():
        text = re.sub(rf"(fill|stroke): {color}", rf"\1: var(--{name})", text)
    return Html(text)


def _figure(title: str, plot: Html, note: Iterable[str]) -> Html:
    return tag("figure", plot, tag("figcaption", tag("strong", title), note))


def _nice(step: float) -> float:
    """The next larger of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _wish(score: Score) -> str:
    if not score.better:
        return f"{score.title.capitalize()} is neither good nor bad."
    return f"{'Higher' if score.better > 0 else 'Lower'} {score.title} is better."
