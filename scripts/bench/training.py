"""What training costs: seconds per step and peak memory, as ratios to diffusers' example script.

    python scripts/bench/training.py                        # mini, LoRA and DreamBooth
    python scripts/bench/training.py --model sd             # SD 1.x's architecture, narrow, random
    python scripts/bench/training.py --prior images --resolution 256

The baseline is written anew here after what train_dreambooth_lora.py and train_dreambooth.py of
diffusers do: each step opens its photos, encodes them and their prompts, adds noise, and takes one
step of AdamW on the clipped gradient. Model, photos, batch and precision are the same. Contenders
take turns, so that a machine whose speed drifts treats them alike; the table gives the median over
rounds of the ratio to the baseline in the same round. Memory is the growth of a fresh process over
the loaded model. What `consist` does once, before the first step, is in the column "start".
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextConfig, CLIPTextModel

from consist.cli.console import hide_loading_bars
from consist.models.devices import pick_device
from consist.models.loading import DEFAULTS, MINI, Model, load
from consist.runs.memory import grown_mib
from consist.runs.versions import versions
from consist.training.class_images import class_root
from consist.training.config import CLASS_IMAGES, DREAMBOOTH, LORA, NO_PRIOR, TrainConfig
from consist.training.finetune import finetune
from consist.training.photos import View, as_pixels, cut

CAPTION, CLASS = "a th cat", "a cat"
RANK = 16
LOAD_STEPS = 2  # of a training whose memory is measured
Watch = Callable[[int, int, float], None]


def build_sd() -> StableDiffusionPipeline:
    """SD 1.x at 0.2 of its width, with random weights and the tokenizer of `mini`."""
    tokenizer = load(MINI, "cpu").pipe.tokenizer
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=12,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 128, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 256, 256),
        attention_head_dim=8,
        cross_attention_dim=256,
    )
    return StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(text).eval(),
        vae=vae.eval(),
        unet=unet.eval(),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def load_fresh(config: TrainConfig, device: torch.device) -> Model:
    """The model of a benchmark: a name of ``MODELS``."""
    if config.model == MINI:
        return load(MINI, str(device), "float32")
    pipe = build_sd().to(device)
    pipe.set_progress_bar_config(disable=True)
    return Model(pipe, DEFAULTS[StableDiffusionPipeline])


class Photos(Dataset):
    """Photos that are opened, scaled and cut whenever they are asked for, with their prompts."""

    def __init__(self, config: TrainConfig, tokenizer: Any, resolution: int):
        self.files = [(path, config.prompt) for path in sorted(Path(config.photos).iterdir())]
        self.classes = []
        if config.prior == CLASS_IMAGES:
            found = sorted(class_root(config).glob("*/[0-9]*.png"))[: config.class_images]
            self.classes = [(path, config.class_prompt) for path in found]
        self.tokenizer = tokenizer
        self.view = View(width=resolution, height=resolution)

    def __len__(self) -> int:
        return max(len(self.files), len(self.classes))

    def __getitem__(self, index: int) -> list[tuple[Tensor, Tensor]]:
        sources = [source for source in (self.files, self.classes) if source]
        return [self.read(*source[index % len(source)]) for source in sources]

    def read(self, path: Path, prompt: str) -> tuple[Tensor, Tensor]:
        with Image.open(path) as image:
            pixels = as_pixels(cut(image.convert("RGB"), self.view))
        ids = self.tokenizer(
            prompt,
            truncation=True,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids
        return pixels, ids[0]


def collate(samples: list[list[tuple[Tensor, Tensor]]]) -> tuple[Tensor, Tensor]:
    """Photos first and then those of the class, pixels ``(n 3 h w)`` and ids ``(n l)``."""
    ordered = [sample[kind] for kind in range(len(samples[0])) for sample in samples]
    pixels, ids = zip(*ordered, strict=True)
    return torch.stack(pixels), torch.stack(ids)


def train_baseline(config: TrainConfig, watch: Watch, model_for: Any) -> None:
    """Trains after the structure of diffusers' example scripts."""
    accelerator = Accelerator(cpu=config.device == "cpu")
    pipe = model_for(config, accelerator.device).pipe
    unet, vae, encoder = pipe.unet, pipe.vae, pipe.text_encoder
    vae.requires_grad_(False)
    encoder.requires_grad_(False)
    if config.kind == LORA:
        unet.requires_grad_(False)
        # more than the example's, which are the first four: the same modules as ours
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        targets += ["proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
        unet.add_adapter(
            LoraConfig(
                r=config.rank,
                lora_alpha=config.rank,
                init_lora_weights="gaussian",
                target_modules=targets,
            )
        )
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    weights = [weight for weight in unet.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.lr, weight_decay=config.weight_decay)
    resolution = config.resolution or unet.config.sample_size * pipe.vae_scale_factor
    photos = Photos(config, pipe.tokenizer, resolution)
    loader = DataLoader(photos, config.batch_size, shuffle=True, collate_fn=collate)
    unet, optimizer, loader = accelerator.prepare(unet, optimizer, loader)
    step = 0
    while step < config.steps:
        for pixels, ids in loader:
            coded = vae.encode(pixels.to(vae.dtype))
            latents = coded.latents if "latents" in coded else coded.latent_dist.sample()
            latents = latents * vae.config.scaling_factor
            noise = torch.randn_like(latents)
            count = scheduler.config.num_train_timesteps
            timesteps = torch.randint(0, count, (len(latents),), device=latents.device)
            noisy = scheduler.add_noise(latents, noise, timesteps)
            embeds = encoder(ids, return_dict=False)[0]
            predicted = unet(noisy, timesteps, embeds, return_dict=False)[0]
            target = noise
            if scheduler.config.prediction_type == "v_prediction":
                target = scheduler.get_velocity(latents, noise, timesteps)
            kinds = 2 if photos.classes else 1
            pairs = zip(predicted.chunk(kinds), target.chunk(kinds), strict=True)
            loss = sum(F.mse_loss(a.float(), b.float()) for a, b in pairs)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(weights, config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            watch(step, config.steps, loss.detach().item())
            if step == config.steps:
                break


def train_ours(config: TrainConfig, watch: Watch, model_for: Any) -> None:
    finetune(config, watch, model_for=model_for)


CONTENDERS = {"diffusers": train_baseline, "consist": train_ours}


def configure(options: argparse.Namespace, kind: str, folder: Path, steps: int) -> TrainConfig:
    photos = folder / "photos"
    if not photos.exists():
        photos.mkdir()
        for number in range(4):
            seeded = torch.Generator().manual_seed(number)
            noise = torch.randint(256, (640, 512, 3), generator=seeded).byte().numpy()
            Image.fromarray(noise).save(photos / f"{number}.jpg")
    return TrainConfig(
        kind=kind,
        photos=str(photos),
        out=str(folder / ("lora.safetensors" if kind == LORA else "whole")),
        prompt=CAPTION,
        class_prompt=CLASS,
        model=options.model,
        steps=steps,
        lr=1e-4 if kind == LORA else 5e-6,
        rank=RANK,
        batch_size=options.batch_size,
        class_images=2 * options.batch_size,
        prior=options.prior,
        resolution=options.resolution,
        buckets=False,
        checkpoint_every=steps,
        device=options.device,
    )


def anew(config: TrainConfig, name: str) -> TrainConfig:
    """The same training from its first step, in a place where nothing is, but for class images."""
    out = Path(config.out)
    return replace(config, out=str(out.with_name(f"{name}-{time.monotonic_ns()}-{out.name}")))


def timed(config: TrainConfig, name: str) -> tuple[float, float]:
    """Seconds until the first step is done, and the median of those after it."""
    device = pick_device(config.device)
    model = load_fresh(config, device)
    stamps = [time.perf_counter()]

    def watch(step: int, steps: int, loss: float) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        stamps.append(time.perf_counter())

    CONTENDERS[name](anew(config, name), watch, lambda config, device: model)
    spans = [b - a for a, b in pairwise(stamps)]
    # with the last step a checkpoint is written
    return spans[0], statistics.median(spans[1:-1])


def peak_mib(config: TrainConfig, name: str) -> float:
    """Memory that training adds to a fresh process over the loaded model."""
    be_quiet()
    model = load_fresh(config, pick_device(config.device))
    short = replace(anew(config, name), steps=LOAD_STEPS, checkpoint_every=LOAD_STEPS)
    run = partial(CONTENDERS[name], short, lambda step, steps, loss: None)
    return grown_mib(lambda: run(lambda config, device: model))


def be_quiet() -> None:
    hide_loading_bars()
    diffusers.utils.logging.set_verbosity_error()
    logging.getLogger("consist").setLevel(logging.ERROR)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=(MINI, "sd"), default=MINI)
    add("--kind", nargs="+", choices=(LORA, DREAMBOOTH), default=[LORA, DREAMBOOTH])
    add("--prior", choices=(NO_PRIOR, CLASS_IMAGES), default=NO_PRIOR)
    add("--batch-size", type=int, default=2)
    add("--resolution", type=int, help="by default the model's own")
    add("--steps", type=int, default=8, help="of each round, at least 4")
    add("--rounds", type=int, default=5)
    add("--device", default=str(pick_device("auto")))
    options = parser.parse_args()
    if options.steps < 4 or options.rounds < 1:
        parser.error("take at least 4 steps and 1 round")
    be_quiet()
    where = f"{options.device} {platform.machine()} {torch.get_num_threads()} threads"
    print(options.model, where, f"batch {options.batch_size}, prior {options.prior}", versions())
    print(
        f"{'kind':>10} {'':>10} {'start s':>8} {'s/step':>8} {'ratio':>6} {'':>12} {'MiB':>6} ratio"
    )
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kind:
            bench(configure(options, kind, Path(folder), options.steps), options.rounds)


def bench(config: TrainConfig, rounds: int) -> None:
    """Prints a line for each contender."""
    # draws class images for all, and warms up
    timed(config, "consist")
    found = [{name: timed(config, name) for name in CONTENDERS} for _ in range(rounds)]
    peaks = {}
    for name in CONTENDERS:
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            peaks[name] = fresh.submit(peak_mib, config, name).result()
    for name in CONTENDERS:
        start = statistics.median(one[name][0] for one in found)
        seconds = statistics.median(one[name][1] for one in found)
        ratios = [one[name][1] / one["diffusers"][1] for one in found]
        spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
        print(
            f"{config.kind:>10} {name:>10} {start:8.2f} {seconds:8.3f} "
            f"{statistics.median(ratios):6.2f} {spread:>12} {peaks[name]:6.0f} "
            f"{peaks[name] / peaks['diffusers']:5.2f}"
        )


if __name__ == "__main__":
    main()
