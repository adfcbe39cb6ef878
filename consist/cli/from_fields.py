"""Options of commands that are the fields of a dataclass of settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from consist.settings.fields import field_help, settings_of

Command = TypeVar("Command", bound=Callable[..., None])


def options(
    kind: type,
    names: Iterable[str] = (),
    *,
    panel: str = "",
    unset: Mapping[str, str] | None = None,
) -> list[inspect.Parameter]:
    """The options that set fields of a dataclass, for ``takes``.

    A field that is a tuple may be given several times, by a name without the s at its end.

    Args:
        kind: The dataclass.
        names: Its fields; by default all that have a panel.
        panel: The title that they are shown under; by default what the fields say.
        unset: By field, what a command takes where the option is not given: the command gets None.
    """
    about, instead = settings_of(kind), unset or {}
    wanted = set(names) or {name for name in about if about[name].panel}
    types, meanings = get_type_hints(kind), field_help(kind)
    made = []
    for one in fields(kind):
        if one.name in wanted:
            known, told = about[one.name], instead.get(one.name)
            many = isinstance(one.default, tuple)
            option = typer.Option(
                _flag(one.name, one.default),
                help=f"{meanings.get(one.name, '')} {known.limits}".strip(),
                rich_help_panel=panel or known.panel,
                show_default=told or True,
            )
            default = None if many or told else one.default
            made.append(
                _parameter(one.name, _typed(types[one.name], many, default, option), default)
            )
    return made


def takes(
    *given: Sequence[inspect.Parameter], panels: Sequence[str] = ()
) -> Callable[[Command], Command]:
    """Adds options to a command, which gets them by name.

    Args:
        *given: From ``options``. Those that the command names stand where it does so, the others
            come after its own.
        panels: Titles in the order in which they are shown.
    """

    def adorn(command: Command) -> Command:
        new = {one.name: one for part in given for one in part}
        own = inspect.signature(command, eval_str=True).parameters.values()
        named = [one for one in own if one.kind is not one.VAR_KEYWORD]
        both = [new.pop(one.name, one) for one in named]
        every = [_parameter(x.name, x.annotation, x.default) for x in (*both, *new.values())]
        every.sort(key=lambda one: panels.index(_panel(one)) if _panel(one) in panels else -1)
        command.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        return command

    return adorn


def read(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """What options say of those fields of a dataclass that have a panel, by their names."""
    about, told = settings_of(kind), {}
    for one in fields(kind):
        if one.name in given and about[one.name].panel:
            value = given[one.name]
            told[one.name] = tuple(value or ()) if isinstance(one.default, tuple) else value
    return told


def _flag(name: str, default: Any) -> str:
    if isinstance(default, tuple):
        name = name.removesuffix("s")
    text = name.replace("_", "-")
    return f"--{text}/--no-{text}" if default is True else f"--{text}"


def _typed(kind: Any, many: bool, default: Any, option: Any) -> Any:
    held = list[kind.__args__[0]] if many else kind
    return Annotated[held | None if default is None else held, option]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=annotation, default=default)


def _panel(parameter: inspect.Parameter) -> str | None:
    known = getattr(parameter.annotation, "__metadata__", (None,))[0]
    return getattr(known, "rich_help_panel", None)
