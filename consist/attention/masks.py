"""Where a subject is in a picture: masks from cross-attention, or given ones, on any token grid.

Knows tensors alone, nothing of layers, prompts or methods. Axes: ``n`` image, ``c`` phrase that
names a subject, ``h`` head, ``l`` token of the picture, ``s`` token of the text, ``d`` head size.
"""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

# positions of the tokens of each phrase in each prompt; () where a prompt lacks a phrase
SubjectTokens = tuple[tuple[tuple[int, ...], ...], ...]

BINS = 256  # of the histogram that Otsu's threshold is found in
MARGIN = 16  # a mask is widened by this part of the longer side


def token_weights(tokens: SubjectTokens, length: int) -> Tensor:
    """The matrix that averages text tokens into phrases, multi-token words over all their parts.

    Args:
        tokens: Positions, by image and phrase.
        length: Tokens ``s`` of the text, start, end and padding included.

    Returns:
        float32 ``(n, s, c)``; the column of an absent phrase is 0.

    Raises:
        ValueError: A position lies outside the text.

    >>> token_weights((((1, 2),),), 4)[0, :, 0]
    tensor([0.0000, 0.5000, 0.5000, 0.0000])
    """
    weights = torch.zeros(len(tokens), length, len(tokens[0]))
    for image, phrases in enumerate(tokens):
        for phrase, positions in enumerate(phrases):
            for position in positions:
                if not 0 <= position < length:
                    raise ValueError(f"token {position} was named; allowed: 0 to {length - 1}")
                weights[image, position, phrase] = 1 / len(positions)
    return weights


def attention_maps(q: Tensor, k: Tensor, weights: Tensor) -> Tensor:
    """How much each place of a picture attends to each phrase, averaged over the heads.

    ``softmax(q k^T / sqrt(d))`` over the whole text, of which the named tokens are kept
    (ConsiStory, arXiv:2402.03286, section 4.1).

    Args:
        q: Queries of the picture ``(n, h, l, d)``.
        k: Keys of the text ``(n, h, s, d)``.
        weights: ``(n, s, c)``, of ``token_weights``.

    Returns:
        ``(n, c, l)`` in [0, 1]; at least float32.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    logits = einsum(q.to(dtype), k.to(dtype), "n h l d, n h s d -> n h l s") * q.shape[-1] ** -0.5
    return einsum(logits.softmax(-1).mean(1), weights.to(dtype), "n l s, n s c -> n c l")


def normalize(x: Tensor) -> Tensor:
    """Stretches the values ``(... l)`` of each map to [0, 1]; a flat map becomes 0."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    return (x - low) / torch.where(high > low, high - low, 1)


def otsu(x: Tensor) -> Tensor:
    """The threshold that splits each row of values into the two classes that lie furthest apart.

    It maximizes the variance between classes, ``(mu_T w(k) - mu(k))^2 / (w(k) (1 - w(k)))``, over
    a histogram of 256 bins (Otsu 1979, eq. 18).

    Args:
        x: Values ``(... l)`` in [0, 1].

    Returns:
        float64 ``(...)``: the smallest value of the upper class, an edge of a bin. Above the
        values, if they all lie in the lowest bin.

    >>> otsu(torch.tensor([0.0, 0.1, 0.1, 0.9, 1.0]))
    tensor(0.1016, dtype=torch.float64)
    """
    bins = (x * BINS).long().clamp(0, BINS - 1)
    counts = torch.zeros(*x.shape[:-1], BINS, dtype=torch.float64, device=x.device)
    counts = counts.scatter_add(-1, bins, torch.ones_like(bins, dtype=torch.float64)) / x.shape[-1]
    levels = torch.arange(BINS, dtype=torch.float64, device=x.device)
    below, mean = counts.cumsum(-1), (counts * levels).cumsum(-1)
    spread = below * (1 - below)
    between = (mean[..., -1:] * below - mean).square() / torch.where(spread > 1e-12, spread, 1)
    return (between.argmax(-1) + 1).to(torch.float64) / BINS


def find_masks(maps: Tensor, height: int, width: int) -> Tensor:
    """Masks on a grid: what attends to each phrase (ConsiStory, arXiv:2402.03286, eq. 7).

    Each map is brought to the grid, stretched to [0, 1] and cut at its own threshold.

    Args:
        maps: ``(n, c, rows, columns)`` of any grid.
        height: Rows of the grid that the masks are for.
        width: Columns of that grid.

    Returns:
        bool ``(n, c, height * width)``. A flat map, as of an absent phrase, names no place.
    """
    maps = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
    maps = normalize(rearrange(maps, "n c height width -> n c (height width)"))
    return maps >= otsu(maps)[..., None]


def widen(masks: Tensor) -> Tensor:
    """Masks ``(n, c, rows, columns)`` with a margin around, a sixteenth of the longer side."""
    margin = max(1, max(masks.shape[-2:]) // MARGIN)
    return F.max_pool2d(masks.float(), 2 * margin + 1, stride=1, padding=margin) > 0


class RecordedMasks:
    """Masks from the cross-attention of the steps before the one that is under way.

    Maps are averaged over all layers and steps that were recorded, as the paper says; the code of
    ConsiStory takes the last 20 steps. One running sum ``(n, c, l)`` is held for each grid.

    Args:
        tokens: Positions of the subject's phrases, by image and phrase.

    Raises:
        ValueError: The images do not have the same phrases, or one has no position at all.
    """

    def __init__(self, tokens: SubjectTokens):
        if not tokens or len({len(phrases) for phrases in tokens}) > 1:
            raise ValueError(f"tokens is {tokens}; allowed: as many phrases for every image")
        if not all(any(phrases) for phrases in tokens):
            raise ValueError(f"tokens is {tokens}; allowed: at least one token for every image")
        self.tokens = tokens
        # which phrases each prompt has, bool (n, c)
        self.named = torch.tensor([[bool(phrase) for phrase in phrases] for phrases in tokens])
        # by length of the text and device
        self._weights: dict[tuple[int, torch.device], Tensor] = {}
        self._maps = RunningMaps()

    def begin(self, progress: float, images: int) -> None:
        """Starts a step; a progress that falls is the start of other pictures.

        Raises:
            ValueError: The batch holds another number of images than there are positions for.
        """
        _check_images("subject tokens are", len(self.tokens), images)
        self._maps.begin(progress)

    def add(self, q: Tensor, k: Tensor, height: int, width: int) -> None:
        """Adds what a layer sees, for ``q (n, h, l, d)`` on a grid and the text's ``k``."""
        text = k.shape[2], k.device
        if text not in self._weights:
            self._weights[text] = token_weights(self.tokens, k.shape[2]).to(k.device)
        self._maps.add(attention_maps(q, k, self._weights[text]), height, width)

    def read(self, height: int, width: int) -> Tensor | None:
        """The masks on a grid, bool ``(n, c, l)`` on the CPU; None before the second step."""
        return self._maps.read(height, width)


class RunningMaps:
    """Maps added up over layers and steps, and the masks that they make.

    Those of a step count from the next one on, so that all layers of a step see the same masks.
    """

    def __init__(self) -> None:
        self._progress = 0.0
        # by grid: what the masks are made of, and what waits for the next step
        self._sums: dict[tuple[int, int], Tensor] = {}
        self._waiting: dict[tuple[int, int], Tensor] = {}
        self._masks: dict[tuple[int, int], Tensor] = {}

    def begin(self, progress: float) -> None:
        """Starts a step; a progress that falls is the start of other pictures."""
        if progress < self._progress:
            self._sums, self._waiting = {}, {}
        for grid, maps in self._waiting.items():
            self._sums[grid] = self._sums.get(grid, 0) + maps
        self._progress, self._waiting, self._masks = progress, {}, {}

    def add(self, maps: Tensor, height: int, width: int) -> None:
        """Adds maps ``(n, c, l)`` of a grid."""
        self._waiting[height, width] = self._waiting.get((height, width), 0) + maps

    def read(self, height: int, width: int) -> Tensor | None:
        """The masks on a grid, bool ``(n, c, l)`` on the CPU; None before the second step."""
        if not self._sums:
            return None
        if (height, width) not in self._masks:
            self._masks[height, width] = find_masks(self._add_up(), height, width)
        return self._masks[height, width]

    def _add_up(self) -> Tensor:
        """The sum of all grids, on the finest of them if there are several."""
        finest = max(self._sums)
        on_cpu = (
            rearrange(maps, "n c (height width) -> n c height width", height=height).cpu().double()
            for (height, _), maps in self._sums.items()
        )
        resized = [F.interpolate(maps, finest, mode="bilinear") for maps in on_cpu]
        return torch.stack(resized).sum(0)


class GivenMasks:
    """Masks that are known beforehand.

    Of several subjects, an image whose prompt lacks one has an empty mask of it. A single subject
    is that of every image, even where its mask is empty.

    Args:
        masks: bool ``(n, rows, columns)`` of any grid, such as the picture's pixels; of several
            subjects ``(n, c, rows, columns)``.

    Raises:
        ValueError: The shape or type is another.
    """

    def __init__(self, masks: Tensor):
        if masks.ndim not in (3, 4) or masks.dtype != torch.bool or 0 in masks.shape:
            raise ValueError(
                f"masks is {masks.dtype} {tuple(masks.shape)}; allowed: torch.bool (n, rows, "
                "columns) or (n, c, rows, columns), none of them 0"
            )
        by_phrase = masks.cpu() if masks.ndim == 4 else masks.cpu()[:, None]
        self.named = by_phrase.flatten(2).any(-1) | (by_phrase.shape[1] == 1)
        self._given = by_phrase.float()
        self._masks: dict[tuple[int, int], Tensor] = {}

    def begin(self, progress: float, images: int) -> None:
        """Starts a step.

        Raises:
            ValueError: The batch holds another number of images than there are masks.
        """
        _check_images("masks are", len(self._given), images)

    def read(self, height: int, width: int) -> Tensor:
        """The masks on a grid, bool ``(n, c, l)`` on the CPU: places that are subject by half."""
        if (height, width) not in self._masks:
            share = F.interpolate(self._given, (height, width), mode="area")
            self._masks[height, width] = rearrange(share >= 0.5, "n c h w -> n c (h w)")
        return self._masks[height, width]


def _check_images(what: str, known: int, images: int) -> None:
    if known != images:
        raise ValueError(f"{what} for {known} images, the batch has {images}")
