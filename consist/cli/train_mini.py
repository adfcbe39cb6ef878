"""``consist train mini``: the embedded model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID, TextColumn

from consist.cli.console import err, out, plain_failures, say


def train_mini(
    folder: Annotated[Path, typer.Argument(help="Work folder; run again to continue.")],
    minutes: Annotated[
        float, typer.Option(help="Stop, with a checkpoint, after so long.")
    ] = math.inf,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the denoiser; 0 leaves it as it is.", min=0)
    ] = None,
    reader_steps: Annotated[
        int | None,
        typer.Option(help="Steps of the reader, which --start keeps as it is without.", min=1),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures per step.")] = None,
    pictures: Annotated[
        int | None, typer.Option(help="Pictures to draw and to learn from.", min=1)
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="Begin with these weights: mini, or the folder of another mini."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
) -> None:
    """Train the embedded model from scratch, or on from what it is."""
    with plain_failures("The last checkpoint is kept; the same command continues."):
        from consist.models.devices import pick_device
        from consist.models.loading import MINI, MINI_FOLDER
        from consist.training.mini.session import READER_ON_LR, OutOfTime, Recipe
        from consist.training.mini.train import train

        origin = None if start is None else MINI_FOLDER if start == MINI else Path(start)
        given: dict[str, Any] = {
            "minutes": minutes,
            "unet_steps": steps,
            "unet_batch": batch_size,
            "reader_steps": 0 if origin and reader_steps is None else reader_steps,
            "reader_lr": READER_ON_LR if origin else None,
            "pictures": pictures,
        }
        recipe = Recipe(**{name: value for name, value in given.items() if value is not None})
        with Progress(
            *Progress.get_default_columns(), TextColumn("{task.fields[loss]}"), console=err
        ) as progress:
            tasks: dict[str, TaskID] = {}

            def watch(stage: str, step: int, count: int, loss: float) -> None:
                if stage not in tasks:
                    tasks[stage] = progress.add_task(stage, total=count, loss="")
                progress.update(tasks[stage], completed=step, loss=f"loss {loss:.4f}")

            try:
                written = train(folder, recipe, pick_device(device), watch, origin)
                say(f"written to {written}")
            except OutOfTime:
                out.print("out of time; run the same command to continue")
