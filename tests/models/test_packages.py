import importlib.metadata

import pytest

from consist.errors import ConsistError
from consist.models import packages


@pytest.fixture(autouse=True)
def _forget():
    packages.check_adapters.cache_clear()
    yield
    packages.check_adapters.cache_clear()


def pretend(monkeypatch, **versions):
    real = importlib.metadata.version
    monkeypatch.setattr(packages, "version", lambda name: versions.get(name) or real(name))


def test_what_is_installed_here_goes_together():
    assert packages.conflicts() == []


def test_a_package_beyond_what_was_tried_is_named_with_what_to_install(monkeypatch):
    pretend(monkeypatch, transformers="99.0")
    (sentence,) = packages.conflicts()
    assert sentence.startswith("consist ")
    assert "transformers 99.0 do not go together: consist needs transformers" in sentence
    assert "pip install 'transformers" in sentence


def test_transformers_that_needs_another_peft_is_said(monkeypatch):
    pretend(monkeypatch, transformers="99.0")
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "98.0")
    sentence = next(text for text in packages.conflicts() if "peft" in text)
    # the one that is beyond what was tried is the one to change
    assert "transformers 99.0 and peft" in sentence
    assert "transformers needs peft>=98.0; pip install 'transformers<" in sentence


def test_a_peft_that_is_too_old_is_what_to_install(monkeypatch):
    pretend(monkeypatch, peft="0.20.0")
    monkeypatch.setattr("diffusers.utils.constants.MIN_PEFT_VERSION", "0.21.0")
    assert any(
        "diffusers needs peft>=0.21.0; pip install 'peft>=0.21.0'" in text
        for text in packages.conflicts()
    )


def test_a_neighbor_for_another_torch_is_said(monkeypatch):
    real = packages.requires
    asked = {"torchvision": ["torch==1.0", "numpy"]}
    monkeypatch.setattr(packages, "requires", lambda name: asked.get(name) or real(name))
    pretend(monkeypatch, torchvision="0.1")
    (sentence,) = packages.conflicts()
    assert "torchvision needs torch==1.0" in sentence


def test_the_first_adapter_refuses_what_diffusers_refuses(monkeypatch):
    monkeypatch.setattr("diffusers.utils.constants.MIN_PEFT_VERSION", "98.0")
    with pytest.raises(ConsistError, match=r"diffusers needs peft>=98\.0; pip install"):
        packages.check_adapters()


def test_the_first_adapter_warns_of_what_transformers_refuses(monkeypatch, caplog):
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "98.0")
    packages.check_adapters()
    packages.check_adapters()
    assert [record.message.count("transformers needs peft>=98.0") for record in caplog.records] == [
        1
    ]
