"""What ``scripts/ablate/*.py`` have in common: their options, a bar, and the table.

A script states a question and lists settings; ``ablate`` does the rest.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from consist.cli.console import hide_loading_bars, out, progress_bar, say
from consist.cli.engine_options import ENGINES, choose_engine
from consist.errors import ConsistError
from consist.evaluation.ablation.comparison import Comparison
from consist.evaluation.ablation.measuring import Work, compare_all, measure
from consist.evaluation.ablation.results import Trial, correction, name_cpu, write_results
from consist.evaluation.ablation.settings import HALVES, Setting, choose, split_half
from consist.evaluation.intervals import Interval
from consist.evaluation.judges import load_judges
from consist.evaluation.judges.judge import Judge
from consist.evaluation.scores import QUALITIES, SCORES, Evaluation
from consist.models.devices import describe, pick_device
from consist.models.loading import MINI
from consist.runs.folder import ISOLATED
from consist.runs.many.benchmarks import load_benchmark, select, shorten
from consist.runs.many.ranks import joined
from consist.runs.versions import versions

QUICK_SETS, QUICK_STEPS, QUICK_SETTINGS = 3, 6, 8
WIDTH = 200  # letters of the table where it is written to a file
ENCODERS = ("clip", "clip_i", "dino", "dreamsim", "segmenter")
# of the table, where they were measured; all scores are in the JSON file
COLUMNS = (
    *("identity", "crop", "scene", "background", "other_scene", "overlap", "kernel"),
    *("clip_t", "clip_i_foreground", "clip_i_background", "dino_foreground", "dino_background"),
)

# more numbers for each setting, by its name; from the settings and the options
Costs = Callable[[Sequence[Setting], argparse.Namespace], Mapping[str, Mapping[str, float]]]


def ablate(
    question: str | None,
    settings: Callable[[str], Sequence[Setting]],
    script: str,
    costs: Costs | None = None,
) -> None:
    """Runs a script: draws and measures its settings, prints a table and writes the results.

    They are ``NAME.json`` and ``NAME.svg`` in ``scripts/results`` for ``scripts/ablate/NAME.py``,
    ``NAME-second`` of the second half, ``NAME-2`` of the first two pictures of each set; those of a
    quick try go to the folder of all runs. Nothing is written before all runs are finished, which
    several shards may do together.

    Args:
        question: The docstring of the script.
        settings: Gives them for the name of a model.
        script: Its path.
        costs: Measured when all else is done.
    """
    parser = make_parser(question or "", Path(script))
    options = parser.parse_args()
    hide_loading_bars()
    try:
        answer(question or "", settings(options.model), options, costs)
    except ConsistError as error:
        parser.exit(2, f"error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "stopped. What is finished is kept; the same command continues.\n")


def make_parser(question: str, script: Path) -> argparse.ArgumentParser:
    """The options of all ablations."""
    parser = argparse.ArgumentParser(
        description=question, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a try of minutes: few sets, settings and steps")
    add("--half", choices=HALVES, default=HALVES[0], help="the first explores, the second confirms")
    add("--sets", type=int, help="at most so many sets of the half, spread evenly")
    add("--pictures", type=int, help="at most so many of each set, the first ones")
    add("--only", nargs="+", default=[], metavar="NAME", help="settings to try, by name")
    add("--steps", type=int, help="denoising steps")
    add("--seed", type=int, default=0, help="added to the seed of every set")
    add("--shard", default="1/1", help="draw part I of N only, as I/N")
    add("--engine", choices=ENGINES, default=ENGINES[0], help="who draws and measures")
    add("--address", help="of a Ray cluster; by default one on this machine, for this command")
    add("--workers", type=int, help="processes of Ray; by default one for each GPU")
    add("--model", default=MINI, help="mini, a hub id, a folder or a .safetensors file")
    add("--benchmark", default="mini-sets", help="or a .yaml file in ConsiStory+'s format")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--dtype", default="auto", help="auto, float32, float16 or bfloat16")
    add("--out", type=Path, default=Path("runs/ablations"), help="folder of all runs, to resume")
    add("--results", type=Path, default=script.parents[1] / "results", help="folder of the results")
    add("--reader", action="store_true", help="measure with it, as always with the model mini")
    for name in ENCODERS:
        add(f"--{name.replace('_', '-')}", help="measure with it, as in consist evaluate")
    add("--subject", help="what the segmenter shall find, where a set does not say")
    parser.set_defaults(name=script.stem)
    return parser


def answer(
    question: str,
    settings: Sequence[Setting],
    options: argparse.Namespace,
    costs: Costs | None = None,
) -> None:
    """Draws, measures, compares, prints and writes; see ``ablate``.

    Raises:
        ConsistError: Something cannot be drawn, measured or written.
    """
    chosen = choose(settings, options.only, QUICK_SETTINGS if options.quick else None)
    judging = partial(
        load_judges,
        reader=options.reader or options.model == MINI,
        **{name: getattr(options, name) for name in ENCODERS},
        device=options.device,
    )
    work = plan_work(options, judging())
    with joined(options.device) as ranks, progress_bar("ablating", shown=ranks.leads) as watch:
        given = options.engine, options.address, options.workers, options.device, ranks
        elsewhere = judging if options.engine == "ray" else None
        found = measure(chosen, work, watch, choose_engine(*given), elsewhere)
    if not ranks.leads:
        return
    done, wanted = sum(len(one.runs) for one in found.values()), len(chosen) * len(work.sets)
    if done < wanted:
        say(f"{done} of {wanted} runs are finished; the results wait for the rest")
        return
    trial = Trial(
        question=question,
        comparison=compare_all(chosen, found),
        facts=state(options, work, found[chosen[0].name]),
        costs=costs(chosen, options) if costs else {},
    )
    Console(width=None if out.is_terminal else WIDTH).print(tabulate(trial))
    say(explain(trial.comparison, len(work.sets)))
    about = options.pictures or "", "" if options.half == HALVES[0] else options.half
    name = "-".join(str(part) for part in (options.name, *about) if part)
    for path in write_results(trial, options.out if options.quick else options.results, name):
        say(str(path))


def plan_work(options: argparse.Namespace, judges: Sequence[Judge]) -> Work:
    """The sets, and what all settings are drawn with."""
    limit = options.sets or (QUICK_SETS if options.quick else None)
    sets = select(split_half(load_benchmark(options.benchmark), options.half), limit=limit)
    if options.pictures is not None:
        sets = [shorten(one, options.pictures) for one in sets]
    return Work(
        sets=sets,
        chosen=select(sets, shard=options.shard),
        judges=judges,
        out=options.out,
        base={
            "model": options.model,
            "steps": options.steps or (QUICK_STEPS if options.quick else None),
            "device": options.device,
            "dtype": options.dtype,
        },
        seed=options.seed,
        noun=options.subject,
    )


def state(options: argparse.Namespace, work: Work, evaluation: Evaluation) -> dict[str, Any]:
    """How an ablation was done."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(options.model),
        "hardware": {"device": describe(pick_device(options.device)), "cpu": name_cpu()},
        "benchmark": options.benchmark,
        "half": options.half,
        "seed": options.seed,
        "base": work.base,
        "choices": evaluation.choices,
        "sets": [one.name for one in work.sets],
    }


def tabulate(trial: Trial) -> Table:
    """Settings by what they gain over isolated pictures, numbered as in the plot."""
    comparison = trial.comparison
    names = [name for name in COLUMNS if name in comparison.outcomes[0].gains]
    titles = [{**SCORES, **QUALITIES}[name].title for name in names]
    others = {one.setting.against for one in comparison.outcomes if one.contrasts}
    axes = reversed(comparison.axes or ())
    contrasts = {
        name: f"{SCORES[name].title}, minus {'another' if len(others) > 1 else ''.join(others)}"
        for name in (axes if others else ())
    }
    costs = list(next(iter(trial.costs.values()), {}))
    table = Table("", "setting", *titles, *contrasts.values(), *costs, box=None, title=trial.title)
    for number, one in enumerate(comparison.outcomes, 2):
        cells = [_gain(one.gains[name]) for name in names]
        for name in contrasts:
            other = f"\n{one.setting.against}" if len(others) > 1 else ""
            cells.append(f"{_gain(one.contrasts[name])}{other}" if one.contrasts else "")
        cells += [_number(trial.costs[one.setting.name][name]) for name in costs]
        best = "bold" if one.setting.name in comparison.front else ""
        table.add_row(str(number), Text(one.setting.name), *cells, style=best)
    isolated = (_number(comparison.isolated[name].value) for name in names)
    table.add_row("1", f"{ISOLATED}, itself", *isolated)
    return table


def explain(comparison: Comparison, sets: int) -> str:
    """What the numbers of the table are, and who is on the front."""
    lines = [
        f"{sets} sets; differences to {ISOLATED} pictures of the same noise, paired over sets",
        f"in brackets {correction(comparison)}",
    ]
    if comparison.axes:
        across, up = (SCORES[name].title for name in comparison.axes)
        lines.append(f"front of {up} against {across}, bold: {', '.join(comparison.front)}")
    return "\n".join(lines)


def _gain(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "-"
    low, high = (_number(end, "+") for end in (interval.low, interval.high))
    return f"{_number(interval.value, '+')}\n\\[{low} {high}]"


def _number(value: float, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{sign}.3f}"
