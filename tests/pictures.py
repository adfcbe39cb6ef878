"""How pictures compare, for tests."""

from PIL import ImageChops


def largest_difference(a, b):
    """Of any channel of any pixel, 0 to 255."""
    return max(high for _, high in ImageChops.difference(a, b).getextrema())
