"""Draws the plots of results anew, each from the JSON file beside it.

    python scripts/measure/redraw.py scripts/results/*.json

Files without a plot beside them are passed over.
"""

from __future__ import annotations

import argparse
import json
from operator import methodcaller
from pathlib import Path
from typing import Any

from learning import summary

from consist.evaluation.ablation import results
from consist.files import write_atomically


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="results, .json")
    for path in parser.parse_args().files:
        out = path.with_suffix(".svg")
        if out.exists():
            drawn = redraw(json.loads(path.read_text(encoding="utf-8")))
            write_atomically(out, methodcaller("write", drawn.encode()))
            print(out)


def redraw(found: dict[str, Any]) -> str:
    return summary.plot(found) if "standings" in found else results.plot(found)


if __name__ == "__main__":
    main()
