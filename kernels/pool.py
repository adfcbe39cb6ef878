"""A bank of shared tokens as the attention kernel reads it: in blocks, with a table of them.

Knows nothing of ``consist``. Axes as in ``consist_kernels.shared_attention``, and ``s`` token of
the bank.
"""

import functools
from dataclasses import dataclass

import torch
from consist_kernels.pack import gather_tokens
from consist_kernels.shared_attention import NEVER, shared_attention
from consist_kernels.tiles import Tile, choose_tile, name_device
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Where the tokens of a bank stand in blocks, and the blocks that each image sees."""

    index: Tensor | None  # token in each slot, int32 (p,); None: as in the bank
    bias: Tensor | None  # log-weight of each slot, float32 (p,): 0, or NEVER in one to spare
    table: Tensor  # int32 (n, m)
    counts: Tensor  # int32 (n,)


def attend_bank(
    q: Tensor, k: Tensor, v: Tensor, bank_k: Tensor, bank_v: Tensor, owner: Tensor,
    bias: Tensor | None = None, visible: Tensor | None = None, tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """Attends to the own tokens and to the visible ones of the bank, in one softmax.

    A bank whose owners ascend and fill whole blocks is read in place; else its tokens are gathered
    once, for all images together.

    Args:
        q, k, v: Queries, own keys and own values ``(g n) h l d``, as in ``shared_attention``.
        bank_k, bank_v: Keys and values ``(g h s d)`` of the bank; ``s`` may be 0.
        owner: Image that each token comes from, int64 ``(s,)`` on the CPU; see ``block_table``.
        bias: Natural logarithm of the weight of each token, float32 ``(s,)``, finite. None: 0.
        visible: Whether an image sees an owner's tokens, bool ``(n, owners)`` on the CPU.
        tile: None is that of ``choose_tile``.

    Returns:
        ``(g n) h l d``, as ``shared_attention``.

    Raises:
        ValueError: As ``shared_attention``; ``visible`` is for another number of images.
    """
    tile = tile or choose_tile(q.shape[-1], q.shape[2], name_device(q.device))
    layout = lay_out(owner, visible, q.shape[0] // bank_k.shape[0], tile.keys, q.device)
    if layout.index is not None:
        bank_k, bank_v = (gather_tokens(x, layout.index) for x in (bank_k, bank_v))
        bias = layout.bias if bias is None else layout.bias + bias.index_select(0, layout.index)
    return shared_attention(
        q, k, v, bank_k, bank_v, layout.table, layout.counts, bias, tile
    )  # fmt: skip


def lay_out(
    owner: Tensor, visible: Tensor | None, images: int, block: int, device: torch.device
) -> Layout:
    """The layout of a bank on a device: the same one for each bank with these owners.

    All layers of a grid, both guidance halves and, unless masks change, all steps share one, so
    that nothing is built or copied to the device anew. Arguments as for ``block_table``.

    Raises:
        ValueError: ``visible`` is for another number of images.
    """
    # runs of owners are few, whatever the number of tokens
    owners, lengths = owner.unique_consecutive(return_counts=True)
    seen = None if visible is None else tuple(map(tuple, visible.tolist()))
    return _lay_out(tuple(owners.tolist()), tuple(lengths.tolist()), seen, images, block, device)


# as many as a UNet has grids, for some steps whose masks differ
@functools.lru_cache(maxsize=64)
def _lay_out(
    owners: tuple[int, ...],
    lengths: tuple[int, ...],
    seen: tuple[tuple[bool, ...], ...] | None,
    images: int,
    block: int,
    device: torch.device,
) -> Layout:
    owner = torch.tensor(owners, dtype=torch.int64).repeat_interleave(
        torch.tensor(lengths, dtype=torch.int64)
    )
    visible = None if seen is None else torch.tensor(seen, dtype=torch.bool)
    order, table, counts = block_table(owner, visible, images, block)
    in_place = torch.equal(order, torch.arange(len(owner)))
    bias = torch.zeros(len(order)).masked_fill(order < 0, NEVER.value)
    return Layout(
        index=None if in_place else order.clamp(min=0).int().to(device),
        bias=None if in_place else bias.to(device),
        table=table.to(device),
        counts=counts.to(device),
    )


def block_table(
    owner: Tensor, visible: Tensor | None, images: int, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Lays tokens out in blocks of one owner each, and lists the blocks that each image sees.

    Args:
        owner: Image that each token comes from, int64 ``(s,)``; from ``images`` on, none of the
            batch. No image sees a block that it owns.
        visible: Whether an image sees an owner's tokens, bool ``(n, owners)``. None: all.
        images: Images ``n`` in each guidance half.
        block: Slots in a block.

    Returns:
        order: Token in each slot, int64 ``(p,)``, ``p`` a multiple of ``block``; -1 in the slots
            that fill up an owner's last block.
        table: Blocks seen, int32 ``(n, m)``; only the first ``counts`` of each row count.
        counts: Number of blocks seen, int32 ``(n,)``.

    Raises:
        ValueError: ``visible`` is for another number of images.

    >>> order, table, counts = block_table(torch.tensor([1, 0, 1, 1]), None, 2, 2)
    >>> order.tolist(), table.tolist(), counts.tolist()
    ([1, -1, 0, 2, 3, -1], [[1, 2], [0, 1]], [2, 1])
    """
    if visible is not None and visible.shape[0] != images:
        raise ValueError(f"visible is for {visible.shape[0]} images, the batch has {images}")
    owners, tokens = owner.unique(return_counts=True)
    blocks = (tokens + block - 1) // block
    before = (blocks * block).cumsum(0) - blocks * block - (tokens.cumsum(0) - tokens)
    order = torch.full((int(blocks.sum()) * block,), -1)
    order[torch.arange(len(owner)) + before.repeat_interleave(tokens)] = owner.argsort(stable=True)
    block_owner = owners.repeat_interleave(blocks)
    seen = block_owner != torch.arange(images)[:, None]
    if visible is not None:
        seen &= visible[:, block_owner]
    counts = seen.sum(1, dtype=torch.int32)
    table = seen.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return order, table[:, : int(counts.max())].to(torch.int32), counts
