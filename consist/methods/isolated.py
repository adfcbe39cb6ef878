"""The neutral element: every image for itself."""

from dataclasses import dataclass

from consist.attention.method import Method


@dataclass(frozen=True, kw_only=True)
class Isolated(Method, name="isolated", sees="nothing: the baseline"):
    """Plain self-attention; the baseline of every comparison.

    It covers all layers, so that it takes the same path through the code as a real method.
    """
