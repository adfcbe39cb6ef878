"""Singular values of noise, and what to keep of a noisy matrix: random-matrix theory.

The model: an ``m x n`` matrix, ``beta = m / n <= 1``, is a matrix of low rank plus independent
noise of deviation ``sigma``. Singular values of noise alone end at ``(1 + sqrt(beta))`` times the
level ``sigma sqrt(n)``. "Gavish 2014" is arXiv:1305.5870, "Gavish 2017" arXiv:1405.7511, both by
M. Gavish and D. Donoho. Keys and values are no such matrix: how well the rules serve is measured.

Rules are spectra, as in ``consist.spectra.rules``: relative, with at least one value kept.
"""

import functools
import math

import torch
from torch import Tensor


@functools.cache
def median_of_noise(beta: float) -> float:
    """The median of the Marchenko-Pastur law: of squared singular values of noise at level 1.

    ``mu_beta`` of Gavish 2014, who integrate numerically. Substituting ``x = 1 + beta +
    2 sqrt(beta) cos(t)`` turns the density into ``(2 / pi) sin(t)^2 / x``, whose integral is
    elementary; its half is found by bisection.

    Args:
        beta: In (0, 1].
    """
    low, high = 0.0, math.pi
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _share_above(angle, beta) < 0.5 else (low, angle)
    return 1 + beta + 2 * math.sqrt(beta) * math.cos(low)


def optimal_threshold(beta: float) -> float:
    """The hard threshold of least squared error, in units of the noise level.

    ``lambda_*(beta)`` of Gavish 2014: ``4 / sqrt(3)`` for square matrices.

    Args:
        beta: In (0, 1].

    >>> round(optimal_threshold(1.0), 3), round(edge(1.0), 3)
    (2.309, 2.0)
    """
    root = math.sqrt(beta * beta + 14 * beta + 1)
    return math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + root))


def edge(beta: float) -> float:
    """The largest singular value of noise alone, in units of the noise level: 1 + sqrt(beta).

    Marchenko and Pastur 1967.
    """
    return 1 + math.sqrt(beta)


def noise_level(s: Tensor, noise: float = 0.0, *, beta: float = 1.0) -> Tensor:
    """The noise level ``sigma sqrt(n)`` of a matrix, in the units of its singular values.

    Args:
        s: Singular values ``(... r)``, descending.
        noise: Deviation of the noise as a share of the root mean square of the entries, in [0, 1];
            0: unknown, taken from the median singular value (``hat sigma`` of Gavish 2014).
        beta: Shorter side by longer side, in (0, 1].

    Returns:
        ``(... 1)``.

    Raises:
        ValueError: ``noise`` is outside [0, 1].
    """
    if not 0 <= noise <= 1:
        raise ValueError(f"noise is {noise}; allowed: 0 <= noise <= 1, 0 from the median")
    r = s.shape[-1]
    if noise:
        # the root mean square is |s| / sqrt(m n), with m = r
        return noise * torch.linalg.vector_norm(s, dim=-1, keepdim=True) / math.sqrt(r)
    median = (s[..., (r - 1) // 2] + s[..., r // 2]) / 2
    return median.unsqueeze(-1) / math.sqrt(median_of_noise(beta))


def keep_above_optimum(s: Tensor, noise: float = 0.0, *, beta: float = 1.0) -> Tensor:
    """Keeps the singular values above the hard threshold of least squared error.

    Gavish 2014: ``tau_* = lambda_*(beta) sqrt(n) sigma`` for a known level, ``omega(beta) y_med``
    with ``omega = lambda_* / sqrt(mu_beta)`` for an unknown one, 2.858 medians for square matrices.

    Args:
        noise: As in ``noise_level``.
        beta: Shorter side by longer side, in (0, 1].

    Raises:
        ValueError: ``noise`` is outside [0, 1].
    """
    return _keep_above(s, optimal_threshold(beta), noise, beta)


def keep_above_edge(s: Tensor, noise: float = 0.0, *, beta: float = 1.0) -> Tensor:
    """Keeps the singular values that noise alone could not have: above the bulk edge.

    Parameters as in ``keep_above_optimum``, whose threshold is 1.15 times as high for square
    matrices and 1.41 times for long ones.
    """
    return _keep_above(s, edge(beta), noise, beta)


def shrink(s: Tensor, noise: float = 0.0, *, beta: float = 1.0) -> Tensor:
    """Shrinks the singular values to those of least squared error; drops those of noise.

    ``eta(y) = sqrt((y^2 - beta - 1)^2 - 4 beta) / y`` above ``1 + sqrt(beta)``, else 0, with ``y``
    in units of the noise level: optimal for Frobenius loss, Gavish 2017. Deviation: where all
    would be dropped, the largest value stays as it is.

    Parameters as in ``keep_above_optimum``.
    """
    x = relative(s)
    level = noise_level(x, noise, beta=beta)
    high, low = (1 + math.sqrt(beta)) * level, (1 - math.sqrt(beta)) * level
    # the same root, in factors: it stays exact near the edge and needs no division by the level
    root = ((x - high).clamp_min(0) * (x + high) * (x - low).clamp_min(0) * (x + low)).sqrt()
    shrunk = root / x.clamp_min(torch.finfo(x.dtype).tiny)
    lost = (shrunk[..., :1] == 0) & _is_first(x)
    return torch.where(lost, s, shrunk * s[..., :1])


def _keep_above(s: Tensor, threshold: float, noise: float, beta: float) -> Tensor:
    x = relative(s)
    kept = x > threshold * noise_level(x, noise, beta=beta)
    return torch.where(kept | _is_first(s), s, 0)


def _share_above(angle: float, beta: float) -> float:
    """How much of the Marchenko-Pastur law lies above ``1 + beta + 2 sqrt(beta) cos(angle)``."""
    a, b, root = 1 + beta, 2 * math.sqrt(beta), math.sqrt(beta)
    # the integral of sin^2 / (a + b cos)
    pole = math.atan((1 - root) / (1 + root) * math.tan(angle / 2))
    integral = a * angle / b**2 - math.sin(angle) / b - 2 * (1 - beta) / b**2 * pole
    return 2 / math.pi * integral


def relative(s: Tensor) -> Tensor:
    """Singular values ``(... r)`` in units of the largest."""
    return s / s[..., :1].clamp_min(torch.finfo(s.dtype).tiny)


def _is_first(s: Tensor) -> Tensor:
    return torch.arange(s.shape[-1], device=s.device) == 0
