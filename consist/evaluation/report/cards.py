"""One set on the page: its pictures, what was read off them, and its scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from consist.evaluation.report.html import Html, cell, choice, row_head, scroll, small_table, tag
from consist.evaluation.report.pictures import PictureRow
from consist.evaluation.report.runs import Story
from consist.evaluation.report.text import DASH, count, direction, number
from consist.evaluation.scores import SCORES
from consist.runs.folder import ISOLATED


def draw_card(story: Story, rows: Sequence[PictureRow], ranking: str | None) -> Html:
    """A set.

    Args:
        story: The set.
        rows: Its pictures.
        ranking: The score to name beside it.
    """
    resolved = story.first.resolved
    shape = f"{resolved.get('width') or 1}/{resolved.get('height') or 1}"
    style = f"--columns:{max(1, len(story.prompts))};--shape:{shape}"
    prompts = tag("ol", (tag("li", prompt) for prompt in story.prompts), class_="prompts")
    pictures = tag("div", map(_row, rows), prompts, class_="pictures", style=style)
    return tag(
        "article",
        tag("div", _head(story, rows, ranking), class_="head"),
        scroll(pictures, f"Pictures of {story.title}"),
        _details(story, rows),
        class_="set several" if len(rows) > 1 else "set",
        id=story.anchor,
        aria_labelledby=f"{story.anchor}-title",
        data_text=story.words,
        data_show="all",
    )


def _head(story: Story, rows: Sequence[PictureRow], ranking: str | None) -> Iterator[Html]:
    labels = filter(None, (story.place, *story.first.tags))
    tags = [part for label in labels for part in (" ", tag("span", label, class_="tag"))]
    title = tag("h3", story.title, tags, id=f"{story.anchor}-title")
    yield tag("div", title, tag("p", _line(story, ranking), class_="small soft"))
    if len(rows) > 1:
        options = {"all": "all rows", **{row.name: row.title for row in rows}}
        buttons = choice(options, f"Rows shown of {story.title}")
        yield tag("div", buttons, data_js=True, hidden=True)


def _line(story: Story, ranking: str | None) -> str:
    words = [count(story.prompts, "picture")]
    for label, run in story.runs.items():
        if ranking and not math.isnan(run.value(ranking)):
            text = f"{SCORES[ranking].title} {number(run.value(ranking))}"
            if not math.isnan(run.value(ranking, ISOLATED)):
                text += f", without {number(run.value(ranking, ISOLATED))}"
            words.append(f"{label}: {text}" if len(story.runs) > 1 else text)
    words += [run.name for run in story.runs.values()][:3]
    return " · ".join(words)


def _row(row: PictureRow) -> Html:
    figures = []
    for uri, prompt, reading in zip(row.pictures, row.run.prompts, row.readings, strict=True):
        missing = tag("div", "not drawn yet", class_="missing")
        picture = tag("img", src=uri, alt=prompt) if uri else missing
        note = [tag("figcaption", reading.caption())] if reading else []
        figures.append(tag("li", tag("figure", picture, note)))
    plain = ISOLATED in (row.row, row.run.method)
    kind = "row without" if plain else "row"
    return tag("div", tag("p", row.title), tag("ul", figures), class_=kind, data_row=row.name)


def _details(story: Story, rows: Sequence[PictureRow]) -> Html:
    """All scores of a set, and all that was read, for those who want to know."""
    tables = [*_scores(story, rows), *(one for row in rows for one in _readings(story, row))]
    if not tables:
        return Html("")
    title = tag("summary", "All scores and readings of this set")
    return tag("details", title, tag("div", tables))


def _scores(story: Story, rows: Sequence[PictureRow]) -> Iterator[Html]:
    lines = []
    for name, score in SCORES.items():
        values = [row.run.value(name, row.row) for row in rows]
        if not all(map(math.isnan, values)):
            head = row_head(score.title, " ", tag("span", direction(score), class_="word"))
            lines.append([head, *(cell(number(value)) for value in values)])
    if lines:
        heads = ["score", *(row.title for row in rows)]
        yield small_table(heads, lines, f"Scores of {story.title}")


def _readings(story: Story, row: PictureRow) -> Iterator[Html]:
    lines = []
    for name in dict.fromkeys(name for one in row.readings if one for name in one.fields):
        cells = [tag("td", one.shown(name) if one else DASH) for one in row.readings]
        lines.append([row_head(name.replace("_", " ")), *cells])
    if lines:
        heads = [f"read, {row.title}", *row.run.prompts]
        label = f"What was read off {story.title}, {row.title}"
        yield small_table(heads, lines, label, numbers=False)
