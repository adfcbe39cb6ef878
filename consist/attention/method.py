"""What a method is, and what it is told of the place where it is asked.

A method never computes attention and never sees diffusers.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from consist.attention.bank import Bank
from consist.attention.batch_split import Spread
from consist.attention.correspondence import RecordedFeatures
from consist.settings.fields import document_fields
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


# where the masks of a method are from: the words for its subject, what the anchors have in common,
# or nowhere
WORDS, MATCHES, NONE = "words", "matches", "none"

# the guidance halves in which the images of a method share
BOTH, CONDITIONAL = "both", "conditional"

# what a method may be asked to allow
EXTEND, CACHE, REFERENCES = "extend", "cache", "references"
PROCESSES, ONE_STEP = "processes", "one step"
USES = (EXTEND, CACHE, REFERENCES, PROCESSES, ONE_STEP)

# every method that has a name, in the order in which they were defined
METHODS: dict[str, type["Method"]] = {}


class Method:
    """Says what the images of a batch share; by itself nothing, as all of it is neutral.

    A method is a frozen dataclass that overrides what it does. With a name it is in ``METHODS``
    from then on, and so on the command line:

    ```python
    @dataclass(frozen=True, kw_only=True)
    class Mean(Method, name="mean", sees="the mean token of the anchors", after="ours"):
    ```

    Class arguments:
        name: What it is called on the command line; "" for one that is not offered there.
        sees: What an image sees of the others, for tables.
        after: The paper with its number, or "ours".
    """

    name = ""
    sees = ""
    after = ""

    # phrases of the prompts that name the subject; (): what all prompts start with
    subject: tuple[str, ...] = ()
    # where ``masks`` of a site are from: ``WORDS``, ``MATCHES`` or ``NONE``
    masks: str = NONE
    # the guidance halves it is asked in: ``BOTH`` or ``CONDITIONAL``
    halves: str = BOTH
    # whether it reads ``features`` of a site
    reads_features = False
    # whether it may read ``vanilla_q`` of a site; ``blends`` says where
    reads_plain_queries = False
    # whether all images are drawn from one prompt; then the last four functions are asked too
    joins_prompts = False
    # how many prompts are joined into one, or "all"
    frames: int | str = "all"
    # the weight of the identity's appended words; 0: cross-attention stays as it is
    ipca: float = 0.0

    def __init_subclass__(cls, name: str = "", sees: str = "", after: str = "", **given: Any):
        super().__init_subclass__(**given)
        cls.name, cls.sees, cls.after = name, sees, after
        document_fields(cls)
        if name:
            METHODS[name] = cls

    @property
    def reads_words(self) -> bool:
        """Whether it looks for words of the prompts, and must be told of them."""
        return self.masks == WORDS

    @property
    def wants_subject(self) -> bool:
        """Whether it reads ``subject``: to look for it, or to end the identity with it."""
        return self.reads_words or self.joins_prompts

    def obstacle(self, use: str) -> str:
        """Why it does not allow a use of ``USES``, as "it shares nothing"; "" if it does."""
        if use == ONE_STEP:
            waits = self.masks != NONE
            return f"{self.name} finds the subject in the steps before" if waits else ""
        if use == PROCESSES or self.anchor_count(1):
            return ""
        return "it shares nothing"

    def reference_settings(self) -> Mapping[str, Any]:
        """The fields that are set for given pictures in the place of anchors, unless they are."""
        return {}

    def covers(self, layer: str) -> bool:
        """Whether the self-attention layer of that dotted name is asked at all."""
        return True

    def anchor_count(self, images: int) -> int:
        """How many of ``images`` images, the first ones, must be drawn in every batch."""
        return 0

    def anchor_images(self, site: Site) -> tuple[int, ...]:
        """The images of the batch whose tokens are shared, in ascending order."""
        return ()

    def blends(self, layer: str, progress: float) -> bool:
        """Whether a covered layer asks for ``vanilla_q``; it costs one more call of the UNet."""
        return False

    def rewrite(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> tuple[Tensor, Tensor, Tensor]:
        """The q, k, v ``(g n) h l d`` that take the place of those given, which never change.

        It comes before the method is asked what is shared, which then sees the new ones.
        """
        return q, k, v

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Bank | None:
        """What is shared at this site, for q, k, v ``(g n) h l d``; None: nothing."""
        return None

    def inject(self, out: Tensor, site: Site) -> Tensor:
        """What takes the place of ``out (g n) l c``, what attention gave, which never changes."""
        return out

    def reweight(
        self, text: Tensor, frames: Sequence[Sequence[int]], current: int, ends: Sequence[int]
    ) -> Tensor:
        """The embeddings ``(s c)`` of the image whose frame is ``current``, from those of all."""
        return text

    def text_bias(self, named: Tensor, site: Site) -> Tensor:
        """Log-weights ``(n, l or 1, s)`` of the text, the identity being ``named`` ``(n, s)``."""
        return torch.zeros(named.shape[0], 1, named.shape[1])
