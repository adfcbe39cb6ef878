"""``consist lora``: files of LoRAs, looked into, rewritten and merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from consist.cli.console import Commands, out, plain_failures, say
from consist.errors import ConsistError

if TYPE_CHECKING:
    from consist.models.lora_files import Lora

app = Commands(help="Look into LoRA files, convert and merge them.", no_args_is_help=True)

SHOWN = 160  # letters of a word of the header
Out = Annotated[Path, typer.Argument(help="The new file, which ends in .safetensors.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the new file.")]
Layout = Annotated[
    str, typer.Option("--to", help="diffusers, or kohya, which ComfyUI and A1111 read.")
]
Precision = Annotated[
    str | None, typer.Option("--dtype", help="float32, float16 or bfloat16; by default as it is.")
]


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="LoRA file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say what a LoRA file holds.

    consist lora info cat.safetensors
    """
    with plain_failures():
        from consist.models.lora_files import cautions, read_lora

        lora = read_lora(file)
        facts = describe(lora) | {"bytes": file.stat().st_size}
        if as_json:
            typer.echo(json.dumps(facts | {"metadata": dict(lora.metadata)}, ensure_ascii=False))
            return
        table = Table(box=None, show_header=False)
        for name, fact in facts.items():
            table.add_row(name, Text(show(fact)))
        for name, word in sorted(lora.metadata.items()):
            table.add_row(Text(name, style="dim"), Text(word[:SHOWN]))
        out.print(table)
        for caution in cautions(lora, lora.layout):
            say(caution, style="yellow")


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="LoRA file.")],
    target: Out,
    to: Layout,
    dtype: Precision = None,
    force: Force = False,
) -> None:
    """Write a LoRA in another layout.

    consist lora convert cat.safetensors cat-kohya.safetensors --to kohya
    """
    with plain_failures():
        from consist.models.lora_files import read_lora

        check_target(target, [file], force)
        read_lora(file).save(target, to, precision(dtype))
        say(f"{target}")


@app.command()
def merge(
    files: Annotated[list[str], typer.Argument(help="LoRA files, each FILE or FILE:WEIGHT.")],
    target: Out,
    to: Layout = "diffusers",
    dtype: Precision = None,
    force: Force = False,
) -> None:
    """Write the weighted sum of LoRAs as one, in float32.

    consist lora merge cat.safetensors:0.8 ink.safetensors:0.5 both.safetensors

    The sum is exact; its rank is that of all together.
    """
    with plain_failures():
        from consist.models.lora import split_weight
        from consist.models.lora_files import read_lora
        from consist.models.lora_merging import merge as join

        given = [split_weight(text) for text in files]
        if len(given) < 2:
            raise ConsistError("give two LoRA files or more, and then the new file")
        check_target(target, [Path(name) for name, _ in given], force)
        lora = join([(read_lora(Path(name)), weight) for name, weight in given])
        lora.save(target, to, precision(dtype))
        say(f"{target}  rank {show(lora.ranks)}")


def check_target(target: Path, sources: list[Path], force: bool) -> None:
    """Makes sure that no file is lost.

    Raises:
        ConsistError: The new file is one of those that are read, or is there and not ``force``.
    """
    if target.resolve() in [source.resolve() for source in sources]:
        raise ConsistError(f"{target} would be read and written; give the new file another name")
    if target.exists() and not force:
        raise ConsistError(f"{target} exists already; --force overwrites it")


def precision(name: str | None) -> Any:
    """The torch dtype of that name.

    Raises:
        ConsistError: There is no such precision.
    """
    from consist.errors import unknown
    from consist.models.devices import DTYPES

    if name is not None and name not in DTYPES:
        raise ConsistError(unknown("dtype", name, DTYPES))
    return name and DTYPES[name]


def describe(lora: Lora) -> dict[str, Any]:
    """What a LoRA is, by the names of the facts."""
    from consist.models.lora_files import MODELS

    width = lora.prompt_width
    tensors = [
        t for u in lora.modules.values() for t in (u.down, u.up, u.magnitude) if t is not None
    ]
    words = lora.metadata
    return {
        "layout": lora.layout,
        "kind": "DoRA" if lora.is_dora else "LoRA",
        "base model": words.get("base_model") or words.get("ss_sd_model_name") or "not told",
        "fits": MODELS.get(width, (f"prompts {width} wide",))[0] if width else "not told",
        "rank": lora.ranks,
        "alpha": lora.alphas,
        "modules": {name: count for name, count in lora.counts.items() if count},
        "parameters": sum(tensor.numel() for tensor in tensors),
        "precision": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}),
    }


def show(fact: Any) -> str:
    """A fact in a cell."""
    if isinstance(fact, dict):
        return ", ".join(f"{count} of {name}" for name, count in fact.items())
    if isinstance(fact, list):
        return ", ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in fact)
    return f"{fact:,}" if isinstance(fact, int) else str(fact)
