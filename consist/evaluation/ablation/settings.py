"""What an ablation tries, and on which sets. It must not know how anything is drawn or measured."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consist.errors import ConsistError, unknown
from consist.methods import spell_out
from consist.runs.many.benchmarks import PromptSet

HALVES = ("first", "second")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One thing that is tried."""

    name: str  # unlike that of every other setting
    method: Mapping[str, Any]  # name and fields, as ``consist.methods.build`` takes them
    group: str = ""  # what it has in common with others
    against: str = ""  # another setting that it is compared with, beside the isolated pictures
    masked: bool = False  # told the masks of the isolated pictures, not those of cross-attention

    def digest(self, base: Mapping[str, Any]) -> str:
        """Tells it from all other settings and from other ``base`` fields: 8 hex digits."""
        whole = {**base, "method": spell_out(self.method), "masked": self.masked}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:8]


def choose(
    settings: Sequence[Setting], names: Sequence[str] = (), most: int | None = None
) -> list[Setting]:
    """Chooses some settings, in their order; those that they are compared with come along.

    Args:
        settings: Of different names.
        names: Of those to choose; none: all.
        most: At most so many, spread evenly; what comes along is not counted.

    Raises:
        ConsistError: A name is unknown.
        ValueError: Two settings have one name, or one is compared with none of them.
    """
    known = {setting.name: setting for setting in settings}
    if len(known) < len(settings):
        raise ValueError("settings have the same name; allowed: different names")
    for setting in settings:
        if setting.against and setting.against not in known:
            raise ValueError(f"{setting.name} is compared with {setting.against!r}, no setting")
    for name in names:
        if name not in known:
            raise ConsistError(unknown("setting", name, known))
    chosen = [setting for setting in settings if not names or setting.name in names]
    count = min(len(chosen), most or len(chosen))
    spread = [chosen[i * len(chosen) // count] for i in range(count)]
    wanted = {name for setting in spread for name in (setting.name, setting.against)}
    return [setting for setting in settings if setting.name in wanted]


def split_half(sets: Sequence[PromptSet], half: str) -> list[PromptSet]:
    """Half of the sets: the first to explore, the second to confirm once what the first has shown.

    Stratified by tags: sets with the same tags are ordered by the SHA-256 of their names, and all
    sets go to the halves in turn. So of every such group, and of all sets, either half has as many
    as the other or one more, and nothing that follows the order of the benchmark tells them apart.

    Args:
        sets: The whole benchmark.
        half: One of ``HALVES``.

    Returns:
        In the order of ``sets``.

    Raises:
        ConsistError: There is no such half, or it is empty.
    """
    if half not in HALVES:
        raise ConsistError(unknown("half", half, HALVES))
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for one in sets:
        groups[one.tags].append(one.name)
    names = [name for group in groups.values() for name in sorted(group, key=_shuffled)]
    kept = set(names[HALVES.index(half) :: 2])
    if not kept:
        raise ConsistError(f"the {half} half of {len(sets)} sets is empty")
    return [one for one in sets if one.name in kept]


def _shuffled(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
