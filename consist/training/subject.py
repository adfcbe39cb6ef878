"""What learns from photos of a subject: by the optimizer of a config, over all processes."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from consist.errors import ConsistError
from consist.training.config import TrainConfig
from consist.training.loop import Trainee

# modules and classes of optimizers that are no part of torch, by name
FOREIGN = {"adamw8bit": ("bitsandbytes.optim", "AdamW8bit"), "prodigy": ("prodigyopt", "Prodigy")}
PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}


class SubjectTrainee(Trainee):
    """Weights that learn a subject.

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
        optimizer = find_optimizer(config.optimizer)(
            [{"params": list(named.values()), "lr": lr} for named, lr in given],
            weight_decay=config.weight_decay,
        )
        super().__init__(
            {name: weight for named, _ in given for name, weight in named.items()},
            [optimizer],
            averaged=config.ema is not None,
            max_grad_norm=config.max_grad_norm,
        )
        self.config = config
        self.schedule = schedule_of(config, optimizer)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        self.writes = PartialState().is_main_process

    def factor(self, step: int) -> float:
        """As the config's schedule has it."""
        return self.schedule(step)

    def scaled(self, loss: Tensor) -> Tensor:
        """So large that float16 holds its gradients."""
        scaled: Tensor = self.scaler.scale(loss)
        return scaled

    def ready(self, loss: Tensor) -> Tensor:
        """Sums gradients and losses over all processes.

        Raises:
            ConsistError: The loss is not finite; nothing is changed then.
        """
        total = self._sum_over_processes(loss)
        if not math.isfinite(float(total)):
            raise ConsistError(
                f"the loss of step {self.step + 1} is not finite; take a lower rate than "
                f"{self.config.lr:g}, or another precision than {self.config.precision}"
            )
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        return total

    def _sum_over_processes(self, total: Tensor) -> Tensor:
        if PartialState().num_processes == 1:
            return total
        for weight in self.parameters.values():
            if weight.grad is not None:
                weight.grad = reduce(weight.grad, "sum")
        return reduce(total.to(PartialState().device), "sum")

    def move(self) -> None:
        """Moves the weights, unless float16 could not hold a gradient."""
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()

    def blend(self, average: Tensor, weight: Tensor) -> None:
        """As ``EMAModel`` of diffusers: from the second step on, and short at first."""
        keep = 0.0 if self.step == 1 else min(self.config.ema or 0.0, self.step / (self.step + 9))
        average.sub_((1 - keep) * (average - weight))

    def state(self) -> dict[str, Any]:
        """The scale of losses."""
        return {"scaler": self.scaler.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes back the scale of losses."""
        self.scaler.load_state_dict(state["scaler"])


def schedule_of(config: TrainConfig, optimizer: torch.optim.Optimizer) -> Callable[[int], float]:
    """What the rates are multiplied by at a step, from 0."""
    made = get_scheduler(
        config.schedule,
        optimizer,
        num_warmup_steps=config.warmup,
        num_training_steps=config.steps,
    )
    factor: Callable[[int], float] = made.lr_lambdas[0]
    return factor


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
