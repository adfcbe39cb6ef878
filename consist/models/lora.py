"""LoRA files into a pipeline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from peft import LoraConfig

from consist.errors import ConsistError
from consist.models.adapters import load_adapter
from consist.models.loading import Pipeline
from consist.models.lora_files import MODELS, Lora, read_lora
from consist.models.lora_layouts import diffusers_header, peft_tensors
from consist.models.lora_names import UNET
from consist.models.packages import check_adapters
from consist.models.tensor_files import plain_errors, read_tensors


def add_loras(pipe: Pipeline, given: tuple[str, ...]) -> None:
    """Loads LoRA files, each given as ``FILE`` or ``FILE:WEIGHT``, and weighs them.

    Raises:
        ConsistError: One is missing, damaged, no LoRA, or for another model.
    """
    if given:
        check_adapters()
    weights: dict[str, float] = {}
    for number, text in enumerate(given):
        name, weight = split_weight(text)
        lora = read_lora(Path(name))
        check_lora(pipe, lora)
        with plain_errors(f"LoRA {name}"):
            load_lora(pipe, lora, f"lora_{number}")
        weights[f"lora_{number}"] = weight
    if weights:
        pipe.set_adapters(list(weights), list(weights.values()))


def check_lora(pipe: Pipeline, lora: Lora) -> None:
    """Makes sure that a LoRA is for models such as this one, as far as it tells.

    Raises:
        ConsistError: It is for prompts of another width, or a text encoder that is not there, or
            it is a DoRA in part, which no adapter of peft is.
    """
    if len({update.magnitude is None for update in lora.modules.values()}) > 1:
        raise ConsistError(f"{lora.name} is a DoRA in a part of its modules; all or none must be")
    width = pipe.unet.config.cross_attention_dim
    found = lora.prompt_width or width
    absent = [n for n, count in lora.counts.items() if count and getattr(pipe, n, None) is None]
    if found != width or absent:
        names = [MODELS.get(wide, (f"prompts {wide} wide",))[0] for wide in (found, width)]
        what = f"it has a {absent[0]}" if absent else f"{names[0]}, not {names[1]}"
        raise ConsistError(f"{lora.name} is for another base model: {what}")


def load_lora(pipe: Pipeline, lora: Lora, adapter: str) -> None:
    """Gives a pipeline a LoRA as an adapter, with rank, alpha and DoRA of each of its modules.

    ``load_lora_weights`` takes one alpha for all modules of a Kohya file, and drops its DoRA; what
    it does with a file of its own layout is right.
    """
    header = json.loads(diffusers_header(lora.modules))
    for component in [name for name, count in lora.counts.items() if count]:
        model, prefix = getattr(pipe, component), f"{component}."
        own = {key.removeprefix(prefix): x for key, x in header.items() if key.startswith(prefix)}
        # newer versions of transformers have no inner model where there is no projection
        inner = prefix if hasattr(model, "text_model") else f"{prefix}text_model."
        tensors = {
            key.removeprefix(prefix if component == UNET else inner): tensor
            for key, tensor in peft_tensors(lora.modules)
            if key.startswith(prefix)
        }
        load_adapter(model, LoraConfig(**own), tensors, adapter)


def trained_prompts(given: Sequence[str]) -> list[str]:
    """What LoRA files, given as for ``add_loras``, say that they were trained on: "a xyz cat".

    Raises:
        ConsistError: One is missing or damaged.
    """
    headers = [read_tensors(Path(split_weight(text)[0]))[1] for text in given]
    return [header["prompt"] for header in headers if header.get("prompt")]


def split_weight(text: str) -> tuple[str, float]:
    """Reads ``FILE:0.8``; without a number the weight is 1."""
    name, colon, weight = text.rpartition(":")
    try:
        return (name, float(weight)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0
