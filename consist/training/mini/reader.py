"""Trains the reader on pictures of the world, as drawn and as the autoencoder blurs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from consist.mini.reader import CLASSES, HEADS, VIEWS, Look, ReaderNet, mean_logits
from consist.mini.world import GENEROUS, Figure, Picture, caption
from consist.training.mini.autoencoder import Album, picture, to_pixels
from consist.training.mini.session import Session

# latents of pictures, their captions, and where randomness comes from
Redraw = Callable[[Tensor, Sequence[str], torch.Generator], Tensor]

ROUND_TRIPS = 0.4  # share of training pictures that went through the autoencoder
REDRAWN = 0.5  # share of these that `mini` has drawn again
LATENT_NOISE = 0.35  # at most, on the latents of a round trip
PIXEL_NOISE = 0.08  # at most
HELD_BACK = 2_000  # the last pictures, for calibration


def labels_of(figure: Figure) -> list[int]:
    """The places of a figure's class and attributes in ``HEADS``."""
    truth = {**asdict(figure.identity), "action": figure.pose.action}
    return [values.index(truth[head] or "none") for head, values in HEADS.items()]


def views_of(one: Picture) -> list[int]:
    """The places of a picture's scene and style in ``VIEWS``."""
    return [values.index(getattr(one, view)) for view, values in VIEWS.items()]


def train_reader(session: Session, blur: Blur, net: ReaderNet) -> ReaderNet:
    """Learns to read; the last pictures are kept for calibration."""
    net.to(session.device)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    recipe = session.recipe

    def loss(step: int) -> Tensor:
        rng = session.random("reader", step)
        indices = [rng.randrange(blur.held_back.start) for _ in range(recipe.reader_batch)]
        pixels, masks = blur(indices, rng)
        if rng.random() < 0.5:
            pixels, masks = pixels.flip(3), masks.flip(3)
        return sum(losses(session, net, pixels, masks, indices).values(), torch.zeros(()))

    session.fit("reader", {"reader": net}, recipe.reader_lr, recipe.reader_steps, loss)
    calibrate(session, blur, net)
    return net


@dataclass(frozen=True)
class Blur:
    """Shows training pictures as what generated ones look like where the model was unsure.

    Some have gone through the autoencoder, and half of these were drawn again by the model before.
    Latents get noise before they are decoded, and all pixels after.
    """

    session: Session
    album: Album
    latents: Tensor  # of the album, (n, c, h, w)
    vae: AutoencoderTiny
    redraw: Redraw

    @property
    def held_back(self) -> range:
        """The last pictures, which are not learned from."""
        count = len(self.album)
        return range(count - min(HELD_BACK, count // 2), count)

    def __call__(self, indices: Sequence[int], rng: Random) -> tuple[Tensor, Tensor]:
        """Pictures ``(n, 3, h, w)`` of these numbers in -1..1, and masks ``(n, 2, h/4, w/4)``."""
        source, device = self.session.noise_source(rng), self.session.device
        pixels = to_pixels(self.album.pixels[list(indices)], device)
        masks = torch.from_numpy(np.array(self.album.masks[list(indices)])).to(device).float() / 255
        away = [i for i in range(len(indices)) if rng.random() < ROUND_TRIPS]
        if away:
            packed = self._packed([indices[i] for i in away], rng, source)
            level = LATENT_NOISE * torch.rand(len(away), 1, 1, 1, generator=source, device=device)
            noise = torch.randn(packed.shape, generator=source, device=device)
            with torch.no_grad(), self.session.half_precision():
                pixels[away] = self.vae.decode(packed + level * noise).sample.float().clamp(-1, 1)
        level = PIXEL_NOISE * torch.rand(len(indices), 1, 1, 1, generator=source, device=device)
        return pixels + level * torch.randn(pixels.shape, generator=source, device=device), masks

    def _packed(self, indices: list[int], rng: Random, source: torch.Generator) -> Tensor:
        """Latents of training pictures, some of them drawn again."""
        packed = self.latents[indices].to(self.session.device).float()
        again = [i for i in range(len(indices)) if rng.random() < REDRAWN]
        if again:
            captions = [caption(picture(indices[i]), rng, GENEROUS) for i in again]
            packed[again] = self.redraw(packed[again], captions, source)
        return packed


def losses(
    session: Session, net: ReaderNet, pixels: Tensor, masks: Tensor, indices: Sequence[int]
) -> dict[str, Tensor]:
    """The cross-entropy of every head, and of the outlines."""
    with session.half_precision():
        looks = [net(pixels)]
        logits, targets, outlines = read_looks(net, looks, masks, indices)
    values = {head: F.cross_entropy(logits[head], targets[head]) for head in logits}
    return {**values, "outlines": 3 * outlines}


def read_looks(
    net: ReaderNet, looks: Sequence[Look], masks: Tensor, indices: Sequence[int]
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Logits of every head over all looks, their truth, and the loss of the first look's outlines.

    Args:
        net: The network.
        looks: What it sees in pictures.
        masks: Coverage by each figure, ``(n, 2, h, w)`` in 0..1.
        indices: The numbers of the training pictures.
    """
    pictures = [picture(index) for index in indices]
    figures = [(i, j, f) for i, one in enumerate(pictures) for j, f in enumerate(one.figures)]
    owner = [i for i, _, _ in figures]
    under = torch.stack([masks[i, j] for i, j, _ in figures])
    logits = mean_logits(
        net.view_logits(whole) | net.subject_logits(fine[owner], whole[owner], under)
        for fine, whole, _ in looks
    )
    outlines = looks[0][2]
    device = outlines.device
    views = torch.tensor([views_of(one) for one in pictures], device=device)
    labels = torch.tensor([labels_of(figure) for _, _, figure in figures], device=device)
    targets = dict(zip((*VIEWS, *HEADS), (*views.T, *labels.T), strict=True))
    # the share of each class in each cell; figures are opaque, so shares sum to one
    shares = torch.zeros_like(outlines, dtype=torch.float32)
    for i, j, figure in figures:
        shares[i, 1 + CLASSES.index(figure.identity.subject)] += masks[i, j]
    shares[:, 0] = (1 - shares[:, 1:].sum(1)).clamp_min(0)
    flat = rearrange(outlines.float(), "n c h w -> (n h w) c")
    loss = F.cross_entropy(flat, rearrange(shares, "n c h w -> (n h w) c"))
    return {head: values.float() for head, values in logits.items()}, targets, loss


@torch.no_grad()
def calibrate(session: Session, blur: Blur, net: ReaderNet) -> None:
    """Fits one temperature per head on pictures held back (Guo et al. 2017, section 4.2)."""
    indices = blur.held_back
    collected: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for start in range(0, len(indices), 64):
        part = list(indices[start : start + 64])
        pixels, masks = blur(part, session.random("calibration", start))
        with session.half_precision():
            logits, targets, _ = read_looks(net, net.looks(pixels), masks, part)
        for head in logits:
            collected.setdefault(head, []).append((logits[head], targets[head]))
    for place, parts in enumerate(collected.values()):
        values, truth = (torch.cat(column) for column in zip(*parts, strict=True))
        net.temperatures[place] = best_temperature(values, truth)


def best_temperature(logits: Tensor, target: Tensor) -> float:
    """The temperature of least cross-entropy, by a search on a grid from 0.3 to 5."""
    grid = torch.logspace(-0.5, 0.7, 61).tolist()
    return min(grid, key=lambda t: F.cross_entropy(logits / t, target).item())


def save_reader(net: ReaderNet, path: Path) -> None:
    """Writes the reader as float16 safetensors."""
    tensors = {name: value.half().contiguous().cpu() for name, value in net.state_dict().items()}
    partial = path.with_suffix(".part")
    save_file(tensors, partial)
    partial.replace(path)
