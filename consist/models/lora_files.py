"""LoRA files: adapters of a UNet and its text encoders, in one file that others can read.

`diffusers` has the names of diffusers' own files; alpha stands in the header, which diffusers
reads and ComfyUI does not. `kohya` is what Kohya's trainer writes and ComfyUI and A1111 read, with
an alpha beside each module. It must not know how an adapter is trained.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft.tuners.lora import LoraLayer
from torch import nn

from consist.errors import ConsistError, unknown
from consist.models.lora_layouts import (
    Update,
    Updates,
    diffusers_header,
    diffusers_tensors,
    kohya_tensors,
    read_diffusers,
    read_kohya,
)
from consist.models.lora_names import (
    COMPONENTS,
    KOHYA_PREFIXES,
    TEXT_ENCODER,
    TEXT_ENCODER_2,
    UNET,
    nested,
)
from consist.models.tensor_files import plain_errors, read_tensors, write_tensors

log = logging.getLogger("consist")

DIFFUSERS = "diffusers"
KOHYA = "kohya"
LAYOUTS = (DIFFUSERS, KOHYA)
# by the width of the prompts that the UNet attends to: the model, and Kohya's word for it
MODELS = {
    768: ("SD 1.x", "sd_v1"),
    1024: ("SD 2.x", "sd_v2"),
    2048: ("SDXL", "sdxl_base_v1-0"),
}
# parts of keys of adapters that are not read
OTHER_KINDS = {".hada_": "LoHa", ".lokr_": "LoKr", ".lora_mid.": "Tucker LoRA", ".oft_": "OFT"}


@dataclass(frozen=True, kw_only=True)
class Lora:
    """The content of a LoRA file."""

    modules: Updates
    metadata: Mapping[str, str] = field(default_factory=dict)
    layout: str = DIFFUSERS  # that it was read from
    name: str = "the LoRA"  # what it is called in a sentence

    @property
    def ranks(self) -> list[int]:
        """All that occur, ascending."""
        return sorted({update.rank for update in self.modules.values()})

    @property
    def alphas(self) -> list[float]:
        """All that occur, ascending."""
        return sorted({update.alpha for update in self.modules.values()})

    @property
    def is_dora(self) -> bool:
        """Whether any update is a DoRA."""
        return any(update.magnitude is not None for update in self.modules.values())

    @property
    def prompt_width(self) -> int | None:
        """The width of the prompts that the UNet attends to; None if no update tells."""
        for module, update in self.modules.items():
            if module.endswith(("attn2.to_k", "attn2.to_v")):
                return update.down.shape[1]
        return None

    @property
    def is_sdxl(self) -> bool:
        """Whether it is for two text encoders, as far as its updates tell."""
        second = any(module.startswith(f"{TEXT_ENCODER_2}.") for module in self.modules)
        return second or MODELS.get(self.prompt_width or 0, ("",))[0] == "SDXL"

    @property
    def counts(self) -> dict[str, int]:
        """How many modules of each component it updates."""
        owners = [module.partition(".")[0] for module in self.modules]
        return {component: owners.count(component) for component in COMPONENTS}

    def save(self, path: Path, layout: str = DIFFUSERS, dtype: torch.dtype | None = None) -> None:
        """Writes a file, in full or not at all, and logs what some reader will get wrong.

        Args:
            path: Ends in ``.safetensors``.
            layout: One of ``LAYOUTS``.
            dtype: Of the weights; by default theirs. Alpha is never rounded.

        Raises:
            ConsistError: There is no such layout, the path has another ending or cannot be
                written, or a weight is not finite, or not in ``dtype``.
        """
        if layout == DIFFUSERS:
            tensors = dict(diffusers_tensors(self.modules))
        elif layout == KOHYA:
            tensors = dict(kohya_tensors(self.modules, self.is_sdxl))
        else:
            raise ConsistError(unknown("layout", layout, LAYOUTS))
        write_tensors(path, tensors, _header(self, layout), dtype)
        for caution in cautions(self, layout):
            log.warning("%s: %s", path, caution)


def cautions(lora: Lora, layout: str) -> list[str]:
    """What some reader will get wrong about a LoRA in a layout, a sentence each."""
    found = []
    mixed = any(len(_alphas(lora, component)) > 1 for component in COMPONENTS)
    if layout == DIFFUSERS and any(u.alpha != u.rank for u in lora.modules.values()):
        found.append("ComfyUI does not read alpha in this layout and takes the rank for it")
    if layout == KOHYA and mixed:
        found.append("diffusers takes one alpha for all modules of a component in this layout")
    if layout == KOHYA and lora.is_dora:
        found.append("diffusers drops the magnitudes of DoRA in this layout")
    return found


def _alphas(lora: Lora, component: str) -> set[float]:
    modules = lora.modules.items()
    return {update.alpha for module, update in modules if module.startswith(f"{component}.")}


def write_lora(
    path: Path,
    *,
    unet: nn.Module | None = None,
    text_encoders: Sequence[nn.Module] = (),
    adapter: str = "default",
    metadata: Mapping[str, Any] | None = None,
    layout: str = DIFFUSERS,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes the LoRA of models that peft adapted, with the alpha of each of its layers.

    Args:
        path: Ends in ``.safetensors``.
        unet: Not wrapped by a compiler, nor for several processes.
        text_encoders: In the pipeline's order; those without the adapter are passed over.
        adapter: Its name in peft.
        metadata: What to keep with it, such as ``base_model``, ``steps`` and ``prompt``.
        layout: One of ``LAYOUTS``.
        dtype: Of the weights; by default theirs.

    Raises:
        ValueError: No layer has the adapter, or one has what no layout can hold.
        ConsistError: As ``Lora.save``.
    """
    models = [(UNET, unet), *zip((TEXT_ENCODER, TEXT_ENCODER_2), text_encoders, strict=False)]
    modules = {
        nested(component, name): update
        for component, model in models
        if model is not None
        for name, update in _adapted(model, adapter)
    }
    if not modules:
        raise ValueError(f"no layer has an adapter {adapter!r}")
    words = {key: str(value) for key, value in (metadata or {}).items()}
    Lora(modules=modules, metadata=words).save(path, layout, dtype)


def _adapted(model: nn.Module, adapter: str) -> Iterator[tuple[str, Update]]:
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or adapter not in layer.r:
            continue
        if adapter not in layer.lora_A or layer.lora_bias.get(adapter):
            raise ValueError(f"{name} has an adapter of an embedding or with a bias; no file has")
        rank, alpha = layer.r[adapter], float(layer.lora_alpha[adapter])
        magnitude = layer.lora_magnitude_vector
        update = Update(
            down=layer.lora_A[adapter].weight,
            up=layer.lora_B[adapter].weight,
            alpha=alpha * math.sqrt(rank) if layer.use_rslora[adapter] else alpha,
            magnitude=magnitude[adapter].weight if adapter in magnitude else None,
        )
        yield name, update


def read_lora(path: Path) -> Lora:
    """Reads a LoRA file of either layout, without a model.

    Raises:
        ConsistError: It is missing, a pickle, damaged, no LoRA, or one of a kind or for a model
            that is not supported.
    """
    tensors, words = read_tensors(path)
    for part, kind in OTHER_KINDS.items():
        if any(part in key for key in tensors):
            raise ConsistError(f"{path} is a {kind}; only LoRA and DoRA are read")
    layout = KOHYA if any(k.startswith(tuple(KOHYA_PREFIXES)) for k in tensors) else DIFFUSERS
    if layout == DIFFUSERS and not any("lora" in key for key in tensors):
        raise ConsistError(f"{path} is not a LoRA: none of its tensors ({len(tensors)}) is of one")
    header = words.pop(LORA_ADAPTER_METADATA_KEY, "{}")
    with plain_errors(path, "{name} is not a LoRA of SD 1.x, SD 2.x or SDXL: {reason}"):
        found = read_kohya(tensors) if layout == KOHYA else read_diffusers(tensors, header)
    modules = dict(sorted(found.items()))
    return Lora(modules=modules, metadata=words, layout=layout, name=str(path))


def _header(lora: Lora, layout: str) -> dict[str, str]:
    """The words of a file: those that came with the LoRA, and those that readers look for."""
    model, kohya_model = MODELS.get(lora.prompt_width or 0, ("", ""))
    words = {
        **lora.metadata,
        "rank": ", ".join(map(str, lora.ranks)),
        "alpha": ", ".join(f"{alpha:g}" for alpha in lora.alphas),
        "tool": f"consist {version('consist')}",
    }
    if layout == DIFFUSERS:
        return words | {LORA_ADAPTER_METADATA_KEY: diffusers_header(lora.modules)}
    return words | {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.ranks[-1]),
        "ss_network_alpha": f"{lora.alphas[-1]:g}",
        "ss_v2": str(model == "SD 2.x"),
        **({"ss_base_model_version": kohya_model} if kohya_model else {}),
        **({"ss_sd_model_name": words["base_model"]} if "base_model" in words else {}),
        **({"ss_steps": words["steps"]} if "steps" in words else {}),
    }
