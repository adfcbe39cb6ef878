"""How much one program of the attention kernel takes on at a time, read from ``tiles.json``.

The file has ``[queries, keys, warps, stages]`` by device, head size and length. Those of "default"
were chosen by what they need on compute capability 9.0, not by time;
``scripts/bench/kernel_tiles.py`` adds those of the device that it runs on.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import torch

TILES_FILE = Path(__file__).with_name("tiles.json")
DEFAULT = "default"
HEAD_SIZES = range(8, 161, 8)
LENGTHS = {"small": 1024, "large": None}  # up to so many queries; None: any number


class Tile(NamedTuple):
    """What one program attends at a time, and how it is compiled; sizes are powers of two."""

    queries: int  # tokens, 16 and above
    keys: int  # tokens, 16 and above; also the block of the pool
    warps: int
    stages: int  # tiles of keys in flight


@functools.cache
def read_tiles() -> dict[str, dict[int, dict[str, Tile]]]:
    """All tiles, by device, largest head size and length."""
    devices = json.loads(TILES_FILE.read_text(encoding="utf-8"))
    return {
        device: {
            int(d): {length: Tile(*tile) for length, tile in lengths.items()}
            for d, lengths in sorted(heads.items(), key=lambda item: int(item[0]))
        }
        for device, heads in devices.items()
    }


def choose_tile(d: int, tokens: int, device: str = DEFAULT) -> Tile:
    """The tile for ``tokens`` queries with heads of size ``d``: that of the next size listed.

    Args:
        d: A multiple of 8 up to 160.
        tokens: Queries of an image.
        device: As ``name_device`` has it; one that is not listed takes the default.

    Raises:
        ValueError: The kernel is not for this head size.

    >>> choose_tile(64, 4096) == choose_tile(56, 4096)
    True
    """
    if d not in HEAD_SIZES:
        raise ValueError(f"head size is {d}; allowed: multiples of 8 up to 160")
    tiles = {**read_tiles()[DEFAULT], **read_tiles().get(device, {})}
    lengths = tiles[min(size for size in tiles if size >= d)]
    return next(lengths[name] for name, most in LENGTHS.items() if most is None or tokens <= most)


@functools.cache
def name_device(device: torch.device) -> str:
    """The name of a GPU, such as "NVIDIA H200"; "default" for anything else."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else DEFAULT
