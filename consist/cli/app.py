"""``consist app``: the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consist.cli.console import hide_loading_bars, plain_failures, say

PANEL = "What a visitor may ask for"


def open_page(
    root: Annotated[Path, typer.Option(help="The folder of all runs.")] = Path("runs"),
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A further model that may be chosen, as for batch; may be repeated. Those that "
            "'consist models' lists can be chosen anyway."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to bind to; 0.0.0.0 lets all others in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any that is free.", min=0, max=65535)] = 7860,
    pictures: Annotated[
        int, typer.Option(help="Pictures in a run.", min=1, rich_help_panel=PANEL)
    ] = 24,
    steps: Annotated[
        int, typer.Option(help="Denoising steps.", min=1, rich_help_panel=PANEL)
    ] = 100,
    side: Annotated[
        int, typer.Option(help="Pixels, a side of a picture.", min=8, rich_help_panel=PANEL)
    ] = 1024,
    jobs: Annotated[
        int, typer.Option(help="Drawings in the queue.", min=1, rich_help_panel=PANEL)
    ] = 20,
) -> None:
    """Open a page in which all this can be done with a mouse.

    consist app
    """
    with plain_failures("What was drawn is kept, and goes on from there."):
        from consist.errors import ConsistError

        try:
            from consist.app.server import serve
        except ModuleNotFoundError as error:
            raise ConsistError("the page needs an extra: pip install 'consist[app]'") from error
        from consist.app.actions import Studio
        from consist.app.limits import Limits
        from consist.models.loading import local_models

        hide_loading_bars()
        models = dict.fromkeys([*(one.name for one in local_models()), *(model or [])])
        limits = Limits(pictures=pictures, steps=steps, side=side, jobs=jobs)
        studio = Studio(root, tuple(models), limits)
        serve(studio, host, port, lambda address: say(f"{address}  Ctrl-C stops it"))
