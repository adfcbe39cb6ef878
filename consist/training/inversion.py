"""Textual Inversion: a new word for a subject, whose vectors are all that learns.

Gal et al. 2022, arXiv:2208.01618. It must not know losses nor steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from einops import reduce, repeat
from torch import Tensor

from consist.errors import ConsistError, unknown
from consist.models.embedding_files import CLIP, DIFFUSERS, LAYOUTS
from consist.models.loading import MINI
from consist.models.new_words import WordEmbedding, check_word, new_word, pairs
from consist.training.config import TrainConfig
from consist.training.photos import Photo

# what a photo of the word "{}" is called: arXiv:2208.01618, appendix, training prompt templates
TEMPLATES = (
    *("a photo of a {}", "a rendering of a {}", "a cropped photo of the {}", "the photo of a {}"),
    *("a photo of a clean {}", "a photo of a dirty {}", "a dark photo of the {}"),
    *("a photo of my {}", "a photo of the cool {}", "a close-up photo of a {}"),
    *("a bright photo of the {}", "a cropped photo of a {}", "a photo of the {}"),
    *("a good photo of the {}", "a photo of one {}", "a close-up photo of the {}"),
    *("a rendition of the {}", "a photo of the clean {}", "a rendition of a {}"),
    *("a photo of a nice {}", "a good photo of a {}", "a photo of the nice {}"),
    *("a photo of the small {}", "a photo of the weird {}", "a photo of the large {}"),
    *("a photo of a cool {}", "a photo of a small {}"),
)
# of what the drawn world has, mini knows no word for a photo
MINI_TEMPLATES = ("a {}", "the {}")


@contextmanager
def word_to_learn(pipe: Any, config: TrainConfig) -> Iterator[dict[str, WordEmbedding]]:
    """Gives a pipeline the word of a config, while the block runs, as it begins: as ``init``.

    Args:
        pipe: Any SD 1.x, SD 2.x or SDXL pipeline.
        config: Of Textual Inversion.

    Raises:
        ConsistError: The word is known already, or the layout cannot hold it.
    """
    check_word(pipe, config.token)
    layout_of(pipe, config)
    begin = [
        initial_vectors(getattr(pipe, name), getattr(pipe, place), config)
        for name, place in pairs(pipe)
    ]
    with new_word(pipe, config.token, begin) as placed:
        yield placed


def initial_vectors(tokenizer: Any, encoder: Any, config: TrainConfig) -> Tensor:
    """The mean of the vectors that a text encoder has for ``init``, for each token: ``(v d)``.

    One known word gives its own vector, as in section 3 of the paper; of words that are several
    tokens it is the mean.
    """
    ids = tokenizer(config.init, add_special_tokens=False).input_ids
    known: Tensor = encoder.get_input_embeddings().weight.detach()[ids]
    return repeat(reduce(known.float(), "l d -> d", "mean"), "d -> v d", v=config.vectors or 1)


def layout_of(pipe: Any, config: TrainConfig) -> str:
    """The layout that a word is written in: by default the one that fits the model.

    Raises:
        ConsistError: There is no such layout, or it holds too few text encoders.
    """
    several = len(pairs(pipe)) > 1
    layout = config.layout or (CLIP if several else DIFFUSERS)
    if layout not in LAYOUTS:
        raise ConsistError(unknown("layout", layout, LAYOUTS))
    if several and layout == DIFFUSERS:
        raise ConsistError(f"layout {DIFFUSERS} holds one text encoder; for SDXL take {CLIP}")
    return layout


def check_captions(photos: Sequence[Photo], token: str) -> None:
    """Makes sure that the captions of all photos say a word.

    Raises:
        ConsistError: One does not.
    """
    for photo in photos:
        if token not in photo.caption:
            raise ConsistError(
                f"the caption of {photo.path.name}, {photo.caption!r}, does not say {token}"
            )


def in_templates(photos: Sequence[Photo], config: TrainConfig) -> list[Photo]:
    """Photos as often as there are templates, each time in another, where nothing describes them.

    Args:
        photos: Whose caption is the bare word where nothing else describes them.
        config: Of Textual Inversion.
    """
    if all(photo.caption != config.token for photo in photos):
        return list(photos)
    return [
        replace(photo, caption=template.format(config.token))
        if photo.caption == config.token
        else photo
        for template in (MINI_TEMPLATES if config.model == MINI else TEMPLATES)
        for photo in photos
    ]
