"""Draws pictures of the mini world into one sheet, to look at.

python scripts/draw_world.py OUT [--columns 8] [--rows 4] [--seed 0]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

from PIL import Image

from consist.mini.world import draw, sample_picture

SIZE = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = Random(args.seed)
    sheet = Image.new("RGB", (args.columns * SIZE, args.rows * SIZE))
    for index in range(args.columns * args.rows):
        place = (index % args.columns * SIZE, index // args.columns * SIZE)
        sheet.paste(draw(sample_picture(rng), SIZE).image, place)
    sheet.save(args.out)


if __name__ == "__main__":
    main()
