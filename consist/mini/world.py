"""The mini world: sampled identities, poses and places, the pictures of them, and their captions.

Identity is independent of pose and place, and most captions leave it out: so a prompt such as
"a cat in Paris" has many right answers, and consistency can be measured against the truth.
It must not know neural networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

from consist.mini.canvas import Canvas, Color, Frame
from consist.mini.scenes import SCENES, Brush
from consist.mini.subjects import (
    ACCESSORIES,
    BUILDS,
    COLORS,
    PATTERNS,
    SIZES,
    SUBJECTS,
    draw_accessory,
    paint_pattern,
)

SUPERSAMPLE = 2  # drawn this much larger, then averaged


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What stays the same when a subject goes elsewhere."""

    subject: str  # a key of SUBJECTS
    color: str  # a key of COLORS
    pattern: str  # one of PATTERNS
    pattern_color: str | None  # None for plain, never the main color
    feature: str  # one of SIZES: big ears, wheels, ...
    build: str  # a key of BUILDS
    accessory: str  # one of ACCESSORIES
    accessory_color: str | None  # None without accessory, never the main color


@dataclass(frozen=True, kw_only=True)
class Pose:
    """How and where a subject stands; says nothing about who it is."""

    x: float  # column of its middle, 0..1
    ground: float  # row that it stands on, 0..1
    height: float  # of the picture's, 0..1
    facing: int  # 1 or -1
    sway: float  # -1..1: head, tail and limbs


@dataclass(frozen=True, kw_only=True)
class Picture:
    """All that is needed to draw one picture again, exactly."""

    identity: Identity
    pose: Pose
    scene: str  # a key of SCENES
    scene_seed: int


@dataclass(frozen=True)
class _Look:
    coat: Color
    big: bool
    sway: float


def sample_identity(rng: Random, subject: str | None = None) -> Identity:
    """Draws an identity; every attribute is independent but for colors that must differ."""
    color, other, third = rng.sample(list(COLORS), 3)
    pattern = rng.choices(PATTERNS, (0.4, 0.3, 0.3))[0]
    accessory = rng.choices(ACCESSORIES, (0.34, 0.22, 0.22, 0.22))[0]
    return Identity(
        subject=subject or rng.choice(list(SUBJECTS)),
        color=color,
        pattern=pattern,
        pattern_color=None if pattern == "plain" else other,
        feature=rng.choice(SIZES),
        build=rng.choice(list(BUILDS)),
        accessory=accessory,
        accessory_color=None if accessory == "none" else rng.choice((other, third)),
    )


def sample_pose(rng: Random) -> Pose:
    """Draws a pose; size, place and facing vary so that copying pixels is not consistency."""
    return Pose(
        x=rng.uniform(0.34, 0.66),
        ground=rng.uniform(0.88, 0.98),
        height=rng.uniform(0.56, 0.76),
        facing=rng.choice((-1, 1)),
        sway=rng.uniform(-1, 1),
    )


def sample_picture(rng: Random) -> Picture:
    """Draws a whole picture."""
    return Picture(
        identity=sample_identity(rng),
        pose=sample_pose(rng),
        scene=rng.choice(list(SCENES)),
        scene_seed=rng.randrange(2**31),
    )


def draw(picture: Picture, size: int = 128) -> tuple[Image.Image, Image.Image]:
    """Draws a picture and the exact mask of its subject.

    Args:
        picture: What to draw; the same value gives the same pixels.
        size: Side of the square result in pixels.

    Returns:
        The picture (mode RGB) and the coverage of the subject (mode L, 0..255).
    """
    large = size * SUPERSAMPLE
    image = Image.new("RGB", (large, large))
    scene = SCENES[picture.scene]
    scene.paint(Brush(ImageDraw.Draw(image), large), Random(picture.scene_seed))
    subject = _draw_subject(picture.identity, picture.pose, large)
    image.paste(subject, mask=subject.getchannel("A"))
    return image.reduce(SUPERSAMPLE), subject.getchannel("A").reduce(SUPERSAMPLE)


def _draw_subject(identity: Identity, pose: Pose, size: int) -> Image.Image:
    frame = Frame(
        x=pose.x * size,
        ground=pose.ground * size,
        scale=pose.height * size / 100,
        facing=pose.facing,
        stretch=BUILDS[identity.build],
    )
    canvas = Canvas(size, frame)
    look = _Look(COLORS[identity.color], identity.feature == "big", pose.sway)
    fit = SUBJECTS[identity.subject].draw(canvas, look)
    if identity.pattern_color:
        paint_pattern(canvas, identity.pattern, COLORS[identity.pattern_color])
    if identity.accessory_color:
        draw_accessory(canvas, identity.accessory, COLORS[identity.accessory_color], fit)
    return canvas.image


UNNAMED = 0.42  # share of captions that leave identity out

# what a prompt may name, each with the share of the other captions that name it
NAMED = {"color": 0.8, "pattern": 0.6, "feature": 0.3, "build": 0.3, "accessory": 0.6}


def caption(picture: Picture, rng: Random) -> str:
    """Describes a picture in words; 42 % of captions name no attribute of identity."""
    named: set[str] = set()
    if rng.random() >= UNNAMED:
        named = {attribute for attribute, share in NAMED.items() if rng.random() < share}
    place = "" if rng.random() < 0.05 else f" {SCENES[picture.scene].phrase}"
    article = rng.choices(("a", "the"), (0.85, 0.15))[0]
    return f"{describe(picture.identity, named, article)}{place}"


def describe(identity: Identity, named: set[str], article: str = "a") -> str:
    """Words for the ``named`` attributes of an identity, such as "a red cat wearing a blue hat".

    Args:
        identity: Who is described.
        named: Any of "color", "pattern", "feature", "build", "accessory".
        article: The first word.
    """
    words = [article]
    if "build" in named:
        words.append(identity.build)
    if "pattern" in named and identity.pattern == "plain":
        words.append("plain")
    if "color" in named:
        words.append(identity.color)
    words.append(identity.subject)
    extras = []
    if "pattern" in named and identity.pattern_color:
        extras.append(f"{identity.pattern_color} {identity.pattern}")
    if "feature" in named:
        extras.append(f"{identity.feature} {SUBJECTS[identity.subject].feature}")
    if extras:
        words.append("with " + " and ".join(extras))
    if "accessory" in named and identity.accessory_color:
        article = "" if identity.accessory == "glasses" else "a "
        words.append(f"wearing {article}{identity.accessory_color} {identity.accessory}")
    return " ".join(words)


def vocabulary() -> dict[str, list[str]]:
    """All that captions speak of, by topic; mini has never seen any other word."""
    return {
        "subjects": list(SUBJECTS),
        "scenes": [scene.phrase for scene in SCENES.values()],
        "colors": list(COLORS),
        "patterns": list(PATTERNS),
        "builds": list(BUILDS),
        "features": [f"{size} {kind.feature}" for kind in SUBJECTS.values() for size in SIZES],
        "accessories": [accessory for accessory in ACCESSORIES if accessory != "none"],
        "grammar": ["a", "an", "the", "with", "and", "wearing"],
    }
