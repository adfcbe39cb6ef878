"""What makes the default method: one change at a time from ``Matched``.

    python scripts/ablate/matched.py --quick              # a try of minutes
    python scripts/ablate/matched.py --sets 28            # explore on the first half of the sets
    python scripts/ablate/matched.py --pictures 2         # sets of two pictures, as a first try has

Strength; whose subject is shown; the guidance halves that share; masks, dropout and the window;
query blending and feature injection; the spectrum of the values. Hypothesis of ``source="first"``:
images that all take from each other swap what they are, so that showing the first one alone gives
the same identity agreement with drawings nearer to the world's. It is refuted if its kernel
distance is not below that of "from all, 4", or its identity agreement is.

Hypothesis of ``halves="conditional"``: guidance then points from pictures without the others to
pictures with them, so that less strength carries the same identity. It is refuted if none of its
strengths is above the others in identity without more leakage.
"""

from typing import Any

from consist.cli.ablation import ablate
from consist.evaluation.ablation.settings import Setting

DEFAULT = "matched"
STRENGTHS = (4.0, 32.0)
STRENGTHS_OF_ALL = (1.0, 4.0)


def changed(name: str, group: str, **fields: Any) -> Setting:
    return Setting(name=name, method={"name": DEFAULT, **fields}, group=group, against=DEFAULT)


def settings(model: str) -> list[Setting]:
    halves: dict[str, Any] = {"halves": "conditional"}
    return [
        Setting(name=DEFAULT, method={"name": DEFAULT}),
        *(changed(f"strength {w:g}", "strength", strength=w) for w in STRENGTHS),
        *(
            changed(f"from all, {w:g}", "source", source="all", strength=w)
            for w in STRENGTHS_OF_ALL
        ),
        changed("conditional, 4", "halves", strength=4.0, **halves),
        changed("from all, conditional, 0.5", "halves", source="all", strength=0.5, **halves),
        changed("masks of words", "masks", masks="words"),
        changed("dropout 0.5", "masks", mask_dropout=0.5),
        changed("until 0.6", "window", window=(0.0, 0.6)),
        changed("blending", "parts", blending=(0.9, 0.8)),
        changed("no injection", "parts", injection=0.0),
        changed("V fraction:0.05", "spectra", values="fraction:0.05"),
    ]


if __name__ == "__main__":
    ablate(__doc__, settings, __file__)
