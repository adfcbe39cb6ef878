"""``--pack``: ready prompts, and the words that they are about."""

from __future__ import annotations

from pathlib import Path

from consist.errors import ConsistError


def words_of_subject(given: list[str], loras: list[str]) -> str:
    """The words for the prompts of a pack: those that were given, or that a LoRA was trained on.

    Raises:
        ConsistError: There are none, or several.
    """
    if len(given) > 1:
        raise ConsistError(f"a pack is about one --subject, not {len(given)}")
    if given:
        return given[0]
    from consist.models import split_weight
    from consist.training.disk import read_tensors

    for path in [Path(split_weight(text)[0]) for text in loras]:
        _, header = read_tensors(path)
        if header.get("prompt"):
            return header["prompt"]
    reason = "no LoRA says what it was trained on" if loras else "there is no LoRA to say so"
    raise ConsistError(f"a pack needs words for its subject, and {reason}; give --subject 'a cat'")


def read_packs(names: list[str], subject: str, model: str) -> tuple[str, ...]:
    """The prompts of packs, one pack after the other."""
    from consist.packs import load_pack

    return tuple(prompt for name in names for prompt in load_pack(name, subject, model))


def subject_field(method: str, subject: str) -> list[str] | None:
    """What a method is told of the subject of a pack, if it is told at all."""
    from consist.methods import METHODS
    from consist.methods.method import asks_for_subject
    from consist.packs import noun_of

    kind = METHODS.get(method)
    return [noun_of(subject)] if kind and asks_for_subject(kind()) else None
