"""Photos of a subject to a LoRA, a model of its own or a new word: the whole training, from Python.

One resumable call: checkpoints and what is computed once lie in a folder beside the result, and
the same call goes on where it was stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import StableDiffusionXLPipeline

from consist.errors import ConsistError
from consist.files import write_atomically
from consist.models.devices import pick_device
from consist.models.loading import MINI, Model, load
from consist.models.new_words import new_words
from consist.runs.memory import peak_memory_gib
from consist.runs.preparing import check_prompts
from consist.runs.versions import versions
from consist.training.checkpoints import checkpoint_path, checkpoints
from consist.training.class_images import Draw, class_photos
from consist.training.config import (
    BASE,
    CLASS_IMAGES,
    DREAMBOOTH,
    TEXTUAL_INVERSION,
    TrainConfig,
    differences,
    remedies,
)
from consist.training.curves import find_writer
from consist.training.denoising import Denoising
from consist.training.inversion import check_captions, in_templates, word_to_learn
from consist.training.loop import Plan, Watch, fit, resume
from consist.training.outlines import check_findable
from consist.training.parts import Parts
from consist.training.photos import (
    Photo,
    bucket_sizes,
    described,
    photos_of_run,
    read_photos,
)
from consist.training.results import write_result
from consist.training.samples import Album
from consist.training.subject import SubjectTrainee, find_optimizer
from consist.training.watching import observing

FORMAT = 1
WAIT = timedelta(hours=12)  # for the process that draws class images


def finetune(
    config: TrainConfig,
    watch: Watch = lambda step, steps, loss: None,
    watch_drawing: Draw = lambda done, count: None,
    model_for: Callable[[TrainConfig, torch.device], Model] | None = None,
) -> Path:
    """Trains what a config says, and gives the file or folder that was written.

    ```python
    config = consist.TrainConfig(
        kind="lora", photos="photos", prompt="a xyz cat", out="cat.safetensors"
    )
    consist.finetune(config)
    ```

    Args:
        config: What to train, on what.
        watch: Told after each step.
        watch_drawing: Told how many class images are drawn.
        model_for: Asked for the model, which is changed; by default it is loaded.

    Raises:
        ConsistError: It cannot be trained, for a reason that the user can mend.
    """
    photos = choose_photos(config)
    device = pick_device(config.device)
    state = PartialState(cpu=device.type == "cpu", timeout=WAIT)
    if state.num_processes > 1:
        device = state.device
    record = check_folder(config, photos)
    if record.get("finished") and Path(config.out).exists():
        return Path(config.out)
    find_optimizer(config.optimizer)
    if config.tensorboard:
        find_writer()
    model = (model_for or load_model)(config, device)
    resolved = config.suited_to(family_of(config, model))
    check_batch(resolved, state.num_processes)
    with words_of(resolved, model):
        if state.is_main_process:
            write_record(config, photos, record, finished=False)
        with state.main_process_first():
            albums = choose_albums(resolved, model, photos, watch_drawing)
        started = time.monotonic()
        parts = learn(resolved, model, albums, device, watch if state.is_main_process else silent)
        if state.is_main_process:
            write_result(parts, resolved)
            seconds = record.get("seconds", 0.0) + time.monotonic() - started
            write_record(config, photos, {"seconds": seconds}, finished=True)
    state.wait_for_everyone()
    return Path(config.out)


def words_of(config: TrainConfig, model: Model) -> AbstractContextManager[Any]:
    """While it runs, captions may say what is no word of the model's: what is learned or given."""
    if config.kind == TEXTUAL_INVERSION:
        return word_to_learn(model.pipe, config)
    return new_words(model.pipe, [config.embedding] if config.embedding else [])


def learn(
    config: TrainConfig, model: Model, albums: list[Album], device: torch.device, watch: Watch
) -> Parts:
    """Trains the parts of a model, from the last checkpoint on, and gives them.

    Args:
        config: With nothing left open but the resolution.
        model: It is changed.
        albums: What each step takes photos from.
        device: Of the model.
        watch: Told after each step.
    """
    captions = [photo.caption for album in albums for photo in album.photos]
    check_prompts(model.pipe, (*captions, *config.sample_prompts))
    try:
        parts = Parts(model.pipe, config)
        denoising = Denoising(parts, albums, config.work_folder / "latents", device)
        denoising.prepare()
        groups = [(parts.unet_parameters, config.lr), (parts.text_parameters, config.text_lr)]
        trainee = SubjectTrainee([(named, lr or 0.0) for named, lr in groups], config, device)
        plan = plan_of(config)
        resume(trainee, plan.folder)
        check_length(trainee.step, plan)
        with observing(model, trainee, config, device) as observe:
            PartialState().wait_for_everyone()
            fit(trainee, denoising.losses, plan, watch, observe)
    except torch.OutOfMemoryError as error:
        raise ConsistError(f"out of memory; {remedies(config)}") from error
    return parts


def plan_of(config: TrainConfig) -> Plan:
    """How long a training takes, and when it is saved."""
    return Plan(
        folder=config.work_folder,
        steps=config.steps or 0,
        save_steps=config.checkpoint_every,
        keep=config.keep,
    )


def check_length(step: int, plan: Plan) -> None:
    """Makes sure that a training has not gone on for longer than it shall.

    Raises:
        ConsistError: Its checkpoint is beyond the last step.
    """
    if step > plan.steps:
        path = checkpoint_path(plan.folder, step)
        raise ConsistError(f"{path} has taken {step} steps, more than {plan.steps}")


def silent(step: int, steps: int, loss: float) -> None:
    """Says nothing: of several processes, one tells."""


def load_model(config: TrainConfig, device: torch.device) -> Model:
    """Loads the model of a config; weights that are trained themselves in float32."""
    whole = config.kind == DREAMBOOTH
    return load(config.model, str(device), "float32" if whole else config.precision)


def family_of(config: TrainConfig, model: Model) -> str:
    """Which family of ``SUITED`` a model is of."""
    if config.model == MINI:
        return "mini"
    return "sdxl" if isinstance(model.pipe, StableDiffusionXLPipeline) else "sd"


def choose_photos(config: TrainConfig) -> list[Photo]:
    """The photos that a config names, with their captions."""
    folder = Path(config.photos)
    if config.from_run:
        photos = photos_of_run(folder, config.prompt, config.class_prompt)
    else:
        photos = read_photos(folder, config.prompt or config.token)
    check_captions(photos, config.token)
    if config.background == BASE:
        check_findable(photos, config.class_prompt)
    return photos


def choose_albums(
    config: TrainConfig, model: Model, photos: list[Photo], watch: Draw
) -> list[Album]:
    """What each step takes photos from: the subject's, and those that stand for its class.

    Args:
        config: With nothing left open but the resolution.
        model: As it was before it is trained.
        photos: Of the subject.
        watch: Told how many class images are drawn.
    """
    resolution, multiple = grid_of(config, model)
    sizes = bucket_sizes(resolution, multiple, config.buckets)
    shown = in_templates(photos, config) if config.token else photos
    subject = Album(
        name="instance",
        photos=shown,
        sizes=sizes,
        outlined=config.background == BASE,
        dropout=config.caption_dropout,
    )
    if not config.with_prior:
        return [subject]
    drawn = config.prior == CLASS_IMAGES
    others = class_photos(config, model, watch) if drawn else described(photos, config.class_prompt)
    prior = Album(
        name="class", photos=others, sizes=sizes, weight=config.prior_weight, preserved=not drawn
    )
    return [subject, prior]


def grid_of(config: TrainConfig, model: Model) -> tuple[int, int]:
    """The side of a square photo in pixels, and what all sides are multiples of.

    Raises:
        ConsistError: The resolution is no such multiple.
    """
    unet, factor = model.pipe.unet, model.pipe.vae_scale_factor
    multiple = factor * 2 ** (len(unet.config.block_out_channels) - 1)
    resolution = config.resolution or unet.config.sample_size * factor
    if resolution % multiple:
        raise ConsistError(f"resolution must be a multiple of {multiple}, not {resolution}")
    return resolution, multiple


def check_batch(config: TrainConfig, processes: int) -> None:
    """Makes sure that every process has a photo of each step.

    Raises:
        ConsistError: There are more processes than photos in a step.
    """
    if (config.batch_size or 0) < processes:
        raise ConsistError(
            f"{processes} processes cannot share a batch of {config.batch_size}; "
            f"take a batch size of at least {processes}"
        )


def check_folder(config: TrainConfig, photos: list[Photo]) -> dict[str, Any]:
    """The record of this very training, as far as it has come; empty if nothing is learned yet.

    Raises:
        ConsistError: The folder holds another training, or the result's place is taken.
    """
    folder, out = config.work_folder, Path(config.out)
    path = record_path(config)
    if not path.exists() or not checkpoints(folder):
        if out.exists():
            raise ConsistError(f"{out} is there already; choose another --out or remove it")
        return {}
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
        changes = differences(record["config"], config.to_json())
        before = record["photos"]
        weights = record["versions"].get(MINI)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConsistError(f"{path} is damaged; remove {folder} to start over") from None
    if before != manifest(photos):
        changes.append("the photos or their captions are others")
    if weights != versions(config.model).get(MINI):
        changes.append("mini has other weights")
    if changes:
        raise ConsistError(
            f"{folder} holds another training: {'; '.join(changes)}; "
            "choose another --out or remove that folder"
        )
    finished = record.get("finished") and record["config"]["steps"] == config.steps
    return {**record, "finished": finished}


def record_path(config: TrainConfig) -> Path:
    """Where the record of a training lies."""
    return config.work_folder / "training.json"


def write_record(
    config: TrainConfig, photos: list[Photo], before: dict[str, Any], finished: bool
) -> None:
    """Says what is trained on what, in the folder of the training."""
    record = {
        "format": FORMAT,
        "config": config.to_json(),
        "photos": manifest(photos),
        "versions": versions(config.model),
        "seconds": round(before.get("seconds", 0.0), 3),
        "peak_memory_gib": peak_memory_gib(),
        "finished": finished,
    }
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    write_atomically(record_path(config), lambda file: file.write(text.encode()))


def manifest(photos: list[Photo]) -> list[dict[str, str]]:
    """What tells photos from others: names, contents and captions."""
    return [{"file": p.path.name, "digest": p.digest, "caption": p.caption} for p in photos]
