"""Run folders as the report sees them: read, grouped by their settings and by their prompts."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from consist.errors import ConsistError
from consist.evaluation.intervals import Interval
from consist.evaluation.report.text import number, plain
from consist.evaluation.scores import (
    SCORES,
    Evaluation,
    SetScores,
    Summary,
    read_scores,
    scores_path,
    summarize,
)
from consist.runs.config import SELDOM
from consist.runs.folder import ISOLATED, SHARED, RunFolder

MAX_SETS = 24  # whose pictures are shown: a third each of the best, the median and the worst


@dataclass(frozen=True)
class Run:
    """One set of pictures, as its folder has it."""

    folder: RunFolder
    record: Mapping[str, Any]
    scores: SetScores | None

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.path.name

    @property
    def config(self) -> Mapping[str, Any]:
        """What was asked for."""
        return dict(self.record.get("config", {}))

    @property
    def resolved(self) -> Mapping[str, Any]:
        """What came of it."""
        return dict(self.record.get("resolved", {}))

    @property
    def method(self) -> str:
        """The name of the method."""
        return str(self.config.get("method", {}).get("name", "unknown method"))

    @property
    def options(self) -> dict[str, Any]:
        """The settings of the method."""
        return {k: v for k, v in self.config.get("method", {}).items() if k != "name"}

    @property
    def prompts(self) -> tuple[str, ...]:
        """One per picture."""
        return tuple(self.config.get("prompts", ()))

    @property
    def key(self) -> tuple[Any, ...]:
        """Prompts and seeds; where they are the same, it is the same set."""
        return self.prompts, tuple(self.config.get("seeds", ()))

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows that were drawn, as ``RunFolder`` names them."""
        return (SHARED, ISOLATED) if self.config.get("compare") else (SHARED,)

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags, where something has set them."""
        return tuple(self.record.get("tags") or ())

    @property
    def settings(self) -> dict[str, Any]:
        """All that makes runs comparable where it is the same: everything but the set itself."""
        known = {**SELDOM, **self.config, **self.resolved}
        names = (
            *("model", "steps", "guidance", "scheduler", "width", "height"),
            *("negative", "loras", "embeddings", *SELDOM),
        )
        options = {name: value for name, value in self.options.items() if name != "subject"}
        return {"method": self.method, **options, **{name: known.get(name) for name in names}}

    def value(self, name: str, row: str = SHARED) -> float:
        """A score of a row; NaN where it was not measured."""
        if self.scores is None:
            return math.nan
        return (self.scores.isolated if row == ISOLATED else self.scores.scores).get(name, math.nan)

    def difference(self, name: str) -> float:
        """How much a score changed by sharing; NaN where it was not measured."""
        return self.value(name) - self.value(name, ISOLATED)


@dataclass(frozen=True)
class Group:
    """Runs of the same settings."""

    label: str
    runs: tuple[Run, ...]
    evaluation: Evaluation | None = None

    @cached_property
    def summary(self) -> dict[str, Summary]:
        """The scores over all sets that have any."""
        return summarize([run.scores for run in self.runs if run.scores])


@dataclass
class Story:
    """The same prompts from the same noise, drawn by one group or more."""

    prompts: tuple[str, ...]
    runs: dict[str, Run] = field(default_factory=dict)  # by the label of the group
    anchor: str = ""
    place: str = ""  # "best", "median" or "worst", where not all are shown

    @property
    def first(self) -> Run:
        """The run of the first group."""
        return next(iter(self.runs.values()))

    @property
    def title(self) -> str:
        """The words that all prompts begin with, or else the first prompt."""
        words = []
        for column in zip(*(prompt.split() for prompt in self.prompts), strict=False):
            if len(set(column)) > 1:
                break
            words.append(column[0])
        while words and words[-1].lower() in ("a", "an", "the", "in", "on", "at", "with", "and"):
            words.pop()
        return " ".join(words) or (self.prompts[0] if self.prompts else "no prompt")

    @property
    def words(self) -> str:
        """All that the filter of the page finds it by."""
        words = [self.title, *self.prompts]
        for label, run in self.runs.items():
            words += [label, run.name, *run.tags]
        return " ".join(words).lower()


def read_groups(
    folders: Sequence[RunFolder], evaluations: Sequence[Evaluation] = ()
) -> list[Group]:
    """Reads all runs, and puts those of the same settings together.

    Raises:
        ConsistError: There is none, one cannot be read, or an evaluation is of other runs.
    """
    unique = {folder.path.resolve(): folder for folder in folders}
    if not unique:
        raise ConsistError("no run was given; name at least one run folder")
    alike: dict[str, list[Run]] = defaultdict(list)
    for folder in unique.values():
        record = folder.read_record()
        run = Run(folder, record, read_scores(folder) if scores_path(folder).exists() else None)
        alike[json.dumps(run.settings, sort_keys=True, default=str)].append(run)
    labels = _labels([runs[0].settings for runs in alike.values()])
    groups = [Group(label, tuple(runs)) for label, runs in zip(labels, alike.values(), strict=True)]
    for evaluation in evaluations:
        place = _place(groups, evaluation)
        groups[place] = replace(groups[place], evaluation=evaluation)
    return groups


def _place(groups: Sequence[Group], evaluation: Evaluation) -> int:
    """Which group an evaluation is about: the one with most of its runs."""
    paths = {Path(run).resolve() for run in evaluation.runs}
    shares = [sum(r.folder.path.resolve() in paths for r in group.runs) for group in groups]
    if not max(shares):
        raise ConsistError("a summary is of other runs; give the runs that it was made of")
    return shares.index(max(shares))


def _labels(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The method of each group, with the settings in which the groups differ."""
    keys = dict.fromkeys(key for one in settings for key in one if key != "method")
    differing = [key for key in keys if len({str(one.get(key)) for one in settings}) > 1]
    labels = []
    for one in settings:
        details = [f"{key} {plain(one[key])}" for key in differing if one.get(key) is not None]
        labels.append(f"{one['method']} ({', '.join(details)})" if details else one["method"])
    return labels


def gather_stories(groups: Sequence[Group]) -> list[Story]:
    """Puts runs of the same prompts and seeds together, in the order in which they came."""
    stories: dict[Any, Story] = {}
    for group in groups:
        seen: Counter[Any] = Counter()
        for run in group.runs:
            seen[run.key] += 1
            key = (run.key, seen[run.key])
            story = stories.setdefault(key, Story(run.prompts, anchor=f"set-{len(stories) + 1}"))
            story.runs[group.label] = run
    return list(stories.values())


def choose_stories(stories: Sequence[Story], name: str | None, most: int = MAX_SETS) -> list[Story]:
    """The stories to show: all, or the best, the median and the worst by a score's difference.

    Args:
        stories: Of which the run of the first group counts.
        name: A key of ``SCORES``; None takes the first ones.
        most: A multiple of 3.
    """
    if len(stories) <= most:
        return list(stories)
    better = SCORES[name].better if name else 0
    gains = {story.anchor: story.first.difference(name or "") * better for story in stories}
    known = [story for story in stories if not math.isnan(gains[story.anchor])]
    if len(known) < most:
        return list(stories[:most])
    ranked = sorted(known, key=lambda story: -gains[story.anchor])
    third = most // 3
    starts = {"best": 0, "median": (len(ranked) - third) // 2, "worst": len(ranked) - third}
    return [replace(s, place=place) for place, i in starts.items() for s in ranked[i : i + third]]


def all_runs(groups: Sequence[Group]) -> list[Run]:
    """The runs of all groups."""
    return [run for group in groups for run in group.runs]


def title(groups: Sequence[Group]) -> str:
    """What the report is about."""
    runs = all_runs(groups)
    methods = dict.fromkeys(run.method for run in runs)
    models = dict.fromkeys(str(run.settings["model"]) for run in runs)
    return f"{' and '.join(methods)} on {' and '.join(models)}"


def present(summaries: Iterable[Mapping[str, Summary]]) -> list[str]:
    """The scores that were measured, in the order of ``SCORES``."""
    names = {name for summary in summaries for name in summary}
    return [name for name in SCORES if name in names]


def ranking(groups: Sequence[Group]) -> str | None:
    """The first score with a direction and a difference: by it sets are ranked."""
    for name in present(group.summary for group in groups):
        differences = [g.summary[name].difference for g in groups if name in g.summary]
        if SCORES[name].better and any(one.sets for one in differences):
            return name
    return None


def common_isolated(summaries: Mapping[str, Mapping[str, Summary]]) -> dict[str, Interval]:
    """The scores without sharing, if all methods were compared with the same; else nothing."""
    found: dict[str, Interval] = {}
    for name in present(summaries.values()):
        some = [s[name].isolated for s in summaries.values() if name in s]
        some = [one for one in some if one.sets] or some[:1]
        if len({(number(one.value), one.sets) for one in some}) > 1:
            return {}
        found[name] = some[0]
    return found if any(one.sets for one in found.values()) else {}
