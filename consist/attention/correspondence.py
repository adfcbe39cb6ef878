"""Which places of pictures show the same part of a subject: matches between features.

Diffusion features (DIFT, arXiv:2306.03881) as ConsiStory uses them (arXiv:2402.03286, section 4.3
and appendix B). Knows tensors alone, nothing of layers or methods. Axes: ``n`` image, ``c``
channel, ``p`` phrase that names a subject, ``l`` place of a grid, row by row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

from consist.attention.masks import normalize, otsu

FARTHEST = 2.0  # cosine distance of opposite vectors, and of a place that has no match


@dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """The place that shows the same, for each place of each image: all ``(n, l)``.

    Args:
        image: Index of the matched image in the batch, int64.
        place: Place in that image, int64 in [0, l).
        accepted: Whether the place is subject and its match is near, bool.
    """

    image: Tensor
    place: Tensor
    accepted: Tensor


def smooth(features: Tensor) -> Tensor:
    """Smooths each channel of ``(n, c, height, width)`` by a 3 x 3 Gaussian with sigma 1.

    ConsiStory, appendix B. Beyond its edge a picture goes on as at the edge.
    """
    line = torch.tensor([-1, 0, 1], device=features.device, dtype=features.dtype)
    line = torch.exp(-line.square() / 2)
    kernel = torch.outer(line, line) / line.sum().square()
    channels = features.shape[1]
    padded = F.pad(features, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel.expand(channels, 1, 3, 3), groups=channels)


def nearest(target: Tensor, source: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the place of a source's subject that is nearest to each place of a target.

    Args:
        target: Features ``(c, l)``.
        source: Features ``(c, m)``.
        mask: Where the source shows the subject, bool ``(m,)``.

    Returns:
        Cosine distances ``(l,)``, 0 for the same direction and 2 for the opposite one, and places
        of the source, int64 ``(l,)``. An empty mask gives ``FARTHEST`` and 0 everywhere.
    """
    kept = mask.nonzero().flatten().to(source.device)
    if not kept.numel():
        farthest = target.new_full(target.shape[1:], FARTHEST)
        return farthest, torch.zeros_like(farthest, dtype=torch.int64)
    target, source = F.normalize(target, dim=0), F.normalize(source[:, kept], dim=0)
    similarity, best = einsum(target, source, "c l, c m -> l m").max(-1)
    return 1 - similarity, kept[best]


def accept(distances: Tensor, masks: Tensor) -> Tensor:
    """Whether a match counts: the place is subject, and its distance is of the nearer class.

    Otsu's threshold splits the distances of each image, subject or not, between its smallest and
    its largest one (ConsiStory, section 4.3).

    Args:
        distances: ``(n, l)`` in [0, ``FARTHEST``].
        masks: Where the subject is, bool ``(n, l)``.

    Returns:
        bool ``(n, l)``.
    """
    stretched = normalize(distances)
    return masks & (stretched < otsu(stretched)[..., None]) & (distances < FARTHEST)


def find_matches(
    features: Tensor, masks: Tensor, sources: Sequence[int], named: Tensor | None = None
) -> Matches:
    """Matches every image with the nearest subject place of all sources but itself.

    Subjects are told apart by their features alone (ConsiStory, section 4.5), except that an image
    is not matched with those that its prompt does not name.

    Args:
        features: ``(n, c, height, width)``; smoothed here, in at least float32.
        masks: Where each subject is, bool ``(n, p, height * width)`` on the CPU.
        sources: Images that others are matched with, at least one index in [0, n).
        named: Which subjects each image's prompt names, bool ``(n, p)`` on the CPU. None: all.

    Returns:
        Matches on the device of the features.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    smoothed = rearrange(smooth(features), "n c height width -> n c (height width)")
    named = torch.ones(masks.shape[:2], dtype=torch.bool) if named is None else named
    images, places, distances = [], [], []
    for target, feature in enumerate(smoothed):
        shown = (masks & named[target, :, None]).any(1)
        found = [nearest(feature, smoothed[s], shown[s] & (s != target)) for s in sources]
        distance, which = torch.stack([distance for distance, _ in found]).min(0)
        images.append(torch.tensor(sources, device=which.device)[which])
        places.append(torch.stack([place for _, place in found]).gather(0, which[None])[0])
        distances.append(distance)
    accepted = accept(torch.stack(distances).cpu(), masks.any(1)).to(features.device)
    return Matches(image=torch.stack(images), place=torch.stack(places), accepted=accepted)


class RecordedFeatures:
    """Features of the step before the one that is under way, and the matches between them."""

    def __init__(self) -> None:
        self._progress = 0.0
        self._features: Tensor | None = None
        self._waiting: Tensor | None = None
        self._matches: dict[tuple[int, ...], Matches] = {}

    def begin(self, progress: float) -> None:
        """Starts a step; a progress that falls is the start of other pictures."""
        self._features = None if progress < self._progress else self._waiting
        self._progress, self._waiting, self._matches = progress, None, {}

    def add(self, features: Tensor) -> None:
        """Adds the features ``(n, c, height, width)`` of this step, for the next one."""
        self._waiting = features

    def match(
        self,
        grid: tuple[int, int],
        masks: Tensor,
        sources: tuple[int, ...],
        named: Tensor | None = None,
    ) -> Matches | None:
        """The matches of ``find_matches``; found once in a step for the same sources.

        Returns:
            None on another grid than that of the features, and before the second step.
        """
        if self._features is None or self._features.shape[2:] != grid:
            return None
        if sources not in self._matches:
            self._matches[sources] = find_matches(self._features, masks, sources, named)
        return self._matches[sources]
