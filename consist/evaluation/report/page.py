"""The whole page: what comes first and last, and all sections."""

from __future__ import annotations

import html
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from string import Template
from typing import Any

from consist.evaluation.report.figure import MISSING, installed
from consist.evaluation.report.html import Html, tag
from consist.evaluation.report.plots import draw_plots
from consist.evaluation.report.runs import Group, Run, all_runs, gather_stories, ranking, title
from consist.evaluation.report.sets import draw_sets
from consist.evaluation.report.tables import draw_comparison, draw_scores
from consist.evaluation.report.text import MIN_SETS, count, gather, listed, number, plain, verdict
from consist.evaluation.scores import SCORES
from consist.runs.config import SELDOM
from consist.runs.folder import ISOLATED


def draw_page(groups: Sequence[Group]) -> str:
    """The whole page."""
    stories, ranked, heading = gather_stories(groups), ranking(groups), title(groups)
    sections = {
        "compared": ("Methods compared", draw_comparison(groups)),
        "scores": ("Scores", draw_scores(groups)),
        "plots": ("Plots", draw_plots(groups, ranked) if installed() else []),
        "sets": ("Sets", draw_sets(groups, stories, ranked)),
        "numbers": ("What the numbers are", _choices(groups)),
    }
    sections = {key: section for key, section in sections.items() if section[1]}
    links = [tag("a", text, href=f"#{key}") for key, (text, _) in sections.items()]
    bar = {"class_": "bar", "aria_label": "Parts of this page", "hidden": len(links) < 2}
    body = [
        tag("header", _headline(groups, heading), _facts(groups, len(stories))),
        tag("nav", tag("div", links), **bar),
        tag("main", (_section(key, *section) for key, section in sections.items())),
        tag("footer", f"Written by consist from {count(all_runs(groups), 'run folder')}."),
    ]
    template = Template(
        files("consist.evaluation.report").joinpath("page.html").read_text(encoding="utf-8")
    )
    return template.substitute(title=html.escape(heading), body="\n".join(body))


def plots_missing(groups: Sequence[Group]) -> bool:
    """Whether there are numbers to plot, and nothing to plot them with."""
    return not installed() and any(group.summary for group in groups)


def _section(key: str, heading: str, content: Sequence[Html]) -> Html:
    return tag("section", tag("h2", heading, id=f"{key}-title"), content, id=key)


def _headline(groups: Sequence[Group], heading: str) -> Iterator[Html]:
    runs = all_runs(groups)
    yield tag("p", "consist report", class_="eyebrow")
    yield tag("h1", heading)
    for group in groups:
        yield from _lede(group, len(groups) > 1)
    if bare := [run for run in runs if run.scores is None]:
        every = len(bare) == len(runs)
        some = "No run has" if every else f"{len(bare)} of {len(runs)} runs have no"
        command = f"consist evaluate {bare[0].folder.path}{' …' if len(bare) > 1 else ''}"
        words = f"{some} scores, so pictures are shown alone. "
        yield tag("p", words, tag("code", command), " would add them.", class_="note")
    if plots_missing(groups):
        yield tag("p", f"{MISSING}.", class_="note")
    if unfinished := sum(not run.record.get("finished", True) for run in runs):
        yield tag("p", f"{count(unfinished, 'run')} not finished.", class_="note")


def _lede(group: Group, named: bool) -> Iterator[Html]:
    """What sharing made better and worse, in words."""
    words: dict[str, list[str]] = defaultdict(list)
    for name, summary in group.summary.items():
        if SCORES[name].better and not math.isnan(summary.difference.value):
            change = f"{SCORES[name].title} ({number(summary.difference.value, '+')})"
            words[verdict(SCORES[name], summary.difference)].append(change)
    if not words:
        return
    parts: list[Html | str] = [f"{group.label}: "] if named else []
    for word in ("better", "worse"):
        if words[word]:
            shown = tag("span", f"{word.capitalize()} than without sharing:", class_=word)
            parts += [shown, f" {listed(words[word])}. "]
    most = max(summary.difference.sets for summary in group.summary.values())
    if most < MIN_SETS:
        few = f"Of {count(most, 'set')} nothing is called better or worse; that takes {MIN_SETS}."
        parts.append(few)
    elif words[""]:
        parts.append(f"No difference can be told: {listed(words[''])}.")
    yield tag("p", parts, class_="lede")


def _facts(groups: Sequence[Group], sets: int) -> Html:
    runs = all_runs(groups)
    versions = gather(pair for run in runs for pair in run.record.get("versions", {}).items())
    wide = {
        "method": "; ".join(_method(group.runs[0]) for group in groups),
        "versions": ", ".join(f"{name} {text}" for name, text in versions.items()),
    }
    facts = (
        tag("div", tag("dt", name), tag("dd", text), class_="wide" if name in wide else None)
        for name, text in (*_work(runs, sets), *_settings(runs), *wide.items())
        if text
    )
    return tag("dl", facts, class_="facts")


def _work(runs: Sequence[Run], sets: int) -> Iterator[tuple[str, str]]:
    """What was drawn, and what it took."""
    pictures = sum(len(run.prompts) for run in runs)
    isolated = sum(len(run.prompts) for run in runs if ISOLATED in run.rows)
    times = [run.folder.record_path.stat().st_mtime for run in runs]
    first, last = (f"{datetime.fromtimestamp(f(times), UTC):%Y-%m-%d}" for f in (min, max))
    yield "sets", str(sets)
    yield "pictures", f"{pictures} shared, {isolated} without"
    yield "drawn", first if first == last else f"{first} to {last}"
    if seconds := [run.record["seconds"] for run in runs if "seconds" in run.record]:
        each = sum(seconds) / max(1, pictures + isolated)
        yield "time", f"{_duration(sum(seconds))} ({each:.1f} s a picture)"
    if memory := [run.record["peak_memory_gib"] for run in runs if "peak_memory_gib" in run.record]:
        yield "peak memory", f"{max(memory):.2f} GiB"


def _settings(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    """What runs agree on, or all that they say."""
    settings = [run.settings for run in runs]
    for name in ("model", "steps", "guidance", "negative", "loras", "embeddings"):
        yield name, _agreed(one[name] for one in settings)
    for name, plain_value in SELDOM.items():
        asked = [one[name] for one in settings]
        if set(asked) != {plain_value}:
            yield name.replace("_", " "), _agreed(asked)
    schedulers = [one["scheduler"] or "" for one in settings]
    yield "scheduler", _agreed(name.removesuffix("Scheduler") for name in schedulers)
    sizes = [(one["width"], one["height"]) for one in settings]
    yield "size", _agreed(f"{width} x {height} px" for width, height in sizes if width and height)
    for name in ("device", "dtype", "backend"):
        yield name, _agreed(run.resolved.get(name) for run in runs)


def _agreed(values: Iterable[Any]) -> str:
    return listed(dict.fromkeys(plain(value) for value in values if value not in (None, "", [])))


def _method(run: Run) -> str:
    details = ", ".join(f"{key} {plain(value)}" for key, value in run.options.items())
    return f"{run.method}: {details}" if details else f"{run.method}, all settings at their default"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _choices(groups: Sequence[Group]) -> list[Html]:
    """All that the numbers depend on; nothing where there are none."""
    if not any(group.summary for group in groups):
        return []
    scored = [run.scores for run in all_runs(groups) if run.scores]
    said = gather(leaf for scores in scored for leaf in _leaves(scores.choices))
    intro = (
        "Every number is a mean over sets. A difference is taken within each set, between its "
        "pictures with sharing and those drawn without it from the same noise. The interval is "
        "where the mean difference lies with 95 % confidence (percentile bootstrap over sets); "
        "where it leaves out zero, and there are at least "
        f"{MIN_SETS} sets, the row is called better or worse."
    )
    terms = (part for name, text in said.items() for part in (tag("dt", name), tag("dd", text)))
    return [tag("p", intro), tag("dl", terms, class_="choices")]


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested choices as lines."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}: {key}" if name else str(key))
    else:
        yield name.replace("_", " "), plain(value)
