"""Sharing of the subject alone: ConsiStory's subject-driven self-attention, arXiv:2402.03286."""

from dataclasses import dataclass

import torch
from torch import Tensor

from consist.methods.method import Site
from consist.methods.spectral import Spectral
from consist.sharing import Bank, keep_tokens


@dataclass(frozen=True, kw_only=True)
class Sdsa(Spectral):
    """Every image attends to the subject of the anchor images: ConsiStory's SDSA, in one pass.

    Section 4.1, eq. 2-3: ``A_i = softmax(Q_i K+^T / sqrt(d) + log M_i+)``, where ``M_i+`` is 1 for
    own tokens and the subject mask ``M_j`` for those of image ``j``; tokens with ``M = 0`` are
    left out instead. ``anchors`` are those of section 4.4. Without masks, as at the first step,
    nothing is shared. Both guidance halves share, with the mask of the conditional one.

    Query blending and feature injection (sections 4.2 and 4.3) are no part of it. The spectra, if
    there are any, act on all tokens of the anchors, and the mask comes after.

    Raises:
        ValueError: A field is out of its range, when made; more anchors than images, when called.
    """

    subject: tuple[str, ...] = ()  # phrases of the prompts; none: what all prompts start with
    mask_dropout: float = 0.5  # chance that a subject token is left out, in [0, 1)
    keys: str = "identity"  # spectrum of the keys, see consist.spectrum.parse_spectrum
    values: str = "identity"  # spectrum of the values

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.subject, tuple) or not all(self.subject):
            raise ValueError(f"subject is {self.subject!r}; allowed: phrases such as ('cat',)")
        if not 0 <= self.mask_dropout < 1:
            raise ValueError(f"mask_dropout is {self.mask_dropout}; allowed: 0 <= chance < 1")

    def anchor_images(self, site: Site) -> tuple[int, ...]:
        """The images of the batch whose subjects are shared, in ascending order."""
        return () if site.masks is None else super().anchor_images(site)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Bank | None:
        """The subject's tokens, for q, k, v ``(g n) h l d``; None before there are masks."""
        if site.masks is None:
            return None
        bank = super().__call__(q, k, v, site)
        if bank is None:
            return None
        anchors = list(self.anchor_images(site))
        kept = site.masks & ~self._dropped(site)
        return keep_tokens(bank, kept[anchors].flatten())

    def _dropped(self, site: Site) -> Tensor:
        """Mask dropout, bool ``(n, l)``: drawn anew at each step, alike in all layers of a grid."""
        generator = site.generator(f"mask dropout {site.height}x{site.width}")
        # row by row, so that those of an image do not change with the images after it
        rows = [torch.rand(site.height * site.width, generator=generator) for _ in range(site.n)]
        return torch.stack(rows) < self.mask_dropout
