"""``consist redo``: one picture of a run anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consist.cli.batch import report
from consist.cli.console import hide_loading_bars, plain_failures, progress_bar
from consist.cli.options import AsJson


def redo(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    image: Annotated[int, typer.Option(help="The picture's number, as its file has it: 2 or 002.")],
    seed: Annotated[
        int | None, typer.Option(help="By default a new one, or the same with --prompt.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="By default the same.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw one picture of a run again; the others stay, the old one beside it.

    consist redo runs/cat --image 2
    """
    with plain_failures("The same command continues."):
        with progress_bar("drawing") as watch:
            from consist.runs import extending as more

            hide_loading_bars()
            folder = more.redo(run, image, prompt=prompt, seed=seed, watch=watch)
        report(folder, as_json)
