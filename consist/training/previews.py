"""Pictures that a model draws while it learns, of the same prompts from the same noise.

They are those of ``consist batch --method isolated`` with the weights of that moment: drawn by the
pipeline that is trained, since a second one would take memory, and leave it as they found it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from consist.files import write_atomically, write_png
from consist.methods.isolated import Isolated
from consist.models.devices import DTYPES
from consist.models.loading import Model, Pipeline
from consist.runs.chunks import Chunk
from consist.runs.config import RunConfig
from consist.runs.drawing import Batch, draw
from consist.runs.grid import draw_grid
from consist.runs.preparing import prepare
from consist.training.config import TrainConfig

OFTEN = 100  # steps between pictures where nothing is asked
THUMBNAIL = 256  # pixels of a picture's longer side in the sheet
MOST_ROWS = 20  # steps of the sheet, evenly spread over those that are there


class Previews:
    """Draws the sample prompts of a training; picture i has seed i.

    ``step-000100-0.png`` and so on lie in ``samples`` in the work folder, with ``sheet.png``, in
    which each step is a row.

    Args:
        model: That is trained.
        config: With at least one sample prompt.
        device: Of the model.

    Raises:
        ConsistError: A prompt is too long.
    """

    def __init__(self, model: Model, config: TrainConfig, device: torch.device):
        prompts = config.sample_prompts
        self.run = RunConfig(
            prompts=prompts,
            seeds=tuple(range(len(prompts))),
            model=config.model,
            method={"name": "isolated"},
            width=config.resolution,
            height=config.resolution,
        )
        self.pipe = model.pipe
        self.settings = prepare(model, self.run)
        self.every = config.sample_every or OFTEN
        self.folder = config.work_folder / "samples"
        self.device = device
        self.dtype = DTYPES[config.precision]

    def draw(self, step: int) -> list[Image.Image]:
        """Draws and writes the pictures of a step, one at a time, and the sheet; gives them."""
        images = []
        with ready_to_draw(self.pipe, self.device), computed_in(self.pipe, self.device, self.dtype):
            for i in range(len(self.run.prompts)):
                chunk = Chunk((i,), (i,))
                images += draw(
                    Batch(
                        pipe=self.pipe,
                        config=self.run,
                        settings=self.settings,
                        chunk=chunk,
                        method=Isolated(),
                    )
                )
        for i, image in enumerate(images):
            text = {"prompt": self.run.prompts[i], "seed": str(i), "step": str(step)}
            write_png(self.path(step, i), image, text)
        self.write_sheet()
        return images

    def path(self, step: int, index: int) -> Path:
        """Where the picture of a prompt lies."""
        return self.folder / f"step-{step:06d}-{index}.png"

    def write_sheet(self) -> None:
        """Writes all steps in one picture, but those of which a prompt is missing or another."""
        names = (path.stem.split("-")[1] for path in self.folder.glob("step-*-0.png"))
        rows: dict[str, list[Image.Image]] = {}
        for step in evenly(sorted(int(name) for name in names if name.isdecimal()), MOST_ROWS):
            read = (self.read(step, i) for i in range(len(self.run.prompts)))
            images = [image for image in read if image]
            if len(images) == len(self.run.prompts):
                rows[f"step {step}"] = images
        sheet = draw_grid(rows, list(self.run.prompts))
        write_atomically(self.folder / "sheet.png", lambda file: sheet.save(file, "PNG"))

    def read(self, step: int, index: int) -> Image.Image | None:
        """A small copy of a picture; None where there is none, or one of another prompt."""
        try:
            with Image.open(self.path(step, index)) as image:
                image.load()
                if image.info.get("prompt") != self.run.prompts[index]:
                    return None
                small = image.convert("RGB")
        except OSError:
            return None
        small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        return small


def evenly(values: list[int], most: int) -> list[int]:
    """At most so many of the values, with the first and the last, evenly spread.

    >>> evenly([0, 1, 2, 3, 4], 3)
    [0, 2, 4]
    """
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


@contextmanager
def ready_to_draw(pipe: Pipeline, device: torch.device) -> Iterator[None]:
    """Inside, all of a pipeline is on the device and in evaluation mode; then as it was."""
    modules = [module for module in pipe.components.values() if isinstance(module, nn.Module)]
    places = [next(module.parameters()).device for module in modules]
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.to(device).eval()
        yield
    finally:
        for module, place in zip(modules, places, strict=True):
            module.to(place)
        for part, training in modes:
            part.training = training


@contextmanager
def computed_in(pipe: Pipeline, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Inside, a pipeline whose weights differ in precision computes as in training.

    The autoencoder has float32 weights and computes in float32: SDXL's overflows in float16.
    """
    vae: Any = pipe.vae
    plain = vae.decode

    def decode(latents: torch.Tensor, *args: Any, **options: Any) -> Any:
        with torch.autocast(device.type, enabled=False):
            return plain(latents.to(vae.dtype), *args, **options)

    vae.decode = decode
    try:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            yield
    finally:
        del vae.decode
