"""The loss of a step: photos, noise and captions go into the UNet, errors come out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import DDPMScheduler
from einops import reduce
from torch import Tensor

from consist.errors import ConsistError
from consist.models.noising import PREDICTIONS, diffuse
from consist.training.encoding import Latents, Texts
from consist.training.outlines import Outlines
from consist.training.parts import Parts
from consist.training.photos import middle_view, placement
from consist.training.samples import Album, Sample, batches, share


class Denoising:
    """Asks the UNet of a pipeline for the noise in photos.

    Args:
        parts: The pipeline, ready to be trained.
        albums: What each step takes photos from.
        folder: Where latents are kept.
        device: Of the pipeline.

    Raises:
        ConsistError: The model predicts something that is not known.
    """

    def __init__(self, parts: Parts, albums: Sequence[Album], folder: Path, device: torch.device):
        self.parts = parts
        self.config = parts.config
        self.albums = albums
        self.device = device
        # whichever scheduler draws, its config says how the noise grows
        scheduler = DDPMScheduler.from_config(parts.pipe.scheduler.config)
        self.alphas = scheduler.alphas_cumprod
        self.prediction = scheduler.config.prediction_type
        if self.prediction not in PREDICTIONS:
            known = ", ".join(PREDICTIONS)
            raise ConsistError(f"the model predicts {self.prediction!r}; trained are {known}")
        self.latents = Latents(parts.pipe.vae, folder)
        self.texts = Texts(parts.pipe, device)
        self.outlines = Outlines(parts.pipe, self.predict, self.alphas, self.prediction)

    def prepare(self) -> None:
        """Computes what all steps share, and takes what is needed no more off the device."""
        pipe, albums = self.parts.pipe, self.albums
        if not self.config.random_crop:
            for album in albums:
                for photo in album.photos:
                    self.latents.moments(photo, middle_view(photo, album.sizes))
        if outlined := [album for album in albums if album.outlined]:
            with self.parts.as_before():
                self.texts.keep({self.config.class_prompt, ""})
                for album in outlined:
                    self.outlines.find(album, self.config.class_prompt)
        if self.parts.text_frozen:
            self.texts.keep({caption for album in albums for caption in album.captions})
        elif asked := [album for album in albums if album.preserved or album.outlined]:
            with self.parts.as_before():
                self.texts.keep({caption for album in asked for caption in album.captions})
        if self.device.type != "cpu":
            idle = [] if self.config.random_crop else ["vae"]
            idle += ["text_encoder", "text_encoder_2"] if self.parts.text_frozen else []
            for name in idle:
                if module := getattr(pipe, name, None):
                    module.to("cpu")

    def losses(self, step: int) -> Iterator[Tensor]:
        """What this process computes of a step's loss, part by part; all processes add up to it."""
        state = PartialState()
        drawn = [album.draw(step, self.config, len(self.alphas)) for album in self.albums]
        samples = [sample for samples in drawn for sample in samples]
        own = share(samples, state.process_index, state.num_processes)
        for batch in batches(own, self.config.accumulate):
            yield self.loss(batch)

    def loss(self, samples: list[Sample]) -> Tensor:
        """The weighted sum of the errors of samples of one size and kind."""
        sources = [torch.Generator().manual_seed(sample.seed) for sample in samples]
        clean = torch.stack(
            [
                self.latents(sample.photo, sample.view, source)
                for sample, source in zip(samples, sources, strict=True)
            ]
        )
        noise = torch.stack([torch.randn(clean.shape[1:], generator=source) for source in sources])
        timesteps = torch.tensor([sample.timestep for sample in samples])
        alphas = self.alphas[timesteps]
        noisy, target = diffuse(clean, noise, alphas, self.prediction)
        weights = torch.tensor([sample.weight for sample in samples])
        if self.config.min_snr is not None:
            weights = weights * min_snr_weights(alphas, self.config.min_snr, self.prediction)
        noisy, timesteps = noisy.to(self.device), timesteps.to(self.device)
        target = target.to(self.device)
        if samples[0].preserved or samples[0].outlined:
            with self.parts.as_before():
                before = self.predict(noisy, timesteps, samples).float()
            subject = [self.outlines(sample) for sample in samples if sample.outlined]
            inside = torch.stack(subject).to(self.device) if subject else None
            target = before if inside is None else torch.where(inside, target, before)
        errors = sample_losses(self.predict(noisy, timesteps, samples), target)
        return (errors * weights.to(self.device)).sum()

    def predict(self, noisy: Tensor, timesteps: Tensor, samples: list[Sample]) -> Tensor:
        """What the UNet says about noisy latents ``(n, c, h, w)``: of the same shape."""
        dtype = self.parts.dtype
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            embeds, pooled = self.embed([sample.photo.caption for sample in samples])
            added: dict[str, Any] = {}
            if pooled is not None:
                ids = torch.tensor([size_ids(sample) for sample in samples], device=self.device)
                added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
            guess: Tensor = self.parts.pipe.unet(noisy.to(dtype), timesteps, embeds, **added).sample
            return guess

    def embed(self, captions: list[str]) -> tuple[Tensor, Tensor | None]:
        """Embeddings of captions, kept ones where nothing can have changed them."""
        kept = self.parts.text_frozen or not torch.is_grad_enabled()
        return self.texts.recall(captions) if kept else self.texts.encode(captions)


def size_ids(sample: Sample) -> tuple[int, ...]:
    """What SDXL is told of a photo: its size, where it was cut, and to which size.

    SDXL (arXiv:2307.01952), section 2.2: each as (height, width) or (top, left).
    """
    photo, view = sample.photo, sample.view
    _, _, top, left = placement(photo.width, photo.height, view)
    return photo.height, photo.width, top, left, view.height, view.width


def sample_losses(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean squared error of each sample, ``(n,)`` in float32, from ``(n, c, h, w)``."""
    return reduce((prediction.float() - target.float()).square(), "n c h w -> n", "mean")


def min_snr_weights(alphas_cumprod: Tensor, gamma: float, prediction: str) -> Tensor:
    """How much the error at each timestep counts, so that steps of little noise do not rule.

    With ``SNR = a / (1 - a)``, ``min(SNR, gamma) / SNR`` for epsilon and
    ``min(SNR, gamma) / (SNR + 1)`` for v: Min-SNR of Hang et al. 2023, arXiv:2303.09556. Written
    without a division of zero by zero, so that it is finite where there is no signal at all
    (a = 0, zero-terminal SNR).

    >>> min_snr_weights(torch.tensor([0.0, 0.5, 0.9375]), 5.0, "epsilon").tolist()
    [1.0, 1.0, 0.3333333432674408]

    Args:
        alphas_cumprod: a of each sample's timestep, ``(n,)`` in 0..1.
        gamma: More than 0; 5 in the paper.
        prediction: One of ``PREDICTIONS``.

    Returns:
        ``(n,)``, in 0..1.

    Raises:
        ValueError: ``prediction`` or ``gamma`` is out of range.
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be more than 0, not {gamma}")
    if prediction == "epsilon":
        return (gamma * (1 - alphas_cumprod) / alphas_cumprod).clamp(max=1)
    if prediction == "v_prediction":
        return torch.minimum(alphas_cumprod, gamma * (1 - alphas_cumprod))
    raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, not {prediction!r}")
