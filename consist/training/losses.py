"""How much each error of a denoiser counts: formulas on tensors.

It must not know models, photos or prompts.
"""

from __future__ import annotations

import torch
from einops import reduce
from torch import Tensor

from consist.models.noising import PREDICTIONS


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
