"""At which noise do words decide? What a wrong word in the caption adds to `mini`'s error.

python scripts/measure/words.py [--pictures 96] [--model consist/mini/weights]

New pictures of one subject, with a caption that names all of its identity, are noised; `mini`
predicts v from the right caption, and from captions in which one attribute is another. Printed is
what that adds to the squared error over the subject, in percent of the error with the right words.
Where it is little, training learns little about the word.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from random import Random

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from consist.mini.architecture import build_scheduler
from consist.mini.subjects import BUILDS, COLORS
from consist.mini.world import (
    GENEROUS,
    Naming,
    Picture,
    caption,
    draw,
    resized,
    sample_picture,
)
from consist.models.loading import MINI_FOLDER
from consist.models.noising import diffuse
from consist.training.mini.autoencoder import to_pixels
from consist.training.mini.denoiser import coverage, tokenize
from consist.training.mini.train import Parts, load_parts

CPU = torch.device("cpu")
TIMESTEPS = range(50, 1000, 100)
ALL = Naming(nothing=0.0, alone=dict.fromkeys(GENEROUS.alone, 1.0), in_pairs={})
CHANGED = (
    "color",
    "pattern",
    "pattern_color",
    "feature",
    "build",
    "accessory",
    "accessory_color",
)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--model", type=Path, default=MINI_FOLDER)
    args = parser.parse_args()

    parts = load_parts(args.model)
    pictures = list(islice(new_pictures(), args.pictures))
    drawings = [draw(picture) for picture in pictures]
    pixels = np.stack([np.asarray(drawing.image) for drawing in drawings])
    masks = np.stack([np.asarray(drawing.masks[0].reduce(4)) for drawing in drawings])
    latents = parts.vae.encode(to_pixels(pixels, CPU)).latents
    covered = coverage(masks[:, None]).float()
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))

    right = read(parts, pictures)
    wrong = {name: read(parts, [other(one, name) for one in pictures]) for name in CHANGED}
    table = Table("timestep", "signal", "error", *CHANGED, box=None)
    alphas = build_scheduler().alphas_cumprod
    for timestep in track(TIMESTEPS, "timesteps", console=Console(stderr=True)):
        timesteps = torch.full((len(pictures),), timestep)
        noisy, target = diffuse(latents, noise, alphas[timesteps], "v_prediction")
        guesses = [
            parts.unet(noisy, timesteps, context).sample for context in (right, *wrong.values())
        ]
        base, *others = (weighted_error(guess, target, covered) for guess in guesses)
        added = [f"{100 * (error / base - 1):.2f}" for error in others]
        table.add_row(str(timestep), f"{alphas[timestep]:.2f}", f"{base:.3f}", *added)
    Console().print(table)


def new_pictures() -> Iterator[Picture]:
    """Pictures that training has not drawn, of one subject with a pattern and an accessory."""
    for index in count():
        picture = sample_picture(Random(f"probe-{index}"))
        identity = picture.figures[0].identity
        if len(picture.figures) == 1 and identity.pattern_color and identity.accessory_color:
            yield picture


def other(picture: Picture, name: str) -> Picture:
    """The picture with another value of one attribute of its subject."""
    figure = picture.figures[0]
    identity = figure.identity
    shown = {identity.color, identity.pattern_color, identity.accessory_color}
    color = Random(f"{identity}-{name}").choice([one for one in COLORS if one not in shown])
    changed = {
        "pattern": {"pattern": "plain", "pattern_color": None},
        "accessory": {"accessory": "none", "accessory_color": None},
        "feature": {"feature": resized(identity).feature},
        "build": {"build": next(one for one in BUILDS if one != identity.build)},
    }.get(name, {name: color})
    return replace(picture, figures=(replace(figure, identity=replace(identity, **changed)),))


def read(parts: Parts, pictures: Sequence[Picture]) -> Tensor:
    """The text encoder's states of captions that name everything."""
    texts = [caption(picture, Random(0), ALL) for picture in pictures]
    return parts.encoder(tokenize(parts.tokenizer, texts, CPU)).last_hidden_state


def weighted_error(guess: Tensor, target: Tensor, weights: Tensor) -> float:
    """Squared error, averaged with weights ``(n, 1, h, w)`` over latents."""
    per_latent = (guess - target).square().mean(1, keepdim=True)
    return ((weights * per_latent).sum() / weights.sum()).item()


if __name__ == "__main__":
    main()
