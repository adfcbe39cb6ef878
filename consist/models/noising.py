"""Noise on latents, and what a denoiser shall say about it: formulas on tensors.

It must not know models, photos or prompts.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction")


def diffuse(
    clean: Tensor, noise: Tensor, alphas_cumprod: Tensor, prediction: str
) -> tuple[Tensor, Tensor]:
    """Noisy latents, and what the denoiser shall say about them.

    ``x_t = sqrt(a) x + sqrt(1 - a) e`` (Ho et al. 2020, arXiv:2006.11239, equation 4); the target
    is ``e``, or ``v = sqrt(a) e - sqrt(1 - a) x`` (Salimans and Ho 2022, arXiv:2202.00512,
    appendix D).

    Args:
        clean: Latents x, ``(n, c, h, w)``.
        noise: e, of the same shape.
        alphas_cumprod: a of each sample's timestep, ``(n,)`` in 0..1.
        prediction: One of ``PREDICTIONS``, as a scheduler's config names it.

    Raises:
        ValueError: ``prediction`` is another.
    """
    signal = rearrange(alphas_cumprod.sqrt(), "n -> n 1 1 1")
    sigma = rearrange((1 - alphas_cumprod).sqrt(), "n -> n 1 1 1")
    noisy = signal * clean + sigma * noise
    if prediction == "epsilon":
        return noisy, noise
    if prediction == "v_prediction":
        return noisy, signal * noise - sigma * clean
    raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, not {prediction!r}")
