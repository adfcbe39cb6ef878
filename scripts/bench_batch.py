"""What sharing costs: seconds per step and peak memory, as ratios to diffusers' own pipeline.

    python scripts/bench_batch.py                 # mini, 4 images, both guidance halves
    python scripts/bench_batch.py --model sdxl    # SDXL's architecture, random weights, narrow
    python scripts/bench_batch.py --images 2 4 8  # how memory grows

Contenders take turns, so that a machine whose speed drifts treats them alike; the table gives the
median over rounds of the ratio to the stock model in the same round. Memory is the growth of a
fresh process over the loaded model.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import get_context
from typing import Any

import torch
from diffusers import UNet2DConditionModel

import consist
from consist.models import load, pick_device
from consist.origin import grown_mib, versions

METHODS = {
    "stock": None,
    "isolated": consist.Isolated(),
    "shared": consist.Shared(),
    "spectral": consist.Spectral(),
    "matched": consist.Matched(),
}


def build_sdxl() -> UNet2DConditionModel:
    """SDXL's UNet at 0.4 of its width, with its depths, head width and two text encoders."""
    return UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(128, 256, 512),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(2, 4, 8),
        cross_attention_dim=512,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=64,
        projection_class_embeddings_input_dim=6 * 64 + 256,
    ).eval()


def sharing(unet: Any, name: str) -> AbstractContextManager[None]:
    method = METHODS[name]
    return consist.shared_attention(unet, method, guidance_halves=2) if method else nullcontext()


def make_mini(images: int, steps: int, device: torch.device) -> Callable[[str], None]:
    pipe = load("mini", str(device)).pipe
    prompts = [
        f"a cat {place}" for place in ("in paris", "on the moon", "in a forest", "on a beach")
    ]
    latents = torch.randn(images, 8, 16, 16, generator=torch.Generator().manual_seed(0)).to(device)

    def draw(name: str) -> None:
        method = METHODS[name]
        with consist.shared_attention(pipe, method) if method else nullcontext():
            pipe(
                (prompts * images)[:images],
                latents=latents,
                num_inference_steps=steps,
                output_type="latent",
            )

    return draw


@torch.no_grad()
def make_sdxl(images: int, steps: int, device: torch.device) -> Callable[[str], None]:
    unet = build_sdxl().to(device)
    size = unet.config.sample_size
    sample = torch.randn(2 * images, 4, size, size, device=device)
    text = torch.randn(2 * images, 77, 512, device=device)
    added = {
        "text_embeds": torch.randn(2 * images, 256, device=device),
        "time_ids": torch.zeros(2 * images, 6, device=device),
    }

    @torch.no_grad()
    def draw(name: str) -> None:
        with sharing(unet, name):
            for step in range(steps):
                timestep = 999 - step * 1000 // steps
                unet(sample, timestep, text, added_cond_kwargs=added)

    return draw


MODELS = {"mini": make_mini, "sdxl": make_sdxl}


def timed(draw: Callable[[str], None], name: str) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    draw(name)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_mib(model: str, images: int, name: str, device: str) -> float:
    """Memory that drawing adds to a fresh process over the loaded model."""
    draw = MODELS[model](images, 2, torch.device(device))
    return grown_mib(lambda: draw(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="mini")
    parser.add_argument("--images", type=int, nargs="+", default=[4])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default=str(pick_device("auto")))
    args = parser.parse_args()

    print(
        args.model,
        args.device,
        platform.machine(),
        f"{torch.get_num_threads()} threads",
        versions(),
    )
    print(f"{'images':>6} {'method':>10} {'s/step':>8} {'x stock':>8} {'min..max':>13} {'MiB':>7}")
    for images in args.images:
        draw = MODELS[args.model](images, args.steps, torch.device(args.device))
        for name in METHODS:
            draw(name)
        rounds = [{name: timed(draw, name) for name in METHODS} for _ in range(args.rounds)]
        for name in METHODS:
            ratios = [times[name] / times["stock"] for times in rounds]
            seconds = statistics.median(times[name] for times in rounds) / args.steps
            with get_context("spawn").Pool(1) as fresh:
                memory = fresh.apply(peak_mib, (args.model, images, name, args.device))
            spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
            ratio = statistics.median(ratios)
            print(f"{images:6} {name:>10} {seconds:8.4f} {ratio:8.3f} {spread:>13} {memory:7.0f}")


if __name__ == "__main__":
    main()
