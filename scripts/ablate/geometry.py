"""Geometry of sharing: which matrix is decomposed, and where, when and from whom tokens come.

    python scripts/ablate/geometry.py --quick          # a try of minutes
    python scripts/ablate/geometry.py --sets 40        # explore on the first half of the sets

One change at a time from the default of ``Spectral``: per head or all heads side by side; each
anchor by itself or all together; centered or not (these three in all combinations); layers;
resolutions; window of progress; anchors: the first, the first two, all, or a random one at each
call; strength; and a spectrum of the keys beside that of the values. A choice stays the default
if no change from it is better in identity without more leakage; its interval against the default
says so.
"""

from itertools import product
from typing import Any

from consist.cli.ablation import ablate
from consist.evaluation.ablation.settings import Setting
from consist.models.loading import MINI

DEFAULT = "spectral"
SHAPES = [*product(("head", "full"), ("all", "anchor"), (True, False))][1:]
LAYERS = {
    "down": ("down_blocks",),
    "mid": ("mid_block",),
    "mid and up": ("mid_block", "up_blocks"),
    "all": ("down_blocks", "mid_block", "up_blocks"),
}
# the longer side of the coarse grids, in tokens: half of those with attention
COARSE = {MINI: 8}
COARSE_ELSEWHERE = 32
WINDOWS = ((0.0, 0.25), (0.0, 0.5), (0.0, 0.8), (0.2, 1.0), (0.5, 1.0))
ANCHORS = (1, 2, "random")
STRENGTHS = (0.25, 0.5, 2.0, 4.0)
KEYS = ("log2", "schulz:2", "exp:1")


def changed(name: str, group: str, **fields: Any) -> Setting:
    method = {"name": "spectral", **fields}
    return Setting(name=name, method=method, group=group, against=DEFAULT)


def settings(model: str) -> list[Setting]:
    coarse = COARSE.get(model, COARSE_ELSEWHERE)
    grids = {f"grids to {coarse}": (1, coarse), f"grids from {coarse + 1}": (coarse + 1, 65536)}
    return [
        Setting(name=DEFAULT, method={"name": "spectral"}),
        *(
            changed(
                f"{width}, {pool}, {'centered' if centered else 'uncentered'}",
                "matrix",
                width=width,
                pool=pool,
                centered=centered,
            )
            for width, pool, centered in SHAPES
        ),
        *(changed(f"layers {name}", "layers", layers=layers) for name, layers in LAYERS.items()),
        *(changed(name, "grids", sides=sides) for name, sides in grids.items()),
        *(changed(f"from {a:g} to {b:g}", "window", window=(a, b)) for a, b in WINDOWS),
        *(changed(f"anchors {count}", "anchors", anchors=count) for count in ANCHORS),
        *(changed(f"strength {w:g}", "strength", strength=w) for w in STRENGTHS),
        *(changed(f"K {rule}", "keys", keys=rule) for rule in KEYS),
    ]


if __name__ == "__main__":
    ablate(__doc__, settings, __file__)
