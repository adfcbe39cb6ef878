"""How learning goes on `mini`: every way to learn, and to do without, for subjects that are known.

Each way has a run folder for each subject and number of steps, with pictures of the subject in new
scenes and of its class. What is there is not learned or drawn again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from operator import methodcaller
from pathlib import Path
from typing import Any

from consist.errors import ConsistError
from consist.files import write_atomically
from consist.mini.reader import Reader
from consist.mini.world import draw, with_article
from consist.models.devices import pick_device
from consist.models.loading import MINI_DEFAULTS, MINI_FOLDER
from consist.models.weights import digest_of
from consist.runs.config import RunConfig, spread_seeds
from consist.runs.drawing import Load, generate
from consist.runs.folder import ISOLATED, RunFolder, find_runs
from consist.runs.memory import grown_mib
from consist.runs.references import with_references
from consist.training.checkpoints import checkpoints
from consist.training.class_images import class_root
from consist.training.config import CLASS_IMAGES, TrainConfig
from consist.training.finetune import finetune, load_model
from learning.copies import COPIED, Originals
from learning.known_subjects import Known, score_class, score_subject, write_photos
from learning.learners import Learner, drawn_with

BASE = "base model"  # what others are compared with: the class in the new scenes
FIRST_SEED = 1000  # class images that are trained on have the seeds from 0
BATCH = 8  # pictures in memory at a time
INDIFFERENT = {"out", "at", "device"}  # fields of a course that leave its pictures as they are
COSTS = "costs.json"  # beside run.json; the last that is written of a way

Tell = Callable[[str], None]  # hears what is done next


@dataclass(frozen=True, kw_only=True)
class Free:
    """A way to draw a subject without training."""

    name: str
    method: Mapping[str, Any]
    photos: int = 0  # that it looks at; without one there is no subject to be like
    identified: bool = False  # by the word that others learn


FREE = (
    Free(name=BASE, method={"name": ISOLATED}),
    Free(name="untrained word", method={"name": ISOLATED}, identified=True),
    Free(name="spectral", method={"name": "spectral"}),
    Free(name="sdsa", method={"name": "sdsa"}),
    Free(name="matched", method={"name": "matched"}),
    Free(name="reference, 1 photo", method={"name": "spectral"}, photos=1),
    Free(name="reference, 4 photos", method={"name": "spectral"}, photos=4),
)


@dataclass(frozen=True, kw_only=True)
class Course:
    """What all subjects have in common."""

    out: Path
    identifier: str  # a word that `mini` does not know
    at: tuple[int, ...]  # steps of training after which pictures are drawn, ascending
    class_pictures: int = 10
    steps: int = 10  # of drawing
    scheduler: str = "dpm++"
    guidance: float = MINI_DEFAULTS.guidance
    seed: int = 0
    device: str = "auto"
    training: Mapping[str, Any] = field(default_factory=dict)  # further fields of TrainConfig

    def folder(self, known: Known) -> Path:
        """Where all lies of a subject, drawn and trained with these settings and this `mini`."""
        settings = {name: value for name, value in vars(self).items() if name not in INDIFFERENT}
        text = json.dumps([digest_of(MINI_FOLDER), settings], sort_keys=True)
        return self.out / f"{known.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def run(self, known: Known, words: str, classes: int = 0, **changes: Any) -> RunConfig:
        """The run that draws a subject in its new scenes, and then so many of its class."""
        prompts = known.prompts(words) + (with_article(known.noun),) * classes
        given: dict[str, Any] = {
            "prompts": prompts,
            "seeds": spread_seeds((FIRST_SEED * (1 + known.number) + self.seed,), len(prompts)),
            "method": {"name": ISOLATED},
            "steps": self.steps,
            "guidance": self.guidance,
            "scheduler": self.scheduler,
            "device": self.device,
            **changes,
        }
        return RunConfig(**given)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one way came to for one subject."""

    name: str
    steps: int | None  # of training; None without
    subject: str  # name of the Known
    scores: Mapping[str, float]  # by the keys of KNOWN_SCORES
    costs: Mapping[str, float]  # seconds: "training", "class images", "picture"


def measure_free(way: Free, known: Known, course: Course, reader: Reader, model: Load) -> Entry:
    """Draws a subject without training, and reads the pictures; only BASE draws the class too.

    Args:
        way: How.
        known: The subject.
        course: The rest.
        reader: Of the pictures.
        model: As ``model_for`` of ``generate``.
    """
    words = f"{course.identifier} {known.noun}" if way.identified else known.noun
    classes = course.class_pictures if way.name == BASE else 0
    config = course.run(known, words, classes, method=way.method)
    if way.photos:
        photos = write_photos(known, course.folder(known) / "photos", known.noun)
        paths = sorted(photos.glob("*.png"))[: way.photos]
        config = with_references(config, paths, known.captions(known.noun)[: way.photos])
    folder = RunFolder(course.folder(known) / slug(way.name))
    generate(config, folder.path, model_for=model)
    return read(way.name, None, known, folder, reader)


def measure_learner(
    learner: Learner, known: Known, course: Course, reader: Reader, tell: Tell
) -> list[Entry]:
    """Trains on the photos of a subject, and draws with what is learned again and again.

    Args:
        learner: How.
        known: The subject.
        course: The rest.
        reader: Of the pictures.
        tell: Told what is done next.

    Raises:
        ConsistError: It cannot be trained, or a number of steps was passed without being drawn.
    """
    config = configure(learner, known, course)
    words = learner.words(course.identifier, known.noun)
    entries = []
    for steps in course.at:
        for way, fields in learner.drawings.items():
            name = f"{learner.name}, {way}" if way else learner.name
            folder = RunFolder(config.work_folder / slug(f"drawn-{steps:05d} {way}"))
            if not (folder.path / COSTS).exists():
                tell(f"{known.name}: {name}, {steps} steps")
                check_order(config, steps)
                finetune(replace(config, steps=steps))
                given = {**drawn_with(config), **fields, "batch_size": BATCH}
                if "lora_negative" in given:
                    given["lora_subject"] = (known.noun,)
                generate(course.run(known, words, course.class_pictures, **given), folder.path)
                text = json.dumps(costs_of(config))
                write_atomically(folder.path / COSTS, methodcaller("write", text.encode()))
            entries.append(read(name, steps, known, folder, reader))
    return entries


def configure(learner: Learner, known: Known, course: Course, **more: Any) -> TrainConfig:
    """The training of a learner on the photos of a subject, which are rendered."""
    words = learner.words(course.identifier, known.noun)
    photos = write_photos(known, course.folder(known) / f"photos-{slug(words)}", words)
    given = {
        "prompt": with_article(words),
        "class_prompt": with_article(known.noun),
        "steps": max(course.at),
        "seed": course.seed,
        "device": course.device,
        "checkpoint_every": max(course.at),
        **course.training,
        **more,
    }
    return learner.configure(photos, course.folder(known), known.noun, **given)


def check_order(config: TrainConfig, steps: int) -> None:
    """Makes sure that a training has not passed a number of steps.

    Raises:
        ConsistError: It has.
    """
    found = checkpoints(config.work_folder)
    taken = int(found[-1].stem.removeprefix("step-")) if found else 0
    if taken > steps:
        raise ConsistError(
            f"{config.work_folder} has taken {taken} steps, so {steps} cannot be drawn any more; "
            "leave that number out, or choose another --out"
        )


def costs_of(config: TrainConfig) -> dict[str, float]:
    """The seconds that a training took so far, and those of its class images."""
    record = json.loads((config.work_folder / "training.json").read_text(encoding="utf-8"))
    drawn = find_runs(class_root(config)) if config.prior == CLASS_IMAGES else []
    seconds = sum(run.read_record()["seconds"] for run in drawn)
    return {"training": record["seconds"], "class images": round(seconds, 3)}


def read(name: str, steps: int | None, known: Known, folder: RunFolder, reader: Reader) -> Entry:
    """What the pictures of a run tell: first the new scenes, then the class, if it is there."""
    count = len(known.scenes)
    record = folder.read_record()
    images = [folder.read_picture(index) for index in range(len(record["images"]))]
    readings = reader.read(images)
    scores = score_subject(known, readings[:count])
    originals = Originals([draw(photo).image for photo in known.photos])
    copied = [originals.nearest(image)[1] >= COPIED for image in images[:count]]
    scores["copies"] = sum(copied) / count
    if readings[count:]:
        scores |= score_class(known, readings[count:])
    path = folder.path / COSTS
    costs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    costs["picture"] = record["seconds"] / len(images)
    return Entry(name=name, steps=steps, subject=known.name, scores=scores, costs=costs)


def added_mib(config: TrainConfig) -> float:
    """The memory that a training adds at its peak over the loaded model, in a fresh process."""
    model = load_model(config, pick_device(config.device))
    return grown_mib(lambda: finetune(config, model_for=lambda config, device: model))


def slug(text: str) -> str:
    """Words as a folder's name."""
    return "-".join("".join(c if c.isalnum() else " " for c in text).split())
