"""The mini world: sampled identities, poses and places, the pictures of them, and their captions.

Identity is independent of pose and place, and most captions leave it out: so a prompt such as
"a cat in Paris" has many right answers, and consistency can be measured against the truth.
It must not know neural networks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from random import Random

from PIL import Image, ImageChops, ImageDraw

from consist.mini.actions import ACTIONS, draw_prop
from consist.mini.canvas import Canvas, Color, Frame
from consist.mini.scenes import SCENES, Brush
from consist.mini.styles import STYLES
from consist.mini.subjects import (
    ACCESSORIES,
    BUILDS,
    COLORS,
    HAIRS,
    PATTERNS,
    SIZES,
    SUBJECTS,
    draw_accessory,
    paint_pattern,
)

SUPERSAMPLE = 2  # drawn this much larger, then averaged
VISIBLE = 24  # of 255: a smaller difference of colors is none

# pairs of subject and scene that no training picture shows, to test what is new
HELD_OUT = frozenset(
    {
        ("cat", "library"),
        ("dog", "ship"),
        ("robot", "beach"),
        ("girl", "volcano"),
        ("bus", "forest"),
        ("penguin", "desert"),
        ("wizard", "kitchen"),
        ("elephant", "city"),
        ("teapot", "snow"),
        ("lion", "bedroom"),
    }
)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What stays the same when a subject goes elsewhere."""

    subject: str  # a key of SUBJECTS
    color: str  # a key of COLORS: of fur, paint or clothes
    pattern: str  # one of PATTERNS
    pattern_color: str | None  # None for plain, never the main color
    feature: str  # one of SIZES: big ears, wheels, ...
    build: str  # a key of BUILDS
    accessory: str  # one of ACCESSORIES
    accessory_color: str | None  # None without accessory, never the main color
    hair: str | None  # a key of HAIRS for people, else None


@dataclass(frozen=True, kw_only=True)
class Pose:
    """How and where a subject stands; says nothing about who it is."""

    x: float  # column of its middle, 0..1
    ground: float  # row that it stands on, 0..1
    height: float  # of the picture's, 0..1
    facing: int  # 1 or -1
    sway: float  # -1..1: head, tail and limbs
    action: str = "standing"  # a key of ACTIONS


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A subject in its pose."""

    identity: Identity
    pose: Pose


@dataclass(frozen=True, kw_only=True)
class Picture:
    """All that is needed to draw one picture again, exactly."""

    figures: tuple[Figure, ...]  # one or two, back to front
    scene: str  # a key of SCENES
    scene_seed: int
    style: str = "flat"  # a key of STYLES


@dataclass(frozen=True)
class Drawing:
    """The pixels of a picture (mode RGB) and, per figure, those it covers (mode L, 0..255)."""

    image: Image.Image
    masks: tuple[Image.Image, ...]


@dataclass(frozen=True)
class _Look:
    coat: Color
    big: bool
    hair: str
    sway: float
    asleep: bool


def sample_identity(rng: Random, subject: str | None = None) -> Identity:
    """Draws an identity; every attribute is independent but for colors that must differ."""
    subject = subject or rng.choice(list(SUBJECTS))
    color, other, third = rng.sample(list(COLORS), 3)
    pattern = rng.choices(PATTERNS, (0.4, 0.3, 0.3))[0]
    accessory = rng.choices(ACCESSORIES, (0.34, 0.22, 0.22, 0.22))[0]
    return Identity(
        subject=subject,
        color=color,
        pattern=pattern,
        pattern_color=None if pattern == "plain" else other,
        feature=rng.choice(SIZES),
        build=rng.choice(list(BUILDS)),
        accessory=accessory,
        accessory_color=None if accessory == "none" else rng.choice((other, third)),
        hair=rng.choice(list(HAIRS)) if SUBJECTS[subject].person else None,
    )


def sample_pose(rng: Random) -> Pose:
    """Draws a pose; size, place and facing vary so that copying pixels is not consistency."""
    return Pose(
        x=rng.uniform(0.32, 0.68),
        ground=rng.uniform(0.88, 0.98),
        height=rng.uniform(0.52, 0.76),
        facing=rng.choice((-1, 1)),
        sway=rng.uniform(-1, 1),
        action=rng.choices(list(ACTIONS), ACTION_SHARES)[0],
    )


ACTION_SHARES = (0.6, 0.1, 0.1, 0.1, 0.1)
STYLE_SHARES = (0.7, 0.15, 0.15)
PAIRS = 0.12  # share of pictures with two subjects


def sample_picture(rng: Random) -> Picture:
    """Draws a whole picture, of any pairs but those held out."""
    subjects = rng.sample(list(SUBJECTS), 2 if rng.random() < PAIRS else 1)
    figures = [Figure(identity=sample_identity(rng, s), pose=sample_pose(rng)) for s in subjects]
    if len(figures) == 2:
        figures = [beside(figure, side, rng) for figure, side in zip(figures, (0, 1), strict=True)]
    scenes = [scene for scene in SCENES if all((s, scene) not in HELD_OUT for s in subjects)]
    return Picture(
        figures=tuple(rng.sample(figures, len(figures))),
        scene=rng.choice(scenes),
        scene_seed=rng.randrange(2**31),
        style=rng.choices(list(STYLES), STYLE_SHARES)[0],
    )


def beside(figure: Figure, side: int, rng: Random) -> Figure:
    """Moves a figure to the left (0) or right (1), with room for another on the other side."""
    x, height = rng.uniform(0.24, 0.3) + 0.46 * side, rng.uniform(0.42, 0.54)
    return replace(figure, pose=replace(figure.pose, x=x, height=height, action="standing"))


def draw(picture: Picture, size: int = 128) -> Drawing:
    """Draws a picture and the exact masks of its subjects.

    Args:
        picture: What to draw; the same value gives the same pixels.
        size: Side of the square result in pixels.
    """
    large = size * SUPERSAMPLE
    image = Image.new("RGB", (large, large))
    scene = SCENES[picture.scene]
    scene.paint(Brush(ImageDraw.Draw(image), large), Random(picture.scene_seed))
    masks: list[Image.Image] = []
    for figure in picture.figures:
        prop, subject = _draw_prop(figure, large), _draw_subject(figure, large)
        for layer in (prop, subject):
            image.paste(layer, mask=layer.getchannel("A"))
            masks = [ImageChops.subtract(mask, layer.getchannel("A")) for mask in masks]
        masks.append(subject.getchannel("A"))
    rendered = STYLES[picture.style].render(image.reduce(SUPERSAMPLE))
    return Drawing(rendered, tuple(mask.reduce(SUPERSAMPLE) for mask in masks))


def draw_details(picture: Picture, size: int = 128) -> Image.Image:
    """Where a picture shows what else than class and color its subjects are known by.

    That is where it would change if they had no pattern and no accessory, or a feature of the
    other size.

    Args:
        picture: As for ``draw``.
        size: Side of the square result in pixels.

    Returns:
        Mode L: 255 there, else 0.
    """
    found = Image.new("L", (size, size))
    for figure in picture.figures:
        layer = _draw_subject(figure, size)
        found = ImageChops.subtract(found, layer.getchannel("A"))
        for identity in (bare(figure.identity), resized(figure.identity)):
            other = _draw_subject(replace(figure, identity=identity), size)
            for channel in ImageChops.difference(layer, other).split():
                found = ImageChops.lighter(found, channel.point(lambda v: 255 * (v > VISIBLE)))
    return found


def bare(identity: Identity) -> Identity:
    """The same without pattern and accessory."""
    return replace(
        identity, pattern="plain", pattern_color=None, accessory="none", accessory_color=None
    )


def resized(identity: Identity) -> Identity:
    """The same with a feature of the other size."""
    return replace(identity, feature=next(size for size in SIZES if size != identity.feature))


def _frame(figure: Figure, size: int, lift: float = 0.0) -> Frame:
    pose, scale = figure.pose, figure.pose.height * size / 100
    return Frame(
        x=pose.x * size,
        ground=pose.ground * size - lift * scale,
        scale=scale,
        facing=pose.facing,
        stretch=BUILDS[figure.identity.build],
    )


def _draw_prop(figure: Figure, size: int) -> Image.Image:
    canvas = Canvas(size, _frame(figure, size))
    draw_prop(canvas, figure.pose.action)
    return canvas.image


def _draw_subject(figure: Figure, size: int) -> Image.Image:
    identity, action = figure.identity, ACTIONS[figure.pose.action]
    canvas = Canvas(size, _frame(figure, size, action.lift))
    look = _Look(
        coat=COLORS[identity.color],
        big=identity.feature == "big",
        hair=identity.hair or next(iter(HAIRS)),
        sway=figure.pose.sway,
        asleep=action.asleep,
    )
    fit = SUBJECTS[identity.subject].draw(canvas, look)
    if identity.pattern_color:
        paint_pattern(canvas, identity.pattern, COLORS[identity.pattern_color])
    if identity.accessory_color:
        color = COLORS[identity.accessory_color]
        draw_accessory(canvas, identity.accessory, color, fit, action.asleep)
    if action.lean:
        canvas.tilt(action.lean)
    return canvas.image


@dataclass(frozen=True, kw_only=True)
class Naming:
    """How often captions name the attributes of identity."""

    nothing: float  # share of captions that leave identity out
    # each attribute that a caption may name, with the share of the others that name it
    alone: Mapping[str, float]
    in_pairs: Mapping[str, float]


# as prompts are written
SPARING = Naming(
    nothing=0.42,
    alone={
        "color": 0.8,
        "pattern": 0.6,
        "feature": 0.3,
        "build": 0.3,
        "accessory": 0.6,
        "hair": 0.6,
    },
    in_pairs={"color": 0.8, "accessory": 0.4},
)
# as captions teach: many more name an accessory or a feature
GENEROUS = Naming(
    nothing=0.15,
    alone={
        "color": 0.7,
        "pattern": 0.85,
        "feature": 0.7,
        "build": 0.6,
        "accessory": 0.9,
        "hair": 0.85,
    },
    in_pairs={"color": 0.85, "accessory": 0.6},
)


def caption(picture: Picture, rng: Random, naming: Naming = SPARING) -> str:
    """Describes a picture in words, of which ``naming`` says how many are about identity."""
    shares: Mapping[str, float] = {}
    if rng.random() >= naming.nothing:
        shares = naming.alone if len(picture.figures) == 1 else naming.in_pairs
    article = rng.choices(("a", "the"), (0.85, 0.15))[0]
    figures = [
        describe(figure.identity, {name for name, share in shares.items() if rng.random() < share})
        for figure in picture.figures
    ]
    nouns = " and ".join(with_article(noun, article) for noun in rng.sample(figures, len(figures)))
    action = ACTIONS[picture.figures[0].pose.action].word
    place = "" if rng.random() < 0.05 else SCENES[picture.scene].phrase
    text = " ".join(part for part in (nouns, action, place) if part)
    return STYLES[picture.style].prefix + text


def with_article(noun: str, article: str = "a") -> str:
    """Puts "the", or the right one of "a" and "an", before a noun.

    >>> with_article("orange cat"), with_article("cat", "the")
    ('an orange cat', 'the cat')
    """
    return f"{'an' if article == 'a' and noun[0] in 'aeiou' else article} {noun}"


def describe(identity: Identity, named: Collection[str]) -> str:
    """Words for the ``named`` attributes of an identity, such as "red cat wearing a blue hat".

    Args:
        identity: Who is described.
        named: Any keys of ``Naming.alone``; hair is skipped for those who have none.
    """
    kind = SUBJECTS[identity.subject]
    words = []
    if "build" in named:
        words.append(identity.build)
    if "pattern" in named and identity.pattern == "plain":
        words.append("plain")
    if "hair" in named and identity.hair:
        words.append(identity.hair)
    if "color" in named and not kind.person:
        words.append(identity.color)
    words.append(identity.subject)
    if "color" in named and kind.person:
        words.append(f"in {identity.color}")
    extras = []
    if "pattern" in named and identity.pattern_color:
        extras.append(f"{identity.pattern_color} {identity.pattern}")
    if "feature" in named:
        extras.append(kind.describe(identity.feature))
    if extras:
        words.append("with " + " and ".join(extras))
    if "accessory" in named and identity.accessory_color:
        worn = f"{identity.accessory_color} {identity.accessory}"
        words.append(f"wearing {worn if identity.accessory == 'glasses' else with_article(worn)}")
    return " ".join(words)


def vocabulary() -> dict[str, list[str]]:
    """All that captions speak of, by topic; mini has never seen any other word."""
    return {
        "subjects": list(SUBJECTS),
        "scenes": [scene.phrase for scene in SCENES.values()],
        "styles": [style.prefix.strip() for style in STYLES.values() if style.prefix],
        "actions": [action.word for action in ACTIONS.values() if action.word],
        "colors": list(COLORS),
        "patterns": list(PATTERNS),
        "builds": list(BUILDS),
        "hair": list(HAIRS),
        "features": sorted({k.describe(size) for k in SUBJECTS.values() for size in SIZES}),
        "accessories": [accessory for accessory in ACCESSORIES if accessory != "none"],
        "grammar": ["a", "an", "the", "with", "and", "in", "wearing"],
    }
