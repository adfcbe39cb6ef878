"""``consist extend``: more scenes of the subject of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consist.cli.batch import read_prompts, report
from consist.cli.console import err, hide_loading_bars, plain_failures, progress_bar, say
from consist.cli.from_fields import options, takes
from consist.cli.options import AsJson, Cache
from consist.runs.config import RunConfig


@takes(options(RunConfig, ["batch_size"]))
def extend(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    prompts: Annotated[list[str] | None, typer.Argument(help="One prompt per picture.")] = None,
    file: Annotated[Path | None, typer.Option(help="A text file with one prompt per line.")] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(
            help="One seed (then +1 per picture), or one per picture; by default those after the "
            "run's largest. At least 0."
        ),
    ] = None,
    cache: Cache = False,
    as_json: AsJson = False,
    *,
    batch_size: int | None,
) -> None:
    """Draw more scenes of the subject of a run; its pictures do not change.

    consist extend runs/cat "a cat in the snow"

    The same command again adds nothing; with another --seed, it draws other pictures.
    """
    with plain_failures("The finished pictures are kept; the same command continues."):
        texts = read_prompts(prompts or [], file)
        with progress_bar("drawing") as watch:
            from consist.runs import extending as more
            from consist.runs.folder import RunFolder

            hide_loading_bars()
            before = RunFolder(run).read_config()
            folder = more.extend(
                run,
                texts,
                seeds=tuple(seed or []),
                batch_size=batch_size,
                cache=cache,
                watch=watch,
            )
        report(folder, as_json)
        if folder.read_config().prompts == before.prompts:
            say(f"{run} has these prompts already; --seed draws them once more", err)
