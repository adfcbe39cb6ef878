"""Scores of many sets to a mean and where it probably lies.

Pure functions of numpy arrays. A set that has nothing to measure is NaN and does not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK = 2**20  # as many numbers as one block of the bootstrap draws
NORMAL_95 = 1.96  # standard errors on either side of a 95 % interval


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
        return Interval(_only(scores), math.nan, math.nan, len(scores))
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


def jackknife(value: float, without: Sequence[float] | NDArray[np.float64], sets: int) -> Interval:
    """A 95 % interval from a statistic of all blocks, and of all but each one.

    The variance is ``(b - 1) / b`` times the sum of squares about the mean, for ``b`` blocks.
    """
    if len(without) < 2:
        return Interval(value, math.nan, math.nan, sets)
    half = NORMAL_95 * math.sqrt((len(without) - 1) * float(np.var(without)))
    return Interval(value, value - half, value + half, sets)


def _resampled_means(
    scores: NDArray[np.float64], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    step = max(1, BLOCK // len(scores))
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    drawn = (generator.integers(len(scores), size=(size, len(scores))) for size in sizes)
    return np.concatenate([scores[index].mean(1) for index in drawn])


def _only(scores: NDArray[np.float64]) -> float:
    return float(scores[0]) if len(scores) else math.nan
