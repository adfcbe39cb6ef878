"""The parts of `mini`: Stable Diffusion's architecture at small size, with random weights.

It must not know the drawn world nor how the parts are trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SIZE = 128  # pixels, both sides
LATENT_CHANNELS = 8
LATENT_SIZE = SIZE // 8
TEXT_WIDTH = 128
MAX_TOKENS = 40  # start and end included
HEAD_WIDTH = 32
VOCABULARY_SIZE = 1024


def build_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """Learns CLIP's byte-pair encoding from captions.

    All 256 bytes are in the vocabulary, inside and at the end of words, so any text tokenizes.
    """
    blank = CLIPTokenizer()
    trained = blank.train_new_from_iterator(captions, vocab_size=VOCABULARY_SIZE)
    merges = json.loads(trained.backend_tokenizer.to_str())["model"]["merges"]
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    tokens += ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    pairs = [tuple(pair) for pair in merges]
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=MAX_TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP's text encoder with two layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_vae() -> AutoencoderTiny:
    """An autoencoder with 8 x 8 pixels per latent, and no norms: every crop is seen as it is."""
    width = 48
    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 4,
        decoder_block_out_channels=(width,) * 4,
        num_encoder_blocks=(1, 1, 2, 2),
        num_decoder_blocks=(3, 2, 1, 1),
        latent_channels=LATENT_CHANNELS,
        scaling_factor=1.0,
    )


def build_unet() -> UNet2DConditionModel:
    """A UNet with self-attention at 16 x 16 and 8 x 8 in every block."""
    channels = (96, 192)
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        layers_per_block=1,
        # diffusers' name is historical: it is the number of heads
        attention_head_dim=tuple(width // HEAD_WIDTH for width in channels),
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Cosine schedule (Nichol and Dhariwal 2021), v-prediction (Salimans and Ho 2022)."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def assemble(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    vae: AutoencoderTiny,
    unet: UNet2DConditionModel,
) -> StableDiffusionPipeline:
    """Joins the parts into a plain ``StableDiffusionPipeline``."""
    return StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
