"""Chooses the version of ``attend`` that runs here, and says which and why.

Every version has the signature of ``consist.sharing.attend`` and is checked against it.
"""

import functools
import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from consist import sharing
from consist.errors import unknown
from consist.sharing import Bank

logger = logging.getLogger("consist")


def attend_torch(q: Tensor, k: Tensor, v: Tensor, bank: Bank | None = None) -> Tensor:
    """Attends to the own tokens and to the visible ones of the bank, in one softmax.

    Scaled dot product attention of torch, image by image over its own and its visible keys: only
    one image's keys are laid side by side at a time, so memory grows linearly with the images.
    Without a bank it is the very call of diffusers' ``AttnProcessor2_0``.

    Args:
        q: Queries ``(g n) h l d``.
        k: Own keys ``(g n) h l d``.
        v: Own values ``(g n) h l d``.
        bank: What is shared; None is plain self-attention.

    Returns:
        ``(g n) h l d``; gradients reach all inputs.

    Raises:
        ValueError: Queries and bank do not fit.
    """
    if bank is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.0, is_causal=False)
    n = bank.count_images(q)
    seen = bank.seen_by(n)
    q, k, v = (rearrange(x, "(g n) h l d -> n g h l d", n=n) for x in (q, k, v))
    images = [_attend_image(q[i], k[i], v[i], bank, seen[i]) for i in range(n)]
    return rearrange(images, "n g h l d -> (g n) h l d")


def _attend_image(q: Tensor, k: Tensor, v: Tensor, bank: Bank, seen: Tensor) -> Tensor:
    """Attention of one image ``g h l d``, which sees the tokens ``seen (s,)`` of the bank."""
    bias = bank.bias
    if seen.all():
        shared_k, shared_v = bank.k, bank.v
    else:
        index = seen.nonzero()[:, 0].to(q.device)
        shared_k, shared_v = bank.k.index_select(2, index), bank.v.index_select(2, index)
        bias = None if bias is None else bias[index]
    if bias is not None:
        # a float32 mask with half-precision queries gives wrong numbers on Hopper GPUs
        # (pytorch #191612)
        bias = F.pad(bias, (k.shape[2], 0)).to(q.dtype).expand(1, 1, q.shape[2], -1)
    k, v = torch.cat((k, shared_k), 2), torch.cat((v, shared_v), 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=0.0, is_causal=False)


def attend_triton(q: Tensor, k: Tensor, v: Tensor, bank: Bank | None = None) -> Tensor:
    """Attends to the own tokens and to the visible ones of the bank, in one softmax.

    One launch of ``consist_kernels.shared_attention`` for all images. Plain attention, and inputs
    that need gradients, go to ``attend_torch``; arguments and result are as there.
    """
    if bank is None or (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))):
        return attend_torch(q, k, v, bank)
    # triton exists on Linux alone
    from consist_kernels.shared_attention import attend_bank

    return attend_bank(q, k, v, bank.k, bank.v, bank.owner, bank.bias, bank.visible)


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, Bank | None], Tensor]] = {
    "reference": sharing.attend,
    "torch": attend_torch,
    "triton": attend_triton,
}


def choose(backend: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """Names the backend that runs for tensors of this kind; "auto" is logged, once for each answer.

    Args:
        backend: "auto" or a key of ``BACKENDS``.
        device: Where the tensors are.
        dtype: Their type.

    Returns:
        The key of ``BACKENDS``, and the reason as half a sentence.

    Raises:
        ValueError: ``backend`` is unknown, or cannot run this.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(unknown("backend", backend, ["auto", *BACKENDS]))
    if not dtype.is_floating_point:
        raise ValueError(f"backend {backend!r} cannot attend in {dtype}; allowed: floating point")
    if backend == "triton" and device.type != "cuda":
        raise ValueError(f"backend 'triton' needs a CUDA device; this is {device.type}")
    if backend != "auto":
        return backend, "asked for"
    chosen = "torch", f"runs on {device.type}; triton is not chosen before it is measured"
    _log_once(*chosen)
    return chosen


@functools.cache
def _log_once(name: str, reason: str) -> None:
    logger.info("attention backend: %s, %s", name, reason)


def attend(
    q: Tensor, k: Tensor, v: Tensor, bank: Bank | None = None, backend: str = "auto"
) -> Tensor:
    """Attends with the backend of that name; shapes as in ``consist.sharing.attend``.

    Raises:
        ValueError: ``backend`` is unknown or cannot run this; queries and bank do not fit.
    """
    name, _ = choose(backend, q.device, q.dtype)
    return BACKENDS[name](q, k, v, bank)
