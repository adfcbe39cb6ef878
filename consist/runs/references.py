"""A user's own pictures as the anchors of a run.

Such an anchor is not denoised. At each step its latents are those of the picture with the noise
that belongs to the step, the same noise from first to last: the re-noising variant of inversion,
which fits every scheduler. It must not know how a method shares.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from consist.attention.method import REFERENCES
from consist.errors import ConsistError
from consist.methods import build
from consist.models.loading import Pipeline
from consist.prompts.phrases import shared_phrase
from consist.runs.config import RunConfig, spread_seeds
from consist.runs.pictures import open_picture, unreadable


def with_references(
    config: RunConfig, pictures: Sequence[Path | str], prompts: Sequence[str]
) -> RunConfig:
    """The run with given pictures, and no others, as the anchors of its method.

    ```python
    config = consist.RunConfig(prompts=("a cat in paris",), seeds=(0,))
    consist.generate(consist.with_references(config, ["photo.png"], ["a cat"]))
    ```

    Args:
        config: A run whose method leaves ``anchors`` open.
        pictures: Files in one of the formats of ``consist.runs.pictures``.
        prompts: What they show: one for all, or one each.

    Raises:
        ConsistError: A picture cannot be read, the prompts do not fit, or the method cannot look
            at given pictures.
    """
    count = len(pictures)
    if not count:
        raise ConsistError("a reference prompt was given without a reference")
    if not prompts:
        raise ConsistError("a reference needs a prompt that says what it shows")
    if len(prompts) not in (1, count):
        given = f"{len(prompts)} reference prompts were given for {count} references"
        raise ConsistError(f"{given}; give 1 or {count}")
    if config.anchor_prompts:
        raise ConsistError("the run names its anchors already, so it takes no references")
    texts = tuple(prompts) * (count if len(prompts) == 1 else 1)
    for path in pictures:
        open_picture(path)
    return replace(
        config,
        method=_method_for(config, texts),
        anchor_prompts=texts,
        anchor_seeds=spread_seeds((config.next_seed(),), count),
        anchor_pictures=tuple(str(Path(path).resolve()) for path in pictures),
        anchor_digests=tuple(map(digest_of, pictures)),
    )


def _method_for(config: RunConfig, prompts: tuple[str, ...]) -> dict[str, Any]:
    """The settings of the method with as many anchors as there are references."""
    name, method = config.method["name"], build(config.method)
    if reason := method.obstacle(REFERENCES):
        raise ConsistError(f"{name} takes no references: {reason}")
    if "anchors" in config.method:
        raise ConsistError("references are the anchors themselves; leave the method's anchors out")
    told = {**method.reference_settings(), **config.method, "anchors": len(prompts)}
    build(told)
    if method.reads_words and not method.subject:
        told["subject"] = [shared_phrase(prompts + config.prompts)]
    return told


def check_references(config: RunConfig) -> None:
    """Makes sure that the pictures a run looks at are what they were when it was planned.

    Raises:
        ConsistError: One has changed, or is gone.
    """
    for path, digest in zip(config.anchor_pictures, config.anchor_digests, strict=True):
        if digest_of(path) != digest:
            raise ConsistError(
                f"the reference {path} has changed; put the old picture back, or draw a new run"
            )


def digest_of(path: Path | str) -> str:
    """SHA-256 of a file, in hex.

    Raises:
        ConsistError: It cannot be read.
    """
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None


def read_pictures(config: RunConfig, width: int, height: int) -> list[Image.Image]:
    """The references of a run, the middle of each in that shape, scaled to so many pixels.

    Raises:
        ConsistError: As ``open_picture``.
    """
    pictures = map(open_picture, config.anchor_pictures)
    return [ImageOps.fit(one, (width, height), Image.Resampling.LANCZOS) for one in pictures]


@torch.no_grad()
def encode(pipe: Pipeline, pictures: Sequence[Image.Image]) -> Tensor:
    """The latents of pictures without noise, scaled as the UNet knows them.

    The mean of what the autoencoder gives, one picture at a time. One that overflows in float16
    works in float32, as in diffusers.

    Returns:
        float32 ``(r c h w)`` on the UNet's device.
    """
    vae = pipe.vae
    dtype = vae.dtype
    pixels = pipe.image_processor.preprocess(list(pictures)).to(vae.device)
    upcast = dtype == torch.float16 and vae.config.force_upcast
    if upcast:
        vae.to(torch.float32)
    try:
        latents = [_mean_of(vae.encode(picture[None].to(vae.dtype))) for picture in pixels]
    finally:
        if upcast:
            vae.to(dtype)
    return _scale(torch.cat(latents).float(), vae.config).to(pipe.unet.device)


def _mean_of(encoded: Any) -> Tensor:
    """What ``AutoencoderTiny`` gives, or the mean of ``AutoencoderKL``."""
    mean: Tensor = encoded.latents if "latents" in encoded else encoded.latent_dist.mode()
    return mean


def _scale(latents: Tensor, config: Any) -> Tensor:
    """What the pipelines undo before they decode; a few models of SDXL have means of their own."""
    mean, deviation = (config.get(name) for name in ("latents_mean", "latents_std"))
    if mean is not None and deviation is not None:
        mean, deviation = (
            torch.tensor(values, device=latents.device)[:, None, None]
            for values in (mean, deviation)
        )
        latents = (latents - mean) / deviation
    return latents * config.scaling_factor


class Held:
    """The first rows of a batch of latents, which are references and not denoised.

    Args:
        pipe: Its scheduler is asked how much noise a step has.
        pictures: The references, ``r`` in the size of the run.
        noise: Of the batch ``(n c h w)``, of which the first ``r`` rows are taken.
    """

    def __init__(self, pipe: Pipeline, pictures: Sequence[Image.Image], noise: Tensor):
        self.scheduler = pipe.scheduler
        self.clean = encode(pipe, pictures)
        self.noise = noise[: len(pictures)].to(self.clean.device)

    def start(self, noise: Tensor, steps: int) -> Tensor:
        """The noise ``(n c h w)`` that a pipeline is given, which it scales before it starts."""
        self.scheduler.set_timesteps(steps, device=self.clean.device)
        return self._join(self._noisy(0) / self.scheduler.init_noise_sigma, noise)

    def put(self, latents: Tensor, step: int) -> Tensor:
        """Latents ``(n c h w)`` for a step, 0 the first; after the last there is no noise."""
        return self._join(self._noisy(step), latents)

    def _noisy(self, step: int) -> Tensor:
        timesteps = self.scheduler.timesteps
        if step == len(timesteps):
            return self.clean
        # a step of second order comes twice, with the same timestep and noise
        repeated = timesteps[step].repeat(len(self.clean))
        noisy: Tensor = self.scheduler.add_noise(self.clean, self.noise, repeated)
        return noisy

    def _join(self, rows: Tensor, latents: Tensor) -> Tensor:
        return torch.cat((rows.to(latents.dtype), latents[len(rows) :]))
