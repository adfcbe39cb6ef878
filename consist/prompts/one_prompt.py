"""One prompt for all images: joins prompts, finds their parts among the tokens, encodes them.

Knows pipelines and their text encoders; what becomes of the embeddings is said by the method.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor

from consist.attention.masks import SubjectTokens
from consist.attention.method import Method
from consist.errors import ConsistError
from consist.prompts.phrases import split_identity

# what encode_prompt gives, in its order: the first two with SD 1.x and SD 2.x, all with SDXL
EMBEDDINGS = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)


@dataclass(frozen=True)
class Consolidated:
    """The prompt of one image, which holds those of others."""

    identity: str
    frames: tuple[str, ...]
    current: int  # the frame of this image

    @property
    def pieces(self) -> tuple[str, ...]:
        """The identity, then the frames."""
        return (self.identity, *self.frames)

    @property
    def text(self) -> str:
        """All pieces, with spaces between them."""
        return " ".join(self.pieces)


@dataclass(frozen=True)
class Places:
    """Positions of tokens in a consolidated prompt, the start token being 0."""

    identity: range
    frames: tuple[range, ...]
    ends: tuple[int, ...]  # end tokens, also those that pad the text

    @property
    def length(self) -> int:
        """Tokens of the text, without start and end."""
        return self.frames[-1].stop - 1


@torch.no_grad()
def encode_prompts(
    pipe: StableDiffusionPipeline | StableDiffusionXLPipeline,
    prompts: Sequence[str],
    method: Method,
    *,
    images: Sequence[int] | None = None,
    negative: str = "",
    **options: Any,
) -> dict[str, Tensor]:
    """Encodes prompts as one, for the call of the pipeline in their place.

    ```python
    method = consist.OnePrompt()
    tokens = consist.identity_tokens(pipe, prompts, method)
    with consist.shared_attention(pipe, method, subject_tokens=tokens):
        images = pipe(**consist.encode_prompts(pipe, prompts, method)).images
    ```

    Without it a pipeline that is given ``prompts`` encodes each by itself: ``shared_attention``
    changes attention alone.

    Args:
        pipe: Any SD 1.x, SD 2.x or SDXL pipeline.
        prompts: All of them, one per image.
        method: How embeddings are reweighted, such as ``OnePrompt()``.
        images: Those that are drawn in this call; None: all.
        negative: What the pictures should not show.
        options: More for the pipeline's ``encode_prompt``, such as ``clip_skip``.

    Returns:
        ``prompt_embeds`` and ``negative_prompt_embeds`` ``(n s c)``; for SDXL also
        ``pooled_prompt_embeds`` and ``negative_pooled_prompt_embeds`` ``(n c)``.

    Raises:
        ConsistError: The prompts have no identity in common, or are too long together.
    """
    made = consolidate(pipe, prompts, method)
    drawn = made if images is None else [made[image] for image in images]
    encoded = pipe.encode_prompt(
        prompt=[prompt.text for prompt in drawn],
        device=pipe._execution_device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        # SDXL takes None, and not an empty text, as nothing
        negative_prompt=[negative] * len(drawn) if negative else None,
        **options,
    )
    embeds, *others = encoded
    return dict(zip(EMBEDDINGS, (_reweight(pipe, embeds, drawn, method), *others), strict=False))


def identity_tokens(
    pipe: StableDiffusionPipeline | StableDiffusionXLPipeline,
    prompts: Sequence[str],
    method: Method,
) -> SubjectTokens | None:
    """Finds the tokens of the identity in what ``encode_prompts`` encodes.

    They are those of the pipeline's first tokenizer; SDXL's second one splits words as it does.

    Returns:
        Positions by image and phrase, of which there is one, for ``shared_attention``. None if
        the method does not weigh them.

    Raises:
        ConsistError: As ``encode_prompts``.
    """
    made = consolidate(pipe, prompts, method)
    if not method.ipca:
        return None
    tokenizer, _ = _text_encoders(pipe)[0]
    return tuple((tuple(find_places(pipe, tokenizer, prompt).identity),) for prompt in made)


def consolidate(pipe: Any, prompts: Sequence[str], method: Method) -> list[Consolidated]:
    """The consolidated prompt ``[P0; P1; ...; PN]`` of each image (arXiv:2501.13554).

    Raises:
        ConsistError: The prompts have no identity in common, or are too long together.
    """
    identity, frames = split_identity(prompts, method.subject)
    count = len(frames) if method.frames == "all" else min(int(method.frames), len(frames))
    made = join_frames(identity, frames, count)
    if problem := _overflow(pipe, made):
        smaller = (fewer for fewer in range(count - 1, 0, -1))
        fitting = (n for n in smaller if not _overflow(pipe, join_frames(identity, frames, n)))
        fits = next(fitting, None)
        remedy = f"put fewer into one, with --set frames={fits}" if fits else "shorten the prompts"
        raise ConsistError(f"{problem}; {remedy}")
    return made


def join_frames(identity: str, frames: tuple[str, ...], count: int) -> list[Consolidated]:
    """Joins the identity and ``count`` frames, for each frame in turn.

    All frames stay in their order; fewer are taken in a circle, from the drawn one on.

    >>> [prompt.text for prompt in join_frames("a cat", ("in Paris", "on a ship", "at night"), 2)]
    ['a cat in Paris on a ship', 'a cat on a ship at night', 'a cat at night in Paris']
    """
    total = len(frames)
    if count == total:
        return [Consolidated(identity, frames, current) for current in range(total)]
    circles = [[(first + i) % total for i in range(count)] for first in range(total)]
    return [Consolidated(identity, tuple(frames[i] for i in circle), 0) for circle in circles]


def find_places(pipe: Any, tokenizer: Any, prompt: Consolidated) -> Places:
    """Finds the tokens of each piece, by how many there are up to its end."""

    def count(pieces: tuple[str, ...]) -> int:
        text = pipe.maybe_convert_prompt(" ".join(pieces), tokenizer)
        return len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    edges = [1 + count(prompt.pieces[:number]) for number in range(len(prompt.pieces) + 1)]
    identity, *frames = (range(start, stop) for start, stop in pairwise(edges))
    text = pipe.maybe_convert_prompt(prompt.text, tokenizer)
    ids = tokenizer(text, padding="max_length", truncation=True).input_ids
    after = range(edges[-1], len(ids))
    ends = tuple(position for position in after if ids[position] == tokenizer.eos_token_id)
    return Places(identity, tuple(frames), ends)


def _overflow(pipe: Any, made: Iterable[Consolidated]) -> str | None:
    """Says which frames fall off the end of a text; None if all fit."""
    for tokenizer, _ in _text_encoders(pipe):
        limit = tokenizer.model_max_length - 2
        for prompt in {prompt.pieces: prompt for prompt in made}.values():
            places = find_places(pipe, tokenizer, prompt)
            if places.length > limit:
                pairs = zip(prompt.frames, places.frames, strict=True)
                lost = [repr(frame) for frame, place in pairs if place.stop - 1 > limit]
                return (
                    f"one prompt for {len(prompt.frames)} images has {places.length} tokens, the "
                    f"text encoder takes {limit}: what does not fit is {', '.join(lost)}"
                )
    return None


def _reweight(pipe: Any, embeds: Tensor, drawn: Sequence[Consolidated], method: Method) -> Tensor:
    """Reweights ``(n s c)``, the part of each text encoder by itself."""
    encoders = _text_encoders(pipe)
    parts = embeds.split([encoder.config.hidden_size for _, encoder in encoders], dim=-1)
    changed = []
    for (tokenizer, _), part in zip(encoders, parts, strict=True):
        places = [find_places(pipe, tokenizer, prompt) for prompt in drawn]
        rows = [
            method.reweight(text, place.frames, prompt.current, place.ends)
            for text, place, prompt in zip(part, places, drawn, strict=True)
        ]
        changed.append(torch.stack(rows))
    return torch.cat(changed, dim=-1)


def _text_encoders(pipe: Any) -> list[tuple[Any, Any]]:
    """The tokenizers and text encoders of a pipeline, in the order of their embeddings."""
    names = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
    pairs = [(getattr(pipe, one, None), getattr(pipe, two, None)) for one, two in names]
    return [pair for pair in pairs if pair[0] is not None]
