"""The scores of all sets together: methods side by side, and each method by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

from consist.evaluation.report.figure import installed
from consist.evaluation.report.html import Html, cell, row_head, scroll, small_table, table, tag
from consist.evaluation.report.plots import interval_plot, reach_of
from consist.evaluation.report.runs import Group, common_isolated, present
from consist.evaluation.report.text import DASH, MINUS, count, direction, ends, number, verdict
from consist.evaluation.scores import QUALITIES, SCORES, Score, Summary


def draw_comparison(groups: Sequence[Group]) -> list[Html]:
    """Methods across, scores down; nothing of a single method."""
    if len(groups) < 2:
        return []
    drawn = [{run.key for run in group.runs} for group in groups]
    note = "All methods drew the same sets from the same noise."
    if any(one != drawn[0] for one in drawn):
        note = "The methods did not draw the same sets; their means are not comparable as such."
    summaries = {group.label: group.summary for group in groups}
    common = common_isolated(summaries)
    rows = []
    for name in present(summaries.values()):
        score = SCORES[name]
        cells = [row_head(score.title, tag("small", direction(score)))]
        cells += [cell(number(common[name].value))] if common else []
        cells += [_compared(score, summary.get(name)) for summary in summaries.values()]
        rows.append(tag("tr", cells))
    if not rows:
        return [tag("p", note)]
    heads = ["score", *(["without sharing"] if common else []), *summaries]
    caption = "Mean over sets; below it the difference to the same sets without sharing, 95 %."
    shown = table(heads, range(1, len(heads)), rows, caption)
    return [tag("p", note), scroll(shown, "Methods compared")]


def _compared(score: Score, summary: Summary | None) -> Html:
    if summary is None:
        return cell(DASH)
    parts = [number(summary.value.value)]
    difference = summary.difference
    if not math.isnan(difference.value):
        parts.append(tag("small", f"{number(difference.value, '+')} {ends(difference)}"))
    if word := verdict(score, difference):
        parts.append(tag("small", word, class_=word))
    return cell(*parts)


def draw_scores(groups: Sequence[Group]) -> list[Html]:
    """Every score of each group, with an interval plot."""
    return [_group_scores(group, len(groups) > 1) for group in groups if group.summary]


def _group_scores(group: Group, named: bool) -> Html:
    reach = reach_of(summary.difference for summary in group.summary.values())
    more = {"identity": _chances(group)}
    rows = [_score_row(SCORES[k], one, reach, more.get(k, "")) for k, one in group.summary.items()]
    quality = group.evaluation.quality if group.evaluation else {}
    # on another scale, so it is not plotted beside the others
    rows += [_score_row(QUALITIES[k], one, reach, plotted=False) for k, one in quality.items()]
    compared = ["without", "difference, 95 %", "better or worse"] if reach else []
    shown = table(
        ["score", "with", *compared], range(1, 4), rows, _notes(group, reach), class_="stack"
    )
    return tag("div", [tag("h3", group.label)] if named else [], shown, _by_tag(group))


def _notes(group: Group, reach: float) -> str:
    sets = max(summary.value.sets for summary in group.summary.values())
    notes = f"Means over {count(sets, 'set')}, differences paired over sets, bootstrap intervals"
    scale = f"; the plots share one scale from {MINUS}{reach:g} to +{reach:g}"
    notes += f"{scale if reach and installed() else ''}."
    few = " Below some 20 sets the intervals are a little too narrow."
    return notes + (few if sets < 20 else "")


def _score_row(
    score: Score, summary: Summary, reach: float, more: str = "", plotted: bool = True
) -> Html:
    word = tag("span", direction(score), class_="word")
    cells = [
        row_head(score.title, " ", word, tag("small", score.meaning + more), role="rowheader"),
        _labeled("with", number(summary.value.value)),
    ]
    if reach:
        difference = summary.difference
        better = verdict(score, difference)
        text = [number(difference.value, "+"), tag("small", ends(difference))]
        plotted = plotted and installed()
        plot = [interval_plot(difference, reach, better)] if plotted else []
        plot.append(tag("span", better, class_=f"small {better}"))
        cells.append(_labeled("without", number(summary.isolated.value)))
        cells.append(_labeled("difference", *text))
        cells.append(tag("td", plot, class_="plot", role="cell"))
    return tag("tr", cells, role="row")


def _labeled(label: str, *children: str) -> Html:
    return cell(*children, data_label=label, role="cell")


def _chances(group: Group) -> str:
    """The agreement of unrelated subjects, where it is known."""
    known = group.evaluation.chance.get("", {}) if group.evaluation else {}
    texts = [f"{number(v)} ({name})" for name, v in known.items() if not math.isnan(v)]
    return f"; by chance {', '.join(texts)}" if texts else ""


def _by_tag(group: Group) -> list[Html]:
    """The scores over the sets of each tag."""
    tags = group.evaluation.tags if group.evaluation else {}
    names = present(tags.values())
    if not names:
        return []
    rows = [
        [row_head(text), *(_compared(SCORES[name], one.get(name)) for name in names)]
        for text, one in tags.items()
    ]
    heads = ["tag", *(SCORES[name].title for name in names)]
    shown = small_table(heads, rows, "Scores by tag")
    return [tag("details", tag("summary", "Scores by tag"), tag("div", shown))]
