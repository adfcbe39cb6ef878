"""Settings compared: with isolated pictures, with each other, and on the front of two scores.

Pure functions of scores. Intervals of differences are corrected for the number of comparisons by
Bonferroni: at the level ``1 - 0.05 / m`` for ``m`` of them, all intervals of one score hold the
truth at once with 95 %, however alike the settings are. Scores are not corrected for one another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from consist.evaluation.ablation.settings import Setting
from consist.evaluation.intervals import NORMAL_95, Interval, bootstrap_difference
from consist.evaluation.scores import QUALITIES, SCORES, SetScores, Summary
from consist.runs.folder import ISOLATED

LEVEL = 0.95  # of all intervals of one score together
BEYOND = 10  # resamples that lie beyond either end of an interval
# leakage and identity, or what comes nearest; the first pair that was measured is the front's
FRONTS = (
    ("background", "identity"),
    ("clip_i_background", "clip_i_foreground"),
    ("dino_background", "dino_foreground"),
    ("dreamsim_background", "dreamsim_foreground"),
    ("clip_t", "clip_i"),
    ("clip_t", "dino"),
    ("clip_t", "dreamsim"),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one setting came to, by the keys of ``SCORES`` and ``QUALITIES``."""

    setting: Setting
    values: Mapping[str, Interval]  # each by itself, at 95 %
    gains: Mapping[str, Interval]  # minus isolated pictures of the same noise, corrected
    contrasts: Mapping[str, Interval]  # minus the setting it is compared with, corrected


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What all settings came to."""

    outcomes: Sequence[Outcome]
    isolated: Mapping[str, Interval]  # scores of the isolated pictures, at 95 %
    comparisons: int  # that the intervals are corrected for
    level: float  # of each corrected interval
    axes: tuple[str, str] | None  # scores of the front, leakage first; None: not measured
    front: Sequence[str]  # names of settings that none beats, ISOLATED maybe among them


def compare(
    settings: Sequence[Setting],
    scores: Mapping[str, Sequence[SetScores]],
    summaries: Mapping[str, Mapping[str, Summary]],
) -> Comparison:
    """Compares settings over the same sets.

    Args:
        settings: At least one, and those that they are compared with.
        scores: By the names of the settings: the same sets in the same order.
        summaries: By the names of the settings: the same scores summed up, at 95 %, and the
            quality of all pictures at once.

    Raises:
        ValueError: Settings were measured on different numbers of sets.
    """
    sizes = sorted({len(scores[setting.name]) for setting in settings})
    if len(sizes) != 1:
        raise ValueError(f"settings were measured on {sizes} sets; allowed: all on the same")
    comparisons = len(settings) + sum(bool(setting.against) for setting in settings)
    level = 1 - (1 - LEVEL) / comparisons
    outcomes = [
        Outcome(
            setting=setting,
            values={name: one.value for name, one in summaries[setting.name].items()},
            gains=_gains(scores[setting.name], summaries[setting.name], level),
            contrasts=_contrasts(scores[setting.name], scores.get(setting.against, ()), level),
        )
        for setting in settings
    ]
    measured = set.intersection(*(set(one.gains) for one in outcomes))
    axes = next((pair for pair in FRONTS if measured.issuperset(pair)), None)
    return Comparison(
        outcomes=outcomes,
        isolated={name: one.isolated for name, one in summaries[settings[0].name].items()},
        comparisons=comparisons,
        level=level,
        axes=axes,
        front=_front(outcomes, axes) if axes else [],
    )


def _gains(
    sets: Sequence[SetScores], summary: Mapping[str, Summary], level: float
) -> dict[str, Interval]:
    gains = {
        name: _difference([one.scores for one in sets], [one.isolated for one in sets], name, level)
        for name in summary
        if name in SCORES
    }
    spread = {name: widen(summary[name].difference, level) for name in summary if name in QUALITIES}
    return {**gains, **spread}


def _contrasts(
    sets: Sequence[SetScores], others: Sequence[SetScores], level: float
) -> dict[str, Interval]:
    if not others:
        return {}
    ours, theirs = ([one.scores for one in part] for part in (sets, others))
    names = [name for name in SCORES if any(name in one for one in ours)]
    return {name: _difference(ours, theirs, name, level) for name in names}


def _difference(
    ours: Sequence[Mapping[str, float]],
    theirs: Sequence[Mapping[str, float]],
    name: str,
    level: float,
) -> Interval:
    values, baseline = ([one.get(name, math.nan) for one in sets] for sets in (ours, theirs))
    resamples = max(10_000, math.ceil(2 * BEYOND / (1 - level)))
    return bootstrap_difference(values, baseline, level=level, resamples=resamples)


def widen(interval: Interval, level: float) -> Interval:
    """A 95 % interval of the jackknife, which takes errors to be normal, at another level."""
    factor = NormalDist().inv_cdf((1 + level) / 2) / NORMAL_95
    value = interval.value
    low, high = (value + factor * (end - value) for end in (interval.low, interval.high))
    return Interval(value, low, high, interval.sets)


def _front(outcomes: Sequence[Outcome], axes: tuple[str, str]) -> list[str]:
    """The names on the front of gains, from little leakage to much; isolated pictures gain 0."""
    names = [ISOLATED, *(one.setting.name for one in outcomes)]
    signs = [merit(name) for name in axes]
    points = [(0.0, 0.0)]
    for one in outcomes:
        leakage, identity = (
            sign * one.gains[name].value for sign, name in zip(signs, axes, strict=True)
        )
        points.append((leakage, identity))
    return [names[index] for index in reversed(pareto_front(points))]


def merit(name: str) -> int:
    """1 where more of a score is better, else -1: similar backgrounds are leaks."""
    return SCORES[name].better or -1


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that none beats: no other is as large in both coordinates and larger in one.

    Args:
        points: Those with NaN are never on the front; of equal points all are, or none.

    Returns:
        Their indices, by the first coordinate, ascending.

    >>> pareto_front([(0.0, 0.0), (1.0, 3.0), (2.0, 2.0), (1.0, 2.0)])
    [1, 2]
    """
    known = [i for i, point in enumerate(points) if not any(map(math.isnan, point))]
    best = [i for i in known if not any(_beats(points[j], points[i]) for j in known)]
    return sorted(best, key=lambda i: (points[i][0], i))


def _beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a != b and a[0] >= b[0] and a[1] >= b[1]
