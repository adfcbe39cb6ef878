"""The command line: it parses, calls one function and prints.

Heavy imports wait for the command that needs them.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
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
    from consist.benchmarks import PromptSet
    from consist.run import RunFolder
    from consist.scores import Evaluation, Summary

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

BENCHMARK = "Drawing a benchmark"
ARROWS = {1: "↑", -1: "↓", 0: ""}
ENCODERS = "Encoders, by hub id or folder"
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


ModelName = Annotated[str, typer.Option(help="mini, a hub id, a folder or a .safetensors file.")]
MethodName = Annotated[
    str, typer.Option(help="What is shared: spectral, shared, sdsa, agreement, notch or isolated.")
]
Keys = Annotated[
    str | None,
    typer.Option(help="Spectrum of the keys, such as 'energy:0.95' or 'log|fraction:0.1'."),
]
Values = Annotated[str | None, typer.Option(help="Spectrum of the values.")]
Anchors = Annotated[
    str | None, typer.Option(help="Images that are shared: all, random, or the first N.")
]
Strength = Annotated[
    float | None, typer.Option(help="Weight of a shared token against an own one.")
]
Fields = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other field of the method, such as pool=all."),
]
Steps = Annotated[int | None, typer.Option(help="Denoising steps.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale.")]
Device = Annotated[str, typer.Option(help="auto, cuda, mps or cpu.", rich_help_panel=WHERE)]
Dtype = Annotated[
    str, typer.Option(help="auto, float32, float16 or bfloat16.", rich_help_panel=WHERE)
]
Backend = Annotated[
    str, typer.Option(help="Version of attention: see 'consist doctor'.", rich_help_panel=WHERE)
]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Pictures in memory at a time, anchors included.", rich_help_panel=WHERE),
]


@app.command()
def batch(
    prompts: Annotated[list[str] | None, typer.Argument(help="One prompt per picture.")] = None,
    file: Annotated[Path | None, typer.Option(help="A text file with one prompt per line.")] = None,
    model: ModelName = "mini",
    method: MethodName = "spectral",
    keys: Keys = None,
    values: Values = None,
    anchors: Anchors = None,
    strength: Strength = None,
    subject: Annotated[
        list[str] | None,
        typer.Option(help="Words of the prompts that name the subject; may be repeated."),
    ] = None,
    set_: Fields = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="One seed (then +1 per picture), or one per picture.")
    ] = None,
    same_noise: Annotated[
        bool, typer.Option("--same-noise", help="Start all pictures from the same noise.")
    ] = False,
    steps: Steps = None,
    guidance: Guidance = None,
    negative: Annotated[str, typer.Option(help="What the pictures should not show.")] = "",
    size: Annotated[
        str | None, typer.Option(help="Pixels, as 512 or 768x512 (width x height).")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Such as ddim, euler or dpm++.")] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="A LoRA, FILE or FILE:WEIGHT; may be repeated.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    batch_size: BatchSize = None,
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
        names = {"subject": subject} if subject else {}
        config = RunConfig(
            prompts=texts,
            seeds=spread_seeds(tuple(seed or [0]), len(texts), same_noise),
            model=model,
            method={"name": method, **names, **parse_fields(given, set_ or [])},
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
    with progress_bar("drawing") as watch:
        from consist.generate import generate

        hide_loading_bars()
        return generate(config, folder, watch)


@contextmanager
def progress_bar(doing: str) -> Iterator[Callable[[float, int], None]]:
    """A bar that is told how much is done (fractions count), and how much there is."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        task: TaskID = progress.add_task("loading", total=None, state="")

        def watch(done: float, count: int) -> None:
            state = f"{int(done)} of {count}"
            progress.update(task, description=doing, completed=done, total=count, state=state)

        yield watch


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


# what says nothing without --benchmark
DRAWN = (
    *("tag", "limit", "shard", "model", "method", "keys", "values", "anchors", "strength", "set_"),
    *("steps", "guidance", "seed", "dtype", "backend", "batch_size", "isolated"),
)


@app.command()
def evaluate(
    context: typer.Context,
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or folders of run folders.")
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            help="Draw and measure these sets: mini-sets or a .yaml file in ConsiStory+'s format.",
            rich_help_panel=BENCHMARK,
        ),
    ] = None,
    tag: Annotated[
        str | None, typer.Option(help="Only sets with this tag.", rich_help_panel=BENCHMARK)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="At most so many sets.", rich_help_panel=BENCHMARK)
    ] = None,
    shard: Annotated[
        str,
        typer.Option(help="Draw part I of N only, as I/N.", rich_help_panel=BENCHMARK),
    ] = "1/1",
    model: ModelName = "mini",
    method: MethodName = "spectral",
    keys: Keys = None,
    values: Values = None,
    anchors: Anchors = None,
    strength: Strength = None,
    set_: Fields = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Annotated[int, typer.Option(help="Added to the seed of every set.")] = 0,
    isolated: Annotated[
        Path | None,
        typer.Option(
            help="Folder of another --benchmark; rows without sharing that fit are copied.",
            rich_help_panel=BENCHMARK,
        ),
    ] = None,
    reader: Annotated[
        bool | None,
        typer.Option(help="The reader of the mini world; by default for the model mini."),
    ] = None,
    clip: Annotated[str | None, typer.Option(help="For CLIP-T.", rich_help_panel=ENCODERS)] = None,
    clip_i: Annotated[
        str | None, typer.Option(help="For CLIP-I.", rich_help_panel=ENCODERS)
    ] = None,
    dino: Annotated[str | None, typer.Option(help="For DINO.", rich_help_panel=ENCODERS)] = None,
    dreamsim: Annotated[
        str | None, typer.Option(help="Kind of DreamSim: ensemble, …", rich_help_panel=ENCODERS)
    ] = None,
    segmenter: Annotated[
        str | None,
        typer.Option(help="CLIPSeg, to measure subject and background.", rich_help_panel=ENCODERS),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(help="What the segmenter shall find.", rich_help_panel=ENCODERS),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    batch_size: BatchSize = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Where the summary goes; with --benchmark the folder of all runs.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    redo: Annotated[
        bool, typer.Option("--redo", help="Measure again what was measured before.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Measure consistency, beside the same run without sharing.

    consist evaluate runs/cat
    consist evaluate --benchmark mini-sets --method spectral
    """
    with plain_failures("What is finished is kept; the same command continues."):
        check_purpose(context, runs, benchmark)
        named = {"keys": keys, "values": values, "anchors": anchors, "strength": strength}
        settings = {
            "model": model,
            "method": {"name": method, **parse_fields(named, set_ or [])},
            "steps": steps,
            "guidance": guidance,
            "device": device,
            "dtype": dtype,
            "backend": backend,
            "batch_size": batch_size,
        }
        encoders = {
            "clip": clip,
            "clip_i": clip_i,
            "dino": dino,
            "dreamsim": dreamsim,
            "segmenter": segmenter,
        }
        sets, chosen = read_sets(benchmark, tag, limit, shard) if benchmark else ([], [])
        with progress_bar("measuring") as watch:
            from consist.evaluate import default_out, evaluate_benchmark, evaluate_runs
            from consist.judges import load_judges
            from consist.models import MINI
            from consist.run import find_runs
            from consist.scores import SUMMARY, write_summary

            hide_loading_bars()
            folders = [run for path in runs or [] for run in find_runs(path)]
            models = {one.read_config().model for one in folders} or {model}
            if reader is None:
                reader = models == {MINI}
            judges = load_judges(reader=reader, **encoders, device=device)
            if benchmark:
                place = folder or default_out(benchmark, settings, seed)
                evaluation = evaluate_benchmark(
                    sets,
                    judges,
                    place,
                    settings,
                    chosen=chosen,
                    seed=seed,
                    noun=subject,
                    isolated=isolated,
                    redo=redo,
                    watch=watch,
                )
                write_summary(place / SUMMARY, evaluation)
            else:
                evaluation = evaluate_runs(folders, judges, noun=subject, redo=redo, watch=watch)
                if folder:
                    write_summary(folder, evaluation)
        if as_json:
            typer.echo(json.dumps(evaluation.to_json(), ensure_ascii=False))
        else:
            show_evaluation(evaluation)


def read_sets(
    benchmark: str, tag: str | None, limit: int | None, shard: str
) -> tuple[list[PromptSet], list[PromptSet]]:
    """All sets of a benchmark, and those to draw now."""
    from consist.benchmarks import load_benchmark, select

    sets = load_benchmark(benchmark)
    return sets, select(sets, tag=tag, limit=limit, shard=shard)


def check_purpose(context: typer.Context, runs: list[Path] | None, benchmark: str | None) -> None:
    """Makes sure that either runs or a benchmark was given, with options that fit."""
    if bool(runs) == bool(benchmark):
        raise ConsistError("give either run folders or --benchmark")
    if not benchmark:
        for name in DRAWN:
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                option = f"--{name.strip('_').replace('_', '-')}"
                raise ConsistError(f"{option} goes with --benchmark; runs are drawn as they were")


def show_evaluation(evaluation: Evaluation) -> None:
    """Prints the scores of all sets, and the identity agreement of the sets of each tag."""
    from consist.scores import QUALITIES, SCORES

    columns = ("sets", "with", "without", "difference")
    table = Table("score", "", *columns, box=None, padding=(0, 1))
    for name, summary in {**evaluation.scores, **evaluation.quality}.items():
        if summary.value.sets:
            score = {**SCORES, **QUALITIES}[name]
            table.add_row(score.title, ARROWS[score.better], *cells(summary))
    out.print(table)
    if "identity" in evaluation.scores:
        table = Table("identity", *columns, "world", "model", box=None, padding=(0, 1))
        for tag, scores in {"": evaluation.scores, **evaluation.tags}.items():
            levels = (number(evaluation.chance[tag][name]) for name in ("world", "measured"))
            table.add_row(tag or "all", *cells(scores["identity"]), *levels)
        out.print("", table)
        out.print("world, model: agreement of unrelated subjects that are described alike")
    say(f"{len(evaluation.runs)} runs, with and without sharing; in brackets 95 % intervals")


def cells(summary: Summary) -> tuple[str, ...]:
    """Sets, both rows, and the difference with its interval."""
    gap = summary.difference
    difference = f"{number(gap.value, '+')} [{number(gap.low, '+')} {number(gap.high, '+')}]"
    values = (number(summary.value.value), number(summary.isolated.value))
    return str(gap.sets), *values, difference


def number(value: float, sign: str = "") -> str:
    """Three decimals; a dash for what is not known."""
    return "-" if math.isnan(value) else f"{value:{sign}.3f}"


@app.command("report")
def write_page(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of run folders.")],
    page: Annotated[
        Path, typer.Option("--out", help="The page; a Markdown table is written beside it.")
    ] = Path("report.html"),
) -> None:
    """Write one HTML page about runs: scores, plots and pictures, with and without sharing.

    consist report runs/cat
    """
    with plain_failures():
        from consist.report import write_report
        from consist.run import find_runs
        from consist.scores import SUMMARY, read_summary

        folders = [run for path in runs for run in find_runs(path)]
        summaries = [path / SUMMARY for path in runs if (path / SUMMARY).exists()]
        say(f"{write_report(folders, page, [read_summary(path) for path in summaries])}")


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
