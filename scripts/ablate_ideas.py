"""Ideas of our own, each a hypothesis: agreement of anchors, a notch, and queries that choose.

    python scripts/ablate_ideas.py --quick             # a try of minutes
    python scripts/ablate_ideas.py --sets 40           # explore on the first half of the sets

Agreement: the subject is in every anchor and a background in one, so a direction of keys or
values belongs to the subject as far as the anchors share its energy evenly. Refuted if all its
settings lie below truncation by energy (KV energy) on the front; it should gain with the number
of anchors.

Notch: it is enough to remove the directions of which one anchor has nearly all the energy.
Refuted if no share lies above truncation by energy, or agreement is above it everywhere.

Query-aware: a direction of the keys that no query asks for costs rank and carries nothing, so
truncating the logits keeps more of the subject than truncating the keys. Refuted if, at the same
energy, its contrast to ``K energy`` is not above 0 in identity with leakage no higher.
"""

from typing import Any

from consist.ablation.settings import Setting
from consist.cli.ablation import ablate

ENERGIES = (0.5, 0.8, 0.9, 0.95)
POWERS = (0.5, 1.0, 2.0, 4.0)
SHARES = (0.6, 0.7, 0.8, 0.9)
REFERENCE = "KV energy:0.95"


def idea(name: str, method: str, group: str, **fields: Any) -> Setting:
    return Setting(name=name, method={"name": method, **fields}, group=group, against=REFERENCE)


def truncated() -> list[Setting]:
    """What the ideas are measured by."""
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


def agreement() -> list[Setting]:
    group = "agreement"
    return [
        *(idea(f"agreement {p:g}", group, group, keys_power=p, values_power=p) for p in POWERS),
        idea("agreement, K", group, group, values_power=0.0),
        idea("agreement, V", group, group, keys_power=0.0),
        idea("agreement, pooled basis", group, group, basis="pooled"),
        idea("agreement, full width", group, group, width="full"),
        idea("agreement, 2 anchors", group, group, anchors=2),
        idea("agreement, V log", group, group, values="log"),
    ]


def notch() -> list[Setting]:
    group = "notch"
    return [
        *(idea(f"notch {s:g}", group, group, keys_share=s, values_share=s) for s in SHARES),
        idea("notch, K", group, group, values_share=1.0),
        idea("notch, V", group, group, keys_share=1.0),
    ]


def query_aware() -> list[Setting]:
    return [
        Setting(
            name=f"query-aware K {rule}",
            method={"name": "query-aware", "keys": rule, "values": "identity"},
            group="query-aware",
            against=f"K {rule}",
        )
        for rule in (f"energy:{share}" for share in ENERGIES)
    ]


def settings(model: str) -> list[Setting]:
    return [*truncated(), *agreement(), *notch(), *query_aware()]


if __name__ == "__main__":
    ablate(__doc__, settings, __file__)
