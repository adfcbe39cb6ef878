"""What learns of `mini`: moved by AdamW and Muon, at a rate that falls at the end.

It must not know pictures or models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from consist.errors import ConsistError
from consist.training.loop import Trainee

EMA = 0.999
WEIGHT_DECAY = 0.01


class MiniTrainee(Trainee):
    """Weights of a stage of training `mini`.

    AdamW moves all weights but those named in ``muon``. Those are hidden matrices and kernels, and
    Muon (Jordan et al. 2024) moves them by orthogonalized momentum, scaled so that AdamW's rate
    fits it (Liu et al. 2025, arXiv 2502.16982, equation 4).

    Args:
        modules: By name.
        lr: The highest rate.
        steps: In all.
        warmup: Steps in which the rate rises.
        muon: Names of weights, after the name of their module.

    Raises:
        ConsistError: ``muon`` names weights and PyTorch is older than 2.9.
        ValueError: It names a kernel that does not lie in memory with its channels last.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        lr: float,
        steps: int,
        warmup: int,
        muon: Collection[str] = (),
    ):
        named = {
            f"{prefix}.{name}": parameter
            for prefix, module in modules.items()
            for name, parameter in module.named_parameters()
        }
        self.matrices = {name: view_as_matrix(name, named[name]) for name in muon}
        adamw = torch.optim.AdamW(
            (p for name, p in named.items() if name not in self.matrices),
            lr=lr,
            betas=(0.9, 0.99),
            weight_decay=WEIGHT_DECAY,
            fused=True,
        )
        inner = [build_muon(self.matrices.values(), lr)] if self.matrices else []
        super().__init__(named, [adamw, *inner], averaged=True)
        self.steps = steps
        self.warmup = warmup

    def factor(self, step: int) -> float:
        """Rises, holds and falls."""
        return lr_factor(step, self.steps, self.warmup)

    def move(self) -> None:
        """Moves the weights, those of Muon as matrices."""
        for name, matrix in self.matrices.items():
            gradient = self.parameters[name].grad
            matrix.grad = None if gradient is None else as_matrix(gradient)
        super().move()

    def blend(self, average: Tensor, weight: Tensor) -> None:
        """Short at first, so that the random start is forgotten."""
        average.lerp_(weight, 1 - min(EMA, self.step / (self.step + 10)))


def view_as_matrix(name: str, weight: Tensor) -> Tensor:
    """A weight as the matrix that it multiplies by, in the memory of the weight.

    Raises:
        ValueError: It is a kernel that does not lie there with its channels last.
    """
    matrix = as_matrix(weight.detach())
    if matrix.data_ptr() != weight.data_ptr():
        raise ValueError(f"{name} must lie in memory with its channels last")
    return matrix


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
