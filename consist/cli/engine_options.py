"""Options of commands that do lists of tasks: which part of them, by whom, and how many."""

from __future__ import annotations

from dataclasses import dataclass

from consist.errors import ConsistError, unknown
from consist.runs.many.ranks import Ranks
from consist.runs.many.worklist import Engine
from consist.settings.fields import setting

ENGINES = ("here", "ray")
MANY = "Many sets, many processes"


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Which part of a list of tasks is done, and by whom.

    Args:
        shard: Do part I of N only, as I/N with I from 1 to N.
        engine: Who does the work.
        address: The Ray cluster, such as auto; by default one on this machine, for this command.
        workers: Processes of Ray, at least 1; by default one for each GPU.
    """

    shard: str = setting("1/1", panel=MANY)
    engine: str = setting("here", panel=MANY, choices=ENGINES)
    address: str | None = setting(None, panel=MANY)
    workers: int | None = setting(None, panel=MANY)

    def choose(self, device: str, ranks: Ranks) -> Engine:
        """The engine that is asked for; see ``choose_engine``."""
        return choose_engine(self.engine, self.address, self.workers, device, ranks)


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
