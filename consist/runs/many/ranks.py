"""The processes that torchrun or accelerate launch started for one command, if they did."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from consist.runs.many.worklist import Task, Watch, Worker, do_here, take_shard, unwatched

# how long a process waits for another: shards of sets take what they take
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process among those of its command."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that shows a bar, sums up and prints."""
        return self.rank == 0

    def do(self, tasks: Sequence[Task], hire: Callable[[], Worker[Task]], watch: Watch) -> None:
        """The ``Engine`` of these processes: they take a list in turn, and wait for one another.

        ``watch`` hears of the tasks of the first process.
        """
        mine = take_shard(tasks, f"{self.rank + 1}/{self.count}")
        do_here(mine, hire, watch if self.leads else unwatched)
        if self.count > 1:
            import torch.distributed

            torch.distributed.barrier()


@contextmanager
def joined(device: str = "auto") -> Iterator[Ranks]:
    """Joins the processes of this command while the block runs; there may be this one alone.

    Each gets a GPU of its machine, unless ``device`` is "cpu" or there is none, and talks through
    NCCL, or else through gloo. Where the block fails nobody is told: the launcher ends the others.

    Raises:
        ValueError: The launcher named a place to meet where nobody is.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Ranks()
        return
    import torch
    from accelerate import PartialState

    on_cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(
        cpu=on_cpu, backend="gloo" if on_cpu else "cpu:gloo,cuda:nccl", timeout=PATIENCE
    )
    yield Ranks(state.process_index, state.num_processes)
    state.destroy_process_group()
