"""Judges pictures of the mini world by what its reader reads off them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from random import Random
from typing import Any, Protocol, TypeAlias

import numpy as np
from PIL import Image, ImageFilter

from consist.evaluation.crops import Pixels, background, masked_crop, masked_histogram
from consist.evaluation.encoders import Encoder
from consist.evaluation.judges.judge import Row, RowScores
from consist.evaluation.metrics import (
    Features,
    Masks,
    agreement,
    aligned_overlap,
    displacement,
    mask_overlap,
    mean_pairwise_cosine,
)
from consist.mini.prompts import Asked, AskedSubject, asked, imagine_identity
from consist.mini.reader import Reading, SubjectReading
from consist.mini.subjects import SUBJECTS
from consist.mini.world import draw, sample_picture

SURE = 0.8  # calibrated probability from which a reading counts as sure
DILATION = 3  # pixels around a subject that are removed with it
GRAY = 128  # what takes its place
REFERENCES = 96  # drawn pictures whose mean features are the center of background similarity
CROPS = 40  # of them for crops, which are slower to embed
IMAGINED = 100  # identities whose agreement is chance


class PictureReader(Protocol):
    """What is asked of ``consist.mini.reader.Reader``."""

    @property
    def digest(self) -> str:
        """Tells its weights from others."""

    def read(self, images: Sequence[Image.Image]) -> list[Reading]:
        """One reading per picture."""

    def features(self, images: Sequence[Image.Image]) -> Features:
        """What pictures are compared by as a whole, ``(n d)``."""


@dataclass(frozen=True)
class Shown:
    """One picture: what was asked of it, and what it shows."""

    pixels: Pixels
    wish: Asked
    reading: Reading
    found: tuple[SubjectReading | None, ...]  # for each subject asked for


@dataclass(frozen=True)
class Sighting:
    """A subject that was asked for, and found."""

    pixels: Pixels
    wish: AskedSubject
    reading: SubjectReading


Track: TypeAlias = list[Sighting]  # the same subject in several pictures


@dataclass(frozen=True)
class ReadingJudge:
    """Compares what the reader reads with what was asked, and the pictures with each other.

    What is said of a subject counts only where its class is right; scores of two subjects are
    averaged.
    """

    reader: PictureReader
    crop: Encoder | None = None  # an independent check of identity

    def score(self, row: Row) -> RowScores:
        """Measures one row."""
        shown = [
            show(image, asked(prompt), reading)
            for image, prompt, reading in zip(
                row.images, row.prompts, self.reader.read(row.images), strict=True
            )
        ]
        tracks = follow(shown)
        scores = {
            **score_identity(tracks),
            **score_fidelity(shown),
            "other_scene": other_scenes(shown),
            "background": self._background_similarity(shown),
            **score_layout(tracks),
            "histogram": mean_known(_histogram_similarity(track) for track in tracks),
        }
        if self.crop:
            scores["crop"] = mean_known(self._crop_similarity(track, self.crop) for track in tracks)
        return RowScores(scores, [describe(one.reading) for one in shown])

    def choices(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The reader, the constants, and the identity agreement that unrelated subjects reach."""
        return {
            "reader": {"weights": self.reader.digest, "version": version("consist"), "sure": SURE},
            "background": {"dilation_px": DILATION, "gray": GRAY, "centered_by": REFERENCES},
            "crop": {**self.crop.choices(), "centered_by": CROPS} if self.crop else "left out",
            "chance": {"identity": chance([asked(prompt) for prompt in prompts])},
        }

    def _background_similarity(self, shown: Sequence[Shown]) -> float:
        empty = [
            remove([subject.mask for subject in one.reading.subjects], one.pixels) for one in shown
        ]
        return mean_pairwise_cosine(self.reader.features(empty), self._background_center)

    def _crop_similarity(self, track: Track, encoder: Encoder) -> float:
        crops = [masked_crop(one.pixels, one.reading.mask, GRAY) for one in track]
        images = [Image.fromarray(crop) for crop in crops if crop is not None]
        if len(images) < 2:
            return math.nan
        return mean_pairwise_cosine(encoder.embed_images(images), self._crop_center)

    @cached_property
    def _background_center(self) -> Features:
        empty = [remove(masks, pixels) for pixels, masks in reference_pictures(REFERENCES)]
        center: Features = self.reader.features(empty).mean(0)
        return center

    @cached_property
    def _crop_center(self) -> Features:
        assert self.crop
        crops = [
            masked_crop(pixels, masks[-1], GRAY) for pixels, masks in reference_pictures(CROPS)
        ]
        images = [Image.fromarray(crop) for crop in crops if crop is not None]
        center: Features = self.crop.embed_images(images).mean(0)
        return center


def reference_pictures(count: int) -> list[tuple[Pixels, list[Masks]]]:
    """Always the same pictures of the world, with the mask of each of their subjects."""
    rng = Random(0)
    drawings = [draw(sample_picture(rng)) for _ in range(count)]
    return [
        (np.asarray(drawing.image), [np.asarray(mask) > 127 for mask in drawing.masks])
        for drawing in drawings
    ]


def remove(masks: Sequence[Masks], pixels: Pixels) -> Image.Image:
    """The picture with its subjects, and a rim around them, replaced by gray."""
    covered = np.zeros(pixels.shape[:2], dtype=bool)
    for mask in masks:
        covered |= mask
    grown = Image.fromarray(covered).convert("L").filter(ImageFilter.MaxFilter(2 * DILATION + 1))
    return Image.fromarray(background(pixels, np.asarray(grown) > 0, GRAY))


# what was asked and what is there


def show(image: Image.Image, wish: Asked, reading: Reading) -> Shown:
    """Finds every subject that was asked for by its class; none is found twice."""
    left = list(reading.subjects)
    found: list[SubjectReading | None] = []
    for subject in wish.subjects:
        places = [i for i, one in enumerate(left) if one.subject.name == subject.subject]
        found.append(left.pop(places[0]) if places else None)
    return Shown(np.asarray(image), wish, reading, tuple(found))


def follow(shown: Sequence[Shown]) -> list[Track]:
    """The subjects of a set, each with the pictures in which it was found.

    Two of one class are told apart by their order in the prompts.
    """
    tracks: dict[tuple[str, int], Track] = {}
    for one in shown:
        names = [subject.subject for subject in one.wish.subjects]
        for i, (wish, reading) in enumerate(zip(one.wish.subjects, one.found, strict=True)):
            track = tracks.setdefault((wish.subject, names[:i].count(wish.subject)), [])
            if reading:
                track.append(Sighting(one.pixels, wish, reading))
    return list(tracks.values())


def identity_of(reading: SubjectReading, sure: float = 0.0) -> dict[str, str | None]:
    """The attributes that tell a subject from others of its class.

    Args:
        reading: Of the subject.
        sure: Readings below this confidence are unknown.

    Returns:
        Attribute to value; None where it does not apply, or is unknown.
    """
    values = {name: value for name, value in reading.attributes.items() if name != "action"}
    applies = {
        "pattern_color": values["pattern"].name != "plain",
        "accessory_color": values["accessory"].name != "none",
        "hair": SUBJECTS[reading.subject.name].person,
    }
    return {
        name: value.name
        if applies.get(name, True)
        and value.confidence >= sure
        and (value.name != "none" or name == "accessory")
        else None
        for name, value in values.items()
    }


def describe(reading: Reading) -> dict[str, Any]:
    """A reading as JSON takes it; attributes that do not apply are left out."""
    return {
        "scene": reading.scene.name,
        "style": reading.style.name,
        "subjects": [_describe_subject(subject) for subject in reading.subjects],
        "confidence": {
            "scene": round(reading.scene.confidence, 3),
            "style": round(reading.style.confidence, 3),
        },
    }


def _describe_subject(reading: SubjectReading) -> dict[str, Any]:
    known = {name: value for name, value in identity_of(reading).items() if value is not None}
    known["action"] = reading.attributes["action"].name
    sure = {name: round(reading.attributes[name].confidence, 3) for name in known}
    return {
        "subject": reading.subject.name,
        "area": round(float(reading.mask.mean()), 4),
        "attributes": known,
        "confidence": {"subject": round(reading.subject.confidence, 3), **sure},
    }


# scores of a set


def score_identity(tracks: Sequence[Track]) -> dict[str, float]:
    """Agreement over all attributes of identity, and over those that the reader is sure of."""
    return {
        "identity": mean_known(agreement(identities(track)) for track in tracks),
        "identity_sure": mean_known(agreement(identities(track, SURE)) for track in tracks),
    }


def identities(track: Track, sure: float = 0.0) -> list[dict[str, str | None]]:
    """Who a subject is in each picture, without what the prompts want to differ."""
    varied = contradicted([one.wish for one in track])
    return [
        {name: v for name, v in identity_of(one.reading, sure).items() if name not in varied}
        for one in track
    ]


def contradicted(wishes: Sequence[AskedSubject]) -> set[str]:
    """The attributes that prompts name in different values."""
    said = {(name, value) for wish in wishes for name, value in wish.attributes.items()}
    names = [name for name, _ in said]
    return {name for name in names if names.count(name) > 1}


def score_fidelity(shown: Sequence[Shown]) -> dict[str, float]:
    """What was asked for and is there; only prompts that ask for it count."""
    return {
        "subject": mean_known(None not in one.found for one in shown if one.found),
        "scene": mean_known(
            one.reading.scene.name == one.wish.scene for one in shown if one.wish.scene
        ),
        "style": mean_known(one.reading.style.name == one.wish.style for one in shown),
        "action": mean_known(
            any(s and s.attributes["action"].name == one.wish.action for s in one.found)
            for one in shown
            if one.wish.action
        ),
        "attributes": mean_known(
            reading is not None and reading.attributes[name].name == value
            for one in shown
            for wish, reading in zip(one.wish.subjects, one.found, strict=True)
            for name, value in wish.attributes.items()
        ),
    }


def other_scenes(shown: Sequence[Shown]) -> float:
    """The share of pictures that show the scene of another prompt instead of their own."""
    wanted = {one.wish.scene for one in shown}
    return mean_known(
        one.reading.scene.name in wanted - {one.wish.scene} for one in shown if one.wish.scene
    )


def score_layout(tracks: Sequence[Track]) -> dict[str, float]:
    """How alike place, size and pose are; copied pictures show here."""
    measures: dict[str, Callable[[Masks], float]] = {
        "overlap": mask_overlap,
        "aligned_overlap": aligned_overlap,
        "displacement": displacement,
    }
    masks = [np.stack([one.reading.mask for one in track]) for track in tracks if track]
    return {name: mean_known(measure(one) for one in masks) for name, measure in measures.items()}


def _histogram_similarity(track: Track) -> float:
    counts = [masked_histogram(one.pixels, one.reading.mask) for one in track]
    return mean_pairwise_cosine(np.stack(counts)) if counts else math.nan


# chance


def chance(wishes: Sequence[Asked]) -> float:
    """The identity agreement to expect of unrelated subjects that the prompts describe alike.

    Measured on identities as the world samples them; the mean over the subjects of a set.
    """
    subjects: dict[str, list[AskedSubject]] = {}
    for wish in wishes:
        for subject in wish.subjects:
            subjects.setdefault(subject.subject, []).append(subject)
    return mean_known(
        _chance(name, tuple(sorted(_common(asking).items())), frozenset(contradicted(asking)))
        for name, asking in subjects.items()
    )


def _common(wishes: Sequence[AskedSubject]) -> Mapping[str, str]:
    """The attributes that all prompts name alike."""
    first, *others = (wish.attributes.items() for wish in wishes)
    return dict(item for item in first if all(item in other for other in others))


@lru_cache(maxsize=1024)
def _chance(subject: str, named: tuple[tuple[str, str], ...], varied: frozenset[str]) -> float:
    rng, wish = Random(0), AskedSubject(subject, dict(named))
    drawn = [vars(imagine_identity(wish, rng)) for _ in range(IMAGINED)]
    skipped = {"subject", *varied}
    return agreement([{k: v for k, v in one.items() if k not in skipped} for one in drawn])


def mean_known(values: Iterable[float]) -> float:
    """The mean of the numbers that are known; NaN without one."""
    known = [float(value) for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
