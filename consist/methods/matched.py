"""ConsiStory that finds the subject by itself: our own method, and the default."""

from dataclasses import dataclass

from consist.attention.method import MATCHES
from consist.methods.consistory import Consistory
from consist.methods.sdsa import FIRST


@dataclass(frozen=True, kw_only=True)
class Matched(
    Consistory,
    name="matched",
    sees="what the first has in common with all others; matching features are injected",
    after="ours, on top of ConsiStory",
):
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
    of identity against leakage; see ``docs/results/methods.md`` for what was measured.

    Args:
        masks: How the subject is found: by "matches", what the anchors have in common, or by
            "words", in cross-attention.
        source: The anchors whose subject is shown: "all", or the "first" alone.
        mask_dropout: The chance that a token of the subject is left out, in [0, 1).
        blending: The weights ``nu`` of vanilla queries where their window starts and stops, each in
            [0, 1]; here none.
        strength: The weight of a shared token against an own one, above 0.

    Raises:
        ValueError: A field is out of its range, when made; more anchors than images, when called.
    """

    masks: str = MATCHES
    source: str = FIRST
    mask_dropout: float = 0.0
    blending: tuple[float, float] = (0.0, 0.0)
    strength: float = 16.0
