"""What the buttons of the page do: each calls one function and says what becomes of the page.

A change of the page is a mapping from names of its parts, as ``consist.app.page`` has them, to
their values. It must not know how they are laid out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from consist.app import view
from consist.app.command import command_of
from consist.app.jobs import BUSY, Jobs, Stopped, Work
from consist.app.limits import Limits
from consist.app.root import RunRoot
from consist.app.settings import Form, check_name, read_form, read_lines, read_number
from consist.errors import ConsistError
from consist.runs.drawing import complete, generate
from consist.runs.extending import extend, redo, take_subject
from consist.runs.folder import ISOLATED, SHARED, RunFolder
from consist.runs.loading import SharedModel
from consist.runs.subject import list_subjects, subject_path

TICK = 0.25  # seconds between two looks at a job
STARTING = ("draw", "redo", "extend", "finish")  # the buttons that start one
# the parts that any of these actions changes; ``save`` changes "like" too. For each part that it is
# told of, Gradio makes a component anew at every yield
SHOWN = ("status", "gallery", "current", "tools", "picture", "command", "download", "runs")
CHANGED = (*STARTING, "stop", *SHOWN)
Change = dict[str, Any]
Changes = Iterator[Change]


class Studio:
    """All that the visitors of one page share: the runs, the model, and whose turn it is."""

    def __init__(self, root: Path, models: tuple[str, ...], limits: Limits) -> None:
        self.root = RunRoot(root)
        self.models = models
        self.limits = limits
        self.jobs = Jobs(limits.jobs)
        self.model_for = SharedModel()
        self._held: dict[str, str] = {}  # the run that each session works on

    def draw(self, session: str, form: Form) -> Changes:
        """Draws a new run, or goes on with it where it was stopped."""
        config = read_form(form, self.models)
        self.limits.check(config)
        if self.jobs.busy(session):
            raise ConsistError(BUSY)
        folder = self.root.place(config, self._held_by_others(session))
        self._hold(session, folder.path.name)
        yield from self._work(
            session, folder, lambda watch: generate(config, folder.path, watch, self.model_for)
        )

    def redo(self, session: str, name: str, picture: int | None, prompt: str, seed: str) -> Changes:
        """Draws one picture of a run anew."""
        folder = self._own(session, name)
        if picture is None:
            raise ConsistError("no picture was chosen; choose the one to draw anew")
        told = {"prompt": prompt.strip() or None, "seed": read_number("the seed", seed)}
        self.limits.check_prompts([told["prompt"] or ""])
        changes = {**told, "model_for": self.model_for}
        yield from self._work(
            session, folder, lambda watch: redo(folder.path, picture, watch=watch, **changes)
        )

    def extend(self, session: str, name: str, prompts: str) -> Changes:
        """Adds pictures of the same subject to a run."""
        folder = self._own(session, name)
        texts = read_lines(prompts)
        self.limits.check_prompts(texts, len(folder.read_config().prompts))
        yield from self._work(
            session,
            folder,
            lambda watch: extend(folder.path, texts, watch=watch, model_for=self.model_for),
        )

    def finish(self, session: str, name: str) -> Changes:
        """Draws what a run lacks."""
        folder = self._own(session, name)
        config = folder.read_config()
        yield from self._work(
            session, folder, lambda watch: complete(folder, config, watch, self.model_for)
        )

    def stop(self, session: str) -> Changes:
        """Stops what a session draws; what is finished is kept."""
        self.jobs.stop(session)
        yield {"status": view.draw_note("Stopping.")}

    def open(self, session: str, name: str | None) -> Changes:
        """Shows a run that was drawn before."""
        if not name:
            raise ConsistError("no run was chosen")
        if self.jobs.busy(session):
            raise ConsistError(BUSY)
        folder = self.root.find(name)
        if name in self._held_by_others(session):
            raise ConsistError(f"{name} is open in another window")
        self._hold(session, name)
        yield {**self._shown(folder), "status": view.draw_note(f"Opened {name}.")}

    def save(self, session: str, name: str, subject: str) -> Changes:
        """Keeps the subject of a run by a name."""
        folder, subject = self._own(session, name), check_name(subject)
        if subject_path(subject).exists():
            raise ConsistError(f"there is a subject {subject!r} already; take another name")
        take_subject(folder.path).save(subject)
        text = f"Kept as {subject}: choose it above to draw it in other scenes."
        yield {"status": view.draw_note(text), "like": gr.update(choices=choices_of_subjects())}

    def close(self, session: str) -> None:
        """Forgets a session, and stops what it draws."""
        self.jobs.stop(session)
        self._held.pop(session, None)

    def _work(self, session: str, folder: RunFolder, work: Work) -> Changes:
        """Draws, and tells how far it is and what is there."""
        with self.jobs.start(session, work) as job:
            yield {**show_buttons(busy=True), "status": view.draw_note("Waiting.")}
            seen = _state(folder)
            while not job.wait(TICK):
                change: Change = {"status": view.draw_progress(job, self.jobs.ahead(job))}
                if (now := _state(folder)) != seen:
                    seen = now
                    change["gallery"] = view.draw_gallery(folder, folder.read_config(), True)
                yield change
            yield show_buttons(busy=False)
            try:
                job.result()
                seconds = view.say_time(folder.read_record()["seconds"])
                text = f"Done; this run took {seconds} in all."
            except Stopped:
                text = "Stopped. What is finished is kept, and drawing goes on from there."
        shown = self._shown(folder) if folder.record_path.exists() else {}
        yield {**shown, "status": view.draw_note(text, job.notes)}

    def _shown(self, folder: RunFolder) -> Change:
        """All that the page says about a run."""
        config, name = folder.read_config(), folder.path.name
        rows = (SHARED, ISOLATED) if config.compare else (SHARED,)
        there = [
            folder.picture_path(index, row).exists()
            for row in rows
            for index in range(len(config.prompts))
        ]
        pictures = [(f"{index + 1}  {text}", index) for index, text in enumerate(config.prompts)]
        return {
            "current": name,
            "gallery": view.draw_gallery(folder, config),
            "tools": gr.update(visible=True),
            "picture": gr.update(choices=pictures, value=0),
            "finish": gr.update(visible=not all(there)),
            "command": command_of(folder),
            "download": view.draw_link(name),
            "runs": gr.update(choices=self.root.names(), value=name),
        }

    def _own(self, session: str, name: str) -> RunFolder:
        """The run that a session works on."""
        if not name:
            raise ConsistError("no run is open; draw one, or open an earlier one")
        folder = self.root.find(name)
        if name in self._held_by_others(session):
            raise ConsistError(f"{name} is open in another window")
        self._hold(session, name)
        return folder

    def _hold(self, session: str, name: str) -> None:
        self._held[session] = name

    def _held_by_others(self, session: str) -> frozenset[str]:
        return frozenset(name for other, name in self._held.items() if other != session)


def show_buttons(busy: bool) -> Change:
    """The buttons while a session draws, and while it does not."""
    starting = {name: gr.update(interactive=not busy) for name in STARTING}
    return {**starting, "stop": gr.update(visible=busy)}


def choices_of_subjects() -> list[tuple[str, str]]:
    """A new subject, and all that were saved."""
    return [("a new one", ""), *((name, name) for name in list_subjects())]


def _state(folder: RunFolder) -> list[str | int]:
    """What tells whether a run has changed."""
    record, names = folder.record_path, ("[0-9]*.png", f"{ISOLATED}/[0-9]*.png")
    found = sorted(str(path) for name in names for path in folder.path.glob(name))
    return [record.stat().st_mtime_ns if record.exists() else 0, *found]
