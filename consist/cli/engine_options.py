"""Options of commands that do lists of tasks: which part of them, by whom, and how many."""

from __future__ import annotations

from typing import Annotated

import typer

from consist.errors import ConsistError, unknown
from consist.runs.many.ranks import Ranks
from consist.runs.many.worklist import Engine

ENGINES = ("here", "ray")
MANY = "Many sets, many processes"

Shard = Annotated[str, typer.Option(help="Do part I of N only, as I/N.", rich_help_panel=MANY)]
EngineName = Annotated[
    str,
    typer.Option("--engine", help="Who does the work: here, or ray.", rich_help_panel=MANY),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="The Ray cluster, such as auto; by default one on this machine, for this command.",
        rich_help_panel=MANY,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(help="Processes of Ray; by default one for each GPU.", rich_help_panel=MANY),
]


def choose_engine(
    name: str, address: str | None, workers: int | None, device: str, ranks: Ranks
) -> Engine:
    """The engine of that name.

    Raises:
        ConsistError: There is none, or the options do not go together.
    """
    if name not in ENGINES:
        raise ConsistError(unknown("engine", name, ENGINES))
    if name == "here":
        if address or workers is not None:
            raise ConsistError("--address and --workers go with --engine ray")
        return ranks.do
    if ranks.count > 1:
        raise ConsistError("--engine ray starts its own processes; leave torchrun away")
    from consist.runs.many.ray_actors import RayEngine, import_ray

    import_ray()
    return RayEngine(address=address, workers=workers, device=device)
