"""Masks against singular values: does the spectrum replace the mask, as claimed? And which masks?

    python scripts/ablate/masks.py --quick             # a try of minutes
    python scripts/ablate/masks.py                     # all sets of the first half

Shared attention with masks predicted from cross-attention, as ConsiStory has it; with masks from
matches of keys, which need no word; with masks that the reader finds in the isolated pictures of
the same noise, the nearest thing to true masks and so near the ceiling of masking; with no masks
at all; and with masks together with the published spectra.

The published claim is that spectra without masks do what masks do. It is refuted if ``spectral``
has more leakage than ``sdsa`` at no more identity, or less identity at no less leakage. If masks
with spectra beat both, the two do different things. Ours is that matches are the better masks; it
is refuted if ``matches`` is not above ``words`` on the front.

All settings are compared with ``words``, beside the isolated pictures. Found masks of real models
come from --segmenter.
"""

from typing import Any

from consist.cli.ablation import ablate
from consist.evaluation.ablation.settings import Setting
from consist.methods.spectral import Spectral

WORDS = "words"
SPECTRA = {"keys": Spectral().keys, "values": Spectral().values}


def masked(name: str, given: bool = False, **fields: Any) -> Setting:
    method = {"name": "sdsa", "mask_dropout": 0.0, **fields}
    group = "found" if given else name.split(",")[0]
    against = "" if name == WORDS else WORDS
    return Setting(name=name, method=method, group=group, against=against, masked=given)


def settings(model: str) -> list[Setting]:
    return [
        Setting(name="shared", method={"name": "shared"}, group="no masks", against=WORDS),
        Setting(name="spectral", method={"name": "spectral"}, group="no masks", against=WORDS),
        masked(WORDS),
        masked("words, dropout", mask_dropout=0.5),
        masked("words, spectra", **SPECTRA),
        masked("matches", masks="matches"),
        masked("matches, spectra", masks="matches", **SPECTRA),
        masked("found", given=True),
        masked("found, spectra", given=True, **SPECTRA),
    ]


if __name__ == "__main__":
    ablate(__doc__, settings, __file__)
