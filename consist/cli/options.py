"""How a method is told on the command line, and options that must not be given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from consist.errors import ConsistError
from consist.runs.config import DEFAULT_METHOD, SHARED, WHERE
from consist.settings.fields import setting

AsJson = Annotated[bool, typer.Option("--json", help="Print the record of the run as JSON.")]
Cache = Annotated[
    bool,
    typer.Option(
        "--cache",
        help="Draw the anchors once more, keep what they share in a file, and draw all further "
        "pictures from it without them.",
        rich_help_panel=WHERE,
    ),
]


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """A method as the command line tells it. ``None`` leaves a field to the method.

    Args:
        method: What is shared; 'consist methods' lists all.
        keys: Spectrum of the keys, such as 'energy:0.95' or 'log|fraction:0.1'; by default the
            method's.
        values: Spectrum of the values; by default the method's.
        anchors: Images that are shared: all, random, or the first N; by default the method's.
        strength: Weight of a shared token against an own one, more than 0; by default the method's.
        sets: Any other field of the method, such as pool=all; may be repeated.
    """

    method: str = setting(DEFAULT_METHOD, panel=SHARED)
    keys: str | None = setting(None, panel=SHARED)
    values: str | None = setting(None, panel=SHARED)
    anchors: str | None = setting(None, panel=SHARED)
    strength: float | None = setting(None, panel=SHARED)
    sets: tuple[str, ...] = setting((), panel=SHARED)

    def settings(self, subject: Iterable[str] = ()) -> dict[str, Any]:
        """What ``consist.methods.build`` takes: the fields that were given.

        Raises:
            ConsistError: One of ``sets`` is not NAME=VALUE.
        """
        given: dict[str, Any] = {"subject": list(subject) or None, "strength": self.strength}
        given |= {"keys": self.keys, "values": self.values, "anchors": self.anchors}
        found: dict[str, Any] = {"name": self.method}
        found |= {name: value for name, value in given.items() if value is not None}
        for pair in self.sets:
            name, equals, value = pair.partition("=")
            if not equals:
                raise ConsistError(f"--set takes NAME=VALUE, not {pair!r}")
            found[name.strip()] = value.strip()
        return found


def refuse_given(context: typer.Context, names: Iterable[str], reason: str) -> None:
    """Makes sure that none of the options of these parameters was given."""
    flags = {one.name: one.opts[0] for one in context.command.params}
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ConsistError(f"{flags[name]} {reason}")
