"""Trains `mini` from scratch: pictures, autoencoder, latents, words, denoiser, export, reader.

One resumable command, ``consist train mini WORKDIR``: every stage leaves its result in the work
folder and is skipped when it is there, and the long ones continue from their last checkpoint.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from consist.errors import ConsistError
from consist.mini.architecture import (
    assemble,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
)
from consist.mini.reader import ReaderNet, load_reader
from consist.models.weights import digest_of_weights
from consist.training.mini.autoencoder import draw_pictures, encode_pictures, train_vae
from consist.training.mini.denoiser import PHRASE_SAMPLE, captions_of, train_unet, train_words
from consist.training.mini.reader import Blur, save_reader, train_reader
from consist.training.mini.redrawing import Redrawer
from consist.training.mini.session import OutOfTime, Recipe, Report, Session

READER = "reader.safetensors"  # beside the parts of a pipeline


@dataclass(frozen=True)
class Parts:
    """The networks of a pipeline, and its tokenizer."""

    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel
    vae: AutoencoderTiny
    unet: UNet2DConditionModel


def train(
    folder: Path, recipe: Recipe, device: torch.device, report: Report, start: Path | None = None
) -> Path:
    """Trains `mini` in ``folder`` and writes the pipeline to ``folder/mini``.

    Args:
        folder: Work folder; what it already holds is not done again.
        recipe: Lengths and rates. Without steps of the denoiser it and its words stay as they are.
        device: Where to train; float32 weights, and bfloat16 products where those are fast.
        report: Called with stage, step, steps and loss.
        start: Folder of a `mini` to begin with; its autoencoder is kept as it is, and its reader
            if the recipe has no steps of it. The rest learns on. None begins with random weights.

    Returns:
        The folder of the pipeline (fp16 safetensors, loadable with ``from_pretrained``).

    Raises:
        OutOfTime: ``recipe.minutes`` are over; call again to go on. If the denoiser was being
            trained, the pipeline as it stands is written all the same.
        ConsistError: The folder holds another number of pictures, or ``start`` is no `mini`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _train(folder, recipe, device, report, start)


def _train(
    folder: Path, recipe: Recipe, device: torch.device, report: Report, start: Path | None
) -> Path:
    given = None if start is None else load_parts(start)
    folder.mkdir(parents=True, exist_ok=True)
    # weights that learned from the draws of their own start meet other ones
    draws = "" if given is None else f"{digest_of_weights(given.unet)}-"
    session = Session(folder, recipe, device, report, time.monotonic(), draws)
    album = draw_pictures(folder, recipe.pictures)
    vae = given.vae.to(device) if given else train_vae(session, album)
    latents = encode_pictures(folder / "latents.safetensors", vae, album, session)
    reader = folder / "mini" / READER
    reader.parent.mkdir(exist_ok=True)
    if start is not None and not recipe.reader_steps and not reader.exists():
        copy_reader(start / READER, reader)

    parts = given or Parts(*begin_words(session), vae, build_unet())
    parts.encoder.to(device)
    parts.unet.to(device, memory_format=torch.channels_last)
    try:
        if recipe.unet_steps:
            train_unet(session, parts.tokenizer, parts.encoder, parts.unet, latents, album)
    except OutOfTime:
        export(folder / "mini", parts)
        raise
    export(folder / "mini", parts)
    if not reader.exists():
        net = ReaderNet() if start is None else load_reader(path=start / READER).net
        for part in (vae, parts.unet):  # as they were written
            part.to(device, torch.float32, memory_format=torch.channels_last)
        redraw = Redrawer(parts.tokenizer, parts.encoder.to(device).float(), parts.unet)
        blur = Blur(session, album, latents, vae, redraw)
        save_reader(train_reader(session, blur, net), reader)
    return folder / "mini"


def begin_words(session: Session) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """Tokenizer and text encoder, taught to tell captions apart."""
    tokenizer = build_tokenizer(captions_of(list(range(PHRASE_SAMPLE)), Random("tokenizer")))
    encoder = build_text_encoder(tokenizer).to(session.device)
    train_words(session, tokenizer, encoder)
    return tokenizer, encoder


def load_parts(folder: Path) -> Parts:
    """Reads the parts of a `mini`, in float32.

    Raises:
        ConsistError: The folder holds no pipeline, or one of another make.
    """
    if not (folder / "model_index.json").exists():
        raise ConsistError(f"{folder} holds no model to start from")
    pipe = StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    # built anew, since what diffusers has read keeps the path that it was read from in its config
    vae, unet = build_vae(), build_unet()
    for one, known in ((pipe.vae, vae), (pipe.unet, unet)):
        if shapes(one) != shapes(known):
            raise ConsistError(f"{folder} holds a model of another make than mini")
        known.load_state_dict(one.state_dict())
    return Parts(pipe.tokenizer, pipe.text_encoder, vae, unet)


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    """The shape of each weight."""
    return {name: weight.shape for name, weight in network.named_parameters()}


def copy_reader(source: Path, target: Path) -> None:
    """Copies a reader, in full or not at all.

    Raises:
        ConsistError: There is none.
    """
    load_reader(path=source)
    partial = target.with_suffix(".part")
    shutil.copyfile(source, partial)
    partial.replace(target)


def export(folder: Path, parts: Parts) -> Path:
    """Writes the parts as one pipeline in fp16 safetensors."""
    parts.unet.set_attn_processor(AttnProcessor2_0())
    pipe = assemble(parts.tokenizer, parts.encoder.eval(), parts.vae.eval(), parts.unet.eval())
    pipe.to("cpu", torch.float16)
    pipe.save_pretrained(folder)
    return folder
