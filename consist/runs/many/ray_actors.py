"""Has a list of tasks done by processes of a Ray cluster, one for each GPU.

Plain actors rather than Ray Data: a task gives nothing but files, in any order, and lasts seconds
to minutes. What Ray Data is for, streaming blocks of rows between operators that outgrow memory,
has nothing to do here, but it would repeat whole blocks where a worker dies, and it needs pyarrow.
An actor is a process that keeps its worker, and with it the pipeline, from task to task. Ray starts
it anew where it dies, and gives it the task that it had. Each has one task under way, and gets the
next one when that is done.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consist.errors import ConsistError
from consist.runs.many.worklist import Task, Watch, Worker, unwatched

RETRIES = 3  # times that a task is given again to a worker that died of it
KNOCK_SECONDS = 10.0
OBJECTS_BYTES = 100 * 2**20  # of shared memory: tasks are small, and nothing comes back


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """The ``Engine`` on a Ray cluster; it takes the one that this process has joined already.

    Each worker has one GPU, or one thread of a CPU where there is no GPU. All must see the folder
    that this process runs in, and the folders of the tasks, at the same path.

    Raises:
        ConsistError: When called: there is no Ray, no cluster or no such number of GPUs, a task
            cannot be done, or its worker died at every try.
    """

    address: str | None = None  # of a cluster, such as "auto"; None: one that lasts for the call
    workers: int | None = None  # None: as many as there are GPUs
    device: str = "auto"  # "cpu" leaves GPUs alone

    def __call__(
        self, tasks: Sequence[Task], hire: Callable[[], Worker[Task]], watch: Watch
    ) -> None:
        """Has all tasks done; see ``Engine``. ``watch`` hears of whole tasks."""
        ray = import_ray()
        # what Ray says of workers that die is no result
        with redirect_stdout(sys.stderr), connected(ray, self.address, self.workers):
            count, gpus = self._count(ray.cluster_resources())
            options = {
                "num_cpus": 1,
                "num_gpus": gpus,
                "max_restarts": -1,
                "max_task_retries": RETRIES,
            }
            desk = ray.remote(**options)(Desk)
            desks = [desk.remote(hire, Path.cwd()) for _ in range(min(count, len(tasks)))]
            try:
                hand_out(ray, tasks, desks, watch)
            finally:
                for desk in desks:
                    ray.kill(desk)

    def _count(self, resources: dict[str, float]) -> tuple[int, int]:
        """How many workers there are, and how many GPUs each has."""
        gpus = 0 if self.device == "cpu" else int(resources.get("GPU", 0))
        if self.workers is not None and self.workers < 1:
            raise ConsistError(f"workers must be at least 1, not {self.workers}")
        if not gpus:
            if self.workers is None:
                raise ConsistError("there is no GPU to count: say how many with --workers N")
            return self.workers, 0
        if self.workers is not None and self.workers > gpus:
            raise ConsistError(f"{self.workers} workers need a GPU each, and there are {gpus}")
        return self.workers or gpus, 1


class Desk:
    """A process that does tasks; the class of the actors."""

    def __init__(self, hire: Callable[[], Worker[Any]], place: Path):
        self.hire = hire
        self.place = place
        self.worker: Worker[Any] | None = None

    def do(self, task: Any) -> None:
        """Does one task; the worker is hired for the first."""
        if self.worker is None:
            os.chdir(self.place)
            self.worker = self.hire()
        self.worker(task, unwatched)


def hand_out(ray: Any, tasks: Sequence[Any], desks: Sequence[Any], watch: Watch) -> None:
    """Gives each desk a task, and the next one when that is done."""
    waiting, free = deque(tasks), deque(desks)
    busy: dict[Any, tuple[Any, Any]] = {}
    watch(0, len(tasks))
    while waiting or busy:
        while waiting and free:
            desk, task = free.popleft(), waiting.popleft()
            busy[desk.do.remote(task)] = desk, task
        (done,), _ = ray.wait(list(busy), num_returns=1)
        desk, task = busy.pop(done)
        check(ray, done, task)
        free.append(desk)
        watch(len(tasks) - len(waiting) - len(busy), len(tasks))


def check(ray: Any, done: Any, task: Any) -> None:
    """Raises what went wrong with a task, if anything did."""
    try:
        ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise ConsistError(
            f"{task!r:.200} was given up after {1 + RETRIES} tries: {reason}"
        ) from error


@contextmanager
def connected(ray: Any, address: str | None, workers: int | None) -> Iterator[None]:
    """Joins a cluster, or starts one on this machine, while the block runs."""
    if ray.is_initialized():
        yield
        return
    # nothing is reported to anybody, unless that is asked for
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address:
        place: dict[str, Any] = {"address": address}
    else:
        cpus = max(workers or 1, os.cpu_count() or 1)
        place = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        place["object_store_memory"] = OBJECTS_BYTES
    try:
        knock(address or "")
        ray.init(**place, log_to_driver=False, logging_level="error")
    except (OSError, ValueError, RuntimeError) as error:
        raise ConsistError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def knock(address: str) -> None:
    """Raises OSError if nobody is at ``HOST:PORT``; Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()


def import_ray() -> Any:
    """The module ``ray``.

    Raises:
        ConsistError: It is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise ConsistError("the engine ray needs a package: pip install 'consist[ray]'") from None
    return ray
