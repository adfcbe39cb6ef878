"""Reweighting singular values: does a flatter or a sharper spectrum carry the subject better?

    python scripts/ablate/reweighting.py --quick       # a try of minutes
    python scripts/ablate/reweighting.py --sets 40     # explore on the first half of the sets

Flattening (log, log2, power below 1, Newton-Schulz), sharpening (exp, power above 1), and what
random-matrix theory takes for noise (soft thresholds, svht, edge, shrink), on the keys alone (K),
the values alone (V) and both (KV). Then reweighting followed by zeroing, which was proposed and
never tested, and zeroing followed by reweighting. Claimed by Grishina 2025: energy:0.95 on the
keys with log on the values is best. Refuted if that setting is beaten on the front.

All settings are compared with plain sharing, beside the isolated pictures.
"""

from consist.cli.ablation import ablate
from consist.evaluation.ablation.settings import Setting

FAMILIES = {
    "flatten": ("log", "log2", "power:0.5", "schulz:2", "schulz:6", "exp:-1"),
    "sharpen": ("exp:1", "exp:4", "power:2"),
    "denoise": ("soft:0.02", "soft:0.1", "svht", "edge", "shrink"),
}
CHAINS = (
    "log|energy:0.95",
    "log|fraction:0.25",
    "schulz:6|fraction:0.25",
    "power:0.5|energy:0.9",
    "exp:1|energy:0.95",
    "energy:0.95|log",
    "fraction:0.25|schulz:6",
    "shrink|log",
)
PARTS = {"K": ("keys",), "V": ("values",), "KV": ("keys", "values")}


def spectral(name: str, group: str, keys: str = "identity", values: str = "identity") -> Setting:
    method = {"name": "spectral", "keys": keys, "values": values}
    return Setting(name=name, method=method, group=group, against="shared")


def settings(model: str) -> list[Setting]:
    single = [
        spectral(f"{part} {rule}", family, **dict.fromkeys(acted, rule))
        for family, rules in FAMILIES.items()
        for rule in rules
        for part, acted in PARTS.items()
    ]
    chained = [spectral(f"KV {rule}", "chained", keys=rule, values=rule) for rule in CHAINS]
    published = spectral("K energy:0.95, V log", "published", keys="energy:0.95", values="log")
    plain = Setting(name="shared", method={"name": "shared"})
    return [plain, published, *single, *chained]


if __name__ == "__main__":
    ablate(__doc__, settings, __file__)
