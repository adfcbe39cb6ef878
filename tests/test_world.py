"""The mini world: exact, varied, and honest about what its captions leave out."""

from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from consist.mini.subjects import ACCESSORIES, COLORS, PATTERNS
from consist.mini.world import (
    SCENES,
    SUBJECTS,
    UNNAMED,
    Identity,
    Picture,
    Pose,
    caption,
    describe,
    draw,
    sample_identity,
    sample_picture,
    sample_pose,
    vocabulary,
)

IDENTITY = Identity(
    subject="cat",
    color="red",
    pattern="stripes",
    pattern_color="blue",
    feature="big",
    build="round",
    accessory="hat",
    accessory_color="green",
)
POSE = Pose(x=0.5, ground=0.95, height=0.7, facing=1, sway=0.0)
EVERYTHING = {"color", "pattern", "feature", "build", "accessory"}


def pixels(picture):
    return np.asarray(draw(picture)[0]).astype(int)


def picture(**changes):
    return Picture(
        **{"identity": IDENTITY, "pose": POSE, "scene": "paris", "scene_seed": 1, **changes}
    )


def test_is_big_enough():
    assert len(SUBJECTS) >= 10
    assert len(SCENES) >= 12
    assert {"bus", "box"} <= set(SUBJECTS)
    assert {"paris", "moon"} <= set(SCENES)


def test_a_picture_is_drawn_the_same_twice():
    assert np.array_equal(pixels(picture()), pixels(picture()))


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("scene", SCENES)
def test_the_mask_is_where_the_subject_is(subject, scene):
    one = picture(identity=replace(IDENTITY, subject=subject), scene=scene)
    other = replace(
        one, identity=replace(one.identity, color="white", pattern="plain", pattern_color=None)
    )
    mask = np.asarray(draw(one)[1])
    assert mask.shape == (128, 128)
    assert 0.05 < (mask > 127).mean() < 0.6
    changed = (pixels(one) != pixels(other)).any(-1)
    assert changed[mask > 127].mean() > 0.2
    assert not changed[mask == 0].any()


@pytest.mark.parametrize(
    "change",
    [
        {"color": "yellow"},
        {"pattern": "spots"},
        {"pattern_color": "white"},
        {"feature": "small"},
        {"build": "slim"},
        {"accessory": "scarf"},
        {"accessory_color": "purple"},
    ],
)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_attribute_shows(subject, change):
    # a hat may hide ears and antennas, as hats do
    base = replace(IDENTITY, subject=subject, accessory="glasses")
    different = pixels(picture(identity=base)) != pixels(picture(identity=replace(base, **change)))
    assert different.any(-1).mean() > 0.003


def test_the_pose_moves_the_subject_and_not_the_scene():
    moved = picture(pose=replace(POSE, x=0.4, facing=-1))
    outside = (np.asarray(draw(picture())[1]) == 0) & (np.asarray(draw(moved)[1]) == 0)
    assert np.array_equal(pixels(picture())[outside], pixels(moved)[outside])
    assert not np.array_equal(pixels(picture()), pixels(moved))


@pytest.mark.parametrize("scene", SCENES)
def test_scenes_vary(scene):
    assert not np.array_equal(
        pixels(picture(scene=scene)), pixels(picture(scene=scene, scene_seed=2))
    )


def test_identities_are_consistent_and_spread_over_all_values():
    rng = Random(0)
    seen = Counter()
    for _ in range(3000):
        identity = sample_identity(rng)
        assert (identity.pattern_color is None) == (identity.pattern == "plain")
        assert (identity.accessory_color is None) == (identity.accessory == "none")
        assert identity.color not in (identity.pattern_color, identity.accessory_color)
        seen.update((identity.color, identity.pattern, identity.accessory, identity.subject))
    for value in (*COLORS, *PATTERNS, *ACCESSORIES, *SUBJECTS):
        assert seen[value] > 200, value


def test_poses_keep_the_subject_in_the_picture():
    rng = Random(0)
    for _ in range(300):
        pose = sample_pose(rng)
        assert 0 < pose.ground - pose.height < pose.ground <= 1


def test_a_third_to_a_half_of_captions_name_no_attribute():
    rng = Random(0)
    attributes = {*COLORS, *PATTERNS, "slim", "round", "big", "small", "wearing"}
    texts = [caption(sample_picture(rng), rng) for _ in range(3000)]
    share = sum(not attributes & set(text.split()) for text in texts) / len(texts)
    assert UNNAMED - 0.03 < share < 0.5
    assert share >= 0.3


def test_captions_use_no_word_outside_the_vocabulary():
    known = {word for names in vocabulary().values() for name in names for word in name.split()}
    rng = Random(0)
    for _ in range(2000):
        assert set(caption(sample_picture(rng), rng).split()) <= known


def test_describes_what_is_named_and_no_more():
    assert describe(IDENTITY, set()) == "a cat"
    assert describe(IDENTITY, {"color"}) == "a red cat"
    assert describe(IDENTITY, EVERYTHING) == (
        "a round red cat with blue stripes and big ears wearing a green hat"
    )
    plain = replace(IDENTITY, pattern="plain", pattern_color=None, accessory="glasses")
    assert (
        describe(plain, EVERYTHING) == "a round plain red cat with big ears wearing green glasses"
    )
