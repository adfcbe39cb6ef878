"""Runs and what goes on as HTML; every text of a visitor or a file is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from consist.app.jobs import Job
from consist.evaluation.report.html import Html, tag
from consist.runs.config import RunConfig
from consist.runs.folder import ISOLATED, SHARED, RunFolder

EMPTY = tag(
    "div",
    tag("p", "No pictures yet", class_="title"),
    tag(
        "p",
        "Write a prompt on each line, all of which start with the same subject, and press Draw.",
    ),
    class_="empty",
)


def draw_gallery(folder: RunFolder, config: RunConfig, drawing: bool = False) -> Html:
    """The pictures of a run with their captions, and what is still missing.

    Args:
        folder: Where they lie, or will.
        config: What it holds, or will.
        drawing: Whether more are on their way.
    """
    method = config.method["name"]
    titles = {SHARED: f"With sharing: {method}" if method != ISOLATED else "Without sharing"}
    if config.compare:
        titles[ISOLATED] = "Without sharing, from the same noise"
    sections = []
    for row, title in titles.items():
        tiles = [_tile(folder, config, index, row, drawing) for index in range(len(config.prompts))]
        sections.append(tag("section", tag("h2", title), tag("ol", tiles, class_="tiles")))
    shape = f"--shape:{config.width or 1}/{config.height or 1}"
    return _guarded(tag("div", sections, class_="gallery", style=shape))


def _tile(folder: RunFolder, config: RunConfig, index: int, row: str, drawing: bool) -> Html:
    prompt, seed = config.prompts[index], config.seeds[index]
    path = folder.picture_path(index, row)
    if version := _version(path):
        place = f"{quote(folder.path.name)}/{path.relative_to(folder.path).as_posix()}"
        # a picture that is redone has the same name
        source = f"pictures/{place}?{version}"
        without = ", without sharing" if row == ISOLATED else ""
        alt = f"Picture {index + 1}: {prompt}{without}"
        picture = tag("a", tag("img", src=source, alt=alt), href=source, target="_blank")
    else:
        text = "on its way" if drawing else "not drawn"
        picture = tag("div", text, class_="missing moving" if drawing else "missing")
    words = (tag("span", f"{index + 1}", class_="number"), " ", prompt)
    small = tag("span", f"seed {seed}", class_="seed")
    return tag("li", tag("figure", picture, tag("figcaption", words, " ", small)))


def _version(path: Path) -> int:
    """When a file was written last, 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def draw_progress(job: Job, ahead: int) -> Html:
    """How far a job is."""
    if ahead:
        others = f"{ahead} drawings" if ahead > 1 else "one drawing"
        return _status(tag("p", f"Waiting for {others} of others."), bar=tag("progress"))
    if not job.count:
        return _status(tag("p", "Loading the model."), bar=tag("progress"))
    left = job.seconds_left()
    text = f"Drawing: {int(job.done)} of {job.count} pictures"
    if left is not None:
        text += f", {say_time(left)} left"
    bar = tag("progress", max=job.count, value=f"{job.done:.2f}", aria_label="drawn so far")
    return _status(tag("p", f"{text}."), bar=bar)


def draw_note(text: str, notes: Sequence[str] = ()) -> Html:
    """What was done, and what was warned of meanwhile."""
    return _status(tag("p", text), *map(_note, notes))


def _note(text: str) -> Html:
    """A warning, of which more than one sentence is hidden at first."""
    first, _, rest = text.partition(". ")
    if not rest:
        return tag("p", _sentence(text), class_="soft")
    return tag("details", tag("summary", _sentence(first)), tag("p", _sentence(rest)))


def draw_refusal(text: str) -> Html:
    """Why something was not done."""
    return _guarded(tag("div", tag("p", _sentence(text)), class_="status refusal", role="alert"))


def draw_link(name: str) -> Html:
    """A link to the archive of a run."""
    link = tag("a", "Download the run (zip)", href=f"archives/{quote(name)}", download=True)
    return _guarded(tag("p", link, class_="download"))


def say_time(seconds: float) -> str:
    """A duration in words, rounded up.

    >>> say_time(3.2), say_time(70), say_time(4000)
    ('4 s', '2 min', '1 h 7 min')
    """
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _status(*lines: Html, bar: Html | None = None) -> Html:
    return _guarded(tag("div", lines, [bar] if bar else [], class_="status", role="status"))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def _guarded(html: Html) -> Html:
    """The same without the marks that Gradio's templates might read as theirs."""
    return Html(html.replace("{", "&#123;").replace("$", "&#36;"))
