from dataclasses import dataclass

from consist.settings.fields import field_help


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
