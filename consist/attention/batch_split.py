"""The images of one batch dealt to several processes, which send each other what is shared.

Keys and values of the anchors travel once per self-attention call, packed, and masks of the subject
where a method reads them. All else stays where it is. It must not know methods or models. Axes as
in ``consist.attention.bank``; ``m`` are the images of one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor

from consist.attention.bank import Bank, pack


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Which images of a batch this process draws: image ``i`` is that of process ``i % count``.

    So the anchors, which are the first images, are spread evenly too.

    Raises:
        ValueError: There are fewer images than processes, or no such process.
    """

    images: int  # n, those of all processes
    rank: int  # this process
    count: int  # processes of the default group of torch.distributed

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count <= self.images:
            raise ValueError(
                f"process {self.rank} of {self.count} for {self.images} images; allowed: at least "
                "one image for each process"
            )

    @property
    def own(self) -> tuple[int, ...]:
        """The images of this process, ``m`` of them."""
        return tuple(range(self.rank, self.images, self.count))

    def pack(
        self, k: Tensor, v: Tensor, anchors: Sequence[int], *, bias: Tensor | None = None
    ) -> Bank:
        """The very bank that ``consist.attention.bank.pack`` makes of all images, in every process.

        Args:
            k: Keys ``(g m) h l d`` of the images of this process.
            v: Values ``(g m) h l d``.
            anchors: Different images, in [0, n).
            bias: As for ``consist.attention.bank.pack``.
        """
        both = rearrange([k, v], "kv (g m) h l d -> m kv g h l d", m=len(self.own))
        k, v = rearrange(self.collect(both, anchors), "a kv g h l d -> kv (g a) h l d")
        bank = pack(k, v, range(len(anchors)), images=len(anchors), bias=bias)
        return replace(bank, owner=torch.tensor(anchors)[bank.owner])

    def collect(self, x: Tensor, wanted: Sequence[int]) -> Tensor:
        """What all processes hold of some images, ``(m ...)`` of each, as ``(len(wanted) ...)``.

        Every process sends as many images as the one that has the most of them.
        """
        mine = [image // self.count for image in wanted if image % self.count == self.rank]
        sent = x.new_zeros(self.most(wanted), *x.shape[1:])
        sent[: len(mine)] = x[mine]
        received = x.new_empty(self.count * len(sent), *x.shape[1:])
        dist.all_gather_into_tensor(received, sent)
        seen = [0] * self.count
        rows = []
        for image in wanted:
            rank = image % self.count
            rows.append(rank * len(sent) + seen[rank])
            seen[rank] += 1
        return received[rows]

    def most(self, wanted: Sequence[int]) -> int:
        """How many of some images one process holds at most."""
        return max(
            sum(image % self.count == rank for image in wanted) for rank in range(self.count)
        )

    def localize(self, bank: Bank) -> Bank:
        """The bank of all images as those of this process see it, in a batch of ``m``.

        Args:
            bank: With owners counted as in ``images``; never changed.
        """
        here, mine = len(self.own), list(self.own)
        owners = 1 + max(self.images - 1, int(bank.owner.max()) if bank.owner.numel() else 0)
        # owners from elsewhere get numbers after those of the images here
        places = torch.arange(here, here + owners)
        places[mine] = torch.arange(here)
        visible = None
        if bank.visible is not None:
            visible = torch.zeros(here, here + owners, dtype=torch.bool)
            columns = places[: bank.visible.shape[1]]
            visible[:, columns] = bank.visible[mine][:, : len(columns)]
        return replace(bank, owner=places[bank.owner], visible=visible)
