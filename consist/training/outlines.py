"""Where the subject of a photo is: what is opaque of it, or what a model sees in it.

It must not know what is trained, nor how.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from PIL import Image
from torch import Tensor

from consist.attention.masks import find_masks, widen
from consist.errors import ConsistError
from consist.models.loading import Pipeline
from consist.models.noising import diffuse
from consist.runs.pictures import open_outline
from consist.runs.references import encode
from consist.training.photos import Photo, View, cut, nearest_size
from consist.training.samples import Album, Sample

Ask = Callable[[Tensor, Tensor, list[Sample]], Tensor]  # noisy latents, timesteps: the UNet's guess

NOISES = (0.7, 0.7, 0.5, 0.5, 0.3, 0.3)  # shares of the timesteps at which a model looks
COVERED = 0.1  # of a latent's place, to be of the subject


class Outlines:
    """The subject of each photo of an album.

    Args:
        pipe: The pipeline.
        ask: Its UNet, as it is at that moment.
        alphas: ``alphas_cumprod`` of all timesteps.
        prediction: Of the UNet; one of ``consist.models.noising.PREDICTIONS``.
    """

    def __init__(self, pipe: Pipeline, ask: Ask, alphas: Tensor, prediction: str):
        self.pipe = pipe
        self.ask = ask
        self.alphas = alphas
        self.prediction = prediction
        self.found: dict[str, Image.Image] = {}  # by the digests of photos, mode L
        self.kept: dict[tuple[str, View], Tensor] = {}  # of views of the middle

    def find(self, album: Album, class_prompt: str) -> None:
        """Finds the subject in all photos.

        Args:
            album: What is transparent in its photos is no subject; a photo that is opaque all over
                is shown to the model.
            class_prompt: What the model looks for, such as "a cat".

        Raises:
            ConsistError: The model must look, and finds nothing.
        """
        for photo in album.photos:
            outline = open_outline(photo.path)
            if outline is None:
                size = nearest_size(photo, album.sizes)
                outline = self._look(photo, class_prompt, *size)
            self.found[photo.digest] = outline

    def __call__(self, sample: Sample) -> Tensor:
        """Where the subject is in the latents of a sample: bool ``(1, h, w)`` on the CPU."""
        key = sample.photo.digest, sample.view
        if (sample.view.x, sample.view.y) != (0.5, 0.5):
            return self._cut(*key)
        if key not in self.kept:
            self.kept[key] = self._cut(*key)
        return self.kept[key]

    def _cut(self, digest: str, view: View) -> Tensor:
        factor = self.pipe.vae_scale_factor
        shown = np.array(cut(self.found[digest], view), dtype=np.float32) / 255
        grid = view.height // factor, view.width // factor
        share = F.interpolate(torch.from_numpy(shown)[None, None], grid, mode="area")
        return rearrange(share > COVERED, "1 1 h w -> 1 h w")

    @torch.no_grad()
    def _look(self, photo: Photo, class_prompt: str, width: int, height: int) -> Image.Image:
        """What a model sees of its class in a whole photo, which is pressed into a size."""
        clean = encode(self.pipe, [photo.read().resize((width, height), Image.Resampling.LANCZOS)])
        asked = Sample(
            photo=replace(photo, caption=class_prompt),
            view=View(width=width, height=height),
            timestep=0,
            seed=0,
            weight=1.0,
        )
        unasked = replace(asked, photo=replace(photo, caption=""))
        device, source = self.pipe.unet.device, torch.Generator().manual_seed(0)
        differences = []
        for share in NOISES:
            timesteps = torch.tensor([int(share * len(self.alphas))])
            noise = torch.randn(clean.shape, generator=source)
            noisy, _ = diffuse(clean.cpu(), noise, self.alphas[timesteps], self.prediction)
            pair = torch.cat([noisy] * 2).to(device), timesteps.repeat(2).to(device)
            said, unsaid = self.ask(*pair, [asked, unasked]).float()
            differences.append((said - unsaid).cpu())
        outline = outline_of(torch.stack(differences))
        if not outline.any():
            raise ConsistError(f"{class_prompt!r} was not found in {photo.path.name}; cut it out")
        found = Image.fromarray(outline.numpy().astype(np.uint8) * 255)
        return found.resize((photo.width, photo.height), Image.Resampling.NEAREST)


def check_findable(photos: list[Photo], class_prompt: str) -> None:
    """Makes sure that the subject of each photo is opaque alone, or that a model can be asked.

    Raises:
        ConsistError: A photo is opaque all over, and no class prompt says what to look for.
    """
    whole = [photo for photo in photos if open_outline(photo.path) is None]
    if whole and not class_prompt.strip():
        raise ConsistError(
            f"{whole[0].path.name} is not cut out, and without a class prompt, such as 'a cat', "
            "there is nothing to find in it"
        )


def outline_of(differences: Tensor) -> Tensor:
    """Where a caption changes what a UNet says: DiffEdit, arXiv:2210.11427, section 3.2, step one.

    The mean over channels and noises; each noise counts alike. It is cut at Otsu's threshold
    instead of one half, and widened, for what is missed of a subject is not learned.

    Args:
        differences: ``(n, c, h, w)``, with a caption and without, of n noises.

    Returns:
        bool ``(h, w)``; nothing where there is no difference.
    """
    maps = reduce(differences.abs(), "n c h w -> n h w", "mean")
    means = reduce(maps, "n h w -> n 1 1", "mean")
    together = reduce(maps / means.clamp_min(1e-12), "n h w -> 1 1 h w", "mean")
    height, width = together.shape[-2:]
    found = rearrange(find_masks(together, height, width), "1 1 (h w) -> 1 1 h w", h=height)
    return rearrange(widen(found), "1 1 h w -> h w")
