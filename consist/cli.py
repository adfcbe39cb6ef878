"""The command line: it parses, calls one function and prints.

Heavy imports wait for the command that needs them.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from consist.config import RunConfig, parse_size, plan, spread_seeds
from consist.errors import ConsistError

if TYPE_CHECKING:
    from consist.run import RunFolder

app = typer.Typer(
    help="Draw the same subject in many scenes with any Stable Diffusion.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
train_app = typer.Typer(help="Train models.", no_args_is_help=True)
app.add_typer(train_app, name="train")

out = Console()
err = Console(stderr=True)

DRAWING = "Drawing"
WHERE = "Where and how fast"


def main() -> None:
    """Runs the command line; what the user can mend is one sentence and exit code 2."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("consist").addHandler(handler)
    app()


@contextmanager
def plain_failures(hint: str = "") -> Iterator[None]:
    """Ends the process with one sentence where the user can mend what went wrong."""
    try:
        yield
    except ConsistError as error:
        say(f"error: {error}", err, "red")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        say(f"stopped. {hint}", err)
        raise typer.Exit(130) from None


@app.command()
def batch(
    prompts: Annotated[list[str] | None, typer.Argument(help="One prompt per picture.")] = None,
    file: Annotated[Path | None, typer.Option(help="A text file with one prompt per line.")] = None,
    model: Annotated[
        str, typer.Option(help="mini, a hub id, a folder or a .safetensors file.")
    ] = "mini",
    method: Annotated[
        str, typer.Option(help="What is shared: spectral, shared or isolated.")
    ] = "spectral",
    keys: Annotated[
        str | None,
        typer.Option(help="Spectrum of the keys, such as 'energy:0.95' or 'log|fraction:0.1'."),
    ] = None,
    values: Annotated[str | None, typer.Option(help="Spectrum of the values.")] = None,
    anchors: Annotated[
        str | None,
        typer.Option(help="Images that are shared: all, random, or the first N."),
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="Weight of a shared token against an own one.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other field of the method, such as pool=all."),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="One seed (then +1 per picture), or one per picture.")
    ] = None,
    same_noise: Annotated[
        bool, typer.Option("--same-noise", help="Start all pictures from the same noise.")
    ] = False,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    negative: Annotated[str, typer.Option(help="What the pictures should not show.")] = "",
    size: Annotated[
        str | None, typer.Option(help="Pixels, as 512 or 768x512 (width x height).")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Such as ddim, euler or dpm++.")] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="A LoRA, FILE or FILE:WEIGHT; may be repeated.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cuda, mps or cpu.", rich_help_panel=WHERE)
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto, float32, float16 or bfloat16.", rich_help_panel=WHERE)
    ] = "auto",
    backend: Annotated[
        str, typer.Option(help="Version of attention: see 'consist doctor'.", rich_help_panel=WHERE)
    ] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(help="Pictures in memory at a time, anchors included.", rich_help_panel=WHERE),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Run folder; by default one in runs/.", rich_help_panel=WHERE),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also draw without sharing, from the same noise.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be drawn, and draw nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record of the run as JSON.")
    ] = False,
) -> None:
    """Draw the same subject in several scenes.

    consist batch "a cat in Paris" "a cat on the moon"
    """
    with plain_failures("The finished pictures are kept; the same command continues."):
        texts = read_prompts(prompts or [], file)
        width, height = parse_size(size) if size else (None, None)
        given = {"keys": keys, "values": values, "anchors": anchors, "strength": strength}
        config = RunConfig(
            prompts=texts,
            seeds=spread_seeds(tuple(seed or [0]), len(texts), same_noise),
            model=model,
            method={"name": method, **parse_fields(given, set_ or [])},
            steps=steps,
            guidance=guidance,
            negative=negative,
            width=width,
            height=height,
            scheduler=scheduler,
            loras=tuple(lora or []),
            device=device,
            dtype=dtype,
            backend=backend,
            batch_size=batch_size,
            compare=compare,
        )
        if dry_run:
            check_and_print(config)
        else:
            report(draw(config, folder), as_json)


def read_prompts(given: list[str], file: Path | None) -> tuple[str, ...]:
    """The prompts of the command line and of a file, in that order; empty lines are skipped."""
    lines: list[str] = []
    if file:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConsistError(f"prompts cannot be read from {file}: {error}") from error
    return (*given, *(line.strip() for line in lines if line.strip()))


def parse_fields(given: dict[str, Any], pairs: list[str]) -> dict[str, Any]:
    """The fields of a method that were given, from their own options and from ``NAME=VALUE``."""
    fields = {name: value for name, value in given.items() if value is not None}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConsistError(f"--set takes NAME=VALUE, not {pair!r}")
        fields[name.strip()] = value.strip()
    return fields


def check_and_print(config: RunConfig) -> None:
    """Checks what can be checked without the model, and prints the config."""
    from consist.methods import build
    from consist.run import default_folder

    count = len(config.prompts)
    plan(count, build(config.method).anchor_count(count), config.batch_size)
    out.print_json(json.dumps({**config.to_json(), "out": str(default_folder(config))}))


def draw(config: RunConfig, folder: Path | None) -> RunFolder:
    """Draws a run behind a progress bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        task: TaskID = progress.add_task("loading", total=None, state="")
        from consist.generate import generate

        hide_loading_bars()

        def watch(done: float, count: int) -> None:
            state = f"{int(done)} of {count}"
            progress.update(task, description="drawing", completed=done, total=count, state=state)

        return generate(config, folder, watch)


def hide_loading_bars() -> None:
    """Silences the bars of diffusers and transformers, which last for a blink."""
    from diffusers.utils.logging import disable_progress_bar as hide_diffusers
    from transformers.utils.logging import disable_progress_bar as hide_transformers

    hide_diffusers()
    hide_transformers()


def report(folder: RunFolder, as_json: bool) -> None:
    """Says what was written and where."""
    record = folder.read_record()
    if as_json:
        typer.echo(json.dumps({"folder": str(folder.path), **record}, ensure_ascii=False))
        return
    for image in record["images"]:
        out.print(
            f"{folder.path / image['file']}  seed {image['seed']}  {image['prompt']}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    seconds, memory = record["seconds"], record["peak_memory_gib"]
    say(f"{folder.grid_path}  all in one picture")
    say(f"drawn in {seconds:.1f} s, at most {memory:.1f} GiB of memory")


def say(line: str, console: Console = out, style: str | None = None) -> None:
    """Prints one line as it is, never broken or colored by what it says."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


@app.command()
def models() -> None:
    """List the models that can be used without a download."""
    with plain_failures():
        from consist.models import local_models

        table = Table("model", "kind", "size", "where", box=None)
        for model in local_models():
            table.add_row(model.name, model.kind, f"{model.bytes / 2**20:.0f} MiB", str(model.path))
        out.print(table)
        out.print("and any SD 1.x, SD 2.x or SDXL: a hub id, a folder or a .safetensors file")


@app.command()
def doctor() -> None:
    """Say what will run here, and what to install for more."""
    with plain_failures():
        from consist.doctor import findings

        table = Table(box=None, show_header=False)
        for topic, finding in findings():
            table.add_row(topic, finding)
        out.print(table)


@train_app.command("mini")
def train_mini(
    folder: Annotated[Path, typer.Argument(help="Work folder; run again to continue.")],
    minutes: Annotated[
        float, typer.Option(help="Stop, with a checkpoint, after so long.")
    ] = math.inf,
    steps: Annotated[int | None, typer.Option(help="Steps of the denoiser.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures per step.")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
) -> None:
    """Train the embedded model from scratch."""
    with plain_failures("The last checkpoint is kept; the same command continues."):
        from consist.mini.fitting import OutOfTime, Recipe
        from consist.mini.train import train
        from consist.models import pick_device

        given: dict[str, Any] = {"minutes": minutes, "unet_steps": steps, "unet_batch": batch_size}
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
                out.print(f"written to {train(folder, recipe, pick_device(device), watch)}")
            except OutOfTime:
                out.print("out of time; run the same command to continue")
