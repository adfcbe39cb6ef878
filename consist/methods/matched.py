"""ConsiStory that finds the subject by itself: our own method, and the default."""

from dataclasses import dataclass

from consist.methods.consistory import Consistory
from consist.methods.method import MATCHES


@dataclass(frozen=True, kw_only=True)
class Matched(Consistory):
    """Every image attends to what the anchors have in common, and takes features from there.

    Three differences to ``Consistory``. Its subject masks are those of ``consist.matches``: keys of
    self-attention that every other anchor has something like. They need no word for the subject,
    and cover it better than cross-attention (``scripts/probe_subjects.py``). And since they let
    less of a background pass, no token is dropped, and a shared token weighs more than an own one.
    Queries are not blended: that changed no score, and costs a call of the UNet at early steps
    (``scripts/ablate_matched.py``).

    Hypothesis: with masks from matches an image may look at the others more, which brings more of
    the identity at the same leakage. It is refuted if this is not above ``Consistory`` on the front
    of identity against leakage; see ``docs/subjects.md`` for what was measured.

    Raises:
        ValueError: A field is out of its range, when made; more anchors than images, when called.
    """

    masks: str = MATCHES  # "matches": what the anchors have in common; "words": as of Sdsa
    mask_dropout: float = 0.0  # chance that a subject token is left out, in [0, 1)
    blending: tuple[float, float] = (0.0, 0.0)  # nu of query blending, as of Consistory
    strength: float = 4.0  # weight of a shared token against an own one, above 0
