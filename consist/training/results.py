"""What a training leaves: the file of a LoRA or of a word, or a model of its own.

It must not know how it was trained.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from consist.errors import ConsistError
from consist.models.embedding_files import write_embedding
from consist.models.loading import Pipeline
from consist.models.lora_files import write_lora
from consist.training.config import LORA, TEXTUAL_INVERSION, TrainConfig
from consist.training.inversion import layout_of
from consist.training.parts import Parts, text_encoders

# what files say of their training
LORA_FACTS = ("rank", "alpha", "steps", "prompt", "class_prompt", "embedding")
WORD_FACTS = ("steps", "init", "prompt")


def write_result(parts: Parts, config: TrainConfig) -> None:
    """Writes the LoRA, the word, or the whole pipeline in float16, in full or not at all.

    Raises:
        ConsistError: It cannot be written, because the disk is full, say.
    """
    out, pipe = Path(config.out), parts.pipe
    if config.kind == LORA:
        encoders = [getattr(pipe, name) for name in text_encoders(pipe)]
        told = facts(config, LORA_FACTS)
        write_lora(out, unet=pipe.unet, text_encoders=encoders, metadata=told)
    elif config.kind == TEXTUAL_INVERSION:
        vectors = [word.vectors for word in parts.words]
        told, layout = facts(config, WORD_FACTS), layout_of(pipe, config)
        write_embedding(out, config.token, vectors, layout=layout, metadata=told)
    else:
        write_model(pipe, out)


def write_model(pipe: Pipeline, out: Path) -> None:
    """Writes a pipeline in float16, in full or not at all.

    Raises:
        ConsistError: It cannot be written.
    """
    partial = out.with_name(f".{out.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        pipe.to("cpu", torch.float16).save_pretrained(partial)
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ConsistError(f"{out} cannot be written: {error}") from error


def facts(config: TrainConfig, names: Sequence[str]) -> dict[str, Any]:
    """What a file says of its training: those settings that were made, and the model it is for."""
    made = {name: value for name in names if (value := getattr(config, name))}
    return {"base_model": config.model, **made}
