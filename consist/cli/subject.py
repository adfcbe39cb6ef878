"""``consist subject``: subjects that are kept by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from consist.cli.console import Commands, err, out, plain_failures, say
from consist.runs.config import LATE, OF_SUBJECT, RunConfig
from consist.settings.fields import marked

if TYPE_CHECKING:
    from consist.runs.subject import Subject

app = Commands(help="Keep subjects, to draw more of them.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A name, or a file that ends in .json.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


@app.command()
def save(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    name: Name,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite the subject of that name.")
    ] = False,
) -> None:
    """Keep the subject of a run.

    consist subject save runs/cat tom
    """
    with plain_failures():
        from consist.runs.extending import take_subject

        path = take_subject(run).save(name, force)
        say(f"{path}")


@app.command("list")
def list_all(as_json: AsJson = False) -> None:
    """List the subjects that were kept."""
    with plain_failures():
        from consist.errors import ConsistError
        from consist.runs.subject import Subject, list_subjects

        subjects: dict[str, Subject] = {}
        for name in list_subjects():
            try:
                subjects[name] = Subject.load(name)
            except ConsistError as error:
                say(f"{error}", err)
        if as_json:
            found = [{"name": name, **subject.to_json()} for name, subject in subjects.items()]
            typer.echo(json.dumps(found, ensure_ascii=False))
            return
        table = Table("subject", "model", "method", "pictures", "the first", box=None)
        for name, subject in subjects.items():
            config = subject.config
            cells = (config.model, config.method["name"], str(len(config.prompts)))
            table.add_row(*map(Text, (name, *cells, config.prompts[0])))
        out.print(table)


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Show what a subject is made of."""
    with plain_failures():
        from consist.runs.subject import Subject, cache_path

        subject = Subject.load(name)
        if as_json:
            typer.echo(json.dumps({"name": name, **subject.to_json()}, ensure_ascii=False))
            return
        show_recipe(subject)
        if (cache := cache_path(name)).exists():
            say(f"cache  {cache}, {cache.stat().st_size / 2**20:.1f} MiB")


def show_recipe(subject: Subject) -> None:
    """Prints the pictures of a subject and how they are drawn."""
    config = subject.config
    for prompt, seed in zip(config.prompts, config.seeds, strict=True):
        say(f"seed {seed}  {prompt}")
    for path in subject.pictures:
        say(f"given picture  {path}")
    late = marked(RunConfig, LATE)
    for name in marked(RunConfig, OF_SUBJECT):
        value = getattr(config, name)
        if value and value != late.get(name):
            say(f"{name}  {json.dumps(value) if isinstance(value, dict) else value}")
    say("drawn with  " + ", ".join(f"{name} {number}" for name, number in subject.versions.items()))
