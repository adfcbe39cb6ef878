"""Subjects of the mini world that are known in full: photos of them, and what pictures tell.

Photos are renders, so what was learned is compared with the truth. It must not know trainings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from operator import methodcaller
from pathlib import Path
from random import Random

from consist.evaluation.judges.by_reader import PictureReader, identity_of, mean_known
from consist.evaluation.metrics import agreement
from consist.evaluation.scores import Score
from consist.files import write_atomically
from consist.mini.reader import Reading
from consist.mini.scenes import SCENES
from consist.mini.world import (
    HELD_OUT,
    Figure,
    Identity,
    Picture,
    draw,
    sample_identity,
    sample_pose,
    with_article,
)
from consist.training.mini.autoencoder import picture
from consist.training.mini.session import Recipe

PHOTOS, DRAWN = 4, 4  # photos of a subject, and scenes that it is drawn in: all different
SHOWN = 0.8  # of the identity's attributes, to count as this very subject
UNRELATED = 400  # identities whose agreement is chance

# of the pictures of the subject, then of those of its class
KNOWN_SCORES = {
    "identity": Score("identity", "attributes that agree with the subject of the photos", 1),
    "within": Score("identity in the set", "attributes that agree between pictures of a set", 1),
    "scene": Score("scene fidelity", "share of pictures that show the prompt's scene", 1),
    "subject": Score("class fidelity", "share of pictures that show the class", 1),
    "copies": Score("copies", "share of pictures that are copies of a photo", -1),
    "diversity": Score("class diversity", "attributes that differ between pictures of a class", 1),
    "shown": Score("class is subject", "share of class pictures that show the subject", -1),
    "class_identity": Score(
        "class identity", "attributes of class pictures that agree with the subject", -1
    ),
    "class_subject": Score("class kept", "share of class pictures that show the class", 1),
}


@dataclass(frozen=True, kw_only=True)
class Known:
    """A subject, photos of it, and scenes that no photo shows."""

    number: int
    identity: Identity
    photos: tuple[Picture, ...]
    scenes: tuple[str, ...]  # keys of SCENES; the first was held out from `mini` with this class

    @property
    def name(self) -> str:
        """Fit for a folder."""
        return f"{self.number}-{self.identity.subject}"

    @property
    def noun(self) -> str:
        """Its class."""
        return self.identity.subject

    @property
    def truth(self) -> dict[str, str | None]:
        """The attributes of the identity; None where one does not apply."""
        return {name: value for name, value in vars(self.identity).items() if name != "subject"}

    def prompts(self, words: str) -> tuple[str, ...]:
        """The new scenes with what the words name, such as "xyz cat"."""
        return tuple(f"{with_article(words)} {SCENES[scene].phrase}" for scene in self.scenes)

    def captions(self, words: str) -> tuple[str, ...]:
        """What the photos show."""
        return tuple(f"{with_article(words)} {SCENES[photo.scene].phrase}" for photo in self.photos)


def make_known(count: int, seed: int = 0) -> list[Known]:
    """Subjects of different classes, of which `mini` has seen no picture.

    Args:
        count: The first ones of as many as there may be: number i does not depend on the count.
        seed: Others for another.
    """
    pairs = sorted(HELD_OUT)
    return [_make_known(number, *pairs[number % len(pairs)], seed) for number in range(count)]


def _make_known(number: int, subject: str, held_out: str, seed: int) -> Known:
    rng = Random(f"known-{seed}-{number}")
    identity = sample_identity(rng, subject)
    while identity in seen_identities():
        identity = sample_identity(rng, subject)
    others = rng.sample([scene for scene in SCENES if scene != held_out], PHOTOS + DRAWN - 1)
    photos = tuple(
        Picture(
            figures=(Figure(identity=identity, pose=sample_pose(rng)),),
            scene=scene,
            scene_seed=rng.randrange(2**31),
        )
        for scene in others[:PHOTOS]
    )
    return Known(
        number=number, identity=identity, photos=photos, scenes=(held_out, *others[PHOTOS:])
    )


@cache
def seen_identities() -> frozenset[Identity]:
    """All that are in the pictures that `mini` is trained on."""
    pictures = map(picture, range(Recipe().pictures))
    return frozenset(figure.identity for one in pictures for figure in one.figures)


def write_photos(known: Known, folder: Path, words: str) -> Path:
    """Renders the photos that are not there, with captions beside them, and gives the folder."""
    for number, (photo, caption) in enumerate(
        zip(known.photos, known.captions(words), strict=True)
    ):
        path = folder / f"{number}.png"
        text = path.with_suffix(".txt")
        if not text.exists() or not path.exists():
            image = draw(photo).image
            write_atomically(path, partial(image.save, format="PNG"))
            write_atomically(text, methodcaller("write", caption.encode()))
    return folder


def score_subject(known: Known, readings: Sequence[Reading]) -> dict[str, float]:
    """How well pictures of the new scenes show the subject.

    What is said of identity counts only where the class is right, as in
    ``consist.evaluation.judges``.

    Args:
        known: The subject.
        readings: One for each of its scenes, in their order.

    Returns:
        By the keys of ``KNOWN_SCORES``; NaN where there is nothing to measure.
    """
    found = find_class(known, readings)
    scenes = zip(readings, known.scenes, strict=True)
    return {
        "identity": mean_known(agreement([known.truth, one]) for one in found),
        "within": agreement(found),
        "scene": mean_known(reading.scene.name == scene for reading, scene in scenes),
        "subject": len(found) / len(readings),
    }


def score_class(known: Known, readings: Sequence[Reading]) -> dict[str, float]:
    """What became of the class: language drift (Ruiz et al., arXiv:2208.12242, section 3.3).

    Args:
        known: The subject that was learned.
        readings: Of pictures whose prompt names the class and nothing else.

    Returns:
        As ``score_subject``.
    """
    found = find_class(known, readings)
    agreements = [agreement([known.truth, one]) for one in found]
    return {
        "diversity": 1 - agreement(found),
        "shown": mean_known(share >= SHOWN for share in agreements),
        "class_identity": mean_known(agreements),
        "class_subject": len(found) / len(readings),
    }


def reached_by_photos(known: Known, reader: PictureReader) -> float:
    """The identity that is read off the photos themselves: the most that can be reached."""
    readings = reader.read([draw(photo).image for photo in known.photos])
    return mean_known(agreement([known.truth, one]) for one in find_class(known, readings))


def find_class(known: Known, readings: Sequence[Reading]) -> list[Mapping[str, str | None]]:
    """The attributes of the first figure of the class in each picture that shows one."""
    figures = (
        next((s for s in reading.subjects if s.subject.name == known.identity.subject), None)
        for reading in readings
    )
    return [identity_of(figure) for figure in figures if figure]


def chance_of(known: Known) -> dict[str, float]:
    """What subjects of the class reach that have nothing to do with this one."""
    rng = Random(0)
    others = (sample_identity(rng, known.identity.subject) for _ in range(UNRELATED))
    agreements = [agreement([known.truth, vars(other)]) for other in others]
    return {
        "identity": mean_known(agreements),
        "shown": mean_known(share >= SHOWN for share in agreements),
    }
