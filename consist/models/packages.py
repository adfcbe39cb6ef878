"""Installed packages that do not go together, and what to install instead."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from consist.errors import ConsistError

PACKAGE = "consist"
# they are not needed, but break what is if they are there in a version for another torch
BESIDE = ("torchvision", "torchaudio", "xformers")


def conflicts() -> list[str]:
    """What does not go together of the packages that consist uses, a sentence each."""
    tried = _tried()
    found = [
        _sentence(name, needed, tried)
        for name in (PACKAGE, *tried, *BESIDE)
        for needed in _needs(name)
        if needed.name in tried and not _fits(needed)
    ]
    return list(dict.fromkeys(found))


@functools.cache
def check_adapters() -> None:
    """Makes sure, at the first adapter, that the packages that handle adapters go together.

    What diffusers needs of peft it refuses to do without. What transformers needs is said in a
    warning: the adapters of consist do without it, ``load_lora_weights`` of diffusers may not.

    Raises:
        ConsistError: diffusers needs another peft.
    """
    tried = _tried()
    for name in ("diffusers", "transformers"):
        needed = Requirement(f"peft>={_least_peft(name)}")
        if not _fits(needed):
            sentence = _sentence(name, needed, tried)
            if name == "diffusers":
                raise ConsistError(sentence)
            logging.getLogger(PACKAGE).warning(sentence)


def _tried() -> dict[str, SpecifierSet]:
    """The versions that consist allows, by package."""
    found = [Requirement(text) for text in requires(PACKAGE) or ()]
    return {one.name: one.specifier for one in found if one.name != PACKAGE}


def _needs(name: str) -> Iterator[Requirement]:
    """What an installed package needs; nothing if it is not installed."""
    try:
        stated = [Requirement(text) for text in requires(name) or ()]
    except PackageNotFoundError:
        return
    extras = ("", "train", "app", "eval", "ray") if name == PACKAGE else ("",)
    for needed in stated:
        if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras):
            yield needed
    if name in ("diffusers", "transformers"):
        # it is said in their code alone, when an adapter is used
        yield Requirement(f"peft>={_least_peft(name)}")


def _least_peft(name: str) -> str:
    if name == "diffusers":
        from diffusers.utils.constants import MIN_PEFT_VERSION
    else:
        from transformers.integrations.peft import MIN_PEFT_VERSION
    return str(MIN_PEFT_VERSION)


def _fits(needed: Requirement) -> bool:
    """Whether what is installed is allowed; what is not there at all is no conflict."""
    try:
        return needed.specifier.contains(version(needed.name), prereleases=True)
    except PackageNotFoundError:
        return True


def _sentence(name: str, needed: Requirement, tried: dict[str, SpecifierSet]) -> str:
    own, there = version(name), version(needed.name)
    # pip can mend the one of the two that is beyond what was tried
    beyond = name in tried and not tried[name].contains(own, prereleases=True)
    remedy = f"{name}{tried[name]}" if beyond else f"{needed.name}{needed.specifier}"
    return (
        f"{name} {own} and {needed.name} {there} do not go together: {name} needs "
        f"{needed.name}{needed.specifier}; pip install '{remedy}'"
    )
