"""Measures the reader itself: on new pictures as drawn, through the autoencoder, and drawn again.

python scripts/check/reader.py [--pictures 2000] [--noise 0.2] [--reader FILE] [--model mini]

Prints accuracy and calibration error per attribute. What is drawn again is noised and denoised by
the UNet, to captions that name much (``consist.training.mini.redrawing``). Pictures are drawn from
seeds that training never used, the pairs of subject and scene that training leaves out included.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image
from rich.console import Console
from rich.table import Table

from consist.evaluation.metrics import expected_calibration_error, mask_overlap
from consist.mini.reader import VIEWS, WEIGHTS, Reading, Value, load_reader
from consist.mini.world import (
    GENEROUS,
    HELD_OUT,
    Drawing,
    Picture,
    caption,
    draw,
    sample_picture,
)
from consist.models.loading import MINI, Pipeline, load
from consist.training.mini.autoencoder import to_pixels
from consist.training.mini.redrawing import Redrawer

Change = Callable[[int, torch.Tensor], torch.Tensor]  # a picture's number and latents: others
Marks = dict[str, list[tuple[float, bool]]]  # by head: confidence and whether it was right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--noise", type=float, default=0.2, help="on the latents of round trips")
    parser.add_argument("--reader", type=Path, default=WEIGHTS)
    parser.add_argument("--model", default="mini", help="whose autoencoder blurs the pictures")
    args = parser.parse_args()

    reader = load_reader(path=args.reader)
    pipe = load(args.model, "cpu", "float32").pipe
    pictures = [new_picture(index) for index in range(args.pictures)]
    drawings = [draw(picture) for picture in pictures]
    drawn = [drawing.image for drawing in drawings]
    shown = {
        "as drawn": drawn,
        "round trip": list(round_trips(pipe.vae, drawn, shaking(args.noise))),
    }
    if args.model == MINI:
        shown["drawn again"] = list(round_trips(pipe.vae, drawn, redrawing(pipe, pictures)))
    table = Table("read", *(title for name in shown for title in (name, "ECE")), box=None)
    columns = [marks_of(pictures, drawings, reader.read(images)) for images in shown.values()]
    for head in columns[0]:
        cells = [cell for column in columns for cell in (accuracy(column[head]), ece(column[head]))]
        table.add_row(head, *cells)
    Console().print(table)


def new_picture(index: int) -> Picture:
    """A picture that training never saw; one in ten has a pair that it left out."""
    rng = Random(f"new-{index}")
    picture = sample_picture(rng)
    if index % 10 == 0:
        subject, scene = rng.choice(sorted(HELD_OUT))
        figure = next(
            figure
            for figure in iter(lambda: sample_picture(rng).figures[0], None)
            if figure.identity.subject == subject
        )
        picture = replace(picture, figures=(figure,), scene=scene)
    return picture


def round_trips(
    vae: AutoencoderTiny | AutoencoderKL, images: Sequence[Image.Image], change: Change
) -> Iterator[Image.Image]:
    """The pictures through the autoencoder, their latents changed on the way."""
    for number, image in enumerate(images):
        with torch.no_grad():
            latents = encode(vae, to_pixels(np.asarray(image)[None], torch.device("cpu")))
            changed = change(number, latents)
            pixels = vae.decode(changed / vae.config.scaling_factor).sample[0].clamp(-1, 1)
        yield Image.fromarray(((pixels + 1) * 127.5).byte().permute(1, 2, 0).numpy())


def shaking(noise: float) -> Change:
    """Adds so much noise."""
    source = torch.Generator().manual_seed(0)
    return lambda _, latents: latents + noise * torch.randn(latents.shape, generator=source)


def redrawing(pipe: Pipeline, pictures: Sequence[Picture]) -> Change:
    """Draws again to what captions say that name much of a picture."""
    redraw = Redrawer(pipe.tokenizer, pipe.text_encoder, pipe.unet)
    source, rng = torch.Generator().manual_seed(0), Random(0)
    return lambda number, latents: redraw(
        latents, [caption(pictures[number], rng, GENEROUS)], source
    )


def encode(vae: AutoencoderTiny | AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """Latents as the UNet meets them, by either kind of autoencoder."""
    encoded = vae.encode(pixels)
    has_spread = isinstance(vae, AutoencoderKL)
    latents = encoded.latent_dist.mode() if has_spread else encoded.latents
    return latents * vae.config.scaling_factor


def marks_of(
    pictures: Sequence[Picture], drawings: Sequence[Drawing], readings: Sequence[Reading]
) -> Marks:
    """Whether each value was read right; attributes only of subjects that were found."""
    marks: Marks = defaultdict(list)
    for picture, drawing, reading in zip(pictures, drawings, readings, strict=True):
        for view in VIEWS:
            mark(marks, view, getattr(reading, view), getattr(picture, view))
        right = len(reading.subjects) == len(picture.figures)
        marks["number of subjects"].append((1.0, right))
        found = {one.subject.name: one for one in reading.subjects}
        for figure, mask in zip(picture.figures, drawing.masks, strict=True):
            one = found.get(figure.identity.subject)
            best = one or (reading.subjects[0] if reading.subjects else None)
            marks["subject"].append((best.subject.confidence if best else 0.0, one is not None))
            if one is None:
                continue
            marks["mask (mean IoU)"].append(
                (1.0, mask_overlap(np.stack([one.mask, np.asarray(mask) > 127])))  # type: ignore[arg-type]
            )
            truth = {**asdict(figure.identity), "action": figure.pose.action}
            for name, value in one.attributes.items():
                mark(marks, name, value, truth[name] or "none")
    return marks


def mark(marks: Marks, head: str, value: Value, truth: str) -> None:
    marks[head].append((value.confidence, value.name == truth))


def accuracy(marks: Sequence[tuple[float, bool]]) -> str:
    return f"{100 * float(np.mean([right for _, right in marks])):.1f} %"


def ece(marks: Sequence[tuple[float, bool]]) -> str:
    confidences, right = zip(*marks, strict=True)
    if len(set(confidences)) == 1:
        return ""
    return f"{expected_calibration_error(confidences, right):.3f}"


if __name__ == "__main__":
    main()
