"""Embeddings, attributes and masks to scores.

Pure functions of numpy arrays; knows nothing of models, files or runs. A score of a set of images
is a mean over its image pairs, and NaN where the set has nothing to measure. A pair is unordered
and never an image with itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Masks: TypeAlias = NDArray[np.bool_]
Features: TypeAlias = NDArray[np.floating[Any]]


def agreement(identities: Sequence[Mapping[str, Any]]) -> float:
    """Measures the share of attributes in which two images agree, as a mean over image pairs.

    Args:
        identities: Per image, attribute to value; None, or no entry, is unknown or not applicable.
            Counted are the attributes known in both; pairs without one are left out.

    Returns:
        In [0, 1]; NaN without a pair.

    >>> agreement([{"coat": "red", "hat": "none"}, {"coat": "red", "hat": "bow"}, {"coat": None}])
    0.5
    """
    return _mean_over_pairs(_share_agreed, identities)


def mask_overlap(masks: Masks) -> float:
    """Measures the intersection over union of two masks, as a mean over pairs.

    Args:
        masks: ``(n h w)`` bool. Pairs of two empty masks are left out; one empty mask gives 0.

    Returns:
        In [0, 1], 1 where all subjects cover the same pixels; NaN without a pair.
    """
    return _mean_over_pairs(_overlap, _checked_masks(masks))


def aligned_overlap(masks: Masks) -> float:
    """Measures ``mask_overlap`` with the centroids moved onto each other.

    Near 1 where the pose and the size are copied, even if the subject stands elsewhere. Moves by
    whole pixels; nothing is cut off at the border. Empty masks count as in ``mask_overlap``.
    """
    return _mean_over_pairs(_overlap, [_centered(mask) for mask in _checked_masks(masks)])


def displacement(masks: Masks) -> float:
    """Measures the distance between the centroids of two masks, as a mean over pairs.

    Args:
        masks: ``(n h w)`` bool. Pairs with an empty mask are left out.

    Returns:
        In [0, 1), in diagonals of the picture; NaN without a pair.
    """
    masks = _checked_masks(masks)
    centers = [np.argwhere(mask).mean(0) for mask in masks if mask.any()]
    diagonal = math.hypot(*masks.shape[1:])
    return _mean_over_pairs(lambda a, b: float(np.linalg.norm(a - b)) / diagonal, centers)


def cosines(a: Features, b: Features) -> NDArray[np.float64]:
    """Gives the cosine of each row of ``a`` with the same row of ``b``, ``(n d)`` twice to ``(n)``.

    In [-1, 1]; NaN where a row is zero.

    Raises:
        ValueError: The shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"features have shapes {a.shape} and {b.shape}; allowed: one shape")
    found: NDArray[np.float64] = (_directions(a) * _directions(b)).sum(-1).clip(-1, 1)
    return found


def mean_pairwise_cosine(features: Features, center: Features | None = None) -> float:
    """Gives the mean cosine over all ``n (n - 1) / 2`` pairs of rows.

    Args:
        features: ``(n d)``; rows that are zero have no direction and are left out.
        center: ``(d)``, subtracted first; such as the mean over a whole collection.

    Returns:
        In [-1, 1], 1 where all rows point in one direction; NaN without a pair.
    """
    rows = _rows(features)
    directions = _directions(rows if center is None else rows - np.asarray(center, np.float64))
    directions = directions[~np.isnan(directions).any(1)]
    pairs = np.triu_indices(len(directions), 1)
    return _mean((directions @ directions.T).clip(-1, 1)[pairs])


def mean_pairwise_distance(features: Features, center: Features | None = None) -> float:
    """Gives 1 minus ``mean_pairwise_cosine``: in [0, 2], 0 where all rows point one way."""
    return 1 - mean_pairwise_cosine(features, center)


def frechet_distance(a: Features, b: Features) -> float:
    """Measures how far apart the Gaussians fitted to two sets of features are.

    ``|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`` (Heusel et al. 2017, arXiv:1706.08500,
    Eq. 6). Biased upward for few samples, most below ``d``: compare only sets of one size.

    Args:
        a: ``(n d)``; b: ``(m d)``. float64 inside.

    Returns:
        At least 0, in squared feature units; NaN where a set has fewer than two rows.

    Raises:
        ValueError: The two differ in ``d``.
    """
    x, y = _same_width(a, b)
    if min(len(x), len(y)) < 2:
        return math.nan
    cov_x, cov_y = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (x, y))
    root = _square_root(cov_x)
    # the same trace as of (S_a S_b)^(1/2), of a symmetric matrix
    crossed = np.sqrt(np.linalg.eigvalsh(root @ cov_y @ root).clip(0)).sum()
    shift = np.square(x.mean(0) - y.mean(0)).sum()
    return max(float(shift + np.trace(cov_x) + np.trace(cov_y) - 2 * crossed), 0.0)


def kernel_distance(a: Features, b: Features) -> float:
    """Gives the unbiased squared MMD with the kernel ``(x . y / d + 1)^3``.

    KID of Binkowski et al. 2018, arXiv:1801.01401, section 4, over all samples at once rather than
    over random subsets. Fit for few samples; just below 0 where the sets come from one source.

    Args:
        a: ``(n d)``; b: ``(m d)``. float64 inside.

    Returns:
        NaN where a set has fewer than two rows.

    Raises:
        ValueError: The two differ in ``d``.
    """
    x, y = _same_width(a, b)
    if min(len(x), len(y)) < 2:
        return math.nan
    within = [_mean(_kernel(rows, rows)[~np.eye(len(rows), dtype=bool)]) for rows in (x, y)]
    return sum(within) - 2 * float(_kernel(x, y).mean())


def normalized_entropy(counts: ArrayLike) -> float:
    """Measures how evenly counts spread over all possible values.

    Args:
        counts: ``(k)``, at least 0, one for each possible value, seen or not.

    Returns:
        Entropy to the base ``k``: 0 for one value only, 1 for all alike; NaN without a count or
        with fewer than two possible values.

    Raises:
        ValueError: A count is below 0.
    """
    numbers = np.asarray(counts, dtype=np.float64)
    if (numbers < 0).any():
        raise ValueError(f"counts are {numbers.tolist()}; allowed: counts >= 0")
    if len(numbers) < 2 or not numbers.any():
        return math.nan
    p = numbers[numbers > 0] / numbers.sum()
    return abs(float((p * np.log(p)).sum())) / math.log(len(numbers))


def expected_calibration_error(confidences: ArrayLike, correct: ArrayLike, bins: int = 10) -> float:
    """Measures how far confidence is from accuracy (Guo et al. 2017, arXiv:1706.04599, Eq. 3).

    Bins of equal width, ``(i / bins, (i + 1) / bins]``, the first with 0; weighted by their size.

    Args:
        confidences: ``(n)`` in [0, 1]; correct: ``(n)`` bool.

    Returns:
        In [0, 1], 0 where 70 % confidence is right in 70 %; NaN for no answers.

    Raises:
        ValueError: Lengths differ, a confidence is outside [0, 1], or ``bins`` is below 1.
    """
    sure, right = np.asarray(confidences, np.float64), np.asarray(correct, np.float64)
    if sure.shape != right.shape or bins < 1:
        raise ValueError(f"shapes {sure.shape}, {right.shape}, bins {bins}; allowed: bins >= 1")
    if not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError("a confidence is outside [0, 1]")
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    gaps = np.bincount(np.searchsorted(edges, sure), weights=right - sure, minlength=bins)
    return float(np.abs(gaps).sum()) / len(sure) if len(sure) else math.nan


def _mean(values: Iterable[float]) -> float:
    numbers = np.fromiter(values, dtype=np.float64)
    return float(numbers.mean()) if len(numbers) else math.nan


def _mean_over_pairs(score: Callable[[Any, Any], float], things: Iterable[Any]) -> float:
    """Leaves out the pairs whose score is NaN."""
    scores = [score(a, b) for a, b in combinations(things, 2)]
    return _mean(x for x in scores if not math.isnan(x))


def _share_agreed(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    known = [name for name in a if a[name] is not None and b.get(name) is not None]
    return _mean(a[name] == b[name] for name in known)


def _checked_masks(masks: Masks) -> Masks:
    if masks.ndim != 3 or masks.dtype != np.bool_:
        raise ValueError(f"masks are {masks.dtype} {masks.shape}; allowed: bool (n h w)")
    return masks


def _overlap(a: Masks, b: Masks) -> float:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else math.nan


def _centered(mask: Masks) -> Masks:
    """Moves the centroid to the middle of a canvas that holds every move, ``(2h+1 2w+1)``."""
    canvas = np.zeros([2 * size + 1 for size in mask.shape], dtype=bool)
    places = np.argwhere(mask)
    if len(places):
        # whole numbers, so that a moved copy of a mask is rounded as the mask is
        center = (2 * places.sum(0) + len(places)) // (2 * len(places))
        canvas[tuple((places - center + mask.shape).T)] = True
    return canvas


def _rows(features: Features) -> NDArray[np.float64]:
    if features.ndim != 2:
        raise ValueError(f"features have shape {features.shape}; allowed: (n d)")
    return features.astype(np.float64)


def _same_width(a: Features, b: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features have shapes {a.shape} and {b.shape}; allowed: (n d), (m d)")
    return _rows(a), _rows(b)


def _directions(features: Features) -> NDArray[np.float64]:
    rows = features.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    found: NDArray[np.float64] = np.full_like(rows, math.nan)
    np.divide(rows, lengths, out=found, where=lengths > 0)
    return found


def _square_root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric root of a symmetric positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    root: NDArray[np.float64] = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return root


def _kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    kernel: NDArray[np.float64] = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel
