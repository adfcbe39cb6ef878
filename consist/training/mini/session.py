"""What all stages of training `mini` share: the recipe, and the loop, bounded in time.

It must not know pictures or models. Randomness is derived from (stage, step), so a resumed run
takes the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn

from consist.training.loop import Plan, fit, resume
from consist.training.mini.trainee import MiniTrainee

READER_ON_LR = 4e-4  # of a reader that learns on; at 1e-3 it forgets first
Report = Callable[[str, int, int, float], None]  # stage, step, steps, loss


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast each stage learns."""

    pictures: int = 48_000
    vae_steps: int = 12_500
    vae_batch: int = 16
    vae_lr: float = 1.5e-3
    word_steps: int = 1_600
    word_batch: int = 128
    word_lr: float = 2e-3
    unet_steps: int = 14_000
    unet_batch: int = 48
    unet_lr: float = 1e-3
    reader_steps: int = 4_200  # 0 keeps the reader that one starts with
    reader_batch: int = 48
    reader_lr: float = 2e-3
    warmup: int = 200
    checkpoint_s: float = 180.0
    minutes: float = math.inf  # stop, with a checkpoint, after so long


class OutOfTime(Exception):
    """The recipe's minutes are over; the checkpoint is written."""


@dataclass(frozen=True)
class Session:
    """One call of the trainer: where it works, until when, and whom it tells."""

    folder: Path
    recipe: Recipe
    device: torch.device
    report: Report
    started: float  # time.monotonic() when it began
    draws: str = ""  # another text: other pictures, captions and noise at each step

    def fit(
        self,
        stage: str,
        modules: Mapping[str, nn.Module],
        lr: float,
        steps: int,
        loss: Callable[[int], Tensor],
        muon: Collection[str] = (),
    ) -> None:
        """Minimizes ``loss(step)`` over the weights of ``modules``, which end as their average.

        Weights named in ``muon`` are moved by Muon, all others by AdamW.

        Raises:
            OutOfTime: The recipe's minutes are over; the weights are the average so far.
            ConsistError: ``muon`` names weights and PyTorch is older than 2.9.
        """
        trainee = MiniTrainee(modules, lr, steps, self.recipe.warmup, muon)
        plan = Plan(
            folder=self.folder / stage,
            steps=steps,
            save_s=self.recipe.checkpoint_s,
            deadline=self.started + 60 * self.recipe.minutes,
            watch_steps=20,
        )
        resume(trainee, plan.folder)
        fit(trainee, lambda step: [loss(step)], plan, partial(self.report, stage))
        if trainee.step < steps:
            raise OutOfTime

    def random(self, stage: str, step: int) -> Random:
        """The random source of one step."""
        return Random(f"{self.draws}{stage}-{step}")

    def noise_source(self, rng: Random) -> torch.Generator:
        """A generator on the device, seeded from ``rng``."""
        return torch.Generator(self.device).manual_seed(rng.randrange(2**62))

    def half_precision(self) -> AbstractContextManager[None]:
        """Runs the matrix products inside in bfloat16, where those are fast."""
        fast = is_fast_in_half(self.device)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=fast)


def is_fast_in_half(device: torch.device) -> bool:
    """Whether products of bfloat16 are worth their loss.

    On an AMD EPYC that has AVX2 alone they reach 1 GFLOP/s a core, and those of float32 72.
    """
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
