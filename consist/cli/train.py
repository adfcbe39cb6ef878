"""``consist train``: subjects learned from photos, and what else is trained here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from consist.cli.console import Commands, err, hide_loading_bars, plain_failures, say
from consist.cli.from_fields import options, read, takes
from consist.cli.train_mini import train_mini
from consist.cli.train_token import token
from consist.errors import ConsistError
from consist.training.config import (
    CLASS_IMAGES,
    DREAMBOOTH,
    LEARNING,
    LORA,
    NO_PRIOR,
    OPTIMIZER,
    PHOTOS,
    PRIOR,
    SEEING,
    SUBJECT,
    TEXTUAL_INVERSION,
    TRAINED,
    WHERE,
    TrainConfig,
    fields_of,
    suited_texts,
)

GOES_ON = "The last checkpoint is kept; the same command continues."
PANELS = (SUBJECT, TRAINED, LEARNING, OPTIMIZER, PRIOR, PHOTOS, WHERE, SEEING)
UNSET = {"prior": "images with a class prompt and without --from-run, else none"}
WORD = suited_texts(TEXTUAL_INVERSION)

Photos = Annotated[
    Path | None, typer.Argument(help="A folder of photos of one subject, 3 to 20 of them.")
]
FromRun = Annotated[
    Path | None,
    typer.Option(
        help="Take the pictures and prompts of this run instead.", rich_help_panel=SUBJECT
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="What is written: a folder for dreambooth, else a .safetensors file; by default named "
        "after the word or the prompt."
    ),
]

app = Commands(help="Train models.", no_args_is_help=True)


def of_kind(kind: str) -> list[Parameter]:
    """The options of a kind of training."""
    return options(TrainConfig, fields_of(kind), unset=UNSET | suited_texts(kind))


def of_both() -> list[Parameter]:
    """The options of the training of a word and, where they differ, of the LoRA beside it."""
    lora = suited_texts(LORA)
    apart = {
        name: f"{text}; of the word {WORD[name]}"
        for name, text in lora.items()
        if name not in ("steps", "lr") and WORD.get(name, text) != text
    }
    names = {*fields_of(TEXTUAL_INVERSION), *fields_of(LORA)} - {"embedding"}
    return options(TrainConfig, names, unset=UNSET | WORD | lora | apart)


@app.command()
@takes(of_kind(LORA), panels=PANELS)
def lora(photos: Photos = None, out: Out = None, from_run: FromRun = None, **given: Any) -> None:
    """Learn a subject from photos, as a small file beside the model.

    consist train lora photos/ --prompt "a xyz cat" --out cat.safetensors

    Then: consist batch "a xyz cat in Paris" --lora cat.safetensors
    """
    train(LORA, photos, from_run, out, given)


@app.command()
@takes(of_kind(DREAMBOOTH), panels=PANELS)
def dreambooth(
    photos: Photos = None, out: Out = None, from_run: FromRun = None, **given: Any
) -> None:
    """Learn a subject from photos, as a model of its own: all of the UNet is trained.

    consist train dreambooth photos/ --prompt "a xyz cat" --class-prompt "a cat" --out my-cat

    Then: consist batch "a xyz cat in Paris" --model my-cat
    """
    train(DREAMBOOTH, photos, from_run, out, given)


@app.command()
@takes(of_kind(TEXTUAL_INVERSION), panels=PANELS)
def textual_inversion(
    photos: Photos = None, out: Out = None, from_run: FromRun = None, **given: Any
) -> None:
    """Learn a new word for a subject from photos; the model stays as it is.

    consist train textual-inversion photos/ --token "<my-cat>" --init cat

    Then: consist batch "a <my-cat> in Paris" --embedding my-cat.safetensors
    """
    train(TEXTUAL_INVERSION, photos, from_run, out, given)


@app.command()
@takes(of_both(), panels=PANELS)
def pivotal(
    photos: Photos = None,
    out: Out = None,
    from_run: FromRun = None,
    word_steps: Annotated[
        int | None,
        typer.Option(
            help="Steps of training of the word; --steps are those of the LoRA. At least 1.",
            rich_help_panel=LEARNING,
            show_default=WORD["steps"],
        ),
    ] = None,
    word_lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of the word; --lr is that of the LoRA. From 1e-12 to 10.",
            rich_help_panel=LEARNING,
            show_default=WORD["lr"],
        ),
    ] = None,
    **given: Any,
) -> None:
    """Learn a new word for a subject from photos, and then a LoRA beside it.

    consist train pivotal photos/ --token "<my-cat>" --init cat --out cat.safetensors

    Then: consist batch "a <my-cat> in Paris" --lora cat.safetensors --embedding
    cat-word.safetensors
    """
    with plain_failures(GOES_ON):
        pace = {"steps": word_steps, "lr": word_lr}
        for config in two_trainings(photos, from_run, out, given, pace):
            show_training(config)


app.command("token")(token)
app.command("mini")(train_mini)


def train(
    kind: str, photos: Path | None, run: Path | None, out: Path | None, given: Mapping[str, Any]
) -> None:
    """Trains what the options of a command say."""
    with plain_failures(GOES_ON):
        show_training(read_config(kind, photos, run, out, given))


def show_training(config: TrainConfig) -> None:
    """Trains behind a progress bar, and says where the result is."""
    # of several processes, one tells
    hidden = os.environ.get("RANK", "0") != "0"
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=hidden) as progress:
        task: TaskID = progress.add_task("loading", total=None, state="")

        def watch(step: int, steps: int, loss: float) -> None:
            state = f"loss {loss:.4f}, {progress.tasks[task].speed or 0:.1f} steps/s"
            progress.update(
                task,
                description=f"training {config.kind}",
                completed=step,
                total=steps,
                state=state,
            )

        def watch_drawing(done: float, count: int) -> None:
            progress.update(task, description="drawing the class", completed=int(done), total=count)

        from consist.training.finetune import finetune

        hide_loading_bars()
        written = finetune(config, watch, watch_drawing)
    if not hidden:
        say(f"{written}")


def two_trainings(
    photos: Path | None,
    run: Path | None,
    out: Path | None,
    given: Mapping[str, Any],
    pace: Mapping[str, Any],
) -> tuple[TrainConfig, TrainConfig]:
    """The training of a word, and that of a LoRA with the word in place, which stays as it is.

    Pivotal tuning (Roich et al. 2021, arXiv:2106.05744) turns to the model once its input is
    found. cloneofsimo/lora too keeps the word in its second stage unless asked otherwise.

    Args:
        photos: As for ``read_config``.
        run: As for ``read_config``.
        out: Of the LoRA, as for ``read_config``.
        given: The options of both.
        pace: Those that the word has of its own.
    """
    token = given["token"]
    out = out or default_out(LORA, token, source(photos, run))
    word_out = out.with_name(f"{out.stem}-word.safetensors")
    word = {**{name: given[name] for name in fields_of(TEXTUAL_INVERSION)}, **pace}
    lora = {name: given[name] for name in fields_of(LORA) if name in given}
    lora |= {"prompt": given["prompt"] or f"a {token}", "embedding": str(word_out)}
    return (
        read_config(TEXTUAL_INVERSION, photos, run, word_out, word),
        read_config(LORA, photos, run, out, lora),
    )


def read_config(
    kind: str, photos: Path | None, run: Path | None, out: Path | None, given: Mapping[str, Any]
) -> TrainConfig:
    """The options of a command as a config.

    Args:
        kind: Of training.
        photos: A folder of them; None where there is a run.
        run: The folder of a run whose pictures are learned from; None where there are photos.
        out: What is written; by default named after the word or the prompt.
        given: Fields of a training.

    Raises:
        ConsistError: There are photos and a run, or neither; or they make no training.
    """
    folder, told = source(photos, run), read(TrainConfig, given)
    if told.get("prior", NO_PRIOR) is None:
        told["prior"] = CLASS_IMAGES if told["class_prompt"] and not run else NO_PRIOR
    named = told.get("token") or told["prompt"]
    return TrainConfig(
        kind=kind,
        photos=str(folder),
        from_run=run is not None,
        out=str(out or default_out(kind, named, folder)),
        **told,
    )


def source(photos: Path | None, run: Path | None) -> Path:
    """The folder that is learned from.

    Raises:
        ConsistError: Both were given, or neither.
    """
    if (photos is None) == (run is None):
        raise ConsistError("give either a folder of photos or --from-run")
    return photos or run  # type: ignore[return-value]


def default_out(kind: str, prompt: str, photos: Path) -> Path:
    """A name made of the prompt, else of the photos' folder."""
    words = "".join(c if c.isalnum() else " " for c in (prompt or photos.resolve().name).lower())
    slug = "-".join(words.split())[:40].strip("-") or "subject"
    return Path(f"{slug}-model" if kind == DREAMBOOTH else f"{slug}.safetensors")
