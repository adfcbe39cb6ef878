"""What each step of a training sees, from the seed and the step's number alone.

All choices of a sample hang on its place in the whole step: not on what came before, nor on how
many processes share the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from random import Random

from consist.training.config import TrainConfig
from consist.training.photos import Photo, View, nearest_size


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One noisy photo that the denoiser is asked about."""

    photo: Photo
    view: View
    timestep: int
    seed: int  # of its noise
    weight: float  # of its error in the loss of the step
    preserved: bool = False  # compared with the base model's answer, not with the noise
    outlined: bool = False  # so compared where the subject is not


@dataclass(frozen=True, kw_only=True)
class Album:
    """Photos that a step takes as many of as the batch is large."""

    name: str
    photos: Sequence[Photo]
    sizes: list[tuple[int, int]]  # (width, height), pixels
    weight: float = 1.0  # of their mean error
    preserved: bool = False
    outlined: bool = False
    dropout: float = 0.0  # share of samples whose caption is empty

    def draw(self, step: int, config: TrainConfig, timesteps: int) -> list[Sample]:
        """The samples of a step; photos come in random order, all of them before one comes again.

        Args:
            step: From 0.
            config: With nothing left open.
            timesteps: How many there are.
        """
        count = config.batch_size or 1
        return [self._sample(step, place, count, config, timesteps) for place in range(count)]

    @property
    def captions(self) -> set[str]:
        """All that its samples may say."""
        return {photo.caption for photo in self.photos} | ({""} if self.dropout else set())

    def _sample(
        self, step: int, place: int, count: int, config: TrainConfig, timesteps: int
    ) -> Sample:
        epoch, index = divmod(step * count + place, len(self.photos))
        order = list(range(len(self.photos)))
        Random(f"{config.seed}/{self.name}/epoch {epoch}").shuffle(order)
        photo = self.photos[order[index]]
        width, height = nearest_size(photo, self.sizes)
        rng = Random(f"{config.seed}/{self.name}/{step}/{place}")
        seed, timestep = rng.randrange(2**62), rng.randrange(timesteps)
        x, y = (rng.random(), rng.random()) if config.random_crop else (0.5, 0.5)
        flipped = config.random_flip and rng.random() < 0.5
        dropped = rng.random() < self.dropout
        return Sample(
            photo=replace(photo, caption="") if dropped else photo,
            view=View(width=width, height=height, x=x, y=y, flipped=flipped),
            timestep=timestep,
            seed=seed,
            weight=self.weight / count,
            preserved=self.preserved,
            outlined=self.outlined,
        )


def share(samples: list[Sample], process: int, processes: int) -> list[Sample]:
    """The part of a step's samples that one of several processes computes."""
    return samples[process::processes]


def batches(samples: list[Sample], parts: int) -> list[list[Sample]]:
    """Samples that are computed together: of one size and kind, at most ``1 / parts`` of all."""
    room = -(-len(samples) // parts)

    def kind(sample: Sample) -> tuple[int, int, bool, bool]:
        return sample.view.width, sample.view.height, sample.preserved, sample.outlined

    groups = [list(group) for _, group in groupby(sorted(samples, key=kind), kind)]
    return [group[i : i + room] for group in groups for i in range(0, len(group), room)]
