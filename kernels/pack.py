# mypy: disable-error-code="no-untyped-def"
"""Tokens gathered into a pool, mapped on the way, and the Gram matrices that maps are made from.

Knows nothing of ``consist``; nothing here waits for the device. Axes: ``b`` matrix, ``s`` token,
``p`` slot, ``d`` feature.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS, FEATURES, DEPTH = 64, 64, 32  # what one product takes: rows, columns, and what is summed
CHUNK = 1024  # tokens whose Gram matrix one program sums up


@triton.jit
def _gather_kernel(
    x, index, matrix, shift, out, x_batch, x_token, x_step, slots, limit,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """``x[index] @ matrix + shift`` for ROWS slots and COLUMNS features of one matrix.

    Grid: tiles of slots, tiles of features, matrices. float32 inside, clamped to ``limit``.
    """
    slot = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    batch = tl.program_id(2).to(tl.int64)
    there, known = slot < slots, (column < D)[None, :]
    token = slot
    if index is not None:
        token = tl.load(index + slot, mask=there, other=0)
    x += batch * x_batch + token.to(tl.int64)[:, None] * x_token
    if matrix is None:
        total = tl.load(x + column[None, :] * x_step, mask=there[:, None] & known, other=0.0)
    else:
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        matrix += batch * D * D
        for start in range(0, D, DEPTH):
            depth = start + tl.arange(0, DEPTH)
            inside = depth < D
            tile = tl.load(
                x + depth[None, :] * x_step, mask=there[:, None] & inside[None, :], other=0.0
            )
            weights = tl.load(
                matrix + depth[:, None] * D + column[None, :],
                mask=inside[:, None] & known,
                other=0.0,
            )
            total = tl.dot(tile.to(tl.float32), weights, total, input_precision="tf32x3")
        if shift is not None:
            total += tl.load(shift + batch * D + column[None, :], mask=known, other=0.0)
        total = tl.minimum(tl.maximum(total, -limit), limit)
    out += (batch * slots + slot)[:, None] * D + column[None, :]
    tl.store(out, total.to(out.dtype.element_ty), mask=there[:, None] & known)


@triton.jit
def _load_centered(x, mean, unit, token, tokens, x_token, x_step, column, D: tl.constexpr):
    """Rows ``token`` and columns ``column`` of ``(x - mean) / unit`` in float32; 0 outside."""
    known = (token < tokens)[:, None] & (column < D)[None, :]
    place = token.to(tl.int64)[:, None] * x_token + column[None, :] * x_step
    tile = tl.load(x + place, mask=known, other=0.0).to(tl.float32)
    if mean is not None:
        tile -= tl.load(mean + column, mask=column < D, other=0.0)[None, :]
    return tl.where(known, tile / unit, 0.0)


@triton.jit
def _gram_kernel(
    x, mean, unit, out, x_batch, x_token, x_step, tokens, matrices,
    D: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """COLUMNS x COLUMNS of ``A^T A`` with ``A = (x - mean) / unit``, for CHUNK tokens.

    Grid: chunks, tiles of the Gram matrix, matrices. Products and sums are float32.
    """
    chunk, tile, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    across = tl.cdiv(D, COLUMNS)
    left = tile // across * COLUMNS + tl.arange(0, COLUMNS)
    right = tile % across * COLUMNS + tl.arange(0, COLUMNS)
    x += batch * x_batch
    if mean is not None:
        mean += batch * D
    scale = tl.load(unit + batch)
    total = tl.zeros((COLUMNS, COLUMNS), tl.float32)
    for start in range(0, CHUNK, ROWS):
        token = chunk * CHUNK + start + tl.arange(0, ROWS)
        a = _load_centered(x, mean, scale, token, tokens, x_token, x_step, left, D)
        b = _load_centered(x, mean, scale, token, tokens, x_token, x_step, right, D)
        total = tl.dot(tl.trans(a), b, total, input_precision="tf32x3")
    known = (left < D)[:, None] & (right < D)[None, :]
    out += (chunk * matrices + batch) * D * D + left[:, None] * D + right[None, :]
    tl.store(out, total, mask=known)


def gather_tokens(
    x: Tensor, index: Tensor | None = None, matrix: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Takes tokens in the order of ``index`` and maps each: ``x[index] @ matrix + shift``.

    Args:
        x: Matrices ``(... s d)``, float16 or bfloat16; never changed.
        index: Token in each slot, int32 ``(p,)``, in [0, s), which is not checked. None: all, in
            their order.
        matrix: float32 ``(... d d)``. None: no map.
        shift: Added after the map, float32 ``(... d)``; not without ``matrix``. None: 0.

    Returns:
        ``(... p d)`` in the dtype of ``x``, clamped to its range; float32 inside.
    """
    *lead, tokens, d = x.shape
    slots = tokens if index is None else len(index)
    out = torch.empty((*lead, slots, d), dtype=x.dtype, device=x.device)
    flat = x.reshape(math.prod(lead), tokens, d)
    grid = (triton.cdiv(slots, TOKENS), triton.cdiv(d, FEATURES), len(flat))
    if out.numel() == 0:
        return out
    with torch.cuda.device_of(x):
        _gather_kernel[grid](
            *(flat, index, None if matrix is None else matrix.contiguous()),
            *(None if shift is None else shift.contiguous(), out),
            *(*flat.stride(), slots, torch.finfo(x.dtype).max),
            D=d,
            ROWS=TOKENS,
            COLUMNS=FEATURES,
            DEPTH=DEPTH,
            num_warps=4,
        )
    return out


def gram_matrices(x: Tensor, mean: Tensor | None, unit: Tensor) -> Tensor:
    """Gives ``A^T A`` of ``A = (x - mean) / unit``, without ever writing ``A`` down.

    Chunks of tokens are summed up side by side and then added in a fixed order, so that the same
    tokens always give the same sums.

    Args:
        x: Matrices ``(... s d)``, float16 or bfloat16; never changed.
        mean: Taken out of each token, float32 ``(... d)``. None: 0.
        unit: In which entries are measured, float32 ``(...)``, above 0.

    Returns:
        ``(... d d)``, float32.
    """
    *lead, tokens, d = x.shape
    flat = x.reshape(math.prod(lead), tokens, d)
    chunks, across = triton.cdiv(tokens, CHUNK), triton.cdiv(d, FEATURES)
    out = torch.empty((chunks, len(flat), d, d), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _gram_kernel[chunks, across * across, len(flat)](
            *(flat, None if mean is None else mean.contiguous(), unit.contiguous(), out),
            *(*flat.stride(), tokens, len(flat)),
            D=d,
            CHUNK=CHUNK,
            ROWS=TOKENS,
            COLUMNS=FEATURES,
            num_warps=4,
        )
    return out.sum(0).reshape(*lead, d, d)
