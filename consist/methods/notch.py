"""Sharing without the directions that one anchor has for itself: an idea of our own.

Hypothesis: the subject is in every anchor and a background in one only, so that a direction of the
keys (or values) of which one anchor has nearly all the energy belongs to its background, however
strong it is. The rules of ``consist.spectra.rules`` rank directions by energy instead, and would
keep a background that is stronger than the subject. What was measured stands in
``docs/results/spectra.md``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from einops import rearrange
from torch import Tensor

from consist.attention.bank import Bank
from consist.attention.method import Site
from consist.methods.shared import MATRICES, Reweighted
from consist.spectra.decomposition import eigh, in_floats

Rule = Callable[[Tensor], Tensor]

# energy given to every direction of every anchor, as a share of the mean energy of a direction:
# directions fainter than that, 3 % of the mean amplitude, count as shared and are left alone
RIDGE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Notch(
    Reweighted,
    name="notch",
    sees="all tokens, without singular directions that one image has for itself",
    after="ours",
):
    """Shared, without the directions of which one anchor has nearly all the energy.

    What is missing in one anchor but shared by the others stays whole. The spectra come first, if
    there are any: flattening afterwards would lift what is pressed down here. ``pool`` is theirs
    alone. With one anchor there is nothing to compare, and only the spectra act.

    Args:
        keys: The spectrum of the keys, before the notch.
        values: The spectrum of the values, before the notch.
        keys_share: The largest share that one anchor may have in a direction of the keys, in
            [0.5, 1]; 1 leaves them alone.
        values_share: The same for the values.

    Raises:
        ValueError: A field is out of its range, when made; more anchors than images, when called.
    """

    keys: str = "identity"
    values: str = "identity"
    keys_share: float = 0.8
    values_share: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, share in (("keys_share", self.keys_share), ("values_share", self.values_share)):
            # above a half, no direction can be that of two anchors
            if not 0.5 <= share <= 1:
                raise ValueError(f"{name} is {share}; allowed: 0.5 <= {name} <= 1")

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Bank | None:
        """What is shared at this site, without private directions; else as ``Reweighted``."""
        bank = super().__call__(q, k, v, site)
        if bank is None or bank.k.shape[2] == k.shape[2]:
            return bank
        anchors = bank.k.shape[2] // k.shape[2]
        return replace(
            bank,
            k=self._notch(bank.k, self.keys_share, anchors),
            v=self._notch(bank.v, self.values_share, anchors),
        )

    def _notch(self, x: Tensor, share: float, anchors: int) -> Tensor:
        if share == 1:
            return x
        packed, matrix = "g h (a l) d", MATRICES[self.width, "anchor"]
        matrices = rearrange(x, f"{packed} -> {matrix}", a=anchors)
        rule = partial(drop_private, share=share)
        found = filter_directions(matrices, rule, centered=self.centered)
        return rearrange(found, f"{matrix} -> {packed}", a=anchors, h=x.shape[1])


def filter_directions(x: Tensor, rule: Rule, *, centered: bool) -> Tensor:
    """Multiplies the tokens of all anchors by one matrix, made from the energies of each.

    With the Gram matrices ``G_a = A_a^T A_a + ridge`` and their mean ``M = V diag(m) V^T``,
    ``W = V diag(m)^(-1/2)`` whitens: ``S_a = W^T G_a W / a`` are the shares of the anchors in the
    energy of each direction, with ``sum_a S_a = 1``. The rule gives a matrix ``R`` from them, and
    ``F = W R W^-1`` is what the tokens are multiplied by. For two anchors the ``S_a`` commute;
    their eigenvectors are the generalised ones of ``G_1 v = u (G_1 + G_2) v``, in general not at
    right angles: a background is removed along the subject, not across it.

    Args:
        x: Tokens of each anchor ``(... a l d)``; never changed.
        rule: From shares ``(... a d d)`` to ``(... d d)``, symmetric both.
        centered: Takes the mean token of each anchor out before and puts it back after. The mean
            of all anchors would not do: about it, two anchors always look even in the direction
            of their difference.

    Returns:
        ``(... a l d)``; gradients flow as if ``F`` were constant.
    """

    def change(y: Tensor) -> Tensor:
        with torch.no_grad():
            matrix = _filter_of(y.mT @ y, rule)
        return y @ matrix.unsqueeze(-3)

    return in_floats(x, change, centered=centered, scaled_over=(-3, -2, -1))


def _filter_of(grams: Tensor, rule: Rule) -> Tensor:
    """From Gram matrices ``(... a d d)`` to the matrix ``F``, ``(... d d)``."""
    a, d = grams.shape[-3], grams.shape[-1]
    mean = grams.mean(-3)
    # clamped, since zero matrices are shared evenly too
    floor = torch.finfo(grams.dtype).tiny ** 0.5
    energy = mean.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    ridge = (RIDGE * energy).clamp_min(floor)
    m, v = eigh(mean)
    # rounding gives eigenvalues below 0 to matrices of lower rank
    root = (m.clamp_min(0).unsqueeze(-2) + ridge).sqrt()
    whitening = v / root
    eye = torch.eye(d, dtype=grams.dtype, device=grams.device)
    full = grams + ridge.unsqueeze(-3) * eye
    shares = (whitening.mT.unsqueeze(-3) @ full @ whitening.unsqueeze(-3)) / a
    return whitening @ rule(shares) @ (v * root).mT


def drop_private(shares: Tensor, share: float) -> Tensor:
    """The projection that drops every direction of which one anchor has more than ``share``.

    Those of different anchors need not be at right angles: dropped is what the sum of their
    projections has with an eigenvalue above one half. The direction marked least always stays.

    Args:
        shares: ``S_a`` of ``filter_directions``, ``(... a d d)``.
        share: In [0.5, 1).

    Returns:
        ``(... d d)``, with eigenvalues 0 and 1.
    """
    private = on_eigenvalues(shares, lambda s: (s > share).to(s.dtype)).sum(-3)
    return on_eigenvalues(private, lambda p: (p <= p[..., :1].clamp_min(0.5)).to(p.dtype))


def on_eigenvalues(matrix: Tensor, function: Rule) -> Tensor:
    """``Q diag(f(e)) Q^T`` for symmetric ``Q diag(e) Q^T``, ``(... d d)``; ``e`` ascending."""
    e, q = eigh(matrix)
    return (q * function(e).unsqueeze(-2)) @ q.mT
