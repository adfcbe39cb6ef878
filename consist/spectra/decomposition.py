"""The one place that decomposes a matrix, always through its Gram matrix.

Knows nothing of attention, images or layers; what becomes of singular values is said by a spectrum.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from consist.spectra.rules import Spectrum, at_aspect, identity

# gives M = V diag(f(s) / s) V^T for the Gram matrix V diag(s^2) V^T of A, a spectrum f, and the
# shorter side of A by its longer one
Solver = Callable[[Tensor, Spectrum, float], Tensor]


def solve_exactly(gram: Tensor, spectrum: Spectrum, beta: float) -> Tensor:
    """Gives ``V diag(f(s) / s) V^T`` by eigendecompositions of Gram matrices ``(... d d)``."""
    s, v = decompose(gram)
    return (v * weights_of(s, spectrum, beta=beta).unsqueeze(-2)) @ v.mT


def filter_matrix(
    a: Tensor, spectrum: Spectrum, *, centered: bool = False, solve: Solver = solve_exactly
) -> Tensor:
    """Gives ``U f(S) V^T`` for the matrix ``U S V^T`` and the spectrum ``f``, each matrix alone.

    Through the Gram matrix: ``U f(S) V^T = A V diag(f(s) / s) V^T``, in float32 (float64 for
    float64). That knows singular values down to sqrt(eps) of the largest, 3.5e-4 in float32, and
    takes smaller ones for that: enough for ``LOG_UNIT``, and 1.6 times as fast as float64.

    Args:
        a: Finite matrices ``(... l d)``, such as the keys of ``l`` tokens; never changed.
        spectrum: From ``r = min(l, d)`` singular values, descending, to as many.
        centered: Takes the mean over ``l`` out before and puts it back after.
        solve: What takes the place of the eigendecomposition; see
        ``consist.spectra.approximation``.

    Returns:
        ``(... l d)`` in the dtype of ``a``; ``a`` itself for ``identity``. Gradients flow as if
        the reweighting ``V diag(f(s) / s) V^T`` were constant: the derivative of singular vectors
        is unbounded where singular values meet.
    """
    if spectrum is identity or a.numel() == 0:
        return a
    return in_floats(
        a, functools.partial(_reweight, spectrum=spectrum, solve=solve), centered=centered
    )


def in_floats(
    a: Tensor,
    change: Callable[[Tensor], Tensor],
    *,
    centered: bool = False,
    scaled_over: tuple[int, ...] = (-2, -1),
) -> Tensor:
    """Changes matrices in float32 (float64 for float64), scaled to a largest entry of 1.

    Args:
        a: Finite matrices ``(... l d)``, not empty; never changed.
        change: Linear in the scale; matrices ``(... l d)`` to as many.
        centered: Takes the mean over ``l`` out before and puts it back after.
        scaled_over: The axes of the entries that share one scale.

    Returns:
        ``(... l d)`` in the dtype of ``a``, clamped to its range.
    """
    x = a if a.dtype == torch.float64 else a.float()
    scale = unit_of(x, scaled_over)
    x = x / scale
    # autocast would take the Gram matrix in half precision
    with torch.autocast(x.device.type, enabled=False):
        if centered:
            mean = x.mean(dim=-2, keepdim=True)
            x = change(x - mean) + mean
        else:
            x = change(x)
    limit = torch.finfo(a.dtype).max
    return (x * scale).clamp(-limit, limit).to(a.dtype)


def unit_of(a: Tensor, dim: tuple[int, ...]) -> Tensor:
    """The largest entry over the axes ``dim``, which are kept, and never 0.

    Measured in it, no square in a Gram matrix over- or underflows.
    """
    return a.detach().abs().amax(dim=dim, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny)


def decompose(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values, descending, and right singular vectors of ``A``, from its Gram matrix.

    Args:
        gram: ``A^T A``, ``(... d d)``.

    Returns:
        ``s`` of ``(... d)``, at least sqrt(eps) of the largest, and ``v`` of ``(... d d)``.
    """
    squares, v = eigh(gram)
    squares, v = squares.flip(-1), v.flip(-1)
    floor = torch.finfo(gram.dtype).eps * squares[..., :1]
    return squares.clamp_min(0).maximum(floor).sqrt(), v


def weights_of(s: Tensor, spectrum: Spectrum, *, beta: float) -> Tensor:
    """The factors ``f(s) / s`` by which a spectrum changes singular values ``(... r)``."""
    return at_aspect(spectrum, beta)(s) / s.clamp_min(torch.finfo(s.dtype).tiny)


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of symmetric matrices ``(... d d)``."""
    if matrix.device.type == "cuda":
        return tuple(torch.linalg.eigh(matrix))
    if matrix.device.type != "cpu":
        values, vectors = eigh(matrix.cpu())
        return values.to(matrix.device), vectors.to(matrix.device)
    # on busy cores LAPACK's threads wait for each other: 24 matrices of 32 x 32 took 1300 ms with
    # two threads and 1.2 ms with one
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return tuple(torch.linalg.eigh(matrix))
    finally:
        torch.set_num_threads(threads)


def _reweight(x: Tensor, spectrum: Spectrum, solve: Solver) -> Tensor:
    tokens, features = x.shape[-2:]
    if tokens < features:
        return _reweight(x.mT, spectrum, solve).mT
    with torch.no_grad():
        reweighting = solve(x.mT @ x, spectrum, features / tokens)
    return x @ reweighting
