"""Sharing of the subject alone: ConsiStory's subject-driven self-attention, arXiv:2402.03286."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from consist.attention.bank import Bank, keep_tokens
from consist.attention.method import CACHE, MATCHES, WORDS, Site
from consist.methods.shared import Reweighted

# whose subject is shown
ALL, FIRST = "all", "first"


@dataclass(frozen=True, kw_only=True)
class Sdsa(
    Reweighted,
    name="sdsa",
    sees="tokens of the subject, half of them dropped at random",
    after="ConsiStory, arXiv:2402.03286",
):
    """Every image attends to the subject of the anchor images: ConsiStory's SDSA, in one pass.

    Section 4.1, eq. 2-3: ``A_i = softmax(Q_i K+^T / sqrt(d) + log M_i+)``, where ``M_i+`` is 1 for
    own tokens and the subject mask ``M_j`` for those of image ``j``; tokens with ``M = 0`` are
    left out instead. ``anchors`` are those of section 4.4. Without masks, as at the first step,
    nothing is shared. Both guidance halves share, with the mask of the conditional one.

    With ``source="first"`` all anchors say where the subject is, but only that of the first one is
    shown, which is drawn as if alone. Where anchors take from each other, two of them may swap what
    they are instead of agreeing.

    Of several subjects an image sees those that its prompt names, if an anchor's does too; the
    paper's section 4.5 shows all of them to every image instead.

    Query blending and feature injection (sections 4.2 and 4.3) are no part of it. The spectra, if
    there are any, act on all tokens of the anchors, and the mask comes after.

    Args:
        subject: The phrases of the prompts that name it; none stands for what all prompts start
            with.
        masks: How the subject is found: by "words", in cross-attention, or by "matches", what the
            anchors have in common.
        source: The anchors whose subject is shown: "all", or the "first" alone.
        mask_dropout: The chance that a token of the subject is left out, in [0, 1).

    Raises:
        ValueError: A field is out of its range, when made; more anchors than images, when called.
    """

    subject: tuple[str, ...] = ()
    masks: str = WORDS
    source: str = ALL
    mask_dropout: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.masks not in (WORDS, MATCHES):
            raise ValueError(f"masks is {self.masks!r}; allowed: {WORDS!r} or {MATCHES!r}")
        if not isinstance(self.subject, tuple) or not all(self.subject):
            raise ValueError(f"subject is {self.subject!r}; allowed: phrases such as ('cat',)")
        if self.source not in (ALL, FIRST):
            raise ValueError(f"source is {self.source!r}; allowed: {ALL!r} or {FIRST!r}")
        if not 0 <= self.mask_dropout < 1:
            raise ValueError(f"mask_dropout is {self.mask_dropout}; allowed: 0 <= chance < 1")

    def obstacle(self, use: str) -> str:
        """A cache holds one subject, whose words must be known."""
        if use == CACHE and self.reads_words and len(self.subject) != 1:
            return f"it needs one subject to look for, and has {len(self.subject)}"
        return super().obstacle(use)

    def reference_settings(self) -> Mapping[str, Any]:
        """Given pictures do not take from each other, so all of them may be shown."""
        return {"source": ALL}

    def anchor_images(self, site: Site) -> tuple[int, ...]:
        """The images of the batch whose subjects are shared, in ascending order."""
        return () if site.masks is None else super().anchor_images(site)

    def source_images(self, site: Site) -> tuple[int, ...]:
        """The anchors whose subjects are shown."""
        return self.anchor_images(site)[: None if self.source == ALL else 1]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Bank | None:
        """The subject's tokens, for q, k, v ``(g n) h l d``; None before there are masks."""
        if site.masks is None:
            return None
        bank = super().__call__(q, k, v, site)
        if bank is None:
            return None
        anchors = self.anchor_images(site)
        sources = self.source_images(site)
        dropped = site.draw_tokens("mask dropout") < self.mask_dropout
        masks = site.masks & ~dropped[:, None]
        masks[[image for image in anchors if image not in sources]] = False
        named = torch.ones(masks.shape[:2]).bool() if site.named is None else site.named
        return route(bank, masks[list(anchors)], named)


def route(bank: Bank, masks: Tensor, named: Tensor) -> Bank:
    """Keeps the tokens of subjects, and shows them to the images whose prompts name those.

    A token in the masks of several subjects is packed once, for whoever may see any of them; one
    that no other image may see is left out. Tokens of an image that lie in different masks get
    different owners: those of image ``j`` are ``j``, ``n + j``, ``2n + j`` and so on.

    Args:
        bank: All tokens of the anchors, ``s = a l`` in that order; never changed.
        masks: Where each anchor has each subject, bool ``(a, c, l)`` on the CPU.
        named: Which subjects each image's prompt names, bool ``(n, c)`` on the CPU.

    >>> k = torch.zeros(1, 1, 2, 1)
    >>> bank = Bank(k=k, v=k, owner=torch.tensor([0, 0]))
    >>> cat_and_dog, names = torch.eye(2).bool()[None], torch.tensor([[1, 1], [1, 0], [0, 1]])
    >>> route(bank, cat_and_dog, names.bool()).seen_by(3).tolist()
    [[False, False], [True, False], [False, True]]
    """
    images = len(named)
    places = rearrange(masks, "a c l -> c (a l)")
    kind = torch.zeros(places.shape[1], dtype=torch.int64)
    for mask in places:
        # the places inside come first: those of a single subject are of kind 0
        kind = (2 * kind + ~mask).unique(return_inverse=True)[1]
    kinds = torch.zeros(int(kind.max()) + 1, len(places), dtype=torch.bool)
    kinds[kind] = places.T
    seen = rearrange((named[:, None] & kinds).any(-1), "n u -> n u 1")
    visible = rearrange(seen & ~torch.eye(images).bool()[:, None], "n u owner -> n (u owner)")
    owner = kind * images + bank.owner
    return keep_tokens(replace(bank, owner=owner, visible=visible), visible.any(0)[owner])
