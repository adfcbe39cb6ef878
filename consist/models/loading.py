"""Names to diffusers pipelines, ready to draw: the embedded `mini`, hub ids, folders, files.

Only safetensors are read. It must not know methods or runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
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
from huggingface_hub import CacheNotFound, scan_cache_dir
from peft import LoraConfig
from safetensors import SafetensorError, safe_open

from consist.errors import ConsistError, unknown
from consist.models.adapters import load_adapter
from consist.models.lora_files import MODELS, Lora, read_lora
from consist.models.lora_layouts import diffusers_header, peft_tensors
from consist.models.lora_names import UNET
from consist.models.packages import check_adapters
from consist.models.tensor_files import read_tensors

Pipeline: TypeAlias = StableDiffusionPipeline | StableDiffusionXLPipeline

MINI = "mini"
MINI_FOLDER = Path(__file__).parents[1] / "mini" / "weights"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
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
    with plain_errors(name):
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


@contextmanager
def plain_errors(name: str) -> Iterator[None]:
    """Turns the many ways in which loading fails into one sentence."""
    try:
        yield
    except ConsistError:
        raise
    except SafetensorError as error:
        raise ConsistError(f"{name} is damaged: {first_line(error)}") from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ConsistError(f"{name} cannot be loaded: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" takes the fastest there is.

    Raises:
        ConsistError: There is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConsistError(f"device {name!r} cannot be used here: {first_line(error)}") from error
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of that name; "auto" is float16 on CUDA and float32 elsewhere."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ConsistError(unknown("dtype", name, ["auto", *DTYPES]))
    return DTYPES[name]


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


def add_loras(pipe: Pipeline, given: tuple[str, ...]) -> None:
    """Loads LoRA files, each given as ``FILE`` or ``FILE:WEIGHT``, and weighs them.

    Raises:
        ConsistError: One is missing, damaged, no LoRA, or for another model.
    """
    if given:
        check_adapters()
    weights: dict[str, float] = {}
    for number, text in enumerate(given):
        name, weight = split_weight(text)
        lora = read_lora(Path(name))
        check_lora(pipe, lora)
        with plain_errors(f"LoRA {name}"):
            load_lora(pipe, lora, f"lora_{number}")
        weights[f"lora_{number}"] = weight
    if weights:
        pipe.set_adapters(list(weights), list(weights.values()))


def check_lora(pipe: Pipeline, lora: Lora) -> None:
    """Makes sure that a LoRA is for models such as this one, as far as it tells.

    Raises:
        ConsistError: It is for prompts of another width, or a text encoder that is not there, or
            it is a DoRA in part, which no adapter of peft is.
    """
    if len({update.magnitude is None for update in lora.modules.values()}) > 1:
        raise ConsistError(f"{lora.name} is a DoRA in a part of its modules; all or none must be")
    width = pipe.unet.config.cross_attention_dim
    found = lora.prompt_width or width
    absent = [n for n, count in lora.counts.items() if count and getattr(pipe, n, None) is None]
    if found != width or absent:
        names = [MODELS.get(wide, (f"prompts {wide} wide",))[0] for wide in (found, width)]
        what = f"it has a {absent[0]}" if absent else f"{names[0]}, not {names[1]}"
        raise ConsistError(f"{lora.name} is for another base model: {what}")


def load_lora(pipe: Pipeline, lora: Lora, adapter: str) -> None:
    """Gives a pipeline a LoRA as an adapter, with rank, alpha and DoRA of each of its modules.

    ``load_lora_weights`` takes one alpha for all modules of a Kohya file, and drops its DoRA; what
    it does with a file of its own layout is right.
    """
    header = json.loads(diffusers_header(lora.modules))
    for component in [name for name, count in lora.counts.items() if count]:
        model, prefix = getattr(pipe, component), f"{component}."
        own = {key.removeprefix(prefix): x for key, x in header.items() if key.startswith(prefix)}
        # newer versions of transformers have no inner model where there is no projection
        inner = prefix if hasattr(model, "text_model") else f"{prefix}text_model."
        tensors = {
            key.removeprefix(prefix if component == UNET else inner): tensor
            for key, tensor in peft_tensors(lora.modules)
            if key.startswith(prefix)
        }
        load_adapter(model, LoraConfig(**own), tensors, adapter)


def trained_prompts(given: Sequence[str]) -> list[str]:
    """What LoRA files, given as for ``add_loras``, say that they were trained on: "a xyz cat".

    Raises:
        ConsistError: One is missing or damaged.
    """
    headers = [read_tensors(Path(split_weight(text)[0]))[1] for text in given]
    return [header["prompt"] for header in headers if header.get("prompt")]


def split_weight(text: str) -> tuple[str, float]:
    """Reads ``FILE:0.8``; without a number the weight is 1."""
    name, colon, weight = text.rpartition(":")
    try:
        return (name, float(weight)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0
