"""All that decides what a training gives, as plain checked data.

It must not know torch, photos or the disk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from consist.errors import ConsistError
from consist.runs.config import WHERE
from consist.settings.fields import check_settings, marked, setting, settings_of

LORA, DREAMBOOTH, TEXTUAL_INVERSION = KINDS = ("lora", "dreambooth", "textual-inversion")
NO_PRIOR, CLASS_IMAGES, BASE_MODEL = PRIORS = ("none", "images", "base")
PHOTO, BASE = BACKGROUNDS = ("photo", "base")
OPTIMIZERS = ("adamw", "adamw8bit", "prodigy")
SCHEDULES = (
    *("constant", "constant_with_warmup", "linear", "cosine"),
    *("cosine_with_restarts", "polynomial"),
)
PRECISIONS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Suited:
    """What suits a model where nothing is asked."""

    steps: int
    lr: float
    batch_size: int = 1
    rank: int = 16
    class_images: int = 100
    vectors: int = 1  # as in arXiv:2208.01618
    ema: float | None = None


# by kind and family of models. SD: arXiv:2208.12242 has 5e-6 and about 1000 steps for DreamBooth;
# 1e-4 is the usual rate of LoRA; for Textual Inversion, diffusers' recipe has 3000 steps of 4
# photos at 4 x 5e-4, where arXiv:2208.01618, section 4, has 5000 steps of 8. `mini`'s were tried on
# subjects and classes that no result in this repository is of
SUITED = {
    (LORA, "sd"): Suited(steps=800, lr=1e-4),
    (LORA, "sdxl"): Suited(steps=800, lr=1e-4),
    (LORA, "mini"): Suited(steps=300, lr=1e-3, batch_size=4, rank=64, class_images=20, ema=0.95),
    (DREAMBOOTH, "sd"): Suited(steps=1000, lr=5e-6),
    (DREAMBOOTH, "sdxl"): Suited(steps=1000, lr=2e-6),
    (DREAMBOOTH, "mini"): Suited(steps=300, lr=3e-4, batch_size=4, class_images=20, ema=0.95),
    (TEXTUAL_INVERSION, "sd"): Suited(steps=3000, lr=2e-3, batch_size=4),
    (TEXTUAL_INVERSION, "sdxl"): Suited(steps=3000, lr=2e-3, batch_size=4),
    (TEXTUAL_INVERSION, "mini"): Suited(steps=150, lr=2e-2, batch_size=4, vectors=4),
}
TEXT_SHARE = 0.1  # of the rate, for a text encoder's LoRA
# brackets keep a new word apart from all others, and small letters from the tokenizer's rewriting
WORD = re.compile(r"<[a-z0-9_-]+>")

# where options are shown
SUBJECT = "The subject"
TRAINED = "What is trained"
LEARNING = "Learning"
OPTIMIZER = "The optimizer"
PRIOR = "What keeps the class as it was"
PHOTOS = "Photos"
SEEING = "Seeing how it goes"

# fields that are of some kinds of training alone are marked with the kinds; and with this those
# that say how a training is computed, or for how long it is kept, but not what it gives
INDIFFERENT = "indifferent"
CHANGES_MODEL = (LORA, DREAMBOOTH)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training: photos of a subject in, weights out. ``None`` leaves a choice to the model.

    Args:
        kind: What comes out: a LoRA, a whole model, or a new word.
        photos: A folder of photos, or of a run.
        out: The .safetensors file, or the folder of the DreamBooth model.
        from_run: Whether photos is a run, whose prompts are the captions.
        prompt: Says what photos without a caption show, with a word for the subject, as 'a xyz
            cat'; for a new word, by default one of the paper's 27 templates.
        class_prompt: What the subject is one of, as 'a cat'; in the prompts of a run, --prompt
            takes its place.
        token: The new word, as '<my-cat>'.
        init: Known words that the new word begins as, as 'cat': the mean of their vectors.
        embedding: A file with a word that captions say; it stays as it is.
        model: mini, a hub id, a folder or a .safetensors file.
        vectors: Tokens that the new word stands for.
        layout: Of the word's file: diffusers, for one text encoder, or clip, which ComfyUI reads
            and SDXL needs; by default what the model needs.
        rank: Of the LoRA.
        alpha: The LoRA counts alpha / rank; by default the rank, so that it counts 1.
        conv: A LoRA of the residual blocks' convolutions too.
        dora: Magnitudes apart from directions, as in arXiv:2402.09353.
        text_encoder: Train the text encoder as well.
        steps: Steps of training.
        lr: Learning rate.
        text_lr: Learning rate of the text encoder; by default that of the rest, for a LoRA without
            prodigy a tenth of it.
        batch_size: Photos of a step, over all processes.
        min_snr: Weigh timesteps, with this gamma; by default all count alike.
        caption_dropout: Share of the subject's photos shown without a caption; 0.05 to 0.1 is
            usual.
        ema: Keep a moving average with this decay instead of the last step; 0 keeps none.
        seed: Of noise, timesteps and the order of photos.
        optimizer: Who takes the steps; prodigy finds the learning rate itself.
        weight_decay: How strongly weights are drawn to 0.
        max_grad_norm: Gradients of a larger norm are shortened to it.
        schedule: How the learning rate goes on.
        warmup: Steps in which the learning rate rises from 0, where the schedule has them.
        prior: images are drawn once and trained on as well; with base, the model shall say of the
            class what it said before; none keeps nothing.
        prior_weight: How much the prior counts beside the photos: lambda of arXiv:2208.12242,
            equation 2; 0 leaves it out.
        class_images: How many images of the class there are.
        background: What is learned where the subject is not: photo, or base, what the model said
            of it before. The subject is what is opaque in a photo, else what the class prompt
            finds.
        resolution: Pixels of a side; photos of other shapes have as many in all. By default the
            model's own.
        buckets: Sizes for photos that are not square, or squares.
        random_crop: Cut photos at random places, not in the middle.
        random_flip: Swap left and right at random.
        device: auto, cuda, mps or cpu.
        precision: Of the products; the weights that learn are float32 in any case.
        accumulate: Parts that a step is computed in, one after another.
        gradient_checkpointing: Less memory, slower.
        checkpoint_every: Steps between checkpoints.
        keep: Checkpoints that are kept.
        sample_prompts: Draw this now and then, into NAME.training/samples; may be repeated.
        sample_every: Steps between sample pictures; by default 100.
        tensorboard: Write curves and sample pictures into NAME.training/tensorboard.

    Raises:
        ConsistError: A value is missing, not finite, out of range, or does not go with another.
    """

    kind: str = setting(choices=KINDS)
    photos: str
    out: str = setting(marks=(INDIFFERENT,))
    from_run: bool = False
    prompt: str = setting("", panel=SUBJECT)
    class_prompt: str = setting("", panel=SUBJECT)
    token: str = setting("", panel=SUBJECT, marks=(TEXTUAL_INVERSION,))
    init: str = setting("", panel=SUBJECT, marks=(TEXTUAL_INVERSION,))
    embedding: str = setting("", panel=SUBJECT, marks=(LORA,))
    model: str = setting("mini", panel=TRAINED)
    vectors: int | None = setting(None, panel=TRAINED, least=1, most=64, marks=(TEXTUAL_INVERSION,))
    layout: str | None = setting(None, panel=TRAINED, marks=(TEXTUAL_INVERSION,))
    rank: int | None = setting(None, panel=TRAINED, least=1, most=1024, marks=(LORA,))
    alpha: float | None = setting(None, panel=TRAINED, least=1e-6, most=1_000_000, marks=(LORA,))
    conv: bool = setting(False, panel=TRAINED, marks=(LORA,))
    dora: bool = setting(False, panel=TRAINED, marks=(LORA,))
    text_encoder: bool = setting(False, panel=TRAINED, marks=CHANGES_MODEL)
    steps: int | None = setting(None, panel=LEARNING, least=1, most=10_000_000)
    lr: float | None = setting(None, panel=LEARNING, least=1e-12, most=10)
    text_lr: float | None = setting(None, panel=LEARNING, least=1e-12, most=10, marks=CHANGES_MODEL)
    batch_size: int | None = setting(None, panel=LEARNING, least=1, most=10_000)
    min_snr: float | None = setting(None, panel=LEARNING, least=1e-6, most=1_000_000)
    caption_dropout: float = setting(0.0, panel=LEARNING, least=0, most=1, marks=CHANGES_MODEL)
    ema: float | None = setting(None, panel=LEARNING, least=0, most=1)
    seed: int = setting(0, panel=LEARNING, least=0, most=2**63 - 1)
    optimizer: str = setting("adamw", panel=OPTIMIZER, choices=OPTIMIZERS)
    weight_decay: float = setting(0.01, panel=OPTIMIZER, least=0, most=10)
    max_grad_norm: float = setting(1.0, panel=OPTIMIZER, least=1e-9, most=1_000_000_000)
    schedule: str = setting("constant", panel=OPTIMIZER, choices=SCHEDULES)
    warmup: int = setting(0, panel=OPTIMIZER, least=0, most=10_000_000)
    prior: str = setting(NO_PRIOR, panel=PRIOR, choices=PRIORS, marks=CHANGES_MODEL)
    prior_weight: float = setting(1.0, panel=PRIOR, least=0, most=1000, marks=CHANGES_MODEL)
    class_images: int | None = setting(
        None, panel=PRIOR, least=1, most=100_000, marks=CHANGES_MODEL
    )
    background: str = setting(PHOTO, panel=PRIOR, choices=BACKGROUNDS, marks=CHANGES_MODEL)
    resolution: int | None = setting(None, panel=PHOTOS, least=8, most=8192)
    buckets: bool = setting(True, panel=PHOTOS)
    random_crop: bool = setting(False, panel=PHOTOS)
    random_flip: bool = setting(False, panel=PHOTOS)
    device: str = setting("auto", panel=WHERE, marks=(INDIFFERENT,))
    precision: str = setting("float32", panel=WHERE, choices=PRECISIONS)
    accumulate: int = setting(1, panel=WHERE, least=1, most=10_000, marks=(INDIFFERENT,))
    gradient_checkpointing: bool = setting(False, panel=WHERE, marks=(INDIFFERENT,))
    checkpoint_every: int = setting(
        100, panel=WHERE, least=1, most=10_000_000, marks=(INDIFFERENT,)
    )
    keep: int = setting(1, panel=WHERE, least=1, most=10_000, marks=(INDIFFERENT,))
    sample_prompts: tuple[str, ...] = setting((), panel=SEEING, marks=(INDIFFERENT,))
    sample_every: int | None = setting(
        None, panel=SEEING, least=1, most=10_000_000, marks=(INDIFFERENT,)
    )
    tensorboard: bool = setting(False, panel=SEEING, marks=(INDIFFERENT,))

    def __post_init__(self) -> None:
        check_settings(self)
        self._check_prompts()
        self._check_word()
        if self.writes_file != (Path(self.out).suffix == ".safetensors"):
            wanted = "a .safetensors file" if self.writes_file else "a folder"
            raise ConsistError(f"{self.kind} writes {wanted}, not {self.out}")
        if self.warmup and self.schedule == "constant":
            raise ConsistError("a constant schedule has no warmup; take constant_with_warmup")

    def _check_prompts(self) -> None:
        if self.prior != NO_PRIOR and not self.class_prompt.strip():
            raise ConsistError(
                f"prior {self.prior!r} needs a class prompt, such as 'a cat', to keep as it was"
            )
        if self.prompt and self.prompt.strip() == self.class_prompt.strip():
            raise ConsistError(
                f"the prompt and the class prompt are both {self.prompt!r}; the prompt needs a "
                "word of its own for the subject, such as 'a xyz cat'"
            )
        if not all(prompt.strip() for prompt in self.sample_prompts):
            raise ConsistError("a sample prompt is empty")
        if self.sample_every and not self.sample_prompts:
            raise ConsistError(
                f"pictures every {self.sample_every} steps need a sample prompt, such as "
                "'a xyz cat in Paris'"
            )

    def _check_word(self) -> None:
        if self.embedding and self.kind != LORA:
            raise ConsistError(f"only a lora is trained beside an embedding, not {self.kind}")
        if self.kind != TEXTUAL_INVERSION:
            return
        if not WORD.fullmatch(self.token):
            raise ConsistError(
                "a token is one new word of small letters, digits, - and _ in angle brackets, such "
                f"as '<my-cat>', not {self.token!r}"
            )
        if not self.init.strip():
            raise ConsistError(f"{self.token} needs known words to begin from: init, such as 'cat'")
        if self.prompt and self.token not in self.prompt:
            raise ConsistError(f"the prompt {self.prompt!r} does not say {self.token}")
        if self.text_encoder or self.with_prior:
            raise ConsistError(
                f"{self.kind} changes nothing but its word: it trains no text encoder, and what "
                "else there is needs no prior"
            )
        if self.background != PHOTO:
            raise ConsistError(
                f"{self.kind} changes nothing but its word, so what it learns of a background "
                "cannot be left to the base model"
            )
        if self.caption_dropout:
            raise ConsistError(
                f"{self.kind} learns from captions that say its word; none of them can be left out"
            )

    @property
    def writes_file(self) -> bool:
        """Whether the result is one file, beside the model that it is for."""
        return self.kind != DREAMBOOTH

    @property
    def work_folder(self) -> Path:
        """Where checkpoints lie, and what was computed once."""
        out = Path(self.out)
        return out.with_name(f"{out.stem if self.writes_file else out.name}.training")

    @property
    def asks_base(self) -> bool:
        """Whether the model that there was before is asked while another is trained."""
        return (self.with_prior and self.prior == BASE_MODEL) or self.background == BASE

    @property
    def with_prior(self) -> bool:
        """Whether a prior counts at all."""
        return self.prior != NO_PRIOR and self.prior_weight > 0

    def suited_to(self, family: str) -> TrainConfig:
        """The same with nothing left open but ``resolution``, for a family of ``SUITED``."""
        suited = SUITED[self.kind, family]
        finds_own = self.optimizer == "prodigy"
        lr = self.lr or (1.0 if finds_own else suited.lr)
        text_lr = lr * TEXT_SHARE if self.kind == LORA and not finds_own else lr
        alpha = float(self.rank or suited.rank)
        found = {**asdict(suited), "lr": lr, "text_lr": text_lr, "alpha": alpha}
        return replace(self, **{k: v for k, v in found.items() if getattr(self, k) is None})

    def to_json(self) -> dict[str, Any]:
        """Plain strings and numbers, as ``json.dumps`` takes them."""
        return asdict(self)


def fields_of(kind: str) -> list[str]:
    """The fields that a kind of training has and a person may set, in their order."""
    found = []
    for name, about in settings_of(TrainConfig).items():
        kinds = set(about.marks) & set(KINDS) or KINDS
        if about.panel and kind in kinds:
            found.append(name)
    return found


def suited_texts(kind: str) -> dict[str, str]:
    """By field, what suits the models that a kind of training is for, in words.

    >>> suited_texts(LORA)["rank"]
    '16, for mini 64'
    """
    usual, *others = ((family, vars(SUITED[kind, family])) for family in ("sd", "sdxl", "mini"))
    texts = {}
    for name in set(fields_of(kind)) & usual[1].keys():
        own = [f"for {x} {_told(them[name])}" for x, them in others if them[name] != usual[1][name]]
        texts[name] = ", ".join([_told(usual[1][name]), *own])
    return texts


def _told(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In which settings two configs of ``to_json`` would train differently.

    Where the rate does not depend on the number of steps, more steps are the same training. A
    setting that one of them does not name is younger than it, and has its default.

    >>> differences({"rank": 4, "device": "cpu"}, {"rank": 8, "device": "cuda"})
    ['rank was 4 and is 8']
    """
    ignored = set(marked(TrainConfig, INDIFFERENT))
    if str(now.get("schedule")).startswith("constant"):
        ignored.add("steps")
    known = {f.name: f.default for f in fields(TrainConfig) if f.default is not MISSING}
    before, now = {**known, **before}, {**known, **now}
    return [
        f"{name.replace('_', ' ')} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted({*before, *now} - ignored)
        if before.get(name) != now.get(name)
    ]


def remedies(config: TrainConfig) -> str:
    """What makes a training smaller, beginning with what does not change its result."""
    ways = []
    if not config.gradient_checkpointing:
        ways.append("gradient checkpointing")
    if config.accumulate < (config.batch_size or 1):
        ways.append(f"more than {config.accumulate} parts of a step (accumulate)")
    if config.precision == "float32":
        ways.append("precision bfloat16")
    if config.optimizer == "adamw":
        ways.append("optimizer adamw8bit")
    return f"turn on {', '.join(ways)}" if ways else "take a lower resolution"
