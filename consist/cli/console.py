"""What all commands say things with: two consoles, a bar, and one sentence for what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from typer.core import TyperCommand, TyperGroup

from consist.errors import ConsistError

out = Console()
err = Console(stderr=True)


class PlainCommand(TyperCommand):
    """A command whose help shows flags as flags: they take no value."""

    def get_params(self, ctx: Any) -> Any:
        """All parameters, ``--help`` too."""
        return _with_bare_flags(super().get_params(ctx))


class PlainGroup(TyperGroup):
    """A group of commands whose own flags are shown as flags."""

    def get_params(self, ctx: Any) -> Any:
        """All parameters, ``--help`` too."""
        return _with_bare_flags(super().get_params(ctx))


class Commands(typer.Typer):
    """A group of commands whose help shows flags as flags; arguments as of Typer."""

    def __init__(self, **given: Any):
        super().__init__(cls=PlainGroup, **given)

    def command(self, name: str | None = None, **given: Any) -> Any:
        """Adds a function as a command; arguments as of Typer."""
        return super().command(name, cls=PlainCommand, **given)


def _with_bare_flags(parameters: list[Any]) -> list[Any]:
    for one in parameters:
        if getattr(one, "is_flag", False) and one.metavar is None:
            one.metavar = ""
    return parameters


def say(line: str, console: Console = out, style: str | None = None) -> None:
    """Prints one line as it is, never broken or colored by what it says."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def plain_failures(hint: str = "") -> Iterator[None]:
    """Ends the process with one sentence where the user can mend what went wrong."""
    try:
        yield
    except ConsistError as error:
        say(f"error: {error}", err, "red")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        say(f"stopped. {hint}", err)
        raise typer.Exit(130) from None


@contextmanager
def progress_bar(doing: str, shown: bool = True) -> Iterator[Callable[[float, int], None]]:
    """A bar that is told how much is done (fractions count), and how much there is."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not shown) as progress:
        task: TaskID = progress.add_task("loading", total=None, state="")

        def watch(done: float, count: int) -> None:
            state = f"{int(done)} of {count}"
            progress.update(task, description=doing, completed=done, total=count, state=state)

        yield watch


def hide_loading_bars() -> None:
    """Silences the bars of diffusers and transformers, which last for a blink."""
    from diffusers.utils.logging import disable_progress_bar as hide_diffusers
    from transformers.utils.logging import disable_progress_bar as hide_transformers

    hide_diffusers()
    hide_transformers()
