"""ConsiStory that finds the subject by itself: our own method, and the default."""

from dataclasses import dataclass

from consist.attention.method import MATCHES
from consist.methods.consistory import Consistory
from consist.methods.sdsa import FIRST


@dataclass(frozen=True, kw_only=True)
class Matched(Consistory):
    """Every image attends to the first one, to what all anchors have in common, and takes features.

    Four differences to ``Consistory``. Its subject masks are those of
    ``consist.attention.common_tokens``: keys of self-attention that every other anchor has
    something like. They need no word for the subject, and cover it better than cross-attention
    (``scripts/measure/subjects.py``). Since they let less of a background pass, no token is
    dropped, and a shared token weighs more than an own one. Only the subject of the first image is
    shown, which is drawn as if alone: images that all take from each other often swap what they
    are, color above all, and their drawings get rough. And queries are not blended: that changed no
    score, and costs a call of the UNet at early steps (``scripts/ablate/matched.py`` for both).

    Hypothesis: with masks from matches an image may look at another more, which brings more of
    the identity at the same leakage. It is refuted if this is not above ``Consistory`` on the front
    of identity against leakage; see ``docs/subjects.md`` for what was measured.

    Raises:
        ValueError: A field is out of its range, when made; more anchors than images, when called.
    """

    masks: str = MATCHES  # "matches": what the anchors have in common; "words": as of Sdsa
    source: str = FIRST  # anchors whose subject is shown: "all", or "first" of them alone
    mask_dropout: float = 0.0  # chance that a subject token is left out, in [0, 1)
    blending: tuple[float, float] = (0.0, 0.0)  # nu of query blending, as of Consistory
    strength: float = 16.0  # weight of a shared token against an own one, above 0
