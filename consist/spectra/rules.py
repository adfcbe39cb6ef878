"""Singular values to singular values, by name.

Knows vectors alone, nothing of matrices, attention or layers. A spectrum takes singular values
``(... r)`` in descending order and gives as many, in that order, as a copy. It is relative
(scaling the matrix scales the result), works on each matrix alone, keeps at least one value and is
finite for every finite input. One that must know the shape of the matrix has a keyword ``beta``,
its shorter side divided by its longer one, which ``at_aspect`` fills in. "Grishina 2025" is E.
Grishina's coursework (HSE, 29.04.25), the source of most rules.
"""

import functools
import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor

from consist.errors import unknown
from consist.spectra.random_matrix import keep_above_edge, keep_above_optimum, relative, shrink

Spectrum = Callable[..., Tensor]

# in which log and log2 measure, as a share of the largest singular value
LOG_UNIT = 1e-3


def identity(s: Tensor) -> Tensor:
    """Keeps the singular values; the neutral element, known to ``filter_matrix`` by its name."""
    return s


def keep_count(s: Tensor, n: int) -> Tensor:
    """Keeps the ``n`` largest singular values ("fixed N", Grishina 2025).

    Args:
        n: At least 1; more than ``r`` keeps everything.

    Raises:
        ValueError: ``n`` is below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}; allowed: n >= 1")
    return torch.where(_rank_of(s) < n, s, 0)


def keep_fraction(s: Tensor, p: float) -> Tensor:
    """Keeps the ``ceil(p r)`` largest of ``r`` singular values.

    Args:
        p: In (0, 1]; 1 keeps everything.

    Raises:
        ValueError: ``p`` is outside (0, 1].
    """
    _check_share("p", p)
    # a product such as 0.07 * 100 lies a rounding above the whole number that is meant
    return torch.where(_rank_of(s) < math.ceil(p * s.shape[-1] - 1e-9), s, 0)


def keep_quantile(s: Tensor, p: float) -> Tensor:
    """Keeps the singular values that reach the ``1 - p`` quantile of their matrix (Grishina 2025).

    Args:
        p: In (0, 1]; 1 keeps everything, 0.05 the upper twentieth.

    Raises:
        ValueError: ``p`` is outside (0, 1].
    """
    _check_share("p", p)
    return torch.where(s >= s.quantile(1 - p, dim=-1, keepdim=True), s, 0)


def keep_energy(s: Tensor, share: float) -> Tensor:
    """Keeps the fewest singular values whose squares sum to at least ``share`` of the total.

    ``N = min{k : E(k) >= share}`` with ``E(k) = sum_{i<=k} s_i^2 / sum_i s_i^2`` (Grishina 2025,
    whose rule has ``>`` and so would never be met by ``share = 1``).

    Args:
        share: In (0, 1]; 1 keeps everything.

    Raises:
        ValueError: ``share`` is outside (0, 1].

    >>> keep_energy(torch.tensor([3.0, 1.0, 0.5]), 0.95)
    tensor([3., 1., 0.])
    """
    _check_share("share", share)
    energy = relative(s).square()
    # summed from the small end, so that a long tail is not lost in the rounding of the sum
    rest = energy.flip(-1).cumsum(-1).flip(-1)
    return torch.where((rest > (1 - share) * rest[..., :1]) | (_rank_of(s) == 0), s, 0)


def log(s: Tensor) -> Tensor:
    """Flattens the singular values by ``max(log s, 0)``, rescaled to the old Frobenius norm.

    Algorithm 1 of Grishina 2025. Deviations: ``s`` is measured in units of 1e-3 of the largest
    value (``LOG_UNIT``), since the plain logarithm depends on the scale of the matrix and is 0/0
    where all values lie below 1; and the norm is that of each matrix, not of the whole batch.
    """
    return _with_norm_of(s, (relative(s) / LOG_UNIT).clamp_min(1).log())


def log2(s: Tensor) -> Tensor:
    """Flattens the singular values by ``max(log s, 0)^2``, rescaled to the old Frobenius norm.

    "log^2" of Grishina 2025, not the logarithm to base 2; same units and shapes as ``log``.
    """
    return _with_norm_of(s, (relative(s) / LOG_UNIT).clamp_min(1).log().square())


def exp(s: Tensor, a: float) -> Tensor:
    """Sharpens the singular values to ``s exp(a s / s_1)``, rescaled to the old Frobenius norm.

    The exponential rule of Grishina 2025 (after 1Prompt1Story, arXiv:2501.13554). Deviation: the
    exponent is relative to the largest value ``s_1``.

    Args:
        a: In [-1, 20]; 0 changes nothing, below -1 the order of the values would turn.

    Raises:
        ValueError: ``a`` is outside [-1, 20].
    """
    if not -1 <= a <= 20:
        raise ValueError(f"a is {a}; allowed: -1 <= a <= 20")
    x = relative(s)
    return _with_norm_of(s, x * (a * x).exp())


def power(s: Tensor, p: float) -> Tensor:
    """Raises the singular values to ``s^p``, rescaled to the old Frobenius norm.

    Args:
        p: In (0, 8]; below 1 flattens, 1 changes nothing, above 1 sharpens.

    Raises:
        ValueError: ``p`` is outside (0, 8].
    """
    if not 0 < p <= 8:
        raise ValueError(f"p is {p}; allowed: 0 < p <= 8")
    return _with_norm_of(s, relative(s) ** p)


def schulz(s: Tensor, n: int) -> Tensor:
    """Flattens by ``n`` Newton-Schulz steps, rescaled to the old Frobenius norm.

    ``x <- x (3 - x^2) / 2`` on ``x = s / s_1``: what ``X <- X (3 I - X^T X) / 2`` does to a matrix
    ``X`` (Higham, Functions of Matrices, 2008, section 8.3), whose limit has all values equal.
    Small values grow by 1.5 at each step. Grishina's code has such a rule too, "newton-shults",
    with another polynomial. The faster quintic of the Muon optimizer (3.4445, -4.7750, 2.0315;
    K. Jordan 2024) is not monotone, so it would turn the order of the values.

    Args:
        n: In [1, 30]; 30 steps lift even 1e-4 of the largest value up to it.

    Raises:
        ValueError: ``n`` is outside [1, 30].
    """
    if not 1 <= n <= 30:
        raise ValueError(f"n is {n}; allowed: 1 <= n <= 30")
    x = relative(s)
    for _ in range(n):
        x = x * (3 - x * x) / 2
    return _with_norm_of(s, x)


def soft(s: Tensor, t: float) -> Tensor:
    """Takes ``t`` times the largest singular value from each, down to 0.

    Singular value thresholding, ``D_tau`` of Cai, Candes and Shen 2010 (arXiv:0810.3286, section
    2.1), with ``tau = t s_1``. The norm shrinks.

    Args:
        t: In [0, 0.99]; 0 changes nothing.

    Raises:
        ValueError: ``t`` is outside [0, 0.99].
    """
    if not 0 <= t <= 0.99:
        raise ValueError(f"t is {t}; allowed: 0 <= t <= 0.99")
    return (relative(s) - t).clamp_min(0) * s[..., :1]


SPECTRA: dict[str, Spectrum] = {
    "identity": identity,
    "count": keep_count,
    "fraction": keep_fraction,
    "quantile": keep_quantile,
    "energy": keep_energy,
    "log": log,
    "log2": log2,
    "exp": exp,
    "power": power,
    "schulz": schulz,
    "soft": soft,
    "svht": keep_above_optimum,
    "edge": keep_above_edge,
    "shrink": shrink,
}


def chain(*spectra: Spectrum) -> Spectrum:
    """Composes spectra from left to right; gives ``identity`` itself when they do nothing."""
    steps = [spectrum for spectrum in spectra if spectrum is not identity]
    if len(steps) < 2:
        return steps[0] if steps else identity

    def chained(s: Tensor, *, beta: float = 1.0) -> Tensor:
        for step in steps:
            s = at_aspect(step, beta)(s)
        return s

    return chained


def at_aspect(spectrum: Spectrum, beta: float) -> Spectrum:
    """The spectrum for matrices of aspect ratio ``beta``; itself if it has no such keyword.

    Args:
        beta: Shorter side by longer side, in (0, 1].
    """
    if "beta" not in inspect.signature(spectrum).parameters:
        return spectrum
    return functools.partial(spectrum, beta=beta)


@functools.cache
def parse_spectrum(text: str) -> Spectrum:
    """Reads a spectrum from its text: names of ``SPECTRA``, ``name:parameter``, joined by ``|``.

    Args:
        text: Such as ``"energy:0.95"``, ``"log|energy:0.95"`` (left to right) or ``"identity"``.
            A parameter that has a default may be left out.

    Returns:
        The spectrum, the same object for the same text; ``identity`` itself for ``"identity"``.

    Raises:
        ValueError: A name is unknown; a parameter is missing, superfluous or out of range.

    >>> parse_spectrum("log|count:1")(torch.tensor([1.0, 1.0]))
    tensor([1., 0.])
    """
    return chain(*(_parse_one(part.strip()) for part in text.split("|")))


def _parse_one(text: str) -> Spectrum:
    name, colon, value = (part.strip() for part in text.partition(":"))
    if name not in SPECTRA:
        raise ValueError(unknown("spectrum", name, SPECTRA))
    function = SPECTRA[name]
    parameter = _parameter_of(function)
    if colon and parameter is None:
        raise ValueError(f"spectrum {text!r}: {name} takes no parameter")
    if not colon and parameter is not None and parameter.default is parameter.empty:
        raise ValueError(f"spectrum {text!r}: {name} needs {parameter.name}, as {name}:...")
    try:
        spectrum = _bind(function, parameter, value) if colon and parameter else function
        # one call refuses a parameter out of range now and not in the middle of a run
        spectrum(torch.ones(1))
    except ValueError as error:
        raise ValueError(f"spectrum {text!r}: {error}") from None
    return spectrum


def _parameter_of(function: Spectrum) -> inspect.Parameter | None:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    given = [x for x in parameters if x.kind is not inspect.Parameter.KEYWORD_ONLY]
    return given[0] if given else None


def _bind(function: Spectrum, parameter: inspect.Parameter, value: str) -> Spectrum:
    try:
        number = parameter.annotation(value)
    except ValueError:
        kind = "whole number" if parameter.annotation is int else "number"
        raise ValueError(f"{parameter.name} is {value!r}; allowed: a {kind}") from None
    return functools.partial(function, **{parameter.name: number})


def _with_norm_of(s: Tensor, new: Tensor) -> Tensor:
    old_norm = torch.linalg.vector_norm(relative(s), dim=-1, keepdim=True)
    new_norm = torch.linalg.vector_norm(new, dim=-1, keepdim=True)
    return new * (old_norm / new_norm.clamp_min(torch.finfo(s.dtype).tiny)) * s[..., :1]


def _rank_of(s: Tensor) -> Tensor:
    return torch.arange(s.shape[-1], device=s.device)


def _check_share(name: str, value: float) -> None:
    # written so that NaN fails too
    if not 0 < value <= 1:
        raise ValueError(f"{name} is {value}; allowed: 0 < {name} <= 1")
