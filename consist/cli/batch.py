"""``consist batch``: the same subject in several scenes."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from consist.cli.console import hide_loading_bars, out, plain_failures, progress_bar, say
from consist.cli.engine_options import MANY, EngineOptions
from consist.cli.from_fields import options, read, takes
from consist.cli.options import Cache, MethodOptions, refuse_given
from consist.cli.sets import SetsCommand, batch_sets, read_sets
from consist.cli.subject_words import name_subject
from consist.errors import ConsistError, unknown
from consist.runs.chunks import plan_run
from consist.runs.config import (
    DRAWING,
    MODEL,
    OF_SUBJECT,
    SHARED,
    WHERE,
    RunConfig,
    parse_size,
    spread_seeds,
)
from consist.runs.many.ranks import joined
from consist.settings.fields import as_text, field_help, marked, settings_of

if TYPE_CHECKING:
    from consist.runs.folder import RunFolder

SCENES = "The subject and its scenes"
RESULT = "What comes out"
PANELS = (SCENES, SHARED, MODEL, DRAWING, WHERE, MANY, RESULT)
# what a file of sets has of its own, or what belongs to one set alone
NOT_OF_SETS = ("like", "pack", "cache", "reference", "reference_prompt")


scene = partial(typer.Option, rich_help_panel=SCENES)
drawing = partial(typer.Option, rich_help_panel=DRAWING)
result = partial(typer.Option, rich_help_panel=RESULT)


@takes(options(MethodOptions), options(RunConfig), options(EngineOptions), panels=PANELS)
def batch(
    context: typer.Context,
    prompts: Annotated[list[str] | None, typer.Argument(help="One prompt per picture.")] = None,
    file: Annotated[
        Path | None,
        scene(help="One prompt per line; or a .yaml file of sets, each drawn as a run."),
    ] = None,
    pack: Annotated[
        list[str] | None,
        scene(
            help="Ready prompts about the subject of --subject or of the LoRA: recontext, art, "
            "property, views, accessories, or a .yaml file; may be repeated."
        ),
    ] = None,
    subject: Annotated[
        list[str] | None,
        scene(
            help="Words of the prompts that name the subject; may be repeated. With --pack, those "
            "that are put into its prompts; with --lora-negative, those for what a LoRA learned."
        ),
    ] = None,
    like: Annotated[
        str | None,
        scene(help="A saved subject, by its name or file: see 'consist subject'."),
    ] = None,
    reference: Annotated[
        list[Path] | None,
        scene(help="A picture of your own that shows the subject; may be repeated."),
    ] = None,
    reference_prompt: Annotated[
        list[str] | None,
        scene(help="What the references show: one prompt for all, or one each."),
    ] = None,
    seed: Annotated[
        list[int] | None,
        drawing(
            help="One seed (then +1 per picture), or one per picture; by default 0. At least 0."
        ),
    ] = None,
    same_noise: Annotated[
        bool,
        drawing("--same-noise", help="Start all pictures from the same noise."),
    ] = False,
    size: Annotated[
        str | None,
        drawing(
            help="Pixels, as 512 or 768x512 (width x height); by default what suits the model. "
            "From 8 to 8192."
        ),
    ] = None,
    cache: Cache = False,
    folder: Annotated[
        Path | None,
        result("--out", help="Run folder, or folder of all runs; by default one in runs/."),
    ] = None,
    dry_run: Annotated[
        bool,
        result("--dry-run", help="Print what would be drawn, and draw nothing."),
    ] = False,
    help_fields: Annotated[
        bool,
        result("--help-fields", help="Print the fields of --method, and draw nothing."),
    ] = False,
    as_json: Annotated[
        bool,
        result("--json", help="Print the record of the run as JSON."),
    ] = False,
    **given: Any,
) -> None:
    """Draw the same subject in several scenes.

    consist batch "a cat in Paris" "a cat on the moon"
    consist batch --file sets.yaml --engine ray
    """
    with plain_failures("The finished pictures are kept; the same command continues."):
        if help_fields:
            show_fields(given["method"])
            return
        sets = read_sets(file, prompts or [])
        engine = read(EngineOptions, given)
        if sets:
            refuse_given(context, NOT_OF_SETS, "goes without a file of sets")
        else:
            refuse_given(context, engine, "goes with --file sets.yaml")
        texts = sets[0].prompts if sets else read_prompts(prompts or [], file)
        seeds, told = tuple(seed or []), read(RunConfig, given)
        if like:
            refuse_what_a_subject_has(context)
            config = scenes_of(like, texts, seeds, same_noise, cache)
            own = marked(RunConfig, OF_SUBJECT)
            config = replace(config, **{name: x for name, x in told.items() if name not in own})
        else:
            refuse_given(context, ["cache"], "goes with --like, or with consist extend")
            method = MethodOptions(**read(MethodOptions, given))
            texts, phrases, learned = name_subject(texts, subject or [], pack or [], method, told)
            width, height = parse_size(size) if size else (None, None)
            config = RunConfig(
                prompts=texts,
                seeds=spread_seeds((0,) if sets else seeds or (0,), len(texts), same_noise),
                method=method.settings(phrases),
                width=width,
                height=height,
                lora_subject=learned,
                **told,
            )
            config = look_at(config, reference or [], reference_prompt or [])
        if file and sets:
            command = SetsCommand(
                file=file,
                folder=folder,
                seeds=seeds,
                same_noise=same_noise,
                engine=EngineOptions(**engine),
                dry_run=dry_run,
                as_json=as_json,
            )
            batch_sets(sets, config, command)
        elif dry_run:
            check_and_print(config)
        elif drawn := draw(config, folder):
            report(drawn, as_json)


def show_fields(name: str) -> None:
    """Prints the fields of a method: name, type, default and meaning, a line each.

    Raises:
        ConsistError: There is no such method.
    """
    from consist.methods import METHODS

    if name not in METHODS:
        raise ConsistError(unknown("method", name, METHODS))
    meanings, kinds = field_help(METHODS[name]), get_type_hints(METHODS[name])
    rows = [
        (one.name, inspect.formatannotation(kinds[one.name]), as_text(one.default))
        for one in fields(METHODS[name])  # type: ignore[arg-type]
    ]
    if not rows:
        say(f"{name} has no fields")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say("  ".join((*cells, meanings[row[0]])))


def refuse_what_a_subject_has(context: typer.Context) -> None:
    """Makes sure that nothing was given that a saved subject has of its own."""
    own = [*marked(RunConfig, OF_SUBJECT), *settings_of(MethodOptions), "subject", "size"]
    own += ["reference", "reference_prompt"]
    refuse_given(context, own, "goes without --like; the subject has its own")
    refuse_given(context, ["pack"], "goes without --like, which has no words for it")


def read_prompts(given: list[str], file: Path | None) -> tuple[str, ...]:
    """The prompts of the command line and of a file, in that order; empty lines are skipped."""
    lines: list[str] = []
    if file:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConsistError(f"prompts cannot be read from {file}: {error}") from error
    return (*given, *(line.strip() for line in lines if line.strip()))


def scenes_of(
    name: str, prompts: tuple[str, ...], seeds: tuple[int, ...], same_noise: bool, cache: bool
) -> RunConfig:
    """A run of a saved subject, drawn from the cache beside it or not."""
    from consist.runs.extending import check_weights_of
    from consist.runs.subject import Subject, cache_path

    subject = Subject.load(name)
    check_weights_of(subject)
    config = subject.scenes(prompts, seeds, same_noise)
    return replace(config, cache=str(cache_path(name))) if cache else config


def look_at(config: RunConfig, references: list[Path], prompts: list[str]) -> RunConfig:
    """A run with references, if any are given."""
    if not references and not prompts:
        return config
    from consist.runs.references import with_references

    return with_references(config, references, prompts)


def check_and_print(config: RunConfig) -> None:
    """Checks what can be checked without the model, and prints the config."""
    from consist.methods import build
    from consist.runs.folder import default_folder

    anchors = build(config.method).anchor_count(len(config.with_anchors().prompts))
    plan_run(config, anchors, range(len(config.prompts)))
    out.print_json(json.dumps({**config.to_json(), "out": str(default_folder(config))}))


def draw(config: RunConfig, folder: Path | None) -> RunFolder | None:
    """Draws a run behind a progress bar; None in all but the first of several processes."""
    with joined(config.device) as ranks, progress_bar("drawing", shown=ranks.leads) as watch:
        from consist.runs.drawing import generate

        hide_loading_bars()
        if ranks.count == 1:
            return generate(config, folder, watch)
        from consist.runs.many.one_batch import generate_across

        return generate_across(ranks, config, folder, watch)


def report(folder: RunFolder, as_json: bool) -> None:
    """Says what was written and where."""
    record = folder.read_record()
    if as_json:
        typer.echo(json.dumps({"folder": str(folder.path), **record}, ensure_ascii=False))
        return
    for image in record["images"]:
        say(f"{folder.path / image['file']}  seed {image['seed']}  {image['prompt']}")
    seconds, memory = record["seconds"], record["peak_memory_gib"]
    say(f"{folder.grid_path}  all in one picture")
    say(f"drawn in {seconds:.1f} s, at most {memory:.1f} GiB of memory")
