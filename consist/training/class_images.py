"""Pictures of the class that a subject belongs to, drawn once by the model itself.

DreamBooth (arXiv:2208.12242, section 3.3) trains on them beside the photos, so that the class stays
what it was. They are runs of `consist`, whose records say model, prompt and seeds of each picture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from consist.models.loading import Model
from consist.runs.config import RunConfig
from consist.runs.drawing import generate
from consist.runs.folder import default_folder
from consist.training.config import TrainConfig
from consist.training.photos import Photo, photos_of_run

RUN_SIZE = 20  # pictures of one run: more of the class are more runs, and none is drawn again
BATCH = 4  # pictures in memory at a time

Draw = Callable[[float, int], None]  # pictures drawn so far, and how many there will be


def class_photos(config: TrainConfig, model: Model, watch: Draw) -> list[Photo]:
    """The class images of a training, of which those that are missing are drawn.

    Picture i has seed i, so that it is the same in every training that has the same class.

    Args:
        config: With nothing left open.
        model: As it was before it is trained.
        watch: Told how many are drawn.
    """
    count = config.class_images or 0
    photos: list[Photo] = []
    for first in range(0, count, RUN_SIZE):
        seeds = tuple(range(first, first + RUN_SIZE))
        run = RunConfig(
            prompts=(config.class_prompt,) * RUN_SIZE,
            seeds=seeds,
            model=config.model,
            method={"name": "isolated"},
            batch_size=BATCH,
        )

        def tell(done: float, _: int, first: int = first) -> None:
            watch(first + done, count)

        folder = generate(run, default_folder(run, class_root(config)), tell, lambda _: model)
        photos += photos_of_run(folder.path)
    return photos[:count]


def class_root(config: TrainConfig) -> Path:
    """Where class images lie: beside what is trained, for all trainings there."""
    return Path(config.out).parent / "class-images"
