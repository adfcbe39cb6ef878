"""The tokens that images share, how they are packed, and the plain attention over them.

Knows nothing of layers, models or methods. Axes: ``g`` guidance half, ``n`` image, ``a`` anchor,
``h`` head, ``l`` token, ``s`` shared token, ``d`` head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from einops import einsum, rearrange
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Bank:
    """Packed tokens of anchor images that the other images of a batch may attend to.

    The heads stand before the tokens, as scaled dot product attention reads them. ``owner`` and
    ``visible`` live on the CPU: the host reads them, and a GPU need not wait for that.

    Args:
        k: Keys ``(g h s d)``; ``s`` may be 0.
        v: Values ``(g h s d)``.
        owner: Image that each token comes from, int64 ``(s,)`` on the CPU: its index in the batch.
            No image sees its own tokens here, since it has them already. ``n`` and above for images
            that are not in the batch, or for tokens that ``visible`` must tell apart.
        bias: Natural logarithm of the weight of each token, float32 ``(s,)``, finite; added to
            the scaled logits. None is 0 everywhere.
        visible: Whether an image sees an owner's tokens, bool ``(n, owners)`` on the CPU.
            None: every image sees every owner.

    Attributes:
        whole: The keys and values of a batch, of which this holds all, as they are and in their
            order. ``pack`` says so; a bank that is changed with ``replace`` forgets it.

    Raises:
        ValueError: A shape, dtype or device is not as above.
    """

    k: Tensor
    v: Tensor
    owner: Tensor
    bias: Tensor | None = None
    visible: Tensor | None = None
    whole: tuple[Tensor, Tensor] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        _check_tokens(self.k, self.v)
        tokens, device = (self.k.shape[2],), self.k.device
        cpu = torch.device("cpu")
        _check("owner", self.owner, tokens, torch.int64, cpu)
        if self.bias is not None:
            _check("bias", self.bias, tokens, torch.float32, device)
        if self.visible is not None:
            _check("visible", self.visible, (None, None), torch.bool, cpu)
        self._check_owners()

    def _check_owners(self) -> None:
        if self.owner.numel() == 0:
            return
        low, high = self.owner.min().item(), self.owner.max().item()
        if low < 0:
            raise ValueError(f"owner holds {low}; allowed: 0 and above")
        if self.visible is not None and high >= self.visible.shape[1]:
            raise ValueError(
                f"owner holds {high}; allowed: below {self.visible.shape[1]}, the owners that "
                "visible has columns for"
            )

    def seen_by(self, images: int) -> Tensor:
        """Which tokens each of ``images`` images sees: never its own, and only visible ones.

        Returns:
            bool ``(n, s)`` on the CPU.

        Raises:
            ValueError: ``visible`` is for another number of images.
        """
        seen = self.owner != torch.arange(images)[:, None]
        if self.visible is None:
            return seen
        if self.visible.shape[0] != images:
            raise ValueError(
                f"visible is for {self.visible.shape[0]} images, the batch has {images}"
            )
        return seen & self.visible[:, self.owner]

    def is_whole(self, k: Tensor, v: Tensor) -> bool:
        """Whether it holds all of this very batch: each image attends to all of it, once."""
        return self.whole is not None and self.whole[0] is k and self.whole[1] is v

    def count_images(self, q: Tensor) -> int:
        """The number ``n`` of images in the queries ``(g n) h l d``.

        Raises:
            ValueError: Queries and bank do not fit in shape, dtype or device.
        """
        g, h, _, d = self.k.shape
        if q.ndim != 4 or q.shape[0] % g or (q.shape[1], q.shape[3]) != (h, d):
            raise ValueError(
                f"queries {tuple(q.shape)} do not fit a bank of {g} guidance halves, {h} heads "
                f"and head size {d}; allowed: (g n) h l d"
            )
        if (q.dtype, q.device) != (self.k.dtype, self.k.device):
            raise ValueError(
                f"queries are {q.dtype} on {q.device}, the bank is {self.k.dtype} on "
                f"{self.k.device}; allowed: the same"
            )
        return q.shape[0] // g


def pack(
    k: Tensor,
    v: Tensor,
    anchors: Sequence[int],
    *,
    images: int,
    tokens: Tensor | None = None,
    bias: Tensor | None = None,
) -> Bank:
    """Packs the tokens of the anchor images into a bank, in the order of ``anchors``.

    Args:
        k: Keys ``(g n) h l d`` of the batch; never changed.
        v: Values ``(g n) h l d``.
        anchors: Different images of the batch, ``a`` indices in [0, n).
        images: Images ``n`` in each guidance half.
        tokens: Which tokens of each anchor to keep, bool ``(a, l)`` on the CPU. None: all.
        bias: Natural log-weight of each token of each anchor, float32 ``(a, l)``.

    Returns:
        A bank with ``s`` tokens: ``a l``, or as many as ``tokens`` keeps.

    Raises:
        ValueError: A shape, dtype or anchor is not as above.

    >>> k = torch.arange(3.0).reshape(3, 1, 1, 1)
    >>> pack(k, k, [2, 0], images=3).owner
    tensor([2, 0])
    """
    _check_tokens(k, v)
    _check_anchors(anchors, images)
    if k.shape[0] % images:
        raise ValueError(
            f"a batch of {k.shape[0]} does not hold guidance halves of {images} images"
        )
    rows, grid = torch.tensor(anchors, dtype=torch.int64), (len(anchors), k.shape[2])
    batch = k, v
    k, v = (_gather_anchors(x, rows, images) for x in batch)
    owner = rows.repeat_interleave(grid[1])
    if bias is not None:
        _check("bias", bias, grid, torch.float32, k.device)
        bias = bias.flatten()
    if tokens is not None:
        _check("tokens", tokens, grid, torch.bool, torch.device("cpu"))
    bank = Bank(k=k, v=v, owner=owner, bias=bias)
    if tokens is not None:
        return keep_tokens(bank, tokens.flatten())
    if bias is None and list(anchors) == list(range(images)):
        object.__setattr__(bank, "whole", batch)
    return bank


def keep_tokens(bank: Bank, kept: Tensor) -> Bank:
    """The bank with some of its tokens, in their order; a copy.

    Args:
        bank: Of ``s`` tokens; never changed.
        kept: Which tokens to keep, bool ``(s,)`` on the CPU.

    Raises:
        ValueError: ``kept`` is not as above.
    """
    _check("kept", kept, (bank.k.shape[2],), torch.bool, torch.device("cpu"))
    rows = kept.nonzero()[:, 0]
    index = rows.to(bank.k.device)
    return replace(
        bank,
        k=bank.k.index_select(2, index),
        v=bank.v.index_select(2, index),
        owner=bank.owner[rows],
        bias=None if bank.bias is None else bank.bias[index],
    )


def attend(q: Tensor, k: Tensor, v: Tensor, bank: Bank | None = None) -> Tensor:
    """Attends to the own tokens and to the visible ones of the bank, in one softmax.

    ``softmax(q [k, bank.k]^T / sqrt(d) + [0, bank.bias]) [v, bank.v]``: ConsiStory,
    arXiv:2402.03286, eq. 2-3, with a mask that is either 0 or the finite bias. The reference for
    every backend: plain, in any dtype.

    Args:
        q: Queries ``(g n) h l d``.
        k: Own keys ``(g n) h l d``.
        v: Own values ``(g n) h l d``.
        bank: What is shared; None is plain self-attention.

    Returns:
        ``(g n) h l d``.

    Raises:
        ValueError: Queries and bank do not fit.
    """
    own = q @ k.mT * q.shape[-1] ** -0.5
    if bank is None:
        return own.softmax(-1) @ v
    n = bank.count_images(q)
    halves = rearrange(q, "(g n) h l d -> g n h l d", n=n)
    shared = einsum(halves, bank.k, "g n h l d, g h s d -> g n h l s") * q.shape[-1] ** -0.5
    if bank.bias is not None:
        shared = shared + bank.bias.to(q.dtype)
    unseen = rearrange(~bank.seen_by(n), "n s -> n 1 1 s").to(q.device)
    shared = rearrange(shared.masked_fill(unseen, -torch.inf), "g n h l s -> (g n) h l s")
    to_own, to_shared = torch.cat((own, shared), -1).softmax(-1).tensor_split([k.shape[2]], -1)
    to_shared = rearrange(to_shared, "(g n) h l s -> g n h l s", n=n)
    given = einsum(to_shared, bank.v, "g n h l s, g h s d -> g n h l d")
    return to_own @ v + rearrange(given, "g n h l d -> (g n) h l d")


def _gather_anchors(x: Tensor, rows: Tensor, images: int) -> Tensor:
    heads_first = rearrange(x, "(g n) h l d -> g h n l d", n=images)
    gathered = heads_first.index_select(2, rows.to(x.device))
    return rearrange(gathered, "g h a l d -> g h (a l) d")


def _check_anchors(anchors: Sequence[int], images: int) -> None:
    if len(set(anchors)) != len(anchors) or not all(0 <= anchor < images for anchor in anchors):
        raise ValueError(
            f"anchors are {list(anchors)}; allowed: different images from 0 to {images - 1}"
        )


def _check_tokens(k: Tensor, v: Tensor) -> None:
    if k.ndim != 4 or k.shape != v.shape:
        raise ValueError(
            f"k is {tuple(k.shape)} and v is {tuple(v.shape)}; allowed: four equal axes, "
            "ending in h, token, d"
        )
    if (k.dtype, k.device) != (v.dtype, v.device):
        raise ValueError(
            f"k is {k.dtype} on {k.device} and v is {v.dtype} on {v.device}; allowed: the same"
        )


def _check(
    name: str, x: Tensor, shape: tuple[int | None, ...], dtype: torch.dtype, device: torch.device
) -> None:
    fits = x.ndim == len(shape) and all(
        wanted in (None, given) for wanted, given in zip(shape, x.shape, strict=True)
    )
    if not fits or x.dtype != dtype or x.device != device:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name} is {x.dtype} {tuple(x.shape)} on {x.device}; "
            f"allowed: {dtype} ({sizes}) on {device}"
        )
