"""Plugs a method into the self-attention of a diffusers UNet, and takes it out without a trace.

Glue only: it projects, asks the method what is shared, attends and projects back. It must not
know how a method chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from einops import rearrange
from torch import Tensor

from consist.attention.adain import affine
from consist.attention.backends import attend, choose
from consist.attention.bank import Bank
from consist.attention.batch_split import Spread
from consist.attention.common_tokens import RecordedMatches
from consist.attention.correspondence import RecordedFeatures
from consist.attention.cross_attention import IdentityAttnProcessor
from consist.attention.layers import attention_layers, refuse_unusual
from consist.attention.masks import GivenMasks, RecordedMasks, SubjectTokens
from consist.attention.method import CONDITIONAL, MATCHES, NONE, WORDS, Method, Site
from consist.attention.recorders import MaskSource, UNetCall, listen

TRAIN_TIMESTEPS = 1000  # of every Stable Diffusion; used when only a UNet is given


@contextmanager
def shared_attention(
    pipe: DiffusionPipeline | UNet2DConditionModel,
    method: Method,
    *,
    guidance_halves: int | None = None,
    backend: str = "auto",
    seed: int = 0,
    subject_tokens: SubjectTokens | None = None,
    masks: Tensor | None = None,
    references: int = 0,
    spread: Spread | None = None,
) -> Iterator[None]:
    """Lets the images of a batch attend to one another while the block runs.

    ```python
    with consist.shared_attention(pipe, consist.Matched()):
        images = pipe(prompts, generator=generators).images
    ```

    Blocks nest (the inner one wins), and leaving one, also through an exception, puts back the
    very processors that were there.

    Args:
        pipe: Any SD 1.x, SD 2.x or SDXL pipeline, or its bare UNet.
        method: What is shared, such as ``Matched()``.
        guidance_halves: How many guidance halves a batch stacks, as ``(g n)``: 2 with
            classifier-free guidance, else 1. Read from a pipeline's call; required for a UNet.
        backend: Which version of ``attend`` runs; see ``consist.attention.backends``.
        seed: Source of a method's random choices, such as random anchors.
        subject_tokens: Where each prompt of a batch names the subject, of ``find_subject``. A
            method such as ``Sdsa`` needs them, or ``masks``; ``OnePrompt`` needs those of
            ``identity_tokens``; others take neither.
        masks: Where the subject is, bool ``(n, rows, columns)`` of any grid, instead of what
            cross-attention says; ``(n, c, rows, columns)`` of several subjects.
        references: How many images of a batch, the first ones, are noised pictures that were not
            generated. They attend to no other image, and keys are matched: see ``match_keys``.
        spread: Which images of a larger batch are drawn here; every other process of it runs such a
            block at the same time. See ``consist.runs.many.one_batch`` for what can be spread.

    Raises:
        TypeError: ``pipe`` has no ``UNet2DConditionModel``, or ``method`` is no ``Method``.
        ValueError: No self-attention layer is covered, or an argument does not fit.
        NotImplementedError: A layer that is covered, recorded or changed does more than plain
            attention.
    """
    if not isinstance(method, Method):
        raise TypeError(f"method is {method!r}; allowed: a consist.Method such as Matched()")
    if references < 0:
        raise ValueError(f"references is {references}; allowed: 0 and above")
    unet = _unet_of(pipe)
    layers = covered_layers(unet, method)
    source = _mask_source(method, subject_tokens, masks, spread)
    features = RecordedFeatures() if method.reads_features else None
    halves = _halves_reader(pipe, guidance_halves)
    call = UNetCall(halves, _train_timesteps(pipe), seed, source, features, spread)
    names = {
        layer: choose(backend, unet.device, unet.dtype, attn.inner_dim // attn.heads)[0]
        for layer, attn in layers.items()
    }
    with ExitStack() as restore:
        for handle in listen(unet, method, layers, call):
            restore.callback(handle.remove)
        for layer, attn in layers.items():
            restore.callback(attn.set_processor, attn.processor)
            attn.set_processor(SharedAttnProcessor(layer, method, call, names[layer], references))
        if method.joins_prompts and subject_tokens is not None:
            for layer, attn in _plain_layers(attention_layers(unet, ".attn2")).items():
                restore.callback(attn.set_processor, attn.processor)
                attn.set_processor(IdentityAttnProcessor(layer, method, call.site, subject_tokens))
        yield


class SharedAttnProcessor:
    """Self-attention that lets a method decide which tokens of other images are seen."""

    def __init__(
        self, layer: str, method: Method, call: UNetCall, backend: str, references: int = 0
    ):
        self.layer = layer
        self.method = method
        self.call = call
        self.backend = backend
        self.references = references

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Self-attention of ``hidden_states`` ``(g n) l c``, as diffusers calls it."""
        if encoder_hidden_states is not None or attention_mask is not None:
            raise NotImplementedError(f"{self.layer} was given a text context or a mask")

        query, key, value = (
            rearrange(project(hidden_states), "b l (h d) -> b h l d", h=attn.heads)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )

        site = self.call.site(self.layer, query.shape[2])
        query, key, value = self.method.rewrite(query, key, value, site)

        hidden_states = self._attend(query, key, value, site)

        hidden_states = rearrange(hidden_states, "b h l d -> b l (h d)")
        dropout: torch.nn.Module = attn.to_out[1]
        hidden_states = dropout(attn.to_out[0](hidden_states))
        return self.method.inject(hidden_states, site)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
        """Attention ``(g n) h l d`` in which the images share, or those of one guidance half."""
        first = 0
        if self.method.halves == CONDITIONAL and site.g == 2:
            first, site = len(q) // 2, replace(site, g=1)
        sharing = q[first:], k[first:], v[first:]
        query, key, bank = self._share(*sharing, site)
        if bank is None:
            return attend(q, k, v, None, self.backend)
        shared = attend(query, key, sharing[2], bank, self.backend)
        if not first:
            return shared
        return torch.cat((attend(q[:first], k[:first], v[:first], None, self.backend), shared))

    def _share(
        self, q: Tensor, k: Tensor, v: Tensor, site: Site
    ) -> tuple[Tensor, Tensor, Bank | None]:
        """What is shared, with the queries and keys that it goes with."""
        if site.spread:
            bank = self.method(q, k, v, site)
            return q, k, None if bank is None else site.spread.localize(bank)
        if not self.references:
            return q, k, self.method(q, k, v, site)
        matched = match_keys(q, k, site.n, self.references)
        bank = self.method(*matched, v, site)
        # where nothing is shared, not even rounding shall tell
        return (q, k, None) if bank is None else (*matched, _hide(bank, site.n, self.references))


def match_keys(q: Tensor, k: Tensor, images: int, references: int) -> tuple[Tensor, Tensor]:
    """Queries and keys with which each image sees the references' keys normalized to its own.

    ConsiStory (arXiv:2402.03286, appendix E) normalizes the keys of inverted anchors to those of
    the generated images: ``s_i (k_r - m_r) / s_r + m_i``, with the means ``m`` and deviations ``s``
    of each channel over the tokens. Here ``i`` is the very image that looks, not the whole batch,
    so that an image does not depend on its neighbors. Up to one number per query, which softmax
    does not notice, the same logits are those of ``q s_i / s`` with keys that all have the mean
    ``m`` and the deviation ``s`` of the references together, and no key is held once per image. The
    logits of own keys stay as they are.

    Args:
        q: ``(g n) h l d``; never changed.
        k: ``(g n) h l d``; never changed.
        images: Images ``n`` in each guidance half.
        references: How many of them, the first ones, were not generated; at least 1.

    Raises:
        ValueError: There are more references than images.
    """
    if references > images:
        raise ValueError(f"references is {references}; allowed: at most {images}, the batch")
    q, k = (rearrange(x, "(g n) h l d -> g n h l d", n=images) for x in (q, k))
    together = rearrange(k[:, :references], "g r h l d -> g 1 h (r l) d")
    gain, shift = affine(k, together)
    matched = (q / gain).to(q.dtype), (k * gain + shift).to(k.dtype)
    q, k = (rearrange(x, "g n h l d -> (g n) h l d") for x in matched)
    return q, k


def _hide(bank: Bank, images: int, references: int) -> Bank:
    """The bank, of which the first ``references`` images see nothing."""
    shown = torch.ones(images, images, dtype=torch.bool) if bank.visible is None else bank.visible
    seeing = torch.arange(images) >= references
    return replace(bank, visible=shown & seeing[:, None])


def covered_layers(unet: UNet2DConditionModel, method: Method) -> dict[str, Attention]:
    """The self-attention layers that ``method`` covers, by their dotted names."""
    layers = attention_layers(unet, ".attn1")
    covered = {name: attn for name, attn in layers.items() if method.covers(name)}
    if not covered:
        known = ", ".join(sorted({name.split(".attentions")[0] for name in layers})) or "none"
        raise ValueError(f"no self-attention layer is covered by {method}; this UNet has {known}")
    return _plain_layers(covered)


def _plain_layers(layers: dict[str, Attention]) -> dict[str, Attention]:
    """The layers, all of which are plain attention with a stock processor."""
    for name, attn in layers.items():
        _refuse_foreign(name, attn)
        refuse_unusual(name, attn)
    return layers


def _refuse_foreign(layer: str, attn: Attention) -> None:
    """Raises unless the layer has a stock processor."""
    known = (AttnProcessor, AttnProcessor2_0, XFormersAttnProcessor, SlicedAttnProcessor)
    if not isinstance(attn.processor, (*known, SharedAttnProcessor, IdentityAttnProcessor)):
        used = type(attn.processor).__name__
        raise NotImplementedError(f"{layer} already has a processor of its own, {used}")


def _mask_source(
    method: Method, tokens: SubjectTokens | None, masks: Tensor | None, spread: Spread | None
) -> MaskSource | None:
    """What tells the method where the subject is; None if it does not ask."""
    name, kind = type(method).__name__, method.masks
    if method.joins_prompts:
        if masks is not None or (tokens is not None) != (method.ipca > 0):
            wants = "those tokens that identity_tokens gives" if method.ipca else "neither"
            raise ValueError(f"subject_tokens or masks: {name} takes {wants}")
        return None
    if masks is not None and kind != NONE:
        return GivenMasks(masks)
    if masks is not None or (tokens is not None) != (kind == WORDS):
        takes = {
            WORDS: "one of them (find_subject gives tokens)",
            MATCHES: "masks or neither",
            NONE: "neither",
        }
        raise ValueError(f"subject_tokens or masks: {name} takes {takes[kind]}")
    if tokens is not None:
        return RecordedMasks(tokens)
    if kind == MATCHES:
        # of the whole batch, of which only a part may be here
        return RecordedMatches(lambda n: method.anchor_count(spread.images if spread else n))
    return None


def _unet_of(pipe: Any) -> UNet2DConditionModel:
    unet = getattr(pipe, "unet", pipe)
    if not isinstance(unet, UNet2DConditionModel):
        given = type(pipe).__name__
        raise TypeError(f"{given} has no UNet2DConditionModel; SD 1.x, SD 2.x and SDXL have one")
    return unet


def _train_timesteps(pipe: Any) -> int:
    scheduler = getattr(pipe, "scheduler", None)
    return int(scheduler.config.num_train_timesteps) if scheduler else TRAIN_TIMESTEPS


def _halves_reader(pipe: Any, given: int | None) -> Callable[[], int]:
    """How the number of guidance halves is known at each UNet call."""
    if given is not None:
        if given not in (1, 2):
            raise ValueError(f"guidance_halves must be 1 or 2, not {given}")
        return lambda: given
    if not hasattr(type(pipe), "do_classifier_free_guidance"):
        kind = type(pipe).__name__
        raise ValueError(f"{kind} does not tell its guidance: pass guidance_halves=1 or 2")

    def read() -> int:
        if getattr(pipe, "do_perturbed_attention_guidance", False):
            raise NotImplementedError("perturbed-attention guidance cannot be shared")
        return 2 if pipe.do_classifier_free_guidance else 1

    return read
