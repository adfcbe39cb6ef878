"""Guidance that leads away from a subject that is known less well: personalization guidance.

It must not know runs, methods or files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from peft.tuners.lora import LoraLayer
from torch import Tensor

from consist.attention.layers import recorded_layers
from consist.attention.masks import RecordedMasks, SubjectTokens, widen
from consist.attention.recorders import CrossAttentionRecorder, UNetCall

TRAIN_TIMESTEPS = 1000  # of every Stable Diffusion; only the order of the steps is read
TEXT = ("attn2.to_k", "attn2.to_v")  # layers that see the negative prompt, which has no places


@contextmanager
def weak_unconditional(
    pipe: Any, weight: float, subject_tokens: SubjectTokens | None = None
) -> Iterator[None]:
    """Inside, the LoRAs of the UNet count less in the half that guidance leads away from.

    Personalization guidance, Park et al. 2025, arXiv:2508.00319: in ``u + w (c - u)`` the
    unconditional ``u`` is answered by weights between those of the base model and the trained
    ones, ``base + weight (trained - base)``. Plain guidance, ``weight`` 1, knows the subject in
    both halves, and so moves away from it; with less of it in ``u`` guidance moves toward it.

    What LoRAs have learned of their photos' backgrounds is amplified with the subject, and scenes
    are lost. So with ``subject_tokens`` they count less only where the subject is, by the
    cross-attention of the steps before; the first step is plain. In the paper they do everywhere.

    What a layer gives is linear in its weights, so its outputs with and without the LoRA are mixed
    in their place. LoRAs of a text encoder count in full, and with ``subject_tokens`` also those of
    layers that see the text alone. Nothing changes without guidance.

    ```python
    prompts = ["a xyz cat in Paris"]
    tokens = find_subject(pipe.tokenizer, prompts, ["xyz cat"])
    with consist.weak_unconditional(pipe, 0.25, tokens):
        pipe(prompts, guidance_rescale=0.7)
    ```

    Args:
        pipe: A pipeline that tells ``do_classifier_free_guidance``, with LoRAs or not. Batches have
            the unconditional half first, as diffusers stacks them.
        weight: 0..1, of what the LoRAs weigh in the other half.
        subject_tokens: Where each prompt of a batch names what the LoRAs have learned, of
            ``consist.prompts.phrases.find_subject``.

    Raises:
        ValueError: ``weight`` is out of range, or a batch has another number of images than there
            are tokens for.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be between 0 and 1, not {weight}")
    layers = {
        name: module for name, module in pipe.unet.named_modules() if isinstance(module, LoraLayer)
    }
    if weight == 1 or not layers:
        yield
        return
    masks = RecordedMasks(subject_tokens) if subject_tokens else None

    def halves() -> int:
        return 2 if pipe.do_classifier_free_guidance else 1

    call = UNetCall(halves, TRAIN_TIMESTEPS, 0, masks, None)
    weakening = _Weakening(weight, call)
    with ExitStack() as restore:
        hook = pipe.unet.register_forward_pre_hook(weakening.begin, with_kwargs=True)
        restore.callback(hook.remove)
        if masks:
            for name, attn in recorded_layers(pipe.unet).items():
                recorder = CrossAttentionRecorder(name, call, masks)
                hook = attn.register_forward_pre_hook(recorder, with_kwargs=True)
                restore.callback(hook.remove)
        for name, layer in layers.items():
            if masks is None:
                restore.callback(layer.register_forward_hook(weakening.everywhere).remove)
            elif not name.endswith(TEXT):
                restore.callback(layer.register_forward_hook(weakening.in_places).remove)
        yield


class _Weakening:
    """Mixes what a layer gives with what it gives without its LoRAs, in the unconditional half."""

    def __init__(self, weight: float, call: UNetCall):
        self.weight = weight
        self.call = call
        self.shares: dict[tuple[int, int], Tensor] = {}  # by grid, in the call that is under way

    def begin(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Reads the arguments of the UNet."""
        self.call(unet, args, kwargs)
        self.shares = {}

    def everywhere(self, layer: Any, args: tuple[Tensor, ...], given: Tensor) -> Tensor | None:
        """What a layer gives in place of ``given``, ``(g n) ...``."""
        return self._mix(layer, args, given, given.new_tensor(self.weight))

    def in_places(self, layer: Any, args: tuple[Tensor, ...], given: Tensor) -> Tensor | None:
        """The same for places ``(g n) c h w`` or ``(g n) l c``, where the subject is."""
        source = self.call.masks
        masks = source.read(self.call.height, self.call.width) if source else None
        if given.ndim == 2 or masks is None:
            return None
        is_map = given.ndim == 4
        height, width = given.shape[-2:] if is_map else self.call.grid(given.shape[1])
        shape = "n h w -> n 1 h w" if is_map else "n h w -> n (h w) 1"
        shares = rearrange(self._shares(masks, height, width).to(given), shape)
        return self._mix(layer, args, given, 1 + (self.weight - 1) * shares)

    def _shares(self, masks: Tensor, height: int, width: int) -> Tensor:
        """How much of each place of a grid the subject covers: ``(n, h, w)`` in 0..1."""
        if (height, width) not in self.shares:
            subject = widen(rearrange(masks.any(1), "n (h w) -> n 1 h w", h=self.call.height))
            shares = F.adaptive_avg_pool2d(subject.float(), (height, width))
            self.shares[height, width] = shares[:, 0]
        return self.shares[height, width]

    def _mix(
        self, layer: Any, args: tuple[Tensor, ...], given: Tensor, weights: Tensor
    ) -> Tensor | None:
        # fewer rows than the UNet has are of those who read the conditional half beside it
        if self.call.g != 2 or len(given) != 2 * self.call.n:
            return None
        unconditional, conditional = given.chunk(2)
        plain = layer.base_layer(args[0][: len(unconditional)])
        return torch.cat([torch.lerp(plain, unconditional, weights), conditional])
