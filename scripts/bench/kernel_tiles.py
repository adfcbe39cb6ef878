"""Finds the fastest tiles of the attention kernel on this GPU, and writes them to tiles.json.

    python scripts/bench/kernel_tiles.py                 # all head sizes, 1 to 2 minutes
    python scripts/bench/kernel_tiles.py --heads 64      # one of them

Every candidate is first checked against torch's attention. Those that need more shared memory than
there is, or give other numbers, are left out and named.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from consist_kernels.pool import attend_bank
from consist_kernels.tiles import DEFAULT, LENGTHS, TILES_FILE, Tile, name_device

from consist.attention.backends import attend_torch, triton_obstacle
from consist.attention.bank import Bank, pack

# what is timed for each length: the side of the token grid
SIDES = {"small": 32, "large": 64}
IMAGES, ROUNDS = 4, 5
# each takes a second or two to compile; larger ones spill, or run one product after the other
CANDIDATES = (
    *(Tile(64, 64, 4, 2), Tile(64, 64, 4, 3), Tile(64, 128, 4, 2)),
    *(Tile(128, 64, 4, 3), Tile(128, 64, 8, 2), Tile(128, 64, 8, 3), Tile(128, 128, 8, 2)),
)


def make_inputs(d: int, side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Bank]:
    """Four images with both guidance halves, all of whose tokens are shared."""
    generator = torch.Generator().manual_seed(0)
    heads = 640 // d
    x = torch.randn(3, 2 * IMAGES, side**2, heads, d, generator=generator)
    q, k, v = x.half().cuda().transpose(2, 3)
    return q, k, v, pack(k, v, range(IMAGES), images=IMAGES)


def seconds(tile: Tile, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bank: Bank) -> float:
    """Of one call: the median of some rounds."""
    times = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(10):
            attend_bank(q, k, v, bank.k, bank.v, bank.owner, tile=tile)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 10_000)
    return statistics.median(times)


@torch.no_grad()
def tune(d: int, length: str) -> Tile:
    """The fastest tile for heads of size ``d``."""
    q, k, v, bank = make_inputs(d, SIDES[length])
    truth = attend_torch(q, k, v, bank).float()
    times: dict[Tile, float] = {}
    for tile in CANDIDATES:
        try:
            found = attend_bank(q, k, v, bank.k, bank.v, bank.owner, tile=tile).float()
        except Exception as error:
            # what a compiler may raise is no closed list
            print(f"{d:4} {length:>6} {tuple(tile)} left out: {type(error).__name__}")
            continue
        if (found - truth).norm() > 5e-3 * truth.norm():
            print(f"{d:4} {length:>6} {tuple(tile)} left out: its numbers are wrong")
            continue
        times[tile] = seconds(tile, q, k, v, bank)
    best = min(times, key=times.__getitem__)
    # both products, of all queries with all keys
    flops = 4 * q.numel() * IMAGES * SIDES[length] ** 2
    rate = 1e-12 * flops / times[best]
    others = f"others up to {1e3 * max(times.values()):.3f} ms"
    print(
        f"{d:4} {length:>6} {tuple(best)} {1e3 * times[best]:.3f} ms, {rate:.0f} TFLOP/s; {others}"
    )
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--heads", type=int, nargs="+", help="sizes; by default all of the file")
    parser.add_argument("--out", type=Path, default=TILES_FILE, help="where to write the tiles")
    args = parser.parse_args()
    device = torch.device("cuda", 0)
    if not torch.cuda.is_available():
        parser.exit(2, "error: tiles are timed on a CUDA device, and there is none here\n")
    if obstacle := triton_obstacle(device, torch.float16):
        parser.exit(2, f"error: triton {obstacle}\n")
    tiles = json.loads(TILES_FILE.read_text(encoding="utf-8"))
    own = tiles.setdefault(name_device(device), {})
    for d in args.heads or map(int, tiles[DEFAULT]):
        own[str(d)] = {length: list(tune(d, length)) for length in LENGTHS}
    write(tiles, args.out)


def write(tiles: dict[str, dict[str, dict[str, list[int]]]], path: Path) -> None:
    """Writes the file with one line for each head size, as people read it."""
    blocks = [
        f'  "{device}": {{\n'
        + ",\n".join(f'    "{d}": {json.dumps(lengths)}' for d, lengths in heads.items())
        + "\n  }"
        for device, heads in tiles.items()
    ]
    path.write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
