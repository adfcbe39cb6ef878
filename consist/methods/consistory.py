"""ConsiStory, arXiv:2402.03286: shared subjects, blended queries and injected features."""

from dataclasses import dataclass

import torch
from torch import Tensor

from consist.attention.bank import Bank
from consist.attention.correspondence import Matches
from consist.attention.method import PROCESSES, Site, Window, is_within
from consist.methods.sdsa import Sdsa

INJECTED = ("down_blocks.", "up_blocks.")  # features are injected in encoder and decoder


@dataclass(frozen=True, kw_only=True)
class Consistory(
    Sdsa,
    name="consistory",
    sees="as sdsa; early queries are blended, matching features injected",
    after="ConsiStory, arXiv:2402.03286",
):
    """Sdsa, with layouts that vary more and details of the subject that agree more.

    Query blending (section 4.2, eq. 4): ``Q* = (1 - nu) Q_sdsa + nu Q_vanilla`` in the layers that
    share. ``Q_vanilla`` is of a forward of the UNet on the same latents without any sharing, which
    is run while the window is open; not at the first step, where nothing is shared. ``nu`` falls
    in a straight line over the window, the first 5 of 50 steps; the code of the paper has 6.

    Feature injection (section 4.3, appendix B): ``x <- (1 - alpha) x + alpha x_source`` on what
    self-attention gives, in the conditional half, where a place of the subject has a near match in
    an anchor; see ``consist.attention.correspondence``. It acts on the grid of the features, that
    of 64 x 64 tokens in SDXL, in encoder and decoder, for t in [680, 900] of 1000; the code goes on
    to 661. Anchors inject from each other (section 4.4). All sources are read as they were before
    any injection; in the code later images read earlier ones that are already injected into.

    Deviation: features and masks are those of the steps before, so that one run is enough. The
    paper takes them from a first run, features at t = 261, where there is less noise. 50 steps of
    DDIM need 54 calls of the UNet, those of the code 112. A window that no step falls into, as may
    be with few steps, does nothing. The vanilla queries of all layers are in memory at a time.

    Args:
        blending: The weights ``nu`` of vanilla queries where their window starts and stops, each in
            [0, 1].
        blending_window: When queries are blended: progress, 0 <= start < stop <= 1.
        injection: The weight ``alpha`` of injected features, in [0, 1].
        injection_window: When features are injected: progress, 0 <= start < stop <= 1.

    Raises:
        ValueError: A field is out of its range, when made; more anchors than images, when called.
    """

    reads_features = True
    reads_plain_queries = True

    blending: tuple[float, float] = (0.9, 0.8)
    blending_window: Window = (0.0, 0.1)
    injection: float = 0.8
    injection_window: Window = (0.1, 0.32)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.blending) != 2 or not all(0 <= nu <= 1 for nu in self.blending):
            raise ValueError(f"blending is {self.blending}; allowed: two weights in [0, 1]")
        if not 0 <= self.injection <= 1:
            raise ValueError(f"injection is {self.injection}; allowed: 0 <= weight <= 1")
        for name in ("blending_window", "injection_window"):
            window = getattr(self, name)
            if len(window) != 2 or not 0 <= window[0] < window[1] <= 1:
                raise ValueError(f"{name} is {window}; allowed: 0 <= start < stop <= 1")

    def obstacle(self, use: str) -> str:
        """Injected features come from anchors that are drawn in the same process."""
        if use == PROCESSES:
            return "features of the anchors are injected into each picture"
        return super().obstacle(use)

    def covers(self, layer: str) -> bool:
        """Whether ``layer`` is one that shares, or one that features may be injected in."""
        return super().covers(layer) or (self.injection > 0 and layer.startswith(INJECTED))

    def blends(self, layer: str, progress: float) -> bool:
        """Whether ``layer`` asks for its queries of a plain forward."""
        is_open = is_within(self.blending_window, progress) and is_within(self.window, progress)
        return is_open and max(self.blending) > 0 and super().covers(layer)

    def rewrite(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> tuple[Tensor, Tensor, Tensor]:
        """Blends ``q (g n) h l d`` with the vanilla queries, if the site has them."""
        if site.vanilla_q is None or not self._is_open(site):
            return q, k, v
        (first, last), (start, stop) = self.blending, self.blending_window
        nu = first + (last - first) * (site.progress - start) / (stop - start)
        return (1 - nu) * q + nu * site.vanilla_q, k, v

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Bank | None:
        """The subject's tokens as of ``Sdsa``; None in layers that are covered for injection."""
        return super().__call__(q, k, v, site) if super().covers(site.layer) else None

    def inject(self, out: Tensor, site: Site) -> Tensor:
        """Blends matched features into the conditional half of ``out (g n) l c``; a copy."""
        matches = self._find_matches(site)
        if matches is None:
            return out
        others, conditional = out[: -site.n], out[-site.n :]
        found = conditional[matches.image, matches.place]
        blended = (1 - self.injection) * conditional + self.injection * found
        injected = torch.where(matches.accepted[..., None], blended, conditional)
        return torch.cat((others, injected))

    def _find_matches(self, site: Site) -> Matches | None:
        injected = self.injection > 0 and site.layer.startswith(INJECTED)
        if not injected or not is_within(self.injection_window, site.progress) or site.n == 1:
            return None
        if site.features is None or site.masks is None:
            return None
        sources = self.source_images(site)
        return site.features.match((site.height, site.width), site.masks, sources, site.named)
