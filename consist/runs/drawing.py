"""Prompts to a run folder; the only caller of a pipeline.

Images of one run are drawn in chunks. Every chunk holds the anchors, which are drawn again from
their seeds, and some further images: memory is bounded by the chunk, whatever the number of
prompts, and every chunk can be repeated alone. With a cache, the anchors are drawn once and what
they shared takes their place.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from consist.attention.anchor_cache import Cached, Recording, refuse_uncached
from consist.attention.batch_split import Spread
from consist.attention.lora_guidance import weak_unconditional
from consist.attention.method import ONE_STEP, Method
from consist.attention.processor import shared_attention
from consist.methods import build, spell_out
from consist.methods.isolated import Isolated
from consist.models.loading import Model, Pipeline, load
from consist.models.new_words import new_words
from consist.runs.cache_file import CacheFile, describe
from consist.runs.chunks import Chunk, is_cached, places, plan_recording, plan_run
from consist.runs.config import RunConfig
from consist.runs.folder import ISOLATED, SHARED, RunFolder, default_folder
from consist.runs.memory import peak_memory_gib
from consist.runs.preparing import Settings, conditioning, lora_tokens, prepare, subject_tokens
from consist.runs.references import Held, check_references, read_pictures
from consist.runs.versions import check_defaults, check_weights, versions

log = logging.getLogger("consist")

Watch = Callable[[float, int], None]  # images drawn so far (fractions count), images in all
Load = Callable[[RunConfig], Model]  # gives the model of a config, ready to be fitted to it
Draw = Callable[["Batch"], list[Image.Image]]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images that are drawn in one call of a pipeline.

    Args:
        pipe: That draws; with the words of the config's embeddings.
        config: The whole run, its anchors counted among its images.
        settings: What ``prepare`` made of it.
        chunk: The images, by their numbers.
        method: What they share.
        step: Hears, after each denoising step, the share that is done, in (0, 1].
    """

    pipe: Pipeline
    config: RunConfig
    settings: Settings
    chunk: Chunk
    method: Method
    step: Callable[[float], None] = lambda share: None


def load_model(config: RunConfig) -> Model:
    """Loads the model of a config anew."""
    return load(config.model, config.device, config.dtype)


def generate(
    config: RunConfig,
    out: Path | str | None = None,
    watch: Watch = lambda done, count: None,
    model_for: Load = load_model,
    drawn_by: Draw | None = None,
) -> RunFolder:
    """Draws a run and gives its folder; pictures that are already there are not drawn again.

    Args:
        config: What to draw. With ``compare``, a run that was drawn without it is completed.
        out: The folder; by default one in ``runs/`` that is named after the config.
        watch: Told after each step how many images are drawn, and how many there will be; those
            that a cache is recorded from count too.
        model_for: Asked for the model if there is something to draw.
        drawn_by: Takes the place of ``draw``, for one batch after the other.

    Raises:
        ConsistError: The run cannot be drawn, for a reason that the user can mend.
    """
    folder = RunFolder(Path(out) if out else default_folder(config))
    folder.check(config)
    return complete(folder, config, watch, model_for, drawn_by=drawn_by)


def complete(
    folder: RunFolder,
    config: RunConfig,
    watch: Watch = lambda done, count: None,
    model_for: Load = load_model,
    again: Collection[int] = (),
    drawn_by: Draw | None = None,
) -> RunFolder:
    """Draws the pictures of a config that a folder lacks; whatever run it holds becomes that one.

    Args:
        folder: New, or of a run that shares its pictures with ``config``.
        config: What the folder shall hold.
        watch: As in ``generate``.
        model_for: As in ``generate``.
        again: Pictures that are drawn in any case; those that are there are set aside.
        drawn_by: As in ``generate``.

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
        check_defaults(folder, config)
    check_references(config)
    cached = any(row == SHARED and is_cached(config, chunk) for row, chunk in left)
    if cached:
        refuse_uncached(rows[SHARED], config.method["name"])
    model = model_for(config)
    with new_words(model.pipe, config.embeddings):
        settings = prepare(model, whole)
        if settings.steps == 1 and (reason := rows[SHARED].obstacle(ONE_STEP)):
            log.warning("nothing is shared in a single step: %s", reason)
        file = CacheFile(folder.path / config.cache, describe(config, vars(settings)))
        kept = file.read() if cached else {}
        recorded = plan_recording(config) if kept is None else None
        for index in again:
            folder.set_aside(index)
        record = _record(config, settings, record)
        folder.write_record(record)
        started = time.monotonic()
        total = len(rows) * count
        done = total - sum(len(chunk.new) for _, chunk in left)
        if recorded:
            total += len(recorded.images)
            step = partial(_tell, watch, done, len(recorded.images), total)
            kept = record_anchors(model.pipe, config, settings, recorded, step)
            file.write(kept)
            done += len(recorded.images)
        for row, chunk in left:
            method = rows[row]
            if kept and row == SHARED and is_cached(config, chunk):
                method = Cached(method, kept)
            step = partial(_tell, watch, done, len(chunk.new), total)
            images = (drawn_by or draw)(
                Batch(
                    pipe=model.pipe,
                    config=whole,
                    settings=settings,
                    chunk=chunk,
                    method=method,
                    step=step,
                )
            )
            _write(folder, row, chunk, images, config)
            done += len(chunk.new)
        references = read_pictures(config, settings.width, settings.height)
        captions = [f"reference: {text}" for text in config.anchor_prompts[: len(references)]]
        shown = {name: references + row for name, row in _read_rows(folder, rows, count).items()}
        folder.write_grid(shown, [*captions, *config.prompts])
        seconds = record["seconds"] + time.monotonic() - started
        end = {"seconds": round(seconds, 3), "peak_memory_gib": peak_memory_gib(), "finished": True}
        folder.write_record({**record, **end})
        return folder


def draw(
    batch: Batch, masks: Tensor | None = None, spread: Spread | None = None
) -> list[Image.Image]:
    """Draws the images of a batch.

    Anchors that are given pictures are not denoised: at each step they are the picture with the
    noise of their seed, see ``consist.runs.references``.

    Args:
        batch: What is drawn.
        masks: Of its images, as for ``shared_attention``, in the place of those that are read off
            cross-attention.
        spread: Of which larger batch it is.
    """
    pipe, config, settings, chunk = batch.pipe, batch.config, batch.settings, batch.chunk
    generators = [torch.Generator("cpu").manual_seed(config.seeds[i]) for i in chunk.images]
    factor = pipe.vae_scale_factor
    shape = (pipe.unet.config.in_channels, settings.height // factor, settings.width // factor)
    # float32 whatever the model's precision, so that a seed is the same noise everywhere
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    latents = noise.to(pipe.unet.device, pipe.unet.dtype)

    # a chunk holds all anchors or none
    pictures = read_pictures(config, settings.width, settings.height) if 0 in chunk.images else []
    held = Held(pipe, pictures, noise) if pictures else None
    if held:
        latents = held.start(latents, settings.steps)

    def on_step(pipe: Any, index: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        batch.step((index + 1) / pipe.num_timesteps)
        if held:
            state["latents"] = held.put(state["latents"], index + 1)
        return state

    # of all prompts, so that every chunk finds the same subject
    tokens = subject_tokens(pipe, config, batch.method) if masks is None else None
    named = lora_tokens(pipe, config)
    sharing = shared_attention(
        pipe,
        batch.method,
        backend=config.backend,
        seed=config.seeds[0],
        subject_tokens=tokens and tuple(tokens[i] for i in chunk.images),
        masks=masks,
        references=len(pictures),
        spread=spread,
    )
    steering = weak_unconditional(
        pipe, config.lora_negative, named and tuple(named[i] for i in chunk.images)
    )
    with sharing, steering:
        result = pipe(
            **conditioning(pipe, config, chunk, batch.method),
            width=settings.width,
            height=settings.height,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            guidance_rescale=config.guidance_rescale,
            latents=latents,
            generator=generators,
            callback_on_step_end=on_step,
        )
    return list(result.images)


def record_anchors(
    pipe: Pipeline,
    config: RunConfig,
    settings: Settings,
    chunk: Chunk,
    step: Callable[[float], None],
) -> dict[str, Tensor]:
    """Draws the chunk of ``plan_recording``, and gives what the further image sees.

    It is the first anchor once more: anchors do not see it, and whatever it is sees the same.
    """
    twice = replace(
        config, prompts=config.anchor_prompts[:1], seeds=config.anchor_seeds[:1]
    ).with_anchors()
    recording = Recording(build(config.method))
    draw(
        Batch(pipe=pipe, config=twice, settings=settings, chunk=chunk, method=recording, step=step)
    )
    return recording.kept


def missing(folder: RunFolder, row: str, count: int) -> list[int]:
    """Which of the first ``count`` pictures of a row are still to be drawn."""
    return [index for index in range(count) if not folder.picture_path(index, row).exists()]


def _tell(watch: Watch, done: int, new: int, total: int, share: float) -> None:
    watch(done + share * new, total)


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
        "resolved": {**vars(settings), "method": spell_out(config.method)},
        "images": list(_images(config)),
        "versions": versions(config.model),
        "seconds": before.get("seconds", 0.0),
        "finished": False,
    }


def _images(config: RunConfig) -> Iterator[dict[str, Any]]:
    for index, (prompt, seed) in enumerate(zip(config.prompts, config.seeds, strict=True)):
        yield {"file": f"{index:03d}.png", "prompt": prompt, "seed": seed}
