"""Packs: ready prompts about a subject, which a LoRA knows by name."""

import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from consist.cli import app
from consist.errors import ConsistError
from consist.models.tensor_files import write_tensors
from consist.prompts.packs import PACKS, load_pack, noun_of
from consist.runs.preparing import warn_of_new_words

NAMES = ("accessories", "art", "property", "recontext", "views")


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def lora(tmp_path):
    """A file that has a LoRA's header, and none of its weights."""
    write_tensors(tmp_path / "cat.safetensors", {"w": torch.zeros(1)}, {"prompt": "a xyz cat"})
    return "cat.safetensors"


def run(*arguments):
    return CliRunner().invoke(app, ["batch", *map(str, arguments)])


def planned(*arguments):
    result = run(*arguments, "--dry-run")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", PACKS)
def test_every_prompt_of_every_pack_names_the_subject_once(name):
    prompts = load_pack(name, "a xyz cat")
    assert len(set(prompts)) == len(prompts) >= 8
    for prompt in prompts:
        assert prompt.count("xyz cat") == 1
        assert "a a " not in prompt
        assert "{" not in prompt


@pytest.mark.parametrize("name", NAMES)
def test_mini_is_asked_only_for_what_it_knows(name, caplog):
    with caplog.at_level(logging.WARNING, "consist"):
        warn_of_new_words(load_pack(name, "a cat", "mini"))
    assert not caplog.records
    assert load_pack(name, "a cat", "mini") == load_pack(f"mini-{name}", "a cat")
    assert load_pack(name, "a cat") != load_pack(name, "a cat", "mini")


def test_a_subject_is_put_in_with_and_without_its_article():
    Path("own.yaml").write_text("- '{subject} asleep'\n- a blue {noun}\n")
    assert load_pack("own.yaml", " an old dog ") == ("an old dog asleep", "a blue old dog")
    assert load_pack("own.yaml", "Tom") == ("Tom asleep", "a blue Tom")
    assert noun_of("The Tower") == "Tower"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("- a cat\n", "prompt 1 of pack own.yaml has neither {subject} nor {noun} in it"),
        ("subject: a cat\n", "must be a list of texts"),
        ("[]\n", "must be a list of texts, and not empty"),
        ("- 3\n", "must be a list of texts"),
        ("- 'a\n", "cannot be read"),
    ],
)
def test_other_files_are_refused(content, sentence):
    Path("own.yaml").write_text(content)
    with pytest.raises(ConsistError) as refused:
        load_pack("own.yaml", "a cat")
    assert sentence in str(refused.value)


def test_unknown_packs_and_empty_subjects_are_refused():
    with pytest.raises(ConsistError, match=r"unknown pack 'arts', did you mean 'art'.*\.yaml file"):
        load_pack("arts", "a cat")
    for subject in ("", " a "):
        with pytest.raises(ConsistError, match="a subject is words such as 'a xyz cat'"):
            load_pack("art", subject)


def test_the_subject_comes_from_the_lora_or_from_its_option(lora):
    by_lora = planned("--pack", "views", "--lora", f"{lora}:0.8")
    assert tuple(by_lora["prompts"]) == load_pack("mini-views", "a xyz cat")
    assert by_lora["method"] == {"name": "matched"}
    named = planned("a dog", "--pack", "views", "--pack", "art", "--subject", "a dog")
    expected = load_pack("mini-views", "a dog") + load_pack("mini-art", "a dog")
    assert tuple(named["prompts"]) == ("a dog", *expected)
    real = planned("--pack", "art", "--subject", "a dog", "--model", "some/sdxl")
    assert "Rembrandt" in real["prompts"][1]


def test_methods_that_look_for_the_subject_are_told_its_noun(lora):
    config = planned("--pack", "property", "--lora", lora, "--method", "sdsa")
    assert config["method"]["subject"] == ["xyz cat"]
    assert all("xyz cat" in prompt for prompt in config["prompts"])


def test_what_a_lora_learned_is_named_by_its_file_or_an_option(lora):
    steered = ("--lora", lora, "--lora-negative", 0)
    config = planned("a xyz cat in Paris", *steered)
    assert config["lora_subject"] == ["xyz cat"]
    assert config["method"] == {"name": "matched"}
    assert planned("a cat in Paris", "a cat asleep", *steered)["lora_subject"] == []
    config = planned("a cat in Paris", *steered, "--subject", "cat")
    assert config["lora_subject"] == ["cat"]
    assert config["method"] == {"name": "matched"}
    config = planned("a cat in Paris", *steered, "--subject", "cat", "--method", "sdsa")
    assert config["lora_subject"] == config["method"]["subject"] == ["cat"]
    config = planned("--pack", "views", *steered)
    assert config["lora_subject"] == ["xyz cat"]
    assert planned("a xyz cat in Paris", "--lora", lora)["lora_subject"] == []


def test_a_pack_without_a_subject_is_one_sentence(lora, tmp_path):
    write_tensors(tmp_path / "mute.safetensors", {"w": torch.zeros(1)}, {})
    Path("sets.yaml").write_text("animals:\n- {subject: a cat, settings: [asleep]}\n")
    for options, sentence in (
        ((), "a pack needs words for its subject, and there is no LoRA to say so; give --subject"),
        (("--lora", "mute.safetensors"), "and no LoRA says what it was trained on; give --subject"),
        (("--lora", "none.safetensors"), "there is no file none.safetensors"),
        (("--subject", "a cat", "--subject", "a dog"), "a pack is about one --subject, not 2"),
        (("--like", "tom"), "--pack goes without --like"),
        (("--file", "sets.yaml"), "--pack goes without a file of sets"),
    ):
        result = run("--pack", "art", *options)
        assert result.exit_code == 2, options
        assert sentence in result.stderr
        assert "\n" not in result.stderr.strip()


@pytest.mark.slow
def test_a_pack_is_drawn_in_batches_and_shown_in_one_picture():
    small = ("--steps", 1, "--size", 32, "--anchors", 1, "--batch-size", 3, "--out", "run")
    result = run("--pack", "property", "--subject", "a cat", *small)
    assert result.exit_code == 0, result.output
    prompts = load_pack("mini-property", "a cat")
    for index, prompt in enumerate(prompts):
        with Image.open(Path("run", f"{index:03d}.png")) as image:
            assert image.text["prompt"] == prompt
    with Image.open("run/grid.png") as grid:
        # ten pictures do not stand in one row
        assert grid.width < 192 * len(prompts)
        assert grid.height > 2 * 192
