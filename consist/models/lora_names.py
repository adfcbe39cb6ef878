"""What LoRA files call the modules of a UNet and its text encoders.

A module is known by its component and its dotted name in diffusers, text encoders in the nested
form that all versions read: ``unet.mid_block.attentions.0.proj_in``,
``text_encoder.text_model.encoder.layers.0.mlp.fc1``. Kohya's files join names by underscores, and
those for SDXL often have Stability's names of blocks. It must not know tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers

UNET = "unet"
TEXT_ENCODER = "text_encoder"
TEXT_ENCODER_2 = "text_encoder_2"
COMPONENTS = (UNET, TEXT_ENCODER, TEXT_ENCODER_2)
KOHYA_PREFIXES = {
    "lora_unet_": UNET,
    "lora_te_": TEXT_ENCODER,
    "lora_te1_": TEXT_ENCODER,
    "lora_te2_": TEXT_ENCODER_2,
}
# the names of SD 1.x, SD 2.x and SDXL that have underscores of their own
WHOLE_NAMES = (
    *("down_blocks", "mid_block", "up_blocks", "transformer_blocks"),
    *("conv_in", "conv_out", "conv_shortcut", "proj_in", "proj_out"),
    *("time_embedding", "add_embedding", "time_emb_proj", "linear_1", "linear_2"),
    *("to_q", "to_k", "to_v", "to_out"),
    *("text_model", "text_projection", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
)
NAMES = re.compile("|".join((*WHOLE_NAMES, "_")))
# Stability's names to those of diffusers, once the blocks are numbered as there
SGM_NAMES = {
    "input_blocks_0_0.": "conv_in.",
    "lora_unet_out_2.": "lora_unet_conv_out.",
    "input_blocks": "down_blocks",
    "middle_block": "mid_block",
    "output_blocks": "up_blocks",
    "in_layers_2.": "conv1.",
    "out_layers_3.": "conv2.",
    "emb_layers_1.": "time_emb_proj.",
    "skip_connection.": "conv_shortcut.",
    "_op.": "_conv.",
    "time_embed_0.": "time_embedding_linear_1.",
    "time_embed_2.": "time_embedding_linear_2.",
    "label_emb_0_0.": "add_embedding_linear_1.",
    "label_emb_0_2.": "add_embedding_linear_2.",
}


def to_kohya(module: str, sdxl: bool) -> str:
    """The name of a module in Kohya's layout.

    >>> to_kohya("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", sdxl=False)
    'lora_te_text_model_encoder_layers_0_self_attn_q_proj'
    """
    component, _, name = module.partition(".")
    text = "lora_te1_" if sdxl else "lora_te_"
    prefix = {UNET: "lora_unet_", TEXT_ENCODER: text, TEXT_ENCODER_2: "lora_te2_"}[component]
    return prefix + name.replace(".", "_")


def from_kohya(name: str) -> str:
    """The module of a name in Kohya's layout; its blocks have the names of diffusers.

    >>> from_kohya("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0")
    'unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0'

    Raises:
        ValueError: It has none of ``KOHYA_PREFIXES``.
    """
    for prefix, component in KOHYA_PREFIXES.items():
        if name.startswith(prefix):
            parts = NAMES.sub(lambda m: "." if m[0] == "_" else m[0], name.removeprefix(prefix))
            return f"{component}.{parts}"
    raise ValueError(f"{name} starts with none of {', '.join(KOHYA_PREFIXES)}")


def rename_sgm_blocks(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Gives modules of the UNet their names in diffusers where a file has those of Stability.

    Args:
        tensors: By their keys in Kohya's layout. SDXL has two layers per block, which the
            numbers of the blocks depend on.

    Raises:
        ValueError: A block has a number that the UNets of Stability do not have.
    """
    try:
        renamed = _maybe_map_sgm_blocks_to_diffusers(
            dict(tensors), SimpleNamespace(layers_per_block=2)
        )
    except (ValueError, IndexError) as error:
        raise ValueError(f"blocks of the UNet cannot be told: {error}") from error
    return {_rename(key): tensor for key, tensor in renamed.items()}


def _rename(key: str) -> str:
    if key.startswith("lora_unet_"):
        for old, new in SGM_NAMES.items():
            key = key.replace(old, new)
    return key


def nested(component: str, name: str) -> str:
    """The module of a name inside its component, where text encoders may be flat.

    >>> nested("text_encoder", "encoder.layers.0.mlp.fc1")
    'text_encoder.text_model.encoder.layers.0.mlp.fc1'
    """
    flat = component != UNET and name.startswith("encoder.")
    return f"{component}.text_model.{name}" if flat else f"{component}.{name}"
