"""Where the subject is: in the leading singular directions, or in what pictures have in common?

    python scripts/measure/subjects.py --quick           # a try of a minute
    python scripts/measure/subjects.py                   # 20 sets of the first half

Pictures are drawn without sharing, and the reader says where their subjects are. Then, for the
keys and values of each self-attention layer:

- what ``keep``, the best approximation of a rank, keeps of the energy of the subject's tokens,
  and of the others: the published idea is that small singular values are the background's, so
  that a subject keeps more. Pooled over the pictures of a set, centered, each head by itself.
- how well tokens are told apart by the energy they have in the leading direction, and by how near
  they come to some token of every other picture (``consist.attention.common_tokens``): the area
  under the ROC curve, 0.5 for guessing.

And for the masks that methods use while they draw, at some steps: intersection over union with
the subject that the finished picture shows, for masks from words (``sdsa``), and from
matches (``spectral``). Subject pixels of a picture are area-averaged onto the grid and cut at half.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from rich.console import Console
from rich.table import Table
from torch import Tensor

from consist.attention.common_tokens import match
from consist.attention.method import MATCHES, WORDS, Site
from consist.cli.console import hide_loading_bars, progress_bar
from consist.evaluation.ablation.known_masks import find_subjects
from consist.evaluation.ablation.results import name_cpu
from consist.evaluation.ablation.settings import split_half
from consist.evaluation.judges import load_judges
from consist.files import write_atomically
from consist.models.loading import MINI, Model, load
from consist.runs.chunks import plan
from consist.runs.drawing import Batch, draw
from consist.runs.many.benchmarks import PromptSet, load_benchmark, select
from consist.runs.many.sets import configure
from consist.runs.preparing import prepare
from consist.runs.versions import versions

STEPS = 25
PROBED = (0.1, 0.3, 0.6)  # progress at which keys and values are looked at
SHOWN = (0.05, 0.1, 0.2, 0.4, 0.8)  # progress at which masks are compared
RULES = {"rank 5 %": 0.05, "rank 10 %": 0.1, "rank 25 %": 0.25, "energy 0.95": 0.95}
ENERGY = "energy"

Means = dict[tuple[str, ...], list[float]]


@dataclass
class Listener:
    """A method that shares nothing, and keeps what it is told: keys, values and masks."""

    masks: str  # where they are from
    subject: tuple[str, ...]
    kept: dict[tuple[str, float], tuple[Tensor, Tensor, tuple[int, int]]] = field(
        default_factory=dict
    )
    told: dict[tuple[float, tuple[int, int]], Tensor] = field(default_factory=dict)

    def covers(self, layer: str) -> bool:
        return True

    def anchor_count(self, images: int) -> int:
        return images

    def anchor_images(self, site: Site) -> tuple[int, ...]:
        return ()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> None:
        grid = site.height, site.width
        if (when := nearest(site.progress, PROBED)) is not None:
            self.kept[site.layer, when] = k[-site.n :].cpu(), v[-site.n :].cpu(), grid
        when = nearest(site.progress, SHOWN)
        if when is not None and site.masks is not None:
            self.told[when, grid] = site.masks.any(1)


def nearest(progress: float, wanted: tuple[float, ...]) -> float | None:
    """The wanted progress that this step is the one for."""
    return next((p for p in wanted if abs(progress - p) < 0.5 / STEPS), None)


def watch_set(model: Model, one: PromptSet, means: Means, judges: Any) -> None:
    """Draws a set, and adds what it shows to ``means``."""
    config = configure(one, {"model": MINI, "steps": STEPS, "method": {"name": "sdsa"}})
    count = len(config.prompts)
    subject = tuple(config.method["subject"])
    (chunk,) = plan(count, count)
    settings = prepare(model, config)
    for kind in (WORDS, MATCHES):
        listener = Listener(kind, subject)
        images = draw(
            Batch(pipe=model.pipe, config=config, settings=settings, chunk=chunk, method=listener)
        )
        pixels = find_subjects(judges, images, ())[:, 0].float()
        if kind == WORDS:
            for (layer, _), (k, v, grid) in listener.kept.items():
                for name, x in (("K", k), ("V", v)):
                    look(x, shrink(pixels, grid), means, (layer, name))
        for (when, grid), mask in listener.told.items():
            subjects = shrink(pixels, grid)
            both = (mask & subjects).sum(1) / (mask | subjects).sum(1).clamp_min(1)
            place = "mask", kind, f"{grid[0]} x {grid[1]}", f"{when:g}"
            means[place].append(float(both.mean()))


def shrink(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """The tokens ``(n, l)`` of a grid that are subject by half, from its pixels ``(n, h, w)``."""
    return F.interpolate(pixels[:, None], grid, mode="area").flatten(1) >= 0.5


def look(x: Tensor, subject: Tensor, means: Means, place: tuple[str, str]) -> None:
    """Adds what the tokens ``n h l d`` of a layer show; ``subject`` is bool ``(n, l)``."""
    tokens = rearrange(x, "n h l d -> h (n l) d").double()
    tokens = tokens - tokens.mean(1, keepdim=True)
    _, s, v = torch.linalg.svd(tokens, full_matrices=False)
    energies = (tokens @ v.mT).square()  # h (n l) r
    inside = subject.flatten()
    for rule, share in RULES.items():
        cut = energy_rank(s, share) if rule.startswith(ENERGY) else rank(s, share)
        kept = torch.arange(s.shape[1]) < cut[:, None]
        for name, rows in (("subject", inside), ("rest", ~inside)):
            part = energies[:, rows]
            value = (part * kept[:, None]).sum() / part.sum()
            means[(*place, rule, name)].append(float(value))
    leading = (energies[..., 0] / energies.sum(-1).clamp_min(1e-12)).mean(0)
    means[(*place, "leading")].append(roc_area(leading, inside))
    keys = rearrange(x, "n h l d -> n l (h d)")
    nearness = match(keys, keys, range(len(keys)))
    areas = [roc_area(row, mask) for row, mask in zip(nearness, subject, strict=True)]
    means[(*place, "in common")].append(float(np.nanmean(areas)))


def rank(s: Tensor, share: float) -> Tensor:
    """How many singular values ``(h, r)`` are a share of them, at least one."""
    return torch.full((len(s),), max(1, math.ceil(share * s.shape[1])))


def energy_rank(s: Tensor, share: float) -> Tensor:
    """How many singular values ``(h, r)`` have a share of the energy."""
    below = s.square().cumsum(1) < share * s.square().sum(1, keepdim=True)
    return below.sum(1) + 1


def roc_area(score: Tensor, positive: Tensor) -> float:
    """The chance that a positive has a higher score than a negative; NaN without both."""
    ranks = score.argsort().argsort().double() + 1
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        return math.nan
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


def tabulate(found: dict[tuple[str, ...], float]) -> list[Table]:
    """What was found, layers and masks."""
    rules = [f"{rule}\nsubject / rest" for rule in RULES]
    layers = Table("layer", "", *rules, "leading\nROC area", "in common\nROC area", box=None)
    for layer, name in dict.fromkeys(key[:2] for key in found if key[0] != "mask"):
        kept = (
            f"{found[layer, name, rule, 'subject']:.2f} / {found[layer, name, rule, 'rest']:.2f}"
            for rule in RULES
        )
        areas = (f"{found[layer, name, score]:.2f}" for score in ("leading", "in common"))
        layers.add_row(layer.split(".transformer_blocks")[0], name, *kept, *areas)
    grids = Table("masks", "grid", *(f"{when:.0%}" for when in SHOWN), box=None)
    for _, name, size, _ in dict.fromkeys((*key[:3], "") for key in found if key[0] == "mask"):
        values = (found.get(("mask", name, size, f"{when:g}"), math.nan) for when in SHOWN)
        grids.add_row(name, size, *(f"{value:.2f}" for value in values))
    return [layers, grids]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="4 sets; nothing is written")
    parser.add_argument("--sets", type=int, default=20, help="of the first half, spread evenly")
    options = parser.parse_args()
    hide_loading_bars()
    # one subject each, so that all masks are of the same thing
    alone = [one for one in load_benchmark("mini-sets") if "pair" not in one.tags]
    sets = select(split_half(alone, "first"), limit=4 if options.quick else options.sets)
    model, judges = load(MINI), load_judges(reader=True)
    means: Means = defaultdict(list)
    with progress_bar("drawing") as watch:
        for number, one in enumerate(sets):
            watch(number, len(sets))
            watch_set(model, one, means, judges)
    found = {key: float(np.nanmean(values)) for key, values in means.items()}
    for table in tabulate(found):
        Console(width=160).print(table)
    if not options.quick:
        facts = {
            "command": shlex.join(["python", *sys.argv]),
            "versions": versions(MINI),
            "hardware": name_cpu(),
            "sets": [one.name for one in sets],
            "steps": STEPS,
            "progress": {"layers": PROBED, "masks": SHOWN},
            "found": {" | ".join(key): round(value, 4) for key, value in found.items()},
        }
        path = Path(__file__).parents[1] / "results" / "subjects.json"
        text = json.dumps(facts, indent=1) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    main()
