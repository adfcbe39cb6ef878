"""Names to diffusers pipelines, ready to draw: the embedded `mini`, hub ids, folders, files.

Only safetensors are read. It must not know methods or runs.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from huggingface_hub import CacheNotFound, scan_cache_dir
from safetensors import safe_open

from consist.errors import ConsistError, unknown
from consist.models.devices import pick_device, pick_dtype
from consist.models.quiet import quiet
from consist.models.tensor_files import plain_errors

# without torchvision they tell of image processors that no picture here goes through
with quiet():
    from diffusers import (
        DDIMScheduler,
        DDPMScheduler,
        DiffusionPipeline,
        DPMSolverMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        HeunDiscreteScheduler,
        LCMScheduler,
        LMSDiscreteScheduler,
        PNDMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UniPCMultistepScheduler,
    )

Pipeline: TypeAlias = StableDiffusionPipeline | StableDiffusionXLPipeline

MINI = "mini"
MINI_FOLDER = Path(__file__).parents[1] / "mini" / "weights"
SCHEDULERS = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-a": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "lcm": LCMScheduler,
    "lms": LMSDiscreteScheduler,
    "pndm": PNDMScheduler,
    "unipc": UniPCMultistepScheduler,
}


@dataclass(frozen=True)
class Defaults:
    """What a model draws with when nothing is asked."""

    steps: int
    guidance: float


MINI_DEFAULTS = Defaults(steps=25, guidance=4.0)
DEFAULTS: dict[type, Defaults] = {
    StableDiffusionPipeline: Defaults(steps=30, guidance=7.5),
    StableDiffusionXLPipeline: Defaults(steps=30, guidance=5.0),
}


@dataclass(frozen=True)
class Model:
    """A pipeline on its device, and what suits it."""

    pipe: Pipeline
    defaults: Defaults


def load(name: str, device: str = "auto", dtype: str = "auto") -> Model:
    """Loads a model by name.

    Args:
        name: "mini", a folder in diffusers' layout, a ``.safetensors`` file, or a hub id
            such as ``stabilityai/stable-diffusion-xl-base-1.0``.
        device: "auto" (CUDA, then MPS, then CPU) or a torch device.
        dtype: "auto" (float16 on CUDA, else float32) or a key of ``DTYPES``.

    Raises:
        ConsistError: There is no such model, it is damaged, not in safetensors, of a kind that is
            not supported, or cannot be fetched.
    """
    place = pick_device(device)
    precision = pick_dtype(dtype, place)
    source = str(MINI_FOLDER) if name == MINI else name
    with plain_errors(name), quiet() if name == MINI else nullcontext():
        if Path(source).is_file():
            pipe = _load_file(Path(source), precision)
        elif Path(source).is_dir() or _is_hub_id(name):
            pipe = _load_pretrained(source, precision)
        else:
            raise ConsistError(f"{unknown('model', name, [MINI])}, a hub id, a folder or a file")
    if type(pipe) not in DEFAULTS:
        kind = type(pipe).__name__
        raise ConsistError(f"model {name} is a {kind}; consist draws with SD 1.x, SD 2.x and SDXL")
    pipe.set_progress_bar_config(disable=True)
    return Model(pipe.to(place), _defaults_of(pipe))


def _defaults_of(pipe: Pipeline) -> Defaults:
    # a `mini` that somebody trained is one too, wherever it lies
    make = json.loads((MINI_FOLDER / "unet" / "config.json").read_text())
    if all(pipe.unet.config[key] == make[key] for key in ("in_channels", "cross_attention_dim")):
        return MINI_DEFAULTS
    return DEFAULTS[type(pipe)]


@dataclass(frozen=True)
class LocalModel:
    """A model that is already on this machine."""

    name: str
    kind: str
    bytes: int
    path: Path


def local_models() -> list[LocalModel]:
    """`mini` and the Stable Diffusion models in the hub's cache."""
    found = [_describe(MINI, MINI_FOLDER)]
    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        repos = frozenset()
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        for revision in repo.revisions:
            if (revision.snapshot_path / "model_index.json").exists():
                found.append(_describe(repo.repo_id, revision.snapshot_path))
    kinds = [kind.__name__ for kind in DEFAULTS]
    return [model for model in found if model.kind in kinds]


def _describe(name: str, folder: Path) -> LocalModel:
    kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return LocalModel(name, kind, size, folder)


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def _load_pretrained(source: str, dtype: torch.dtype) -> DiffusionPipeline:
    folder = Path(source)
    if folder.is_dir() and not (folder / "model_index.json").exists():
        raise ConsistError(f"{source} is not a diffusers model: it has no model_index.json")
    half = dtype != torch.float32 and (not folder.is_dir() or any(folder.glob("unet/*.fp16.*")))
    options = {"dtype": dtype, "use_safetensors": True, "local_files_only": folder.is_dir()}
    try:
        return DiffusionPipeline.from_pretrained(
            source, variant="fp16" if half else None, **options
        )
    except ValueError:
        if not half:
            raise
    return DiffusionPipeline.from_pretrained(source, **options)


def _load_file(path: Path, dtype: torch.dtype) -> DiffusionPipeline:
    if path.suffix != ".safetensors":
        raise ConsistError(f"{path} is not a .safetensors file; no other weights are loaded")
    with safe_open(path, "pt") as file:
        large = any(key.startswith("conditioner.embedders.1") for key in file.keys())  # noqa: SIM118
    kind = StableDiffusionXLPipeline if large else StableDiffusionPipeline
    return kind.from_single_file(str(path), dtype=dtype)


def set_scheduler(pipe: Pipeline, name: str) -> None:
    """Gives the pipeline another scheduler with the model's own noise schedule.

    Raises:
        ConsistError: There is none of that name, or it needs a package that is missing.
    """
    if name not in SCHEDULERS:
        raise ConsistError(unknown("scheduler", name, SCHEDULERS))
    try:
        pipe.scheduler = SCHEDULERS[name].from_config(pipe.scheduler.config)
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise ConsistError(f"scheduler {name!r} cannot be used: {reason}") from error
