"""Drawing with masks that are known beforehand: where the isolated pictures have their subject.

A run is drawn without sharing from the same noise, so its subject stands nearly where it will be
with sharing. That is the nearest thing to true masks, which only drawings of the world have.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from consist.errors import ConsistError
from consist.evaluation.judges.by_encoder import EmbeddingJudge
from consist.evaluation.judges.by_reader import ReadingJudge
from consist.evaluation.judges.judge import Judge
from consist.methods import build
from consist.mini.reader import Reading
from consist.runs.chunks import plan_run
from consist.runs.config import RunConfig
from consist.runs.drawing import Batch, Load, Watch, draw, missing
from consist.runs.folder import ISOLATED, SHARED, RunFolder
from consist.runs.preparing import prepare


def draw_with_masks(
    folder: RunFolder, config: RunConfig, judges: Sequence[Judge], watch: Watch, model_for: Load
) -> None:
    """Draws the pictures of a run that are missing, with the masks of its isolated pictures.

    ``generate`` takes them for its own and adds what else belongs to a run; the text of each
    picture says where its masks are from.

    Args:
        folder: Has a record, and all isolated pictures.
        config: The run; its method takes masks.
        judges: Of which one can find subjects.
        watch: As in ``generate``.
        model_for: As in ``generate``.

    Raises:
        ConsistError: The run cannot be drawn, or nothing finds subjects.
    """
    count, method = len(config.prompts), build(config.method)
    left = plan_run(config, method.anchor_count(count), missing(folder, SHARED, count))
    if not left:
        return
    isolated = [folder.read_picture(index, ISOLATED) for index in range(count)]
    masks = find_subjects(judges, isolated, config.method["subject"])
    model = model_for(config)
    settings = prepare(model, config)
    told = json.dumps({**config.to_json(), "row": config.method["name"], "masks": ISOLATED})
    for number, chunk in enumerate(left):

        def step(share: float, number: int = number) -> None:
            watch(number + share, len(left))

        given = masks[list(chunk.images)]
        batch = Batch(
            pipe=model.pipe,
            config=config,
            settings=settings,
            chunk=chunk,
            method=method,
            step=step,
        )
        images = draw(batch, given)
        for index, image in zip(chunk.images, images, strict=True):
            if index in chunk.new:
                text = {"prompt": config.prompts[index], "seed": str(config.seeds[index])}
                folder.write_picture(index, SHARED, image, {**text, "consist": told})


def find_subjects(
    judges: Sequence[Judge], images: Sequence[Image.Image], subjects: Sequence[str]
) -> Tensor:
    """Where pictures show subjects, by the first judge that can tell.

    Args:
        judges: The reader finds what the mini world has, a segmenter whatever it is told.
        images: All of one size.
        subjects: Their nouns.

    Returns:
        bool ``(n c rows columns)``; a single subject is all that the reader finds, whatever it
        takes it for.

    Raises:
        ConsistError: No judge can tell, or a segmenter is told no noun.
    """
    for judge in judges:
        if isinstance(judge, ReadingJudge):
            shape = images[0].size[::-1]
            readings = judge.reader.read(images)
            found = [[cover(one, noun, shape) for noun in only(subjects)] for one in readings]
            return torch.from_numpy(np.array(found))
        if isinstance(judge, EmbeddingJudge) and judge.segmenter and subjects:
            places = [judge.segmenter.find(images, noun) for noun in subjects]
            return torch.from_numpy(np.stack([np.stack(place) for place in places], 1))
    raise ConsistError(
        "nothing says where the subject is: measure with the reader, or give --segmenter and sets "
        "that name their subject"
    )


def only(subjects: Sequence[str]) -> Sequence[str | None]:
    """The subjects to tell apart; None alone is whatever there is."""
    return subjects if len(subjects) > 1 else (None,)


def cover(reading: Reading, noun: str | None, shape: tuple[int, ...]) -> np.ndarray:
    """The pixels that the subjects of a class cover, bool ``(h w)``."""
    masks = [one.mask for one in reading.subjects if noun in (None, one.subject.name)]
    return np.logical_or.reduce([np.zeros(shape, dtype=bool), *masks])
