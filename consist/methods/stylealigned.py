"""Sharing of the first image's style: StyleAligned's shared attention, arXiv:2312.02133."""

import math
from dataclasses import dataclass, replace

from einops import rearrange
from torch import Tensor

from consist.attention.adain import affine
from consist.attention.bank import Bank
from consist.attention.method import CACHE, PROCESSES, Site
from consist.methods.shared import Shared


@dataclass(frozen=True, kw_only=True)
class StyleAligned(
    Shared,
    name="stylealigned",
    sees="the first image, to which queries and keys are normalized",
    after="StyleAligned, arXiv:2312.02133",
):
    """Every image attends to the reference, the first image, with queries and keys brought to it.

    ``softmax(Q^_i [K^_i, s K^_r]^T / sqrt(d) + [0, ln w]) [V_i, V_r]``, where ``Q^`` and ``K^`` are
    ``adain`` of queries and keys to those of the reference ``r`` of the same guidance half; values
    stay as they are. ``s`` is ``scale`` and ``w`` is ``strength``: the ``shared_score_scale`` and,
    for ``ln w``, the ``shared_score_shift`` of the paper's code (google/style-aligned, 2faf0af),
    which takes w = 2 for a real picture as the reference. The reference is drawn as if alone.

    The shared norms of that code, which are off for sets of SDXL pictures, are no part of it.

    Args:
        anchors: The reference; 1 is all that is allowed.
        layers: Where it shares, as beginnings of dotted layer names; here everywhere.
        scale: The factor of the reference's keys for the other images, above 0.

    Raises:
        ValueError: A field is out of its range, when made.
    """

    anchors: int | str = 1
    layers: tuple[str, ...] = ("down_blocks", "mid_block", "up_blocks")
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anchors != 1:
            raise ValueError(f"anchors is {self.anchors!r}; allowed: 1, the reference")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale is {self.scale}; allowed: finite and above 0")

    def obstacle(self, use: str) -> str:
        """What is normalized to an anchor needs it in the same batch."""
        if use in (CACHE, PROCESSES):
            return "queries and keys of each picture are brought to those of an anchor beside it"
        return super().obstacle(use)

    def rewrite(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys ``(g n) h l d`` brought to the reference, and the values as given."""
        if not self._is_open(site):
            return q, k, v
        return align(q, site.n), align(k, site.n), v

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Bank | None:
        """The reference's tokens, for rewritten q, k, v ``(g n) h l d``; else as ``Shared``."""
        bank = super().__call__(q, k, v, site)
        return None if bank is None else replace(bank, k=self.scale * bank.k)


def align(x: Tensor, images: int) -> Tensor:
    """``adain`` of ``(g n) h l d`` to the first of the ``images`` of the same guidance half."""
    x = rearrange(x, "(g n) h l d -> n g h l d", n=images)
    return rearrange(adain(x, x[0]), "n g h l d -> (g n) h l d")


def adain(x: Tensor, reference: Tensor, eps: float = 1e-5) -> Tensor:
    """Gives each channel the mean and deviation, over the tokens, that it has in the reference.

    ``s(y) (x - m(x)) / s(x) + m(y)`` with ``s = sqrt(variance + eps)``: adaptive instance
    normalization, arXiv:1703.06868, eq. 8. Variances are divided by the tokens, as there;
    StyleAligned's code divides by one less, which cancels but for ``eps``.

    Args:
        x: ``(... l d)``; never changed.
        reference: ``(... m d)``, to be broadcast with ``x`` except for its tokens.
        eps: Added to variances, above 0.

    Returns:
        ``(... l d)``; exactly ``x`` if it is its own reference. At least float32 inside, dtype of
        ``x`` out.

    >>> adain(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [7.0]])).round(decimals=3)
    tensor([[1.],
            [7.]])
    """
    gain, shift = affine(x, reference, eps)
    # in this order, so that a gain of 1 and equal means change no bit
    return (x * gain + shift).to(x.dtype)
