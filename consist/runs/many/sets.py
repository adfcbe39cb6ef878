"""Many sets of prompts: each a run in a folder of its own, a task for any engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from consist.methods import build
from consist.mini.prompts import asked
from consist.runs.config import OF_SET, RunConfig, spread_seeds
from consist.runs.drawing import generate
from consist.runs.folder import RunFolder
from consist.runs.loading import SharedModel
from consist.runs.many.benchmarks import PromptSet
from consist.runs.many.worklist import Watch
from consist.settings.fields import marked


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
    own = marked(RunConfig, OF_SET)
    settings = {name: x for name, x in template.to_json().items() if name not in own}
    return default_out(str(file), {**settings, "same_noise": same_noise}, seed)


class Painter:
    """Draws one run after another with a model that is loaded once: the ``Worker`` of sets."""

    def __init__(self) -> None:
        self.model_for = SharedModel()

    def __call__(self, run: SetRun, watch: Watch) -> None:
        """Draws a run, or what it lacks."""
        generate(run.config, run.folder.path, watch, self.model_for)


def configure(one: PromptSet, settings: Mapping[str, Any], seed: int = 0) -> RunConfig:
    """The run that draws a set with and without sharing."""
    seeds = spread_seeds((one.seed + seed,), len(one.prompts))
    told = {**settings, "method": tell_subject(settings["method"], one)}
    return RunConfig(prompts=one.prompts, seeds=seeds, compare=True, **told)


def tell_subject(method: Mapping[str, Any], one: PromptSet) -> dict[str, Any]:
    """The settings of a method; where it must know the subject and does not, with that of a set.

    A set that does not name it has as its subject whatever of the mini world its prompts ask for:
    what they start with, a style or two animals, does not always tell.
    """
    built = build(method)
    if not built.wants_subject or built.subject:
        return dict(method)
    wanted = (subject.subject for prompt in one.prompts for subject in asked(prompt).subjects)
    phrases = [one.subject] if one.subject else list(dict.fromkeys(wanted))
    return {**method, "subject": phrases} if phrases else dict(method)


def default_out(benchmark: str, settings: Mapping[str, Any], seed: int = 0) -> Path:
    """A folder named after all settings: the same command, the same folder."""
    text = json.dumps({**settings, "seed": seed}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Path("runs") / f"{Path(benchmark).stem}-{settings['method']['name']}-{digest[:8]}"
