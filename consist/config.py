"""All that decides what a run draws, as plain checked data.

It must not know torch, diffusers or the disk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from consist.errors import ConsistError

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: prompts in, pictures out. ``None`` leaves a choice to the model.

    Raises:
        ConsistError: A value is missing, empty, not finite or out of range.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]  # one per prompt, 0..2^63-1
    model: str = "mini"  # name, hub id, folder or .safetensors file
    method: Mapping[str, Any] = field(default_factory=lambda: {"name": "spectral"})
    steps: int | None = None  # at least 1
    guidance: float | None = None  # 0..100; up to 1 means no guidance
    negative: str = ""  # what the pictures should not show
    width: int | None = None  # pixels
    height: int | None = None  # pixels
    scheduler: str | None = None
    loras: tuple[str, ...] = ()  # FILE or FILE:WEIGHT
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    batch_size: int | None = None  # images in memory at a time
    compare: bool = False  # draw the isolated row too

    def __post_init__(self) -> None:
        _check_prompts(self.prompts)
        if len(self.seeds) != len(self.prompts):
            count = len(self.prompts)
            raise ConsistError(f"{len(self.seeds)} seeds were given for {count} prompts")
        for seed in self.seeds:
            _check_range("seed", seed, 0, MAX_SEED)
        for name, low, high in (
            ("steps", 1, 1000),
            ("guidance", 0, 100),
            ("batch_size", 1, 10_000),
            ("width", 8, 8192),
            ("height", 8, 8192),
        ):
            if getattr(self, name) is not None:
                _check_range(name, getattr(self, name), low, high)

    def to_json(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, as ``json.dumps`` takes them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


def spread_seeds(given: tuple[int, ...], count: int, same_noise: bool = False) -> tuple[int, ...]:
    """One seed for each of ``count`` images, from one seed or from all of them.

    >>> spread_seeds((7,), 3)
    (7, 8, 9)
    >>> spread_seeds((7,), 3, same_noise=True)
    (7, 7, 7)

    Raises:
        ConsistError: Neither one seed nor one per image was given.
    """
    if len(given) == 1:
        step = 0 if same_noise else 1
        return tuple(given[0] + step * i for i in range(count))
    if same_noise:
        raise ConsistError(f"same noise needs a single seed, not {len(given)}")
    if len(given) != count:
        raise ConsistError(f"{len(given)} seeds were given for {count} prompts; give 1 or {count}")
    return given


@dataclass(frozen=True)
class Chunk:
    """Images that are drawn together: the anchors, and some further ones."""

    images: tuple[int, ...]
    new: tuple[int, ...]  # those that no chunk before has drawn


def plan(count: int, anchors: int, batch_size: int | None = None) -> list[Chunk]:
    """Splits ``count`` images into chunks of at most ``batch_size`` that all hold the anchors.

    >>> [chunk.images for chunk in plan(5, 1, 3)]
    [(0, 1, 2), (0, 3, 4)]

    Raises:
        ConsistError: The anchors leave no room for another image, or are more than the images.
    """
    size = min(batch_size or count, count)
    if anchors > count:
        raise ConsistError(f"{anchors} anchors were asked for, but there are {count} images")
    if size < count and anchors >= size:
        raise ConsistError(
            f"a batch of {size} has no room beside {anchors} anchors; "
            "take a larger batch size or fewer anchors"
        )
    first = tuple(range(size))
    chunks = [Chunk(first, first)]
    for start in range(size, count, max(1, size - anchors)):
        new = tuple(range(start, min(start + size - anchors, count)))
        chunks.append(Chunk((*range(anchors), *new), new))
    return chunks


def parse_size(text: str) -> tuple[int, int]:
    """Reads ``512`` or ``768x512`` (width x height) into width and height.

    Raises:
        ConsistError: The text is something else.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise ConsistError(f"size {text!r} is neither a number such as 512 nor 768x512")
    return int(parts[0]), int(parts[-1])


def _check_prompts(prompts: tuple[str, ...]) -> None:
    if not prompts:
        raise ConsistError("no prompt was given; give at least one")
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise ConsistError(f"prompt {number} is empty")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not math.isfinite(value) or not low <= value <= high:
        raise ConsistError(
            f"{name.replace('_', ' ')} must be between {low} and {high}, not {value}"
        )
