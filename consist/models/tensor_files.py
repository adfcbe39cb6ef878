"""Tensors and words in safetensors files: what goes wrong there is one sentence.

It must not know what the tensors are.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from consist.errors import ConsistError, first_line
from consist.files import write_atomically

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# what loading raises where a file is missing, damaged, or of something else
LOADING_ERRORS = (
    *(OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError),
    *(SafetensorError, pickle.UnpicklingError),
)
DAMAGED = "{name} is damaged: {reason}"
UNLOADABLE = "{name} cannot be loaded: {reason}"


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on the CPU and as precise as there, and the words of its header.

    Raises:
        ConsistError: It is missing, a pickle, of another ending, or damaged.
    """
    if path.suffix in PICKLES:
        raise ConsistError(
            f"{path} may hold a pickle, which can run code; give a .safetensors file"
        )
    if not path.is_file():
        raise ConsistError(f"there is no file {path}")
    if path.suffix != ".safetensors":
        raise ConsistError(f"{path} is not a .safetensors file")
    with plain_errors(path, DAMAGED), safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        words = dict(file.metadata() or {})
    words.pop("format", None)
    return tensors, words


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    words: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a file in full or not at all.

    Args:
        path: Ends in ``.safetensors``.
        tensors: On any device.
        words: For the header.
        dtype: Of the tensors; by default theirs. Scalars stay as they are.

    Raises:
        ConsistError: The path has another ending or cannot be written, or a value is not finite,
            or not in ``dtype``.
    """
    if path.suffix != ".safetensors":
        raise ConsistError(f"{path} must end in .safetensors")
    ready = {}
    for key, tensor in tensors.items():
        held = tensor.detach().to("cpu", dtype if dtype and tensor.ndim else tensor.dtype)
        if not held.isfinite().all():
            name = str(held.dtype).removeprefix("torch.")
            raise ConsistError(f"{path} was not written: {key} is not finite in {name}")
        ready[key] = held.contiguous()
    content = save(ready, {"format": "pt", **words})
    write_atomically(path, lambda file: file.write(content))


@contextmanager
def plain_errors(name: str | Path, sentence: str | None = None) -> Iterator[None]:
    """Turns the many ways in which loading fails into one sentence.

    Args:
        name: Of what is loaded.
        sentence: With places for ``{name}`` and ``{reason}``; by default ``DAMAGED`` where that is
            sure, and ``UNLOADABLE`` where not.

    Raises:
        ConsistError: With the sentence.
    """
    try:
        yield
    except LOADING_ERRORS as error:
        usual = DAMAGED if isinstance(error, SafetensorError) else UNLOADABLE
        said = (sentence or usual).format(name=name, reason=first_line(error))
        raise ConsistError(said) from error
