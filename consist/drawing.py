"""Prompts to a run folder; the only caller of a pipeline.

Images of one run are drawn in chunks. Every chunk holds the anchors, which are drawn again from
their seeds, and some further images: memory is bounded by the chunk, whatever the number of
prompts, and every chunk can be repeated alone.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from consist.attention import shared_attention
from consist.backend import choose
from consist.config import Chunk, RunConfig, places, plan_run
from consist.errors import ConsistError
from consist.masks import SubjectTokens
from consist.methods import build
from consist.methods.isolated import Isolated
from consist.methods.method import Masked, Method, Prompting
from consist.models import MINI, Model, Pipeline, add_loras, load, set_scheduler
from consist.origin import check_weights, peak_memory_gib, versions
from consist.phrases import find_subject
from consist.prompting import conditioning, identity_tokens
from consist.run import ISOLATED, SHARED, RunFolder, default_folder

log = logging.getLogger("consist")

Watch = Callable[[float, int], None]  # images drawn so far (fractions count), images in all
Load = Callable[[RunConfig], Model]  # gives the model of a config, ready to be fitted to it


@dataclass(frozen=True)
class Settings:
    """What ``None`` and "auto" came to mean for the loaded model."""

    steps: int
    guidance: float
    width: int
    height: int
    scheduler: str
    device: str
    dtype: str
    backend: str


def load_model(config: RunConfig) -> Model:
    """Loads the model of a config anew."""
    return load(config.model, config.device, config.dtype)


def generate(
    config: RunConfig,
    out: Path | str | None = None,
    watch: Watch = lambda done, count: None,
    model_for: Load = load_model,
) -> RunFolder:
    """Draws a run and gives its folder; pictures that are already there are not drawn again.

    Args:
        config: What to draw. With ``compare``, a run that was drawn without it is completed.
        out: The folder; by default one in ``runs/`` that is named after the config.
        watch: Told after each step how many images are drawn, and how many there will be.
        model_for: Asked for the model if there is something to draw.

    Raises:
        ConsistError: The run cannot be drawn, for a reason that the user can mend.
    """
    folder = RunFolder(Path(out) if out else default_folder(config))
    folder.check(config)
    return complete(folder, config, watch, model_for)


def complete(
    folder: RunFolder,
    config: RunConfig,
    watch: Watch = lambda done, count: None,
    model_for: Load = load_model,
    again: Collection[int] = (),
) -> RunFolder:
    """Draws the pictures of a config that a folder lacks; whatever run it holds becomes that one.

    Args:
        folder: New, or of a run that shares its pictures with ``config``.
        config: What the folder shall hold.
        watch: As in ``generate``.
        model_for: As in ``generate``.
        again: Pictures that are drawn in any case; those that are there are set aside.

    Raises:
        ConsistError: As in ``generate``; nothing is changed then.
    """
    rows: dict[str, Method] = {ISOLATED: Isolated()} if config.compare else {}
    rows[SHARED] = build(config.method)
    whole, count = config.with_anchors(), len(config.prompts)
    left = [
        (row, chunk)
        for row, method in rows.items()
        for chunk in plan_run(
            config,
            method.anchor_count(len(whole.prompts)),
            {*again, *missing(folder, row, count)},
        )
    ]
    record = folder.read_record() if folder.record_path.exists() else {}
    if record.get("finished") and not left:
        return folder

    if record:
        check_weights(folder, config)
    model = model_for(config)
    settings = prepare(model, whole)
    for index in again:
        folder.set_aside(index)
    record = _record(config, settings, record)
    folder.write_record(record)
    started = time.monotonic()
    total = len(rows) * count
    for number, (row, chunk) in enumerate(left):
        done = total - sum(len(later.new) for _, later in left[number:])

        def step(share: float, done: int = done, new: int = len(chunk.new)) -> None:
            watch(done + share * new, total)

        images = draw(model.pipe, whole, settings, chunk, rows[row], step)
        _write(folder, row, chunk, images, config)
    folder.write_grid(_read_rows(folder, rows, count), list(config.prompts))
    seconds = record["seconds"] + time.monotonic() - started
    end = {"seconds": round(seconds, 3), "peak_memory_gib": peak_memory_gib(), "finished": True}
    folder.write_record({**record, **end})
    return folder


def prepare(model: Model, config: RunConfig) -> Settings:
    """Fits the pipeline to the config, and resolves what the config leaves open.

    Raises:
        ConsistError: Something does not fit this model.
    """
    pipe = model.pipe
    if config.scheduler:
        set_scheduler(pipe, config.scheduler)
    add_loras(pipe, config.loras)
    check_prompts(pipe, (*config.prompts, config.negative))
    subject_tokens(pipe, config, build(config.method))
    if config.model == MINI:
        warn_of_new_words(config.prompts)
    pipe.vae.enable_slicing()
    native = pipe.unet.config.sample_size * pipe.vae_scale_factor
    width, height = config.width or native, config.height or native
    for side in (width, height):
        if side % pipe.vae_scale_factor:
            factor = pipe.vae_scale_factor
            raise ConsistError(f"size {width}x{height} must be a multiple of {factor} both ways")
    try:
        backend, _ = choose(config.backend, pipe.unet.device, pipe.unet.dtype)
    except ValueError as error:
        raise ConsistError(str(error)) from None
    guidance = model.defaults.guidance if config.guidance is None else config.guidance
    return Settings(
        steps=config.steps or model.defaults.steps,
        guidance=guidance,
        width=width,
        height=height,
        scheduler=type(pipe.scheduler).__name__,
        device=str(pipe.unet.device),
        dtype=str(pipe.unet.dtype).removeprefix("torch."),
        backend=backend,
    )


def check_prompts(pipe: Pipeline, prompts: tuple[str, ...]) -> None:
    """Refuses prompts that the text encoder would cut, and says which words fall off."""
    tokenizer = pipe.tokenizer
    limit = tokenizer.model_max_length
    for prompt in prompts:
        tokens = tokenizer(prompt, truncation=False, verbose=False).input_ids
        if len(tokens) > limit:
            lost = tokenizer.decode(tokens[limit - 1 : -1]).strip()
            raise ConsistError(
                f"the prompt has {len(tokens) - 2} tokens, the text encoder takes {limit - 2}: "
                f"{lost!r} falls off the end of {prompt!r}"
            )


def warn_of_new_words(prompts: tuple[str, ...]) -> None:
    """Logs the words that `mini` has never seen, and what it knows."""
    from consist.mini.world import vocabulary

    topics = vocabulary()
    known = {word for names in topics.values() for name in names for word in name.split()}
    words = {w for prompt in prompts for w in prompt.lower().replace(",", " ").split()}
    if new := sorted(words - known):
        knows = "; ".join(f"{topic}: {', '.join(names)}" for topic, names in topics.items())
        log.warning("mini has never seen %s. It knows %s", ", ".join(map(repr, new)), knows)


def subject_tokens(pipe: Pipeline, config: RunConfig, method: Method) -> SubjectTokens | None:
    """Where each prompt of the run names the subject, for a method that must be told."""
    if isinstance(method, Prompting):
        return identity_tokens(pipe, config.prompts, method)
    if not isinstance(method, Masked):
        return None
    return find_subject(pipe.tokenizer, config.prompts, method.subject)


def draw(
    pipe: Pipeline,
    config: RunConfig,
    settings: Settings,
    chunk: Chunk,
    method: Method,
    step: Callable[[float], None],
    masks: Tensor | None = None,
) -> list[Image.Image]:
    """Draws the images of a chunk; ``step`` hears the share that is done.

    ``masks`` of the chunk's images, as for ``shared_attention``, take the place of those that are
    read off cross-attention.
    """
    generators = [torch.Generator("cpu").manual_seed(config.seeds[i]) for i in chunk.images]
    factor = pipe.vae_scale_factor
    shape = (pipe.unet.config.in_channels, settings.height // factor, settings.width // factor)
    # float32 whatever the model's precision, so that a seed is the same noise everywhere
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])

    def on_step(pipe: Any, index: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        step((index + 1) / pipe.num_timesteps)
        return state

    # of all prompts, so that every chunk finds the same subject
    tokens = subject_tokens(pipe, config, method) if masks is None else None
    sharing = shared_attention(
        pipe,
        method,
        backend=settings.backend,
        seed=config.seeds[0],
        subject_tokens=tokens and tuple(tokens[i] for i in chunk.images),
        masks=masks,
    )
    with sharing:
        result = pipe(
            **conditioning(pipe, config, chunk, method),
            width=settings.width,
            height=settings.height,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            latents=noise.to(pipe.unet.device, pipe.unet.dtype),
            generator=generators,
            callback_on_step_end=on_step,
        )
    return list(result.images)


def missing(folder: RunFolder, row: str, count: int) -> list[int]:
    """Which of the first ``count`` pictures of a row are still to be drawn."""
    return [index for index in range(count) if not folder.picture_path(index, row).exists()]


def _write(
    folder: RunFolder,
    row: str,
    chunk: Chunk,
    images: list[Image.Image],
    config: RunConfig,
) -> None:
    settings = json.dumps({**config.to_json(), "row": row or config.method["name"]})
    for index, place in enumerate(places(config)):
        if place in chunk.new and not folder.picture_path(index, row).exists():
            image = images[chunk.images.index(place)]
            text = {"prompt": config.prompts[index], "seed": str(config.seeds[index])}
            folder.write_picture(index, row, image, {**text, "consist": settings})


def _read_rows(
    folder: RunFolder, rows: dict[str, Method], count: int
) -> dict[str, list[Image.Image]]:
    return {
        type(method).__name__.lower(): [folder.read_picture(index, row) for index in range(count)]
        for row, method in rows.items()
    }


def _record(config: RunConfig, settings: Settings, before: dict[str, Any]) -> dict[str, Any]:
    return {
        "config": config.to_json(),
        "resolved": vars(settings),
        "images": list(_images(config)),
        "versions": versions(config.model),
        "seconds": before.get("seconds", 0.0),
        "finished": False,
    }


def _images(config: RunConfig) -> Iterator[dict[str, Any]]:
    for index, (prompt, seed) in enumerate(zip(config.prompts, config.seeds, strict=True)):
        yield {"file": f"{index:03d}.png", "prompt": prompt, "seed": seed}
