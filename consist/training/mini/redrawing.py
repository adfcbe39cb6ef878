"""Pictures as `mini` draws them: noised, and denoised to what their captions say.

What is in them stays known, which it is not of pictures that are drawn from noise alone. It must
not know the reader.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from einops import rearrange
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from consist.mini.architecture import build_scheduler
from consist.models.noising import diffuse
from consist.training.mini.denoiser import tokenize

NOISED = (0.1, 0.5)  # share of the timesteps: in more noise, what is on a subject would be lost
STEPS = 2  # back from there


class Redrawer:
    """Draws pictures again.

    Args:
        tokenizer: Of captions.
        encoder: Of captions.
        unet: Predicts v.
    """

    def __init__(
        self, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, unet: UNet2DConditionModel
    ):
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.unet = unet
        self.alphas = build_scheduler().alphas_cumprod

    @torch.no_grad()
    def __call__(
        self, clean: Tensor, captions: Sequence[str], generator: torch.Generator
    ) -> Tensor:
        """The latents ``(n, c, h, w)`` of pictures with these captions, drawn again.

        Steps are those of DDIM (Song et al., arXiv:2010.02502, equation 12, without noise).
        """
        device = clean.device
        noise = torch.randn(clean.shape, generator=generator, device=device)
        low, high = (share * len(self.alphas) for share in NOISED)
        spread = torch.rand(len(clean), generator=generator, device=device)
        first = low + (high - low) * spread
        alphas = self.alphas.to(device)
        latents, _ = diffuse(clean, noise, alphas[first.long()], "v_prediction")
        context = self.encoder(tokenize(self.tokenizer, list(captions), device)).last_hidden_state
        for step in range(STEPS):
            timesteps, following = ((first * (1 - i / STEPS)).long() for i in (step, step + 1))
            v = self.unet(latents, timesteps, context).sample.float()
            signal, sigma = roots(alphas[timesteps])
            clean, noise = signal * latents - sigma * v, sigma * latents + signal * v
            signal, sigma = roots(alphas[following])
            latents = signal * clean + sigma * noise
        return clean


def roots(alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise of samples, ``(n, 1, 1, 1)`` each."""
    alphas = rearrange(alphas_cumprod, "n -> n 1 1 1")
    return alphas.sqrt(), (1 - alphas).sqrt()
