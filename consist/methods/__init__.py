"""What is shared between images: one paper a file, which registers its method by name."""

from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from consist.attention.method import METHODS, Method
from consist.errors import ConsistError, unknown

for _file in iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")


def build(settings: Mapping[str, Any]) -> Method:
    """Makes a method from its name and fields; texts are read as the field's type.

    Args:
        settings: Such as ``{"name": "spectral", "anchors": "2", "window": "0,0.8"}``.

    Raises:
        ConsistError: The name or a field is unknown, or a value does not fit.
    """
    given = dict(settings)
    name = given.pop("name")
    defaults = defaults_of(name)
    if strange := [field for field in given if field not in defaults]:
        has = ", ".join(defaults) or "none"
        raise ConsistError(f"{name} has no field {strange[0]!r}; its fields: {has}")
    try:
        return METHODS[name](**{key: _read(value, defaults[key]) for key, value in given.items()})
    except ValueError as error:
        raise ConsistError(f"{name}: {error}") from None


def defaults_of(name: str) -> dict[str, Any]:
    """The fields of a method, with what they are where nothing is set.

    Raises:
        ConsistError: There is no such method.
    """
    if name not in METHODS:
        raise ConsistError(unknown("method", name, METHODS))
    return {field.name: field.default for field in fields(METHODS[name])}  # type: ignore[arg-type]


def spell_out(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A method with all its fields, so that it stays what it is when a default changes.

    Raises:
        ConsistError: As ``build``.
    """
    method = build(settings)
    values = {name: getattr(method, name) for name in defaults_of(settings["name"])}
    return {"name": settings["name"], **values}


def _read(value: Any, default: Any) -> Any:
    """Turns text into the type of ``default``; a list, as JSON has it, into a tuple."""
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, str):
        return value
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            raise ValueError(f"{value!r} is neither true nor false")
        return value.lower() == "true"
    if isinstance(default, float):
        return float(value)
    if isinstance(default, tuple):
        parts = [part.strip() for part in value.split(",")]
        return tuple(_read(part, default[0]) for part in parts) if default else tuple(parts)
    return int(value) if value.isdecimal() else value
