"""Many sets of prompts: each a run in a folder of its own, a task for any engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from consist.evaluation.evaluate import SharedModel, default_out, tell_subject
from consist.runs.config import RunConfig, spread_seeds
from consist.runs.drawing import generate
from consist.runs.folder import RunFolder
from consist.runs.many.benchmarks import PromptSet
from consist.runs.many.worklist import Watch

# what a set has of its own, or what leaves its pictures as they are
OF_SETS = {"prompts", "seeds", "compare"}


@dataclass(frozen=True, kw_only=True)
class SetRun:
    """A set that is to be drawn."""

    config: RunConfig
    folder: RunFolder


def plan_sets(
    sets: Sequence[PromptSet],
    template: RunConfig,
    out: Path,
    *,
    seed: int = 0,
    same_noise: bool = False,
) -> list[SetRun]:
    """The runs that draw sets, each in a folder in ``out`` by the name of the set.

    Args:
        sets: Of different names.
        template: All but prompts and seeds; a method that asks for the subject is told it.
        out: The folder of all runs.
        seed: Added to the seed of every set.
        same_noise: All pictures of a set have its seed.
    """
    runs = []
    for one in sets:
        seeds = spread_seeds((one.seed + seed,), len(one.prompts), same_noise)
        method = tell_subject(template.method, one)
        config = replace(template, prompts=one.prompts, seeds=seeds, method=method)
        runs.append(SetRun(config=config, folder=RunFolder(out / one.name)))
    return runs


def place_sets(file: Path, template: RunConfig, seed: int, same_noise: bool) -> Path:
    """Where the runs of a file lie by default: the same command, the same folder."""
    settings = {name: x for name, x in template.to_json().items() if name not in OF_SETS}
    return default_out(str(file), {**settings, "same_noise": same_noise}, seed)


class Painter:
    """Draws one run after another with a model that is loaded once: the ``Worker`` of sets."""

    def __init__(self) -> None:
        self.model_for = SharedModel()

    def __call__(self, run: SetRun, watch: Watch) -> None:
        """Draws a run, or what it lacks."""
        generate(run.config, run.folder.path, watch, self.model_for)
