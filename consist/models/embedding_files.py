"""Files of Textual Inversion: the vectors that a new word stands for.

`diffusers` holds them under the word, for one text encoder; `clip` as ``clip_l`` and, for SDXL,
``clip_g``, as ComfyUI and A1111 read them. It must not know how the vectors are found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from consist.errors import ConsistError, unknown
from consist.models.tensor_files import read_tensors, write_tensors

DIFFUSERS = "diffusers"
CLIP = "clip"
LAYOUTS = (DIFFUSERS, CLIP)
ENCODERS = ("clip_l", "clip_g")


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """The content of a file of Textual Inversion."""

    word: str  # what prompts say for it
    vectors: tuple[Tensor, ...]  # n d, for each text encoder in the pipeline's order
    metadata: Mapping[str, str] = field(default_factory=dict)


def write_embedding(
    path: Path,
    word: str,
    vectors: Sequence[Tensor],
    *,
    layout: str = DIFFUSERS,
    metadata: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes the vectors of a word.

    Args:
        path: Ends in ``.safetensors``. ComfyUI and A1111 take its name for the word.
        word: Without spaces, such as ``<my-cat>``.
        vectors: ``n d``, one for each text encoder, with the same n.
        layout: One of ``LAYOUTS``.
        metadata: What to keep with it, such as ``base_model`` and ``steps``.
        dtype: Of the vectors; by default theirs.

    Raises:
        ValueError: The word, or the number or shape of the vectors, does not fit.
        ConsistError: There is no such layout, or the file cannot be written.
    """
    if layout not in LAYOUTS:
        raise ConsistError(unknown("layout", layout, LAYOUTS))
    if word.split() != [word]:
        raise ValueError(f"a word has no spaces and is not empty, {word!r} was given")
    shapes = [tuple(one.shape) for one in vectors]
    if any(len(shape) != 2 or 0 in shape or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"vectors are n d with one n for all, {shapes} were given")
    most = 1 if layout == DIFFUSERS else len(ENCODERS)
    if not 1 <= len(vectors) <= most:
        raise ValueError(f"layout {layout} holds 1 to {most} text encoders, not {len(vectors)}")
    keys = [word] if layout == DIFFUSERS else ENCODERS
    words = {key: str(value) for key, value in (metadata or {}).items()}
    words |= {"word": word, "tool": f"consist {version('consist')}"}
    write_tensors(path, dict(zip(keys, vectors, strict=False)), words, dtype)


def read_embedding(path: Path) -> Embedding:
    """Reads a file of either layout; one that does not tell its word has the file's name.

    Raises:
        ConsistError: It is missing, a pickle, damaged, or holds no embedding.
    """
    tensors, words = read_tensors(path)
    if len(tensors) == 1 and not tensors.keys() & set(ENCODERS):
        found = tensors
        words["word"] = next(iter(tensors))
    else:
        found = {name: tensors[name] for name in ENCODERS if name in tensors}
    if not found or len(found) != len(tensors) or any(t.ndim not in (1, 2) for t in found.values()):
        raise ConsistError(f"{path} holds no embedding: one word, or {' and '.join(ENCODERS)}")
    vectors = tuple(t if t.ndim == 2 else rearrange(t, "d -> 1 d") for t in found.values())
    return Embedding(word=words.pop("word", path.stem), vectors=vectors, metadata=words)
