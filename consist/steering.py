"""Guidance that leads away from a subject that is known less well: personalization guidance.

It must not know runs, methods or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor


@contextmanager
def weak_unconditional(pipe: Any, weight: float) -> Iterator[None]:
    """Inside, the LoRAs of the UNet count less in the half that guidance leads away from.

    Personalization guidance, Park et al. 2025, arXiv:2508.00319: in ``u + w (c - u)`` the
    unconditional ``u`` is answered by weights between those of the base model and the trained
    ones, ``base + weight (trained - base)``. Plain guidance, ``weight`` 1, knows the subject in
    both halves, and so moves away from it; with less of it in ``u`` guidance moves toward it.

    What a layer gives is linear in its weights, so its outputs with and without the LoRA are mixed
    in their place. LoRAs of a text encoder count in full. Nothing changes without guidance.

    ```python
    with consist.weak_unconditional(pipe, 0.25):
        pipe("a xyz cat in Paris", guidance_rescale=0.7)
    ```

    Args:
        pipe: A pipeline that tells ``do_classifier_free_guidance``, with LoRAs or not. Batches have
            the unconditional half first, as diffusers stacks them.
        weight: 0..1, of what the LoRAs weigh in the other half.

    Raises:
        ValueError: ``weight`` is out of range.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be between 0 and 1, not {weight}")
    layers = [module for module in pipe.unet.modules() if isinstance(module, LoraLayer)]
    if weight == 1 or not layers:
        yield
        return
    weakening = _Weakening(weight, lambda: bool(pipe.do_classifier_free_guidance))
    with ExitStack() as restore:
        hook = pipe.unet.register_forward_pre_hook(weakening.begin, with_kwargs=True)
        restore.callback(hook.remove)
        for layer in layers:
            restore.callback(layer.register_forward_hook(weakening).remove)
        yield


class _Weakening:
    """Mixes what a layer gives with what it gives without its LoRAs, in the unconditional half."""

    def __init__(self, weight: float, is_guided: Callable[[], bool]):
        self.weight = weight
        self.is_guided = is_guided
        self.rows = 0  # of the batch that the UNet is at

    def begin(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Reads the arguments of the UNet."""
        sample = kwargs["sample"] if "sample" in kwargs else args[0]
        self.rows = len(sample) if self.is_guided() else 0

    def __call__(self, layer: Any, args: tuple[Tensor, ...], given: Tensor) -> Tensor | None:
        """What a layer gives in place of ``given``, ``(g n) ...``.

        Fewer rows than the UNet has are of those who read the conditional half beside it.
        """
        if len(given) != self.rows:
            return None
        unconditional, conditional = given.chunk(2)
        plain = layer.base_layer(args[0][: len(unconditional)])
        return torch.cat([torch.lerp(plain, unconditional, self.weight), conditional])
