"""``consist evaluate`` and ``consist report``: runs to numbers, and to a page."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from consist.cli.console import hide_loading_bars, out, plain_failures, progress_bar, say
from consist.cli.engine_options import MANY, EngineOptions
from consist.cli.from_fields import options, read, takes
from consist.cli.options import MethodOptions, refuse_given
from consist.errors import ConsistError
from consist.runs.config import SHARED, WHERE, RunConfig
from consist.runs.many.ranks import joined

if TYPE_CHECKING:
    from consist.evaluation.scores import Evaluation, Summary
    from consist.runs.many.benchmarks import PromptSet

BENCHMARK = "Drawing a benchmark"
ENCODERS = "Encoders, by hub id or folder"
ARROWS = {1: "↑", -1: "↓", 0: ""}
# what says nothing without --benchmark
OF_BENCHMARK = ("tag", "limit", "seed", "isolated")


drawing = partial(typer.Option, rich_help_panel=BENCHMARK)
encoder = partial(typer.Option, rich_help_panel=ENCODERS)


@takes(
    options(MethodOptions),
    options(RunConfig, ("model", "steps", "guidance"), panel=BENCHMARK),
    options(RunConfig, ("device", "dtype", "backend", "batch_size")),
    options(EngineOptions),
    panels=(BENCHMARK, SHARED, ENCODERS, WHERE, MANY),
)
def evaluate(
    context: typer.Context,
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or folders of run folders.")
    ] = None,
    benchmark: Annotated[
        str | None,
        drawing(
            help="Draw and measure these sets: mini-sets or a .yaml file in ConsiStory+'s format."
        ),
    ] = None,
    tag: Annotated[str | None, drawing(help="Only sets with this tag.")] = None,
    limit: Annotated[int | None, drawing(help="At most so many sets; by default all.")] = None,
    seed: Annotated[
        int,
        drawing(help="Added to the seed of every set."),
    ] = 0,
    isolated: Annotated[
        Path | None,
        drawing(help="Folder of another --benchmark; rows without sharing that fit are copied."),
    ] = None,
    reader: Annotated[
        bool | None,
        typer.Option(help="The reader of the mini world; by default for the model mini."),
    ] = None,
    clip: Annotated[str | None, encoder(help="For CLIP-T.")] = None,
    clip_i: Annotated[str | None, encoder(help="For CLIP-I.")] = None,
    dino: Annotated[str | None, encoder(help="For DINO.")] = None,
    dreamsim: Annotated[str | None, encoder(help="Kind of DreamSim: ensemble, …")] = None,
    segmenter: Annotated[
        str | None,
        encoder(help="CLIPSeg, to measure subject and background."),
    ] = None,
    subject: Annotated[
        str | None,
        encoder(help="What the segmenter shall find."),
    ] = None,
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
    **given: Any,
) -> None:
    """Measure consistency, beside the same run without sharing.

    consist evaluate runs/cat
    consist evaluate --benchmark mini-sets --method spectral
    """
    with plain_failures("What is finished is kept; the same command continues."):
        check_purpose(context, runs, benchmark, given)
        run, engine = read(RunConfig, given), EngineOptions(**read(EngineOptions, given))
        device = run["device"]
        method = MethodOptions(**read(MethodOptions, given))
        settings = {**run, "method": method.settings()}
        encoders = {
            "clip": clip,
            "clip_i": clip_i,
            "dino": dino,
            "dreamsim": dreamsim,
            "segmenter": segmenter,
        }
        sets, chosen = read_sets(benchmark, tag, limit, engine.shard) if benchmark else ([], [])
        with joined(device) as ranks, progress_bar("measuring", shown=ranks.leads) as watch:
            from consist.evaluation.evaluate import evaluate_benchmark, evaluate_runs
            from consist.evaluation.judges import load_judges
            from consist.evaluation.scores import SUMMARY, write_summary
            from consist.models.loading import MINI
            from consist.runs.folder import find_runs
            from consist.runs.many.sets import default_out

            hide_loading_bars()
            have_done = engine.choose(device, ranks)
            folders = [run for path in runs or [] for run in find_runs(path)]
            models = {one.read_config().model for one in folders} or {run["model"]}
            if reader is None:
                reader = models == {MINI}
            judging = partial(load_judges, reader=reader, **encoders, device=device)
            judges = judging()
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
                    engine=have_done,
                    judging=judging if engine.engine == "ray" else None,
                )
                if ranks.leads:
                    write_summary(place / SUMMARY, evaluation)
            else:
                evaluation = evaluate_runs(folders, judges, noun=subject, redo=redo, watch=watch)
                if folder:
                    write_summary(folder, evaluation)
        if not ranks.leads:
            return
        if as_json:
            typer.echo(json.dumps(evaluation.to_json(), ensure_ascii=False))
        else:
            show_evaluation(evaluation)


def read_sets(
    benchmark: str, tag: str | None, limit: int | None, shard: str
) -> tuple[list[PromptSet], list[PromptSet]]:
    """All sets of a benchmark, and those to draw now."""
    from consist.runs.many.benchmarks import load_benchmark, select

    sets = load_benchmark(benchmark)
    return sets, select(sets, tag=tag, limit=limit, shard=shard)


def check_purpose(
    context: typer.Context, runs: list[Path] | None, benchmark: str | None, given: dict[str, Any]
) -> None:
    """Makes sure that either runs or a benchmark was given, with options that fit."""
    if bool(runs) == bool(benchmark):
        raise ConsistError("give either run folders or --benchmark")
    if not benchmark:
        drawn = [*OF_BENCHMARK, *(name for name in given if name != "device")]
        refuse_given(context, drawn, "goes with --benchmark; runs are drawn as they were")


def show_evaluation(evaluation: Evaluation) -> None:
    """Prints the scores of all sets, and the identity agreement of the sets of each tag."""
    from consist.evaluation.scores import QUALITIES, SCORES

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
            table.add_row(Text(tag or "all"), *cells(scores["identity"]), *levels)
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
        from consist.evaluation.report import write_report
        from consist.evaluation.scores import SUMMARY, read_summary
        from consist.runs.folder import find_runs

        folders = [run for path in runs for run in find_runs(path)]
        summaries = [path / SUMMARY for path in runs if (path / SUMMARY).exists()]
        say(f"{write_report(folders, page, [read_summary(path) for path in summaries])}")
