"""Which tokens images have in common: those that every anchor has something like.

What a set of pictures shows again and again is its subject; a background is in one of them. So no
word for the subject is needed, nor any cross-attention: the keys of self-attention say it, which
are near each other where pictures show the same part of the same kind of thing. Knows tensors
alone. Axes: ``n`` image, ``a`` anchor, ``l`` token, ``c`` channel of all heads side by side.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from consist.attention.masks import RunningMaps, normalize

SIDE = 32  # tokens; finer grids are averaged down to it, since all tokens meet all others


class RecordedMatches:
    """Masks from the keys of the steps before the one that is under way.

    A single anchor has nothing to be compared with: all of every image counts as its subject.

    Args:
        count_anchors: How many of so many images, the first ones, are anchors.
    """

    def __init__(self, count_anchors: Callable[[int], int]):
        self._count_anchors = count_anchors
        self._maps = RunningMaps()
        self._images = self.anchors = 0

    def begin(self, progress: float, images: int) -> None:
        """Starts a step; a progress that falls is the start of other pictures."""
        self._images, self.anchors = images, self._count_anchors(images)
        self._maps.begin(progress)

    @property
    def named(self) -> Tensor:
        """That every image has the one subject there is: bool ``(n, 1)``."""
        return torch.ones(self._images, 1, dtype=torch.bool)

    def add(
        self, k: Tensor, anchors: Tensor, images: Sequence[int], height: int, width: int
    ) -> None:
        """Adds keys ``(n, l, c)`` and ``(a, l, c)`` of a layer on a grid, as for ``match``."""
        k, anchors = (average(x, height, width) for x in (k, anchors))
        maps = rearrange(normalize(match(k, anchors, images)), "n l -> n 1 l")
        self._maps.add(maps, *averaged(height, width))

    def read(self, height: int, width: int) -> Tensor | None:
        """The masks on a grid, bool ``(n, 1, l)`` on the CPU; None before the second step.

        The maps of all layers and steps, each stretched to [0, 1], are cut at Otsu's threshold.
        """
        if self.anchors == 1:
            return torch.ones(self._images, 1, height * width, dtype=torch.bool)
        return self._maps.read(height, width)


def match(k: Tensor, anchors: Tensor, images: Sequence[int]) -> Tensor:
    """How near each token comes to the anchor that has the least like it.

    ``min over b of max over j of cos(k_i - m, k_bj - m)`` for token ``i`` of an image, where ``b``
    are the anchors but the image itself, and ``m`` is the mean of all their tokens.

    Args:
        k: Keys ``(n, l, c)``.
        anchors: Keys ``(a, l, c)`` of at least two images.
        images: Which image each row of ``k`` is; below ``a`` it is that anchor.

    Returns:
        float32 ``(n, l)`` in [-1, 1].

    >>> cat, moon, sea = torch.eye(3)
    >>> k = torch.stack([torch.stack([cat, moon]), torch.stack([sea, cat])])
    >>> match(k, k, [0, 1]).argmax(1).tolist()
    [0, 1]
    """
    mean = anchors.float().mean((0, 1))
    k, anchors = (F.normalize(x.float() - mean, dim=-1) for x in (k, anchors))
    rows = []
    for row, image in zip(k, images, strict=True):
        # one anchor after another, so that a single table of all tokens by all tokens is held
        others = [other for number, other in enumerate(anchors) if number != image]
        rows.append(torch.stack([(row @ other.mT).amax(-1) for other in others]).amin(0))
    return torch.stack(rows)


def average(x: Tensor, height: int, width: int) -> Tensor:
    """Averages neighboring tokens ``(n, l, c)`` of a grid; see ``averaged``."""
    if averaged(height, width) == (height, width):
        return x
    grid = rearrange(x, "n (height width) c -> n c height width", height=height)
    # the last row and column may be of fewer tokens
    pooled = F.avg_pool2d(grid, _factor(height, width), ceil_mode=True, count_include_pad=False)
    return rearrange(pooled, "n c height width -> n (height width) c")


def averaged(height: int, width: int) -> tuple[int, int]:
    """The grid whose longer side has at most ``SIDE`` tokens, by averaging squares of them.

    >>> averaged(64, 40), averaged(32, 20)
    ((32, 20), (32, 20))
    """
    factor = _factor(height, width)
    return -(-height // factor), -(-width // factor)


def _factor(height: int, width: int) -> int:
    return -(-max(height, width) // SIDE)
