# mypy: disable-error-code="no-untyped-def"
"""Attention of each image to its own tokens and to shared ones, in one Triton kernel.

Knows nothing of ``consist``: plain tensors in, a plain tensor out. Axes: ``g`` guidance half,
``n`` image, ``h`` head, ``l`` token, ``p`` slot of the pool, ``m`` entry of the block table, ``d``
head size. A pool is a bank with each owner's tokens in whole blocks; see ``consist_kernels.pool``.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from consist_kernels.tiles import Tile, choose_tile, name_device
from torch import Tensor

# log-weight of what is not there: finite, since the difference of two infinities is not a number
NEVER = tl.constexpr(-1e30)
LN_2 = tl.constexpr(math.log(2))
LOG2_E = 1 / math.log(2)
DTYPES = (torch.float16, torch.bfloat16)


@triton.jit
def _load_tile(
    x, start, rows, row_step, step, ROWS: tl.constexpr, FIRST: tl.constexpr, COLUMNS: tl.constexpr,
    D: tl.constexpr, WHOLE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """ROWS rows from ``start``, COLUMNS columns from FIRST of the matrix ``(rows, D)`` at ``x``.

    0 beyond its edges; with WHOLE no row is. UPCAST: as float32.
    """
    row = tl.arange(0, ROWS)[:, None]
    column = FIRST + tl.arange(0, COLUMNS)[None, :]
    x += tl.cast(start, tl.int64) * row_step
    x += row.to(tl.int64) * row_step + column * step
    if not WHOLE:
        tile = tl.load(x, mask=(row < rows - start) & (column < D), other=0.0)
    elif FIRST + COLUMNS > D:
        tile = tl.load(x, mask=column < D, other=0.0)
    else:
        tile = tl.load(x)
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit
def _score(
    q, q_rest, k, start, rows, row_step, step, ROWS: tl.constexpr, D0: tl.constexpr,
    D1: tl.constexpr, D: tl.constexpr, WHOLE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Products of the queries with a tile of ROWS keys, the two parts of a head added up."""
    tile = _load_tile(k, start, rows, row_step, step, ROWS, 0, D0, D, WHOLE, UPCAST)
    scores = tl.dot(q, tl.trans(tile))
    if D1 > 0:
        rest = _load_tile(k, start, rows, row_step, step, ROWS, D0, D1, D, WHOLE, UPCAST)
        scores = tl.dot(q_rest, tl.trans(rest), scores)
    return scores


@triton.jit
def _weigh(scores, weight, highest):
    """One step of the running softmax: new weights, and what shrinks the old ones.

    ``scores`` are binary logarithms.
    """
    higher = tl.maximum(highest, tl.max(scores, 1))
    shrink = tl.exp2(highest - higher)
    p = tl.exp2(scores - higher[:, None])
    return p, shrink, weight * shrink + tl.sum(p, 1), higher


@triton.jit
def _shared_attention_kernel(
    q, k, v, pool_k, pool_v, out, lse, table, counts, bias,
    q_row, q_head, q_token, q_step,
    k_row, k_head, k_token, k_step,
    v_row, v_head, v_token, v_step,
    pk_half, pk_head, pk_slot, pk_step,
    pv_half, pv_head, pv_slot, pv_step,
    out_row, out_head, out_token, out_step,
    table_image, images, queries, keys, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WHOLE_M: tl.constexpr, WHOLE_N: tl.constexpr,
    UNIT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``softmax(q [pool_k, k]^T scale + [bias, 0]) [pool_v, v]`` for BLOCK_M queries of one head.

    Grid: tiles of queries, heads, rows ``(g n)``; BLOCK_N keys at a time, the pool's first. Scores,
    weights and totals are float32; ``scale`` and ``bias`` give binary logarithms. A head is held in
    parts of D0 and D1 columns, where D1 may be 0. WHOLE_M, WHOLE_N: no tile of queries, of own keys
    is cut. UNIT divides head strides. UPCAST: float32 products.
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
    total = tl.zeros((BLOCK_M, D0), tl.float32)
    wanted = _load_tile(q, first, queries, q_token, q_step, BLOCK_M, 0, D0, D, WHOLE_M, UPCAST)
    wanted_rest = wanted
    if D1 > 0:
        total_rest = tl.zeros((BLOCK_M, D1), tl.float32)
        wanted_rest = _load_tile(
            q, first, queries, q_token, q_step, BLOCK_M, D0, D1, D, WHOLE_M, UPCAST
        )
    lane = tl.arange(0, BLOCK_N)
    for i in range(tl.load(counts + image)):
        start = tl.load(table + i).to(tl.int64) * BLOCK_N
        scores = scale * _score(
            wanted,
            wanted_rest,
            pool_k,
            start,
            0,
            pk_slot,
            pk_step,
            BLOCK_N,
            D0,
            D1,
            D,
            True,
            UPCAST,
        )
        if bias is not None:
            scores += tl.load(bias + start + lane)[None, :]
        p, shrink, weight, highest = _weigh(scores, weight, highest)
        tile = _load_tile(pool_v, start, 0, pv_slot, pv_step, BLOCK_N, 0, D0, D, True, UPCAST)
        total = tl.dot(p.to(tile.dtype), tile, total * shrink[:, None])
        if D1 > 0:
            rest = _load_tile(pool_v, start, 0, pv_slot, pv_step, BLOCK_N, D0, D1, D, True, UPCAST)
            total_rest = tl.dot(p.to(rest.dtype), rest, total_rest * shrink[:, None])
    for start in range(0, keys, BLOCK_N):
        scores = scale * _score(
            wanted,
            wanted_rest,
            k,
            start,
            keys,
            k_token,
            k_step,
            BLOCK_N,
            D0,
            D1,
            D,
            WHOLE_N,
            UPCAST,
        )
        if not WHOLE_N:
            scores = tl.where((lane < keys - start)[None, :], scores, NEVER)
        p, shrink, weight, highest = _weigh(scores, weight, highest)
        tile = _load_tile(v, start, keys, v_token, v_step, BLOCK_N, 0, D0, D, WHOLE_N, UPCAST)
        total = tl.dot(p.to(tile.dtype), tile, total * shrink[:, None])
        if D1 > 0:
            rest = _load_tile(v, start, keys, v_token, v_step, BLOCK_N, D0, D1, D, WHOLE_N, UPCAST)
            total_rest = tl.dot(p.to(rest.dtype), rest, total_rest * shrink[:, None])
    token = first + tl.arange(0, BLOCK_M).to(tl.int64)
    there = token < queries
    out += token[:, None] * out_token
    column = tl.arange(0, D0)[None, :]
    total *= (1.0 / weight)[:, None]
    kept = total.to(out.dtype.element_ty)
    tl.store(out + column * out_step, kept, mask=there[:, None] & (column < D))
    if D1 > 0:
        column = D0 + tl.arange(0, D1)[None, :]
        total_rest *= (1.0 / weight)[:, None]
        kept = total_rest.to(out.dtype.element_ty)
        tl.store(out + column * out_step, kept, mask=there[:, None] & (column < D))
    if lse is not None:
        lse += (row * tl.num_programs(1) + head) * queries
        tl.store(lse + token, (highest + tl.log2(weight)) * LN_2, mask=there)


# without a GPU the kernel runs only if TRITON_INTERPRET=1 was set before this module was imported
INTERPRETED = not isinstance(_shared_attention_kernel, triton.JITFunction)


def split_head(d: int) -> tuple[int, int]:
    """Two powers of two that hold a head, the second of which may be 0: matrix units take no other.

    >>> [split_head(d) for d in (8, 40, 64, 80, 96, 128, 160)]
    [(16, 0), (32, 16), (64, 0), (64, 16), (64, 32), (128, 0), (128, 32)]
    """
    first = max(16, 1 << (d.bit_length() - 1))
    return first, max(16, triton.next_power_of_2(d - first)) if d > first else 0


def shared_attention(
    q: Tensor, k: Tensor, v: Tensor, pool_k: Tensor, pool_v: Tensor, table: Tensor, counts: Tensor,
    bias: Tensor | None = None, tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """Attends to the own tokens and to the listed blocks of a pool, in one softmax and one launch.

    ``softmax(q [pool_k, k]^T / sqrt(d) + [bias, 0]) [pool_v, v]``: FlashAttention
    (arXiv:2205.14135, algorithm 1) over two lists of tiles; nothing is copied per image. It is the
    operator ``torch.ops.consist.shared_attention``, whole to ``torch.compile``.

    Args:
        q: Queries ``(g n) h l d`` of any strides, float16 or bfloat16; ``d`` is a multiple of 8 up
            to 160. On a CUDA device, or on any in Triton's interpreter.
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
    _refuse_gradients(q, k, v, pool_k, pool_v)
    return _launch(q, k, v, pool_k, pool_v, table, counts, bias, list(tile or ()), False)[0]


def shared_attention_lse(
    q: Tensor, k: Tensor, v: Tensor, pool_k: Tensor, pool_v: Tensor, table: Tensor, counts: Tensor,
    bias: Tensor | None = None, tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As ``shared_attention``, and the logarithm of what its softmax divides by.

    Returns:
        ``(g n) h l d``, and the natural logarithm of the sum of the exponentials of all scores,
        float32 ``(g n) h l``: what merges this with attention to still other keys.
    """
    _refuse_gradients(q, k, v, pool_k, pool_v)
    return _launch(q, k, v, pool_k, pool_v, table, counts, bias, list(tile or ()), True)


@torch.library.custom_op("consist::shared_attention", mutates_args=())
def _launch(
    q: Tensor, k: Tensor, v: Tensor, pool_k: Tensor, pool_v: Tensor, table: Tensor, counts: Tensor,
    bias: Tensor | None, tile: Sequence[int], with_lse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    default = choose_tile(q.shape[3], q.shape[2], name_device(q.device))
    chosen = Tile(*tile) if tile else default
    _check(q, k, v, pool_k, pool_v, table, counts, bias, chosen.keys)
    out, lse = _empty_outputs(q, with_lse)
    tensors = (q, k, v, pool_k, pool_v, out)
    first, rest = split_head(q.shape[3])
    with torch.cuda.device_of(q):
        _shared_attention_kernel[triton.cdiv(q.shape[2], chosen.queries), q.shape[1], q.shape[0]](
            *(*tensors, lse if with_lse else None, table.contiguous(), counts.contiguous()),
            None if bias is None else bias * LOG2_E,
            *(stride for x in tensors for stride in x.stride()),
            *(table.shape[1], table.shape[0], q.shape[2], k.shape[2]),
            q.shape[3] ** -0.5 * LOG2_E,
            D=q.shape[3],
            D0=first,
            D1=rest,
            BLOCK_M=chosen.queries,
            BLOCK_N=chosen.keys,
            WHOLE_M=q.shape[2] % chosen.queries == 0,
            WHOLE_N=k.shape[2] % chosen.keys == 0,
            # what is known of heads of 40, which are no multiple of 16, to load 16 bytes at a time
            UNIT=math.gcd(8, *(x.stride(1) for x in tensors)),
            # the interpreter multiplies the bit patterns of bfloat16 (triton #11584)
            UPCAST=INTERPRETED and q.dtype == torch.bfloat16,
            num_warps=chosen.warps,
            num_stages=chosen.stages,
            enable_fp_fusion=True,
        )
    return out, lse


@_launch.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, pool_k: Tensor, pool_v: Tensor, table: Tensor, counts: Tensor,
    bias: Tensor | None, tile: Sequence[int], with_lse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _empty_outputs(q, with_lse)


def _empty_outputs(q: Tensor, with_lse: bool) -> tuple[Tensor, Tensor]:
    # an operator cannot leave an output out, but it may be empty
    rows = q.shape[:3] if with_lse else (0,)
    return torch.empty_like(q), torch.empty(rows, dtype=torch.float32, device=q.device)


def _refuse_gradients(*given: Tensor) -> None:
    if torch.is_grad_enabled() and any(x.requires_grad for x in given):
        raise ValueError("gradients are asked for; allowed: forward only, such as in no_grad()")


def _check(
    q: Tensor, k: Tensor, v: Tensor, pool_k: Tensor, pool_v: Tensor, table: Tensor, counts: Tensor,
    bias: Tensor | None, block: int,
) -> None:  # fmt: skip
    if q.dtype not in DTYPES:
        raise ValueError(f"dtype is {q.dtype}; allowed: float16, bfloat16")
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
