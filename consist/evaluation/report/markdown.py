"""The same numbers as Markdown, for a README or a pull request."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from consist.evaluation.report.runs import (
    Group,
    all_runs,
    common_isolated,
    gather_stories,
    present,
    title,
)
from consist.evaluation.report.text import DASH, count, ends, number, verdict
from consist.evaluation.scores import SCORES, Score, Summary


def draw_markdown(groups: Sequence[Group]) -> str:
    """The whole Markdown file."""
    runs = all_runs(groups)
    sets = count(gather_stories(groups), "set")
    pictures = count(sum(len(run.prompts) for run in runs), "picture")
    lines = [f"# {title(groups)}", "", f"{sets}, {pictures}.", ""]
    summaries = {group.label: group.summary for group in groups if group.summary}
    if summaries:
        lines.append(markdown_table(summaries))
    if bare := sum(run.scores is None for run in runs):
        lines.append(f"{count(bare, 'run')} without scores; `consist evaluate` adds them.\n")
    return "\n".join(lines)


def markdown_table(summaries: Mapping[str, Mapping[str, Summary]]) -> str:
    """Writes scores as a Markdown table, a row per score and two columns per method.

    Args:
        summaries: By the label of the method, what ``summarize`` gave.
    """
    common = common_isolated(summaries)
    head = ["score", "better", *(["without sharing"] if common else [])]
    for label in summaries:
        head += [label, "difference (95 %)" if common else f"{label}: difference (95 %)"]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for name in present(summaries.values()):
        score = SCORES[name]
        line = [score.title, {1: "higher", -1: "lower", 0: "neither"}[score.better]]
        line += [number(common[name].value)] if common else []
        for summary in summaries.values():
            line += _cells(score, summary.get(name))
        lines.append(line)
    return "".join(f"| {' | '.join(map(_escape, line))} |\n" for line in lines)


def _cells(score: Score, summary: Summary | None) -> list[str]:
    if summary is None:
        return [DASH, DASH]
    value, difference = number(summary.value.value), summary.difference
    if math.isnan(difference.value):
        return [value, DASH]
    words = number(difference.value, "+"), ends(difference), verdict(score, difference)
    return [value, " ".join(filter(None, words))]


def _escape(text: str) -> str:
    for sign in "\\|<>*_`[]":
        text = text.replace(sign, f"\\{sign}")
    return text
