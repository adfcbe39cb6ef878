"""What sharing costs: seconds per step and peak memory, as ratios to diffusers' own pipeline.

    python scripts/bench/batch.py                             # mini, 4 images, with guidance
    python scripts/bench/batch.py --model sdxl --anchors 2    # SDXL at 1024 pixels, on a GPU
    python scripts/bench/batch.py --images 2 4 8              # how memory grows

Models but `mini` have the architecture of their names and random weights. Contenders take turns, so
that a machine whose speed drifts treats them alike; the table gives the median over rounds of the
ratio to the stock pipeline in the same round. Memory is the growth over the loaded model, without a
GPU in a fresh process for each method.
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import diffusers
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import consist
from consist.attention.method import WORDS, Method
from consist.mini.architecture import build_tokenizer
from consist.models.devices import pick_device, pick_dtype
from consist.models.loading import Pipeline, load
from consist.prompts.phrases import find_subject
from consist.runs.memory import grown_mib
from consist.runs.versions import versions

METHODS = {
    "stock": None,
    "isolated": consist.Isolated(),
    "shared": consist.Shared(),
    "spectral": consist.Spectral(),
    "sdsa": consist.Sdsa(),
    "matched": consist.Matched(),
}
PLACES = ("in paris", "on the moon", "in a forest", "on a beach")
TOKENS = 77

SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 768 + 1280,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 6 * 256 + 1280,
}
# 0.4 of its width, at 256 pixels: what a CPU can draw
SDXL_SMALL = SDXL | {
    "sample_size": 32,
    "block_out_channels": (128, 256, 512),
    "attention_head_dim": (2, 4, 8),
    "cross_attention_dim": 256 + 256,
    "addition_time_embed_dim": 64,
    "projection_class_embeddings_input_dim": 6 * 64 + 256,
}


def build_pipe(kind: type[Pipeline], unet: dict[str, Any], texts: dict[str, int]) -> Pipeline:
    """A pipeline with random weights, without an autoencoder.

    Args:
        kind: Its class.
        unet: Settings of its UNet.
        texts: Its text encoders, of one layer each, with their widths.
    """
    tokenizer = build_tokenizer([])  # knows letters only
    tokenizer.model_max_length = TOKENS
    makes = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    encoders = {
        name: makes[name](
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=width,
                num_hidden_layers=1,
                num_attention_heads=width // 64,
                max_position_embeddings=TOKENS,
                projection_dim=width,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        for name, width in texts.items()
    }
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    parts = {"tokenizer": tokenizer, "vae": None, "scheduler": scheduler, **encoders}
    parts["unet"] = UNet2DConditionModel(**unet).eval()
    if kind is StableDiffusionXLPipeline:
        return kind(**parts, tokenizer_2=tokenizer, add_watermarker=False)
    return kind(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


MODELS: dict[str, Callable[[], Pipeline]] = {
    "mini": lambda: load("mini", "cpu").pipe,
    "sd15": lambda: build_pipe(StableDiffusionPipeline, SD15, {"text_encoder": 768}),
    "sdxl": lambda: build_pipe(
        StableDiffusionXLPipeline, SDXL, {"text_encoder": 768, "text_encoder_2": 1280}
    ),
    "sdxl-small": lambda: build_pipe(
        StableDiffusionXLPipeline, SDXL_SMALL, {"text_encoder": 256, "text_encoder_2": 256}
    ),
}


def build(model: str, device: torch.device) -> Pipeline:
    """A model on its device; weights are made there, since a CPU takes minutes for SDXL's."""
    diffusers.logging.set_verbosity_error()
    torch.manual_seed(0)
    with torch.device(device):
        pipe = MODELS[model]()
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, pick_dtype("auto", device))


def draw(
    pipe: Pipeline, method: Method | None, images: int, steps: int, backend: str = "auto"
) -> None:
    """Denoises a batch, with guidance."""
    prompts = [f"a cat {PLACES[i % len(PLACES)]}" for i in range(images)]
    side, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
    noise = torch.Generator().manual_seed(0)
    latents = torch.randn(images, channels, side, side, generator=noise)
    call = functools.partial(
        pipe,
        prompts,
        latents=latents.to(pipe.device, pipe.dtype),
        num_inference_steps=steps,
        output_type="latent",
    )
    if method is None:
        call()
        return
    by_words = getattr(method, "masks", None) == WORDS
    words = find_subject(pipe.tokenizer, prompts) if by_words else None
    with consist.shared_attention(pipe, method, backend=backend, subject_tokens=words):
        call()


def timed(run: Callable[[], None]) -> float:
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    synchronize()
    started = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - started


def fresh_mib(model: str, method: Method | None, images: int, device: str) -> float:
    """Memory that drawing adds to a process that has drawn nothing yet."""
    pipe = build(model, torch.device(device))
    return grown_mib(lambda: draw(pipe, method, images, 2))


def peak_mib(pipe: Pipeline, model: str, method: Method | None, images: int) -> float:
    """Memory that drawing adds: a GPU tells it at any time, a process only if it is fresh."""
    if pipe.device.type == "cuda":
        return grown_mib(lambda: draw(pipe, method, images, 2))
    with get_context("spawn").Pool(1) as fresh:
        return fresh.apply(fresh_mib, (model, method, images, str(pipe.device)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="mini")
    parser.add_argument("--images", type=int, nargs="+", default=[4])
    parser.add_argument("--anchors", type=int, help="the first so many images; default: all")
    parser.add_argument("--backend", default="auto", help="auto, torch, triton or reference")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()

    device = pick_device(args.device)
    methods = {
        name: replace(method, anchors=args.anchors)
        if args.anchors and isinstance(method, consist.Shared)
        else method
        for name, method in METHODS.items()
    }
    pipe = build(args.model, device)
    print(args.model, device, platform.machine(), f"{torch.get_num_threads()} threads", versions())
    print(f"{'images':>6} {'method':>10} {'s/step':>8} {'x stock':>8} {'min..max':>13} {'MiB':>7}")
    for images in args.images:
        runs = {
            name: functools.partial(draw, pipe, method, images, args.steps, args.backend)
            for name, method in methods.items()
        }
        for run in runs.values():
            run()
        rounds = [{name: timed(run) for name, run in runs.items()} for _ in range(args.rounds)]
        for name, method in methods.items():
            ratios = [times[name] / times["stock"] for times in rounds]
            seconds = statistics.median(times[name] for times in rounds) / args.steps
            memory = peak_mib(pipe, args.model, method, images)
            spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
            ratio = statistics.median(ratios)
            print(f"{images:6} {name:>10} {seconds:8.4f} {ratio:8.3f} {spread:>13} {memory:7.0f}")


if __name__ == "__main__":
    main()
