"""Can any spectrum do what masks do? Singular values reweighted as well as learning can.

    python scripts/ablate/learn_spectrum.py --quick           # a try of minutes; nothing is written
    python scripts/ablate/learn_spectrum.py                   # the table to quote

Hypothesis: with the right weight for each singular value, attention to all tokens of the anchors
gives what attention to the tokens of their subjects gives. Refuted if the best weights leave most
of the distance between the two, or bring no more than one number for all tokens, the strength.

Sets are drawn without sharing, and the reader says where their subjects are. The target is what
each self-attention layer of the decoder would put out, at some steps, if every image saw the
subjects of the others, each token of which weighs four times as much as an own one. Learned are,
for each layer, a weight for each singular value of the keys and of the values (pooled, centered,
each head by itself, by rank) and the strength, by gradient descent on some sets. The table is of
other sets: the squared distance to the target, as a share of the distance at which attention
without sharing is. Rules by name have the strength that suits them best, too.

Then pictures of the second half of the benchmark, with the learned weights in the UNet.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from consist.attention.bank import Bank, attend, pack
from consist.attention.method import Method, Site
from consist.cli.console import hide_loading_bars, progress_bar
from consist.evaluation.ablation.known_masks import find_subjects
from consist.evaluation.ablation.results import name_cpu
from consist.evaluation.ablation.settings import split_half
from consist.evaluation.intervals import bootstrap_difference
from consist.evaluation.judges import load_judges
from consist.evaluation.judges.judge import Judge, Row
from consist.files import write_atomically
from consist.methods import build
from consist.methods.shared import Shared
from consist.models.loading import MINI, Model, load
from consist.runs.chunks import plan
from consist.runs.drawing import Batch, draw
from consist.runs.many.benchmarks import PromptSet, load_benchmark, select
from consist.runs.many.sets import configure
from consist.runs.preparing import prepare
from consist.runs.versions import versions
from consist.spectra.decomposition import decompose, filter_matrix, weights_of
from consist.spectra.rules import parse_spectrum

STEPS = 12
PROBED = (0.1, 0.3, 0.6)  # progress at which attention is looked at
UPDATES, RATE = 300, 0.03
TARGET_STRENGTH = 4.0  # weight of a token of a subject against an own one
# spectra, each with the strength that suits it best
PARTS = ("keys", "values")
PUBLISHED = "K energy:0.95, V log"
RULES = {
    PUBLISHED: ("energy:0.95", "log"),
    "KV energy:0.95": ("energy:0.95", "energy:0.95"),
    "KV count:2": ("count:2", "count:2"),
    "KV count:8": ("count:8", "count:8"),
    "V log": ("identity", "log"),
    "KV log": ("log", "log"),
}
# which weights are learned, those of the keys and those of the values, beside the strength
LEARNED = {
    "all tokens": (False, False),
    "learned K": (True, False),
    "learned V": (False, True),
    "learned KV": (True, True),
}
SHOWN = ("identity", "crop", "scene", "background")  # scores of pictures


# what is looked at


@dataclass
class Listener(Method):
    """A method that shares nothing, and keeps queries, keys and values of the decoder."""

    kept: dict[str, list[tuple[Tensor, Tensor, Tensor, tuple[int, int]]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def covers(self, layer: str) -> bool:
        return Shared().covers(layer)

    def anchor_count(self, images: int) -> int:
        return images

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> None:
        if any(abs(site.progress - when) < 0.5 / STEPS for when in PROBED):
            conditional = (x[-site.n :].float() for x in (q, k, v))
            self.kept[site.layer].append((*conditional, (site.height, site.width)))


@dataclass(frozen=True)
class Sample:
    """One attention call, decomposed, and what it shall put out."""

    q: Tensor  # n h l d
    k: Tensor
    v: Tensor
    bank: Bank  # all tokens of all images
    parts: tuple[tuple[Tensor, Tensor, Tensor], ...]  # of keys, values: mean, coordinates, vectors
    sizes: tuple[Tensor, Tensor]  # singular values (h, r) of keys and values
    target: Tensor
    alone: float  # squared distance to the target without sharing


def take(q: Tensor, k: Tensor, v: Tensor, subject: Tensor) -> Sample:
    """Prepares a call; ``subject`` is bool ``(n, l)``."""
    n, _, tokens, _ = q.shape
    bank = pack(k, v, range(n), images=n)
    parts, sizes = [], []
    for x in (bank.k[0], bank.v[0]):
        mean = x.mean(1, keepdim=True)
        s, vectors = decompose((x - mean).mT @ (x - mean))
        parts.append((mean, (x - mean) @ vectors, vectors))
        sizes.append(s)
    weight = torch.full((n, tokens), math.log(TARGET_STRENGTH))
    target = attend(q, k, v, pack(k, v, range(n), images=n, tokens=subject, bias=weight))
    return Sample(
        q=q,
        k=k,
        v=v,
        bank=bank,
        parts=tuple(parts),
        sizes=(sizes[0], sizes[1]),
        target=target,
        alone=float((attend(q, k, v) - target).square().sum()),
    )


def watch_set(model: Model, one: PromptSet, judges: Sequence[Judge]) -> dict[str, list[Sample]]:
    """Draws a set without sharing, and takes what its layers did."""
    listener = Listener()
    images = draw_set(model, one, listener)
    pixels = find_subjects(judges, images, ())[:, 0].float()
    found = {}
    for layer, calls in listener.kept.items():
        grids = (F.interpolate(pixels[:, None], grid, mode="area") for *_, grid in calls)
        subjects = (grid.flatten(1) >= 0.5 for grid in grids)
        found[layer] = [take(*call[:3], mask) for call, mask in zip(calls, subjects, strict=True)]
    return found


def draw_set(model: Model, one: PromptSet, method: Method) -> list[Any]:
    config = configure(one, {"model": MINI, "steps": STEPS, "method": {"name": "shared"}})
    (chunk,) = plan(len(config.prompts), len(config.prompts))
    settings = prepare(model, config)
    return draw(
        Batch(pipe=model.pipe, config=config, settings=settings, chunk=chunk, method=method)
    )


# what is learned


class Weights(nn.Module):
    """Of one layer: factors of singular values by rank, from 1, and the logarithm of a strength."""

    def __init__(self, ranks: int, keys: bool, values: bool):
        super().__init__()
        self.roots = nn.ParameterList(
            nn.Parameter(torch.ones(ranks), requires_grad=learns) for learns in (keys, values)
        )
        self.log_strength = nn.Parameter(torch.zeros(()))

    def gains(self, sample: Sample | None = None) -> list[Tensor]:
        """The factors of keys and of values, ``(r)``, never below 0."""
        return [root.square() for root in self.roots]


class Rule(Weights):
    """Of one layer: two spectra, of which the strength alone is learned."""

    def __init__(self, keys: str, values: str):
        super().__init__(1, False, False)
        self.spectra = parse_spectrum(keys), parse_spectrum(values)

    def gains(self, sample: Sample | None = None) -> list[Tensor]:
        """The factors of a sample's keys and values, ``(h, r)``."""
        assert sample
        beta = sample.q.shape[-1] / (sample.q.shape[0] * sample.q.shape[2])
        pairs = zip(sample.sizes, self.spectra, strict=True)
        return [weights_of(s, spectrum, beta=beta) for s, spectrum in pairs]


def distance(weights: Weights, sample: Sample) -> Tensor:
    """Squared, to the target."""
    shared = [
        mean + (coordinates * gain.unsqueeze(-2)) @ vectors.mT
        for (mean, coordinates, vectors), gain in zip(
            sample.parts, weights.gains(sample), strict=True
        )
    ]
    k, v = (x[None] for x in shared)
    bias = weights.log_strength.expand(k.shape[2])
    found = attend(sample.q, sample.k, sample.v, replace(sample.bank, k=k, v=v, bias=bias))
    return (found - sample.target).square().sum()


def learn(weights: Weights, samples: Sequence[Sample], updates: int) -> None:
    """Minimizes the distance over samples, each as a share of that without sharing."""
    learned = [p for p in weights.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=RATE)
    order = torch.Generator().manual_seed(0)
    for update in range(updates):
        sample = samples[int(torch.randint(len(samples), (), generator=order))]
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, 2 * (1 - update / updates))
        optimizer.zero_grad()
        (distance(weights, sample) / sample.alone).backward()
        optimizer.step()


@torch.no_grad()
def judge(weights: Weights, samples: Sequence[Sample]) -> float:
    """The distance over all samples, as a share of that without sharing."""
    total = sum(float(distance(weights, sample)) for sample in samples)
    return total / sum(sample.alone for sample in samples)


def kinds(ranks: int) -> Iterator[tuple[str, Weights]]:
    """All that is compared, of one layer."""
    for name, spectra in RULES.items():
        yield name, Rule(*spectra)
    for name, parts in LEARNED.items():
        yield name, Weights(ranks, *parts)


# pictures


@dataclass(frozen=True, kw_only=True)
class Learned(Shared):
    """All tokens of the anchors, with learned weights of singular values in each layer."""

    weights: Mapping[str, Weights]

    @torch.no_grad()
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Bank | None:
        bank = super().__call__(q, k, v, site)
        if bank is None:
            return None
        weights = self.weights[site.layer]
        filtered = (
            filter_matrix(x, lambda s, gain=gain: s * gain, centered=True)
            for x, gain in zip((bank.k, bank.v), weights.gains(), strict=True)
        )
        bias = weights.log_strength.detach().expand(bank.k.shape[2]).contiguous()
        return replace(bank, **dict(zip(("k", "v"), filtered, strict=True)), bias=bias)


def draw_and_score(
    model: Model, sets: Sequence[PromptSet], methods: Mapping[str, Method], judges: Sequence[Judge]
) -> dict[str, dict[str, list[float]]]:
    """Scores of each set, by method and name of the score."""
    scores: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in methods}
    with progress_bar("drawing") as watch:
        for number, one in enumerate(sets):
            for place, (name, method) in enumerate(methods.items()):
                watch(number + place / len(methods), len(sets))
                images = draw_set(model, one, method)
                row = Row(images, one.prompts)
                said = {k: v for judge in judges for k, v in judge.score(row).scores.items()}
                for score in SHOWN:
                    scores[name][score].append(said.get(score, math.nan))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a try of minutes")
    parser.add_argument("--sets", type=int, default=24, help="half to learn from, half to judge by")
    parser.add_argument("--drawn", type=int, default=28, help="sets of the second half to draw")
    options = parser.parse_args()
    hide_loading_bars()
    count, drawn, updates = (4, 2, 40) if options.quick else (options.sets, options.drawn, UPDATES)
    # one subject each, so that the masks are of the same thing
    alone = [one for one in load_benchmark("mini-sets") if "pair" not in one.tags]
    model, judges = load(MINI), load_judges(reader=True)
    calls: dict[str, list[list[Sample]]] = defaultdict(list)
    with progress_bar("looking") as watch:
        for number, one in enumerate(select(split_half(alone, "first"), limit=count)):
            watch(number, count)
            for layer, samples in watch_set(model, one, judges).items():
                calls[layer].append(samples)
    found: dict[str, dict[str, float]] = defaultdict(dict)
    learned: dict[str, dict[str, Weights]] = defaultdict(dict)
    with progress_bar("learning") as watch:
        for number, (layer, of_sets) in enumerate(calls.items()):
            ours, others = ([s for one in of_sets[part::2] for s in one] for part in (0, 1))
            for name, weights in kinds(ours[0].q.shape[-1]):
                watch(number, len(calls))
                learn(weights, ours, updates)
                found[name][layer] = judge(weights, others)
                learned[name][layer] = weights
    show_distances(found, learned)
    methods: dict[str, Method] = {
        "isolated": build({"name": "isolated"}),
        "shared": Shared(),
        PUBLISHED: build({"name": "spectral", **dict(zip(PARTS, RULES[PUBLISHED], strict=True))}),
        "learned strength": Learned(weights=learned["all tokens"]),
        "learned KV": Learned(weights=learned["learned KV"]),
    }
    sets = select(split_half(alone, "second"), limit=drawn)
    scores = draw_and_score(model, sets, methods, judges)
    gains = {
        name: {score: bootstrap_difference(of[score], scores["isolated"][score]) for score in SHOWN}
        for name, of in scores.items()
        if name != "isolated"
    }
    show_gains(gains)
    if not options.quick:
        write(found, learned, gains, [one.name for one in sets])


def show_distances(
    found: Mapping[str, Mapping[str, float]], learned: Mapping[str, Mapping[str, Weights]]
) -> None:
    layers = list(next(iter(found.values())))
    table = Table("distance to masks", *map(shorten, layers), "mean", box=None)
    for name, of in found.items():
        strength = [float(learned[name][layer].log_strength.detach().exp()) for layer in layers]
        cells = [f"{of[k]:.2f} (x {w:.2f})" for k, w in zip(layers, strength, strict=True)]
        table.add_row(name, *cells, f"{sum(of.values()) / len(of):.2f}")
    Console(width=160).print(table)


def show_gains(gains: Mapping[str, Mapping[str, Any]]) -> None:
    table = Table("pictures, minus isolated", *SHOWN, box=None)
    for name, of in gains.items():
        cells = (f"{g.value:+.3f} [{g.low:+.3f}, {g.high:+.3f}]" for g in of.values())
        table.add_row(name, *cells)
    Console(width=160).print(table)


def shorten(layer: str) -> str:
    return layer.split(".transformer_blocks")[0].replace("attentions.", "")


def write(
    found: Mapping[str, Mapping[str, float]],
    learned: Mapping[str, Mapping[str, Weights]],
    gains: Mapping[str, Mapping[str, Any]],
    sets: Sequence[str],
) -> None:
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions(MINI),
        "hardware": name_cpu(),
        "steps": STEPS,
        "progress": PROBED,
        "distance": {
            name: {layer: round(value, 4) for layer, value in of.items()}
            for name, of in found.items()
        },
        "strength": {
            name: {layer: round(float(w.log_strength.detach().exp()), 4) for layer, w in of.items()}
            for name, of in learned.items()
        },
        "gains of keys, of values": {
            layer: [[round(x, 3) for x in gain.tolist()] for gain in weights.gains()]
            for layer, weights in learned["learned KV"].items()
        },
        "sets drawn": sets,
        "pictures": {
            name: {
                score: [round(x, 5) for x in (g.value, g.low, g.high)] for score, g in of.items()
            }
            for name, of in gains.items()
        },
    }
    path = Path(__file__).parents[1] / "results" / "learned.json"
    text = json.dumps(facts, indent=1) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    main()
