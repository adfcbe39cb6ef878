"""Figures of matplotlib as SVG text: the same bytes each time, and no state left behind.

It must not know what is drawn.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from consist.errors import ConsistError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

MISSING = "plots need matplotlib: pip install 'consist[study]'"
INK, SOFT, LINE, GROUND = "#1d2126", "#5b6470", "#e2e0db", "#ffffff"
LOOK = {
    # a pixel each, so that places in a figure are those of its file
    "figure.dpi": 72,
    "savefig.dpi": 72,
    # it comes with matplotlib, so that text is measured alike everywhere
    "font.family": "sans-serif",
    "font.sans-serif": "DejaVu Sans",
    "font.size": 12,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "axes.labelpad": 8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 1,
    "lines.solid_capstyle": "butt",
    **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
    **{f"{axis}tick.labelcolor": SOFT for axis in "xy"},
    **{f"{axis}tick.labelsize": 11 for axis in "xy"},
    **{f"{axis}tick.major.size": 0 for axis in "xy"},
    # text stays text: it is read, found and copied
    "svg.fonttype": "none",
    "svg.hashsalt": "consist",
}
UNNAMED = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def installed() -> bool:
    """Whether plots can be drawn."""
    return find_spec("matplotlib") is not None


@contextmanager
def blank(width_px: float, height_px: float) -> Iterator[Figure]:
    """An empty figure, to be drawn and written inside the block: our look ends with it.

    Raises:
        ConsistError: matplotlib is not installed.
    """
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ConsistError(MISSING) from None
    with style.context(["default", LOOK]):
        yield Figure(figsize=(width_px / 72, height_px / 72))


def mark(artist: Artist, kind: str, hover: str = "") -> None:
    """Gives an artist a class in the SVG, and words that are shown where the mouse is on it."""
    artist.set_gid(f"{kind}: {html.escape(hover)}")


def to_svg(figure: Figure, label: str, tight: bool = True) -> str:
    """The figure as a file.

    Args:
        figure: Of ``blank``, in its block.
        label: What it shows, for those who do not see it.
        tight: The file is as large as what is drawn, else as the figure.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    for artist in figure.findobj():
        artist.set_clip_on(False)
    file = io.StringIO()
    bounds = {"bbox_inches": "tight", "pad_inches": 0.2} if tight else {}
    FigureCanvasSVG(figure).print_figure(file, format="svg", metadata=UNNAMED, **bounds)
    text = file.getvalue()
    # the document type names an address, and no browser needs it
    text = re.sub(r">\s+<", "><", text[text.index("<svg") :])
    text = re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', text)
    text = re.sub(r'<g id="(\w+: )?([^"]*)"', _name, text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


def _name(group: re.Match[str]) -> str:
    """A group as ``mark`` wants it; the others need no name."""
    kind, hover = group[1], html.unescape(group[2])
    words = f"><title>{hover}</title" if hover else ""
    return f'<g class="{kind[:-2]}"{words}' if kind else "<g"
