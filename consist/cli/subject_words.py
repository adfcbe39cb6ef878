"""``--pack`` and ``--lora-negative``: ready prompts, and the words for a subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consist.cli.options import MethodOptions
from consist.errors import ConsistError


def name_subject(
    prompts: tuple[str, ...],
    given: list[str],
    packs: list[str],
    method: MethodOptions,
    told: Mapping[str, Any],
) -> tuple[tuple[str, ...], list[str], tuple[str, ...]]:
    """Who hears which words for the subject of a run.

    Args:
        prompts: That were given.
        given: The words that were given.
        packs: Names or files of ready prompts.
        method: Asks for the words, or does not.
        told: Other fields of the run, of which the model and the LoRAs count.

    Returns:
        All prompts; the words for the method; and those for what the LoRAs have learned.

    Raises:
        ConsistError: A pack cannot be read, or lacks words.
    """
    loras, words = list(told["loras"]), given
    if packs:
        from consist.prompts.packs import noun_of

        phrase = words_of_subject(given, loras)
        prompts += read_packs(packs, phrase, told["model"])
        words = [noun_of(phrase)]
    learned = words_of_loras(words, loras, prompts) if told["lora_negative"] != 1 else ()
    unheard = (packs or learned) and not is_told(method.method)
    return prompts, [] if unheard else words, learned


def words_of_subject(given: list[str], loras: list[str]) -> str:
    """The words for the prompts of a pack: those that were given, or that a LoRA was trained on.

    Raises:
        ConsistError: There are none, or several.
    """
    if len(given) > 1:
        raise ConsistError(f"a pack is about one --subject, not {len(given)}")
    if given:
        return given[0]
    from consist.models.lora import trained_prompts

    if prompts := trained_prompts(loras):
        return prompts[0]
    reason = "no LoRA says what it was trained on" if loras else "there is no LoRA to say so"
    raise ConsistError(f"a pack needs words for its subject, and {reason}; give --subject 'a cat'")


def words_of_loras(given: list[str], loras: list[str], prompts: Sequence[str]) -> tuple[str, ...]:
    """What prompts call that which LoRAs were trained on: as given, or as their files say.

    Nothing where those words are not in all prompts: then it is what all begin with.
    """
    from consist.models.lora import trained_prompts
    from consist.prompts.packs import noun_of

    if given:
        return tuple(given)
    trained = {noun_of(prompt) for prompt in trained_prompts(loras)}
    return tuple(sorted(words for words in trained if all(words in prompt for prompt in prompts)))


def read_packs(names: list[str], subject: str, model: str) -> tuple[str, ...]:
    """The prompts of packs, one pack after the other."""
    from consist.prompts.packs import load_pack

    return tuple(prompt for name in names for prompt in load_pack(name, subject, model))


def is_told(method: str) -> bool:
    """Whether a method of that name is told the words for its subject."""
    from consist.methods import METHODS

    kind = METHODS.get(method)
    return kind is not None and kind().wants_subject
