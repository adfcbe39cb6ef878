"""The first half of training `mini`: pictures, the autoencoder, and their latents."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderTiny
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from consist.errors import ConsistError
from consist.mini.architecture import SIZE, build_vae
from consist.mini.world import Picture, draw, sample_picture
from consist.training.mini.session import Session

LATENT_NOISE = 0.05  # on the latents while the autoencoder learns: a decoder that forgives
PICTURE_BYTES = 3 * SIZE**2 + 2 * (SIZE // 4) ** 2
CHUNK = 64  # pictures encoded at a time


def picture(index: int) -> Picture:
    """The training picture with this number, the same at every call."""
    return sample_picture(Random(f"mini-{index}"))


@dataclass(frozen=True)
class Album:
    """The training pictures, read from files as they are needed.

    Args:
        pixels: ``(n, h, w, 3)`` uint8.
        masks: Coverage of each figure, ``(n, 2, h/4, w/4)`` uint8; zeros for one that is not there.
    """

    pixels: np.ndarray
    masks: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)


FEW = 100  # pictures that are drawn sooner than processes for them have started


def draw_pictures(folder: Path, count: int) -> Album:
    """Draws the first ``count`` training pictures, or those that ``folder`` still lacks."""
    path = folder / "pictures.bin"
    if not path.exists():
        half_done = path.with_suffix(".part")
        _open(half_done, "w+", count)
        if count < FEW:
            _draw_part(half_done, 0, count, count)
        else:
            _draw_in_processes(half_done, count)
        half_done.replace(path)
    if path.stat().st_size != count * PICTURE_BYTES:
        held = path.stat().st_size // PICTURE_BYTES
        raise ConsistError(f"{path} holds {held} pictures, not {count}; take another work folder")
    return _open(path, "r", count)


def _open(path: Path, mode: Literal["r", "r+", "w+"], count: int) -> Album:
    store = np.memmap(path, np.uint8, mode, shape=(count, PICTURE_BYTES))
    pixels, masks = store[:, : 3 * SIZE**2], store[:, 3 * SIZE**2 :]
    side = SIZE // 4
    return Album(pixels.reshape(count, SIZE, SIZE, 3), masks.reshape(count, 2, side, side))


def _draw_in_processes(path: Path, count: int) -> None:
    workers = os.cpu_count() or 1
    edges = np.linspace(0, count, 8 * workers + 1).astype(int).tolist()
    parts = [(path, a, b, count) for a, b in itertools.pairwise(edges)]
    with get_context("spawn").Pool(workers) as pool:
        pool.starmap(_draw_part, parts)


def _draw_part(path: Path, start: int, stop: int, count: int) -> None:
    album = _open(path, "r+", count)
    for index in range(start, stop):
        drawing = draw(picture(index), SIZE)
        album.pixels[index] = np.asarray(drawing.image)
        for place, mask in enumerate(drawing.masks):
            album.masks[index, place] = np.asarray(mask.reduce(4))


def to_pixels(pictures: np.ndarray, device: torch.device) -> Tensor:
    """``(n, h, w, 3)`` bytes to ``(n, 3, h, w)`` floats in -1..1."""
    pixels = torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2)
    return pixels.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def train_vae(session: Session, album: Album) -> AutoencoderTiny:
    """Learns to pack 128 px into 16 x 16 latents."""
    vae = build_vae().to(session.device, memory_format=torch.channels_last)
    recipe = session.recipe

    def loss(step: int) -> Tensor:
        rng = session.random("vae", step)
        indices = [rng.randrange(len(album)) for _ in range(recipe.vae_batch)]
        target = to_pixels(np.stack([crop(album, i, rng) for i in indices]), session.device)
        source = session.noise_source(rng)
        with session.half_precision():
            latents = vae.encode(target).latents
            noise = torch.randn(latents.shape, generator=source, device=session.device)
            noisy = latents + LATENT_NOISE * noise
            decoded = vae.decode(noisy).sample
        return vae_loss(decoded.float(), target) + 0.1 * off_standard(latents.float())

    session.fit("vae", {"vae": vae}, recipe.vae_lr, recipe.vae_steps, loss)
    return vae.eval()


def crop(album: Album, index: int, rng: Random) -> np.ndarray:
    """A quarter of a picture, three times out of four around its subject, the hard part."""
    side = SIZE // 2
    x, y = rng.randint(0, side), rng.randint(0, side)
    if rng.random() < 0.75:
        pose = rng.choice(picture(index).figures).pose
        middle = (pose.x * SIZE, (pose.ground - pose.height / 2) * SIZE)
        x, y = (round(place - side / 2 + rng.uniform(-24, 24)) for place in middle)
        x, y = min(max(x, 0), side), min(max(y, 0), side)
    return album.pixels[index, y : y + side, x : x + side]


def vae_loss(decoded: Tensor, target: Tensor) -> Tensor:
    """Absolute and squared error of the pixels, and absolute error of their differences."""
    error = decoded - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 3 * error.square().mean() + 0.5 * edges


def off_standard(latents: Tensor) -> Tensor:
    """How far channels are from mean 0 and deviation 1, which the pipeline's scale of 1 expects."""
    channels = rearrange(latents, "n c h w -> c (n h w)")
    return channels.mean(1).square().mean() + (channels.std(1) - 1).square().mean()


@torch.no_grad()
def encode(vae: AutoencoderTiny, pictures: np.ndarray, session: Session) -> Tensor:
    """The latents ``(n, c, h, w)`` of pictures ``(n, h, w, 3)``."""
    with session.half_precision():
        return vae.encode(to_pixels(pictures, session.device)).latents.float()


def encode_pictures(path: Path, vae: AutoencoderTiny, album: Album, session: Session) -> Tensor:
    """The latents of all training pictures, ``(n, c, h, w)`` float16, kept in a file."""
    if not path.exists():
        parts = []
        for start in range(0, len(album), CHUNK):
            pixels = album.pixels[start : start + CHUNK]
            parts.append(encode(vae, pixels, session).half().cpu())
            session.report("latents", start, len(album), 0.0)
        partial = path.with_suffix(".part")
        save_file({"latents": torch.cat(parts).contiguous()}, partial)
        partial.replace(path)
    with safe_open(path, "pt") as file:
        return file.get_tensor("latents")
