"""Zeroing singular values: how many carry the subject, in keys and in values?

    python scripts/ablate/zeroing.py --quick           # a try of minutes
    python scripts/ablate/zeroing.py --sets 40         # explore on the first half of the sets
    python scripts/ablate/zeroing.py --half second --only "K energy:0.95" "V count:4"

Four rules over their whole range (on mini two: a head has 32 features, of which each fraction and
each quantile is a count), on the keys alone (K), the values alone (V) and both (KV); what
a rule does not act on is shared as it is. Claimed by Grishina 2025: keys drive the background and
values the identity, so K should move leakage and leave identity, and V the reverse; 5 % of the
values, or 95 % of the energy, are best. Refuted where the intervals of K and V hold the same
effect, or another share lies on the front and the published one does not.

All settings are compared with plain sharing, beside the isolated pictures.
"""

from consist.cli.ablation import ablate
from consist.evaluation.ablation.settings import Setting
from consist.models.loading import MINI

# heads of SD and SDXL have 40 to 160 features
RULES = {
    "count": (1, 2, 4, 8, 16, 24),
    "fraction": (0.05, 0.25, 0.5, 0.75),
    "quantile": (0.05, 0.25, 0.5, 0.75),
    "energy": (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99),
}
COUNTED = ("fraction", "quantile")  # counts by another name, on mini
PARTS = {"K": ("keys",), "V": ("values",), "KV": ("keys", "values")}
WHOLE = {"keys": "identity", "values": "identity"}


def settings(model: str) -> list[Setting]:
    zeroed = [
        Setting(
            name=f"{part} {rule}:{size}",
            method={"name": "spectral", **WHOLE, **dict.fromkeys(acted, f"{rule}:{size}")},
            group=part,
            against="shared",
        )
        for rule, sizes in RULES.items()
        if not (model == MINI and rule in COUNTED)
        for size in sizes
        for part, acted in PARTS.items()
    ]
    return [Setting(name="shared", method={"name": "shared"}), *zeroed]


if __name__ == "__main__":
    ablate(__doc__, settings, __file__)
