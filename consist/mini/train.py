"""Trains `mini` from scratch: pictures, autoencoder, latents, reader, words, denoiser, export.

One resumable command, ``consist train mini WORKDIR``: every stage leaves its result in the work
folder and is skipped when it is there, and the long ones continue from their last checkpoint.
"""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from transformers import CLIPTextModel, CLIPTokenizer

from consist.mini.architecture import (
    assemble,
    build_text_encoder,
    build_tokenizer,
    build_unet,
)
from consist.mini.autoencoder import draw_pictures, encode_pictures, train_vae
from consist.mini.denoiser import PHRASE_SAMPLE, captions_of, train_unet, train_words
from consist.mini.fitting import OutOfTime, Recipe, Report, Session
from consist.mini.reading import save_reader, train_reader


def train(folder: Path, recipe: Recipe, device: torch.device, report: Report) -> Path:
    """Trains `mini` in ``folder`` and writes the pipeline to ``folder/mini``.

    Args:
        folder: Work folder; what it already holds is not done again.
        recipe: Lengths and rates.
        device: Where to train; bfloat16 products with float32 weights.
        report: Called with stage, step, steps and loss.

    Returns:
        The folder of the pipeline (fp16 safetensors, loadable with ``from_pretrained``).

    Raises:
        OutOfTime: ``recipe.minutes`` are over; call again to go on. If the denoiser was being
            trained, the pipeline as it stands is written all the same.
        ConsistError: The folder holds another number of pictures.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _train(folder, recipe, device, report)


def _train(folder: Path, recipe: Recipe, device: torch.device, report: Report) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    session = Session(folder, recipe, device, report, time.monotonic())
    album = draw_pictures(folder, recipe.pictures)
    vae = train_vae(session, album)
    latents = encode_pictures(folder / "latents.safetensors", vae, album, session)
    reader = folder / "mini" / "reader.safetensors"
    if not reader.exists():
        reader.parent.mkdir(exist_ok=True)
        save_reader(train_reader(session, album, latents, vae), reader)

    tokenizer = build_tokenizer(captions_of(list(range(PHRASE_SAMPLE)), Random("tokenizer")))
    encoder = build_text_encoder(tokenizer).to(device)
    unet = build_unet().to(device, memory_format=torch.channels_last)
    train_words(session, tokenizer, encoder)
    try:
        train_unet(session, tokenizer, encoder, unet, latents, album)
    except OutOfTime:
        export(folder / "mini", tokenizer, encoder, vae, unet)
        raise
    return export(folder / "mini", tokenizer, encoder, vae, unet)


def export(
    folder: Path,
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    vae: AutoencoderTiny,
    unet: UNet2DConditionModel,
) -> Path:
    """Writes the parts as one pipeline in fp16 safetensors."""
    unet.set_attn_processor(AttnProcessor2_0())
    pipe = assemble(tokenizer, encoder.eval(), vae.eval(), unet.eval())
    pipe.to("cpu", torch.float16)
    pipe.save_pretrained(folder)
    return folder
