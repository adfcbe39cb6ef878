"""Benchmarks: named sets of prompts about one subject each, from the package or from a file.

The file's format is that of ConsiStory+ (``resource/consistory+.yaml`` of byliutao/1Prompt1Story,
arXiv:2501.13554, section 4.1): categories, each a list of sets. It must not know how anything is
drawn or measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from consist.errors import ConsistError, unknown
from consist.prompts.yaml_files import read_yaml
from consist.runs.config import MAX_SEED
from consist.runs.many.worklist import take_shard

FOLDER = Path(__file__).parent
BENCHMARKS = {"mini-sets": FOLDER / "mini-sets.yaml"}
# gen_benchmark.py of 1Prompt1Story draws every set from it
PUBLISHED_SEED = 42


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts that show one subject."""

    name: str  # unlike all others of the benchmark; fit for a folder
    prompts: tuple[str, ...]
    seed: int  # of the first picture
    tags: tuple[str, ...]  # the category first
    subject: str | None = None  # the noun of the subject: ConsiStory's concept token


def load_benchmark(name: str | Path) -> list[PromptSet]:
    """Reads a benchmark that the package carries, or a YAML file.

    A set has the keys of ConsiStory+: ``subject``, ``settings`` and maybe ``style`` and
    ``concept_token``; also ``seed`` and ``tags``. A prompt is style, subject and setting, with a
    space between them, as gen_benchmark.py of 1Prompt1Story and consistory_run.py of
    NVlabs/consistory have it; a set is called after its category and its place there.

    Raises:
        ConsistError: There is no such benchmark, or the file is not of this format.
    """
    path = BENCHMARKS.get(str(name), Path(name))
    data = read_yaml("benchmark", str(name), path, BENCHMARKS)
    if not isinstance(data, dict) or not all(isinstance(sets, list) for sets in data.values()):
        raise ConsistError(f"benchmark {path} must map categories to lists of sets")
    found = [one for category, sets in data.items() for one in _read(str(category), sets)]
    if not found:
        raise ConsistError(f"benchmark {path} holds no set")
    if len({one.name for one in found}) < len(found):
        raise ConsistError(f"benchmark {path} has categories that differ in punctuation alone")
    return found


def shorten(one: PromptSet, pictures: int) -> PromptSet:
    """The set with its first pictures alone, under another name.

    Raises:
        ConsistError: Fewer than two pictures are asked for.
    """
    if pictures < 2:
        raise ConsistError(f"pictures must be at least 2, so that a set can agree, not {pictures}")
    return replace(one, name=f"{one.name}-{pictures}", prompts=one.prompts[:pictures])


def select(
    sets: Sequence[PromptSet],
    *,
    tag: str | None = None,
    limit: int | None = None,
    shard: str = "1/1",
) -> list[PromptSet]:
    """Chooses some of the sets, in their order.

    Args:
        sets: At least one.
        tag: Only those with it.
        limit: At most so many, spread evenly over the rest.
        shard: ``I/N``, the part I of N parts that together hold every set once; I from 1.

    Raises:
        ConsistError: No set has the tag, or limit or shard cannot be.
    """
    chosen = [one for one in sets if tag is None or tag in one.tags]
    if not chosen:
        tags = sorted({name for one in sets for name in one.tags})
        raise ConsistError(unknown("tag", str(tag), tags))
    if limit is not None:
        if limit < 1:
            raise ConsistError(f"limit must be at least 1, not {limit}")
        count = min(limit, len(chosen))
        chosen = [chosen[i * len(chosen) // count] for i in range(count)]
    return list(take_shard(chosen, shard))


def _read(category: str, sets: Sequence[Any]) -> Iterator[PromptSet]:
    for index, entry in enumerate(sets):
        name = re.sub(r"[^\w.+-]+", "-", f"{category}_{index}")
        if not isinstance(entry, dict):
            raise ConsistError(f"set {name} must have the keys subject and settings")
        start = " ".join(filter(None, (_text(name, entry, "style"), _text(name, entry, "subject"))))
        if not start:
            raise ConsistError(f"set {name} has no subject")
        yield PromptSet(
            name=name,
            prompts=tuple(f"{start} {setting}" for setting in _texts(name, entry, "settings")),
            seed=_seed(name, entry),
            tags=(category, *(_texts(name, entry, "tags") if "tags" in entry else ())),
            subject=_text(name, entry, "concept_token") or None,
        )


def _text(name: str, entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key) or ""
    if not isinstance(value, str):
        raise ConsistError(f"set {name}: {key} must be a text, not {value!r}")
    return value.strip()


def _texts(name: str, entry: Mapping[str, Any], key: str) -> list[str]:
    values = entry.get(key)
    texts = isinstance(values, list) and all(isinstance(v, str) and v.strip() for v in values)
    if not texts or not values:
        raise ConsistError(f"set {name}: {key} must be a list of texts, not {values!r}")
    return [value.strip() for value in values]


def _seed(name: str, entry: Mapping[str, Any]) -> int:
    seed = entry.get("seed", PUBLISHED_SEED)
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise ConsistError(f"set {name}: seed must be a whole number from 0, not {seed!r}")
    return seed
