"""LPIPS (Zhang et al. 2018, arXiv:1801.03924): how different two pictures look, for DIV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from itertools import combinations
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from consist.errors import ConsistError, unknown
from consist.models.tensor_files import plain_errors
from consist.training.photos import as_pixels

BACKBONES = ("alex", "vgg", "squeeze")


@dataclass(frozen=True)
class Lpips:
    """Pictures of one size to distances.

    Attributes:
        network: Two batches ``(n 3 h w)`` in -1..1 to distances, ``n`` numbers in any shape.
        recorded: What has to be known to repeat them.
    """

    network: Callable[[Tensor, Tensor], Tensor]
    device: str
    recorded: dict[str, Any]

    @torch.inference_mode()
    def mean_over_pairs(self, images: Sequence[Image.Image]) -> float:
        """The mean distance of two of the pictures: 0 where all are the same.

        Raises:
            ValueError: There are fewer than two.
        """
        if len(images) < 2:
            raise ValueError(f"{len(images)} images; allowed: at least 2")
        pixels = [as_pixels(image.convert("RGB")) for image in images]
        first, second = zip(*combinations(pixels, 2), strict=True)
        pair = (torch.stack(side).to(self.device) for side in (first, second))
        return float(self.network(*pair).float().mean())


def load_lpips(backbone: str, device: str = "cpu") -> Lpips:
    """Loads LPIPS from its own package, an optional one, which fetches its backbone.

    An exception to "safetensors only", as the weights exist as .pth alone. Needs torchvision.

    Args:
        backbone: One of ``BACKBONES``; DreamBooth's paper does not name its own.
        device: Where it computes.

    Raises:
        ConsistError: There is no such backbone, or the package is missing or does not load.
    """
    if backbone not in BACKBONES:
        raise ConsistError(unknown("LPIPS", backbone, BACKBONES))
    try:
        with plain_errors("LPIPS"):
            network = import_module("lpips").LPIPS(net=backbone, verbose=False)
    except ImportError as error:
        raise ConsistError(f"LPIPS needs its package: pip install lpips ({error})") from error
    recorded = {"backbone": backbone, "package": f"lpips {version('lpips')}", "resize": "none"}
    return Lpips(network.eval().to(device), device, recorded)
