"""The parts of 1Prompt1Story: what one prompt does, what its singular values do, and the rest.

    python scripts/ablate/one_prompt.py --quick        # a try of minutes
    python scripts/ablate/one_prompt.py --sets 40      # explore on the first half of the sets

Claimed by arXiv:2501.13554: a single prompt for all scenes keeps the identity by itself; weakening
the singular values of the other frames' embeddings, and strengthening those of the frame that is
drawn, brings each scene back; cross-attention to the identity's words adds to the identity.
Refuted where identity does not gain over isolated pictures, where scenes are no worse without a
part that shall bring them back, or identity no lower without the last one.

All settings are compared with all parts together, beside the isolated pictures. Two frames are in
a prompt, as many as `mini` can read.
"""

from typing import Any

from consist.cli.ablation import ablate
from consist.evaluation.ablation.settings import Setting

WHOLE = "one-prompt"
SAME = (0.0, 1.0)  # alpha and beta that leave singular values as they are


def changed(name: str, group: str, **fields: Any) -> Setting:
    method = {"name": WHOLE, "frames": 2, **fields}
    return Setting(name=name, method=method, group=group, against=WHOLE)


def settings(model: str) -> list[Setting]:
    return [
        Setting(name=WHOLE, method={"name": WHOLE, "frames": 2}),
        changed("no suppression", "singular values", suppress=SAME),
        changed("no expression", "singular values", express=SAME),
        changed("neither", "singular values", suppress=SAME, express=SAME),
        changed("scaled ends", "singular values", ends="scaled"),
        changed("no identity words", "cross-attention", ipca=0.0),
        changed("one prompt alone", "nothing else", suppress=SAME, express=SAME, ipca=0.0),
        changed("with shared attention", "together", shared=True),
    ]


if __name__ == "__main__":
    ablate(__doc__, settings, __file__)
