"""Measures what `mini` can draw: 500 prompts it never saw, without sharing, read by the reader.

python scripts/measure/mini.py OUT [--prompts 500] [--free 500] [--model mini] [--steps 25]

Draws into OUT (pictures that are there are kept), prints how often the prompt's subject, scene,
style, action and attributes are there, and how evenly identities spread where none is named.
``sheet.png`` shows the first hundred with their prompts, to check the reader by eye.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from consist.evaluation.metrics import normalized_entropy
from consist.mini.prompts import Asked, AskedSubject, asked
from consist.mini.reader import ATTRIBUTES, WEIGHTS, Reading, SubjectReading, load_reader
from consist.mini.scenes import SCENES
from consist.mini.subjects import SUBJECTS
from consist.mini.world import (
    HELD_OUT,
    caption,
    describe,
    sample_identity,
    sample_picture,
    with_article,
)
from consist.models.loading import Pipeline, load
from consist.runs.grid import draw_grid

BATCH = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=500, help="that name what they like")
    parser.add_argument("--free", type=int, default=500, help="that name no attribute")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--reader", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()

    named = new_prompts(args.prompts)
    free = free_prompts(args.free)
    model = load(args.model, "auto", args.dtype)
    model.pipe.set_progress_bar_config(disable=True)
    args.out.mkdir(parents=True, exist_ok=True)
    paths = [args.out / f"{i:04d}.png" for i in range(len(named) + len(free))]
    draw_missing(model.pipe, [*named, *free], paths, args.steps, model.defaults.guidance)
    images = [Image.open(path).convert("RGB") for path in paths]
    readings = load_reader(path=args.reader).read(images)

    console = Console()
    split = len(named)
    console.print(fidelity(named, readings[:split]))
    console.print(spreads(free, readings[split:]))
    sheet(named, images, readings).save(args.out / "sheet.png")


def new_prompts(count: int) -> list[str]:
    """Captions of pictures that training has not drawn, one in ten with a pair held out."""
    prompts = []
    for index in range(count):
        rng = Random(f"unseen-{index}")
        if index % 10 == 0:
            subject, scene = rng.choice(sorted(HELD_OUT))
            who = describe(sample_identity(rng, subject), {"color"} if rng.random() < 0.5 else ())
            prompts.append(f"{with_article(who)} {SCENES[scene].phrase}")
        else:
            prompts.append(caption(sample_picture(rng), rng))
    return prompts


def free_prompts(count: int) -> list[str]:
    """Prompts that name a class and a scene, and nothing of identity."""
    rng = Random("free")
    pairs = [pair for s in SUBJECTS for pair in ((s, scene) for scene in SCENES)]
    chosen = [pair for pair in rng.choices(pairs, k=2 * count) if pair not in HELD_OUT][:count]
    return [f"{with_article(subject)} {SCENES[scene].phrase}" for subject, scene in chosen]


def draw_missing(
    pipe: Pipeline, prompts: Sequence[str], paths: Sequence[Path], steps: int, guidance: float
) -> None:
    """Draws each prompt from the seed of its number."""
    left = [i for i, path in enumerate(paths) if not path.exists()]
    starts = range(0, len(left), BATCH)
    for start in track(starts, "drawing", console=Console(stderr=True)):
        part = left[start : start + BATCH]
        images = pipe(
            [prompts[i] for i in part],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(i) for i in part],
        ).images
        for i, image in zip(part, images, strict=True):
            image.save(paths[i])


def find(subject: AskedSubject, reading: Reading) -> SubjectReading | None:
    return next((one for one in reading.subjects if one.subject.name == subject.subject), None)


def is_held_out(wish: Asked) -> bool:
    return any((one.subject, wish.scene) in HELD_OUT for one in wish.subjects)


def fidelity(prompts: Sequence[str], readings: Sequence[Reading]) -> Table:
    """How often what the prompts ask for is there."""
    marks: dict[str, list[bool]] = {}

    def mark(name: str, right: bool) -> None:
        marks.setdefault(name, []).append(right)

    for prompt, reading in zip(prompts, readings, strict=True):
        wish = asked(prompt)
        kind = "pair" if len(wish.subjects) == 2 else "one"
        found = [find(one, reading) for one in wish.subjects]
        mark(f"class ({kind})", all(found))
        if wish.scene:
            mark("scene", reading.scene.name == wish.scene)
        mark("style", reading.style.name == wish.style)
        if is_held_out(wish):
            mark("class and scene, pair held out", all(found) and reading.scene.name == wish.scene)
        for subject, one in zip(wish.subjects, found, strict=True):
            if one is None:
                continue
            if wish.action and len(wish.subjects) == 1:
                mark("action named", one.attributes["action"].name == wish.action)
            for name, value in subject.attributes.items():
                mark(f"{name} named", one.attributes[name].name == value)
                mark("attributes named", one.attributes[name].name == value)
    table = Table("what the prompt asks", "is there", "of", box=None)
    for name, right in sorted(marks.items()):
        table.add_row(name, f"{100 * sum(right) / len(right):.1f} %", str(len(right)))
    return table


def spreads(prompts: Sequence[str], readings: Sequence[Reading]) -> Table:
    """Entropy of each attribute where none is named, beside the world's own."""
    read: dict[str, Counter[str]] = {name: Counter() for name in ATTRIBUTES}
    for prompt, reading in zip(prompts, readings, strict=True):
        if (one := find(asked(prompt).subjects[0], reading)) is not None:
            for name, value in one.attributes.items():
                read[name][value.name] += 1
    rng = Random("spread")
    truth: dict[str, Counter[str]] = {name: Counter() for name in ATTRIBUTES}
    for _ in range(4000):
        identity = sample_identity(rng)
        for name in truth:
            truth[name][getattr(identity, name, None) or "none"] += 1
    table = Table("attribute", "entropy", "of the world", "most often", box=None)
    for name, values in ATTRIBUTES.items():
        if name == "action":
            continue
        entropies = [
            normalized_entropy([counts[value] for value in values])
            for counts in (read[name], truth[name])
        ]
        most = read[name].most_common(1)
        share = "".join(f"{v} ({100 * n / read[name].total():.0f} %)" for v, n in most)
        table.add_row(name, *(f"{entropy:.3f}" for entropy in entropies), share)
    return table


def sheet(
    prompts: Sequence[str], images: Sequence[Image.Image], readings: Sequence[Reading]
) -> Image.Image:
    """The first hundred pictures, each under its prompt and above what was read."""
    rows = []
    for start in range(0, min(100, len(prompts)), 10):
        part = slice(start, min(start + 10, len(prompts)))
        captions = [
            f"{prompt} → {said(reading)}"
            for prompt, reading in zip(prompts[part], readings[part], strict=True)
        ]
        rows.append(draw_grid({"": list(images[part])}, captions))
    whole = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)))
    top = 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height
    return whole


def said(reading: Reading) -> str:
    names = " + ".join(
        f"{one.attributes['color'].name} {one.subject.name}" for one in reading.subjects
    )
    return f"{names or 'nobody'}, {reading.scene.name}"


if __name__ == "__main__":
    main()
