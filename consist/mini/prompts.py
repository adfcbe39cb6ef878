"""What a prompt asks of the mini world: the inverse of ``world.caption``.

Unknown words are passed over, so any prompt can be read. It must not know pictures or networks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from typing import Any

from consist.mini.actions import ACTIONS
from consist.mini.scenes import SCENES
from consist.mini.styles import STYLES
from consist.mini.subjects import ACCESSORIES, BUILDS, COLORS, HAIRS, PATTERNS, SIZES, SUBJECTS
from consist.mini.world import (
    Figure,
    Identity,
    Picture,
    beside,
    sample_identity,
    sample_pose,
)

ARTICLES = {"a", "an", "the"}
PLAIN = "plain"  # the one pattern that stands before its noun
# words that no adjective of the next subject stands before
BREAKS = {"and", "with", "in", "wearing", *SUBJECTS, *PATTERNS, *ACCESSORIES} - {PLAIN}


@dataclass(frozen=True)
class AskedSubject:
    """One subject of a prompt and what the prompt says of it."""

    subject: str  # a key of SUBJECTS
    attributes: Mapping[str, str]  # fields of Identity, those that are named


@dataclass(frozen=True)
class Asked:
    """All that a prompt asks for; None is left open."""

    subjects: tuple[AskedSubject, ...]  # in the order of the prompt
    action: str | None  # a key of ACTIONS
    scene: str | None  # a key of SCENES
    style: str  # a key of STYLES; flat where the prompt names none


def asked(prompt: str) -> Asked:
    """Reads a prompt.

    >>> wish = asked("Pixel art of a girl in red with long hair, dancing on the moon")
    >>> wish.style, wish.action, wish.scene
    ('pixel', 'dancing', 'moon')
    >>> wish.subjects[0]
    AskedSubject(subject='girl', attributes={'color': 'red', 'feature': 'big'})
    """
    words = _words(prompt)
    style, words = _cut(words, {name: style.prefix for name, style in STYLES.items()})
    scene, words = _cut(words, {name: scene.phrase for name, scene in SCENES.items()})
    action, words = _cut(words, {name: action.word for name, action in ACTIONS.items()})
    subjects = tuple(_describe(words, *span) for span in _spans(words))
    return Asked(subjects, action, scene, style or next(iter(STYLES)))


def imagine(wish: Asked, rng: Random) -> Picture:
    """Samples a picture that shows what is asked; what is left open is as the world has it.

    Raises:
        ValueError: No subject is asked for, or more than the world draws.
    """
    if not 1 <= len(wish.subjects) <= 2:
        raise ValueError(f"{len(wish.subjects)} subjects are asked for; allowed: 1 or 2")
    figures = [
        Figure(identity=imagine_identity(subject, rng), pose=sample_pose(rng))
        for subject in wish.subjects
    ]
    if len(figures) == 2:
        figures = [beside(figure, side, rng) for side, figure in enumerate(figures)]
    action = wish.action or "standing"
    return Picture(
        figures=tuple(replace(f, pose=replace(f.pose, action=action)) for f in figures),
        scene=wish.scene or rng.choice(list(SCENES)),
        scene_seed=rng.randrange(2**31),
        style=wish.style,
    )


def imagine_identity(wish: AskedSubject, rng: Random) -> Identity:
    """Samples an identity with the attributes that are asked for."""
    named = wish.attributes
    drawn: dict[str, Any] = {**vars(sample_identity(rng, wish.subject)), **named}
    # colors that are not asked for differ from those that are, and from each other
    spare = iter(rng.sample([color for color in COLORS if color not in named.values()], 3))
    for name in ("color", "pattern_color", "accessory_color"):
        drawn[name] = named.get(name) or next(spare)
    if drawn["pattern"] == PLAIN:
        drawn["pattern_color"] = None
    if drawn["accessory"] == "none":
        drawn["accessory_color"] = None
    return Identity(**drawn)


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z]+", text.lower()) if word not in ARTICLES]


def _cut(words: list[str], phrases: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """Finds the longest of the phrases, and gives its name and the words without it."""
    for name, phrase in sorted(phrases.items(), key=lambda item: -len(_words(item[1]))):
        wanted = _words(phrase)
        if wanted and (start := _find(words, wanted)) is not None:
            return name, words[:start] + words[start + len(wanted) :]
    return None, words


def _find(words: Sequence[str], wanted: Sequence[str]) -> int | None:
    for start in range(len(words) - len(wanted) + 1):
        if list(words[start : start + len(wanted)]) == list(wanted):
            return start
    return None


def _spans(words: list[str]) -> Iterator[tuple[int, int, int]]:
    """For each subject: where its description starts, its noun, and the end."""
    nouns = [i for i, word in enumerate(words) if word in SUBJECTS]
    starts = [_start(words, noun) for noun in nouns]
    yield from zip(starts, nouns, [*starts[1:], len(words)], strict=False)


def _start(words: list[str], noun: int) -> int:
    """Where the adjectives before a noun begin."""
    start = noun
    while start and words[start - 1] not in BREAKS:
        start -= 1
    return start


def _describe(words: list[str], start: int, noun: int, end: int) -> AskedSubject:
    before, after = words[start:noun], words[noun + 1 : end]
    kind = SUBJECTS[words[noun]]
    # a person wears its color: "in red"
    colors = [b for a, b in pairwise(after) if a == "in"]
    found = {
        "color": _first(colors if kind.person else before, COLORS),
        "pattern": _first(before, (PLAIN,)) or _first(after, PATTERNS),
        "feature": next((s for s in SIZES if _has(after, kind.describe(s))), None),
        "build": _first(before, BUILDS),
        "accessory": _first(after, ACCESSORIES),
        "hair": _first(before, HAIRS) if kind.person else None,
    }
    for part in ("pattern", "accessory"):
        if found[part] in after:
            found[f"{part}_color"] = _first([_word_before(after, found[part])], COLORS)
    return AskedSubject(words[noun], {name: value for name, value in found.items() if value})


def _first(words: Sequence[str], values: Sequence[str] | Mapping[str, Any]) -> str | None:
    return next((word for word in words if word in values), None)


def _has(words: Sequence[str], phrase: str) -> bool:
    return _find(words, _words(phrase)) is not None


def _word_before(words: list[str], word: str | None) -> str:
    place = words.index(str(word))
    return words[place - 1] if place else ""
