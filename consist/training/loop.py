"""The loop of every training: gradients, one step, and checkpoints to go on from.

It must not know photos, models or prompts: it is told the losses of a step by its number. What is
random is in them, so that a training that goes on takes the very steps it would have taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from consist.training.checkpoints import (
    checkpoint_path,
    checkpoints,
    prune_checkpoints,
    read_checkpoint,
    write_checkpoint,
)

Watch = Callable[[int, int, float], None]  # steps done, steps in all, loss of the last one
Losses = Callable[[int], Iterable[Tensor]]  # of a step: what this process adds to its loss
Observe = Callable[[Tensor], None]  # told the loss of a step, and free to look at the weights


class Trainee:
    """Weights that learn: what the loop moves, averages, saves and loads.

    As it stands, its rates stay as they are, and its average is its weights. What else one does is
    said by a subclass.

    Args:
        parameters: Weights by name.
        optimizers: That move them, or views of them.
        averaged: Whether a moving average is kept.
        max_grad_norm: Of all gradients together; they are scaled down to it.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        averaged: bool = False,
        max_grad_norm: float = 1.0,
    ):
        self.parameters = dict(parameters)
        self.optimizers = list(optimizers)
        self.lrs = [group["lr"] for group in self._groups()]
        self.average: dict[str, Tensor] = {}
        if averaged:
            self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.max_grad_norm = max_grad_norm
        self.step = 0
        self.writes = True  # its checkpoints; of several processes, one does

    def factor(self, step: int) -> float:
        """What the rates are multiplied by at a step, from 0."""
        return 1.0

    def scaled(self, loss: Tensor) -> Tensor:
        """What gradients are taken of."""
        return loss

    def ready(self, loss: Tensor) -> Tensor:
        """Makes the gradients those of all processes, and gives the loss of these.

        Raises:
            ConsistError: No step can be taken down such a loss; nothing is changed then.
        """
        return loss

    def move(self) -> None:
        """Moves the weights by their gradients."""
        for optimizer in self.optimizers:
            optimizer.step()

    def blend(self, average: Tensor, weight: Tensor) -> None:
        """Moves the average of a weight after a step, whose number, from 1, is ``step``."""
        average.copy_(weight)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beside weights, average and optimizers."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes back what ``state`` gave."""

    def rates(self) -> list[float]:
        """The rate of each group of weights at the next step."""
        return [lr * self.factor(self.step) for lr in self.lrs]

    def update(self, losses: Iterable[Tensor]) -> Tensor:
        """Takes one step down the gradient of the sum of losses, over all processes; gives the sum.

        Raises:
            ConsistError: As ``ready``.
        """
        for weight in self.parameters.values():
            weight.grad = None
        total = torch.zeros(())
        for loss in losses:
            self.scaled(loss).backward()
            # where it was computed: a GPU is not waited for
            total = total + loss.detach()
        total = self.ready(total)
        nn.utils.clip_grad_norm_(self.parameters.values(), self.max_grad_norm)
        for group, rate in zip(self._groups(), self.rates(), strict=True):
            group["lr"] = rate
        self.move()
        self.step += 1
        with torch.no_grad():
            for name, average in self.average.items():
                self.blend(average, self.parameters[name])
        return total

    def _groups(self) -> Iterator[dict[str, Any]]:
        for optimizer in self.optimizers:
            yield from optimizer.param_groups

    def save(self, folder: Path, keep: int) -> None:
        """Writes a checkpoint, and only then removes all but the newest ``keep``."""
        tensors: dict[str, Tensor] = {f"weight.{n}": p for n, p in self.parameters.items()}
        tensors |= {f"average.{name}": average for name, average in self.average.items()}
        state = {
            **self.state(),
            "step": self.step,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        write_checkpoint(checkpoint_path(folder, self.step), tensors, state)
        prune_checkpoints(folder, keep)

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
            for name, average in self.average.items():
                average.copy_(tensors[f"average.{name}"])
        for optimizer, held in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(held)
            lay_out_state(optimizer)
        self.restore(state)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the weights are their moving average, if there is one; then as they were."""
        held = {name: self.parameters[name].detach().to("cpu", copy=True) for name in self.average}
        self.adopt_average()
        try:
            yield
        finally:
            for name, weight in held.items():
                self.parameters[name].data.copy_(weight)

    def adopt_average(self) -> None:
        """Puts the moving average, if there is one, in the place of the weights."""
        for name, average in self.average.items():
            self.parameters[name].data.copy_(average)


def lay_out_state(optimizer: torch.optim.Optimizer) -> None:
    """Lays what an optimizer has read in memory as the weights lie there.

    A file has all tensors row by row, and fused optimizers pair numbers by their place in memory.
    """
    for weight, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                room = torch.empty_like(weight, dtype=value.dtype, device=value.device)
                state[key] = room.detach().copy_(value)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long a training takes, and when it is saved and told of."""

    folder: Path  # of the checkpoints
    steps: int  # in all
    save_steps: float = math.inf  # a checkpoint after so many
    save_s: float = math.inf  # or so long
    keep: int = 1  # checkpoints
    deadline: float = math.inf  # as time.monotonic() has it: then it stops, with a checkpoint
    watch_steps: int = 1  # told of every so many

    def asks_to_save(self, step: int, since: float) -> bool:
        """Whether a checkpoint is due after a step, so many seconds since the last one."""
        return step == self.steps or step % self.save_steps == 0 or since > self.save_s


def resume(trainee: Trainee, folder: Path) -> None:
    """Loads the last checkpoint of a folder, if there is one.

    Raises:
        ConsistError: It is damaged.
    """
    if found := checkpoints(folder):
        trainee.load(found[-1])


def unobserved(loss: Tensor) -> None:
    """Looks at nothing."""


def fit(
    trainee: Trainee, losses: Losses, plan: Plan, watch: Watch, observe: Observe = unobserved
) -> None:
    """Takes the steps of a training that are left and in time; ends with the moving average.

    Args:
        trainee: New, or resumed.
        losses: Asked for each step, from 0 on.
        plan: For how long.
        watch: Told after each step that it is told of.
        observe: Told after each step, before its checkpoint, and so of all steps that it has.

    Raises:
        ConsistError: The loss is not finite, or a checkpoint cannot be written.
    """
    saved = time.monotonic()
    late = False
    while trainee.step < plan.steps and not late:
        loss = trainee.update(losses(trainee.step))
        observe(loss)
        now = time.monotonic()
        late = now > plan.deadline
        if late or plan.asks_to_save(trainee.step, now - saved):
            saved = now
            if trainee.writes:
                trainee.save(plan.folder, plan.keep)
        if trainee.step % plan.watch_steps == 0:
            watch(trainee.step, plan.steps, float(loss))
    trainee.adopt_average()
