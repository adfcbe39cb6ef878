"""Makes the benchmark of the mini world: sets of prompts about one subject in several scenes.

python scripts/make_mini_sets.py [OUT]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from consist.mini.actions import ACTIONS
from consist.mini.scenes import SCENES
from consist.mini.styles import STYLES
from consist.mini.subjects import COLORS, SUBJECTS
from consist.mini.world import HELD_OUT, SPARING, describe, sample_identity, with_article

OUT = Path(__file__).parent.parent / "consist" / "runs" / "many" / "benchmarks" / "mini-sets.yaml"
HEAD = """\
# Made by scripts/make_mini_sets.py. The format is that of ConsiStory+, with a seed and tags:
# a prompt is style, subject and one of the settings; the category is a tag too.
"""
LENGTHS = (4, 5, 6)  # prompts of a set
INANIMATE = ("robot", "bus", "box", "teapot", "clock")
LOOKALIKES = 6  # sets of the same class and color


@dataclass(frozen=True)
class Entry:
    """One set as it is written."""

    subject: str
    settings: list[str]
    tags: list[str]
    style: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", default=OUT)
    args = parser.parse_args()
    args.out.write_text(write(make(Random(0))), encoding="utf-8")


def make(rng: Random) -> dict[str, list[Entry]]:
    """All sets by category."""
    return {
        "free": [entry(rng, [name]) for name in SUBJECTS for _ in range(4)],
        "named": list(named(rng, 30)),
        "colliding": list(colliding(rng)),
        "held-out": list(held_out(rng)),
        "action": list(acting(rng, 24)),
        "style": list(styled(rng, 20)),
        "pair": [entry(rng, rng.sample(list(SUBJECTS), 2)) for _ in range(24)],
    }


def entry(rng: Random, names: list[str], subject: str | None = None, style: str = "") -> Entry:
    """A set of these subjects, in scenes of which none is held out."""
    settings = [SCENES[scene].phrase for scene in pick_scenes(rng, names)]
    return Entry(subject or " and ".join(map(with_article, names)), settings, kinds(names), style)


def named(rng: Random, count: int) -> Iterator[Entry]:
    """Sets whose prompts all say who the subject is."""
    for name in cycle(rng, count):
        yield entry(rng, [name], with_article(describe(sample_identity(rng, name), SPARING.alone)))


def colliding(rng: Random) -> Iterator[Entry]:
    """Sets that share class and color, so that color alone does not tell them apart."""
    for name, color in zip(("cat", "dog", "bus", "robot", "girl"), COLORS, strict=False):
        words = f"{name} in {color}" if SUBJECTS[name].person else f"{color} {name}"
        for _ in range(LOOKALIKES):
            yield entry(rng, [name], with_article(words))


def held_out(rng: Random) -> Iterator[Entry]:
    """Sets with a subject in a scene that training never showed it in, three for each pair."""
    for name, scene in sorted(HELD_OUT):
        for _ in range(3):
            scenes = [*pick_scenes(rng, [name])[:-1], scene]
            settings = [SCENES[place].phrase for place in rng.sample(scenes, len(scenes))]
            yield Entry(with_article(name), settings, kinds([name]))


def acting(rng: Random, count: int) -> Iterator[Entry]:
    """Sets in which the subject does something else in every picture, as far as that goes."""
    for name in cycle(rng, count):
        plain = entry(rng, [name])
        words = rng.sample([action.word for action in ACTIONS.values()], len(ACTIONS))
        words += rng.sample(words, len(words))
        settings = [
            f"{word} {place}".strip() for word, place in zip(words, plain.settings, strict=False)
        ]
        yield Entry(plain.subject, settings, plain.tags)


def styled(rng: Random, count: int) -> Iterator[Entry]:
    """Sets that are drawn in a style."""
    styles = [style.prefix.strip() for style in STYLES.values() if style.prefix]
    for number, name in enumerate(cycle(rng, count)):
        yield entry(rng, [name], style=styles[number % len(styles)])


def cycle(rng: Random, count: int) -> list[str]:
    """So many classes, each about as often."""
    names = [name for _ in range(count) for name in rng.sample(list(SUBJECTS), len(SUBJECTS))]
    return names[:count]


def pick_scenes(rng: Random, names: list[str]) -> list[str]:
    """Different scenes, none of them held out for one of the subjects."""
    allowed = [scene for scene in SCENES if all((name, scene) not in HELD_OUT for name in names)]
    return rng.sample(allowed, rng.choice(LENGTHS))


def kinds(names: list[str]) -> list[str]:
    """What the subjects are, as tags."""
    tags = {
        "people": any(SUBJECTS[name].person for name in names),
        "inanimate": any(name in INANIMATE for name in names),
    }
    return [tag for tag, fits in tags.items() if fits]


def write(categories: dict[str, list[Entry]]) -> str:
    """The sets as YAML that a person can read; every set starts from noise of its own."""
    lines, seed = [HEAD], 1000
    for category, entries in categories.items():
        lines.append(f"{category}:\n")
        for one in entries:
            lines.append(f"- subject: {one.subject}\n  settings: [{', '.join(one.settings)}]\n")
            lines.append(f"  seed: {seed}\n")
            lines.append(f"  style: {one.style}\n" if one.style else "")
            lines.append(f"  tags: [{', '.join(one.tags)}]\n" if one.tags else "")
            seed += 10
    return "".join(lines)


if __name__ == "__main__":
    main()
