"""One batch of one run drawn by several processes, each of which has a part of its images.

The first process draws the run as if alone, and tells the others of each chunk: it alone reads and
writes the run folder. What the images share travels as ``consist.attention.batch_split`` says.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
from PIL import Image

from consist.attention.batch_split import Spread
from consist.attention.method import PROCESSES, Method
from consist.errors import ConsistError
from consist.methods import build
from consist.models.new_words import new_words
from consist.runs.chunks import Chunk
from consist.runs.config import RunConfig
from consist.runs.drawing import Batch, Watch, draw, generate, load_model
from consist.runs.folder import RunFolder
from consist.runs.many.ranks import Ranks
from consist.runs.preparing import prepare

Job = tuple[Chunk, Method]


def generate_across(
    ranks: Ranks, config: RunConfig, out: Path | None, watch: Watch
) -> RunFolder | None:
    """Draws a run with all processes; to be called in each of them with the same arguments.

    Args:
        ranks: At least two processes.
        config: What to draw.
        out: As for ``generate``; the first process alone needs to see it.
        watch: As for ``generate``; told in the first process.

    Returns:
        The folder in the first process, None in the others.

    Raises:
        ConsistError: The run cannot be drawn, or not by so many processes.
    """
    refuse_unspread(config)
    if not ranks.leads:
        follow(ranks, config)
        return None
    leader = Leader(ranks)
    try:
        folder = generate(config, out, watch, drawn_by=leader)
    except ConsistError:
        # in the middle of a chunk the others wait for its tensors, and the launcher ends them
        if not leader.drawing:
            tell(None)
        raise
    tell(None)
    return folder


class Leader:
    """Takes the place of ``draw`` in the first process: all draw the chunk that it is given."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self.drawing = False

    def __call__(self, batch: Batch) -> list[Image.Image]:
        """The images of the batch."""
        count = len(batch.chunk.images)
        if count < self.ranks.count:
            raise ConsistError(
                f"{self.ranks.count} processes were started for a batch of {count} "
                "pictures; start at most as many as there are pictures in the smallest batch"
            )
        self.drawing = True
        tell((batch.chunk, batch.method))
        images = draw_share(self.ranks, batch)
        self.drawing = False
        return images


def follow(ranks: Ranks, config: RunConfig) -> None:
    """Draws what the first process tells of until it says that there is no more."""
    job = hear()
    if job is None:
        return
    model, whole = load_model(config), config.with_anchors()
    with new_words(model.pipe, config.embeddings):
        settings = prepare(model, whole)
        while job is not None:
            chunk, method = job
            draw_share(
                ranks,
                Batch(pipe=model.pipe, config=whole, settings=settings, chunk=chunk, method=method),
            )
            job = hear()


def draw_share(ranks: Ranks, batch: Batch) -> list[Image.Image]:
    """Draws the images of a batch that are those of this process.

    Returns:
        All images of the batch in the first process, none in the others.
    """
    whole = batch.chunk.images
    spread = Spread(images=len(whole), rank=ranks.rank, count=ranks.count)
    own = tuple(whole[image] for image in spread.own)
    images = draw(replace(batch, chunk=Chunk(own, own)), spread=spread)
    shares: list[list[Image.Image]] = [[] for _ in range(ranks.count)]
    dist.gather_object(images, shares if ranks.leads else None)
    if not ranks.leads:
        return []
    return [shares[i % ranks.count][i // ranks.count] for i in range(spread.images)]


def tell(job: Job | None) -> None:
    """Tells all other processes what to draw, or that there is no more."""
    dist.broadcast_object_list([job])


def hear() -> Job | None:
    """What the first process tells."""
    heard: list[Job | None] = [None]
    dist.broadcast_object_list(heard)
    return heard[0]


def refuse_unspread(config: RunConfig) -> None:
    """Makes sure that the images of a run need of one another no more than a bank and masks.

    Raises:
        ConsistError: They need more.
    """
    if reason := _needs(config):
        name = config.method["name"]
        raise ConsistError(
            f"{name} cannot be spread over processes: {reason}; draw it with one process, or many "
            "sets with --file sets.yaml"
        )


def _needs(config: RunConfig) -> str:
    """Why a run must be drawn by one process; "" if it need not."""
    if config.anchor_pictures:
        return "keys of references are matched to those of each picture beside them"
    if config.cache:
        return "with a cache no picture needs another beside it"
    return build(config.method).obstacle(PROCESSES)
