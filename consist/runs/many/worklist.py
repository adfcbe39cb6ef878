"""Lists of tasks that anybody may do, in any order, and more than once.

A task has seeds of its own, writes each file in full or not at all, and leaves alone what it finds
done. So the result does not depend on how many do the work, nor on who stops and goes on. This
module must not know what a task does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from consist.errors import ConsistError

Task = TypeVar("Task")
Watch = Callable[[float, int], None]  # how much is done (fractions count), and how much there is
Worker = Callable[[Task, Watch], None]  # does one task, and tells of its parts


class Engine(Protocol):
    """Has all tasks of a list done."""

    def __call__(
        self, tasks: Sequence[Task], hire: Callable[[], Worker[Task]], watch: Watch
    ) -> None:
        """Returns when all tasks are done.

        Args:
            tasks: Of which each can be pickled.
            hire: Makes a worker where the work is done; can be pickled too.
            watch: Told how many tasks are done (fractions count), and how many there are.

        Raises:
            ConsistError: A task cannot be done; others may be left undone then.
        """


def do_here(tasks: Sequence[Task], hire: Callable[[], Worker[Task]], watch: Watch) -> None:
    """The ``Engine`` that does one task after another, in this process.

    >>> done = []
    >>> do_here("ab", lambda: lambda task, watch: done.append(task), lambda done, count: None)
    >>> done
    ['a', 'b']
    """
    worker = hire()
    for number, task in enumerate(tasks):
        worker(task, part(watch, number, len(tasks)))
    watch(len(tasks), len(tasks))


def part(watch: Watch, number: int, count: int) -> Watch:
    """Hears of task ``number`` of ``count`` and tells of all."""
    return lambda done, parts: watch(number + done / parts, count)


def unwatched(done: float, count: int) -> None:
    """The ``Watch`` that nobody reads."""


def take_shard(tasks: Sequence[Task], shard: str) -> Sequence[Task]:
    """The part of a list that ``I/N`` names: N parts together hold every task once; I from 1.

    >>> take_shard("abcde", "2/3")
    'be'

    Raises:
        ConsistError: ``shard`` is something else.
    """
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", shard.strip())
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise ConsistError(f"shard {shard!r} is not I/N with I from 1 to N, such as 1/4")
    return tasks[number - 1 :: count]
