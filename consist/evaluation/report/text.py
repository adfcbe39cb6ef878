"""Numbers to text, and what may be said of them. It must not know where they come from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from consist.evaluation.intervals import Interval
from consist.evaluation.scores import Score

DASH, MINUS = "\u2013", "\u2212"
# a two-sided sign test cannot reach 5 % with fewer sets, whatever the numbers
MIN_SETS = 6


def verdict(score: Score, difference: Interval) -> str:
    """Whether sharing made it "better" or "worse"; empty where that cannot be said.

    Neutral scores and fewer than ``MIN_SETS`` sets are never called either.
    """
    shown = difference.low > 0 or difference.high < 0
    if not score.better or not shown or difference.sets < MIN_SETS:
        return ""
    return "better" if (difference.low > 0) == (score.better > 0) else "worse"


def direction(score: Score) -> str:
    """Which way is better, short."""
    return {1: "↑ higher is better", -1: "↓ lower is better", 0: ""}[score.better]


def number(value: float, sign: str = "") -> str:
    """Three places; with a plus too where ``sign`` is "+"."""
    return DASH if math.isnan(value) else f"{value:{sign}.3f}".replace("-", MINUS)


def ends(interval: Interval) -> str:
    """Where a mean lies; empty where that is not known."""
    known = not math.isnan(interval.low)
    return f"[{number(interval.low, '+')}, {number(interval.high, '+')}]" if known else ""


def plain(value: Any) -> str:
    """A setting as people write it.

    >>> plain([7.0, "mini"])
    '7, mini'
    """
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def count(items: int | Sequence[Any], noun: str) -> str:
    """How many there are."""
    total = items if isinstance(items, int) else len(items)
    return f"{total} {noun}{'' if total == 1 else 's'}"


def listed(values: Iterable[str], most: int = 5) -> str:
    """The first of the values."""
    texts = list(values)
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if texts[most:] else "")


def gather(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """All that was said under each name.

    >>> gather([("torch", "2.12"), ("torch", "2.13"), ("torch", "2.12")])
    {'torch': '2.12 / 2.13'}
    """
    said: dict[str, dict[str, None]] = {}
    for name, value in pairs:
        said.setdefault(name, {})[value] = None
    return {name: " / ".join(values) for name, values in said.items()}
