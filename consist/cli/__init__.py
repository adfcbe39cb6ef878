"""The command line: it parses, calls one function and prints.

Heavy imports wait for the command that needs them.
"""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from consist.cli import lora, subject, train
from consist.cli.app import open_page
from consist.cli.batch import batch
from consist.cli.console import Commands, out, plain_failures, say
from consist.cli.evaluate import evaluate, write_page
from consist.cli.extend import extend
from consist.cli.redo import redo

app = Commands(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(batch)
app.command()(extend)
app.command()(redo)
app.add_typer(subject.app, name="subject")
app.command()(evaluate)
app.command("report")(write_page)
app.command("app")(open_page)
app.add_typer(train.app, name="train")
app.add_typer(lora.app, name="lora")


def show_version(asked: bool) -> None:
    """Prints the version and ends, if that is asked for."""
    if asked:
        say(f"consist {version('consist')}")
        raise typer.Exit


@app.callback()
def consist(
    _: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Draw the same subject in many scenes with any Stable Diffusion."""


def main() -> None:
    """Runs the command line; what the user can mend is one sentence and exit code 2."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("consist").addHandler(handler)
    app()


@app.command()
def models() -> None:
    """List the models that can be used without a download."""
    with plain_failures():
        from consist.models.loading import local_models

        table = Table("model", "kind", "size", "where", box=None)
        for model in local_models():
            size = f"{model.bytes / 2**20:.0f} MiB"
            table.add_row(*map(Text, (model.name, model.kind, size, str(model.path))))
        out.print(table)
        out.print("and any SD 1.x, SD 2.x or SDXL: a hub id, a folder or a .safetensors file")


@app.command()
def methods() -> None:
    """List the methods, and what each shares."""
    with plain_failures():
        from consist.methods import METHODS

        table = Table("--method", "what an image sees of the others", "after", box=None)
        for name, method in METHODS.items():
            table.add_row(*map(Text, (name, method.sees, method.after)))
        out.print(table)
        out.print("the settings of one: consist batch --method NAME --help-fields")


@app.command()
def doctor() -> None:
    """Say what will run here, and what to install for more."""
    with plain_failures():
        from consist.cli.doctor import findings

        table = Table(box=None, show_header=False)
        for topic, finding in findings():
            table.add_row(topic, Text(finding))
        out.print(table)
