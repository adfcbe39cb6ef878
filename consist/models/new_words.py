"""New words for a pipeline: put beside what its text encoders know, and taken out without a trace.

Textual Inversion (Gal et al. 2022, arXiv:2208.01618) says a subject by a word whose vectors were
found for it. It must not know how they are found.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import embedding

from consist.errors import ConsistError
from consist.models.embedding_files import read_embedding

PAIRS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
# transformers then takes the largest id for the end of a text, which a new word is beyond
OLD_END = 2


class WordEmbedding(nn.Module):
    """Looks tokens up in a table, and the tokens of one new word beside it.

    The table is neither resized nor copied, and nothing but ``vectors`` need ever learn.

    Args:
        table: What text encoders look tokens up in: ids ``(n l)`` to vectors ``(n l d)``.
        first: The id of the word's first token; the others follow, and no others do.
        vectors: ``(v d)``, one per token.
    """

    def __init__(self, table: nn.Module, first: int, vectors: Tensor):
        super().__init__()
        self.table = table
        self.first = first
        self.vectors = nn.Parameter(vectors)

    def forward(self, ids: Tensor) -> Tensor:
        """The vectors of tokens, in the precision of the table."""
        new = ids >= self.first
        known: Tensor = self.table(ids.masked_fill(new, 0))
        learned = embedding((ids - self.first).clamp(min=0), self.vectors)
        return torch.where(rearrange(new, "n l -> n l 1"), learned.to(known.dtype), known)


@contextmanager
def new_words(pipe: Any, files: Sequence[Path | str]) -> Iterator[None]:
    """Lets the prompts of a pipeline say the words of embedding files while the block runs.

    ```python
    with consist.new_words(pipe, ["my-cat.safetensors"]):
        images = pipe("a <my-cat> in Paris").images
    ```

    Words of several vectors need no more than their name. Leaving the block, also through an
    exception, puts back the very tokenizers and tables that were there.

    Args:
        pipe: Any SD 1.x, SD 2.x or SDXL pipeline.
        files: Of either layout of ``consist.models.embedding_files``.

    Raises:
        ConsistError: A file is missing, damaged or for another model, or the model knows its word.
    """
    with ExitStack() as restore:
        for file in files:
            found = read_embedding(Path(file))
            check_vectors(pipe, found.vectors, f"{file}")
            check_word(pipe, found.word, f"of {file} ")
            restore.enter_context(new_word(pipe, found.word, found.vectors))
        yield


@contextmanager
def new_word(pipe: Any, word: str, vectors: Sequence[Tensor]) -> Iterator[dict[str, WordEmbedding]]:
    """Lets the prompts of a pipeline say one new word while the block runs.

    Args:
        pipe: Any SD 1.x, SD 2.x or SDXL pipeline.
        word: That no tokenizer of it has.
        vectors: ``(v d)``, one for each text encoder.

    Yields:
        What each text encoder, by its name, looks tokens up in.
    """
    with ExitStack() as restore:
        placed = {}
        for (name, place), own in zip(pairs(pipe), vectors, strict=True):
            tokenizer, encoder = getattr(pipe, name), getattr(pipe, place)
            grown = copy.deepcopy(tokenizer)
            grown.add_tokens(token_names(word, len(own)))
            restore.callback(setattr, pipe, name, tokenizer)
            setattr(pipe, name, grown)
            table = encoder.get_input_embeddings()
            restore.callback(encoder.set_input_embeddings, table)
            first = grown.convert_tokens_to_ids(word)
            held = own.detach().to(encoder.device, encoder.dtype, copy=True)
            placed[place] = WordEmbedding(table, first, held)
            encoder.set_input_embeddings(placed[place])
            # newer versions of transformers have no inner model where there is no projection
            inner = getattr(encoder, "text_model", encoder)
            if inner.eos_token_id == OLD_END:
                restore.callback(setattr, inner, "eos_token_id", OLD_END)
                inner.eos_token_id = tokenizer.eos_token_id
        yield placed


def token_names(word: str, count: int) -> list[str]:
    """The tokens of a word, named as diffusers names and finds them.

    >>> token_names("<my-cat>", 3)
    ['<my-cat>', '<my-cat>_1', '<my-cat>_2']
    """
    return [word, *(f"{word}_{number}" for number in range(1, count))]


def pairs(pipe: Any) -> list[tuple[str, str]]:
    """The names of a pipeline's tokenizers, each with that of its text encoder."""
    return [pair for pair in PAIRS if getattr(pipe, pair[1], None) is not None]


def check_word(pipe: Any, word: str, origin: str = "") -> None:
    """Makes sure that a word is new to a pipeline.

    Args:
        pipe: Its tokenizers are asked.
        word: Without spaces.
        origin: Where it is from, for the sentence.

    Raises:
        ConsistError: A tokenizer has it, by itself or as the first of several tokens.
    """
    for name, _ in pairs(pipe):
        known = getattr(pipe, name).get_vocab()
        if any(token in known for token in (word, f"{word}</w>", f"{word}_1")):
            raise ConsistError(
                f"the word {word!r} {origin}is one that the model knows already; "
                "it must be new, such as '<my-cat>'"
            )


def check_vectors(pipe: Any, vectors: Sequence[Tensor], name: str) -> None:
    """Makes sure that vectors fit the text encoders of a pipeline.

    Raises:
        ConsistError: There are too few or too many, or they are of another width.
    """
    encoders = [getattr(pipe, place) for _, place in pairs(pipe)]
    if len(encoders) != len(vectors):
        raise ConsistError(
            f"{name} is for {len(vectors)} text encoders, and this model has {len(encoders)}"
        )
    for encoder, own in zip(encoders, vectors, strict=True):
        width = encoder.config.hidden_size
        if own.shape[1] != width:
            raise ConsistError(
                f"{name} is for another base model: its vectors have {own.shape[1]} numbers, "
                f"and this model's have {width}"
            )
