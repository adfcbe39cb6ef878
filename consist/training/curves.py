"""What TensorBoard shows of a training: loss, rate, speed and sample pictures.

It must not know models. TensorBoard is a package of its own, needed only here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from consist.errors import ConsistError


def find_writer() -> Callable[..., Any]:
    """The class that writes what TensorBoard reads.

    Raises:
        ConsistError: It is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConsistError("TensorBoard is not installed: pip install 'consist[train]'") from None
    return SummaryWriter


class Curves:
    """Writes the curves of a training; one that goes on continues them.

    Args:
        folder: For TensorBoard's ``--logdir``.
        step: Taken so far; what a killed process wrote of later ones is no longer shown.

    Raises:
        ConsistError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int):
        self.writer = find_writer()(str(folder), purge_step=step + 1)
        self.since = time.monotonic()

    def add(self, step: int, loss: float, rates: Sequence[float]) -> None:
        """Adds a step: its loss, the rates of the next one, and how fast steps are taken."""
        self.writer.add_scalar("loss", loss, step)
        for group, rate in enumerate(rates):
            self.writer.add_scalar(f"lr/{group}", rate, step)
        self.writer.add_scalar("steps per second", 1 / (time.monotonic() - self.since), step)
        self.rest()

    def show(self, step: int, prompts: Sequence[str], images: Sequence[Image.Image]) -> None:
        """Adds sample pictures, whose time is not counted."""
        for index, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
            name = f"{index} {prompt}"
            self.writer.add_image(name, np.asarray(image), step, dataformats="HWC")
        self.rest()

    def rest(self) -> None:
        """Measures speed from here on."""
        self.since = time.monotonic()

    def close(self) -> None:
        """Writes what is not written yet."""
        self.writer.close()
