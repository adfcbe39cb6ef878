"""The subjects and prompts that DreamBooth was measured on: Ruiz et al., arXiv:2208.12242.

The photos are a folder of the user's, laid out as google/dreambooth has it under ``dataset``. It
must not know models or scores.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from consist.errors import ConsistError
from consist.training.photos import Photo, listed, read_photos, read_text

log = logging.getLogger("consist")

INDEX = "prompts_and_classes.txt"  # beside the folders of photos
LIVE = ("cat", "dog")  # classes of the published subjects that are alive
# section 4.1 and dataset/prompts_and_classes.txt of google/dreambooth: 25 prompts for objects and
# 25 for what is alive; {} is identifier and class
SCENES = (
    *("a {} in the jungle", "a {} in the snow", "a {} on the beach"),
    *("a {} on a cobblestone street", "a {} on top of pink fabric"),
    *("a {} on top of a wooden floor", "a {} with a city in the background"),
    *("a {} with a mountain in the background", "a {} with a blue house in the background"),
    "a {} on top of a purple rug in a forest",
)
OBJECT_SCENES = (
    *("a {} with a wheat field in the background",),
    *("a {} with a tree and autumn leaves in the background",),
    *("a {} with the Eiffel Tower in the background", "a {} floating on top of water"),
    *("a {} floating in an ocean of milk",),
    *("a {} on top of green grass with sunflowers around it", "a {} on top of a mirror"),
    *("a {} on top of the sidewalk in a crowded street", "a {} on top of a dirt road"),
    "a {} on top of a white rug",
)
OUTFITS = (
    *("a {} wearing a red hat", "a {} wearing a santa hat", "a {} wearing a rainbow scarf"),
    *("a {} wearing a black top hat and a monocle", "a {} in a chef outfit"),
    *("a {} in a firefighter outfit", "a {} in a police outfit", "a {} wearing pink glasses"),
    *("a {} wearing a yellow shirt", "a {} in a purple wizard outfit"),
)
PROPERTIES = ("a red {}", "a purple {}", "a shiny {}", "a wet {}", "a cube shaped {}")
OBJECT_PROMPTS = (*SCENES, *OBJECT_SCENES, *PROPERTIES)
LIVE_PROMPTS = (*SCENES, *OUTFITS, *PROPERTIES)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a folder of photos shows."""

    name: str  # of the folder
    folder: Path
    noun: str  # its class, such as "stuffed animal"

    @property
    def prompts(self) -> tuple[str, ...]:
        """With {} for the subject: those for what is alive, or for objects."""
        return LIVE_PROMPTS if self.noun in LIVE else OBJECT_PROMPTS

    def photos(self, words: str = "") -> list[Photo]:
        """The photos, which the words name: "xyz dog" makes "a xyz dog".

        Raises:
            ConsistError: As ``read_photos``.
        """
        return read_photos(self.folder, f"a {words or self.noun}")


def load_subjects(folder: Path) -> list[Subject]:
    """The subjects of a folder that its ``prompts_and_classes.txt`` names, in that order.

    Args:
        folder: Has that file and a folder of photos for each subject, or a folder ``dataset`` has.

    Raises:
        ConsistError: There is no such file, it names no class, or none of its subjects is there.
    """
    place = folder / "dataset" if (folder / "dataset" / INDEX).is_file() else folder
    if not (place / INDEX).is_file():
        raise ConsistError(
            f"{folder} has no {INDEX}, with a line 'Classes' and then lines such as 'dog2,dog': "
            "each a folder of photos and its class"
        )
    named = dict(read_classes(place / INDEX))
    folders = {path.name for path in place.iterdir() if path.is_dir()}
    if absent := [name for name in named if name not in folders]:
        log.warning("%s: there are no photos of %s", place, listed(absent))
    if unnamed := sorted(folders - named.keys()):
        log.warning("%s: %s says no class of %s", place, INDEX, listed(unnamed))
    found = [
        Subject(name=name, folder=place / name, noun=noun)
        for name, noun in named.items()
        if name in folders
    ]
    if not found:
        raise ConsistError(f"{place} has no folder of photos that {INDEX} names")
    return found


def read_classes(path: Path) -> Iterator[tuple[str, str]]:
    """The names and classes of subjects: lines between "Classes" and "Prompts".

    Raises:
        ConsistError: A line there is no name and class, with a comma between.
    """
    inside = False
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.strip()
        if words in ("Classes", "Prompts"):
            inside = words == "Classes"
        elif inside and words and words != "subject_name,class":
            name, _, noun = (part.strip() for part in words.partition(","))
            if not name or not noun:
                raise ConsistError(f"{path}, line {number}: expected 'name,class', not {words:.60}")
            yield name, noun
