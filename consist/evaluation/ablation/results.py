"""The results of an ablation as files: all numbers as JSON, and one plot as SVG."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from consist.evaluation.ablation.comparison import Comparison, merit
from consist.evaluation.ablation.front_plot import Point, draw_front
from consist.evaluation.intervals import Interval
from consist.evaluation.scores import SCORES, to_plain
from consist.files import write_atomically
from consist.runs.folder import ISOLATED

FORMAT = 1
ZERO = Interval(0.0, 0.0, 0.0, 0)  # what isolated pictures gain


@dataclass(frozen=True, kw_only=True)
class Trial:
    """An ablation that is done."""

    question: str  # its first line is a title
    comparison: Comparison
    facts: Mapping[str, Any]  # how it was done: command, seed, sets, versions, hardware
    costs: Mapping[str, Mapping[str, float]]  # more numbers, by the names of settings

    @property
    def title(self) -> str:
        """The question in one line."""
        return self.question.strip().splitlines()[0]


def write_results(trial: Trial, folder: Path, name: str) -> list[Path]:
    """Writes ``name.json``, and ``name.svg`` where there is a front; gives the paths.

    The numbers are written first, so that they are there whatever becomes of the plot.

    Raises:
        ConsistError: The disk or the permissions do not allow it, or matplotlib is not installed.
    """
    found = to_plain(to_json(trial))
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
    paths = [folder / f"{name}.json"]
    _write(paths[0], f"{text}\n")
    if found["axes"]:
        paths.append(folder / f"{name}.svg")
        _write(paths[1], plot(found))
    return paths


def to_json(trial: Trial) -> dict[str, Any]:
    """All that was done and found."""
    comparison = trial.comparison
    return {
        "format": FORMAT,
        "question": trial.question.strip(),
        **trial.facts,
        "correction": correction(comparison),
        "axes": comparison.axes,
        "front": comparison.front,
        "isolated": _intervals(comparison.isolated),
        "outcomes": [
            {
                **asdict(one.setting),
                "values": _intervals(one.values),
                "gains": _intervals(one.gains),
                "contrasts": _intervals(one.contrasts),
                "costs": trial.costs.get(one.setting.name, {}),
            }
            for one in comparison.outcomes
        ],
    }


def correction(comparison: Comparison) -> str:
    """How the intervals are corrected, for people."""
    count, level = comparison.comparisons, 100 * comparison.level
    return (
        f"intervals at {level:.5g} %, which makes 95 % for all {count} comparisons of a score "
        "together (Bonferroni)"
    )


def plot(found: Mapping[str, Any]) -> str:
    """Every setting a point, numbered from 2; isolated pictures are the first.

    Args:
        found: What ``write_results`` wrote as JSON, with axes.

    Raises:
        ConsistError: matplotlib is not installed.
    """
    axes, front = found["axes"], found["front"]
    points = [
        Point(
            name=one["name"],
            group=one["group"],
            across=read_interval(one["gains"][axes[0]]),
            up=read_interval(one["gains"][axes[1]]),
            best=one["name"] in front,
        )
        for one in found["outcomes"]
    ]
    alone = Point(name=ISOLATED, group="", across=ZERO, up=ZERO, best=ISOLATED in front)
    across, up = (f"{SCORES[name].title}, minus {ISOLATED}" for name in axes)
    return draw_front(
        [alone, *points],
        found["question"].splitlines()[0],
        found["correction"],
        (across, up),
        (merit(axes[0]), merit(axes[1])),
    )


def read_interval(written: Sequence[float | None]) -> Interval:
    """An interval as results have it: value, low, high and sets, None for what is not known."""
    *ends, sets = written
    value, low, high = (math.nan if end is None else end for end in ends)
    return Interval(value, low, high, int(sets or 0))


def name_cpu() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _write(path: Path, content: str) -> None:
    write_atomically(path, lambda file: file.write(content.encode()))


def _intervals(found: Mapping[str, Interval]) -> dict[str, list[float]]:
    """Value, low, high and number of sets, with five decimals: people read the file too."""
    return {
        name: [*(round(end, 5) for end in (one.value, one.low, one.high)), one.sets]
        for name, one in found.items()
    }
