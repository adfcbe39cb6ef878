"""What a method shared, kept while its anchors are drawn, and shown again without them.

Kept is what an image sees that is no anchor. Keys and values of ``s`` tokens are matrices
``(s c)`` with all heads side by side, ``c = h d``, each written as its mean token and two factors.
It must not know files or runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor

from consist.attention.bank import Bank, keep_tokens
from consist.attention.method import CACHE, Method, Site
from consist.errors import ConsistError
from consist.spectra.decomposition import decompose
from consist.spectra.rules import keep_energy

ENERGY = 0.999  # share of the energy about the mean token that the factors keep
DTYPE = torch.float16  # of what is kept


class Recording(Method):
    """A method that keeps what it shares, as the last image of the batch sees it.

    For one call of a pipeline, whose last image must be none of the anchors. What is kept of an
    image that draws an anchor once more is what any further image would see.

    Args:
        method: Any that ``refuse_uncached`` lets pass.
        energy: Share of the energy about the mean token that is kept, in (0, 1]; 1 keeps all.
        dtype: Of what is kept.
    """

    def __init__(self, method: Method, *, energy: float = ENERGY, dtype: torch.dtype = DTYPE):
        self.method = method
        self.energy = energy
        self.dtype = dtype
        # by the names of ``_Calls``, on the CPU
        self.kept: dict[str, Tensor] = {}
        self._calls = _Calls()
        # it is told all that makes the anchors what they are
        self.halves = method.halves
        self.masks = method.masks
        self.subject = method.subject
        self.reads_features = method.reads_features
        self.reads_plain_queries = method.reads_plain_queries

    def covers(self, layer: str) -> bool:
        """As the method does."""
        return self.method.covers(layer)

    def anchor_count(self, images: int) -> int:
        """As the method does."""
        return self.method.anchor_count(images)

    def anchor_images(self, site: Site) -> tuple[int, ...]:
        """As the method does."""
        return self.method.anchor_images(site)

    def blends(self, layer: str, progress: float) -> bool:
        """As the method does."""
        return self.method.blends(layer, progress)

    def rewrite(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> tuple[Tensor, Tensor, Tensor]:
        """As the method does."""
        return self.method.rewrite(q, k, v, site)

    def inject(self, out: Tensor, site: Site) -> Tensor:
        """As the method does."""
        return self.method.inject(out, site)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Bank | None:
        """What the method shares at this site, for q, k, v ``(g n) h l d``."""
        bank = self.method(q, k, v, site)
        self._keep(bank, site)
        return bank

    def _keep(self, bank: Bank | None, site: Site) -> None:
        call = self._calls.name(site)
        seen = torch.zeros(0) if bank is None else bank.seen_by(site.n)[-1]
        if bank is None or not seen.any():
            self.kept[f"{call}/nothing"] = torch.empty(0)
            return
        bank = keep_tokens(bank, seen)
        for letter, x in (("k", bank.k), ("v", bank.v)):
            for half, tokens in enumerate(rearrange(x, "g h s d -> g s (h d)")):
                for part, tensor in compress(tokens, self.energy).items():
                    name = f"{call}/{letter}{half}/{part}"
                    self.kept[name] = tensor.to("cpu", self.dtype).contiguous()
        if bank.bias is not None:
            self.kept[f"{call}/bias"] = bank.bias.cpu()


class Cached(Method):
    """A method that shows all images of a batch, none of them an anchor, what was recorded.

    For one call of a pipeline, which takes the steps of the one that was recorded. Of a method such
    as ``Consistory`` the bank alone was recorded: queries stay as they are, and no features are
    injected.

    Args:
        method: The one that was recorded.
        kept: Of ``Recording``; never changed.

    Raises:
        ValueError: When called, at a layer, progress or number of guidance halves that was not
            recorded.
    """

    def __init__(self, method: Method, kept: Mapping[str, Tensor]):
        self.method = method
        self.halves = method.halves
        self.kept = kept
        self._calls = _Calls()

    def covers(self, layer: str) -> bool:
        """As the method does."""
        return self.method.covers(layer)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Bank | None:
        """What was recorded at this site, in the dtype and on the device of q ``(g n) h l d``."""
        call = self._calls.name(site)
        if f"{call}/nothing" in self.kept:
            return None
        if f"{call}/k0/full" not in self.kept and f"{call}/k0/left" not in self.kept:
            raise ValueError(
                f"nothing was recorded of {site.layer} at progress {site.progress:.5f} "
                f"with {site.g} guidance halves"
            )
        keys, values = (self._read(f"{call}/{letter}", q, site.g) for letter in "kv")
        bias = self.kept.get(f"{call}/bias")
        return Bank(
            k=keys,
            v=values,
            # those of no image in the batch, so that all of them see all tokens
            owner=torch.full((keys.shape[2],), site.n),
            bias=None if bias is None else bias.to(q.device),
        )

    def _read(self, name: str, q: Tensor, halves: int) -> Tensor:
        """The keys or values of all guidance halves, ``g h s d``."""
        tokens = []
        for half in range(halves):
            names = {part: f"{name}{half}/{part}" for part in ("full", "mean", "left", "right")}
            parts = {
                part: self.kept[name].to(q.device, q.dtype)
                for part, name in names.items()
                if name in self.kept
            }
            tokens.append(expand(parts))
        return rearrange(tokens, "g s (h d) -> g h s d", h=q.shape[1])


class _Calls:
    """Names the calls of one drawing: layer, progress, guidance halves, and a number.

    The number tells those apart that are alike in the rest: schedulers such as Heun's call the
    UNet twice at a timestep.
    """

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def name(self, site: Site) -> str:
        """The name of the call that is under way; to be asked once for each."""
        # rounded, so that a progress computed in another precision gives the same name
        call = f"{site.layer}/{site.progress:.5f}/{site.g}"
        self._seen[call] += 1
        return f"{call}/{self._seen[call]}"


def compress(x: Tensor, energy: float) -> dict[str, Tensor]:
    """Writes a matrix as its mean row and two factors, or in full where they are no smaller.

    Args:
        x: Finite tokens ``(s c)``; never changed.
        energy: As for ``factor``, about the mean.

    Returns:
        float32 ``mean (c)``, ``left (s r)`` and ``right (r c)``; or ``full (s c)``. For ``expand``.
    """
    x = x.float()
    mean = x.mean(0)
    left, right = factor(x - mean, energy)
    if mean.numel() + left.numel() + right.numel() < x.numel():
        return {"mean": mean, "left": left, "right": right}
    return {"full": x}


def expand(parts: Mapping[str, Tensor]) -> Tensor:
    """The matrix ``(s c)`` that ``compress`` wrote, but for the energy that it left out."""
    if "full" in parts:
        return parts["full"]
    return torch.addmm(parts["mean"], parts["left"], parts["right"])


def factor(a: Tensor, energy: float) -> tuple[Tensor, Tensor]:
    """Gives ``U_r S_r^(1/2)`` and ``S_r^(1/2) V_r^T`` for the matrix ``U S V^T``.

    Their product is the nearest matrix of rank ``r`` (Eckart and Young 1936). Both have half of
    each singular value, so that half precision holds them wherever it holds ``a``.

    Args:
        a: float32 or float64 ``(s c)``; never changed.
        energy: In (0, 1]: ``r`` is the smallest rank with this share of the squared singular
            values; see ``keep_energy``.

    Returns:
        ``(s r)`` and ``(r c)``.
    """
    if a.shape[0] < a.shape[1]:
        left, right = factor(a.mT, energy)
        return right.mT, left.mT
    s, v = decompose(a.mT @ a)
    rank = int(keep_energy(s, energy).count_nonzero())
    v, root = v[:, :rank], s[:rank].clamp_min(torch.finfo(s.dtype).tiny).sqrt()
    return a @ v / root, (v * root).mT


def refuse_uncached(method: Method, name: str) -> None:
    """Makes sure that what a method shares depends on its anchors alone, and they on nothing else.

    Raises:
        ConsistError: It does not, or nothing is shared.
    """
    if reason := method.obstacle(CACHE):
        raise ConsistError(f"{name} cannot be drawn from a cache: {reason}")
