"""Images and prompts to embeddings, by networks that were loaded before.

Prepares pixels in batches and nothing else: ``consist.evaluation.encoder_loading`` loads the
networks, and ``consist.evaluation.metrics`` says what the numbers mean. ``choices()`` gives what
has to be known to repeat a score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from consist.evaluation.metrics import cosines

Choices: TypeAlias = dict[str, str | float | int | list[float]]
Embeddings: TypeAlias = NDArray[np.float32]
Masks: TypeAlias = NDArray[np.bool_]

# CLIP-T of 1Prompt1Story (byliutao/1Prompt1Story#12), which is CLIPScore (Hessel et al. 2021,
# arXiv:2104.08718, section 3) without its clipping at 0
CLIP_T_PREFIX = "A photo depicts "
CLIP_T_FACTOR = 2.5
BATCH = 16


@dataclass(frozen=True)
class Encoder:
    """Images to embeddings.

    Attributes:
        name: The checkpoint, as the user named it.
        prepare: RGB pictures to pixels, ``(n 3 h w)``.
        network: Pixels on the device to features, ``(n d)``.
    """

    name: str
    device: str
    prepare: Callable[[list[Image.Image]], Tensor]
    network: Callable[[Tensor], Tensor]
    recorded: Choices

    def embed_images(self, images: Sequence[Image.Image]) -> Embeddings:
        """Embeds pictures of any size, ``(n d)`` float32, with the length that the network gives.

        Raises:
            ValueError: There is no picture.
        """
        if not images:
            raise ValueError("there is no image to embed")
        with torch.inference_mode():
            parts = [
                self.network(self.prepare([image.convert("RGB") for image in part]).to(self.device))
                for part in _batches(images)
            ]
        return torch.cat(parts).float().cpu().numpy()

    def choices(self) -> Choices:
        """What has to be known to repeat a score, for ``scores.json``; a copy."""
        return dict(self.recorded)


@dataclass(frozen=True)
class ClipEncoder(Encoder):
    """Images and texts to embeddings in one space."""

    text_network: Callable[[list[str]], Tensor]

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Embeds texts as they are, ``(n d)`` float32; tokens over ``max_tokens`` are cut off.

        Raises:
            ValueError: There is no text.
        """
        if not texts:
            raise ValueError("there is no text to embed")
        with torch.inference_mode():
            parts = [self.text_network(list(part)) for part in _batches(texts)]
        return torch.cat(parts).float().cpu().numpy()

    def score_prompts(
        self, images: Sequence[Image.Image], prompts: Sequence[str]
    ) -> NDArray[np.float64]:
        """Gives CLIP-T of each image with its prompt: 2.5 times the cosine.

        Each prompt gets the prefix "A photo depicts ", and is cut off as in ``embed_texts``; both
        as published.

        Returns:
            ``(n)``, in [-2.5, 2.5]; about 0.9 for a good fit in the published tables.

        Raises:
            ValueError: There is no image, or not one prompt per image.
        """
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images, {len(prompts)} prompts; allowed: as many")
        texts = self.embed_texts([CLIP_T_PREFIX + prompt for prompt in prompts])
        return CLIP_T_FACTOR * cosines(self.embed_images(images), texts)

    def choices(self) -> Choices:
        """As of any encoder, with prefix and factor of CLIP-T."""
        return {**self.recorded, "prefix": CLIP_T_PREFIX, "factor": CLIP_T_FACTOR}


@dataclass(frozen=True)
class Segmenter:
    """Images and a noun to masks, by CLIPSeg (Lueddecke and Ecker 2022, arXiv:2112.10003)."""

    name: str
    device: str
    prepare: Callable[[list[Image.Image]], Tensor]
    # pixels and as many texts to logits (n h w)
    network: Callable[[Tensor, list[str]], Tensor]
    recorded: Choices
    threshold: float = 0.5

    def find(self, images: Sequence[Image.Image], noun: str) -> list[Masks]:
        """Finds what a noun phrase such as "cat" names: one ``(h w)`` bool mask for each picture.

        A pixel belongs to it where the sigmoid, enlarged bilinearly, is over the threshold.
        """
        return [self._find(image.convert("RGB"), noun) for image in images]

    def choices(self) -> Choices:
        """What has to be known to repeat a mask; a copy."""
        return {**self.recorded, "threshold": self.threshold}

    def _find(self, image: Image.Image, noun: str) -> Masks:
        with torch.inference_mode():
            logits = self.network(self.prepare([image]).to(self.device), [noun])
            shares = torch.nn.functional.interpolate(
                logits.float().sigmoid()[:, None], (image.height, image.width), mode="bilinear"
            )
        found: Masks = (shares[0, 0] > self.threshold).cpu().numpy()
        return found


def _batches(things: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(things), BATCH):
        yield things[start : start + BATCH]
