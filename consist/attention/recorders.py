"""What is read off a UNet while it runs: the call, its text maps, its features, plain queries.

Hooks, none of which changes what the UNet gives. They must not know what a method does with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeAlias

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from einops import rearrange
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from consist.attention.batch_split import Spread
from consist.attention.common_tokens import RecordedMatches
from consist.attention.correspondence import RecordedFeatures
from consist.attention.layers import feature_block, grid_of, matched_layers, recorded_layers
from consist.attention.masks import GivenMasks, RecordedMasks
from consist.attention.method import Method, Site
from consist.spectra.approximation import Bases

MaskSource: TypeAlias = GivenMasks | RecordedMasks | RecordedMatches


def listen(
    unet: UNet2DConditionModel, method: Method, layers: Mapping[str, Attention], call: UNetCall
) -> Iterator[RemovableHandle]:
    """Hooks up, one after another, all that a method in ``layers`` must be told of."""
    yield unet.register_forward_pre_hook(call, with_kwargs=True)
    if method.reads_plain_queries:
        plain = PlainForward(method, layers, call)
        yield unet.register_forward_pre_hook(plain, with_kwargs=True)
    if isinstance(call.masks, RecordedMasks):
        for layer, attn in recorded_layers(unet).items():
            recorder = CrossAttentionRecorder(layer, call, call.masks)
            yield attn.register_forward_pre_hook(recorder, with_kwargs=True)
    if isinstance(call.masks, RecordedMatches):
        for attn in matched_layers(unet).values():
            yield attn.register_forward_pre_hook(KeyRecorder(call, call.masks))
    if call.features:
        yield feature_block(unet).register_forward_hook(FeatureRecorder(call, call.features))


class UNetCall:
    """What the UNet call that is under way says of itself; read by a hook, never counted.

    All that a block of shared attention remembers hangs on it, and goes with it.
    """

    def __init__(
        self,
        halves: Callable[[], int],
        train_timesteps: int,
        seed: int,
        masks: MaskSource | None,
        features: RecordedFeatures | None,
        spread: Spread | None = None,
    ):
        self._halves = halves
        self._train_timesteps = train_timesteps
        self._seed = seed
        self.masks = masks
        self.features = features
        self.spread = spread
        self.bases = Bases()
        self.vanilla: dict[str, Tensor] = {}  # queries of a plain forward, by layer
        self.plain = False  # whether that forward is under way
        # masks and names of the images of all processes, by grid, in the call that is under way
        self._collected: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Reads the arguments of the UNet, as its pre-hook."""
        sample = kwargs["sample"] if "sample" in kwargs else args[0]
        timestep = torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1])
        if timestep.numel() > 1 and not bool((timestep == timestep.flatten()[0]).all()):
            raise NotImplementedError("shared attention needs one timestep for the whole batch")
        self.progress = 1.0 - float(timestep.flatten()[0]) / self._train_timesteps
        self.height, self.width = sample.shape[-2:]
        self.g = self._halves()
        if sample.shape[0] % self.g:
            raise ValueError(f"a batch of {sample.shape[0]} cannot hold {self.g} guidance halves")
        self.n = sample.shape[0] // self.g
        if self.spread and self.n != len(self.spread.own):
            dealt = len(self.spread.own)
            raise ValueError(f"{dealt} images are dealt to this process, the batch has {self.n}")
        self.vanilla, self._collected = {}, {}
        if self.masks:
            self.masks.begin(self.progress, self.n)
        if self.features:
            self.features.begin(self.progress)

    def grid(self, tokens: int) -> tuple[int, int]:
        """The height and width of a layer that looks at ``tokens`` tokens in this call."""
        return grid_of(tokens, self.height, self.width)

    def knows_masks(self) -> bool:
        """Whether a method can be told in this call where the subject is."""
        return self.masks is not None and self.masks.read(self.height, self.width) is not None

    def site(self, layer: str, tokens: int) -> Site:
        """Describes the layer that looks at ``tokens`` tokens; gives its vanilla queries away."""
        height, width = self.grid(tokens)
        masks, named = self._read_masks(height, width)
        return Site(
            layer=layer,
            height=height,
            width=width,
            progress=self.progress,
            g=self.g,
            n=self.spread.images if self.spread else self.n,
            seed=self._seed,
            masks=masks,
            named=named,
            vanilla_q=self.vanilla.pop(layer, None),
            features=self.features,
            bases=self.bases,
            spread=self.spread,
        )

    def _read_masks(self, height: int, width: int) -> tuple[Tensor | None, Tensor | None]:
        """Masks ``(n, c, l)`` on a grid, and which phrases each prompt has, as a site has them."""
        if self.masks is None:
            return None, None
        masks, named = self.masks.read(height, width), self.masks.named
        if masks is None or self.spread is None:
            return masks, named
        if (height, width) not in self._collected:
            masks, named = (
                self.spread.collect(x.byte(), range(self.spread.images)).bool()
                for x in (masks, named)
            )
            self._collected[height, width] = masks, named
        return self._collected[height, width]


class PlainForward:
    """Runs the UNet once more before it runs, as it would without the block, for its queries.

    A pre-hook that comes after ``UNetCall``. It acts where ``method`` asks for vanilla queries and
    may share: among several images, with masks. The queries are held until their layer is reached.
    """

    def __init__(self, method: Method, layers: Mapping[str, Attention], call: UNetCall):
        self.method = method
        self.layers = layers
        self.call = call
        self.processors = {layer: attn.processor for layer, attn in layers.items()}

    @torch.no_grad()
    def __call__(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Runs the UNet on the arguments that it is about to be given."""
        asked = [layer for layer in self.layers if self.method.blends(layer, self.call.progress)]
        if not asked or self.call.n == 1 or not self.call.knows_masks():
            return
        with ExitStack() as restore:
            restore.callback(setattr, self.call, "plain", False)
            self.call.plain = True
            for layer, attn in self.layers.items():
                restore.callback(attn.set_processor, attn.processor)
                attn.set_processor(self.processors[layer])
            for layer in asked:
                attn = self.layers[layer]
                keep = partial(self._keep, layer, attn.heads)
                restore.callback(attn.to_q.register_forward_hook(keep).remove)
            # the residuals of a T2I-Adapter are taken out of their list as they are used
            copies = {name: list(x) if isinstance(x, list) else x for name, x in kwargs.items()}
            unet.forward(*args, **copies)

    def _keep(self, layer: str, heads: int, to_q: Any, args: Any, query: Tensor) -> None:
        self.call.vanilla[layer] = rearrange(query, "b l (h d) -> b h l d", h=heads)


class CrossAttentionRecorder:
    """Tells ``masks`` what a cross-attention layer sees in the conditional half.

    A pre-hook that computes queries and keys once more beside the layer, which keeps its own
    processor, also that of an IP-Adapter, and gives what it gave. With an IP-Adapter it reads the
    attention to the text.
    """

    def __init__(self, layer: str, call: UNetCall, masks: RecordedMasks):
        self.layer = layer
        self.call = call
        self.masks = masks

    @torch.no_grad()
    def __call__(self, attn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Reads the arguments of the layer: ``(g n) l c`` and the text ``(g n) s c``."""
        if kwargs.get("attention_mask") is not None:
            raise NotImplementedError(f"{self.layer} was given a mask of the text")
        if self.call.plain:
            return
        hidden_states, context = args[0], kwargs["encoder_hidden_states"]
        text = context[0] if isinstance(context, tuple) else context
        # the halves are stacked unconditional first
        q, k = (
            rearrange(project(x[-self.call.n :]), "n l (h d) -> n h l d", h=attn.heads)
            for project, x in ((attn.to_q, hidden_states), (attn.to_k, text))
        )
        self.masks.add(q, k, *self.call.grid(q.shape[2]))


class KeyRecorder:
    """Tells ``matches`` the keys of a self-attention layer, in the conditional half.

    A pre-hook that computes them once more beside the layer. Those of anchors that are drawn by
    other processes come from there.
    """

    def __init__(self, call: UNetCall, matches: RecordedMatches):
        self.call = call
        self.matches = matches

    @torch.no_grad()
    def __call__(self, attn: Any, args: tuple[Any, ...]) -> None:
        """Reads the layer's input ``(g n) l c``."""
        anchors, spread = range(self.matches.anchors), self.call.spread
        if self.call.plain or len(anchors) < 2:
            return
        keys = attn.to_k(args[0][-self.call.n :])
        shown = spread.collect(keys, anchors) if spread else keys[: len(anchors)]
        images = spread.own if spread else range(self.call.n)
        self.matches.add(keys, shown, images, *self.call.grid(keys.shape[1]))


class FeatureRecorder:
    """Tells ``features`` what a block of the decoder gives in the conditional half."""

    def __init__(self, call: UNetCall, features: RecordedFeatures):
        self.call = call
        self.features = features

    def __call__(self, block: Any, args: tuple[Any, ...], output: Tensor) -> None:
        """Reads the output ``(g n) c height width`` of the block."""
        if not self.call.plain:
            # a copy: FreeU scales it in place
            self.features.add(output[-self.call.n :].detach().clone())
