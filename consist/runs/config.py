"""All that decides what a run draws, as plain checked data.

It must not know torch, diffusers or the disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from consist.errors import ConsistError
from consist.settings.fields import check_settings, marked, setting

MAX_SEED = 2**63 - 1
DEFAULT_METHOD = "matched"

# where options are shown
MODEL = "Model and trained files"
DRAWING = "Drawing"
WHERE = "Where and how fast"
SHARED = "What is shared"

# lists of fields
LATE = "late"  # came after runs had been drawn: told where another than the default is asked for
SAME_ROW = "same isolated row"  # leaves the isolated pictures as they are, but for the last bit
OF_SET = "of one set"  # what each of many sets has of its own, or what leaves its pictures alone
OPEN = "open"  # the model decides where it is None
OF_SUBJECT = "of a subject"  # what a saved subject has of its own

_ANCHORS = (LATE, SAME_ROW)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: prompts in, pictures out. ``None`` leaves a choice to the model.

    Args:
        prompts: What the pictures show, one prompt each.
        seeds: One for the noise of each picture.
        model: mini, a hub id, a folder or a .safetensors file.
        method: What is shared between the pictures: the name of a method and its fields.
        steps: Denoising steps; by default what suits the model.
        guidance: Guidance scale, up to 1 for none; by default what suits the model.
        guidance_rescale: Share of the contrast that guidance adds and that is taken back; 0.7 is
            usual.
        negative: What the pictures should not show.
        width: Pixels from left to right; by default what suits the model.
        height: Pixels from top to bottom; by default what suits the model.
        scheduler: Such as ddim, euler or dpm++; by default the model's own.
        loras: A LoRA, FILE or FILE:WEIGHT; may be repeated.
        lora_negative: Share of the LoRAs, where the subject is, in what guidance leads away from;
            less than 1 makes a trained subject more alike.
        lora_subject: Words of the prompts where the LoRAs have that share; without any, the words
            that all prompts start with.
        embeddings: A file of Textual Inversion, with a new word that prompts may say; may be
            repeated.
        device: auto, cuda, mps or cpu.
        dtype: auto, float32, float16 or bfloat16.
        backend: Version of attention: see 'consist doctor'.
        batch_size: Pictures in memory at a time, anchors included; by default all.
        compare: Also draw without sharing, from the same noise.
        anchor_prompts: The images that make the subject, where they are not the first of the run.
            Every chunk draws them ahead of its pictures, and the method has them, and no others,
            as its anchors.
        anchor_seeds: One for each anchor prompt.
        anchor_pictures: Absolute paths of pictures that are these anchors, none or one each; see
            ``consist.runs.references``.
        anchor_digests: SHA-256 of each of these files, in hex.
        cache: A file, beside run.json or absolute, of what the anchors share: they are drawn once
            to write it, and the pictures from it without them. Without one, every chunk draws the
            anchors.

    Raises:
        ConsistError: A value is missing, empty, not finite or out of range.
    """

    prompts: tuple[str, ...] = setting(marks=(OF_SET,))
    seeds: tuple[int, ...] = setting(least=0, most=MAX_SEED, marks=(OF_SET,))
    model: str = setting("mini", panel=MODEL, marks=(OF_SUBJECT,))
    method: Mapping[str, Any] = setting(
        factory=lambda: {"name": DEFAULT_METHOD}, marks=(SAME_ROW, OF_SUBJECT)
    )
    steps: int | None = setting(None, panel=DRAWING, least=1, most=1000, marks=(OPEN, OF_SUBJECT))
    guidance: float | None = setting(
        None, panel=DRAWING, least=0, most=100, marks=(OPEN, OF_SUBJECT)
    )
    guidance_rescale: float = setting(0.0, panel=DRAWING, least=0, most=1, marks=(LATE, OF_SUBJECT))
    negative: str = setting("", panel=DRAWING, marks=(OF_SUBJECT,))
    width: int | None = setting(None, least=8, most=8192, marks=(OPEN, OF_SUBJECT))
    height: int | None = setting(None, least=8, most=8192, marks=(OPEN, OF_SUBJECT))
    scheduler: str | None = setting(None, panel=DRAWING, marks=(OPEN, OF_SUBJECT))
    loras: tuple[str, ...] = setting((), panel=MODEL, marks=(OF_SUBJECT,))
    lora_negative: float = setting(1.0, panel=MODEL, least=0, most=1, marks=(LATE, OF_SUBJECT))
    lora_subject: tuple[str, ...] = setting((), marks=(LATE, OF_SUBJECT))
    embeddings: tuple[str, ...] = setting((), panel=MODEL, marks=(LATE, OF_SUBJECT))
    device: str = setting("auto", panel=WHERE, marks=(SAME_ROW,))
    dtype: str = setting("auto", panel=WHERE)
    backend: str = setting("auto", panel=WHERE, marks=(SAME_ROW,))
    batch_size: int | None = setting(None, panel=WHERE, least=1, most=10_000, marks=(SAME_ROW,))
    compare: bool = setting(False, panel=SHARED, marks=(SAME_ROW, OF_SET))
    anchor_prompts: tuple[str, ...] = setting((), marks=_ANCHORS)
    anchor_seeds: tuple[int, ...] = setting((), least=0, most=MAX_SEED, marks=_ANCHORS)
    anchor_pictures: tuple[str, ...] = setting((), marks=_ANCHORS)
    anchor_digests: tuple[str, ...] = setting((), marks=_ANCHORS)
    cache: str = setting("", marks=_ANCHORS)

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ConsistError("no prompt was given; give at least one")
        _check_scenes("", self.prompts, self.seeds)
        _check_scenes("anchor ", self.anchor_prompts, self.anchor_seeds)
        check_settings(self)
        self._check_anchors()
        self._check_loras()

    def _check_anchors(self) -> None:
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

    def _check_loras(self) -> None:
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


# numbers of a run that are told where they are others than these
SELDOM = {name: x for name, x in marked(RunConfig, LATE).items() if isinstance(x, float)}


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
