"""Directions that all anchors share, against directions of one anchor: untested ideas of our own.

Hypothesis: the subject is in every anchor and a background in one only, so that a direction of the
keys (or values) belongs to the subject as far as the anchors agree on it, however much or little
energy it has. The rules of ``consist.spectrum`` rank directions by energy instead, and would keep
a background that is stronger than the subject. It is refuted if agreement lies below a truncation
by energy on the front of identity against leakage; it should gain with the number of anchors, and
suffer where backgrounds resemble each other or the subject changes its pose.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from einops import rearrange
from torch import Tensor

from consist.decomposition import eigh, in_floats
from consist.methods.method import Site
from consist.methods.spectral import MATRICES, Reweighted
from consist.sharing import Bank

Rule = Callable[[Tensor], Tensor]

BASES = ("joint", "pooled")

# energy given to every direction of every anchor, as a share of the mean energy of a direction:
# directions fainter than that, 3 % of the mean amplitude, count as shared and are left alone
RIDGE = 1e-3

# smaller shares count as this: their inverse would drown those of the shared directions, which
# float32 knows to eps / FAINTEST = 1e-3
FAINTEST = 1e-4


@dataclass(frozen=True, kw_only=True)
class Directions(Reweighted):
    """What ``Agreement`` and ``Notch`` have in common: a rule on the energies of the anchors.

    The spectra come first, if there are any: flattening afterwards would lift what the rule has
    pressed down. ``pool`` is theirs alone. With one anchor there is nothing to compare, and only
    the spectra act.

    Raises:
        ValueError: A field is out of its range, when made; more anchors than images, when called.
    """

    keys: str = "identity"  # spectrum of the keys, before the rule
    values: str = "identity"  # spectrum of the values, before the rule
    basis: str = "joint"  # "joint": of all anchors at once; "pooled": that of their sum

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.basis not in BASES:
            raise ValueError(f"basis is {self.basis!r}; allowed: 'joint' or 'pooled'")

    def rules(self) -> tuple[Rule | None, Rule | None]:
        """The rules of the keys and of the values, for ``filter_directions``; None: no change."""
        raise NotImplementedError

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Bank | None:
        """What is shared at this site, with its directions weighed; else as ``Reweighted``."""
        bank = super().__call__(q, k, v, site)
        if bank is None or bank.k.shape[2] == k.shape[2]:
            return bank
        anchors = bank.k.shape[2] // k.shape[2]
        keys, values = self.rules()
        return replace(
            bank, k=self._weigh(bank.k, keys, anchors), v=self._weigh(bank.v, values, anchors)
        )

    def _weigh(self, x: Tensor, rule: Rule | None, anchors: int) -> Tensor:
        if rule is None:
            return x
        packed, matrix = "g h (a l) d", MATRICES[self.width, "anchor"]
        matrices = rearrange(x, f"{packed} -> {matrix}", a=anchors)
        found = filter_directions(matrices, rule, basis=self.basis, centered=self.centered)
        return rearrange(found, f"{matrix} -> {packed}", a=anchors, h=x.shape[1])


@dataclass(frozen=True, kw_only=True)
class Agreement(Directions):
    """Shared, with each direction weighed by how evenly the anchors share its energy.

    The weight is ``evenness^power``; evenness is the harmonic mean of the anchors' energies in a
    direction divided by their arithmetic mean: 1 if all have the same, near 0 if any has none. For
    two anchors of which one has the share ``u``, it is ``4 u (1 - u)``.

    Raises:
        ValueError: A field is out of its range, when made; more anchors than images, when called.
    """

    keys_power: float = 1.0  # exponent of the evenness for the keys, in [0, 8]; 0: left alone
    values_power: float = 1.0  # exponent of the evenness for the values, in [0, 8]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, power in (("keys_power", self.keys_power), ("values_power", self.values_power)):
            if not 0 <= power <= 8:
                raise ValueError(f"{name} is {power}; allowed: 0 <= {name} <= 8")

    def rules(self) -> tuple[Rule | None, Rule | None]:
        """``evenness`` with the power of each; None for a power of 0."""
        keys, values = self.keys_power, self.values_power
        return (
            partial(evenness, power=keys) if keys else None,
            partial(evenness, power=values) if values else None,
        )


@dataclass(frozen=True, kw_only=True)
class Notch(Directions):
    """Shared, without the directions of which one anchor has nearly all the energy.

    The hard counterpart of ``Agreement``: what is missing in one anchor but shared by the others
    stays whole.

    Raises:
        ValueError: A field is out of its range, when made; more anchors than images, when called.
    """

    keys_share: float = 0.8  # largest share of one anchor for the keys, in [0.5, 1]; 1: left alone
    values_share: float = 0.8  # largest share of one anchor for the values, in [0.5, 1]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, share in (("keys_share", self.keys_share), ("values_share", self.values_share)):
            # above a half, no direction can be that of two anchors
            if not 0.5 <= share <= 1:
                raise ValueError(f"{name} is {share}; allowed: 0.5 <= {name} <= 1")

    def rules(self) -> tuple[Rule | None, Rule | None]:
        """``drop_private`` with the share of each; None for a share of 1."""
        keys, values = self.keys_share, self.values_share
        return (
            partial(drop_private, share=keys) if keys < 1 else None,
            partial(drop_private, share=values) if values < 1 else None,
        )


def filter_directions(x: Tensor, rule: Rule, *, basis: str, centered: bool) -> Tensor:
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
        basis: "joint" as above; "pooled" takes of ``S_a`` only the diagonal, that is, the
            energies in the eigenvectors ``V`` of ``M``: cruder, and blind where ``M`` has equal
            eigenvalues, but ``F`` is then symmetric.
        centered: Takes the mean token of each anchor out before and puts it back after. The mean
            of all anchors would not do: about it, two anchors always look even in the direction
            of their difference.

    Returns:
        ``(... a l d)``; gradients flow as if ``F`` were constant.
    """

    def change(y: Tensor) -> Tensor:
        with torch.no_grad():
            matrix = _filter_of(y.mT @ y, rule, basis)
        return y @ matrix.unsqueeze(-3)

    return in_floats(x, change, centered=centered, scaled_over=(-3, -2, -1))


def _filter_of(grams: Tensor, rule: Rule, basis: str) -> Tensor:
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
    if basis == "pooled":
        shares = shares.diagonal(dim1=-2, dim2=-1).diag_embed()
    return whitening @ rule(shares) @ (v * root).mT


def evenness(shares: Tensor, power: float) -> Tensor:
    """The harmonic mean of the anchors' shares, divided by their arithmetic mean, to a power.

    ``(a sum_a S_a^-1 / a^2)^-power``: the parallel sum of Anderson and Duffin 1969, whose range is
    the intersection of the ranges of the ``S_a``.

    Args:
        shares: ``S_a`` of ``filter_directions``, ``(... a d d)``.
        power: Above 0.

    Returns:
        ``(... d d)``, with eigenvalues in (0, 1].
    """
    a = shares.shape[-3]
    inverse = on_eigenvalues(shares, lambda s: 1 / (a * s.clamp_min(FAINTEST))).mean(-3)
    return on_eigenvalues(inverse, lambda x: x.clamp_min(1) ** -power)


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
