"""All that decides what a run draws, as plain checked data.

It must not know torch, diffusers or the disk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from consist.errors import ConsistError

MAX_SEED = 2**63 - 1
DEFAULT_METHOD = "matched"
# settings of a run that are told where they are others than these
SELDOM = {"guidance_rescale": 0.0, "lora_negative": 1.0}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: prompts in, pictures out. ``None`` leaves a choice to the model.

    Raises:
        ConsistError: A value is missing, empty, not finite or out of range.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]  # one per prompt, 0..2^63-1
    model: str = "mini"  # name, hub id, folder or .safetensors file
    method: Mapping[str, Any] = field(default_factory=lambda: {"name": DEFAULT_METHOD})
    steps: int | None = None  # at least 1
    guidance: float | None = None  # 0..100; up to 1 means no guidance
    guidance_rescale: float = 0.0  # 0..1: how far the contrast of no guidance is put back
    negative: str = ""  # what the pictures should not show
    width: int | None = None  # pixels
    height: int | None = None  # pixels
    scheduler: str | None = None
    loras: tuple[str, ...] = ()  # FILE or FILE:WEIGHT
    lora_negative: float = 1.0  # 0..1: share of the LoRAs in what guidance leads away from
    # where they have that share: words of the prompts; (): those that all prompts start with
    lora_subject: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()  # files of Textual Inversion, whose words prompts may say
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    batch_size: int | None = None  # images in memory at a time
    compare: bool = False  # draw the isolated row too
    # the images that make the subject, where they are not the first of the run: every chunk draws
    # them ahead of its pictures, and the method has them, and no others, as its anchors
    anchor_prompts: tuple[str, ...] = ()
    anchor_seeds: tuple[int, ...] = ()  # one per anchor prompt
    # pictures that are these anchors, none or one each; see consist.runs.references
    anchor_pictures: tuple[str, ...] = ()  # absolute paths
    anchor_digests: tuple[str, ...] = ()  # SHA-256 of each file, in hex
    # a file, beside run.json or absolute, of what the anchors share: they are drawn once to write
    # it, and the pictures from it without them; "": every chunk draws the anchors
    cache: str = ""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ConsistError("no prompt was given; give at least one")
        _check_scenes("", self.prompts, self.seeds)
        _check_scenes("anchor ", self.anchor_prompts, self.anchor_seeds)
        if self.cache and not self.anchor_prompts:
            raise ConsistError("a cache is of anchors that a run names, and this one names none")
        if self.cache and self.anchor_pictures:
            raise ConsistError(
                "a cache is of anchors that are drawn, and not of given pictures, whose keys are "
                "matched to those of each picture beside them"
            )
        anchors, pictures = len(self.anchor_prompts), len(self.anchor_pictures)
        if pictures not in (0, anchors) or len(self.anchor_digests) != pictures:
            raise ConsistError(
                f"{pictures} anchor pictures and {len(self.anchor_digests)} digests were given for "
                f"{anchors} anchor prompts; give none, or one of each per prompt"
            )
        for name, low, high in (
            ("steps", 1, 1000),
            ("guidance", 0, 100),
            ("guidance_rescale", 0, 1),
            ("lora_negative", 0, 1),
            ("batch_size", 1, 10_000),
            ("width", 8, 8192),
            ("height", 8, 8192),
        ):
            if getattr(self, name) is not None:
                _check_range(name, getattr(self, name), low, high)
        if self.lora_negative != 1 and not self.loras:
            raise ConsistError(
                f"lora negative {self.lora_negative:g} is a share of LoRAs, and none was given"
            )
        if self.lora_subject and self.lora_negative == 1:
            raise ConsistError(
                f"lora subject {self.lora_subject[0]!r} says where less of a LoRA is in the "
                "negative, and all of it is; give a lora negative below 1"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, as ``json.dumps`` takes them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, given: Any) -> RunConfig:
        """The config that ``to_json`` gave.

        Raises:
            ValueError: It is no mapping, or of other fields.
            ConsistError: A value is out of range.
        """
        try:
            fields: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in given.items()
            }
            return cls(**fields)
        except (TypeError, AttributeError):
            raise ValueError(f"no config, or one of another version: {given!r:.80}") from None

    def with_anchors(self) -> RunConfig:
        """The same run with the anchors also ahead of its pictures, as a chunk counts them."""
        return replace(
            self,
            prompts=self.anchor_prompts + self.prompts,
            seeds=self.anchor_seeds + self.seeds,
        )

    def next_seed(self) -> int:
        """The seed after the largest that the run or its anchors have."""
        return max(self.seeds + self.anchor_seeds) + 1


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


def parse_size(text: str) -> tuple[int, int]:
    """Reads ``512`` or ``768x512`` (width x height) into width and height.

    Raises:
        ConsistError: The text is something else.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise ConsistError(f"size {text!r} is neither a number such as 512 nor 768x512")
    return int(parts[0]), int(parts[-1])


def _check_scenes(kind: str, prompts: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise ConsistError(f"{kind}prompt {number} is empty")
    if len(seeds) != len(prompts):
        raise ConsistError(f"{len(seeds)} {kind}seeds were given for {len(prompts)} {kind}prompts")
    for seed in seeds:
        _check_range(f"{kind}seed", seed, 0, MAX_SEED)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not math.isfinite(value) or not low <= value <= high:
        raise ConsistError(
            f"{name.replace('_', ' ')} must be between {low} and {high}, not {value}"
        )
