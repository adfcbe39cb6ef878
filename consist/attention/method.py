"""What a method is, and what it is told of the place where it is asked.

A method never computes attention and never sees diffusers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from consist.attention.bank import Bank
from consist.attention.batch_split import Spread
from consist.attention.correspondence import RecordedFeatures
from consist.spectra.approximation import Bases

Window = tuple[float, float]  # of progress: [start, stop), and a stop of 1 is included


def is_within(window: Window, progress: float) -> bool:
    """Whether a window is open at a progress of 0 to 1."""
    start, stop = window
    return start <= progress and (progress < stop or stop == 1)


@dataclass(frozen=True, kw_only=True)
class Site:
    """One self-attention call: where in the UNet, when in denoising, and for which batch."""

    layer: str  # dotted name, such as up_blocks.0.attentions.1.transformer_blocks.0.attn1
    height: int  # tokens
    width: int  # tokens
    progress: float  # 0 at pure noise, 1 finished
    g: int  # guidance halves
    n: int  # images in each half
    seed: int = 0
    # where the subjects are, by the phrases that name them, as known from the steps before: bool
    # (n, c, height * width) on the CPU
    masks: Tensor | None = field(default=None, compare=False, repr=False)
    # which phrases the prompt of each image has: bool (n, c) on the CPU; None: all of them
    named: Tensor | None = field(default=None, compare=False, repr=False)
    # queries (g n) h l d of the same call without any sharing, for a method that asked for them
    vanilla_q: Tensor | None = field(default=None, compare=False, repr=False)
    # of the decoder in the step before, for a method that injects
    features: RecordedFeatures | None = field(default=None, compare=False, repr=False)
    # singular vectors of the step before, for a method that begins where that ended
    bases: Bases = field(default_factory=Bases, compare=False, repr=False)
    # where only some of the n images are in the batch of this process: q, k, v are of these then
    spread: Spread | None = field(default=None, compare=False, repr=False)

    def generator(self, scope: str | None = None) -> torch.Generator:
        """A new generator on the CPU for the random choices of this call.

        It depends on seed, scope and progress alone: not on the global one, nor on how many calls
        came before. Every call gives it anew, from its start.

        Args:
            scope: What the calls have in common that make the same choices; by default the layer.
        """
        # rounded, so that a progress computed in another precision gives the same choices
        key = f"{self.seed}/{scope or self.layer}/{self.progress:.5f}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little"))

    def draw_tokens(self, scope: str) -> Tensor:
        """A random number in [0, 1) for each token of each image, float32 ``(n, l)`` on the CPU.

        They are drawn anew at each step and grid, and alike in all layers of it. Those of an image
        do not change with the images after it.

        Args:
            scope: What they are for; another scope gives others.
        """
        generator = self.generator(f"{scope} {self.height}x{self.width}")
        rows = [torch.rand(self.height * self.width, generator=generator) for _ in range(self.n)]
        return torch.stack(rows)


class Method(Protocol):
    """Says what the images of a batch share in the layers that it covers."""

    def covers(self, layer: str) -> bool:
        """Whether the self-attention layer of that dotted name is asked at all."""

    def anchor_count(self, images: int) -> int:
        """How many of ``images`` images, the first ones, must be drawn in every batch."""

    def anchor_images(self, site: Site) -> tuple[int, ...]:
        """The images of the batch whose tokens are shared, in ascending order."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Bank | None:
        """What is shared at this site, for q, k, v ``(g n) h l d``; None: nothing."""


# where the masks of a method are from: the words for its subject, what the anchors have in common,
# or nowhere
WORDS, MATCHES, NONE = "words", "matches", "none"


@runtime_checkable
class Masked(Method, Protocol):
    """A method that may be told where the subject is: it reads ``masks`` of a site."""

    @property
    def masks(self) -> str:
        """Where they are from: ``WORDS``, ``MATCHES`` or ``NONE``."""


@runtime_checkable
class Named(Masked, Protocol):
    """A method that can look for words of the prompts."""

    @property
    def subject(self) -> tuple[str, ...]:
        """The phrases of the prompts that name it; none: what all prompts start with."""


# the guidance halves in which the images of a method share
BOTH, CONDITIONAL = "both", "conditional"


@runtime_checkable
class Halving(Method, Protocol):
    """A method that may leave the unconditional half alone."""

    @property
    def halves(self) -> str:
        """The guidance halves it is asked in: ``BOTH`` or ``CONDITIONAL``."""


def halves_of(method: Method) -> str:
    """The guidance halves in which any method is asked."""
    return method.halves if isinstance(method, Halving) else BOTH


def masks_of(method: Method) -> str:
    """Where the masks of any method are from."""
    return method.masks if isinstance(method, Masked) else NONE


def reads_words(method: Method) -> TypeGuard[Named]:
    """Whether a method looks for words of the prompts, and must be told of them."""
    return isinstance(method, Named) and method.masks == WORDS


@runtime_checkable
class Rewriting(Method, Protocol):
    """A method that changes what the images of the batch themselves look for and show."""

    def rewrite(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> tuple[Tensor, Tensor, Tensor]:
        """The q, k, v ``(g n) h l d`` that take the place of those given, which never change.

        It comes before the method is asked what is shared, which then sees the new ones.
        """


@runtime_checkable
class Prompting(Method, Protocol):
    """A method that draws all images from one prompt which holds them."""

    @property
    def subject(self) -> tuple[str, ...]:
        """The phrases that the identity ends with; none: what all prompts start with."""

    @property
    def frames(self) -> int | str:
        """How many prompts are joined into one, or "all"."""

    @property
    def ipca(self) -> float:
        """The weight of the identity's appended words; 0: cross-attention stays as it is."""

    def reweight(
        self, text: Tensor, frames: Sequence[Sequence[int]], current: int, ends: Sequence[int]
    ) -> Tensor:
        """The embeddings ``(s c)`` of the image whose frame is ``current``, from those of all."""

    def text_bias(self, named: Tensor, site: Site) -> Tensor:
        """Log-weights ``(n, l or 1, s)`` of the text, the identity being ``named`` ``(n, s)``."""


def asks_for_subject(method: Method) -> TypeGuard[Named | Prompting]:
    """Whether a method reads the phrases of its subject: to look for them, or to end with them."""
    return reads_words(method) or isinstance(method, Prompting)


@runtime_checkable
class Blending(Rewriting, Protocol):
    """A method that rewrites with the queries of an undisturbed UNet: ``vanilla_q`` of a site."""

    def blends(self, layer: str, progress: float) -> bool:
        """Whether a layer that is covered asks for them; they cost one more call of the UNet."""


@runtime_checkable
class Injecting(Method, Protocol):
    """A method that changes what self-attention gives; it reads ``features`` of a site."""

    def inject(self, out: Tensor, site: Site) -> Tensor:
        """What takes the place of ``out (g n) l c``, which never changes."""
