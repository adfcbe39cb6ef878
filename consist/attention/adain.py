"""Tokens brought to the mean and deviation of others."""

from __future__ import annotations

import torch
from torch import Tensor


def affine(x: Tensor, reference: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """The gain above 0 and the shift of each channel in ``adain``, both ``(... 1 d)``."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    variance, mean = torch.var_mean(x.to(dtype), -2, correction=0, keepdim=True)
    wanted, center = torch.var_mean(reference.to(dtype), -2, correction=0, keepdim=True)
    gain = ((wanted + eps) / (variance + eps)).sqrt()
    return gain, center - gain * mean
