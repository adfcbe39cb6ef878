"""How the page is laid out, and which button does what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from consist.app import view
from consist.app.actions import CHANGED, Change, Changes, Studio, choices_of_subjects, show_buttons
from consist.app.settings import (
    FIELDS,
    RULES,
    Form,
    explain,
    read_lines,
    split_spectrum,
)
from consist.errors import ConsistError
from consist.methods import METHODS, defaults_of
from consist.prompts.phrases import split_identity
from consist.runs.config import DEFAULT_METHOD

Parts = dict[str, Any]  # components, and what holds them, by name
EXAMPLE = "a cat in Paris\na cat on the moon"
ANCHORS = [
    ("all pictures", "all"),
    ("one at random, again and again", "random"),
    *(("the first" if count == 1 else f"the first {count}", str(count)) for count in range(1, 5)),
]
HEADER = """<header><h1>consist</h1><p>The same subject in many scenes.</p></header>"""
# of the inputs, those that a saved subject has of its own, and where they lie
FRESH = ("fresh_model", "fresh_method", "fresh_more")
METHOD = ("keys_rule", "keys_amount", "values_rule", "values_amount", "anchors", "strength")


def build_page(studio: Studio) -> gr.Blocks:
    """The page of a studio; nothing of it is loaded from elsewhere, and nothing is reported."""
    with gr.Blocks(title="consist", analytics_enabled=False, fill_width=True) as page:
        parts: Parts = {"current": gr.State("")}
        gr.HTML(HEADER)
        # three places, which style.css lays out by the width of the screen
        with gr.Row(elem_id="desk"):
            with gr.Column(min_width=0, elem_id="form"):
                lay_out_prompts(parts)
            with gr.Column(min_width=0, elem_id="result"):
                parts["gallery"] = gr.HTML(view.EMPTY, elem_id="gallery")
                lay_out_tools(parts)
            with gr.Column(min_width=0, elem_id="settings"):
                lay_out_subject(parts, studio)
                lay_out_method(parts)
                lay_out_more(parts, studio)
                lay_out_runs(parts, studio)
        connect(page, parts, studio)
    page.queue(max_size=4 * studio.limits.jobs, api_open=False)
    return page


def lay_out_prompts(parts: Parts) -> None:
    """What is always seen: the scenes, and the button that draws them."""
    parts["prompts"] = gr.Textbox(
        EXAMPLE,
        label="Prompts",
        info="One on each line, a picture each. Start all with the same subject.",
        lines=4,
        max_lines=12,
        elem_id="prompts",
    )
    with gr.Row(elem_id="lines"):
        parts["add"] = gr.Button("Add a prompt", size="sm", min_width=0, elem_id="add")
        parts["remove"] = gr.Button("Remove the last", size="sm", min_width=0, elem_id="remove")
    parts["compare"] = gr.Checkbox(
        label="Compare",
        info="Also draw them without sharing, from the same noise.",
        elem_id="compare",
    )
    with gr.Row(elem_id="go"):
        parts["draw"] = gr.Button("Draw", variant="primary", min_width=0, elem_id="draw")
        parts["stop"] = gr.Button(
            "Cancel", variant="stop", visible=False, min_width=0, elem_id="cancel"
        )
    parts["status"] = gr.HTML(elem_id="status")


def lay_out_subject(parts: Parts, studio: Studio) -> None:
    """Whom to draw, with which model."""
    with gr.Accordion("Subject and model", open=False):
        parts["like"] = gr.Dropdown(
            choices_of_subjects(),
            value="",
            label="Subject",
            info="One that was saved is drawn in new scenes, with all its settings.",
            elem_id="like",
        )
        with gr.Column() as parts["fresh_model"]:
            parts["model"] = gr.Dropdown(studio.models, value=studio.models[0], label="Model")
            parts["subject"] = gr.Textbox(
                "",
                label="Words that name the subject",
                info="For methods that must find it in the picture, with commas between several. "
                "By default what all prompts start with.",
                placeholder="cat",
            )


def lay_out_method(parts: Parts) -> None:
    """What is shared, and how."""
    with gr.Accordion("What is shared", open=False) as parts["fresh_method"]:
        parts["method"] = gr.Dropdown(
            list(METHODS),
            value=DEFAULT_METHOD,
            label="Method",
            info=explain(DEFAULT_METHOD),
            elem_id="method",
        )
        usual = defaults_of(DEFAULT_METHOD)
        for name, title, role in (
            ("keys", "Keys (K)", "Where a picture looks in the anchors"),
            ("values", "Values (V)", "What it takes from there"),
        ):
            rule, amount = split_spectrum(usual[name])
            parts[f"{name}_rule"] = gr.Dropdown(
                [(one.title, key) for key, one in RULES.items()],
                value=rule,
                label=title,
                info=f"{role}: which of their singular values count.",
                elem_id=f"{name}-rule",
            )
            parts[f"{name}_amount"] = gr.Slider(
                0.01,
                1,
                value=amount,
                step=0.01,
                label=f"{title}: how much",
                info=RULES[rule].meaning,
                visible=RULES[rule].usual is not None,
                elem_id=f"{name}-amount",
            )
        parts["anchors"] = gr.Dropdown(
            ANCHORS, value="all", label="Anchors", info="The pictures that all others see."
        )
        parts["strength"] = gr.Slider(
            0.1,
            32,
            value=usual["strength"],
            step=0.1,
            label="Strength",
            info="How much an anchor counts against the picture itself; 1: the same.",
        )


def lay_out_more(parts: Parts, studio: Studio) -> None:
    """Noise, steps and size."""
    with gr.Accordion("Seeds, steps and size", open=False, elem_id="more"):
        parts["seeds"] = gr.Textbox(
            "",
            label="Seeds",
            info="One, which then counts up, or one for each picture.",
            placeholder="0",
            elem_id="seeds",
        )
        parts["at_once"] = gr.Textbox(
            "",
            label="Pictures at a time",
            info="Fewer need less memory, and are seen earlier; anchors count. Empty: all.",
        )
        with gr.Column() as parts["fresh_more"]:
            with gr.Row():
                parts["steps"] = gr.Textbox(
                    "",
                    label="Steps",
                    min_width=0,
                    info=f"Up to {studio.limits.steps}.",
                    elem_id="steps",
                )
                parts["guidance"] = gr.Textbox("", label="Guidance", min_width=0, info="Up to 100.")
            parts["size"] = gr.Textbox(
                "", label="Size", info="Pixels, such as 512 or 768x512.", elem_id="size"
            )
            parts["negative"] = gr.Textbox("", label="What the pictures should not show")
            gr.HTML("<p class='soft'>What is empty here is chosen to suit the model.</p>")


def lay_out_runs(parts: Parts, studio: Studio) -> None:
    """What was drawn before."""
    with gr.Accordion("Earlier runs", open=False, elem_id="earlier"):
        parts["runs"] = gr.Dropdown(studio.root.names(), value=None, label="Run", elem_id="runs")
        parts["open"] = gr.Button("Open", size="sm", elem_id="open")


def lay_out_tools(parts: Parts) -> None:
    """What can be done with a run that is there."""
    with gr.Column(visible=False, elem_id="tools") as parts["tools"]:
        parts["finish"] = gr.Button("Draw what is missing", visible=False, elem_id="finish")
        with gr.Tabs():
            with gr.Tab("More scenes", id="extend"):
                parts["scenes"] = gr.Textbox(
                    "",
                    label="More prompts for this subject",
                    info="One on each line. The pictures that are there do not change.",
                    lines=2,
                    elem_id="scenes",
                )
                parts["extend"] = gr.Button("Draw them too", elem_id="extend")
            with gr.Tab("Redo one", id="redo"):
                parts["picture"] = gr.Dropdown([], label="Picture", elem_id="picture")
                with gr.Row():
                    parts["new_prompt"] = gr.Textbox(
                        "", label="Another prompt", placeholder="the same", elem_id="new-prompt"
                    )
                    parts["new_seed"] = gr.Textbox("", label="Another seed", elem_id="new-seed")
                parts["redo"] = gr.Button("Redo this picture", elem_id="redo")
            with gr.Tab("Keep the subject", id="save"):
                parts["name"] = gr.Textbox(
                    "", label="Name", info="Letters, digits, - and _.", elem_id="name"
                )
                parts["save"] = gr.Button("Keep", elem_id="save")
            with gr.Tab("Repeat and download", id="repeat"):
                parts["command"] = gr.Textbox(
                    "",
                    label="The same on the command line",
                    lines=2,
                    max_lines=8,
                    interactive=False,
                    buttons=["copy"],
                    elem_id="command",
                )
                parts["download"] = gr.HTML()


def connect(page: gr.Blocks, parts: Parts, studio: Studio) -> None:
    """Ties the buttons to what they do."""

    def tie(
        name: str, action: Callable[..., Changes], *inputs: str, changed: Sequence[str] = CHANGED
    ) -> None:
        parts[name].click(
            _handler(parts, studio, action),
            inputs=[parts[one] for one in inputs],
            outputs=[parts[one] for one in changed],
            api_name=name,
            show_progress="hidden",
            # they wait for one another in consist.app.jobs, where they can be stopped
            concurrency_limit=None,
        )

    def draw(session: str, *values: Any) -> Changes:
        return studio.draw(session, Form(**dict(zip(FIELDS, values, strict=True))))

    tie("draw", draw, *FIELDS)
    tie("redo", studio.redo, "current", "picture", "new_prompt", "new_seed")
    tie("extend", studio.extend, "current", "scenes")
    tie("finish", studio.finish, "current")
    tie("stop", studio.stop)
    tie("open", studio.open, "runs")
    tie("save", studio.save, "current", "name", changed=(*CHANGED, "like"))

    def on(event: Callable[..., Any], react: Callable[..., Any], given: str, *named: str) -> None:
        outputs = [parts[name] for name in named]
        event(react, parts[given], outputs, show_progress="hidden", api_visibility="private")

    on(parts["add"].click, add_line, "prompts", "prompts")
    on(parts["remove"].click, remove_line, "prompts", "prompts")
    on(parts["method"].change, show_method, "method", "method", *METHOD)
    on(parts["like"].change, show_fresh, "like", *FRESH)
    for name in ("keys", "values"):
        on(parts[f"{name}_rule"].change, show_rule, f"{name}_rule", f"{name}_amount")
    page.load(
        lambda: (gr.update(choices=studio.root.names()), gr.update(choices=choices_of_subjects())),
        None,
        [parts["runs"], parts["like"]],
        show_progress="hidden",
        api_visibility="private",
    )

    def close(request: gr.Request) -> None:
        studio.close(str(request.session_hash))

    page.unload(close)


def _handler(
    parts: Parts, studio: Studio, action: Callable[..., Changes]
) -> Callable[..., Iterator[Any]]:
    """An action as Gradio calls it; what the user can mend is one sentence."""

    def handle(request: gr.Request, *values: Any) -> Iterator[dict[Component, Any]]:
        session = str(request.session_hash)
        try:
            for change in action(session, *values):
                yield _name_parts(parts, change)
        except ConsistError as error:
            buttons = show_buttons(busy=studio.jobs.busy(session))
            refused = {**buttons, "status": view.draw_refusal(str(error))}
            yield _name_parts(parts, refused)
            raise gr.Error(str(error), title="Not done", print_exception=False) from None

    return handle


def _name_parts(parts: Parts, change: Change) -> dict[Component, Any]:
    """A change by the components themselves, as updates of what they show.

    Gradio keeps one more component for each plain value that comes after an update of its part.
    """
    named = {}
    for name, value in change.items():
        plain = isinstance(value, dict) or isinstance(parts[name], gr.State)
        named[parts[name]] = value if plain else gr.update(value=value)
    return named


def add_line(prompts: str) -> str:
    """Adds a line that starts with the subject of the others, if it can be told."""
    lines = read_lines(prompts)
    try:
        start = f"{split_identity(lines)[0]} "
    except ConsistError:
        start = ""
    return "\n".join([*lines, start])


def remove_line(prompts: str) -> str:
    """Takes the last line away."""
    return "\n".join(prompts.split("\n")[:-1])


def show_method(method: str) -> list[Any]:
    """The settings that a method has, as they usually are."""
    usual = defaults_of(method)
    changes: list[Any] = [gr.update(info=explain(method))]
    for name in ("keys", "values"):
        rule, amount = split_spectrum(usual.get(name, "identity"))
        there = name in usual
        shown = there and RULES[rule].usual is not None
        changes += [gr.update(value=rule, visible=there), gr.update(value=amount, visible=shown)]
    anchors, strength = str(usual.get("anchors", "all")), usual.get("strength", 1.0)
    there = "anchors" in usual
    return [
        *changes,
        gr.update(value=anchors, visible=there),
        gr.update(value=strength, visible=there),
    ]


def show_rule(rule: str) -> Any:
    """The number that a rule takes, and what it means."""
    one = RULES[rule]
    if one.usual is None:
        return gr.update(visible=False)
    return gr.update(visible=True, value=one.usual, info=one.meaning)


def show_fresh(like: str) -> list[Any]:
    """What a saved subject does not have of its own."""
    return [gr.update(visible=not like) for _ in FRESH]
