"""All sets: a filter, a table to sort, and the pictures of those that there is room for."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from consist.evaluation.report.cards import draw_card
from consist.evaluation.report.html import Html, cell, choice, row_head, scroll, table, tag
from consist.evaluation.report.pictures import PictureRow, picture_rows
from consist.evaluation.report.runs import Group, Run, Story, all_runs, choose_stories, present
from consist.evaluation.report.text import number
from consist.evaluation.scores import SCORES
from consist.runs.folder import ISOLATED

# what the table of sets can show
MODES = {"difference": "difference", "with": "with sharing", "without": "without"}


def draw_sets(groups: Sequence[Group], stories: Sequence[Story], ranking: str | None) -> list[Html]:
    """The whole section."""
    chosen = choose_stories(stories, ranking)
    pictures = picture_rows(chosen)
    cards = [draw_card(s, pictures[s.anchor], ranking) for s in chosen if s.anchor in pictures]
    parts = []
    if hidden := len(stories) - len(cards):
        best = "the best, the median and the worst by"
        by = f"{best} {SCORES[ranking].title}" if ranking else "first"
        words = f"Pictures of {len(cards)} of {len(stories)} sets are shown: {by}. "
        parts.append(tag("p", words, f"Those of {hidden} are not; their numbers are in the table."))
    parts.append(_tools(pictures.values()))
    if any(any(row.readings) for rows in pictures.values() for row in rows):
        words = "Below a picture: what the reader saw. Marked is what was asked otherwise by the "
        words += "prompt, or differs from most pictures of the row."
        parts.append(tag("p", words, class_="small soft"))
    if len(stories) > 1 and any(group.summary for group in groups):
        parts += _table(groups, stories, pictures)
    return [*parts, tag("div", cards, class_="cards")]


def _tools(pictures: Collection[Sequence[PictureRow]]) -> Html:
    """A filter, and which rows are shown."""
    several = len(pictures) > 1
    field = tag("input", type="search", id="search", autocomplete="off")
    tools = [tag("label", "Filter by name, tag or word of a prompt", field)] if several else []
    rows = {row.name: row.title for some in pictures for row in some}
    if len(rows) > 1:
        hint = "click a picture, or press T in a set, to flip its rows in place"
        every = {"all": "all rows", **rows}
        choices = [choice(every, "Rows shown in all sets", "show")] if several else []
        tools.append(tag("div", choices, tag("div", hint, class_="small soft")))
    tools.append(tag("span", id="found", class_="small soft", role="status"))
    return _script_only(tools)


def _table(
    groups: Sequence[Group], stories: Sequence[Story], linked: Collection[str]
) -> list[Html]:
    """One row for each run; a click on a header sorts."""
    names = present(group.summary for group in groups)
    runs = all_runs(groups)
    more = {"tags": any(run.tags for run in runs), "method": len(groups) > 1}
    heads = ["set", *(text for text, there in more.items() if there)]
    numbers = range(len(heads), len(heads) + len(names))
    heads += [SCORES[name].title for name in names]
    rows = []
    for story in stories:
        for label, run in story.runs.items():
            cells = [_name(story, run, story.anchor in linked)]
            cells += [tag("td", ", ".join(run.tags))] if more["tags"] else []
            cells += [tag("td", label)] if more["method"] else []
            rows.append(tag("tr", cells, (_values(run, n) for n in names), data_text=story.words))
    compared = any(ISOLATED in run.rows for run in runs)
    tools = [choice(MODES, "Numbers shown in the table", "mode")] if compared else []
    buttons = [tag("button", text, type="button") for text in heads]
    mode = "difference" if compared else "with"
    shown = table(buttons, numbers, rows, id="table", class_="compact", data_mode=mode)
    return [_script_only(tools), scroll(shown, "Table of sets")]


def _script_only(tools: Sequence[Html]) -> Html:
    """Hidden until a script makes it work."""
    return tag("div", tools, class_="tools", data_js=True, hidden=True)


def _name(story: Story, run: Run, linked: bool) -> Html:
    title = story.title
    link = tag("a", title, href=f"#{story.anchor}") if linked else title
    return row_head(link, tag("small", run.name), data_value=title)


def _values(run: Run, name: str) -> Html:
    """All that a cell may show; the mode of the table says what."""
    numbers = {
        "difference": run.difference(name),
        "with": run.value(name),
        "without": run.value(name, ISOLATED),
    }
    data = {f"data_{k}": "" if math.isnan(v) else f"{v:.6g}" for k, v in numbers.items()}
    shown = (
        tag("span", number(v, "+" if k == "difference" else ""), class_=f"value {k}")
        for k, v in numbers.items()
    )
    return cell(*shown, **data)
