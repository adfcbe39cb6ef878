"""All scenes in one prompt, told apart by singular values: 1Prompt1Story, arXiv:2501.13554.

Prompts are joined, tokenized and encoded in ``consist.prompts.one_prompt``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from consist.attention.bank import Bank
from consist.attention.method import ONE_STEP, Site
from consist.errors import ConsistError
from consist.methods.shared import Reweighted
from consist.spectra.decomposition import decompose

END_SCALE = 0.9  # of the end tokens at every reweighting, with ends="scaled"


@dataclass(frozen=True, kw_only=True)
class OnePrompt(
    Reweighted,
    name="one-prompt",
    sees="nothing: one prompt holds all scenes, told apart by singular values",
    after="1Prompt1Story, arXiv:2501.13554",
):
    """Draws every image from one prompt that holds all scenes, with its own scene made to lead.

    1Prompt1Story has three parts. The prompt ``[P0; P1; ...; PN]`` is the identity ``P0`` and what
    each prompt goes on with, its frame. Singular-value reweighting (eq. 2-3) suppresses each other
    frame in the text embeddings, and expresses the frame that is drawn. Identity-preserving
    cross-attention appends the keys and values of the identity's words.

    Signs and constants are those of the authors' code, ``beta exp(-alpha s) s`` with a negative
    ``alpha`` to express, since the paper's appendix has the two betas the other way round. So is
    the order, first suppress and then express, for which the constants were chosen; the paper
    writes it the other way round and finds both alike. Unlike there, the start token is not
    appended together with the identity: it is no word of it.

    The same noise for all images raises their scores by itself and is no part of the method; the
    command line has ``--same-noise``. SDXL's pooled embedding is that of the whole prompt.

    With ``shared`` self-attention is that of ``Reweighted``, whose fields else have no effect.

    Args:
        subject: The phrases that the identity ends with; none stands for what all prompts start
            with.
        frames: How many prompts are joined into one: "all", or so many, in a circle from the drawn
            one on.
        express: The constants alpha and beta for the frame that is drawn.
        suppress: The constants alpha and beta for each other frame.
        ends: What becomes of end tokens: "reweighted" with each frame, or "scaled" instead.
        ipca: The weight of the identity's appended words, at least 0; 0 appends none.
        ipca_dropout: The chance that a place does not see one of them, in [0, 1).
        shared: Whether self-attention is shared too.
        values: The spectrum of the shared values, which is flattened here.

    Raises:
        ValueError: A field is out of its range, when made; more anchors than images, when called.
    """

    joins_prompts = True

    subject: tuple[str, ...] = ()
    frames: int | str = "all"
    express: tuple[float, float] = (-0.01, 1.0)
    suppress: tuple[float, float] = (0.01, 0.05)
    ends: str = "reweighted"
    ipca: float = 1.0
    ipca_dropout: float = 0.0
    shared: bool = False
    values: str = "log2"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.subject, tuple) or not all(self.subject):
            raise ValueError(f"subject is {self.subject!r}; allowed: phrases such as ('cat',)")
        if self.frames != "all" and (type(self.frames) is not int or self.frames < 1):
            raise ValueError(f"frames is {self.frames!r}; allowed: 'all' or a whole number from 1")
        for name, pair in (("express", self.express), ("suppress", self.suppress)):
            if len(pair) != 2 or not all(map(math.isfinite, pair)) or pair[1] < 0:
                raise ValueError(f"{name} is {pair}; allowed: finite alpha, and beta of at least 0")
        if self.ends not in ("reweighted", "scaled"):
            raise ValueError(f"ends is {self.ends!r}; allowed: 'reweighted' or 'scaled'")
        if not 0 <= self.ipca < math.inf:
            raise ValueError(f"ipca is {self.ipca}; allowed: finite and at least 0")
        if not 0 <= self.ipca_dropout < 1:
            raise ValueError(f"ipca_dropout is {self.ipca_dropout}; allowed: 0 <= chance < 1")

    def obstacle(self, use: str) -> str:
        """Every picture depends on all prompts."""
        return "" if use == ONE_STEP else "it draws all pictures from one prompt"

    def anchor_count(self, images: int) -> int:
        """How many of ``images`` images, the first ones, must be drawn in every batch."""
        return super().anchor_count(images) if self.shared else 0

    def anchor_images(self, site: Site) -> tuple[int, ...]:
        """The images of the batch whose tokens are shared, in ascending order."""
        return super().anchor_images(site) if self.shared else ()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Bank | None:
        """What self-attention shares, as ``Reweighted``; None unless ``shared``."""
        return super().__call__(q, k, v, site) if self.shared else None

    def reweight(
        self, text: Tensor, frames: Sequence[Sequence[int]], current: int, ends: Sequence[int]
    ) -> Tensor:
        """The text embeddings of one image: other frames suppressed, its own one expressed.

        Eq. 2-3, one frame after the other, with the end tokens as those before have left them.

        Args:
            text: Embeddings ``(s c)`` of one text encoder; never changed.
            frames: The positions of each frame's tokens; an empty one is passed over.
            current: The frame that is drawn.
            ends: The positions of the end tokens, which carry the meaning of all frames.

        Returns:
            ``(s c)``, float64 inside, input dtype out.

        Raises:
            ConsistError: ``alpha`` is so far from 0 that embeddings overflow.
        """
        others = [frame for number, frame in enumerate(frames) if number != current]
        steps = [(frame, self.suppress) for frame in others] + [(frames[current], self.express)]
        changed = text.detach().to("cpu", torch.float64, copy=True)
        for frame, (alpha, beta) in steps:
            if not frame:
                continue
            rows = list(frame)
            if self.ends == "reweighted":
                rows += ends
            else:
                changed[list(ends)] *= END_SCALE
            changed[rows] = scale_singular_values(changed[rows], alpha, beta)
        changed = changed.to(text)
        if not changed.isfinite().all():
            raise ConsistError(
                f"text embeddings overflow with express={self.express} and "
                f"suppress={self.suppress}; take an alpha nearer to 0"
            )
        return changed

    def text_bias(self, named: Tensor, site: Site) -> Tensor:
        """The natural log-weight of each token of the text in cross-attention.

        Identity-preserving cross-attention appends the keys and values of the identity's words,
        encoded alone. A text encoder that looks back only, as CLIP does, gives these words the same
        embeddings in any prompt that starts with them, and ``reweight`` leaves those alone. So what
        is appended is there already, and to append it ``w`` times is to add ``ln(1 + w)``.

        Args:
            named: The tokens of the identity in each image's prompt, bool ``(n, s)`` on the CPU.
            site: The cross-attention layer; its tokens ``l`` are places.

        Returns:
            float32 ``(n, l, s)`` on the CPU, or ``(n, 1, s)`` if it is the same at all places.
        """
        places = site.height * site.width if self.ipca_dropout else 1
        # alike in all images, so that none depends on its number in the batch
        kept = torch.rand(places, named.shape[1], generator=site.generator()) >= self.ipca_dropout
        return torch.log1p(self.ipca * (named[:, None] & kept))


def scale_singular_values(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Gives ``U diag(beta exp(-alpha s) s) V^T`` for the matrix ``U diag(s) V^T``.

    Singular-value reweighting, arXiv:2501.13554, eq. 2-3: with ``alpha < 0`` the large ones grow
    most, with ``alpha > 0`` they shrink most. It depends on the scale of ``x``.

    Args:
        x: Tokens below one another, float64 ``(l c)``; never changed.
        alpha: In units of 1 over a singular value; 0 treats all alike.
        beta: At least 0.

    Returns:
        ``(l c)``.

    >>> scale_singular_values(torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double(), 0.0, 0.5)
    tensor([[1.0000, 0.0000],
            [0.0000, 0.5000]], dtype=torch.float64)
    """
    s, u = decompose(x @ x.mT)
    return (u * (beta * torch.exp(-alpha * s))) @ u.mT @ x
