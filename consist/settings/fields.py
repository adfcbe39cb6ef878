"""What the fields of a dataclass mean, as the ``Args`` of its docstring say."""

from __future__ import annotations

import inspect
import re


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


def _args(doc: str) -> dict[str, str]:
    section = re.search(r"^Args:\n((?:(?:    .*)?\n?)*)", doc, flags=re.MULTILINE)
    if section is None:
        return {}
    entries = re.findall(r"^    (\w+): ((?:.+\n?)(?:^ {8}.*\n?)*)", section[1], flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
