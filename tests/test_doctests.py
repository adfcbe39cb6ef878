"""Examples in docstrings do what they say; modules without one are not imported for it."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def modules_with_examples():
    for path in sorted((ROOT / "consist").rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_examples_are_true(name):
    found = doctest.testmod(import_module(name), extraglobs={"torch": torch})
    assert found.attempted > 0
    assert found.failed == 0, "see what was printed"
