"""More of a subject that was drawn: further scenes, one picture anew, and what it is made of.

The subject is made by the anchors of a run: with ``anchors="all"`` by all its pictures. They are
written out once, with their prompts and seeds, when a run is first extended or redone, and stay
what they are whatever becomes of its pictures. Further pictures see them, and they see nothing
but each other, so that pictures that are there never change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from consist.attention.method import EXTEND, Method
from consist.errors import ConsistError
from consist.methods import build
from consist.models.loading import MINI
from consist.models.lora import split_weight
from consist.prompts.phrases import shared_phrase
from consist.runs.config import OF_SUBJECT, OPEN, RunConfig, spread_seeds
from consist.runs.drawing import Load, Watch, complete, load_model
from consist.runs.folder import RunFolder
from consist.runs.references import check_references
from consist.runs.subject import Subject
from consist.runs.versions import versions
from consist.settings.fields import marked

T = TypeVar("T")

# what the model decided at first, and another version might decide otherwise; a run records of a
# scheduler its class, which is no name to ask for
SETTLED = {*marked(RunConfig, OPEN), "method"} - {"scheduler"}
# in the folder of a run
CACHE_FILE = "anchors.safetensors"


def extend(
    run: Path | str,
    prompts: Sequence[str],
    *,
    seeds: tuple[int, ...] = (),
    batch_size: int | None = None,
    cache: bool = False,
    watch: Watch = lambda done, count: None,
    model_for: Load = load_model,
) -> RunFolder:
    """Adds pictures of the same subject to a run.

    A run that ends with these prompts already, and these seeds if any are given, is not extended
    again, so that the same call goes on where it was stopped.

    Args:
        run: The folder.
        prompts: One per new picture.
        seeds: As for ``spread_seeds``; by default they go on from the run's largest.
        batch_size: Pictures in memory at a time, anchors included; by default as many as the run
            had, and at least twice its anchors.
        cache: Draws them from what the anchors shared, kept in the run as ``CACHE_FILE``, instead
            of beside the anchors. It stays so for all that the run is given later.
        watch: As for ``generate``.
        model_for: As for ``generate``.

    Raises:
        ConsistError: The run or its method cannot be extended, or the pictures cannot be drawn.
    """
    folder = RunFolder(Path(run))
    before = folder.read_config()
    if not prompts:
        raise ConsistError("no prompt was given; give at least one")
    if _ends_with(before, tuple(prompts), seeds):
        again = _with_cache(before) if cache and before.anchor_prompts else before
        return complete(folder, again, watch, model_for)
    config = write_out_anchors(folder)
    if cache:
        config = _with_cache(config)
    added = spread_seeds(seeds or (config.next_seed(),), len(prompts))
    usual = max(len(config.prompts), 2 * len(config.anchor_prompts))
    config = replace(
        config,
        prompts=(*config.prompts, *prompts),
        seeds=config.seeds + added,
        batch_size=batch_size or config.batch_size or usual,
    )
    return complete(folder, config, watch, model_for)


def redo(
    run: Path | str,
    picture: int,
    *,
    prompt: str | None = None,
    seed: int | None = None,
    watch: Watch = lambda done, count: None,
    model_for: Load = load_model,
) -> RunFolder:
    """Draws one picture of a run again; the others stay, and the old one as ``002.old-1.png``.

    The new picture sees the anchors as they were, its former self among them if it was one, and
    they do not see it. The anchors stay the subject of what is drawn later.

    Args:
        run: The folder.
        picture: As its file counts.
        prompt: Another prompt; by default the same.
        seed: Another seed; by default the one after the run's largest, or the same with ``prompt``.
        watch: As for ``generate``.
        model_for: As for ``generate``.

    Raises:
        ConsistError: There is no such picture, or as ``extend``.
    """
    folder = RunFolder(Path(run))
    before = folder.read_config()
    last = len(before.prompts) - 1
    if not 0 <= picture <= last:
        raise ConsistError(f"{run} has no picture {picture}; it has 0 to {last}")
    there = folder.picture_path(picture).exists()
    # a picture that is not there was stopped on its way, with a seed already
    if there and prompt is None and seed is None:
        seed = before.next_seed()
    scene = (
        before.prompts[picture] if prompt is None else prompt,
        before.seeds[picture] if seed is None else seed,
    )
    if scene == (before.prompts[picture], before.seeds[picture]):
        return complete(folder, before, watch, model_for)
    config = write_out_anchors(folder)
    room = config.batch_size and max(config.batch_size, len(config.anchor_prompts) + 1)
    config = replace(
        config,
        prompts=_put(config.prompts, picture, scene[0]),
        seeds=_put(config.seeds, picture, scene[1]),
        batch_size=room,
    )
    return complete(folder, config, watch, model_for, again=[picture])


def take_subject(run: Path | str) -> Subject:
    """What the subject of a run is made of, independent of its folder.

    Raises:
        ConsistError: There is no run, its method cannot draw more of a subject, or a picture that
            was given as a reference has changed or is gone.
    """
    folder = RunFolder(Path(run))
    config = write_out_anchors(folder)
    check_references(config)
    kept = {name: getattr(config, name) for name in marked(RunConfig, OF_SUBJECT)}
    kept["model"] = config.model if config.model == MINI else _absolute(config.model)
    kept["loras"] = tuple(map(_absolute_lora, config.loras))
    kept["embeddings"] = tuple(str(Path(file).absolute()) for file in config.embeddings)
    recipe = RunConfig(
        prompts=config.anchor_prompts,
        seeds=config.anchor_seeds,
        **kept,
    )
    return Subject(
        config=recipe,
        versions=folder.read_record().get("versions", {}),
        pictures=config.anchor_pictures,
        digests=config.anchor_digests,
    )


def check_weights_of(subject: Subject) -> None:
    """Makes sure that a subject of `mini` is drawn with the weights that it was drawn with.

    Raises:
        ConsistError: These are others.
    """
    drawn, now = (found.get(MINI) for found in (subject.versions, versions(subject.config.model)))
    if drawn != now:
        raise ConsistError("the subject was drawn with other weights of mini, and would be another")


def write_out_anchors(folder: RunFolder) -> RunConfig:
    """The config of a run with all that its subject depends on written out.

    Raises:
        ConsistError: There is no run, or its method cannot draw more of a subject.
    """
    config = folder.read_config()
    resolved = folder.read_record().get("resolved", {})
    settled = {name: resolved.get(name, getattr(config, name)) for name in SETTLED}
    if config.anchor_prompts:
        return replace(config, **settled)
    method = build(settled["method"])
    count = count_anchors(method, config)
    told = {**settled.pop("method"), "anchors": count}
    if method.reads_words and not method.subject:
        told["subject"] = [shared_phrase(config.prompts)]
    return replace(
        config,
        method=told,
        anchor_prompts=config.prompts[:count],
        anchor_seeds=config.seeds[:count],
        **settled,
    )


def count_anchors(method: Method, config: RunConfig) -> int:
    """How many pictures of a run make its subject, the first ones.

    Raises:
        ConsistError: Each picture depends on all others, or on none.
    """
    name, count = config.method["name"], method.anchor_count(len(config.prompts))
    if reason := method.obstacle(EXTEND):
        raise ConsistError(f"{name} cannot draw more of a subject: {reason}")
    return count


def _ends_with(config: RunConfig, prompts: tuple[str, ...], seeds: tuple[int, ...]) -> bool:
    count = len(prompts)
    given = spread_seeds(seeds, count) if seeds else config.seeds[-count:]
    return config.prompts[-count:] == prompts and config.seeds[-count:] == given


def _with_cache(config: RunConfig) -> RunConfig:
    return replace(config, cache=config.cache or CACHE_FILE)


def _put(values: tuple[T, ...], index: int, value: T) -> tuple[T, ...]:
    return (*values[:index], value, *values[index + 1 :])


def _absolute(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).exists() else name


def _absolute_lora(text: str) -> str:
    name, weight = split_weight(text)
    return f"{_absolute(name)}:{weight}"
