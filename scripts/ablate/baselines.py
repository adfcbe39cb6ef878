"""All methods with their defaults: what they gain over isolated pictures, and what they cost.

All are compared with the default one, beside the isolated pictures.

    python scripts/ablate/baselines.py --quick         # a try of minutes
    python scripts/ablate/baselines.py                 # all sets of the first half
    python scripts/ablate/baselines.py --half second   # the table to quote

Time and memory are ratios to drawing the same pictures isolated: time is the median over rounds
in which all take turns, so that a machine whose speed drifts treats them alike; memory is what
drawing adds to a fresh process over the loaded model.
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing import get_context

import torch

from consist.cli.ablation import ablate
from consist.evaluation.ablation.settings import Setting
from consist.methods import METHODS, build, spell_out
from consist.models.loading import Model, load
from consist.runs.chunks import plan
from consist.runs.config import DEFAULT_METHOD, RunConfig
from consist.runs.drawing import Batch, draw
from consist.runs.folder import ISOLATED
from consist.runs.many.benchmarks import load_benchmark
from consist.runs.many.sets import configure
from consist.runs.memory import grown_mib
from consist.runs.preparing import prepare

STEPS, ROUNDS = 6, 5  # of each drawing whose cost is measured


# settings where a default does not fit: `mini` reads 38 tokens, less than five prompts in one
FITTING = {"one-prompt": {"frames": 2}}


def settings(model: str) -> list[Setting]:
    methods = {name: {"name": name, **FITTING.get(name, {})} for name in METHODS}
    return [
        Setting(
            name=name,
            method=method,
            group=name,
            against="" if name == DEFAULT_METHOD else DEFAULT_METHOD,
        )
        for name, method in methods.items()
        if name != ISOLATED
    ]


def measure_costs(
    settings: Sequence[Setting], options: argparse.Namespace
) -> Mapping[str, Mapping[str, float]]:
    base = {"model": options.model, "device": options.device, "dtype": options.dtype}
    one = load_benchmark(options.benchmark)[0]
    alone = Setting(name=ISOLATED, method={"name": ISOLATED})
    configs = {
        setting.name: configure(one, {**base, "steps": STEPS, "method": spell_out(setting.method)})
        for setting in (alone, *settings)
    }
    model = load(options.model, options.device, options.dtype)
    for config in configs.values():
        draw_once(model, replace(config, steps=1))
    rounds = [
        {name: timed(model, config) for name, config in configs.items()}
        for _ in range(1 if options.quick else ROUNDS)
    ]
    with get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
        peaks = dict(zip(configs, fresh.map(peak_mib, configs.values(), 1), strict=True))
    return {
        setting.name: {
            "time": statistics.median(one[setting.name] / one[ISOLATED] for one in rounds),
            "memory": peaks[setting.name] / peaks[ISOLATED],
        }
        for setting in settings
    }


def draw_once(model: Model, config: RunConfig) -> None:
    count, method = len(config.prompts), build(config.method)
    (chunk,) = plan(count, method.anchor_count(count))
    settings = prepare(model, config)
    draw(Batch(pipe=model.pipe, config=config, settings=settings, chunk=chunk, method=method))
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(model: Model, config: RunConfig) -> float:
    started = time.perf_counter()
    draw_once(model, config)
    return time.perf_counter() - started


def peak_mib(config: RunConfig) -> float:
    """Memory that drawing adds to a fresh process over the loaded model."""
    model = load(config.model, config.device, config.dtype)
    return grown_mib(lambda: draw_once(model, config))


if __name__ == "__main__":
    ablate(__doc__, settings, __file__, measure_costs)
