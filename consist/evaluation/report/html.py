"""Elements of HTML, and the few blocks that all parts of the page are built of."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class Html(str):
    """Text that is HTML already."""


def tag(name: str, *children: str | Iterable[str], **attributes: Any) -> Html:
    """An element; children are escaped unless they are ``Html``.

    >>> tag("b", "1 < 2", class_="x")
    '<b class="x">1 &lt; 2</b>'
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is not None and value is not False:
            text = "" if value is True else f'="{html.escape(str(value))}"'
            parts.append(f" {key.rstrip('_').replace('_', '-')}{text}")
    parts.append(">")
    for child in children:
        for part in [child] if isinstance(child, str) else child:
            parts.append(part if isinstance(part, Html) else html.escape(part))
    if name not in ("img", "input", "br"):
        parts.append(f"</{name}>")
    return Html("".join(parts))


def table(
    heads: Sequence[str],
    numbers: range,
    rows: Iterable[Html],
    caption: str = "",
    **more: Any,
) -> Html:
    """A table.

    Args:
        heads: One per column.
        numbers: The columns that hold numbers.
        rows: Elements ``tr``.
        caption: Above it, where there is one.
        more: Attributes.
    """
    cells = (
        tag("th", text, scope="col", role="columnheader", class_="number" if i in numbers else None)
        for i, text in enumerate(heads)
    )
    return tag(
        "table",
        [tag("caption", caption)] if caption else [],
        # a table that is laid out anew on narrow screens keeps its meaning by its roles
        tag("thead", tag("tr", cells, role="row"), role="rowgroup"),
        tag("tbody", rows, role="rowgroup"),
        role="table",
        **more,
    )


def small_table(
    heads: Sequence[str], rows: Iterable[Sequence[Html]], label: str, numbers: bool = True
) -> Html:
    """A dense table that scrolls; all but its first column are numbers, or nothing is."""
    lines = (tag("tr", cells) for cells in rows)
    columns = range(1, len(heads) if numbers else 1)
    return scroll(table(heads, columns, lines, class_="compact"), label)


def cell(*children: str, **more: Any) -> Html:
    """A cell of a table that holds a number."""
    return tag("td", children, class_="number", **more)


def row_head(*children: str, **more: Any) -> Html:
    """The first cell of a row."""
    return tag("th", children, scope="row", **more)


def scroll(content: Html, label: str) -> Html:
    """What may be wider than the screen."""
    return tag("div", content, class_="scroll", role="region", aria_label=label, tabindex=0)


def choice(options: Mapping[str, str], label: str, id_: str | None = None) -> Html:
    """Buttons of which one is pressed: the first."""
    first = next(iter(options))
    buttons = (
        tag("button", text, type="button", value=value, aria_pressed=str(value == first).lower())
        for value, text in options.items()
    )
    return tag("div", buttons, class_="choice", id=id_, role="group", aria_label=label)
