"""A run and a loaded model brought together: what fits, what is refused, what was left open.

It must not draw.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from consist.attention.backends import choose
from consist.attention.masks import SubjectTokens
from consist.attention.method import Method
from consist.errors import ConsistError
from consist.methods import build
from consist.models.loading import MINI, Model, Pipeline, set_scheduler
from consist.models.lora import add_loras, trained_prompts
from consist.prompts.one_prompt import encode_prompts, identity_tokens
from consist.prompts.phrases import find_subject
from consist.runs.chunks import Chunk
from consist.runs.config import RunConfig

log = logging.getLogger("consist")


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
    lora_tokens(pipe, config)
    if config.model == MINI:
        trained = " ".join(trained_prompts(config.loras)).lower().split()
        warn_of_new_words(config.prompts, {*pipe.tokenizer.get_added_vocab(), *trained})
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
        text = pipe.maybe_convert_prompt(prompt, tokenizer)
        tokens = tokenizer(text, truncation=False, verbose=False).input_ids
        if len(tokens) > limit:
            lost = tokenizer.decode(tokens[limit - 1 : -1]).strip()
            raise ConsistError(
                f"the prompt has {len(tokens) - 2} tokens, the text encoder takes {limit - 2}: "
                f"{lost!r} falls off the end of {prompt!r}"
            )


def warn_of_new_words(prompts: tuple[str, ...], learned: Collection[str] = ()) -> None:
    """Logs the words that `mini` has never seen nor ``learned`` since, and what it knows."""
    from consist.mini.world import vocabulary

    topics = vocabulary()
    known = {word for names in topics.values() for name in names for word in name.split()}
    words = {w for prompt in prompts for w in prompt.lower().replace(",", " ").split()}
    if new := sorted(words - known - set(learned)):
        knows = "; ".join(f"{topic}: {', '.join(names)}" for topic, names in topics.items())
        log.warning("mini has never seen %s. It knows %s", ", ".join(map(repr, new)), knows)


def subject_tokens(pipe: Pipeline, config: RunConfig, method: Method) -> SubjectTokens | None:
    """Where each prompt of the run names the subject, for a method that must be told."""
    if method.joins_prompts:
        return identity_tokens(pipe, config.prompts, method)
    return _find(pipe, config, method.subject) if method.reads_words else None


def lora_tokens(pipe: Pipeline, config: RunConfig) -> SubjectTokens | None:
    """Where each prompt of the run names what less of the LoRAs is in the negative of."""
    return _find(pipe, config, config.lora_subject) if config.lora_negative != 1 else None


def _find(pipe: Pipeline, config: RunConfig, subject: Sequence[str]) -> SubjectTokens:
    # a word of several vectors is several tokens
    prompts, phrases = (
        pipe.maybe_convert_prompt(list(texts), pipe.tokenizer)
        for texts in (config.prompts, subject)
    )
    return find_subject(pipe.tokenizer, prompts, phrases)


def conditioning(
    pipe: StableDiffusionPipeline | StableDiffusionXLPipeline,
    config: RunConfig,
    chunk: Chunk,
    method: Method,
) -> dict[str, Any]:
    """The arguments that tell a pipeline what to draw: prompts, or embeddings in their place."""
    if method.joins_prompts:
        drawn, negative = chunk.images, config.negative
        return dict(encode_prompts(pipe, config.prompts, method, images=drawn, negative=negative))
    return {
        "prompt": [config.prompts[image] for image in chunk.images],
        # SDXL takes None, and not an empty text, as nothing
        "negative_prompt": [config.negative] * len(chunk.images) if config.negative else None,
    }
