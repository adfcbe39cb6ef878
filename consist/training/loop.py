"""The loop of every training: gradients of all processes, one step, and checkpoints to go on from.

It must not know photos, models or prompts: it is told the losses of a step by its number. What is
random is in them, so that a training that goes on takes the very steps it would have taken.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from consist.errors import ConsistError
from consist.training.checkpoints import (
    checkpoint_path,
    checkpoints,
    prune_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from consist.training.config import TrainConfig

Watch = Callable[[int, int, float], None]  # steps done, steps in all, loss of the last one
Losses = Callable[[int], Iterable[Tensor]]  # of a step: what this process adds to its loss
Observe = Callable[[float], None]  # told the loss of a step, and free to look at the weights

# modules and classes of optimizers that are no part of torch, by name
FOREIGN = {"adamw8bit": ("bitsandbytes.optim", "AdamW8bit"), "prodigy": ("prodigyopt", "Prodigy")}
PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}


class Trainee:
    """Weights that learn, with their optimizer, rate and moving average.

    Args:
        groups: Weights by name, all float32, and the rate at which each group of them learns.
        config: With nothing left open.
        device: Of the weights.

    Raises:
        ConsistError: The optimizer is not installed.
    """

    def __init__(
        self,
        groups: Iterable[tuple[Mapping[str, nn.Parameter], float]],
        config: TrainConfig,
        device: torch.device,
    ):
        given = [(dict(named), lr) for named, lr in groups if named]
        self.config = config
        self.parameters = {name: weight for named, _ in given for name, weight in named.items()}
        self.optimizer = build_optimizer(
            config, [{"params": list(named.values()), "lr": lr} for named, lr in given]
        )
        self.schedule = get_scheduler(
            config.schedule,
            self.optimizer,
            num_warmup_steps=config.warmup,
            num_training_steps=config.steps,
        )
        self.average: EMAModel | None = None
        if config.ema is not None:
            self.average = EMAModel(self.parameters.values(), decay=config.ema)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        self.step = 0

    def update(self, losses: Iterable[Tensor]) -> float:
        """Takes one step down the gradient of the sum of losses, over all processes; gives the sum.

        Raises:
            ConsistError: It is not finite; nothing is changed then.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(())
        for loss in losses:
            self.scaler.scale(loss).backward()
            total += loss.detach().cpu()
        value = float(self._sum_over_processes(total))
        if not math.isfinite(value):
            raise ConsistError(
                f"the loss of step {self.step + 1} is not finite; take a lower rate than "
                f"{self.config.lr:g}, or another precision than {self.config.precision}"
            )
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        if self.average is not None:
            self.average.step(self.parameters.values())
        self.step += 1
        return value

    def _sum_over_processes(self, total: Tensor) -> Tensor:
        if PartialState().num_processes == 1:
            return total
        for weight in self.parameters.values():
            if weight.grad is not None:
                weight.grad = reduce(weight.grad, "sum")
        return reduce(total.to(PartialState().device), "sum")

    def save(self, folder: Path) -> None:
        """Writes a checkpoint, and only then removes those before it."""
        tensors: dict[str, Tensor] = {f"weight.{n}": p for n, p in self.parameters.items()}
        if self.average is not None:
            shadows = zip(self.parameters, self.average.shadow_params, strict=True)
            tensors |= {f"average.{name}": shadow for name, shadow in shadows}
        state = {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        write_checkpoint(checkpoint_path(folder, self.step), tensors, state)
        prune_checkpoints(folder, self.config.keep)

    def load(self, path: Path) -> None:
        """Becomes what it was when it was saved.

        Raises:
            ConsistError: The checkpoint is damaged.
        """
        tensors, state = read_checkpoint(path)
        self.step = state["step"]
        with torch.no_grad():
            for name, weight in self.parameters.items():
                weight.copy_(tensors[f"weight.{name}"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.optimization_step = self.step
            for name, shadow in zip(self.parameters, self.average.shadow_params, strict=True):
                shadow.copy_(tensors[f"average.{name}"])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the weights are their moving average, if there is one; then as they were."""
        if self.average is None:
            yield
            return
        self.average.store(self.parameters.values())
        self.adopt_average()
        try:
            yield
        finally:
            self.average.restore(self.parameters.values())

    def adopt_average(self) -> None:
        """Puts the moving average, if there is one, in the place of the weights."""
        if self.average is not None:
            self.average.copy_to(self.parameters.values())


def build_optimizer(config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer of a config for groups of weights, each with its rate."""
    made: torch.optim.Optimizer = find_optimizer(config.optimizer)(
        groups, weight_decay=config.weight_decay
    )
    return made


def find_optimizer(name: str) -> Callable[..., torch.optim.Optimizer]:
    """The class of an optimizer of ``OPTIMIZERS``.

    Raises:
        ConsistError: It is not installed.
    """
    if name == "adamw":
        return torch.optim.AdamW
    module, kind = FOREIGN[name]
    try:
        found: Callable[..., torch.optim.Optimizer] = getattr(importlib.import_module(module), kind)
    except ImportError:
        package = PACKAGES[name]
        raise ConsistError(f"optimizer {name!r} needs {package}: pip install {package}") from None
    return found


def resume(trainee: Trainee, folder: Path) -> None:
    """Loads the last checkpoint of a folder, if there is one.

    Raises:
        ConsistError: It is damaged, or beyond the last step.
    """
    steps = trainee.config.steps or 0
    if found := checkpoints(folder):
        trainee.load(found[-1])
    if trainee.step > steps:
        raise ConsistError(f"{found[-1]} has taken {trainee.step} steps, more than {steps}")


def fit(trainee: Trainee, losses: Losses, folder: Path, watch: Watch, observe: Observe) -> None:
    """Takes the steps of a training that are left; ends with the moving average.

    Args:
        trainee: New, or resumed.
        losses: Asked for each step, from 0 on.
        folder: Of the checkpoints.
        watch: Told after each step.
        observe: Told after each step, before its checkpoint, and so of all steps that it has.

    Raises:
        ConsistError: The loss is not finite, or a checkpoint cannot be written.
    """
    state, steps = PartialState(), trainee.config.steps or 0
    state.wait_for_everyone()
    while trainee.step < steps:
        loss = trainee.update(losses(trainee.step))
        observe(loss)
        due = trainee.step % trainee.config.checkpoint_every == 0 or trainee.step == steps
        if due and state.is_main_process:
            trainee.save(folder)
        watch(trainee.step, steps, loss)
    trainee.adopt_average()
