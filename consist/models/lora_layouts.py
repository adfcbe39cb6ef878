"""Low-rank updates to the tensors of a LoRA file and back, in both layouts.

The conversions of diffusers are used where they are right; its ``convert_state_dict_to_kohya``
gives no alpha but the rank, no name for the one text encoder of SD 1.x, and no DoRA.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.state_dict_utils import (
    DIFFUSERS_OLD_TO_PEFT,
    DIFFUSERS_TO_PEFT,
    convert_state_dict,
    convert_unet_state_dict_to_peft,
)
from einops import rearrange
from peft.utils.other import get_pattern_key
from torch import Tensor

from consist.models.lora_names import (
    COMPONENTS,
    UNET,
    from_kohya,
    nested,
    rename_sgm_blocks,
    to_kohya,
)

# what a file calls the parts of an update, behind the name of its module
KOHYA_PARTS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
    ".dora_scale": "magnitude",
}
PEFT_PARTS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".alpha": "alpha",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}


@dataclass(frozen=True, kw_only=True)
class Update:
    """What is added to the weight of one module: ``alpha / rank * up @ down``.

    With a magnitude it is a DoRA (Liu et al., arXiv:2402.09353, equation 5): each output of the
    sum is then scaled to that norm.
    """

    down: Tensor  # r in, for a convolution r in h w
    up: Tensor  # out r, for a convolution out r 1 1
    alpha: float
    magnitude: Tensor | None = None  # out, for a convolution 1 out 1 1

    @property
    def rank(self) -> int:
        """The number of directions."""
        return self.down.shape[0]


Updates = Mapping[str, Update]  # by module


def read_kohya(tensors: Mapping[str, Tensor]) -> dict[str, Update]:
    """The updates in the tensors of a file of Kohya's layout.

    Raises:
        ValueError: A tensor is of no update, an update is incomplete, or its DoRA scales inputs.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in rename_sgm_blocks(tensors).items():
        name, part = _split(key, KOHYA_PARTS)
        if part == "magnitude" and len(tensor) == 1 < tensor.numel():
            raise ValueError(f"{key} scales inputs; DoRAs that scale outputs are read")
        found.setdefault(from_kohya(name), {})[part] = tensor
    return {module: _assemble(module, parts, None) for module, parts in found.items()}


def read_diffusers(tensors: Mapping[str, Tensor], header: str) -> dict[str, Update]:
    """The updates in the tensors of a file of diffusers' layout, old or new.

    Args:
        tensors: By key.
        header: What diffusers keeps of the adapters' configs, as JSON. A component that it does
            not speak of has the rank for alpha, as in diffusers.

    Raises:
        ValueError: A tensor is of no update, or an update is incomplete.
    """
    found: dict[str, dict[str, Tensor]] = {}
    left = dict(tensors)
    for component in COMPONENTS:
        prefix = f"{component}."
        keys = [key for key in left if key.startswith(prefix)]
        own = {key.removeprefix(prefix): left.pop(key) for key in keys}
        for key, tensor in _to_peft(component, own).items():
            name, part = _split(key, PEFT_PARTS)
            found.setdefault(nested(component, name), {})[part] = tensor
    if left:
        raise ValueError(f"{next(iter(left))} is of none of {', '.join(COMPONENTS)}")
    config = json.loads(header)
    return {m: _assemble(m, parts, _header_alpha(config, m, parts)) for m, parts in found.items()}


def _to_peft(component: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if component == UNET:
        return dict(convert_unet_state_dict_to_peft(tensors))
    # one file may hold both forms: old for attention, new for the rest
    return dict(convert_state_dict(tensors, {**DIFFUSERS_OLD_TO_PEFT, **DIFFUSERS_TO_PEFT}))


def _split(key: str, parts: Mapping[str, str]) -> tuple[str, str]:
    for suffix, part in parts.items():
        if key.endswith(suffix):
            return key.removesuffix(suffix), part
    raise ValueError(f"{key} ends in none of {', '.join(parts)}")


def _header_alpha(
    config: Mapping[str, Any], module: str, parts: Mapping[str, Tensor]
) -> float | None:
    component, _, name = module.partition(".")
    whole = config.get(f"{component}.lora_alpha")
    pattern = config.get(f"{component}.alpha_pattern") or {}
    alpha = pattern.get(get_pattern_key(list(pattern), name), whole)
    if alpha is None or "down" not in parts:
        return None
    root = math.sqrt(len(parts["down"])) if config.get(f"{component}.use_rslora") else 1
    return float(alpha * root)


def _assemble(module: str, parts: Mapping[str, Tensor], alpha: float | None) -> Update:
    if missing := {"down", "up"} - set(parts):
        raise ValueError(f"{module} has no {missing.pop()} matrix")
    down, up, magnitude = parts["down"], parts["up"], parts.get("magnitude")
    if down.ndim not in (2, 4) or down.ndim != up.ndim or down.shape[0] != up.shape[1]:
        raise ValueError(f"{module} is {tuple(up.shape)} times {tuple(down.shape)}")
    if magnitude is not None:
        if magnitude.numel() != up.shape[0]:
            raise ValueError(f"{module} has {magnitude.numel()} norms for {up.shape[0]} outputs")
        magnitude = magnitude.reshape((-1,) if down.ndim == 2 else (1, -1, 1, 1))
    if "alpha" in parts:
        alpha = float(parts["alpha"].item())
    # Kohya's trainer means the rank by an alpha of zero
    return Update(down=down, up=up, alpha=alpha or float(len(down)), magnitude=magnitude)


def kohya_tensors(updates: Updates, sdxl: bool) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file of Kohya's layout, each update with its alpha."""
    for module, update in updates.items():
        name = to_kohya(module, sdxl)
        yield f"{name}.lora_down.weight", update.down
        yield f"{name}.lora_up.weight", update.up
        yield f"{name}.alpha", torch.tensor(update.alpha, dtype=torch.float32)
        if update.magnitude is not None:
            column = "o -> o 1" if update.magnitude.ndim == 1 else "1 o 1 1 -> o 1 1 1"
            yield f"{name}.dora_scale", rearrange(update.magnitude, column)


def diffusers_tensors(updates: Updates) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file of diffusers' layout.

    One form for all modules of a component: ``convert_state_dict_to_diffusers`` renames attention
    alone, and what mixes forms is loaded wrongly where the first key is of another module.
    """
    for module, update in updates.items():
        middle = "lora" if module.startswith(f"{UNET}.") else "lora_linear_layer"
        yield f"{module}.{middle}.down.weight", update.down
        yield f"{module}.{middle}.up.weight", update.up
        if update.magnitude is not None:
            # peft alone also takes it without the last part; transformers does not
            yield f"{module}.lora_magnitude_vector.weight", update.magnitude


def peft_tensors(updates: Updates) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an adapter of peft, each behind the name of its component."""
    for module, update in updates.items():
        yield f"{module}.lora_A.weight", update.down
        yield f"{module}.lora_B.weight", update.up
        if update.magnitude is not None:
            yield f"{module}.lora_magnitude_vector.weight", update.magnitude


def diffusers_header(updates: Updates) -> str:
    """The config of each component's adapter, as diffusers' loader takes it, in JSON.

    Names in it are those of flat text encoders; peft finds them in nested ones too.
    """
    config: dict[str, Any] = {}
    for component in COMPONENTS:
        prefix = f"{component}."
        own = {
            module.removeprefix(prefix).removeprefix("text_model."): update
            for module, update in updates.items()
            if module.startswith(prefix)
        }
        if own:
            ranks = {name: update.rank for name, update in own.items()}
            alphas = {name: update.alpha for name, update in own.items()}
            rank, alpha = (
                Counter(found.values()).most_common(1)[0][0] for found in (ranks, alphas)
            )
            settings = {
                "r": rank,
                "lora_alpha": alpha,
                "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
                "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
                "target_modules": sorted(own),
                "use_dora": any(update.magnitude is not None for update in own.values()),
            }
            config |= {f"{prefix}{key}": value for key, value in settings.items()}
    return json.dumps(config, sort_keys=True)
