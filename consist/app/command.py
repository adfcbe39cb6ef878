"""A run to the command line that repeats it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from consist.runs.config import DEFAULT_METHOD, RunConfig
from consist.runs.folder import RunFolder

# fields of a method that have an option of their own
NAMED = ("keys", "values", "anchors", "strength")


def command_of(folder: RunFolder) -> str:
    """What to type for the pictures of a run, in another folder if they were redone or extended.

    The subject of a run that was extended or redone, or drawn of a saved one, is saved first.
    """
    config = folder.read_config()
    if not config.anchor_prompts:
        options = [*_own_options(config), *_options(config)]
        return shlex.join(["consist", "batch", *options, *_arguments(config.prompts)])
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.path.name)
    save = ["consist", "subject", "save", str(folder.path), name, "--force"]
    options = ["--like", name, *_options(config), *(["--cache"] if config.cache else [])]
    draw = ["consist", "batch", *options, *_arguments(config.prompts)]
    return f"{shlex.join(save)}\n{shlex.join(draw)}"


def _own_options(config: RunConfig) -> Iterator[str]:
    """What a saved subject has already."""
    if config.model != "mini":
        yield from ("--model", config.model)
    yield from _method_options(config.method)
    for option, value in (
        ("--steps", config.steps),
        ("--guidance", config.guidance),
        ("--guidance-rescale", config.guidance_rescale or None),
        ("--size", f"{config.width}x{config.height}" if config.width and config.height else None),
        ("--negative", config.negative or None),
        ("--scheduler", config.scheduler),
    ):
        if value is not None:
            yield from (option, str(value))
    for lora in config.loras:
        yield from ("--lora", lora)
    if config.lora_negative != 1:
        yield from ("--lora-negative", str(config.lora_negative))
    for phrase in config.lora_subject if "subject" not in config.method else ():
        yield from ("--subject", phrase)
    for embedding in config.embeddings:
        yield from ("--embedding", embedding)


def _method_options(method: Mapping[str, Any]) -> Iterator[str]:
    for name, value in method.items():
        if name == "name":
            yield from (("--method", value) if value != DEFAULT_METHOD else ())
        elif name == "subject":
            for phrase in value:
                yield from ("--subject", phrase)
        elif name in NAMED:
            yield from (f"--{name}", str(value))
        else:
            yield from ("--set", f"{name}={_written(value)}")


def _options(config: RunConfig) -> Iterator[str]:
    """What any run may have."""
    first = config.seeds[0]
    ascending = config.seeds == tuple(range(first, first + len(config.seeds)))
    if config.anchor_prompts or not ascending or first:
        for seed in config.seeds[:1] if ascending else config.seeds:
            yield from ("--seed", str(seed))
    for option, value in (
        ("--device", config.device),
        ("--dtype", config.dtype),
        ("--backend", config.backend),
    ):
        if value != "auto":
            yield from (option, value)
    if config.batch_size:
        yield from ("--batch-size", str(config.batch_size))
    if config.compare:
        yield "--compare"


def _arguments(prompts: Sequence[str]) -> Iterator[str]:
    if any(prompt.startswith("-") for prompt in prompts):
        yield "--"
    yield from prompts


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_written, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
