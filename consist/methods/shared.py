"""All tokens of the anchors, as they are or reweighted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from consist.attention.backends import filter_tokens
from consist.attention.bank import Bank, pack
from consist.attention.method import BOTH, CONDITIONAL, EXTEND, Method, Site, Window, is_within
from consist.spectra.approximation import SOLVERS, find_solver
from consist.spectra.rules import parse_spectrum


@dataclass(frozen=True, kw_only=True)
class Shared(
    Method,
    name="shared",
    sees="all tokens of the anchors",
    after="ConsiStory without masks, arXiv:2402.03286",
):
    """Every image attends to all tokens of the anchor images: ConsiStory without its masks.

    Self-attention of arXiv:2402.03286, eq. 2-3, with M = 1 for anchors.

    With ``halves="conditional"`` the unconditional guidance half looks at itself alone, so that
    guidance moves away from what the image is without the others: in ``u + w (c - u)`` what is
    shared weighs ``w`` times as much as where ``u`` shares too. Without guidance it is the same.

    Args:
        anchors: The images that are seen: the first so many, from 1; "all"; or "random", one that
            is drawn anew at each call.
        layers: Where it shares, as beginnings of dotted layer names.
        sides: Where it shares, by the longer side of the token grid: 1 <= smallest <= largest,
            in tokens.
        window: When it shares: progress from start to stop, 0 <= start < stop <= 1; 0 is pure
            noise, 1 is finished. A stop of 1 is included, any other is not.
        strength: The weight of a shared token against an own one, above 0.
        halves: The guidance halves that share: "both" or "conditional".

    Raises:
        ValueError: A field is out of its range, when made; more anchors than images, when called.
    """

    anchors: int | str = "all"
    layers: tuple[str, ...] = ("up_blocks",)
    sides: tuple[int, int] = (1, 65536)
    window: Window = (0.0, 1.0)
    strength: float = 1.0
    halves: str = BOTH

    def __post_init__(self) -> None:
        named = self.anchors in ("all", "random")
        if not named and (type(self.anchors) is not int or self.anchors < 1):
            raise ValueError(
                f"anchors is {self.anchors!r}; allowed: 'all', 'random' or a whole number from 1"
            )
        if not isinstance(self.layers, tuple) or not self.layers or not all(self.layers):
            raise ValueError(
                f"layers is {self.layers!r}; allowed: a tuple of beginnings such as ('up_blocks',)"
            )
        if len(self.sides) != 2 or not 1 <= self.sides[0] <= self.sides[1]:
            raise ValueError(f"sides is {self.sides}; allowed: 1 <= smallest <= largest, in tokens")
        if len(self.window) != 2 or not 0 <= self.window[0] < self.window[1] <= 1:
            raise ValueError(f"window is {self.window}; allowed: 0 <= start < stop <= 1")
        if not 0 < self.strength < math.inf:
            raise ValueError(f"strength is {self.strength}; allowed: finite and above 0")
        if self.halves not in (BOTH, CONDITIONAL):
            raise ValueError(f"halves is {self.halves!r}; allowed: {BOTH!r} or {CONDITIONAL!r}")

    def obstacle(self, use: str) -> str:
        """Random anchors do not allow further pictures."""
        if use == EXTEND and self.anchors == "random":
            return (
                "with random anchors each picture depends on all others; "
                "take anchors that are all or a number"
            )
        return super().obstacle(use)

    def covers(self, layer: str) -> bool:
        """Whether ``layer`` lies in one of ``layers``, by whole parts of its dotted name."""
        return any(f"{layer}.".startswith(f"{start}.") for start in self.layers)

    def anchor_count(self, images: int) -> int:
        """How many of ``images`` images, the first ones, must be drawn in every batch."""
        return self.anchors if isinstance(self.anchors, int) else images

    def anchor_images(self, site: Site) -> tuple[int, ...]:
        """The images of the batch whose tokens are shared, in ascending order."""
        if self.anchors == "random":
            return (int(torch.randint(site.n, (), generator=site.generator())),)
        count = site.n if self.anchors == "all" else int(self.anchors)
        if count > site.n:
            raise ValueError(f"anchors is {count}; allowed: at most {site.n}, the images there are")
        return tuple(range(count))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Bank | None:
        """What is shared at this site, for q, k, v ``(g n) h l d``; None outside window or sides.

        None for a single image too: it never sees its own tokens twice, and there are no others.
        """
        anchors = self.anchor_images(site)
        if site.n == 1 or not self._is_open(site):
            return None
        bias = None
        if self.strength != 1:
            weight = math.log(self.strength)
            bias = torch.full((len(anchors), k.shape[2]), weight, device=k.device)
        if site.spread:
            return site.spread.pack(k, v, anchors, bias=bias)
        return pack(k, v, anchors, images=site.n, bias=bias)

    def _is_open(self, site: Site) -> bool:
        fits = self.sides[0] <= max(site.height, site.width) <= self.sides[1]
        return fits and is_within(self.window, site.progress)


# the matrix that is decomposed, by width and pool: tokens before features
MATRICES = {
    ("head", "anchor"): "g h a l d",
    ("head", "all"): "g h (a l) d",
    ("full", "anchor"): "g a l (h d)",
    ("full", "all"): "g (a l) (h d)",
}


@dataclass(frozen=True, kw_only=True)
class Reweighted(Shared):
    """Shared, with the singular values of the anchors' keys and values reweighted.

    An image's own keys and values stay as they are; the guidance halves are never mixed.

    Args:
        keys: The spectrum of the keys, as text such as "energy:0.95"; "identity" leaves them alone.
        values: The spectrum of the values, as text too.
        width: The matrix that is decomposed: each "head" alone, or "full", all heads side by side.
        pool: Whose tokens it has: each "anchor" alone, or "all" of them below one another.
        centered: Whether the mean token is kept out of the reweighting.
        solver: How the map is found: "exact" by eigh, "fast" by products alone, or "auto", which is
            fast on CUDA only.

    Raises:
        ValueError: A field is out of its range, when made; more anchors than images, when called.
    """

    keys: str = "identity"
    values: str = "identity"
    width: str = "head"
    pool: str = "all"
    centered: bool = True
    solver: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, text in (("keys", self.keys), ("values", self.values)):
            try:
                parse_spectrum(text)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        if self.width not in ("head", "full"):
            raise ValueError(f"width is {self.width!r}; allowed: 'head' or 'full'")
        if self.pool not in ("anchor", "all"):
            raise ValueError(f"pool is {self.pool!r}; allowed: 'anchor' or 'all'")
        if self.solver not in SOLVERS:
            raise ValueError(f"solver is {self.solver!r}; allowed: {', '.join(SOLVERS)}")

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Bank | None:
        """What is shared at this site, reweighted; else as ``Shared``."""
        bank = super().__call__(q, k, v, site)
        if bank is None or self.keys == self.values == "identity":
            return bank
        anchors = bank.k.shape[2] // k.shape[2]
        return replace(
            bank,
            k=self._filter(bank.k, "keys", anchors, site),
            v=self._filter(bank.v, "values", anchors, site),
        )

    def _filter(self, x: Tensor, kind: str, anchors: int, site: Site) -> Tensor:
        """Reweights "keys" or "values"."""
        packed, matrix = "g h (a l) d", MATRICES[self.width, self.pool]
        matrices = rearrange(x, f"{packed} -> {matrix}", a=anchors)
        text = self.keys if kind == "keys" else self.values
        place = f"{kind} of {site.layer}"
        solve = find_solver(self.solver, text, x.device, site.bases, place, site.progress)
        spectrum = parse_spectrum(text)
        filtered = filter_tokens(matrices, spectrum, centered=self.centered, solve=solve)
        return rearrange(filtered, f"{matrix} -> {packed}", a=anchors, h=x.shape[1])
