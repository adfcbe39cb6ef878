"""Embeddings, attributes and masks to scores with confidence intervals.

Pure functions of numpy arrays; knows nothing of models, files or runs. A score of a set of images
is a mean over its image pairs, and NaN where the set has nothing to measure; a score of many sets
is an ``Interval``, in which such sets do not count. A pair is unordered and never an image with
itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Masks: TypeAlias = NDArray[np.bool_]
Pixels: TypeAlias = NDArray[np.uint8]
Features: TypeAlias = NDArray[np.floating[Any]]

# as many numbers as one block of the bootstrap draws
BLOCK = 2**20


@dataclass(frozen=True)
class Interval:
    """A mean over sets, where it probably lies, and how many sets were counted."""

    value: float
    low: float
    high: float
    sets: int


def bootstrap(
    values: ArrayLike, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Takes the mean over sets, with its percentile bootstrap interval (Efron 1979).

    The interval is a little too narrow below some 20 sets.

    Args:
        values: One score per set, ``(n)``; NaN sets are left out and not counted.
        level: In (0, 1), the share of intervals that cover the truth.
        seed: Of an own generator; the same values give the same interval.

    Returns:
        All NaN without a set; ``low`` and ``high`` NaN with one, which says nothing of the spread.

    Raises:
        ValueError: ``level`` or ``resamples`` is out of range, or ``values`` is not ``(n)``.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; allowed: 0 < level < 1")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; allowed: resamples >= 1")
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1:
        raise ValueError(f"values have shape {scores.shape}; allowed: one number per set")
    scores = scores[~np.isnan(scores)]
    if len(scores) < 2:
        return Interval(_mean(scores), math.nan, math.nan, len(scores))
    means = _resampled_means(scores, resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(scores.mean()), float(low), float(high), len(scores))


def bootstrap_difference(
    values: ArrayLike,
    baseline: ArrayLike,
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Takes the mean of ``values - baseline``, paired over sets; see ``bootstrap``.

    A set counts only if neither score is NaN. The difference is there if 0 lies outside.

    Raises:
        ValueError: The two are not of one length, or as in ``bootstrap``.
    """
    ours, theirs = (np.asarray(x, dtype=np.float64) for x in (values, baseline))
    if ours.shape != theirs.shape:
        raise ValueError(f"values and baseline have shapes {ours.shape} and {theirs.shape}")
    return bootstrap(ours - theirs, resamples=resamples, level=level, seed=seed)


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


def chance_agreement(shares: Mapping[str, Mapping[Any, float]]) -> float:
    """Gives the ``agreement`` to expect of identities drawn at random, with every attribute known.

    The mean over attributes of ``sum_v p(v)^2``.

    Args:
        shares: Attribute to value to probability; each attribute sums to 1 (within 1e-6).

    Returns:
        In (0, 1]; NaN without an attribute.

    Raises:
        ValueError: The numbers of an attribute are no probabilities.
    """
    for attribute, table in shares.items():
        if min(table.values(), default=0) < 0 or abs(sum(table.values()) - 1) > 1e-6:
            raise ValueError(f"{attribute} has {dict(table)}; allowed: probabilities that sum to 1")
    return _mean(sum(p * p for p in table.values()) for table in shares.values())


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


def spread(values: Iterable[Any], possible: Collection[Any]) -> float:
    """Measures how evenly the values of an attribute spread; see ``normalized_entropy``.

    ``n`` values reach at most ``log n / log k`` where ``n < k``.

    Args:
        values: One per image; None is unknown and left out.

    Raises:
        ValueError: A value is not possible.
    """
    known = [value for value in values if value is not None]
    names = list(dict.fromkeys(possible))
    for value in known:
        if value not in names:
            raise ValueError(f"value {value!r} is not among {names}")
    return normalized_entropy([known.count(name) for name in names])


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


def masked_histogram(pixels: Pixels, mask: Masks, bins: int = 4) -> NDArray[np.float64]:
    """Counts the colors under a mask: the baseline that every identity metric must beat.

    Args:
        pixels: ``(h w 3)`` uint8.
        mask: ``(h w)`` bool.
        bins: Per channel, in [1, 256], of equal width.

    Returns:
        ``(bins^3)``, red outermost, of length 1; zero for an empty mask.

    Raises:
        ValueError: The shapes do not fit, or ``bins`` is outside [1, 256].
    """
    _check_picture(pixels, mask)
    if not 1 <= bins <= 256:
        raise ValueError(f"bins is {bins}; allowed: 1 <= bins <= 256")
    index = pixels[mask].astype(np.int64) * bins // 256
    counts = np.bincount(index @ [bins * bins, bins, 1], minlength=bins**3).astype(np.float64)
    return counts / max(float(np.linalg.norm(counts)), 1.0)


def masked_crop(pixels: Pixels, mask: Masks, fill: int = 128) -> Pixels | None:
    """Cuts the subject out: on flat gray, in its bounding box padded to a square.

    Args:
        pixels: ``(h w 3)`` uint8.
        mask: ``(h w)`` bool.
        fill: In [0, 255].

    Returns:
        ``(s s 3)`` uint8, a copy, the box in the middle; None for an empty mask.

    Raises:
        ValueError: The shapes do not fit.
    """
    _check_picture(pixels, mask)
    if not mask.any():
        return None
    (top, left), (bottom, right) = np.argwhere(mask).min(0), np.argwhere(mask).max(0) + 1
    height, width = int(bottom - top), int(right - left)
    side = max(height, width)
    square = np.full((side, side, 3), fill, dtype=np.uint8)
    y, x = (side - height) // 2, (side - width) // 2
    box = background(pixels, ~mask, fill)[top:bottom, left:right]
    square[y : y + height, x : x + width] = box
    return square


def background(pixels: Pixels, mask: Masks, fill: int = 128) -> Pixels:
    """Replaces the subject by flat gray, ``(h w 3)`` uint8, a copy; arguments as ``masked_crop``.

    Raises:
        ValueError: The shapes do not fit.
    """
    _check_picture(pixels, mask)
    return np.where(mask[..., None], np.uint8(fill), pixels)


def _mean(values: Iterable[float]) -> float:
    numbers = np.fromiter(values, dtype=np.float64)
    return float(numbers.mean()) if len(numbers) else math.nan


def _mean_over_pairs(score: Callable[[Any, Any], float], things: Iterable[Any]) -> float:
    """Leaves out the pairs whose score is NaN."""
    scores = [score(a, b) for a, b in combinations(things, 2)]
    return _mean(x for x in scores if not math.isnan(x))


def _resampled_means(
    scores: NDArray[np.float64], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    step = max(1, BLOCK // len(scores))
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    drawn = (generator.integers(len(scores), size=(size, len(scores))) for size in sizes)
    return np.concatenate([scores[index].mean(1) for index in drawn])


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


def _check_picture(pixels: Pixels, mask: Masks) -> None:
    if pixels.dtype != np.uint8 or pixels.shape != (*mask.shape, 3) or mask.dtype != np.bool_:
        raise ValueError(
            f"pixels are {pixels.dtype} {pixels.shape}, the mask {mask.dtype} {mask.shape}; "
            "allowed: uint8 (h w 3) and bool (h w)"
        )
