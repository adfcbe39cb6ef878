"""DreamBooth's protocol: a training for each subject, its pictures, and what they score.

Each subject has a folder, and can be measured alone: what is there is not done again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from consist.errors import ConsistError
from consist.evaluation.intervals import Interval, bootstrap
from consist.evaluation.judges.by_reader import mean_known
from consist.evaluation.scores import to_plain
from consist.files import write_atomically
from consist.runs.config import RunConfig
from consist.runs.drawing import Load, generate, load_model
from consist.runs.folder import ISOLATED, RunFolder
from consist.runs.versions import versions
from consist.training.config import TrainConfig
from consist.training.finetune import finetune, manifest
from learning.dreambooth import Subject
from learning.fidelity import FIDELITY, Gallery, Gauges, score_gallery
from learning.learners import Learner, discard, drawn_with

FORMAT = 1
IMAGES, CLASS_IMAGES = 4, 16  # of each prompt, as in the paper; of the class, which it does not say
FIRST_SEED, FIRST_CLASS_SEED = 10_000, 20_000  # class images that are trained on begin at 0
SCORES, PICTURES, SUMMARY = "scores.json", "images.csv", "summary.json"

Tell = Callable[[str], None]  # hears what is done next


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What all subjects have in common."""

    out: Path
    learner: Learner
    gauges: Gauges
    identifier: str  # a rare word of the model's tokenizer
    model: str
    images: int = IMAGES
    class_images: int = CLASS_IMAGES
    keep_identifier: bool = False  # in the prompts of CLIP-T
    training: Mapping[str, Any] = field(default_factory=dict)  # further fields of TrainConfig
    drawing: Mapping[str, Any] = field(default_factory=dict)  # further fields of RunConfig
    seed: int = 0  # of the training, and added to those of pictures
    device: str = "auto"
    batch_size: int | None = None  # pictures in memory at a time; by default those of one prompt
    discard: bool = False  # what was trained, once it is measured

    def choices(self) -> dict[str, Any]:
        """All that the numbers depend on but the subject: the paper does not say most of it."""
        return {
            **self.gauges.choices(),
            "learner": asdict(self.learner),
            "training": dict(self.training),
            "drawing": dict(self.drawing),
            "model": self.model,
            "identifier": self.identifier,
            "identifier_in_clip_t": self.keep_identifier,
            "images_per_prompt": self.images,
            "class_images_of_pres": self.class_images,
            "seed": self.seed,
        }

    @property
    def folder(self) -> Path:
        """Where all subjects lie that are trained and drawn alike."""
        told = {k: v for k, v in self.choices().items() if k not in self.gauges.choices()}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]
        return self.out / f"{'-'.join(self.learner.name.split())}-{digest}"


@dataclass(frozen=True, kw_only=True)
class SubjectScores:
    """What one subject came to."""

    subject: str
    noun: str
    scores: Mapping[str, float]  # by the keys of FIDELITY
    images: Sequence[Mapping[str, Any]]  # one per picture


def measure_subject(
    subject: Subject, protocol: Protocol, tell: Tell = lambda doing: None, model: Load = load_model
) -> SubjectScores:
    """Trains, draws and measures one subject.

    Args:
        subject: Of the protocol's folder.
        protocol: How.
        tell: Told what is done next.
        model: As ``model_for`` of ``generate``, for what the model draws before training.

    Raises:
        ConsistError: It cannot be trained, drawn or measured.
    """
    folder = protocol.folder / subject.name
    words = protocol.learner.words(protocol.identifier, subject.noun)
    photos = subject.photos(words)
    told = choices_of(subject, protocol)
    if (found := read_scores(folder / SCORES, told)) is not None:
        return found
    tell(f"{subject.name}: training")
    config = train(subject, protocol, words)
    tell(f"{subject.name}: drawing")
    run = draw_all(subject, protocol, words, drawn_with(config))
    generate(run, folder / "drawn")
    base = protocol.folder / "base" / "-".join(subject.noun.split())
    generate(configure(subject, protocol, [], {"model": protocol.model}), base, model_for=model)
    tell(f"{subject.name}: measuring")
    scores, rows = score_gallery(
        gather(subject, protocol, words, RunFolder(folder / "drawn"), RunFolder(base)),
        protocol.gauges,
    )
    images = [
        {
            "subject": subject.name,
            "file": RunFolder(folder / "drawn").picture_path(i).relative_to(folder).as_posix(),
            "prompt": run.prompts[i],
            "seed": run.seeds[i],
            **row,
            "nearest": photos[row["nearest"]].path.name,
        }
        for i, row in enumerate(rows)
    ]
    done = SubjectScores(subject=subject.name, noun=subject.noun, scores=scores, images=images)
    write_json(folder / SCORES, {"format": FORMAT, "choices": told, **vars(done)})
    if protocol.discard:
        discard(config)
    return done


def finished(subjects: Sequence[Subject], protocol: Protocol) -> list[SubjectScores]:
    """The scores of those subjects that are measured, whoever measured them."""
    found = [
        read_scores(protocol.folder / one.name / SCORES, choices_of(one, protocol))
        for one in subjects
    ]
    return [one for one in found if one is not None]


def choices_of(subject: Subject, protocol: Protocol) -> dict[str, Any]:
    """All that the scores of a subject depend on, as it is read back from JSON."""
    words = protocol.learner.words(protocol.identifier, subject.noun)
    photos = manifest(subject.photos(words))
    plain: dict[str, Any] = to_plain({**protocol.choices(), "photos": photos})
    return plain


def train(subject: Subject, protocol: Protocol, words: str) -> TrainConfig:
    """Trains on the photos of a subject; class images are shared by subjects of one class."""
    given = {
        "prompt": f"a {words}",
        "class_prompt": f"a {subject.noun}",
        "model": protocol.model,
        "seed": protocol.seed,
        "device": protocol.device,
        "out": str(protocol.folder / f"{subject.name}-{protocol.learner.out_name}"),
        **protocol.training,
    }
    config = protocol.learner.configure(subject.folder, protocol.folder, subject.noun, **given)
    finetune(config)
    return config


def draw_all(
    subject: Subject, protocol: Protocol, words: str, learned: Mapping[str, Any]
) -> RunConfig:
    """The run of all prompts, each as often as there are images, and then of the class."""
    prompts = [p.format(words) for p in subject.prompts for _ in range(protocol.images)]
    return configure(subject, protocol, prompts, learned)


def configure(
    subject: Subject, protocol: Protocol, prompts: Sequence[str], model: Mapping[str, Any]
) -> RunConfig:
    """A run without sharing, of some prompts and of the class, whose noise is always the same."""
    classes = protocol.class_images
    first, first_class = (protocol.seed + start for start in (FIRST_SEED, FIRST_CLASS_SEED))
    return RunConfig(
        prompts=(*prompts, *[f"a {subject.noun}"] * classes),
        seeds=(*range(first, first + len(prompts)), *range(first_class, first_class + classes)),
        method={"name": ISOLATED},
        device=protocol.device,
        batch_size=protocol.batch_size or protocol.images,
        **{**protocol.drawing, **model},
    )


def gather(
    subject: Subject, protocol: Protocol, words: str, drawn: RunFolder, base: RunFolder
) -> Gallery:
    """All pictures of a subject, as they were drawn."""
    count = len(subject.prompts) * protocol.images
    images = [drawn.read_picture(i) for i in range(count + protocol.class_images)]
    named = words if protocol.keep_identifier else subject.noun
    return Gallery(
        photos=[photo.read() for photo in subject.photos()],
        pictures=images[:count],
        texts=[p.format(named) for p in subject.prompts for _ in range(protocol.images)],
        each=protocol.images,
        classes=images[count:],
        base_classes=[base.read_picture(i) for i in range(protocol.class_images)],
    )


def read_scores(path: Path, choices: Mapping[str, Any]) -> SubjectScores | None:
    """The scores of a subject, if they were made with these choices."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT or data.pop("choices") != choices:
            return None
        found = {k: float("nan") if v is None else v for k, v in data.pop("scores").items()}
        return SubjectScores(scores=found, **data)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConsistError(f"{path} is damaged; remove it to measure again") from None


def summarize(found: Sequence[SubjectScores]) -> dict[str, dict[str, Any]]:
    """Means by the keys of ``FIDELITY``: over subjects (macro), with 95 %, and over pictures."""
    rows = [row for one in found for row in one.images]
    summary: dict[str, dict[str, Any]] = {}
    for name in FIDELITY:
        macro = bootstrap([one.scores[name] for one in found])
        summary[name] = {"macro": spelled(macro)}
        if rows and name in rows[0]:
            summary[name]["micro"] = round(mean_known(row[name] for row in rows), 5)
    return summary


def spelled(interval: Interval) -> list[float | int]:
    """Value, low, high and number of subjects."""
    ends = (interval.value, interval.low, interval.high)
    return [*(round(end, 5) for end in ends), interval.sets]


def write_summary(
    found: Sequence[SubjectScores], protocol: Protocol, facts: Mapping[str, Any]
) -> list[Path]:
    """Writes ``summary.json``, and ``images.csv`` with a line for each picture; gives the paths."""
    content = {
        "format": FORMAT,
        **facts,
        "versions": versions(protocol.model),
        "choices": protocol.choices(),
        "intervals": "macro: mean over subjects, 95 % interval (bootstrap), subjects",
        "summary": summarize(found),
        "subjects": [
            {"name": one.subject, "class": one.noun, **one.scores, "pictures": len(one.images)}
            for one in found
        ],
    }
    paths = [protocol.folder / SUMMARY, protocol.folder / PICTURES]
    write_json(paths[0], content)
    text = io.StringIO()
    rows = [row for one in found for row in one.images]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(paths[1], lambda file: file.write(text.getvalue().encode()))
    return paths


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON in full or not at all; NaN becomes null."""
    text = json.dumps(to_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
