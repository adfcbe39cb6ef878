"""The neutral element: every image for itself."""

from dataclasses import dataclass

from torch import Tensor

from consist.attention.bank import Bank
from consist.attention.method import Site


@dataclass(frozen=True, kw_only=True)
class Isolated:
    """Plain self-attention; the baseline of every comparison.

    It covers all layers, so that it takes the same path through the code as a real method.
    """

    def covers(self, layer: str) -> bool:
        """Whether ``layer`` is covered: always."""
        return True

    def anchor_count(self, images: int) -> int:
        """How many images must be drawn in every batch: none."""
        return 0

    def anchor_images(self, site: Site) -> tuple[int, ...]:
        """The images whose tokens are shared: none."""
        return ()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Bank | None:
        """What is shared: nothing."""
        return None
