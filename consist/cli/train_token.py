"""``consist train token``: rare words that can name a subject."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from consist.cli.console import out, plain_failures, say
from consist.cli.from_fields import options, takes
from consist.training.config import TrainConfig

if TYPE_CHECKING:
    from consist.training.rare_words import Identifier


@takes(options(TrainConfig, ["model"]))
def token(
    word: Annotated[str | None, typer.Argument(help="Judge this word, instead.")] = None,
    count: Annotated[int, typer.Option(help="How many to find.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    *,
    model: str,
) -> None:
    """Find rare words that are one token, to name a subject with; or judge one.

    consist train token sks --model stable-diffusion-v1-5/stable-diffusion-v1-5
    """
    with plain_failures():
        from consist.training.rare_words import Tokenizers

        tokenizers = Tokenizers.load(model)
        found = [tokenizers.judge(word)] if word is not None else tokenizers.find(count)
        if as_json:
            typer.echo(json.dumps([vars(identifier) for identifier in found], ensure_ascii=False))
        elif word is not None:
            show_verdict(found[0], len(tokenizers.ranks))
        else:
            show_identifiers(found, len(tokenizers.ranks))
            if tokenizers.trained is not None:
                say("no caption of the model's training has them: they mean nothing to it yet")
            else:
                say("rare is not meaningless; see what one draws before training on it:")
                say(f'consist batch "{found[0].word}" "a {found[0].word}" --model {model}')


def show_verdict(identifier: Identifier, merges: int) -> None:
    """Says what a word is to the tokenizers, and whether it is any good."""
    if identifier.ids:
        ids = ", ".join(map(str, identifier.ids))
        place = f"place {identifier.rank} of {merges}, from the commonest"
        say(f"{identifier.word}: one token, id {ids}, {place if identifier.rank else 'a letter'}")
    if not identifier.doubts:
        say("nothing speaks against it")
    for doubt in identifier.doubts:
        say(f"against it: {doubt}", style="yellow")


def show_identifiers(found: list[Identifier], merges: int) -> None:
    """Prints words, the rarest first."""
    table = Table("identifier", "id", f"place of {merges}", box=None)
    for one in found:
        table.add_row(Text(one.word), ", ".join(map(str, one.ids)), str(one.rank or "a letter"))
    out.print(table)
