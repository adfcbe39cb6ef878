"""Chooses the version of ``attend`` and of the spectral map that runs here, and says why.

Every version has the signature of ``consist.attention.bank.attend``, or of ``filter_matrix`` in
``consist.spectra.decomposition``, and is checked against it.
"""

import functools
import logging
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from consist.attention import bank as sharing
from consist.attention.bank import Bank
from consist.errors import unknown
from consist.spectra.decomposition import Solver, filter_matrix, unit_of
from consist.spectra.rules import Spectrum, identity

logger = logging.getLogger("consist")

# whether "auto" takes the Triton kernels where they can run: not before they are measured on a GPU
TRITON_BY_DEFAULT = False
CAPABILITY = (8, 0)  # the least that the kernels are compiled for
# keys of all images laid out at once: on a CPU a quarter less time for a grid of 64 tokens, but
# more where the system must be asked for new memory; the result is the same to the bit
FEW_BYTES = 2**20
MOST_STRETCHES = 32  # copied one by one: an index takes longer to read, but no longer for more


def attend_torch(q: Tensor, k: Tensor, v: Tensor, bank: Bank | None = None) -> Tensor:
    """Attends to the own tokens and to the visible ones of the bank, in one softmax.

    Scaled dot product attention of torch, image by image over its own and its visible keys: only
    one image's keys are laid side by side at a time, so memory grows linearly with the images. Few
    keys are laid out for all images at once, and where all images see all tokens they are one long
    sequence, of which nothing is laid out anew. Without a bank it is the very call of diffusers'
    ``AttnProcessor2_0``.

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
    if bank.is_whole(k, v):
        return _attend_whole(q, bank, n)
    seen = bank.seen_by(n)
    counts = seen.sum(1).tolist()
    keys = k.numel() + k.numel() // k.shape[2] * max(counts)
    if min(counts) == max(counts) and keys * k.element_size() <= FEW_BYTES:
        return _attend_together(q, k, v, bank, seen)
    q, k, v = (rearrange(x, "(g n) h l d -> n g h l d", n=n) for x in (q, k, v))
    images = [_attend_image(q[i], k[i], v[i], bank, seen[i]) for i in range(n)]
    # in the order in which they lie in memory, and are read next
    tokens_first = torch.stack([rearrange(x, "g h l d -> g l h d") for x in images], 1)
    return rearrange(tokens_first, "g n l h d -> (g n) h l d")


def _attend_whole(q: Tensor, bank: Bank, n: int) -> Tensor:
    """Attention of all images to all tokens of a whole bank."""
    q = rearrange(q, "(g n) h l d -> g h (n l) d", n=n)
    out = F.scaled_dot_product_attention(q, bank.k, bank.v, dropout_p=0.0, is_causal=False)
    return rearrange(out, "g h (n l) d -> (g n) h l d", n=n)


def _attend_together(q: Tensor, k: Tensor, v: Tensor, bank: Bank, seen: Tensor) -> Tensor:
    """Attention of all images, each of which sees equally many tokens: ``seen`` is ``(n, s)``."""
    n, own = len(seen), k.shape[2]
    index = seen.nonzero()[:, 1].to(q.device)
    bias = None
    if bank.bias is not None:
        shared = rearrange(bank.bias.index_select(0, index), "(n s) -> n s", n=n)
        bias = repeat(F.pad(shared, (own, 0)).to(q.dtype), "n s -> (g n) 1 1 s", g=len(q) // n)
        bias = bias.expand(-1, -1, q.shape[2], -1)
    k, v = (
        torch.cat((x, rearrange(y.index_select(2, index), "g h (n s) d -> (g n) h s d", n=n)), 2)
        for x, y in ((k, bank.k), (v, bank.v))
    )
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=0.0, is_causal=False)


def _attend_image(q: Tensor, k: Tensor, v: Tensor, bank: Bank, seen: Tensor) -> Tensor:
    """Attention of one image ``g h l d``, which sees the tokens ``seen (s,)`` of the bank."""
    stretches = _stretches(seen, q.device)
    bias = bank.bias
    if bias is not None:
        bias = torch.cat((bias.new_zeros(k.shape[2]), *(bias[tokens] for tokens in stretches)))
        # a float32 mask with half-precision queries gives wrong numbers on Hopper GPUs
        # (pytorch #191612)
        bias = bias.to(q.dtype).expand(1, 1, q.shape[2], -1)
    k = torch.cat((k, *(bank.k[:, :, tokens] for tokens in stretches)), 2)
    v = torch.cat((v, *(bank.v[:, :, tokens] for tokens in stretches)), 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=0.0, is_causal=False)


def _stretches(seen: Tensor, device: torch.device) -> Sequence[slice | Tensor]:
    """Where the tokens ``seen (s,)`` lie: in stretches, or if these are many, one by one."""
    there, lengths = seen.unique_consecutive(return_counts=True)
    if len(lengths) > MOST_STRETCHES:
        return [seen.nonzero()[:, 0].to(device)]
    ends = lengths.cumsum(0).tolist()
    spans = zip([0, *ends], ends, there.tolist(), strict=False)
    return [slice(start, end) for start, end, is_seen in spans if is_seen]


def attend_triton(q: Tensor, k: Tensor, v: Tensor, bank: Bank | None = None) -> Tensor:
    """Attends to the own tokens and to the visible ones of the bank, in one softmax.

    One launch of ``consist_kernels.shared_attention`` for all images. Plain attention, and inputs
    that need gradients, go to ``attend_torch``; arguments and result are as there.
    """
    if bank is None or (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))):
        return attend_torch(q, k, v, bank)
    bank.count_images(q)
    # triton exists on Linux alone
    from consist_kernels.pool import attend_bank

    return attend_bank(q, k, v, bank.k, bank.v, bank.owner, bank.bias, bank.visible)


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, Bank | None], Tensor]] = {
    "reference": sharing.attend,
    "torch": attend_torch,
    "triton": attend_triton,
}


def choose(
    backend: str, device: torch.device, dtype: torch.dtype, head_size: int | None = None
) -> tuple[str, str]:
    """Names the backend that runs for tensors of this kind; "auto" is logged, once for each answer.

    Args:
        backend: "auto" or a key of ``BACKENDS``.
        device: Where the tensors are.
        dtype: Their type.
        head_size: Features of a head; None is any that Stable Diffusion has.

    Returns:
        The key of ``BACKENDS``, and the reason as half a sentence.

    Raises:
        ValueError: ``backend`` is unknown, or cannot run this.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(unknown("backend", backend, ["auto", *BACKENDS]))
    if not dtype.is_floating_point:
        raise ValueError(f"backend {backend!r} cannot attend in {dtype}; allowed: floating point")
    if backend == "triton" and (obstacle := triton_obstacle(device, dtype, head_size)):
        raise ValueError(f"backend 'triton' {obstacle}")
    if backend != "auto":
        return backend, "asked for"
    chosen = _choose_itself(device, dtype, head_size)
    _log_once(*chosen)
    return chosen


def _choose_itself(
    device: torch.device, dtype: torch.dtype, head_size: int | None
) -> tuple[str, str]:
    if obstacle := triton_obstacle(device, dtype, head_size):
        return "torch", f"runs on {device.type}; triton {obstacle}"
    if not TRITON_BY_DEFAULT:
        return (
            "torch",
            f"runs on {device.type}; triton could, but is not measured on a GPU yet",
        )
    return "triton", f"runs on {device.type} in {str(dtype).removeprefix('torch.')}"


@functools.cache
def triton_obstacle(
    device: torch.device, dtype: torch.dtype, head_size: int | None = None
) -> str | None:
    """Why the Triton kernels cannot run here, as the rest of a sentence; None if they can.

    In Triton's interpreter, with ``TRITON_INTERPRET=1`` in the environment, any device will do.
    """
    if find_spec("triton") is None:
        return "needs the package triton, which exists on Linux"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        return f"needs a CUDA device; this is {device.type}"
    if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < CAPABILITY:
        least, has = (".".join(map(str, pair)) for pair in (CAPABILITY, found))
        return f"needs compute capability {least}; {torch.cuda.get_device_name(device)} has {has}"
    from consist_kernels.shared_attention import DTYPES
    from consist_kernels.tiles import HEAD_SIZES

    if dtype not in DTYPES:
        return f"attends in float16 or bfloat16; this is {str(dtype).removeprefix('torch.')}"
    if head_size is not None and head_size not in HEAD_SIZES:
        return f"takes heads of a multiple of 8 up to 160 features; these have {head_size}"
    return None


@functools.cache
def _log_once(name: str, reason: str) -> None:
    logger.info("attention backend: %s, %s", name, reason)


def attend(
    q: Tensor, k: Tensor, v: Tensor, bank: Bank | None = None, backend: str = "auto"
) -> Tensor:
    """Attends with the backend of that name; shapes as in ``consist.attention.bank.attend``.

    Raises:
        ValueError: ``backend`` is unknown or cannot run this; queries and bank do not fit.
    """
    name, _ = choose(backend, q.device, q.dtype, q.shape[-1])
    return BACKENDS[name](q, k, v, bank)


def filter_tokens(a: Tensor, spectrum: Spectrum, *, centered: bool, solve: Solver) -> Tensor:
    """Reweights singular values as ``filter_matrix``, which says it all.

    Where "auto" takes the Triton kernels, they read ``a`` in its own dtype, once for the Gram
    matrix and once for the map, where torch makes float32 copies of it; gradients go to torch.
    """
    in_torch = (
        _choose_itself(a.device, a.dtype, None)[0] == "torch"
        or (torch.is_grad_enabled() and a.requires_grad)
        or a.shape[-2] < a.shape[-1]
        or a.numel() == 0
        or spectrum is identity
    )
    version = filter_matrix if in_torch else filter_triton
    return version(a, spectrum, centered=centered, solve=solve)


def filter_triton(a: Tensor, spectrum: Spectrum, *, centered: bool, solve: Solver) -> Tensor:
    """The version of ``filter_tokens`` on the kernels of ``consist_kernels.pack``.

    Args:
        a: Matrices ``(... l d)`` with ``l >= d``, float16 or bfloat16; never changed.
    """
    from consist_kernels.pack import gather_tokens, gram_matrices

    mean = a.mean(dim=-2, dtype=torch.float32) if centered else None
    unit = unit_of(a, (-2, -1)).float()[..., 0, 0]
    with torch.autocast(a.device.type, enabled=False):
        matrix = solve(gram_matrices(a, mean, unit), spectrum, a.shape[-1] / a.shape[-2])
        shift = None if mean is None else mean - (mean.unsqueeze(-2) @ matrix).squeeze(-2)
    return gather_tokens(a, matrix=matrix, shift=shift)
