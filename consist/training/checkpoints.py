"""Checkpoints: one safetensors file each, whole or not there, with all that is no tensor as JSON.

No pickle. It must not know what the tensors mean.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from consist.errors import ConsistError
from consist.models.tensor_files import plain_errors

TENSOR = "tensor:"  # what a string begins with that stands for a tensor of the file
DAMAGED = "the checkpoint {name} is damaged ({reason}); remove it to go on from the one before"


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps lies."""
    return folder / f"step-{step:07d}.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a folder, the oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes a checkpoint in full or not at all.

    Args:
        path: Where.
        tensors: By name.
        state: What JSON has, and tensors anywhere in it.

    Raises:
        ConsistError: It cannot be written, because the disk is full, say.
    """
    held = dict(tensors)
    text = json.dumps(extract_tensors(state, "state", held))
    partial = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(apart(held), partial, {"state": text})
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise ConsistError(f"the checkpoint {path} cannot be written: {error}") from error


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU; those that share memory, which a file does not allow, are copied."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        found[name] = plain.clone() if plain.data_ptr() in seen else plain
        seen.add(plain.data_ptr())
    return found


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the state of a checkpoint.

    Raises:
        ConsistError: It is damaged.
    """
    with plain_errors(path, DAMAGED), safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = insert_tensors(json.loads(file.metadata()["state"]), tensors)
    return tensors, dict(state)


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Removes all but the newest ``keep`` checkpoints, and what a killed process left."""
    for path in checkpoints(folder)[:-keep]:
        path.unlink()
    for path in folder.glob("step-*.part"):
        path.unlink()


def extract_tensors(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A copy of nested dicts and lists in which names stand for tensors, which join ``tensors``."""
    if isinstance(tree, Tensor):
        tensors[name] = tree
        return TENSOR + name
    if isinstance(tree, Mapping):
        return {key: extract_tensors(tree[key], f"{name}.{key}", tensors) for key in tree}
    if isinstance(tree, (list, tuple)):
        return [extract_tensors(part, f"{name}.{i}", tensors) for i, part in enumerate(tree)]
    return tree


def insert_tensors(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The nested dicts and lists that ``extract_tensors`` was given; keys of digits are numbers."""
    if isinstance(tree, str) and tree.startswith(TENSOR):
        return tensors[tree.removeprefix(TENSOR)]
    if isinstance(tree, dict):
        return {
            int(key) if key.isdecimal() else key: insert_tensors(part, tensors)
            for key, part in tree.items()
        }
    if isinstance(tree, list):
        return [insert_tensors(part, tensors) for part in tree]
    return tree
