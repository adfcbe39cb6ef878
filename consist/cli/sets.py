"""``consist batch --file sets.yaml``: many sets, each in a run folder of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from consist.cli.console import hide_loading_bars, out, progress_bar, say
from consist.cli.engine_options import EngineOptions
from consist.errors import ConsistError
from consist.runs.config import RunConfig
from consist.runs.many.ranks import joined
from consist.runs.many.worklist import take_shard

if TYPE_CHECKING:
    from consist.runs.many.benchmarks import PromptSet
    from consist.runs.many.sets import SetRun

SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, kw_only=True)
class SetsCommand:
    """What the command line says of a file of sets."""

    file: Path
    folder: Path | None
    seeds: Sequence[int]
    same_noise: bool
    engine: EngineOptions
    dry_run: bool
    as_json: bool


def read_sets(file: Path | None, prompts: Sequence[str]) -> list[PromptSet]:
    """The sets of a file; none if it is not one of sets."""
    if file is None or file.suffix not in SUFFIXES:
        return []
    if prompts:
        raise ConsistError(f"prompts were given beside {file}, whose sets have their own")
    from consist.runs.many.benchmarks import load_benchmark

    return load_benchmark(file)


def batch_sets(sets: Sequence[PromptSet], template: RunConfig, command: SetsCommand) -> None:
    """Draws sets as ``template`` says, and reports them."""
    from consist.runs.many.sets import Painter, place_sets, plan_sets

    if len(command.seeds) > 1:
        raise ConsistError("a file of sets takes one seed, which is added to that of every set")
    seed = command.seeds[0] if command.seeds else 0
    noise = command.same_noise
    place = command.folder or place_sets(command.file, template, seed, noise)
    mine = take_shard(sets, command.engine.shard)
    runs = plan_sets(mine, template, place, seed=seed, same_noise=noise)
    if command.dry_run:
        out.print_json(json.dumps([describe(run) for run in runs]))
        return
    with joined(template.device) as ranks:
        engine = command.engine.choose(template.device, ranks)
        with progress_bar("drawing", shown=ranks.leads) as watch:
            hide_loading_bars()
            engine(runs, Painter, watch)
    if ranks.leads:
        report(runs, place, command.as_json)


def describe(run: SetRun) -> dict[str, object]:
    """What would be drawn, and where."""
    return {**run.config.to_json(), "out": str(run.folder.path)}


def report(runs: Sequence[SetRun], place: Path, as_json: bool) -> None:
    """Says what was written and where."""
    if as_json:
        records = [{"folder": str(x.folder.path), **x.folder.read_record()} for x in runs]
        typer.echo(json.dumps(records, ensure_ascii=False))
        return
    for run in runs:
        say(f"{run.folder.grid_path}  {run.config.prompts[0]}, …")
    say(f"{len(runs)} sets in {place}")
