"""What a spectrum makes of a matrix, without an eigendecomposition at every step of denoising.

For GPUs, which decompose many small matrices slowly, and products of them fast. Smooth spectra
become one polynomial of the Gram matrix, hard cuts an orthogonal iteration that begins where the
step before ended. Nothing here waits for the device. ``solve_exactly`` is what both approximate.
"""

import functools

import torch
from torch import Tensor

from consist.spectra.decomposition import Solver, decompose, solve_exactly, weights_of
from consist.spectra.rules import Spectrum

SOLVERS = ("auto", "exact", "fast")
# spectra f(s) that are smooth in log(s), one value at a time, up to a common factor that keeps the
# Frobenius norm
SMOOTH = ("identity", "log", "log2", "exp", "power", "schulz")
STEPS = 12  # of Newton-Schulz; singular values are told apart down to 1.5^-12 of the largest
SQUARINGS = 6  # of a Gram matrix, to find its largest eigenvalue
ROUNDS = 2  # of orthogonal iteration in each step of denoising


class Bases:
    """Eigenvectors by place, such as a layer: those of one step begin the search in the next."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, Tensor]] = {}

    def recall(self, place: str, progress: float, shape: torch.Size) -> Tensor | None:
        """Those kept for the place at a step before ``progress``; None if they do not fit."""
        before, v = self._known.get(place, (progress, None))
        return v if v is not None and before < progress and v.shape == shape else None

    def keep(self, place: str, progress: float, v: Tensor) -> None:
        """Keeps ``v`` ``(... d d)`` in place of what was there."""
        self._known[place] = progress, v


def find_solver(
    name: str, text: str, device: torch.device, bases: Bases, place: str, progress: float
) -> Solver:
    """The solver of that name for a spectrum.

    Args:
        name: "exact", "fast", or "auto": fast on CUDA, exact elsewhere.
        text: The spectrum, as ``parse_spectrum`` reads it.
        device: Where the matrices are.
        bases: What other steps have found.
        place: Which matrices they are.
        progress: Of denoising.
    """
    if name == "exact" or (name == "auto" and device.type != "cuda"):
        return solve_exactly
    if is_smooth(text):
        return solve_smoothly
    return functools.partial(_solve_warm, bases=bases, place=place, progress=progress)


def is_smooth(text: str) -> bool:
    """Whether a spectrum is the same polynomial for all matrices, and no cut that each has its own.

    >>> is_smooth("log|power:0.5"), is_smooth("log|energy:0.95")
    (True, False)
    """
    return all(part.partition(":")[0].strip() in SMOOTH for part in text.split("|"))


def solve_smoothly(gram: Tensor, spectrum: Spectrum, beta: float) -> Tensor:
    """Gives ``V diag(f(s) / s) V^T`` as a polynomial of the Gram matrix ``V diag(s^2) V^T``.

    The iterates ``s_0 = s``, ``s_{k+1} = s_k (3 - s_k^2) / 2`` of Newton and Schulz rise from 0 to
    1 where ``s`` is about ``1.5^-k`` of the largest value, so that sums of them follow any function
    that is smooth in ``log s``. Here ``s_k = s z_k(s^2)``, and the matrices of ``z_k`` come from
    the coupled iteration (Higham, Functions of Matrices, 2008, chapter 6): ``T = (3 I - Z Y) / 2``,
    ``Y <- Y T``, ``Z <- T Z`` from ``Y = G / s_1^2``, ``Z = I``.

    Args:
        gram: ``(... d d)``.
        spectrum: One whose text ``is_smooth``.
        beta: Is not used; all solvers take it.

    Returns:
        ``(... d d)``, scaled to keep the Frobenius norm of the matrix.
    """
    tiny = torch.finfo(gram.dtype).tiny
    unit = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    first, *others = _fit(spectrum)
    y = gram / largest_eigenvalue(gram).clamp_min(tiny)[..., None, None]
    z = unit.expand_as(gram)
    total = first * unit
    for coefficient in others:
        t = (3 * unit - z @ y) / 2
        y, z = y @ t, t @ z
        total = total + coefficient * z
    before, after = _trace(gram), ((total @ gram) * total).sum((-2, -1))
    return total * (before / after.clamp_min(tiny)).sqrt()[..., None, None]


def largest_eigenvalue(gram: Tensor) -> Tensor:
    """A little less than the largest eigenvalue of Gram matrices ``(... d d)``, as ``(...)``.

    ``tr G^65 / tr G^64``. It is least for one eigenvalue of 1 and ``d - 1`` that are ``t``:
    ``(1 + (d - 1) t^65) / (1 + (d - 1) t^64)``, of which the minimum over ``t`` is 0.964 for
    d = 64, 0.954 for d = 160: singular values are measured in a unit that is 2.4 % short at most.
    """
    tiny = torch.finfo(gram.dtype).tiny
    powers = gram / _trace(gram).clamp_min(tiny)[..., None, None]
    for _ in range(SQUARINGS):
        powers = powers @ powers
        powers = powers / _trace(powers).clamp_min(tiny)[..., None, None]
    return (powers * gram).sum((-2, -1))


def fitted(s: Tensor, spectrum: Spectrum) -> tuple[Tensor, Tensor]:
    """What ``solve_smoothly`` takes a spectrum for, and the spectrum: how far they are apart.

    Where ``s`` is 0.01 and above, ``log`` is met within 0.007 of its largest value, ``log2`` and
    ``power:0.5`` within 0.008, ``exp:2`` within 0.002 and ``schulz`` exactly; below, ``log`` within
    0.05. A polynomial of the same cost in Chebyshev's basis is 3 to 10 times further from ``log``.

    Args:
        s: Singular values ``(r,)``, descending from 1, float64.

    Returns:
        Two of ``(r,)``, both in units of the largest value of the spectrum.
    """
    wanted = spectrum(s)
    return _iterates(s) @ torch.tensor(_fit(spectrum), dtype=s.dtype), wanted / wanted.amax()


@functools.cache
def _fit(spectrum: Spectrum) -> tuple[float, ...]:
    """The coefficients of the iterates that are nearest to a spectrum, by least squares."""
    fine = torch.logspace(-4, 0, 4000, dtype=torch.float64)
    even = torch.linspace(1e-3, 1, 4000, dtype=torch.float64)
    s = torch.cat((fine, even)).sort(descending=True).values
    wanted = spectrum(s)
    basis, target = _iterates(s), (wanted / wanted.amax()).unsqueeze(-1)
    found = torch.linalg.lstsq(basis, target, rcond=1e-12, driver="gelsd").solution
    return tuple(found.squeeze(-1).tolist())


def _iterates(s: Tensor) -> Tensor:
    """The Newton-Schulz iterates of ``s`` ``(r,)``, as ``(r, STEPS + 1)``."""
    steps = [s]
    for _ in range(STEPS):
        steps.append(steps[-1] * (3 - steps[-1].square()) / 2)
    return torch.stack(steps, -1)


def iterate(gram: Tensor, v: Tensor, rounds: int = ROUNDS) -> tuple[Tensor, Tensor]:
    """Singular values, descending, and right singular vectors nearly, from vectors that were near.

    Orthogonal iteration (Golub and Van Loan, Matrix Computations, 4th ed., section 8.2.4): in each
    round the span of the first ``r`` vectors comes nearer to that of the ``r`` leading ones by
    ``s_{r+1}^2 / s_r^2`` at least, in the tangent of the angle between them. The vectors are sorted
    by the singular values that they have. Where rounding leaves too little of them to be made
    orthogonal, they stay as they were.

    Args:
        gram: ``(... d d)``.
        v: Orthogonal, ``(... d d)``.
        rounds: How often.

    Returns:
        ``s`` of ``(... d)``, at least sqrt(eps) of the largest, and ``v`` of ``(... d d)``.
    """
    eps, tiny = torch.finfo(gram.dtype).eps, torch.finfo(gram.dtype).tiny
    unit = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    # without it, images of the least vectors would be rounding alone
    lifted = gram + 8 * eps * _trace(gram)[..., None, None] * unit
    for _ in range(rounds):
        v = _sort_columns(v, gram)[1]
        images = lifted @ v
        images = images / images.norm(dim=-2, keepdim=True).clamp_min(tiny)
        v = _orthogonalize(images, otherwise=v)
    squares, v = _sort_columns(v, gram)
    return squares.maximum(eps * squares[..., :1]).clamp_min(0).sqrt(), v


def _orthogonalize(x: Tensor, otherwise: Tensor) -> Tensor:
    """The columns made orthogonal one after another; ``otherwise`` where that fails.

    By Cholesky's decomposition of their products, since that is batched on GPUs, unlike
    Householder's; and twice, since the first time squares the condition of ``x`` (CholeskyQR2 of
    Yamamoto et al. 2015).
    """
    for _ in range(2):
        factor, failed = torch.linalg.cholesky_ex(x.mT @ x, upper=True)
        found = torch.linalg.solve_triangular(factor, x, upper=True, left=False)
        x = torch.where((failed == 0)[..., None, None], found, otherwise)
    return x


def _sort_columns(v: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """The squared singular values that the columns have, descending, and the columns so sorted."""
    squares, order = (v * (gram @ v)).sum(-2).sort(dim=-1, descending=True)
    return squares, v.gather(-1, order.unsqueeze(-2).expand_as(v))


def _solve_warm(
    gram: Tensor, spectrum: Spectrum, beta: float, *, bases: Bases, place: str, progress: float
) -> Tensor:
    """As ``solve_exactly``: exactly at first, then from the vectors of the step before."""
    known = bases.recall(place, progress, gram.shape)
    s, v = decompose(gram) if known is None else iterate(gram, known)
    bases.keep(place, progress, v)
    return (v * weights_of(s, spectrum, beta=beta).unsqueeze(-2)) @ v.mT


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
