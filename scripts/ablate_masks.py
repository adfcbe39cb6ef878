"""Masks against singular values: does the spectrum replace the mask, as claimed?

    python scripts/ablate_masks.py --quick             # a try of minutes
    python scripts/ablate_masks.py                     # all sets of the first half

ConsiStory's shared attention with masks predicted from cross-attention; with masks that the
reader finds in the isolated pictures of the same noise, the nearest thing to true masks and so
near the ceiling of masking; with no masks at all; and masks together with the default spectra.
The claim is that spectra without masks do what masks do. It is refuted if ``spectral`` has more
leakage than ``sdsa`` at no more identity, or less identity at no less leakage. If masks with
spectra beat both, the two do different things.

All settings are compared with ``sdsa``, beside the isolated pictures. Masks of real models come
from --segmenter.
"""

from typing import Any

from consist.ablation.settings import Setting
from consist.cli.ablation import ablate
from consist.methods.spectral import Spectral

SDSA = "sdsa"
SPECTRA = {"keys": Spectral().keys, "values": Spectral().values}


def masked(name: str, group: str, given: bool = False, **fields: Any) -> Setting:
    method = {"name": "sdsa", **fields}
    return Setting(name=name, method=method, group=group, against=SDSA, masked=given)


def settings(model: str) -> list[Setting]:
    return [
        Setting(name="shared", method={"name": "shared"}, group="no masks", against=SDSA),
        Setting(name="spectral", method={"name": "spectral"}, group="no masks", against=SDSA),
        Setting(name=SDSA, method={"name": "sdsa"}, group="predicted masks"),
        masked("sdsa, no dropout", "predicted masks", mask_dropout=0.0),
        masked("sdsa, spectra", "predicted masks", **SPECTRA),
        masked("found masks", "found masks", given=True),
        masked("found masks, no dropout", "found masks", given=True, mask_dropout=0.0),
        masked("found masks, spectra", "found masks", given=True, **SPECTRA),
    ]


if __name__ == "__main__":
    ablate(__doc__, settings, __file__)
