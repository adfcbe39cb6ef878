"""The mini world: exact, varied, and honest about what its captions leave out."""

from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from consist.mini.actions import ACTIONS
from consist.mini.styles import STYLES
from consist.mini.subjects import ACCESSORIES, COLORS, HAIRS, PATTERNS
from consist.mini.world import (
    GENEROUS,
    HELD_OUT,
    SCENES,
    SPARING,
    SUBJECTS,
    Figure,
    Identity,
    Picture,
    Pose,
    bare,
    caption,
    describe,
    draw,
    draw_details,
    resized,
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
    hair=None,
)
GIRL = replace(IDENTITY, subject="girl", hair="ginger")
POSE = Pose(x=0.5, ground=0.95, height=0.7, facing=1, sway=0.0)
EVERYTHING = {"color", "pattern", "feature", "build", "accessory", "hair"}


def pixels(picture):
    return np.asarray(draw(picture).image).astype(int)


def mask(picture, index=0):
    return np.asarray(draw(picture).masks[index])


def picture(identity=IDENTITY, pose=POSE, **changes):
    figures = (Figure(identity=identity, pose=pose),)
    return Picture(**{"figures": figures, "scene": "paris", "scene_seed": 1, **changes})


def of_class(subject):
    return replace(IDENTITY, subject=subject, hair="dark" if SUBJECTS[subject].person else None)


def test_is_big_enough():
    assert len(SUBJECTS) >= 18
    assert len(SCENES) >= 20
    assert len(STYLES) >= 3
    assert {"sitting", "sleeping", "jumping"} <= set(ACTIONS)
    assert sum(kind.person for kind in SUBJECTS.values()) >= 3
    assert {"bus", "box"} <= set(SUBJECTS)
    assert {"paris", "moon"} <= set(SCENES)


def test_a_picture_is_drawn_the_same_twice():
    assert np.array_equal(pixels(picture()), pixels(picture()))


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_mask_is_where_the_subject_is(subject):
    bare = replace(of_class(subject), color="white", pattern="plain", pattern_color=None)
    for scene in SCENES:
        drawn = draw(picture(of_class(subject), scene=scene))
        cover = np.asarray(drawn.masks[0])
        assert cover.shape == (128, 128), scene
        assert 0.05 < (cover > 127).mean() < 0.6, scene
        changed = (np.asarray(drawn.image) != pixels(picture(bare, scene=scene))).any(-1)
        assert changed[cover > 127].mean() > 0.2, scene
        assert not changed[cover == 0].any(), scene


CHANGES = {
    "color": "yellow",
    "pattern": "spots",
    "pattern_color": "white",
    "feature": "small",
    "build": "slim",
    "accessory": "scarf",
    "accessory_color": "purple",
}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_attribute_shows(subject):
    # a hat may hide ears and antennas, as hats do
    base = replace(of_class(subject), accessory="glasses")
    before = pixels(picture(base))
    for name, value in CHANGES.items():
        different = before != pixels(picture(replace(base, **{name: value})))
        assert different.any(-1).mean() > 0.003, name


@pytest.mark.parametrize("subject", [name for name, kind in SUBJECTS.items() if kind.person])
def test_hair_shows_on_people(subject):
    looks = [pixels(picture(replace(of_class(subject), hair=hair))) for hair in HAIRS]
    for i, one in enumerate(looks):
        for other in looks[:i]:
            assert (one != other).any(-1).mean() > 0.01


@pytest.mark.parametrize("style", STYLES)
def test_every_style_and_action_shows(style):
    seen = [pixels(picture(pose=replace(POSE, action=action), style=style)) for action in ACTIONS]
    assert len({image.tobytes() for image in seen}) == len(ACTIONS)
    if style != "flat":
        assert (seen[0] != pixels(picture())).any(-1).mean() > 0.2


def test_jumping_lifts_the_subject_off_the_ground():
    rows = [
        np.flatnonzero((mask(picture(pose=replace(POSE, action=action))) > 127).any(1)).max()
        for action in ("standing", "jumping")
    ]
    assert rows[1] < rows[0] - 10


def test_two_subjects_have_a_mask_each():
    left, right = replace(POSE, x=0.28, height=0.5), replace(POSE, x=0.74, height=0.5)
    figures = (Figure(identity=IDENTITY, pose=left), Figure(identity=GIRL, pose=right))
    one = picture(figures=figures)
    a, b = mask(one, 0) > 127, mask(one, 1) > 127
    assert not (a & b).any()
    assert a[:, :64].sum() > 0.9 * a.sum() > 0
    assert b[:, 64:].sum() > 0.9 * b.sum() > 0


def test_a_figure_in_front_takes_from_the_mask_behind():
    figures = (Figure(identity=IDENTITY, pose=POSE), Figure(identity=GIRL, pose=POSE))
    one = picture(figures=figures)
    assert not ((mask(one, 0) > 128) & (mask(one, 1) > 128)).any()
    assert (mask(one, 0) > 127).sum() < (mask(picture()) > 127).sum()


def test_the_pose_moves_the_subject_and_not_the_scene():
    moved = picture(pose=replace(POSE, x=0.4, facing=-1))
    outside = (mask(picture()) == 0) & (mask(moved) == 0)
    assert np.array_equal(pixels(picture())[outside], pixels(moved)[outside])
    assert not np.array_equal(pixels(picture()), pixels(moved))


def test_scenes_vary():
    for scene in SCENES:
        one, other = (pixels(picture(scene=scene, scene_seed=seed)) for seed in (1, 2))
        assert not np.array_equal(one, other), scene


def test_identities_are_consistent_and_spread_over_all_values():
    rng = Random(0)
    seen = Counter()
    for _ in range(4000):
        identity = sample_identity(rng)
        assert (identity.pattern_color is None) == (identity.pattern == "plain")
        assert (identity.accessory_color is None) == (identity.accessory == "none")
        assert identity.color not in (identity.pattern_color, identity.accessory_color)
        assert (identity.hair is None) != SUBJECTS[identity.subject].person
        seen.update((identity.color, identity.pattern, identity.accessory, identity.subject))
        seen.update({identity.hair} - {None})
    for value in (*COLORS, *PATTERNS, *ACCESSORIES, *SUBJECTS, *HAIRS):
        assert seen[value] > 120, value


def test_poses_keep_the_subject_in_the_picture():
    rng = Random(0)
    for _ in range(300):
        pose = sample_pose(rng)
        assert 0 < pose.ground - pose.height < pose.ground <= 1


def test_pairs_held_out_are_never_drawn_and_all_else_is():
    rng = Random(0)
    seen = Counter()
    for _ in range(20_000):
        one = sample_picture(rng)
        seen.update((figure.identity.subject, one.scene) for figure in one.figures)
    assert not HELD_OUT & set(seen)
    assert len(seen) == len(SUBJECTS) * len(SCENES) - len(HELD_OUT)


def test_every_kind_of_picture_is_drawn():
    rng = Random(0)
    pictures = [sample_picture(rng) for _ in range(1000)]
    assert {one.style for one in pictures} == set(STYLES)
    assert {figure.pose.action for one in pictures for figure in one.figures} == set(ACTIONS)
    pairs = [one for one in pictures if len(one.figures) == 2]
    assert 0.08 < len(pairs) / len(pictures) < 0.16
    for one in pairs:
        assert len({figure.identity.subject for figure in one.figures}) == 2


def details(picture):
    return np.asarray(draw_details(picture)) > 0


def test_details_are_where_patterns_accessories_and_features_are():
    plain = bare(IDENTITY)
    ears = details(picture(plain))
    assert ears.any()
    assert not ears[64:].any()  # a cat's ears are in the upper half
    np.testing.assert_array_equal(ears, details(picture(resized(plain))))
    hatted = replace(plain, accessory="hat", accessory_color="green")
    for dressed in (hatted, replace(plain, pattern="stripes", pattern_color="blue")):
        before, after = pixels(picture(plain)), pixels(picture(dressed))
        changed = np.abs(before - after).max(-1) > 60
        assert changed.any()
        assert details(picture(dressed))[changed].mean() > 0.95


def test_details_behind_another_figure_are_none():
    back, front = Figure(identity=GIRL, pose=POSE), Figure(identity=bare(IDENTITY), pose=POSE)
    both = picture(figures=(back, front))
    covered = mask(both, 1) == 255
    alone = details(picture(figures=(front,)))
    assert (details(both) & ~alone).sum() > 100  # of the girl, where she shows
    assert (details(both) == alone)[covered].mean() > 0.99  # edges are drawn at another size


def test_a_third_to_a_half_of_captions_name_no_attribute():
    rng = Random(0)
    attributes = {*COLORS, *PATTERNS, *HAIRS, "slim", "round", "big", "small", "wearing"}
    texts = [caption(sample_picture(rng), rng) for _ in range(3000)]
    share = sum(not attributes & set(text.split()) for text in texts) / len(texts)
    assert SPARING.nothing - 0.03 < share < 0.5
    assert share >= 0.3


def test_generous_captions_name_an_accessory_twice_as_often():
    rng = Random(0)
    pictures = [sample_picture(rng) for _ in range(3000)]
    shares = [
        sum("wearing" in caption(one, rng, naming) for one in pictures) / len(pictures)
        for naming in (SPARING, GENEROUS)
    ]
    assert shares[1] > 1.8 * shares[0] > 0


def test_captions_use_no_word_outside_the_vocabulary():
    known = {word for names in vocabulary().values() for name in names for word in name.split()}
    rng = Random(0)
    for _ in range(2000):
        assert set(caption(sample_picture(rng), rng).split()) <= known


def test_captions_name_both_of_a_pair_the_style_and_the_action():
    figures = (Figure(identity=IDENTITY, pose=POSE), Figure(identity=GIRL, pose=POSE))
    pair = picture(figures=figures, style="pixel")
    for seed in range(20):
        words = caption(pair, Random(seed)).split()
        assert words[:3] == ["pixel", "art", "of"]
        assert {"cat", "and", "girl"} <= set(words)
    jumping = picture(pose=replace(POSE, action="jumping"))
    assert "jumping" in caption(jumping, Random(0)).split()


def test_describes_what_is_named_and_no_more():
    assert describe(IDENTITY, set()) == "cat"
    assert describe(IDENTITY, {"color"}) == "red cat"
    assert describe(IDENTITY, EVERYTHING) == (
        "round red cat with blue stripes and big ears wearing a green hat"
    )
    assert describe(GIRL, EVERYTHING) == (
        "round ginger girl in red with blue stripes and long hair wearing a green hat"
    )
    orange = replace(IDENTITY, accessory_color="orange")
    assert describe(orange, {"accessory"}) == "cat wearing an orange hat"
    plain = replace(IDENTITY, pattern="plain", pattern_color=None, accessory="glasses")
    assert describe(plain, EVERYTHING) == "round plain red cat with big ears wearing green glasses"
