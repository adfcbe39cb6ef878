"""Options that several commands take, and how they become the settings of a method."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from consist.errors import ConsistError

WHERE = "Where and how fast"

ModelName = Annotated[str, typer.Option(help="mini, a hub id, a folder or a .safetensors file.")]
MethodName = Annotated[
    str,
    typer.Option(
        help="What is shared: matched, spectral, shared, notch, sdsa, consistory, storydiffusion, "
        "stylealigned, one-prompt or isolated."
    ),
]
Keys = Annotated[
    str | None,
    typer.Option(help="Spectrum of the keys, such as 'energy:0.95' or 'log|fraction:0.1'."),
]
Values = Annotated[str | None, typer.Option(help="Spectrum of the values.")]
Anchors = Annotated[
    str | None, typer.Option(help="Images that are shared: all, random, or the first N.")
]
Strength = Annotated[
    float | None, typer.Option(help="Weight of a shared token against an own one.")
]
Fields = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other field of the method, such as pool=all."),
]
Steps = Annotated[int | None, typer.Option(help="Denoising steps.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale.")]
Rescale = Annotated[
    float,
    typer.Option(
        help="Share of the contrast that guidance adds and that is taken back; 0.7 is usual."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cuda, mps or cpu.", rich_help_panel=WHERE)]
Dtype = Annotated[
    str, typer.Option(help="auto, float32, float16 or bfloat16.", rich_help_panel=WHERE)
]
Backend = Annotated[
    str, typer.Option(help="Version of attention: see 'consist doctor'.", rich_help_panel=WHERE)
]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Pictures in memory at a time, anchors included.", rich_help_panel=WHERE),
]
Cache = Annotated[
    bool,
    typer.Option(
        "--cache",
        help="Draw the anchors once more, keep what they share in a file, and draw all further "
        "pictures from it without them.",
        rich_help_panel=WHERE,
    ),
]


def refuse_given(context: typer.Context, names: Iterable[str], reason: str) -> None:
    """Makes sure that none of the options of these parameters was given."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.strip('_').replace('_', '-')}"
            raise ConsistError(f"{option} {reason}")


def read_method(
    name: str,
    *,
    keys: str | None,
    values: str | None,
    anchors: str | None,
    strength: float | None,
    pairs: list[str] | None,
    subject: list[str] | None = None,
) -> dict[str, Any]:
    """The settings of a method: the fields that were given, and those of ``NAME=VALUE``."""
    named = {"keys": keys, "values": values, "anchors": anchors, "strength": strength}
    fields: dict[str, Any] = {"name": name, **({"subject": subject} if subject else {})}
    fields |= {field: value for field, value in named.items() if value is not None}
    for pair in pairs or []:
        field, equals, value = pair.partition("=")
        if not equals:
            raise ConsistError(f"--set takes NAME=VALUE, not {pair!r}")
        fields[field.strip()] = value.strip()
    return fields
