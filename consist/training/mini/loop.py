"""The loop that all stages of training `mini` share: resumable, averaged, bounded in time.

It must not know pictures or models. Randomness is derived from (stage, step), so a resumed run
takes the same steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from consist.errors import ConsistError

EMA = 0.999
READER_ON_LR = 4e-4  # of a reader that learns on; at 1e-3 it forgets first
WEIGHT_DECAY = 0.01
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


class Trainee:
    """Weights that learn, their moving average and the optimizers' state, in one safetensors file.

    AdamW moves all weights but those named in ``muon``. Those are hidden matrices and kernels, and
    Muon (Jordan et al. 2024) moves them by orthogonalized momentum, scaled so that AdamW's rate
    fits it (Liu et al. 2025, arXiv 2502.16982, equation 4).

    Raises:
        ConsistError: ``muon`` names weights and PyTorch is older than 2.9.
        ValueError: It names a kernel that does not lie in memory with its channels last.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        lr: float,
        path: Path,
        muon: Collection[str] = (),
    ):
        self.parameters = {
            f"{prefix}.{name}": parameter
            for prefix, module in modules.items()
            for name, parameter in module.named_parameters()
        }
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.matrices = {name: self._view(name) for name in muon}
        self.adamw = torch.optim.AdamW(
            (p for name, p in self.parameters.items() if name not in self.matrices),
            lr=lr,
            betas=(0.9, 0.99),
            weight_decay=WEIGHT_DECAY,
            fused=True,
        )
        self.optimizers: list[torch.optim.Optimizer] = [self.adamw]
        if self.matrices:
            self.optimizers.append(build_muon(self.matrices.values(), lr))
        self.lr = lr
        self.path = path
        self.step = 0
        if path.exists():
            self._load()

    def update(self, loss: Tensor, lr_factor: float) -> None:
        """Takes one step down the gradient of ``loss``."""
        for parameter in self.parameters.values():
            parameter.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        for name, matrix in self.matrices.items():
            gradient = self.parameters[name].grad
            matrix.grad = None if gradient is None else as_matrix(gradient)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * lr_factor
            optimizer.step()
        self.step += 1
        # short at first, so that the random start is forgotten
        decay = min(EMA, self.step / (self.step + 10))
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                self.average[name].lerp_(parameter, 1 - decay)

    def save(self) -> None:
        """Writes the file in full or not at all."""
        tensors = {f"average.{name}": value for name, value in self.average.items()}
        for name, parameter in self.parameters.items():
            tensors[f"weight.{name}"] = parameter.detach()
        for optimizer in self.optimizers:
            for name, tensor in self._moved_by(optimizer).items():
                state = optimizer.state[tensor]
                tensors |= {f"{key}.{name}": state[key] for key in state if key != "step"}
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        partial = self.path.with_suffix(".part")
        save_file(tensors, partial, metadata={"step": str(self.step)})
        partial.replace(self.path)

    def _load(self) -> None:
        with safe_open(self.path, "pt") as file:
            self.step = int(file.metadata()["step"])
            for name, parameter in self.parameters.items():
                parameter.data.copy_(file.get_tensor(f"weight.{name}"))
                self.average[name].copy_(file.get_tensor(f"average.{name}"))
            for name, weight in self._moved_by(self.adamw).items():
                self.adamw.state[weight] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": file.get_tensor(f"exp_avg.{name}").to(weight),
                    "exp_avg_sq": file.get_tensor(f"exp_avg_sq.{name}").to(weight),
                }
            for muon in self.optimizers[1:]:
                for name, matrix in self.matrices.items():
                    momentum = file.get_tensor(f"momentum_buffer.{name}").to(matrix)
                    muon.state[matrix] = {"momentum_buffer": momentum}

    def _view(self, name: str) -> Tensor:
        weight = self.parameters[name].detach()
        matrix = as_matrix(weight)
        if matrix.data_ptr() != weight.data_ptr():
            raise ValueError(f"{name} must lie in memory with its channels last")
        return matrix

    def _moved_by(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        if optimizer is not self.adamw:
            return self.matrices
        return {name: p for name, p in self.parameters.items() if name not in self.matrices}

    def adopt_average(self) -> None:
        """Puts the moving average in the place of the weights."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(self.average[name])


def as_matrix(weight: Tensor) -> Tensor:
    """A weight ``(o, i)`` or ``(o, i, h, w)`` as the matrix that it multiplies by.

    It shares the memory of a kernel that lies there with its channels last.
    """
    return weight if weight.ndim == 2 else rearrange(weight, "o i h w -> o (h w i)")


def build_muon(matrices: Collection[Tensor], lr: float) -> torch.optim.Optimizer:
    """Muon with steps as large as AdamW's.

    Raises:
        ConsistError: PyTorch is older than 2.9.
    """
    if not hasattr(torch.optim, "Muon"):
        raise ConsistError(
            f"training mini needs PyTorch 2.9 or newer, for Muon; this is {torch.__version__}"
        )
    return torch.optim.Muon(
        list(matrices), lr=lr, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
    )


def lr_factor(step: int, steps: int, warmup: int) -> float:
    """Rises over ``warmup`` steps, holds, and falls in a line over the last quarter.

    >>> [round(lr_factor(step, 100, 10), 2) for step in (0, 20, 75, 90, 100)]
    [0.1, 1.0, 1.0, 0.4, 0.0]
    """
    return min(1.0, (step + 1) / warmup, 4 * (1 - step / steps))


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
        trainee = Trainee(modules, lr, self.folder / f"{stage}.safetensors", muon)
        saved = time.monotonic()
        late = False
        while trainee.step < steps and not late:
            value = loss(trainee.step)
            trainee.update(value, lr_factor(trainee.step, steps, self.recipe.warmup))
            if trainee.step % 20 == 0:
                self.report(stage, trainee.step, steps, value.item())
            now = time.monotonic()
            late = now - self.started > 60 * self.recipe.minutes
            if late or trainee.step == steps or now - saved > self.recipe.checkpoint_s:
                trainee.save()
                saved = now
        trainee.adopt_average()
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
