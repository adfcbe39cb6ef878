"""Sharing of all tokens of the anchor images, plain or with reweighted singular values.

Spectral sharing is the idea of E. Grishina's coursework (HSE, 29.04.25): the leading singular
values of an anchor's keys and values carry the subject, the small ones its background.
"""

from dataclasses import dataclass

from torch import Tensor

from consist.attention.bank import Bank, keep_tokens
from consist.attention.method import MATCHES, NONE, Site
from consist.methods.shared import Reweighted


@dataclass(frozen=True, kw_only=True)
class Spectral(
    Reweighted,
    name="spectral",
    sees="all tokens, the singular values of their values flattened",
    after="Grishina 2025",
):
    """All tokens of the anchors, with small singular values zeroed and the rest reweighted.

    Grishina 2025 has ``width="full"``, ``pool="anchor"``, ``centered=False``: singular values alone
    shall keep backgrounds out. Here keys are shared as they are, and the spectrum of the values is
    flattened: what leaked less at no loss of identity in ``docs/results/spectra.md``. With
    ``masks="matches"`` only those tokens of each anchor are shared that all other anchors have
    something like, see ``consist.attention.common_tokens``; none at the first step, before that is
    known.

    Args:
        masks: Which tokens are shared: "none" of them is left out, or "matches", those that the
            anchors have in common.
        values: The spectrum of the values, which is flattened here.

    Raises:
        ValueError: A field is out of its range, when made; more anchors than images, when called.
    """

    masks: str = NONE
    values: str = "log2"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.masks not in (NONE, MATCHES):
            raise ValueError(f"masks is {self.masks!r}; allowed: {NONE!r} or {MATCHES!r}")

    def anchor_images(self, site: Site) -> tuple[int, ...]:
        """The images of the batch whose tokens are shared, in ascending order."""
        waits = self.masks == MATCHES and site.masks is None
        return () if waits else super().anchor_images(site)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Bank | None:
        """What is shared at this site; the spectra act on all tokens, and the masks come after."""
        anchors = list(self.anchor_images(site))
        bank = super().__call__(q, k, v, site) if anchors else None
        if bank is None or self.masks == NONE or site.masks is None:
            return bank
        return keep_tokens(bank, site.masks[anchors].any(1).flatten())
