"""What the fields of a dataclass mean, as the ``Args`` of its docstring say."""

from __future__ import annotations

import inspect
import re
import textwrap

# the section and its lines, which are indented or empty
ARGS = re.compile(r"^Args:\n((?:(?:    .*)?(?:\n|\Z))+)", re.MULTILINE)


def field_help(kind: type) -> dict[str, str]:
    """What each field of a dataclass means, its bases' fields first.

    Args:
        kind: Its docstring, and those of its bases, have an ``Args`` section.

    Returns:
        By field, one line of text each.
    """
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        found |= _args(inspect.cleandoc(one.__dict__.get("__doc__") or ""))
    return found


def document_fields(kind: type) -> None:
    """Puts the fields of its bases into the ``Args`` of a class, where ``help`` shows them.

    Args:
        kind: Its docstring is changed. A class without ``Args`` of its own gets them at the end of
            its description.
    """
    doc = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
    entries = "".join(
        textwrap.fill(f"{name}: {text}", 96, initial_indent=" " * 4, subsequent_indent=" " * 8)
        + "\n"
        for name, text in field_help(kind).items()
    )
    if not entries:
        return
    section = f"Args:\n{entries}"
    if ARGS.search(doc):
        doc = ARGS.sub(lambda _: section + "\n", doc)
    else:
        start, raises, rest = doc.partition("\nRaises:")
        doc = f"{start.rstrip()}\n\n{section}{raises}{rest}"
    kind.__doc__ = doc.rstrip() + "\n"


def _args(doc: str) -> dict[str, str]:
    section = ARGS.search(doc)
    if section is None:
        return {}
    entries = re.findall(r"^    (\w+): ((?:.+\n?)(?:^ {8}.*\n?)*)", section[1], flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
