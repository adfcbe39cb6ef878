"""One drawing after the other, each of which can be watched and stopped.

It must not know what is drawn, nor who looks on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event, Lock

from consist.errors import ConsistError
from consist.runs.drawing import Watch
from consist.runs.folder import RunFolder

Work = Callable[[Watch], RunFolder]
BUSY = "this window is drawing already; wait until it is done, or cancel it"


class Stopped(Exception):
    """A drawing was told to stop."""


class Job:
    """One drawing of one session, that waits, runs or is done."""

    def __init__(self, work: Work) -> None:
        self.done, self.count = 0.0, 0  # pictures, as ``watch`` was told
        self.notes: list[str] = []  # warnings that were logged meanwhile
        self._work = work
        self._stop = Event()
        self._first: tuple[float, float] | None = None  # when it was first told, and what
        self._future: Future[RunFolder] = Future()

    def submit(self, executor: ThreadPoolExecutor) -> None:
        """Puts the job behind all others."""
        self._future = executor.submit(self._run)

    def stop(self) -> None:
        """Ends the job, at once if it waits and after a step if it runs."""
        self._stop.set()
        self._future.cancel()

    def wait(self, seconds: float) -> bool:
        """Whether the job is done after that time at most."""
        return bool(wait([self._future], timeout=seconds).done)

    def result(self) -> RunFolder:
        """What was drawn.

        Raises:
            Stopped: The job was stopped.
            ConsistError: The run could not be drawn, for a reason that the user can mend.
        """
        try:
            return self._future.result()
        except CancelledError:
            raise Stopped from None

    def seconds_left(self) -> float | None:
        """How long it still takes, if it goes on as it did; None if that cannot be told yet."""
        if self._first is None:
            return None
        started, before = self._first
        drawn = self.done - before
        return (time.monotonic() - started) * (self.count - self.done) / drawn if drawn else None

    def _run(self) -> RunFolder:
        with heard(self.notes):
            return self._work(self._watch)

    def _watch(self, done: float, count: int) -> None:
        if self._stop.is_set():
            raise Stopped
        self._first = self._first or (time.monotonic(), done)
        self.done, self.count = done, count


class Jobs:
    """All jobs that wait or run, at most one of each session; a single thread draws them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._executor = ThreadPoolExecutor(1, "drawing")
        self._lock = Lock()
        self._jobs: dict[str, Job] = {}  # by session, in their order

    @contextmanager
    def start(self, session: str, work: Work) -> Iterator[Job]:
        """Puts work behind all other; it is stopped when the block is left before it is done.

        Raises:
            ConsistError: The session has a job already, or too many wait.
        """
        job = Job(work)
        with self._lock:
            if session in self._jobs:
                raise ConsistError(BUSY)
            if len(self._jobs) >= self._most:
                raise ConsistError(f"{self._most} others are waiting; try again later")
            self._jobs[session] = job
            job.submit(self._executor)
        try:
            yield job
        finally:
            job.stop()
            with self._lock:
                del self._jobs[session]

    def ahead(self, job: Job) -> int:
        """How many others are drawn before a job."""
        with self._lock:
            return list(self._jobs.values()).index(job)

    def busy(self, session: str) -> bool:
        """Whether a session has a job."""
        with self._lock:
            return session in self._jobs

    def stop(self, session: str) -> None:
        """Stops the job of a session, if it has one."""
        with self._lock:
            job = self._jobs.get(session)
        if job:
            job.stop()

    def close(self) -> None:
        """Stops all jobs, and waits for the one that runs."""
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.stop()
        self._executor.shutdown(cancel_futures=True)


@contextmanager
def heard(notes: list[str]) -> Iterator[None]:
    """Keeps what this package warns of meanwhile."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: notes.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("consist")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
