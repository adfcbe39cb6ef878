from dataclasses import dataclass

import pytest

from consist.errors import ConsistError
from consist.settings.fields import (
    Setting,
    check_settings,
    field_help,
    marked,
    setting,
    settings_of,
)


@dataclass
class Base:
    """A base.

    Args:
        width: In pixels,
            from 8.
        depth: Layers.

    Raises:
        ValueError: never: it is made up.
    """

    width: int = 8
    depth: int = 1


@dataclass
class Own(Base):
    """Its own.

    Args:
        depth: Floors.
        name: What it is called.
    """

    name: str = ""


def test_the_help_of_a_field_is_what_the_docstring_says():
    assert field_help(Base) == {"width": "In pixels, from 8.", "depth": "Layers."}


def test_a_subclass_has_the_fields_of_its_base_and_says_anew_what_differs():
    assert field_help(Own) == {
        "width": "In pixels, from 8.",
        "depth": "Floors.",
        "name": "What it is called.",
    }


def test_a_class_that_says_nothing_has_no_help():
    assert field_help(int) == {}


@dataclass(frozen=True, kw_only=True)
class Told:
    name: str = setting("red", choices=("red", "blue"), marks=("shown",))
    max_size: int | None = setting(None, least=8, most=512, panel="Size")
    seeds: tuple[int, ...] = setting((), least=0, most=9, marks=("shown", "late"))
    plain: float = -1.0

    def __post_init__(self):
        check_settings(self)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "bleu"}, "unknown name 'bleu', did you mean 'blue'? known: red, blue"),
        ({"max_size": 7}, "max size must be between 8 and 512, not 7"),
        ({"max_size": 513}, "max size must be between 8 and 512, not 513"),
        ({"max_size": float("nan")}, "max size must be between 8 and 512, not nan"),
        ({"seeds": (0, 10)}, "seed must be between 0 and 9, not 10"),
    ],
)
def test_what_a_field_may_not_be_is_one_sentence(changes, sentence):
    with pytest.raises(ConsistError) as caught:
        Told(**changes)
    assert str(caught.value) == sentence


def test_the_limits_themselves_and_nothing_are_allowed():
    for changes in ({"max_size": 8}, {"max_size": 512}, {"max_size": None}, {"plain": -1e9}):
        Told(**changes)


def test_lists_of_names_have_the_order_and_the_defaults_of_the_fields():
    assert list(marked(Told, "shown").items()) == [("name", "red"), ("seeds", ())]
    assert marked(Told, "late") == {"seeds": ()}
    assert marked(Told, "nothing") == {}


def test_a_field_without_a_setting_may_be_anything():
    assert settings_of(Told)["plain"] == Setting()
    assert settings_of(Told)["max_size"].panel == "Size"


def test_limits_are_told_where_they_are_for_somebody():
    assert Setting(least=0, most=1).limits == "From 0 to 1."
    assert Setting(least=1, most=10_000_000).limits == "At least 1."
    assert Setting(choices=("a", "b")).limits == "One of a, b."
    assert Setting().limits == ""


def test_a_field_without_a_default_must_be_given():
    @dataclass(frozen=True)
    class Bare:
        name: str = setting(choices=("red",))
        parts: tuple = setting(factory=tuple)

    assert Bare("red").parts == ()
    with pytest.raises(TypeError, match="name"):
        Bare()
