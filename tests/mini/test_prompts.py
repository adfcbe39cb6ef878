"""Prompts are read back as they are meant: everything stated is true, and nothing more is read."""

from random import Random

import pytest

from consist.mini.actions import ACTIONS
from consist.mini.prompts import Asked, AskedSubject, asked, imagine, imagine_identity
from consist.mini.scenes import SCENES
from consist.mini.styles import STYLES
from consist.mini.subjects import SUBJECTS
from consist.mini.world import SPARING, caption, describe, sample_identity, sample_picture


def stated(identity, named):
    """The attributes that ``describe`` puts into words."""
    truth = vars(identity)
    names = [name for name in named if name != "pattern"]
    if "pattern" in named:
        names += ["pattern", "pattern_color"]
    if "accessory" in named:
        names += ["accessory", "accessory_color"]
    words = {name: truth[name] for name in names if truth[name] is not None}
    return {name: value for name, value in words.items() if value != "none"}


@pytest.mark.slow
def test_a_description_is_read_in_full_and_nothing_more():
    rng = Random(0)
    for _ in range(3000):
        identity = sample_identity(rng)
        named = [name for name in SPARING.alone if rng.random() < 0.5]
        (subject,) = asked(describe(identity, named)).subjects
        assert subject.subject == identity.subject
        assert subject.attributes == stated(identity, named), describe(identity, named)


def test_captions_are_read_back():
    rng = Random(1)
    for _ in range(3000):
        picture = sample_picture(rng)
        text = caption(picture, rng)
        wish = asked(text)
        action = picture.figures[0].pose.action
        assert wish.style == picture.style
        assert wish.scene == (picture.scene if SCENES[picture.scene].phrase in text else None)
        assert wish.action == (action if ACTIONS[action].word else None)
        identities = {figure.identity.subject: figure.identity for figure in picture.figures}
        assert len(wish.subjects) == len(picture.figures)
        for subject in wish.subjects:
            truth = vars(identities[subject.subject])
            assert subject.attributes.items() <= truth.items(), text
            # said again, it is a part of the caption: nothing was overlooked
            words = describe(identities[subject.subject], subject.attributes)
            assert f"{words} " in f"{text} ", text


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A CAT in Paris", Asked((AskedSubject("cat", {}),), None, "paris", "flat")),
        (
            "the red, very fluffy dog sleeping on the beach at noon",
            Asked((AskedSubject("dog", {"color": "red"}),), "sleeping", "beach", "flat"),
        ),
        (
            "a girl in red and a slim blue robot in a city at night",
            Asked(
                (
                    AskedSubject("girl", {"color": "red"}),
                    AskedSubject("robot", {"color": "blue", "build": "slim"}),
                ),
                None,
                "city",
                "flat",
            ),
        ),
        (
            "a pencil drawing of a plain cat wearing a blue hat and a white dog",
            Asked(
                (
                    AskedSubject(
                        "cat", {"pattern": "plain", "accessory": "hat", "accessory_color": "blue"}
                    ),
                    AskedSubject("dog", {"color": "white"}),
                ),
                None,
                None,
                "pencil",
            ),
        ),
        ("a photo of a unicorn", Asked((), None, None, "flat")),
        ("", Asked((), None, None, "flat")),
    ],
)
def test_is_read_as_a_person_means_it(prompt, expected):
    assert asked(prompt) == expected


def test_hair_is_for_those_who_have_some():
    assert asked("a ginger cat").subjects[0].attributes == {}
    assert asked("a ginger boy").subjects[0].attributes == {"hair": "ginger"}


def test_an_imagined_picture_shows_what_is_asked():
    rng = Random(2)
    for _ in range(1000):
        wish = asked(caption(sample_picture(rng), rng))
        picture = imagine(wish, rng)
        assert picture.style == wish.style
        assert wish.scene in (None, picture.scene)
        for subject, figure in zip(wish.subjects, picture.figures, strict=True):
            truth = vars(figure.identity)
            assert subject.attributes.items() <= truth.items()
            assert truth["subject"] == subject.subject
            assert figure.pose.action == (wish.action or "standing")


def test_what_is_left_open_varies():
    rng = Random(3)
    seen = [imagine_identity(AskedSubject("girl", {"color": "red"}), rng) for _ in range(200)]
    assert {identity.color for identity in seen} == {"red"}
    assert len({identity.pattern_color for identity in seen}) == 8  # all but red, and none
    assert len({identity.hair for identity in seen}) == 4
    for identity in seen:
        assert (identity.pattern == "plain") == (identity.pattern_color is None)
        assert (identity.accessory == "none") == (identity.accessory_color is None)


def test_refuses_to_imagine_a_crowd():
    with pytest.raises(ValueError, match="3 subjects are asked for; allowed: 1 or 2"):
        imagine(asked("a cat and a dog and a bus"), Random(0))


def test_every_style_is_known_by_its_prefix():
    for name, style in STYLES.items():
        assert asked(f"{style.prefix}a {next(iter(SUBJECTS))}").style == name
