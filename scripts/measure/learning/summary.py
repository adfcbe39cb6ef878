"""What all ways came to over all subjects: intervals, files and a plot.

It must not know how anything is trained or drawn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import Any

from consist.evaluation.ablation.results import read_interval
from consist.evaluation.intervals import Interval, bootstrap
from consist.evaluation.scores import to_plain
from consist.files import write_atomically
from learning.curve_plot import Curve, Panel, draw_curves
from learning.known_subjects import KNOWN_SCORES
from learning.learning_curve import BASE, Entry

FORMAT = 1
KEPT = "kept"  # the diversity of the class, of the base model's


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What one way came to, each number with its 95 % interval over subjects."""

    name: str
    steps: int | None  # of training; None without
    values: Mapping[str, Interval]  # by the keys of KNOWN_SCORES
    gains: Mapping[str, Interval]  # minus the base model, paired over subjects; and KEPT
    costs: Mapping[str, Interval]


def stand(entries: Sequence[Entry]) -> list[Standing]:
    """Sums entries up, ways in the order in which they first come; those of BASE are among them."""
    base = {one.subject: one.scores for one in entries if one.name == BASE}
    groups: dict[tuple[str, int | None], list[Entry]] = {}
    for one in entries:
        groups.setdefault((one.name, one.steps), []).append(one)
    return [
        Standing(
            name=name,
            steps=steps,
            values={key: over([one.scores.get(key) for one in group]) for key in KNOWN_SCORES},
            gains={
                **{key: over([gain(one, base, key) for one in group]) for key in KNOWN_SCORES},
                KEPT: over([kept(one, base) for one in group]),
            },
            costs={key: over([one.costs[key] for one in group]) for key in group[0].costs},
        )
        for (name, steps), group in groups.items()
    ]


def over(values: Sequence[float | None]) -> Interval:
    """The mean over subjects of what is known."""
    return bootstrap([math.nan if value is None else value for value in values])


def gain(entry: Entry, base: Mapping[str, Mapping[str, float]], key: str) -> float:
    """What a way has more than the base model for the same subject."""
    return entry.scores.get(key, math.nan) - base[entry.subject].get(key, math.nan)


def kept(entry: Entry, base: Mapping[str, Mapping[str, float]]) -> float:
    """The share of the class's diversity that is left."""
    before = base[entry.subject].get("diversity", math.nan)
    return entry.scores.get("diversity", math.nan) / before if before else math.nan


def write_standings(
    standings: Sequence[Standing],
    entries: Sequence[Entry],
    facts: Mapping[str, Any],
    folder: Path,
    name: str,
) -> list[Path]:
    """Writes ``name.json`` and ``name.svg``, and gives the paths.

    Args:
        standings: Of ``stand``.
        entries: That they were made of.
        facts: The question and how it was answered; with "chance" and "photos".
        folder: Of the files.
        name: Of the files.

    Raises:
        ConsistError: The disk or the permissions do not allow it, or matplotlib is not installed.
    """
    content = {
        "format": FORMAT,
        **facts,
        "intervals": "95 % over subjects (bootstrap), each by itself",
        "standings": [
            {
                "name": one.name,
                "steps": one.steps,
                **{
                    part: {key: numbers(value) for key, value in getattr(one, part).items()}
                    for part in ("values", "gains", "costs")
                },
            }
            for one in standings
        ],
        "subjects": [
            {**vars(one), "scores": rounded(one.scores), "costs": rounded(one.costs)}
            for one in entries
        ],
    }
    found = to_plain(content)
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    paths = [folder / f"{name}.json", folder / f"{name}.svg"]
    write_atomically(paths[0], methodcaller("write", text.encode()))
    write_atomically(paths[1], methodcaller("write", plot(found).encode()))
    return paths


def numbers(interval: Interval) -> list[float]:
    """Value, low, high and number of subjects: people read the file too."""
    ends = (interval.value, interval.low, interval.high)
    return [*(round(end, 5) for end in ends), interval.sets]


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """The same with five decimals."""
    return {key: round(value, 5) for key, value in values.items()}


def plot(found: Mapping[str, Any]) -> str:
    """Identity, fidelity to the scene and what is left of the class, against steps.

    Args:
        found: What ``write_standings`` wrote as JSON.

    Raises:
        ConsistError: matplotlib is not installed.
    """
    standings = found["standings"]
    chance = {"chance": found["chance"]["identity"], "the photos": found["photos"]}
    panels = [
        Panel("identity with the photos", curves(standings, "values", "identity"), chance),
        Panel("scene fidelity, minus the base model", curves(standings, "gains", "scene"), {"": 0}),
        Panel("class diversity, of the base model's", curves(standings, "gains", KEPT), {"": 1}),
    ]
    return draw_curves(panels, "steps of training", found["title"], "bars: 95 % over subjects")


def curves(standings: Sequence[Mapping[str, Any]], part: str, key: str) -> list[Curve]:
    """A line for each way to learn, and one point at 0 for each way without training."""
    lines: dict[str, list[tuple[float, Interval]]] = {}
    for one in standings:
        interval = read_interval(one[part][key])
        lines.setdefault(one["name"], []).append((one["steps"] or 0, interval))
    return [Curve(name, tuple(points)) for name, points in lines.items()]
