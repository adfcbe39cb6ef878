"""``consist batch``: the same subject in several scenes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consist.cli.console import hide_loading_bars, out, plain_failures, progress_bar, say
from consist.cli.engine_options import Address, EngineName, Shard, Workers
from consist.cli.options import (
    WHERE,
    Anchors,
    Backend,
    BatchSize,
    Cache,
    Device,
    Dtype,
    Fields,
    Guidance,
    Keys,
    MethodName,
    ModelName,
    Rescale,
    Steps,
    Strength,
    Values,
    read_method,
    refuse_given,
)
from consist.cli.pack import is_told, read_packs, words_of_loras, words_of_subject
from consist.cli.sets import MANY, OF_SETS, SetsCommand, batch_sets, read_sets
from consist.errors import ConsistError
from consist.runs.chunks import plan_run
from consist.runs.config import DEFAULT_METHOD, RunConfig, parse_size, spread_seeds
from consist.runs.many.ranks import joined

if TYPE_CHECKING:
    from consist.runs.folder import RunFolder

# what a saved subject has of its own
OF_SUBJECT = (
    *("model", "method", "keys", "values", "anchors", "strength", "subject", "set_"),
    *("steps", "guidance", "guidance_rescale", "negative", "size", "scheduler"),
    *("lora", "lora_negative", "embedding"),
    *("reference", "reference_prompt"),
)


def batch(
    context: typer.Context,
    prompts: Annotated[list[str] | None, typer.Argument(help="One prompt per picture.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="One prompt per line; or a .yaml file of sets, each drawn as a run."),
    ] = None,
    pack: Annotated[
        list[str] | None,
        typer.Option(
            help="Ready prompts about the subject of --subject or of the LoRA: recontext, art, "
            "property, views, accessories, or a .yaml file; may be repeated."
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(help="A saved subject, by its name or file: see 'consist subject'."),
    ] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="A picture of your own that shows the subject; may be repeated."),
    ] = None,
    reference_prompt: Annotated[
        list[str] | None,
        typer.Option(help="What the references show: one prompt for all, or one each."),
    ] = None,
    model: ModelName = "mini",
    method: MethodName = DEFAULT_METHOD,
    keys: Keys = None,
    values: Values = None,
    anchors: Anchors = None,
    strength: Strength = None,
    subject: Annotated[
        list[str] | None,
        typer.Option(
            help="Words of the prompts that name the subject; may be repeated. With --pack, those "
            "that are put into its prompts; with --lora-negative, those for what a LoRA learned."
        ),
    ] = None,
    set_: Fields = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="One seed (then +1 per picture), or one per picture.")
    ] = None,
    same_noise: Annotated[
        bool, typer.Option("--same-noise", help="Start all pictures from the same noise.")
    ] = False,
    steps: Steps = None,
    guidance: Guidance = None,
    guidance_rescale: Rescale = 0.0,
    negative: Annotated[str, typer.Option(help="What the pictures should not show.")] = "",
    size: Annotated[
        str | None, typer.Option(help="Pixels, as 512 or 768x512 (width x height).")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Such as ddim, euler or dpm++.")] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="A LoRA, FILE or FILE:WEIGHT; may be repeated.")
    ] = None,
    lora_negative: Annotated[
        float,
        typer.Option(
            help="Share of the LoRAs, where the subject is, in what guidance leads away from; less "
            "than 1 makes a trained subject more alike."
        ),
    ] = 1.0,
    embedding: Annotated[
        list[str] | None,
        typer.Option(help="A file with a new word that prompts may say; may be repeated."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    batch_size: BatchSize = None,
    cache: Cache = False,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Run folder, or folder of all runs; by default one in runs/.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    shard: Shard = "1/1",
    engine: EngineName = "here",
    address: Address = None,
    workers: Workers = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also draw without sharing, from the same noise.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be drawn, and draw nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record of the run as JSON.")
    ] = False,
) -> None:
    """Draw the same subject in several scenes.

    consist batch "a cat in Paris" "a cat on the moon"
    consist batch --file sets.yaml --engine ray
    """
    with plain_failures("The finished pictures are kept; the same command continues."):
        sets = read_sets(file, prompts or [])
        if sets:
            refuse_given(context, OF_SETS, "goes without a file of sets")
        else:
            refuse_given(context, MANY, "goes with --file sets.yaml")
        texts = sets[0].prompts if sets else read_prompts(prompts or [], file)
        seeds = tuple(seed or [])
        if like:
            refuse_given(context, OF_SUBJECT, "goes without --like; the subject has its own")
            refuse_given(context, ["pack"], "goes without --like, which has no words for it")
            config = scenes_of(like, texts, seeds, same_noise, cache)
        else:
            refuse_given(context, ["cache"], "goes with --like, or with consist extend")
            if pack:
                from consist.prompts.packs import noun_of

                words = words_of_subject(subject or [], lora or [])
                texts += read_packs(pack, words, model)
                subject = [noun_of(words)]
            named: tuple[str, ...] = ()
            if lora_negative != 1:
                named = words_of_loras(subject or [], lora or [], texts)
            if (pack or named) and not is_told(method):
                subject = None
            width, height = parse_size(size) if size else (None, None)
            config = RunConfig(
                prompts=texts,
                seeds=spread_seeds((0,) if sets else seeds or (0,), len(texts), same_noise),
                model=model,
                method=read_method(
                    method,
                    keys=keys,
                    values=values,
                    anchors=anchors,
                    strength=strength,
                    subject=subject,
                    pairs=set_,
                ),
                steps=steps,
                guidance=guidance,
                guidance_rescale=guidance_rescale,
                negative=negative,
                width=width,
                height=height,
                scheduler=scheduler,
                loras=tuple(lora or []),
                lora_negative=lora_negative,
                lora_subject=named,
                embeddings=tuple(embedding or []),
            )
            config = look_at(config, reference or [], reference_prompt or [])
        config = replace(
            config,
            device=device,
            dtype=dtype,
            backend=backend,
            batch_size=batch_size,
            compare=compare,
        )
        if file and sets:
            command = SetsCommand(
                file=file,
                folder=folder,
                seeds=seeds,
                same_noise=same_noise,
                shard=shard,
                engine=engine,
                address=address,
                workers=workers,
                dry_run=dry_run,
                as_json=as_json,
            )
            batch_sets(sets, config, command)
        elif dry_run:
            check_and_print(config)
        elif drawn := draw(config, folder):
            report(drawn, as_json)


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
        out.print(
            f"{folder.path / image['file']}  seed {image['seed']}  {image['prompt']}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    seconds, memory = record["seconds"], record["peak_memory_gib"]
    say(f"{folder.grid_path}  all in one picture")
    say(f"drawn in {seconds:.1f} s, at most {memory:.1f} GiB of memory")
