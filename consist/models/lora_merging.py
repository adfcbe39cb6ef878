"""Several LoRAs as one, by joining their directions: exact, at the price of a rank that adds up.

It must not know files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from consist.errors import ConsistError
from consist.models.lora_files import MODELS, Lora
from consist.models.lora_layouts import Update


def merge(weighted: Sequence[tuple[Lora, float]]) -> Lora:
    """The LoRA whose update of each module is the weighted sum of the given ones.

    Directions are joined, ``[c_1 up_1 | c_2 up_2] @ [down_1 ; down_2]``, so that nothing is
    approximated. One alpha serves all modules, as every reader takes it. Float32, or float64 if
    one of them is.

    Args:
        weighted: LoRAs and their weights, finite and of either sign.

    Raises:
        ConsistError: One is a DoRA, they are of different models, or a weight is not finite.
    """
    first = weighted[0][0]
    for lora, weight in weighted:
        if lora.is_dora:
            raise ConsistError(f"{lora.name} is a DoRA; its norms hold for it alone, not in a sum")
        if not math.isfinite(weight):
            raise ConsistError(f"{lora.name} has weight {weight:g}; it must be finite")
        check_same_model(first, lora)
    modules = sorted({module for lora, _ in weighted for module in lora.modules})
    parts = {m: [(lo.modules[m], w) for lo, w in weighted if m in lo.modules] for m in modules}
    alpha = float(max(sum(update.rank for update, _ in found) for found in parts.values()))
    return Lora(
        modules={module: _join(found, alpha) for module, found in parts.items()},
        metadata=_words(weighted),
        name=" and ".join(lora.name for lora, _ in weighted),
    )


def check_same_model(one: Lora, other: Lora) -> None:
    """Makes sure that two LoRAs fit the same model.

    Raises:
        ConsistError: They attend to prompts of different widths, or a module has different sizes.
    """
    widths = (one.prompt_width, other.prompt_width)
    if None not in widths and widths[0] != widths[1]:
        names = [MODELS.get(width or 0, (f"prompts {width} wide",))[0] for width in widths]
        raise ConsistError(
            f"{other.name} is for another base model than {one.name}: {names[1]}, not {names[0]}"
        )
    for module in one.modules.keys() & other.modules.keys():
        sizes = [_size(lora.modules[module]) for lora in (one, other)]
        if sizes[0] != sizes[1]:
            raise ConsistError(
                f"{other.name} is for another base model than {one.name}: "
                f"{module} is {sizes[1]}, not {sizes[0]}"
            )


def _size(update: Update) -> str:
    return " x ".join(map(str, (update.up.shape[0], *update.down.shape[1:])))


def _join(found: Sequence[tuple[Update, float]], alpha: float) -> Update:
    dtype = torch.float32
    for update, _ in found:
        dtype = torch.promote_types(dtype, update.up.dtype)
    rank = sum(update.rank for update, _ in found)

    def scaled(update: Update, weight: float) -> Tensor:
        # the reader will scale by alpha / rank
        return update.up.to(dtype) * (weight * (update.alpha / update.rank) * (rank / alpha))

    ups = [rearrange(scaled(update, weight), "o r ... -> r o ...") for update, weight in found]
    return Update(
        down=torch.cat([update.down.to(dtype) for update, _ in found]),
        up=rearrange(torch.cat(ups), "r o ... -> o r ..."),
        alpha=alpha,
    )


def _words(weighted: Sequence[tuple[Lora, float]]) -> dict[str, str]:
    bases = {lora.metadata.get("base_model", "") for lora, _ in weighted}
    words = {"merged_from": ", ".join(f"{lora.name}:{weight:g}" for lora, weight in weighted)}
    return words | ({"base_model": bases.pop()} if len(bases) == 1 and bases != {""} else {})
