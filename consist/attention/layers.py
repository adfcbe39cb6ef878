"""The attention layers of a diffusers UNet: names, levels, grids, and whether they are plain."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

# halvings of the latent's grid at which cross-attention tells a subject best: 32 x 32 of SDXL's
# 128 x 128 (ConsiStory), 16 x 16 of SD 1's 64 x 64 (Prompt-to-Prompt, arXiv:2208.01626)
RECORDED_LEVEL = 2


def grid_of(tokens: int, height: int, width: int) -> tuple[int, int]:
    """Finds the grid of ``tokens`` tokens in a UNet whose input is ``height x width``.

    A UNet halves its grid and rounds up, so exactly one of its levels can have that many.

    >>> grid_of(15, 9, 19)
    (3, 5)
    """
    rows, columns = height, width
    while rows * columns > tokens:
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    if rows * columns != tokens:
        raise NotImplementedError(f"no level of a {height}x{width} UNet has {tokens} tokens")
    return rows, columns


def recorded_layers(unet: UNet2DConditionModel) -> dict[str, Attention]:
    """The cross-attention layers on the level nearest to ``RECORDED_LEVEL``, by dotted names."""
    layers = attention_layers(unet, ".attn2")
    last = len(unet.config.block_out_channels) - 1
    levels = {name: level_of(name, last) for name in layers}
    if not levels:
        raise ValueError("this UNet has no cross-attention to find a subject in; pass masks")
    chosen = min(levels.values(), key=lambda level: (abs(level - RECORDED_LEVEL), level))
    recorded = {name: attn for name, attn in layers.items() if levels[name] == chosen}
    for name, attn in recorded.items():
        refuse_unusual(name, attn)
    return recorded


def matched_layers(unet: UNet2DConditionModel) -> dict[str, Attention]:
    """The first self-attention layer of each block of the decoder that has any, by dotted names.

    Keys of the decoder tell a subject from backgrounds, those of the encoder do not; see
    ``scripts/measure/subjects.py``.
    """
    blocks: dict[str, str] = {}
    layers = attention_layers(unet, ".attn1")
    for name in layers:
        if name.startswith("up_blocks."):
            blocks.setdefault(".".join(name.split(".")[:2]), name)
    if not blocks:
        raise ValueError("this UNet has no self-attention in its decoder to find a subject in")
    for name in blocks.values():
        refuse_unusual(name, layers[name])
    return {name: layers[name] for name in blocks.values()}


def feature_block(unet: UNet2DConditionModel) -> torch.nn.Module:
    """The decoder block whose output tells which places of pictures show the same.

    The third from the end, or the first: ``up_blocks.0`` of SDXL (ConsiStory, appendix B),
    ``up_blocks.1`` of SD 1 and 2 (DIFT, arXiv:2306.03881). It gives half the latent's grid, where
    a place is 16 pixels wide; in a UNet of two levels, the latent's own.
    """
    block: torch.nn.Module = unet.up_blocks[max(0, len(unet.up_blocks) - 3)]
    return block


def level_of(layer: str, last: int) -> int:
    """How often the grid was halved where a layer stands, in a UNet of levels 0 to ``last``.

    >>> level_of("up_blocks.0.attentions.1.transformer_blocks.0.attn2", last=2)
    2
    """
    block, number, *_ = layer.split(".")
    if block == "down_blocks":
        return int(number)
    return last - int(number) if block == "up_blocks" else last


def attention_layers(unet: UNet2DConditionModel, ending: str) -> dict[str, Attention]:
    """The attention layers whose dotted names have an ending: .attn1 for self, .attn2 for cross."""
    return {
        name: module
        for name, module in unet.named_modules()
        if name.endswith(ending) and isinstance(module, Attention)
    }


def refuse_unusual(layer: str, attn: Attention) -> None:
    """Raises unless the layer is plain attention."""
    norms = (attn.group_norm, attn.spatial_norm, attn.norm_cross, attn.norm_q, attn.norm_k)
    width = attn.inner_dim // attn.heads
    unscaled = attn.rescale_output_factor == 1.0 and attn.scale == width**-0.5
    if attn.residual_connection or not unscaled or any(norm is not None for norm in norms):
        raise NotImplementedError(f"{layer} has norms, a residual or a scale of its own")
