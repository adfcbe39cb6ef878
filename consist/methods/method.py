"""What a method is, and what it is told of the place where it is asked.

A method never computes attention and never sees diffusers.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from consist.sharing import Bank


@dataclass(frozen=True, kw_only=True)
class Site:
    """One self-attention call: where in the UNet, when in denoising, and for which batch."""

    layer: str  # dotted name, such as up_blocks.0.attentions.1.transformer_blocks.0.attn1
    height: int  # tokens
    width: int  # tokens
    progress: float  # 0 at pure noise, 1 finished
    g: int  # guidance halves
    n: int  # images in each half
    seed: int = 0
    # where the subject is, as known from the steps before: bool (n, height * width) on the CPU
    masks: Tensor | None = field(default=None, compare=False, repr=False)

    def generator(self, scope: str | None = None) -> torch.Generator:
        """A new generator on the CPU for the random choices of this call.

        It depends on seed, scope and progress alone: not on the global one, nor on how many calls
        came before. Every call gives it anew, from its start.

        Args:
            scope: What the calls have in common that make the same choices; by default the layer.
        """
        # rounded, so that a progress computed in another precision gives the same choices
        key = f"{self.seed}/{scope or self.layer}/{self.progress:.5f}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class Method(Protocol):
    """Says what the images of a batch share in the layers that it covers."""

    def covers(self, layer: str) -> bool:
        """Whether the self-attention layer of that dotted name is asked at all."""

    def anchor_count(self, images: int) -> int:
        """How many of ``images`` images, the first ones, must be drawn in every batch."""

    def anchor_images(self, site: Site) -> tuple[int, ...]:
        """The images of the batch whose tokens are shared, in ascending order."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Bank | None:
        """What is shared at this site, for q, k, v ``(g n) h l d``; None: nothing."""


@runtime_checkable
class Masked(Method, Protocol):
    """A method that must be told where the subject is: it reads ``masks`` of a site."""

    @property
    def subject(self) -> tuple[str, ...]:
        """The phrases of the prompts that name it; none: what all prompts start with."""
