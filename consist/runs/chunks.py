"""Which images of a run are drawn together, anchors first."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from consist.errors import ConsistError
from consist.runs.config import RunConfig


@dataclass(frozen=True)
class Chunk:
    """Images that are drawn together: the anchors, and some further ones.

    They are counted as ``RunConfig.with_anchors`` does.
    """

    images: tuple[int, ...]
    new: tuple[int, ...]  # those that no chunk before has drawn


def plan(count: int, anchors: int, batch_size: int | None = None) -> list[Chunk]:
    """Splits ``count`` images into chunks of at most ``batch_size`` that all hold the anchors.

    >>> [chunk.images for chunk in plan(5, 1, 3)]
    [(0, 1, 2), (0, 3, 4)]

    Raises:
        ConsistError: The anchors leave no room for another image, or are more than the images.
    """
    size = min(batch_size or count, count)
    if anchors > count:
        raise ConsistError(f"{anchors} anchors were asked for, but there are {count} images")
    first = tuple(range(size))
    return [Chunk(first, first), *plan_more(anchors, range(size, count), size)]


def plan_more(anchors: int, images: Sequence[int], batch_size: int | None = None) -> list[Chunk]:
    """Splits further images into chunks that all hold the anchors, which are drawn already.

    >>> [chunk.images for chunk in plan_more(2, [5, 7, 8], 4)]
    [(0, 1, 5, 7), (0, 1, 8)]

    Raises:
        ConsistError: The anchors leave no room for another image.
    """
    if not images:
        return []
    room = (batch_size or anchors + len(images)) - anchors
    if room < 1:
        raise ConsistError(
            f"a batch of {batch_size} has no room beside {anchors} anchors; "
            "take a larger batch size or fewer anchors"
        )
    parts = [tuple(images[start : start + room]) for start in range(0, len(images), room)]
    return [Chunk((*range(anchors), *part), part) for part in parts]


def plan_run(config: RunConfig, anchors: int, missing: Collection[int]) -> list[Chunk]:
    """The chunks that draw the missing pictures of one row of a run.

    Where the run names its anchors, those that are missing are drawn alone, as they were at first;
    with a cache the other chunks go without them.

    Args:
        config: The run.
        anchors: How many of ``config.with_anchors()`` the row's method has as anchors.
        missing: Pictures of the run, counted as in ``config.prompts``.

    Raises:
        ConsistError: As ``plan``, or the method has other anchors than the run names.
    """
    if not config.anchor_prompts:
        chunks = plan(len(config.prompts), anchors, config.batch_size)
        return [chunk for chunk in chunks if not set(chunk.new).isdisjoint(missing)]
    if anchors not in (0, len(config.anchor_prompts)):
        known = len(config.anchor_prompts)
        raise ConsistError(f"the method has {anchors} anchors, but the run names {known}")
    left = sorted({place for picture, place in enumerate(places(config)) if picture in missing})
    first = tuple(place for place in left if place < anchors)
    more = [place for place in left if place >= anchors]
    chunks = [Chunk(tuple(range(anchors)), first)] if first else []
    return chunks + plan_more(0 if config.cache else anchors, more, config.batch_size)


def plan_recording(config: RunConfig) -> Chunk:
    """The anchors of a run, and one further image, which sees what a cache is to hold.

    Raises:
        ConsistError: The anchors leave no room for it.
    """
    count = len(config.anchor_prompts)
    (chunk,) = plan_more(count, [count], config.batch_size)
    return chunk


def is_cached(config: RunConfig, chunk: Chunk) -> bool:
    """Whether a chunk of the shared row is drawn from the cache: it goes without anchors."""
    return bool(config.cache) and 0 not in chunk.images


def places(config: RunConfig) -> list[int]:
    """Where each picture of a run stands in ``config.with_anchors()``.

    One with the prompt and the seed of an anchor is that anchor, unless the anchor is a given
    picture.

    >>> snow = RunConfig(
    ...     prompts=("a cat", "a cat in the snow"),
    ...     seeds=(0, 1),
    ...     anchor_prompts=("a cat",),
    ...     anchor_seeds=(0,),
    ... )
    >>> places(snow)
    [0, 2]
    """
    anchors = list(zip(config.anchor_prompts, config.anchor_seeds, strict=True))
    drawn = [] if config.anchor_pictures else anchors
    scenes = zip(config.prompts, config.seeds, strict=True)
    return [
        drawn.index(scene) if scene in drawn else len(anchors) + picture
        for picture, scene in enumerate(scenes)
    ]
