# mypy: disable-error-code="no-untyped-def"
"""Attention of each image to its own tokens and to shared ones, in one Triton kernel.

Knows nothing of ``consist``: plain tensors in, a plain tensor out. Axes: ``g`` guidance half,
``n`` image, ``h`` head, ``l`` token, ``s`` token of the bank, ``p`` slot of the pool, ``m`` entry
of the block table, ``d`` head size. A pool is a bank with each owner's tokens in whole blocks.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# log-weight of what is not there: finite, since the difference of two infinities is not a number
NEVER = tl.constexpr(-1e30)
LOG2_E = 1 / math.log(2)


class Tile(NamedTuple):
    """What one program attends at a time, and how it is compiled; sizes are powers of two."""

    queries: int  # tokens, 16 and above
    keys: int  # tokens, 16 and above; also the block of the pool
    warps: int
    stages: int  # tiles of keys in flight


# by padded head size and bytes per number; chosen by resources on sm_90, not by time
TILES = {(d, 4): Tile(16, 32, 4, 2) for d in (64, 128, 256)} | {
    (64, 2): Tile(128, 64, 4, 3),
    (128, 2): Tile(128, 64, 8, 2),
    (256, 2): Tile(128, 64, 8, 2),
}


@triton.jit
def _load_tile(
    x, start, rows, row_step, step, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """ROWS rows from ``start`` on of the matrix ``(rows, D)`` at ``x``; 0 beyond its edges."""
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK_D)[None, :]
    x += tl.cast(start, tl.int64) * row_step
    x += row.to(tl.int64) * row_step + column * step
    if not WHOLE:
        tile = tl.load(x, mask=(row < rows - start) & (column < D), other=0.0)
    elif BLOCK_D != D:
        tile = tl.load(x, mask=column < D, other=0.0)
    else:
        tile = tl.load(x)
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit
def _add_tile(total, weight, highest, scores, v):
    """Adds a tile of values to the running softmax; ``scores`` are binary logarithms."""
    higher = tl.maximum(highest, tl.max(scores, 1))
    shrink = tl.exp2(highest - higher)
    p = tl.exp2(scores - higher[:, None])
    weight = weight * shrink + tl.sum(p, 1)
    total = tl.dot(p.to(v.dtype), v, total * shrink[:, None], input_precision="ieee")
    return total, weight, higher


@triton.jit
def _shared_attention_kernel(
    q, k, v, pool_k, pool_v, out, table, counts, bias,
    q_row, q_head, q_token, q_step,
    k_row, k_head, k_token, k_step,
    v_row, v_head, v_token, v_step,
    pk_half, pk_head, pk_slot, pk_step,
    pv_half, pv_head, pv_slot, pv_step,
    out_row, out_head, out_token, out_step,
    table_image, images, queries, keys, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    WHOLE_M: tl.constexpr, WHOLE_N: tl.constexpr, UNIT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``softmax(q [pool_k, k]^T scale + [bias, 0]) [pool_v, v]`` for BLOCK_M queries of one head.

    Grid: tiles of queries, heads, rows ``(g n)``; BLOCK_N keys at a time, the pool's first. Scores,
    weights and totals are float32; ``scale`` and ``bias`` give binary logarithms. WHOLE_M, WHOLE_N:
    no tile of queries, of own keys is cut. UNIT divides head strides. UPCAST: float32 products.
    """
    first = tl.program_id(0) * BLOCK_M
    head, row = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    half, image = row // images, row % images
    q += row * q_row + tl.multiple_of(head * q_head, UNIT)
    k += row * k_row + tl.multiple_of(head * k_head, UNIT)
    v += row * v_row + tl.multiple_of(head * v_head, UNIT)
    pool_k += half * pk_half + tl.multiple_of(head * pk_head, UNIT)
    pool_v += half * pv_half + tl.multiple_of(head * pv_head, UNIT)
    out += row * out_row + tl.multiple_of(head * out_head, UNIT)
    table += image * table_image
    highest = tl.full((BLOCK_M,), NEVER, tl.float32)
    weight = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    wanted = _load_tile(q, first, queries, q_token, q_step, BLOCK_M, D, BLOCK_D, WHOLE_M, UPCAST)
    lane = tl.arange(0, BLOCK_N)
    for i in range(tl.load(counts + image)):
        start = tl.load(table + i).to(tl.int64) * BLOCK_N
        tile = _load_tile(pool_k, start, 0, pk_slot, pk_step, BLOCK_N, D, BLOCK_D, True, UPCAST)
        scores = tl.dot(wanted, tl.trans(tile), input_precision="ieee") * scale
        if bias is not None:
            scores += tl.load(bias + start + lane)[None, :]
        tile = _load_tile(pool_v, start, 0, pv_slot, pv_step, BLOCK_N, D, BLOCK_D, True, UPCAST)
        total, weight, highest = _add_tile(total, weight, highest, scores, tile)
    for start in range(0, keys, BLOCK_N):
        tile = _load_tile(k, start, keys, k_token, k_step, BLOCK_N, D, BLOCK_D, WHOLE_N, UPCAST)
        scores = tl.dot(wanted, tl.trans(tile), input_precision="ieee") * scale
        if not WHOLE_N:
            scores = tl.where((lane < keys - start)[None, :], scores, NEVER)
        tile = _load_tile(v, start, keys, v_token, v_step, BLOCK_N, D, BLOCK_D, WHOLE_N, UPCAST)
        total, weight, highest = _add_tile(total, weight, highest, scores, tile)
    total *= (1.0 / weight)[:, None]
    token = first + tl.arange(0, BLOCK_M).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK_D)[None, :]
    out += token * out_token + column * out_step
    tl.store(out, total.to(out.dtype.element_ty), mask=(token < queries) & (column < D))


# without a GPU the kernel runs only if TRITON_INTERPRET=1 was set before this module was imported
INTERPRETED = not isinstance(_shared_attention_kernel, triton.JITFunction)


def choose_tile(d: int, dtype: torch.dtype) -> Tile:
    """The tile for heads of size ``d``, which is padded to a power of two, 64 and above.

    Raises:
        ValueError: The kernel is not for this head size or dtype.
    """
    if d not in range(8, 161, 8):
        raise ValueError(f"head size is {d}; allowed: multiples of 8 up to 160")
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"dtype is {dtype}; allowed: float16, bfloat16, float32")
    return TILES[max(64, triton.next_power_of_2(d)), dtype.itemsize]


def shared_attention(
    q: Tensor, k: Tensor, v: Tensor, pool_k: Tensor, pool_v: Tensor, table: Tensor, counts: Tensor,
    bias: Tensor | None = None, tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """Attends to the own tokens and to the listed blocks of a pool, in one softmax and one launch.

    ``softmax(q [pool_k, k]^T / sqrt(d) + [bias, 0]) [pool_v, v]``: FlashAttention
    (arXiv:2205.14135, algorithm 1) over two lists of tiles; nothing is copied per image.

    Args:
        q: Queries ``(g n) h l d`` of any strides, float16, bfloat16 or float32; ``d`` is a multiple
            of 8 up to 160. On a CUDA device, or on any in Triton's interpreter.
        k, v: Own keys and values ``(g n) h l d``, of any number of tokens from 1.
        pool_k, pool_v: Keys and values ``(g h p d)``; ``p`` is a multiple of the tile's ``keys``,
            and may be 0.
        table: Blocks that each image sees, in both guidance halves, each in its half of the pool:
            int32 ``(n, m)``, below ``p / keys``, which is not checked.
        counts: How many entries of its row of the table each image sees, int32 ``(n,)``, 0 to m.
        bias: Natural logarithm of the weight of each slot, float32 ``(p,)``, finite. None: 0.
        tile: None is that of ``choose_tile``.

    Returns:
        ``(g n) h l d``, in the dtype of ``q`` and, if it is dense, with its strides.

    Raises:
        ValueError: A shape, dtype or device is not as above, or gradients are asked for.
    """
    default = choose_tile(q.shape[-1], q.dtype)
    tile = tile or default
    _check(q, k, v, pool_k, pool_v, table, counts, bias, tile.keys)
    out = torch.empty_like(q)
    tensors = (q, k, v, pool_k, pool_v, out)
    with torch.cuda.device_of(q):
        _shared_attention_kernel[triton.cdiv(q.shape[2], tile.queries), q.shape[1], q.shape[0]](
            *(*tensors, table.contiguous(), counts.contiguous()),
            None if bias is None else bias * LOG2_E,
            *(stride for x in tensors for stride in x.stride()),
            *(table.shape[1], table.shape[0], q.shape[2], k.shape[2]),
            q.shape[3] ** -0.5 * LOG2_E,
            D=q.shape[3],
            BLOCK_D=max(64, triton.next_power_of_2(q.shape[3])),
            BLOCK_M=tile.queries,
            BLOCK_N=tile.keys,
            WHOLE_M=q.shape[2] % tile.queries == 0,
            WHOLE_N=k.shape[2] % tile.keys == 0,
            # what is known of heads of 40, which are no multiple of 16, to load 16 bytes at a time
            UNIT=math.gcd(8, *(x.stride(1) for x in tensors)),
            # the interpreter multiplies the bit patterns of bfloat16 (triton #11584)
            UPCAST=INTERPRETED and q.dtype == torch.bfloat16,
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=True,
        )
    return out


def _check(
    q: Tensor, k: Tensor, v: Tensor, pool_k: Tensor, pool_v: Tensor, table: Tensor, counts: Tensor,
    bias: Tensor | None, block: int,
) -> None:  # fmt: skip
    (b, h, _, d), (g, _, slots, _), m = q.shape, pool_k.shape, table.shape[-1]
    own, pool = (b, h, k.shape[-2], d), (g, h, slots, d)
    wanted: list[tuple[str, Tensor, tuple[int, ...], torch.dtype]] = [
        *(("k", k, own, q.dtype), ("v", v, own, q.dtype)),
        *(("pool_k", pool_k, pool, q.dtype), ("pool_v", pool_v, pool, q.dtype)),
        *(("table", table, (b // g, m), torch.int32), ("counts", counts, (b // g,), torch.int32)),
        *(() if bias is None else (("bias", bias, (slots,), torch.float32),)),
    ]
    for name, x, shape, dtype in wanted:
        given, allowed = (tuple(x.shape), x.dtype, x.device), (shape, dtype, q.device)
        if given != allowed:
            raise ValueError(f"{name} is {given}; allowed: {allowed}")
    if b % g or slots % block or not k.shape[2]:
        sizes = f"{b} rows, {g} guidance halves, {slots} slots, {k.shape[2]} own keys"
        raise ValueError(f"{sizes}; allowed: equal halves, blocks of {block}, at least one key")
    if not INTERPRETED and not q.is_cuda:
        raise ValueError(f"tensors are on {q.device}; allowed: cuda, unless TRITON_INTERPRET=1")
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, pool_k, pool_v)):
        raise ValueError("gradients are asked for; allowed: forward only, such as in no_grad()")


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
    tile = tile or choose_tile(q.shape[-1], q.dtype)
    images = q.shape[0] // bank_k.shape[0]
    order, table, counts = block_table(owner, visible, images, tile.keys)
    if not torch.equal(order, torch.arange(len(owner))):
        filled = (order >= 0).to(q.device, non_blocking=True)
        index = order.clamp(min=0).int().to(q.device, non_blocking=True)
        bias = torch.zeros(len(owner), device=q.device) if bias is None else bias
        bias = bias.index_select(0, index).where(filled, NEVER.value)
        bank_k, bank_v = bank_k.index_select(2, index), bank_v.index_select(2, index)
    table, counts = (x.to(q.device, non_blocking=True) for x in (table, counts))
    return shared_attention(q, k, v, bank_k, bank_v, table, counts, bias, tile)


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
