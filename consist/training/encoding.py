"""Photos to latents and captions to embeddings, each computed once where it stays the same.

It must not know what is trained, nor how.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from consist.files import write_atomically
from consist.models.loading import Pipeline
from consist.models.weights import digest_of_weights
from consist.training.photos import Photo, View, as_pixels, cut


class Latents:
    """Views of photos as the autoencoder's latents, scaled as the UNet has them.

    What the autoencoder says of the middle of a photo is kept, in memory and on the disk: mean and
    deviation, of which each use draws anew. The name of a file is a digest of the photo's bytes,
    the view and the autoencoder's weights.
    """

    def __init__(self, vae: Any, folder: Path):
        self.vae = vae
        self.folder = folder
        self.vae_digest = digest_of_weights(vae)
        self.kept: dict[str, dict[str, Tensor]] = {}

    def __call__(self, photo: Photo, view: View, generator: torch.Generator) -> Tensor:
        """Latents ``(c, h, w)``, float32 on the CPU."""
        moments = self.moments(photo, view)
        noise = torch.randn(moments["mean"].shape, generator=generator)
        return moments["mean"] + moments["std"] * noise

    def moments(self, photo: Photo, view: View) -> Mapping[str, Tensor]:
        """Mean and deviation of a view's latents, ``(c, h, w)`` each."""
        if (view.x, view.y) != (0.5, 0.5):
            return self.encode(photo, view)
        key = self.key(photo, view)
        if key not in self.kept:
            self.kept[key] = self.read(key) or self.write(key, self.encode(photo, view))
        return self.kept[key]

    def key(self, photo: Photo, view: View) -> str:
        """What tells a view's latents from all others: 32 hex digits."""
        text = json.dumps([photo.digest, vars(view), self.vae_digest], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def read(self, key: str) -> dict[str, Tensor] | None:
        """What the disk has under a key; None where it has nothing that can be read."""
        try:
            return load_file(self.folder / f"{key}.safetensors")
        except (OSError, SafetensorError):
            return None

    def write(self, key: str, moments: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keeps moments on the disk, and gives them back."""
        path = self.folder / f"{key}.safetensors"
        write_atomically(path, lambda file: file.write(save(moments)))
        return moments

    @torch.no_grad()
    def encode(self, photo: Photo, view: View) -> dict[str, Tensor]:
        """Mean and deviation of a view's latents, computed in float32."""
        weight = next(self.vae.parameters())
        pixels = as_pixels(cut(photo.read(), view))
        coded = self.vae.encode(rearrange(pixels, "c h w -> 1 c h w").to(weight))
        if isinstance(self.vae, AutoencoderTiny):
            mean, std = coded.latents, torch.zeros_like(coded.latents)
        else:
            mean, std = coded.latent_dist.mean, coded.latent_dist.std
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        scale = self.vae.config.scaling_factor
        return {"mean": (mean[0] - shift).cpu() * scale, "std": std[0].cpu() * scale}


class Texts:
    """Captions as the pipeline's own embeddings, as it makes them when it draws."""

    def __init__(self, pipe: Pipeline, device: torch.device):
        self.pipe = pipe
        self.device = device
        self.kept: dict[str, tuple[Tensor, Tensor | None]] = {}

    def keep(self, captions: set[str]) -> None:
        """Remembers the embeddings that captions have now."""
        with torch.no_grad():
            self.kept |= {caption: self.encode([caption]) for caption in sorted(captions)}

    def recall(self, captions: list[str]) -> tuple[Tensor, Tensor | None]:
        """The embeddings of captions that were kept: as ``encode``."""
        found = [self.kept[caption] for caption in captions]
        pooled = [p for _, p in found if p is not None]
        return torch.cat([embeds for embeds, _ in found]), torch.cat(pooled) if pooled else None

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor | None]:
        """Embeddings ``(n, l, c)``, and for SDXL pooled ones ``(n, c)``.

        An empty caption gives what guidance leads away from: zeros, where the pipeline takes them.
        """
        embeds = self.pipe.encode_prompt(
            prompt=captions,
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        found, pooled = embeds[0], embeds[2] if len(embeds) == 4 else None
        if self.pipe.config.get("force_zeros_for_empty_prompt"):
            said = torch.tensor([bool(caption) for caption in captions], device=found.device)
            found = found * rearrange(said, "n -> n 1 1")
            pooled = None if pooled is None else pooled * rearrange(said, "n -> n 1")
        return found, pooled
