import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

from consist.attention.layers import recorded_layers

CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"


def build(**changes):
    """A UNet with the blocks of a real one and hardly any width."""
    with torch.device("meta"):
        return UNet2DConditionModel(**{"cross_attention_dim": 8, "norm_num_groups": 4, **changes})


def narrow(levels):
    return {"block_out_channels": (8,) * levels, "attention_head_dim": 2}


def test_in_sdxl_they_are_the_sixty_at_a_quarter_of_the_latent():
    unet = build(
        **narrow(3),
        down_block_types=("DownBlock2D", CROSS_DOWN, CROSS_DOWN),
        up_block_types=(CROSS_UP, CROSS_UP, "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
    )
    blocks = [name.split(".attentions")[0] for name in recorded_layers(unet)]
    counts = {block: blocks.count(block) for block in dict.fromkeys(blocks)}
    assert counts == {"down_blocks.2": 20, "up_blocks.0": 30, "mid_block": 10}


def test_in_sd1_they_are_the_five_at_a_quarter_of_the_latent():
    blocks = [name.split(".attentions")[0] for name in recorded_layers(build(**narrow(4)))]
    assert sorted(blocks) == ["down_blocks.2"] * 2 + ["up_blocks.1"] * 3


def test_a_unet_of_two_levels_has_its_coarser_one(unet):
    blocks = {name.split(".attentions")[0] for name in recorded_layers(unet)}
    assert blocks == {"down_blocks.1", "mid_block", "up_blocks.0"}


def test_refuses_a_unet_without_cross_attention():
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = build(**narrow(2), **blocks, mid_block_type=None)
    with pytest.raises(ValueError, match="no cross-attention to find a subject in; pass masks"):
        recorded_layers(unet)


def test_refuses_a_layer_that_does_more():
    unet = build(**narrow(4))
    layer = next(iter(recorded_layers(unet)))
    attn = unet.get_submodule(layer)
    assert isinstance(attn, Attention)
    attn.norm_q = torch.nn.Identity()
    with pytest.raises(NotImplementedError, match=f"{layer} has norms"):
        recorded_layers(unet)
