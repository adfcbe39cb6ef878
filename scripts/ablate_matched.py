"""What makes the default method: one change at a time from ``Matched``.

    python scripts/ablate_matched.py --quick              # a try of minutes
    python scripts/ablate_matched.py --sets 28            # explore on the first half of the sets
    python scripts/ablate_matched.py --pictures 2         # sets of two pictures, as a first try has

Strength; the guidance halves that share; whose subject is shown; masks, dropout and the window;
query blending and feature injection. Hypothesis of ``halves="conditional"``: guidance then points
from pictures without the others to pictures with them, so that less strength carries the same
identity. It is refuted if none of its strengths is above the default in identity without more
leakage.
"""

from typing import Any

from consist.ablation.settings import Setting
from consist.cli.ablation import ablate

DEFAULT = "matched"
STRENGTHS = (1.0, 2.0, 8.0)
CONDITIONAL_STRENGTHS = (0.5, 1.0, 4.0)
FIRST_STRENGTHS = (4.0, 16.0)


def changed(name: str, group: str, **fields: Any) -> Setting:
    return Setting(name=name, method={"name": DEFAULT, **fields}, group=group, against=DEFAULT)


def settings(model: str) -> list[Setting]:
    return [
        Setting(name=DEFAULT, method={"name": DEFAULT}),
        *(changed(f"strength {w:g}", "strength", strength=w) for w in STRENGTHS),
        *(
            changed(f"conditional, {w:g}", "halves", halves="conditional", strength=w)
            for w in CONDITIONAL_STRENGTHS
        ),
        changed("masks of words", "masks", masks="words"),
        changed("dropout 0.5", "masks", mask_dropout=0.5),
        *(
            changed(f"from the first, {w:g}", "source", source="first", strength=w)
            for w in FIRST_STRENGTHS
        ),
        changed("until 0.6", "window", window=(0.0, 0.6)),
        changed("blending", "parts", blending=(0.9, 0.8)),
        changed("no injection", "parts", injection=0.0),
    ]


if __name__ == "__main__":
    ablate(__doc__, settings, __file__)
