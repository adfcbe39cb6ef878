"""Devices and precisions by name."""

from __future__ import annotations

import platform

import torch

from consist.errors import ConsistError, first_line, unknown

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" takes the fastest there is.

    Raises:
        ConsistError: There is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConsistError(f"device {name!r} cannot be used here: {first_line(error)}") from error
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of that name; "auto" is float16 on CUDA and float32 elsewhere."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ConsistError(unknown("dtype", name, ["auto", *DTYPES]))
    return DTYPES[name]


def describe(device: torch.device) -> str:
    """A device in words, with its memory or cores."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return f"{found.name}, {found.total_memory / 2**30:.0f} GiB"
    if device.type == "cpu":
        return f"cpu, {platform.machine()}, {torch.get_num_threads()} threads; no GPU was found"
    return device.type
