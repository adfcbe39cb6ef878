"""Cross-attention to a text some of whose words count more than once.

It must not know how a method weighs them, nor how it is plugged in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from einops import rearrange
from torch import Tensor

from consist.attention.masks import SubjectTokens, token_weights
from consist.attention.method import Method, Site


class IdentityAttnProcessor:
    """Cross-attention in whose conditional half a method weighs the words of the identity.

    Args:
        layer: Dotted name.
        method: Gives the weights.
        site: Describes the layer of that name that looks from so many places.
        tokens: Positions of the identity's words, by image and phrase.
    """

    def __init__(
        self,
        layer: str,
        method: Method,
        site: Callable[[str, int], Site],
        tokens: SubjectTokens,
    ):
        self.layer = layer
        self.method = method
        self.site = site
        self.tokens = tokens

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Attention of ``(g n) l c`` to the text ``(g n) s c``, as diffusers calls it."""
        if encoder_hidden_states is None or attention_mask is not None:
            raise NotImplementedError(f"{self.layer} was given no text, or a mask of it")

        query, key, value = (
            rearrange(project(x), "b l (h d) -> b h l d", h=attn.heads)
            for project, x in (
                (attn.to_q, hidden_states),
                (attn.to_k, encoder_hidden_states),
                (attn.to_v, encoder_hidden_states),
            )
        )

        bias = self._bias(self.site(self.layer, query.shape[2]), key.shape[2])

        hidden_states = F.scaled_dot_product_attention(query, key, value, bias.to(query))

        hidden_states = rearrange(hidden_states, "b h l d -> b l (h d)")
        dropout: torch.nn.Module = attn.to_out[1]
        return dropout(attn.to_out[0](hidden_states))

    def _bias(self, site: Site, length: int) -> Tensor:
        """The log-weights of a text of ``length`` tokens, float32 ``((g n), 1, l or 1, s)``."""
        if len(self.tokens) != site.n:
            raise ValueError(
                f"subject tokens are for {len(self.tokens)} images, the batch has {site.n}"
            )
        named = token_weights(self.tokens, length).bool().any(-1)
        conditional = self.method.text_bias(named, site)
        # the halves are stacked unconditional first
        plain = [torch.zeros_like(conditional)] * (site.g - 1)
        return rearrange(torch.cat((*plain, conditional)), "b l s -> b 1 l s")
