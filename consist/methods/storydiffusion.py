"""Sharing of random tokens: StoryDiffusion's consistent self-attention, arXiv:2405.01434."""

from dataclasses import dataclass

import torch
from torch import Tensor

from consist.attention.bank import Bank, keep_tokens
from consist.attention.method import Site
from consist.methods.shared import Shared


@dataclass(frozen=True, kw_only=True)
class StoryDiffusion(
    Shared,
    name="storydiffusion",
    sees="a random half of the tokens",
    after="StoryDiffusion, arXiv:2405.01434",
):
    """Every image attends to a random share of the tokens of the other images.

    ``softmax(Q_i [K_i, K_S]^T / sqrt(d)) [V_i, V_S]``, where ``S`` are tokens that were drawn from
    the other images. As in the paper's code (HVision-NKU/StoryDiffusion, 8de45e4) they are drawn
    once for each step and grid, for all layers and all who see them, each token by itself.

    That code also leaves single layers alone by chance, which the defaults do not. What it has for
    step 0, steps 1 to 19 and steps 20 to 49 of 50 is ``window=(0.02, 1.0)``, ``chances=(0.7, 0.9)``
    and ``warm_up=0.4``. What it calls identity images is the first ``anchors``.

    Args:
        rate: The chance that a token of another image is seen, in (0, 1]; 1 shows all.
        chances: The chances that a layer shares at a step, in warm-up and after it, each in [0, 1].
        warm_up: The progress at which warm-up is over, in [0, 1].

    Raises:
        ValueError: A field is out of its range, when made; more anchors than images, when called.
    """

    rate: float = 0.5
    chances: tuple[float, float] = (1.0, 1.0)
    warm_up: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate is {self.rate}; allowed: 0 < chance <= 1")
        if len(self.chances) != 2 or not all(0 <= chance <= 1 for chance in self.chances):
            raise ValueError(f"chances is {self.chances}; allowed: two numbers from 0 to 1")
        if not 0 <= self.warm_up <= 1:
            raise ValueError(f"warm_up is {self.warm_up}; allowed: 0 <= progress <= 1")

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Bank | None:
        """The drawn tokens, for q, k, v ``(g n) h l d``; None where the images stay alone."""
        bank = super().__call__(q, k, v, site)
        if bank is None:
            return None
        drawn = site.draw_tokens("sampling") < self.rate
        return keep_tokens(bank, drawn[list(self.anchor_images(site))].flatten())

    def _is_open(self, site: Site) -> bool:
        early, late = self.chances
        chance = early if site.progress < self.warm_up else late
        generator = site.generator(f"sharing in {site.layer}")
        return super()._is_open(site) and float(torch.rand((), generator=generator)) < chance
