"""Ways to learn a subject from photos, and how pictures are drawn with what was learned."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consist.training.config import (
    BASE,
    BASE_MODEL,
    CLASS_IMAGES,
    DREAMBOOTH,
    LORA,
    TEXTUAL_INVERSION,
    TrainConfig,
)

TOKEN = "<subject>"  # the word of Textual Inversion
PLAIN: Mapping[str, Mapping[str, Any]] = {"": {}}


@dataclass(frozen=True, kw_only=True)
class Learner:
    """One way to learn."""

    name: str  # unlike that of every other
    kind: str  # of consist.training.config.KINDS
    settings: Mapping[str, Any] = field(default_factory=dict)  # further fields of TrainConfig
    # ways to draw with what is learned, by what they are called: further fields of RunConfig
    drawings: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: PLAIN)

    @property
    def out_name(self) -> str:
        """What the file or folder is called that a training writes, after all settings."""
        text = json.dumps([self.kind, dict(self.settings)], sort_keys=True)
        words = "".join(c if c.isalnum() else " " for c in self.name).split()
        stem = f"{'-'.join(words)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return stem if self.kind == DREAMBOOTH else f"{stem}.safetensors"

    def words(self, identifier: str, noun: str) -> str:
        """What prompts call the subject: Textual Inversion has a word for all of it."""
        return TOKEN if self.kind == TEXTUAL_INVERSION else f"{identifier} {noun}"

    def configure(self, photos: Path, folder: Path, noun: str, **more: Any) -> TrainConfig:
        """The training of one subject.

        Args:
            photos: Of it.
            folder: What is written lies there; trainings in one folder share class images.
            noun: Its class.
            more: Further fields of ``TrainConfig``; those of the learner go first.

        Raises:
            ConsistError: A field is out of range.
        """
        given: dict[str, Any] = {"out": str(folder / self.out_name), **more, **self.settings}
        if self.kind == TEXTUAL_INVERSION:
            given |= {"token": TOKEN, "init": noun}
        return TrainConfig(kind=self.kind, photos=str(photos), **given)


# guidance that, where the subject is, leads away from the base model, and with less contrast
WAYS = {**PLAIN, "steered": {"lora_negative": 0.0, "guidance_rescale": 0.7}}
LEARNERS = (
    Learner(name="lora", kind=LORA, drawings=WAYS),
    Learner(name="lora, subject alone", kind=LORA, settings={"background": BASE}, drawings=WAYS),
    Learner(name="lora, class images", kind=LORA, settings={"prior": CLASS_IMAGES}),
    Learner(name="lora, base model", kind=LORA, settings={"prior": BASE_MODEL}, drawings=WAYS),
    Learner(name="dreambooth", kind=DREAMBOOTH),
    Learner(name="dreambooth, class images", kind=DREAMBOOTH, settings={"prior": CLASS_IMAGES}),
    Learner(name="textual inversion", kind=TEXTUAL_INVERSION),
)


def drawn_with(config: TrainConfig) -> dict[str, Any]:
    """The fields of ``RunConfig`` that draw with what a training has written."""
    out = str(Path(config.out).resolve())
    if config.kind == DREAMBOOTH:
        return {"model": out}
    field_ = "embeddings" if config.kind == TEXTUAL_INVERSION else "loras"
    return {"model": config.model, field_: (out,)}


def discard(config: TrainConfig) -> None:
    """Removes what a training has written, checkpoints included."""
    for path in (config.work_folder, Path(config.out)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
