"""Truncation of the keys that knows the queries: what matters is the logits, not the keys."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from consist.decomposition import decompose, in_floats, weights_of
from consist.methods.method import Site
from consist.methods.spectral import MATRICES, Reweighted
from consist.spectrum import Spectrum, identity, parse_spectrum


@dataclass(frozen=True, kw_only=True)
class QueryAware(Reweighted):
    """Shared, with the spectrum of the keys taken from the logits ``Q K^T``.

    Hypothesis: a direction of the keys that no query asks for costs rank and carries nothing, so
    truncating the logits keeps more of the subject at the same leakage than truncating the keys
    alone. It is refuted if ``Reweighted`` with the same spectrum is not below it on the front of
    identity against leakage. Untested; the optimum is that of KQ-SVD (arXiv:2512.05916, of which
    the abstract was read; derived anew in ``filter_logits``). ``Q`` is that of all images of the
    guidance half. Values are those of ``Reweighted``.

    Raises:
        ValueError: A field is out of its range, when made; more anchors than images, when called.
    """

    keys: str = "energy:0.95"  # spectrum of the logits, see consist.spectrum.parse_spectrum
    values: str = "log"  # spectrum of the values

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width != "head":
            raise ValueError(
                f"width is {self.width!r}; allowed: 'head', since each head has logits of its own"
            )

    def _filter_keys(self, k: Tensor, q: Tensor, anchors: int, site: Site) -> Tensor:
        packed, matrix = "g h (a l) d", MATRICES[self.width, self.pool]
        queries = rearrange(q, "(g n) h l d -> g h (n l) d", g=k.shape[0])
        if self.pool == "anchor":
            queries = queries.unsqueeze(2)
        keys = rearrange(k, f"{packed} -> {matrix}", a=anchors)
        spectrum = parse_spectrum(self.keys)
        filtered = filter_logits(keys, queries, spectrum, centered=self.centered)
        return rearrange(filtered, f"{matrix} -> {packed}", a=anchors)


def filter_logits(k: Tensor, q: Tensor, spectrum: Spectrum, *, centered: bool = False) -> Tensor:
    """Gives keys ``K F`` with logits ``Q (K F)^T = U f(S) W^T``, for ``Q K^T = U S W^T``.

    Keys ``K' = K F`` give the logits ``Q K'^T``, of rank ``r`` at most if ``F`` is. By Eckart and
    Young none of rank ``r`` lies nearer to ``Q K^T`` in Frobenius norm than ``U_r S_r W_r^T``, and
    ``K' = W_r W_r^T K`` attains it: ``Q K'^T = U S W^T W_r W_r^T``. To find it without ``l x l``
    matrices, take ``K = O H`` with ``H = (K^T K)^(1/2)`` and ``O^T O = 1`` on the range of ``H``;
    then ``K Q^T Q K^T = O C O^T`` with ``C = H (Q^T Q) H = E S^2 E^T``, so ``W = O E`` and

        ``W_r W_r^T K = O E_r E_r^T H = K H^-1 E_r E_r^T H``,

    two eigendecompositions of ``d x d``. Any other spectrum ``f`` has ``f(S) / S`` between ``E``
    and ``E^T``. Where ``Q^T Q`` is a multiple of 1, this is ``filter_matrix``.

    Args:
        k: Finite keys ``(... l d)``; never changed.
        q: Finite queries ``(... m d)``, to be broadcast with the keys.
        spectrum: From ``d`` singular values of ``Q K^T``, descending, to as many. One that asks
            for the shape of its matrix is told that of the keys.
        centered: Takes the mean key out before and puts it back after: it adds the same to all
            logits of a query.

    Returns:
        ``(... l d)``; ``k`` itself for ``identity``. Gradients flow as if ``F`` were constant.
    """
    if spectrum is identity or k.numel() == 0:
        return k

    def change(x: Tensor) -> Tensor:
        with torch.no_grad():
            y = q.detach().to(x.dtype)
            # in its largest entry, as the keys are
            y = y / y.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(y.dtype).tiny)
            s, v = decompose(x.mT @ x)
            # written in the eigenvectors v, H is diagonal
            half = v * s.unsqueeze(-2)
            logits, e = decompose(half.mT @ (y.mT @ y) @ half)
            weights = weights_of(logits, spectrum, beta=_aspect(x))
            back = (v / s.clamp_min(torch.finfo(s.dtype).tiny).unsqueeze(-2)) @ e
            matrix = (back * weights.unsqueeze(-2)) @ (half @ e).mT
        return x @ matrix

    return in_floats(k, change, centered=centered)


def _aspect(x: Tensor) -> float:
    return min(x.shape[-2:]) / max(x.shape[-2:])
