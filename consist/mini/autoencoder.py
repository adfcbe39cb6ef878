"""The first half of training `mini`: pictures, the autoencoder, and their latents."""

from __future__ import annotations

import itertools
import os
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from consist.mini.architecture import LATENT_CHANNELS, SIZE, build_vae
from consist.mini.fitting import Session
from consist.mini.world import Picture, draw, sample_picture

LATENT_NOISE = 0.1  # on the latents while the autoencoder learns: a decoder that forgives
CHUNK = 64  # pictures encoded at a time


def picture(index: int) -> Picture:
    """The training picture with this number, the same at every call."""
    return sample_picture(Random(f"mini-{index}"))


def draw_pictures(path: Path, count: int) -> np.ndarray:
    """Draws the training pictures, ``(n, h, w, 3)`` uint8, into a file of that size."""
    if not path.exists():
        half_done = path.with_suffix(".part")
        np.memmap(half_done, np.uint8, "w+", shape=(count, SIZE, SIZE, 3)).flush()
        workers = os.cpu_count() or 1
        edges = np.linspace(0, count, 8 * workers + 1).astype(int).tolist()
        parts = [(str(half_done), a, b, count) for a, b in itertools.pairwise(edges)]
        with get_context("spawn").Pool(workers) as pool:
            pool.starmap(_draw_part, parts)
        half_done.replace(path)
    return np.memmap(path, np.uint8, "r", shape=(count, SIZE, SIZE, 3))


def _draw_part(path: str, start: int, stop: int, count: int) -> None:
    store = np.memmap(path, np.uint8, "r+", shape=(count, SIZE, SIZE, 3))
    for index in range(start, stop):
        store[index] = np.asarray(draw(picture(index), SIZE)[0])


def to_pixels(pictures: np.ndarray, device: torch.device) -> Tensor:
    """``(n, h, w, 3)`` bytes to ``(n, 3, h, w)`` floats in -1..1."""
    pixels = torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2)
    return pixels.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def train_vae(session: Session, pictures: np.ndarray) -> AutoencoderKL:
    """Learns to pack 128 px into 16 x 16 latents."""
    vae = build_vae().to(session.device, memory_format=torch.channels_last)
    recipe = session.recipe

    def loss(step: int) -> Tensor:
        rng = session.random("vae", step)
        indices = [rng.randrange(len(pictures)) for _ in range(recipe.vae_batch)]
        target = to_pixels(np.stack([crop(pictures, i, rng) for i in indices]), session.device)
        source = session.noise_source(rng)
        with session.half_precision():
            latents = vae.encode(target).latent_dist.mean
            noise = torch.randn(latents.shape, generator=source, device=session.device)
            noisy = latents + LATENT_NOISE * noise
            decoded = vae.decode(noisy).sample
        return vae_loss(decoded.float(), target) + 1e-3 * latents.float().square().mean()

    session.fit("vae", {"vae": vae}, recipe.vae_lr, recipe.vae_steps, loss)
    return vae.eval()


def crop(pictures: np.ndarray, index: int, rng: Random) -> np.ndarray:
    """A quarter of a picture, three times out of four around its subject, the hard part."""
    side = SIZE // 2
    x, y = rng.randint(0, side), rng.randint(0, side)
    if rng.random() < 0.75:
        pose = picture(index).pose
        middle = (pose.x * SIZE, (pose.ground - pose.height / 2) * SIZE)
        x, y = (round(place - side / 2 + rng.uniform(-24, 24)) for place in middle)
        x, y = min(max(x, 0), side), min(max(y, 0), side)
    return pictures[index, y : y + side, x : x + side]


def vae_loss(decoded: Tensor, target: Tensor) -> Tensor:
    """Absolute and squared error of the pixels, and absolute error of their differences."""
    error = decoded - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 3 * error.square().mean() + 0.5 * edges


@torch.no_grad()
def standardize(vae: AutoencoderKL, pictures: np.ndarray, session: Session) -> None:
    """Folds the latents' mean and deviation per channel into the 1 x 1 convolutions around them.

    Afterwards latents have mean 0 and variance 1 per channel, so ``scaling_factor`` is 1 and the
    plain pipeline needs no other constant; the posterior is a point.
    """
    sample = pictures[: 32 * CHUNK]
    parts = [encode(vae, sample[i : i + CHUNK], session) for i in range(0, len(sample), CHUNK)]
    latents = torch.cat(parts)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, out = vae.quant_conv, vae.post_quant_conv
    c = LATENT_CHANNELS
    out.bias += out.weight[..., 0, 0] @ mean
    out.weight *= std.view(1, c, 1, 1)
    into.bias[:c] = (into.bias[:c] - mean) / std
    into.weight[:c] /= std.view(c, 1, 1, 1)
    into.weight[c:] = 0
    into.bias[c:] = -30.0  # the logarithm of the posterior's variance


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray, session: Session) -> Tensor:
    """The latents ``(n, c, h, w)`` of pictures ``(n, h, w, 3)``."""
    with session.half_precision():
        return vae.encode(to_pixels(pictures, session.device)).latent_dist.mean.float()


def encode_pictures(
    path: Path, vae: AutoencoderKL, pictures: np.ndarray, session: Session
) -> Tensor:
    """The latents of all training pictures, ``(n, c, h, w)`` float16, kept in a file."""
    if not path.exists():
        parts = []
        for start in range(0, len(pictures), CHUNK):
            parts.append(encode(vae, pictures[start : start + CHUNK], session).half().cpu())
            session.report("latents", start, len(pictures), 0.0)
        partial = path.with_suffix(".part")
        save_file({"latents": torch.cat(parts).contiguous()}, partial)
        partial.replace(path)
    with safe_open(path, "pt") as file:
        return file.get_tensor("latents")
