"""What looks at a training from outside, and does not change it: sample pictures and curves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState
from torch import Tensor

from consist.models.loading import Model
from consist.training.config import TrainConfig
from consist.training.curves import Curves
from consist.training.loop import Observe
from consist.training.previews import Previews
from consist.training.subject import SubjectTrainee


@contextmanager
def observing(
    model: Model, trainee: SubjectTrainee, config: TrainConfig, device: torch.device
) -> Iterator[Observe]:
    """Gives what is to be told of each step; of several processes, the main one alone looks.

    Pictures are drawn before the first step, at every so many, and after the last.

    Args:
        model: That is trained.
        trainee: At the step that it goes on from.
        config: With nothing left open but the resolution.
        device: Of the model.

    Raises:
        ConsistError: A sample prompt is too long, or TensorBoard is not installed.
    """
    observer = Observer(model, trainee, config, device)
    try:
        if trainee.step == 0:
            observer.look()
        yield observer
    finally:
        observer.close()


class Observer:
    """Told the loss of each step, it draws and writes what the config asks for."""

    def __init__(
        self, model: Model, trainee: SubjectTrainee, config: TrainConfig, device: torch.device
    ):
        self.trainee = trainee
        self.previews: Previews | None = None
        self.curves: Curves | None = None
        if PartialState().is_main_process and config.sample_prompts:
            self.previews = Previews(model, config, device)
        if PartialState().is_main_process and config.tensorboard:
            self.curves = Curves(config.work_folder / "tensorboard", trainee.step)

    def __call__(self, loss: Tensor) -> None:
        """Looks at the step that was just taken."""
        step, last = self.trainee.step, self.trainee.config.steps
        if self.curves:
            self.curves.add(step, float(loss), self.trainee.rates())
        if self.previews and (step % self.previews.every == 0 or step == last):
            self.look()

    def look(self) -> None:
        """Draws, if that is asked for, with the moving average where there is one."""
        if not self.previews:
            return
        step = self.trainee.step
        with self.trainee.averaged():
            images = self.previews.draw(step)
        if self.curves:
            self.curves.show(step, self.previews.run.prompts, images)

    def close(self) -> None:
        """Writes what is not written yet."""
        if self.curves:
            self.curves.close()
