"""``consist train textual-inversion`` and ``pivotal``: a subject learned as a new word."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from consist.cli.console import plain_failures
from consist.cli.options import Device, ModelName
from consist.cli.train_photos import (
    GOES_ON,
    LEARNING,
    Average,
    Background,
    Batch,
    Buckets,
    CaptionDropout,
    Checkpointing,
    ClassImages,
    ClassPrompt,
    Convolutions,
    Every,
    FromRun,
    Keep,
    MinSnr,
    Optimizer,
    Out,
    Parts,
    Photos,
    Precision,
    Prior,
    PriorWeight,
    RandomCrop,
    RandomFlip,
    Rank,
    Rate,
    Resolution,
    SampleEvery,
    SamplePrompts,
    Schedule,
    Seed,
    StepCount,
    Tensorboard,
    Warmup,
    default_out,
    read_config,
    show_training,
    train,
)
from consist.training.config import LORA, PHOTO, TEXTUAL_INVERSION, TrainConfig

Token = Annotated[str, typer.Option(help="The new word, as '<my-cat>'.", show_default=False)]
Init = Annotated[str, typer.Option(help="A known word to begin from, as 'cat'.")]
Vectors = Annotated[
    int | None,
    typer.Option(
        help="Tokens that the word stands for; by default 1, for mini 4.", rich_help_panel=LEARNING
    ),
]
Prompt = Annotated[
    str,
    typer.Option(
        help="Says what photos without a caption show, with the word in it; by default one of the "
        "paper's 27 templates, as 'a photo of a <my-cat>'."
    ),
]
Replaced = Annotated[
    str,
    typer.Option(
        "--class-prompt",
        help="What the prompts of --from-run say, as 'a cat', where --prompt takes its place.",
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        help="diffusers, for one text encoder, or clip, which ComfyUI reads and SDXL needs."
    ),
]


def textual_inversion(
    photos: Photos = None,
    token: Token = "",
    init: Init = "",
    prompt: Prompt = "",
    out: Annotated[Path | None, typer.Option(help="By default named after the word.")] = None,
    from_run: FromRun = None,
    class_prompt: Replaced = "",
    layout: Layout = None,
    model: ModelName = "mini",
    vectors: Vectors = None,
    steps: StepCount = None,
    lr: Rate = None,
    batch_size: Batch = None,
    min_snr: MinSnr = None,
    optimizer: Optimizer = "adamw",
    schedule: Schedule = "constant",
    warmup: Warmup = 0,
    ema: Average = None,
    seed: Seed = 0,
    resolution: Resolution = None,
    buckets: Buckets = True,
    random_crop: RandomCrop = False,
    random_flip: RandomFlip = False,
    device: Device = "auto",
    precision: Precision = "float32",
    accumulate: Parts = 1,
    gradient_checkpointing: Checkpointing = False,
    checkpoint_every: Every = 100,
    keep: Keep = 1,
    sample_prompts: SamplePrompts = None,
    sample_every: SampleEvery = None,
    tensorboard: Tensorboard = False,
) -> None:
    """Learn a new word for a subject from photos; the model stays as it is.

    consist train textual-inversion photos/ --token "<my-cat>" --init cat

    Then: consist batch "a <my-cat> in Paris" --embedding my-cat.safetensors
    """
    train(TEXTUAL_INVERSION, dict(locals()))


def pivotal(
    photos: Photos = None,
    token: Token = "",
    init: Init = "",
    prompt: Prompt = "",
    class_prompt: ClassPrompt = "",
    out: Out = None,
    from_run: FromRun = None,
    model: ModelName = "mini",
    vectors: Vectors = None,
    word_steps: Annotated[
        int | None, typer.Option(help="Of the word.", rich_help_panel=LEARNING)
    ] = None,
    word_lr: Annotated[
        float | None, typer.Option(help="Learning rate of the word.", rich_help_panel=LEARNING)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Of the LoRA.", rich_help_panel=LEARNING)
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option("--lr", help="Learning rate of the LoRA.", rich_help_panel=LEARNING),
    ] = None,
    rank: Rank = None,
    conv: Convolutions = False,
    batch_size: Batch = None,
    min_snr: MinSnr = None,
    caption_dropout: CaptionDropout = 0.0,
    optimizer: Optimizer = "adamw",
    seed: Seed = 0,
    prior: Prior = None,
    prior_weight: PriorWeight = 1.0,
    background: Background = PHOTO,
    class_images: ClassImages = None,
    resolution: Resolution = None,
    buckets: Buckets = True,
    random_crop: RandomCrop = False,
    random_flip: RandomFlip = False,
    device: Device = "auto",
    precision: Precision = "float32",
    accumulate: Parts = 1,
    gradient_checkpointing: Checkpointing = False,
    checkpoint_every: Every = 100,
    keep: Keep = 1,
    sample_prompts: SamplePrompts = None,
    sample_every: SampleEvery = None,
    tensorboard: Tensorboard = False,
) -> None:
    """Learn a new word for a subject from photos, and then a LoRA beside it.

    consist train pivotal photos/ --token "<my-cat>" --init cat --out cat.safetensors

    Then: consist batch "a <my-cat> in Paris" --lora cat.safetensors --embedding
    cat-word.safetensors
    """
    given = dict(locals())
    with plain_failures(GOES_ON):
        for config in two_trainings(given):
            show_training(config)


def two_trainings(given: dict[str, Any]) -> tuple[TrainConfig, TrainConfig]:
    """The training of a word, and that of a LoRA with the word in place, which stays as it is.

    Pivotal tuning (Roich et al. 2021, arXiv:2106.05744) turns to the model once its input is
    found. cloneofsimo/lora too keeps the word in its second stage unless asked otherwise.
    """
    token, prompt = given["token"], given["prompt"]
    out = given["out"] or default_out(LORA, token, given["photos"] or given["from_run"])
    word_out = out.with_name(f"{out.stem}-word.safetensors")
    of_word = {name: given.pop(name) for name in ("token", "init", "vectors")}
    pace = {"steps": given.pop("word_steps"), "lr": given.pop("word_lr")}
    of_lora = {"rank", "conv", "prior", "prior_weight", "class_images", "background"}
    of_lora |= {"caption_dropout"}
    shared = {name: value for name, value in given.items() if name not in of_lora}
    word = read_config(TEXTUAL_INVERSION, {**shared, **of_word, **pace, "out": word_out})
    told = {"prompt": prompt or f"a {token}", "out": out, "embedding": str(word_out)}
    return word, read_config(LORA, {**given, **told})
