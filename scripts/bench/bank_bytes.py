"""What travels between processes that share one set, and from which size that pays.

``python scripts/bench/bank_bytes.py`` builds SDXL's UNet without weights (on PyTorch's meta
device), reads the shapes of the self-attention layers that a method covers from a call at
1024 x 1024 pixels, and prints

- bytes of the anchors' packed keys and values in each denoising step, float16, both guidance
  halves, as ``consist.attention.batch_split`` sends them; and what factors of a rank would take
  instead, written as in ``consist.attention.anchor_cache`` (mean token, left and right factor),
  which nothing sends today;
- the fewest images of a set for which a step is shorter with more processes than with one:
  floating-point operations saved, against bytes received.

Speeds are assumptions and not measured: see ``RATE`` and ``LINKS``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from diffusers import UNet2DConditionModel
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

import consist
from consist.attention.batch_split import Spread
from consist.attention.layers import attention_layers, matched_layers
from consist.attention.method import Method
from consist.attention.processor import covered_layers

HALVES = 2
BYTES = 2  # of a float16
PIXELS = 1024
# assumptions: what a GPU does per second in this model, and what a process receives per second
RATE = 200e12  # floating-point operations
LINKS = {"NVLink": 300e9, "PCIe 4.0 x16": 20e9, "100 Gbit/s": 10e9, "10 Gbit/s": 1e9}  # bytes
RANKS = (64, 128, 256)
ANCHORS = (2, 4, 8)
MOST = 256  # images that are tried


@dataclass(frozen=True)
class Call:
    """One self-attention layer in a call of the UNet."""

    tokens: int
    channels: int


def build_sdxl() -> UNet2DConditionModel:
    """SDXL's UNet, with the config of stabilityai/stable-diffusion-xl-base-1.0."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ).eval()


@torch.no_grad()
def trace(unet: UNet2DConditionModel) -> tuple[dict[str, Call], float]:
    """The calls of all self-attention layers for one image, and the operations of its step."""
    calls: dict[str, Call] = {}
    for name, attn in attention_layers(unet, ".attn1").items():

        def note(attn: torch.nn.Module, args: tuple, name: str = name) -> None:
            calls[name] = Call(*args[0].shape[1:])

        attn.register_forward_pre_hook(note)
    side = PIXELS // 8
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        unet(
            torch.empty(HALVES, 4, side, side),
            torch.tensor(0),
            torch.empty(HALVES, 77, 2048),
            added_cond_kwargs={
                "text_embeds": torch.empty(HALVES, 1280),
                "time_ids": torch.empty(HALVES, 6),
            },
        )
    return calls, float(counter.get_total_flops())


def bank_bytes(calls: list[Call], rank: int | None = None) -> int:
    """Keys and values of one anchor in one step, in full or as factors of a rank."""
    numbers = 0
    for call in calls:
        full = call.tokens * call.channels
        factors = call.channels + (rank or 0) * (call.tokens + call.channels)
        numbers += 2 * HALVES * (full if rank is None else min(full, factors))
    return numbers * BYTES


def key_bytes(calls: list[Call]) -> int:
    """Keys of one anchor in the conditional half, for methods that compare anchors."""
    return BYTES * sum(call.tokens * call.channels for call in calls)


def extra_flops(calls: list[Call], anchors: int) -> float:
    """What an image's attention to the anchors' tokens adds to a step: ``Q K^T`` and ``A V``."""
    return HALVES * sum(4 * call.tokens**2 * anchors * call.channels for call in calls)


def received_bytes(per_anchor: int, images: int, anchors: int, processes: int) -> int:
    """What a process receives in a step: from each other one as many anchors as any has."""
    spread = Spread(images=images, rank=0, count=processes)
    return (processes - 1) * spread.most(range(anchors)) * per_anchor


def fewest_images(
    per_image: float, calls: list[Call], per_anchor: int, anchors: int, processes: int, link: float
) -> str:
    """The smallest set for which a step takes less time with more processes than with one."""
    image = (per_image + extra_flops(calls, anchors)) / RATE
    for images in range(max(anchors, processes), MOST + 1):
        saved = (images - ceil(images / processes)) * image
        if saved > received_bytes(per_anchor, images, anchors, processes) / link:
            return str(images)
    return f"over {MOST}"


def main() -> None:
    unet = build_sdxl()
    calls, flops = trace(unet)
    console = Console(width=120)
    print(
        f"SDXL, {PIXELS} x {PIXELS}, {HALVES} guidance halves: {flops / 1e12:.1f} TFLOP per image"
    )
    default: Method = consist.Spectral()
    everywhere: Method = consist.Shared(layers=("down_blocks", "mid_block", "up_blocks"))
    table = Table("layers", "calls", "", *(f"{count} anchors" for count in ANCHORS), "a step of")
    for title, method in (("up_blocks", default), ("all", everywhere)):
        covered = [calls[name] for name in covered_layers(unet, method)]
        rows = {"in full": bank_bytes(covered)}
        rows |= {f"rank {rank}": bank_bytes(covered, rank) for rank in RANKS}
        for kind, size in rows.items():
            sizes = (f"{count * size / 1e6:.0f}" for count in ANCHORS)
            table.add_row(title, str(len(covered)), kind, *sizes, "MB")
    matched = [calls[name] for name in matched_layers(unet)]
    sizes = (f"{count * key_bytes(matched) / 1e6:.0f}" for count in ANCHORS)
    table.add_row("compared", str(len(matched)), "keys, one half", *sizes, "MB")
    console.print(table)
    covered = [calls[name] for name in covered_layers(unet, default)]
    per_anchor = bank_bytes(covered) + key_bytes(matched)
    table = Table("processes", "link, assumed", *(f"{count} anchors" for count in ANCHORS))
    for processes in (2, 4, 8):
        for name, link in LINKS.items():
            given = (flops, covered, per_anchor)
            fewest = (fewest_images(*given, count, processes, link) for count in ANCHORS)
            table.add_row(str(processes), f"{name}, {link / 1e9:.0f} GB/s", *fewest)
    print(f"\nfewest images for which a step is shorter, at an assumed {RATE / 1e12:.0f} TFLOP/s")
    console.print(table)


if __name__ == "__main__":
    main()
