"""An idea of our own: a notch, which removes the directions that one anchor has for itself.

    python scripts/ablate/ideas.py --quick             # a try of minutes
    python scripts/ablate/ideas.py --sets 40           # explore on the first half of the sets

The subject is in every anchor and a background in one, so it is enough to remove the directions
of which one anchor has nearly all the energy. Refuted if no share lies above truncation by energy
on the front.

``results/ideas-3.json`` has two more ideas, which it refuted and which were deleted. Agreement
weighed each direction by how evenly the anchors share it: a notch does it better. Query-aware
truncated the logits instead of the keys, since a direction that no query asks for costs rank: at
the same energy it had no more identity than truncated keys, and no less leakage.
"""

from typing import Any

from consist.cli.ablation import ablate
from consist.evaluation.ablation.settings import Setting

ENERGIES = (0.5, 0.8, 0.9, 0.95)
SHARES = (0.6, 0.7, 0.8, 0.9)
REFERENCE = "KV energy:0.95"


def idea(name: str, method: str, group: str, **fields: Any) -> Setting:
    return Setting(name=name, method={"name": method, **fields}, group=group, against=REFERENCE)


def truncated() -> list[Setting]:
    """What the idea is measured by."""
    rules = [f"energy:{share}" for share in ENERGIES]
    both = [
        Setting(
            name=f"KV {rule}",
            method={"name": "spectral", "keys": rule, "values": rule},
            group="truncation",
        )
        for rule in rules
    ]
    keys = [
        Setting(
            name=f"K {rule}",
            method={"name": "spectral", "keys": rule, "values": "identity"},
            group="truncation",
        )
        for rule in rules
    ]
    return [*both, *keys]


def notch() -> list[Setting]:
    group = "notch"
    return [
        *(idea(f"notch {s:g}", group, group, keys_share=s, values_share=s) for s in SHARES),
        idea("notch, K", group, group, values_share=1.0),
        idea("notch, V", group, group, keys_share=1.0),
    ]


def settings(model: str) -> list[Setting]:
    return [*truncated(), *notch()]


if __name__ == "__main__":
    ablate(__doc__, settings, __file__)
