"""Scores of many runs to one evaluation: means, chance levels, and distances to drawn pictures."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from random import Random
from typing import Any, TypeAlias

import numpy as np

from consist.errors import ConsistError
from consist.evaluation.intervals import jackknife
from consist.evaluation.judges.by_reader import PictureReader, ReadingJudge, mean_known
from consist.evaluation.judges.judge import Judge
from consist.evaluation.metrics import Features, agreement, frechet_distance, kernel_distance
from consist.evaluation.scores import Evaluation, SetScores, Summary, summarize
from consist.mini.prompts import asked, imagine
from consist.mini.world import draw
from consist.runs.folder import ROWS, RunFolder, identity

BLOCKS = 20  # of sets, left out in turn to see how far a distance varies

Triple: TypeAlias = tuple[Features, Features, Features]  # shared, isolated, drawn by the world
Distance: TypeAlias = Callable[[Features, Features], float]

DISTANCES: dict[str, Distance] = {
    "frechet": frechet_distance,
    "kernel": kernel_distance,
}


def combine(
    folders: Sequence[RunFolder],
    scores: Sequence[SetScores],
    judges: Sequence[Judge],
    tags: Sequence[Sequence[str]] = (),
) -> Evaluation:
    """Sums up runs that were measured, over all and over the sets of each tag.

    Raises:
        ConsistError: There is none.
    """
    if not folders:
        raise ConsistError("there is no finished run to sum up")
    groups: dict[str, list[SetScores]] = defaultdict(list)
    for one, names in zip(scores, tags, strict=False):
        for tag in names:
            groups[tag].append(one)
    configs = [settings_of(folder) for folder in folders]
    readers = [judge.reader for judge in judges if isinstance(judge, ReadingJudge)]
    return Evaluation(
        scores=summarize(scores),
        tags={tag: summarize(group) for tag, group in groups.items()},
        chance={
            tag: chance_levels(group) for tag, group in {"": scores, **groups}.items() if readers
        },
        quality=measure_quality(folders, readers[0]) if readers else {},
        settings=in_common(configs, {"prompts", "seeds", "compare"}),
        choices=in_common([one.choices for one in scores], {"chance", "noun"}),
        runs=[str(folder.path) for folder in folders],
    )


def settings_of(folder: RunFolder) -> dict[str, Any]:
    """What a run was drawn with; the subject that its method was told belongs to its prompts."""
    config = identity(folder.read_config())
    told = config["method"]
    return {**config, "method": {name: told[name] for name in told if name != "subject"}}


def in_common(mappings: Sequence[Mapping[str, Any]], without: set[str]) -> dict[str, Any]:
    """The entries that all mappings share."""
    first, *others = mappings
    return {
        name: value
        for name, value in first.items()
        if name not in without and all(other.get(name) == value for other in others)
    }


def chance_levels(scores: Sequence[SetScores]) -> dict[str, float]:
    """The identity agreement of unrelated subjects, that no method can claim for itself.

    Returns:
        "world": of identities as the world samples them, a mean over sets. "measured": of isolated
        pictures of different sets whose subjects are described alike, a mean over descriptions.
    """
    sampled = [one.choices["chance"]["identity"] for one in scores]
    return {
        "world": mean_known(value for value in sampled if value is not None),
        "measured": mean_known(
            mean_known(agreement([a, b]) for (i, a), (j, b) in combinations(found, 2) if i != j)
            for found in unrelated(scores).values()
        ),
    }


def unrelated(
    scores: Sequence[SetScores],
) -> dict[tuple[Any, ...], list[tuple[int, dict[str, str]]]]:
    """The subjects of isolated pictures, with the number of their set, by their description."""
    groups: dict[tuple[Any, ...], list[tuple[int, dict[str, str]]]] = defaultdict(list)
    for number, one in enumerate(scores):
        for image in one.images:
            for wish in image["asked"]["subjects"]:
                for found in image["isolated"]["subjects"]:
                    if found["subject"] == wish["subject"]:
                        key = (wish["subject"], *sorted(wish["attributes"].items()))
                        who = {k: v for k, v in found["attributes"].items() if k != "action"}
                        groups[key].append((number, who))
    return groups


def measure_quality(folders: Sequence[RunFolder], reader: PictureReader) -> dict[str, Summary]:
    """Distances of all pictures to as many pictures of the same content that the world draws.

    In the reader's features. Biased upward for few pictures: compare only evaluations of the same
    sets. Intervals by the jackknife over blocks of sets (Efron and Stein 1981).
    """
    found = [features_of(folder, reader) for folder in folders]
    triples = [triple for triple in found if len(triple[0])]
    blocks = min(BLOCKS, len(triples))
    # neighbors are of one kind, so a block takes every so manieth set
    rest = [[t for i, t in enumerate(triples) if i % blocks != out] for out in range(blocks)]
    quality = {}
    for name, distance in DISTANCES.items():
        values = _measure(distance, triples)
        without = np.array([_measure(distance, some) for some in rest]).reshape(-1, len(values))
        intervals = [
            jackknife(value, column, len(triples))
            for value, column in zip(values, without.T, strict=True)
        ]
        quality[name] = Summary(value=intervals[0], isolated=intervals[1], difference=intervals[2])
    return quality


def features_of(folder: RunFolder, reader: PictureReader) -> Triple:
    """Features ``(n d)`` of both rows, and of pictures that the world draws of their prompts.

    Prompts that the world cannot draw are left out.
    """
    wishes = {index: asked(prompt) for index, prompt in enumerate(folder.read_config().prompts)}
    drawable = {i: wish for i, wish in wishes.items() if 1 <= len(wish.subjects) <= 2}
    # the same prompts are drawn in the same way, whichever runs are summed up
    rng = Random(repr(drawable))
    drawn = [draw(imagine(wish, rng)).image for wish in drawable.values()]
    shared, isolated = ([folder.read_picture(i, row) for i in drawable] for row in ROWS)
    return reader.features(shared), reader.features(isolated), reader.features(drawn)


def _measure(distance: Distance, triples: Sequence[Triple]) -> tuple[float, float, float]:
    """With sharing, without, and the difference."""
    if not triples:
        return math.nan, math.nan, math.nan
    shared, isolated, drawn = (np.concatenate(column) for column in zip(*triples, strict=True))
    ours, theirs = distance(shared, drawn), distance(isolated, drawn)
    return ours, theirs, ours - theirs
