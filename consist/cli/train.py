"""``consist train lora`` and ``consist train dreambooth``: a subject learned from photos."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from consist.cli.console import err, hide_loading_bars, plain_failures, say
from consist.cli.options import WHERE, Device, ModelName
from consist.errors import ConsistError
from consist.training.config import CLASS_IMAGES, DREAMBOOTH, LORA, NO_PRIOR, PHOTO, TrainConfig

PRIOR = "What keeps the class as it was"
PHOTOS = "Photos"
SEEING = "Seeing how it goes"
LEARNING = "Learning"
GOES_ON = "The last checkpoint is kept; the same command continues."

Photos = Annotated[
    Path | None, typer.Argument(help="A folder of photos of one subject, 3 to 20 of them.")
]
FromRun = Annotated[
    Path | None, typer.Option(help="Take the pictures and prompts of this run instead.")
]
Prompt = Annotated[
    str,
    typer.Option(help="Says what photos without a caption show, with a word for the subject."),
]
ClassPrompt = Annotated[
    str, typer.Option(help="What the subject is one of, as 'a cat'.", rich_help_panel=PRIOR)
]
Prior = Annotated[
    str | None,
    typer.Option(
        help="images: drawn once, trained on as well. base: the model shall say of the class what "
        "it said before. none. By default images, if there is a class prompt and no --from-run.",
        rich_help_panel=PRIOR,
    ),
]
PriorWeight = Annotated[
    float, typer.Option(help="How much it counts beside the photos.", rich_help_panel=PRIOR)
]
ClassImages = Annotated[int | None, typer.Option(help="How many of them.", rich_help_panel=PRIOR)]
Background = Annotated[
    str,
    typer.Option(
        help="What is learned where the subject is not: photo, or base, what the model said of it "
        "before. The subject is what is opaque in a photo, else what the class prompt finds.",
        rich_help_panel=PRIOR,
    ),
]
Out = Annotated[Path | None, typer.Option(help="By default named after the prompt.")]
StepCount = Annotated[int | None, typer.Option(help="Of training.", rich_help_panel=LEARNING)]
Rate = Annotated[
    float | None, typer.Option("--lr", help="Learning rate.", rich_help_panel=LEARNING)
]
Rank = Annotated[
    int | None,
    typer.Option(help="Of the LoRA; by default 16, for mini 64.", rich_help_panel=LEARNING),
]
Convolutions = Annotated[
    bool, typer.Option("--conv", help="A LoRA of convolutions too.", rich_help_panel=LEARNING)
]
TextEncoder = Annotated[
    bool, typer.Option("--text-encoder", help="Train it as well.", rich_help_panel=LEARNING)
]
TextRate = Annotated[
    float | None,
    typer.Option("--text-lr", help="Learning rate of the text encoder.", rich_help_panel=LEARNING),
]
Batch = Annotated[int | None, typer.Option(help="Photos of a step.", rich_help_panel=LEARNING)]
Optimizer = Annotated[
    str, typer.Option(help="adamw, adamw8bit or prodigy.", rich_help_panel=LEARNING)
]
Schedule = Annotated[
    str,
    typer.Option(
        help="constant, constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial.",
        rich_help_panel=LEARNING,
    ),
]
Warmup = Annotated[int, typer.Option(help="Steps.", rich_help_panel=LEARNING)]
Average = Annotated[
    float | None,
    typer.Option(help="Keep a moving average with this decay.", rich_help_panel=LEARNING),
]
MinSnr = Annotated[
    float | None,
    typer.Option("--min-snr", help="Weigh timesteps, with this gamma.", rich_help_panel=LEARNING),
]
CaptionDropout = Annotated[
    float,
    typer.Option(
        help="Share of the subject's photos shown without a caption; 0.05 to 0.1 is usual.",
        rich_help_panel=LEARNING,
    ),
]
Seed = Annotated[int, typer.Option(rich_help_panel=LEARNING)]
Resolution = Annotated[int | None, typer.Option(help="Pixels.", rich_help_panel=PHOTOS)]
Buckets = Annotated[
    bool,
    typer.Option(help="Sizes for photos that are not square, or squares.", rich_help_panel=PHOTOS),
]
RandomCrop = Annotated[bool, typer.Option("--random-crop", rich_help_panel=PHOTOS)]
RandomFlip = Annotated[
    bool, typer.Option("--random-flip", help="Left and right.", rich_help_panel=PHOTOS)
]
Precision = Annotated[
    str,
    typer.Option(
        help="Of the products: float32, float16 or bfloat16; the weights that learn are float32.",
        rich_help_panel=WHERE,
    ),
]
Parts = Annotated[
    int, typer.Option(help="Parts that a step is computed in.", rich_help_panel=WHERE)
]
Checkpointing = Annotated[
    bool,
    typer.Option("--gradient-checkpointing", help="Less memory, slower.", rich_help_panel=WHERE),
]
Every = Annotated[int, typer.Option(help="Steps between checkpoints.", rich_help_panel=WHERE)]
Keep = Annotated[int, typer.Option(help="Checkpoints that are kept.", rich_help_panel=WHERE)]
SamplePrompts = Annotated[
    list[str] | None,
    typer.Option(
        "--sample-prompt",
        help="Draw this now and then, into NAME.training/samples; may be repeated.",
        rich_help_panel=SEEING,
    ),
]
SampleEvery = Annotated[
    int | None,
    typer.Option(help="Steps between sample pictures; by default 100.", rich_help_panel=SEEING),
]
Tensorboard = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        help="Write curves and sample pictures into NAME.training/tensorboard.",
        rich_help_panel=SEEING,
    ),
]


def lora(
    photos: Photos = None,
    prompt: Prompt = "",
    class_prompt: ClassPrompt = "",
    out: Out = None,
    from_run: FromRun = None,
    model: ModelName = "mini",
    embedding: Annotated[
        str, typer.Option(help="A file with a word that captions say; it stays as it is.")
    ] = "",
    steps: StepCount = None,
    lr: Rate = None,
    rank: Rank = None,
    conv: Convolutions = False,
    alpha: Annotated[
        float | None,
        typer.Option(help="Updates count alpha / rank; by default 1.", rich_help_panel=LEARNING),
    ] = None,
    dora: Annotated[
        bool,
        typer.Option("--dora", help="Magnitudes apart from directions.", rich_help_panel=LEARNING),
    ] = False,
    text_encoder: TextEncoder = False,
    text_lr: TextRate = None,
    batch_size: Batch = None,
    min_snr: MinSnr = None,
    caption_dropout: CaptionDropout = 0.0,
    optimizer: Optimizer = "adamw",
    schedule: Schedule = "constant",
    warmup: Warmup = 0,
    ema: Average = None,
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
    """Learn a subject from photos, as a small file beside the model.

    consist train lora photos/ --prompt "a xyz cat" --out cat.safetensors

    Then: consist batch "a xyz cat in Paris" --lora cat.safetensors
    """
    train(LORA, dict(locals()))


def dreambooth(
    photos: Photos = None,
    prompt: Prompt = "",
    class_prompt: ClassPrompt = "",
    out: Out = None,
    from_run: FromRun = None,
    model: ModelName = "mini",
    steps: StepCount = None,
    lr: Rate = None,
    text_encoder: TextEncoder = False,
    text_lr: TextRate = None,
    batch_size: Batch = None,
    min_snr: MinSnr = None,
    caption_dropout: CaptionDropout = 0.0,
    optimizer: Optimizer = "adamw",
    schedule: Schedule = "constant",
    warmup: Warmup = 0,
    ema: Average = None,
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
    """Learn a subject from photos, as a model of its own: all of the UNet is trained.

    consist train dreambooth photos/ --prompt "a xyz cat" --class-prompt "a cat" --out my-cat

    Then: consist batch "a xyz cat in Paris" --model my-cat
    """
    train(DREAMBOOTH, dict(locals()))


def train(kind: str, given: dict[str, Any]) -> None:
    """Trains what the options of a command say."""
    with plain_failures(GOES_ON):
        show_training(read_config(kind, given))


def show_training(config: TrainConfig) -> None:
    """Trains behind a progress bar, and says where the result is."""
    # of several processes, one tells
    hidden = os.environ.get("RANK", "0") != "0"
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=hidden) as progress:
        task: TaskID = progress.add_task("loading", total=None, state="")

        def watch(step: int, steps: int, loss: float) -> None:
            state = f"loss {loss:.4f}, {progress.tasks[task].speed or 0:.1f} steps/s"
            progress.update(
                task,
                description=f"training {config.kind}",
                completed=step,
                total=steps,
                state=state,
            )

        def watch_drawing(done: float, count: int) -> None:
            progress.update(task, description="drawing the class", completed=int(done), total=count)

        from consist.training.finetune import finetune

        hide_loading_bars()
        written = finetune(config, watch, watch_drawing)
    if not hidden:
        say(f"{written}")


def read_config(kind: str, given: dict[str, Any]) -> TrainConfig:
    """The options of a command as a config."""
    photos, run = given.pop("photos"), given.pop("from_run")
    if bool(photos) == bool(run):
        raise ConsistError("give either a folder of photos or --from-run")
    prior = given.pop("prior", NO_PRIOR)
    if prior is None:
        prior = CLASS_IMAGES if given["class_prompt"] and not run else NO_PRIOR
    given["sample_prompts"] = tuple(given.get("sample_prompts") or ())
    named = given.get("token") or given["prompt"]
    out = given.pop("out") or default_out(kind, named, photos or run)
    config: dict[str, Any] = {"photos": str(photos or run), "from_run": bool(run), "out": str(out)}
    return TrainConfig(kind=kind, prior=prior, **config, **given)


def default_out(kind: str, prompt: str, photos: Path) -> Path:
    """A name made of the prompt, else of the photos' folder."""
    words = "".join(c if c.isalnum() else " " for c in (prompt or photos.resolve().name).lower())
    slug = "-".join(words.split())[:40].strip("-") or "subject"
    return Path(f"{slug}-model" if kind == DREAMBOOTH else f"{slug}.safetensors")
