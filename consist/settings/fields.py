"""What the fields of a dataclass mean and may be, said once, where they stand.

What a field means is in the ``Args`` of the docstring of its class. What it may be, under which
title it is shown and on which lists of names it is: in ``setting``, its default.
"""

from __future__ import annotations

import inspect
import math
import re
import textwrap
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from consist.errors import ConsistError, unknown

# the section of a docstring and its lines, which are indented or empty
ARGS = re.compile(r"^Args:\n((?:(?:    .*)?(?:\n|\Z))+)", re.MULTILINE)
KEY = "setting"
ENDLESS = 1_000_000  # a limit from here on only keeps slips out, and nobody needs to hear of it


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known of a field beside its type, its default and its meaning.

    Args:
        panel: The title that it is shown under; none where nobody sets it by hand.
        least: The least number that it may be.
        most: The largest number that it may be; given where ``least`` is.
        choices: The words that it may be; none where it may be any.
        marks: The lists of names that it is on.
    """

    panel: str = ""
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()

    @property
    def limits(self) -> str:
        """What it may be, as a sentence; "" where that is anything.

        >>> Setting(least=1, most=1000).limits
        'From 1 to 1000.'
        """
        if self.choices:
            return f"One of {', '.join(self.choices)}."
        if self.least is None or self.most is None:
            return ""
        endless = self.most >= ENDLESS
        return f"At least {self.least:g}." if endless else f"From {self.least:g} to {self.most:g}."


def setting(
    default: Any = MISSING, *, factory: Callable[[], Any] | None = None, **known: Any
) -> Any:
    """A field of a dataclass of which more is known.

    Args:
        default: Its default; without one, and without ``factory``, it must be given.
        factory: Makes its default.
        **known: The fields of ``Setting``.
    """
    about = {KEY: Setting(**known)}
    if factory is not None:
        return field(default_factory=factory, metadata=about)
    return field(default=default, metadata=about)


def settings_of(kind: type) -> dict[str, Setting]:
    """What is known of each field of a dataclass, in their order."""
    return {one.name: one.metadata.get(KEY, Setting()) for one in fields(kind)}


def marked(kind: type, mark: str) -> dict[str, Any]:
    """The fields of a dataclass that are on a list, in their order, and their defaults."""
    about = settings_of(kind)
    return {one.name: one.default for one in fields(kind) if mark in about[one.name].marks}


def check_settings(config: Any) -> None:
    """Makes sure that the fields of a dataclass are what they may be; of a tuple, each part.

    Raises:
        ConsistError: One is not.
    """
    for name, about in settings_of(type(config)).items():
        value = getattr(config, name)
        if about.choices and value not in about.choices:
            raise ConsistError(unknown(name, value, about.choices))
        many = isinstance(value, tuple)
        for one in value if many else (value,):
            _check_range(name.removesuffix("s") if many else name, one, about)


def _check_range(name: str, value: Any, about: Setting) -> None:
    least, most = about.least, about.most
    if value is None or least is None or most is None:
        return
    if not (math.isfinite(value) and least <= value <= most):
        said = name.replace("_", " ")
        raise ConsistError(f"{said} must be between {least} and {most}, not {value}")


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


def as_text(value: object) -> str:
    """A value of a field as the command line takes it.

    >>> as_text((0.0, 1.0)), as_text(True), as_text(())
    ('0.0,1.0', 'true', 'none')
    """
    if isinstance(value, tuple):
        return ",".join(map(as_text, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


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
