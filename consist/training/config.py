"""All that decides what a training gives, as plain checked data.

It must not know torch, photos or the disk.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from consist.errors import ConsistError, unknown

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

# says how a training is computed, or for how long it is kept, but not what it gives
INDIFFERENT = {
    *("out", "device", "accumulate", "gradient_checkpointing", "checkpoint_every", "keep"),
    *("sample_prompts", "sample_every", "tensorboard"),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training: photos of a subject in, weights out. ``None`` leaves a choice to the model.

    Raises:
        ConsistError: A value is missing, not finite, out of range, or does not go with another.
    """

    kind: str  # of KINDS
    photos: str  # a folder of photos, or of a run
    out: str  # the .safetensors file, or the folder of the DreamBooth model
    prompt: str = ""  # for photos without a caption, such as "a xyz cat"
    class_prompt: str = ""  # what the subject is one of: "a cat"
    from_run: bool = False  # photos is a run, whose prompts are the captions
    token: str = ""  # the new word that is learned, such as "<my-cat>"
    init: str = ""  # known words, from the mean of whose vectors it begins: "cat"
    vectors: int | None = None  # tokens that it stands for
    layout: str | None = None  # of its file: one of consist.models.embedding_files
    embedding: str = ""  # a file of a word that captions say, beside which a LoRA is trained
    model: str = "mini"  # name, hub id, folder or .safetensors file
    steps: int | None = None  # at least 1
    lr: float | None = None  # more than 0
    text_lr: float | None = None
    text_encoder: bool = False  # trained as well
    rank: int | None = None  # of a LoRA
    conv: bool = False  # a LoRA of the residual blocks' convolutions too
    alpha: float | None = None  # the LoRA is scaled by alpha / rank; None: by 1
    dora: bool = False  # magnitudes apart from directions: arXiv:2402.09353
    batch_size: int | None = None  # photos of a step, over all processes
    accumulate: int = 1  # parts that a step is computed in, one after another
    prior: str = NO_PRIOR  # of PRIORS: what keeps the class as it was
    prior_weight: float = 1.0  # lambda of arXiv:2208.12242, equation 2; 0 leaves the prior out
    class_images: int | None = None
    background: str = PHOTO  # of BACKGROUNDS: what is learned where the subject is not
    min_snr: float | None = None  # gamma; None: all timesteps count alike
    caption_dropout: float = 0.0  # share of the subject's photos shown without a caption
    resolution: int | None = None  # pixels; photos of other shapes have as many
    buckets: bool = True  # sizes for photos that are not square
    random_crop: bool = False
    random_flip: bool = False
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    schedule: str = "constant"  # of diffusers.optimization
    warmup: int = 0  # steps
    ema: float | None = None  # decay of the moving average that is kept, not the last step; 0: none
    precision: str = "float32"  # of the products; what is trained is float32 in any case
    gradient_checkpointing: bool = False
    checkpoint_every: int = 100  # steps
    keep: int = 1  # checkpoints
    sample_prompts: tuple[str, ...] = ()  # drawn now and then with what is learned so far
    sample_every: int | None = None  # steps
    tensorboard: bool = False  # curves and sample pictures are written for it
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, known in (
            ("kind", KINDS),
            ("prior", PRIORS),
            ("background", BACKGROUNDS),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in known:
                raise ConsistError(unknown(name, getattr(self, name), known))
        for name, low, high in RANGES:
            check_range(name, getattr(self, name), low, high)
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


RANGES = (
    ("steps", 1, 10_000_000),
    ("lr", 1e-12, 10),
    ("text_lr", 1e-12, 10),
    ("rank", 1, 1024),
    ("vectors", 1, 64),
    ("alpha", 1e-6, 1e6),
    ("batch_size", 1, 10_000),
    ("accumulate", 1, 10_000),
    ("prior_weight", 0, 1000),
    ("class_images", 1, 100_000),
    ("min_snr", 1e-6, 1e6),
    ("caption_dropout", 0, 1),
    ("resolution", 8, 8192),
    ("weight_decay", 0, 10),
    ("max_grad_norm", 1e-9, 1e9),
    ("warmup", 0, 10_000_000),
    ("ema", 0, 1),
    ("checkpoint_every", 1, 10_000_000),
    ("sample_every", 1, 10_000_000),
    ("keep", 1, 10_000),
    ("seed", 0, 2**63 - 1),
)


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """Makes sure that a value, if there is one, lies between ``low`` and ``high``."""
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        said = name.replace("_", " ")
        raise ConsistError(f"{said} must be between {low:g} and {high:g}, not {value:g}")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In which settings two configs of ``to_json`` would train differently.

    Where the rate does not depend on the number of steps, more steps are the same training. A
    setting that one of them does not name is younger than it, and has its default.

    >>> differences({"rank": 4, "device": "cpu"}, {"rank": 8, "device": "cuda"})
    ['rank was 4 and is 8']
    """
    ignored = set(INDIFFERENT)
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
