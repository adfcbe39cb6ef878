"""Rare words: what tokenizers make of them, and which are found."""

import json

import pytest
from typer.testing import CliRunner

from consist.cli import app
from consist.errors import ConsistError
from consist.mini.architecture import build_tokenizer
from consist.training.rare_words import Tokenizers

COMMON = [
    "the cat in the moon and the dog on a beach with a red hat",
    "green bus under blue tree near paris forest snow garden kitchen",
] * 50
RARE = [*COMMON, "zwx qpl sks", "zwx qpl sks", "vbn", "vbn"]


@pytest.fixture(scope="module")
def real():
    """Tokenizers of a model whose captions are not known; the second lacks a word."""
    return Tokenizers((build_tokenizer(RARE), build_tokenizer(RARE[:-2])))


@pytest.fixture(scope="module")
def mini():
    return Tokenizers.load("mini")


def test_finds_the_rarest_words_that_are_one_token_in_all(real):
    found = real.find(4)
    places = [one.rank for one in found]
    assert places == sorted(places, reverse=True)
    assert places[-1] > 0.8 * len(real.ranks)
    assert "zwx" in {one.word for one in found}
    for one in found:
        for tokenizer, token in zip(real.parts, one.ids, strict=True):
            assert tokenizer(one.word).input_ids[1:-1] == [token]
    # whole in the first tokenizer alone
    assert "vbn" in {one.word for one in Tokenizers(real.parts[:1]).find(99)}
    assert "vbn" not in {one.word for one in real.find(99)}


def test_says_what_speaks_against_a_word(real):
    assert real.judge("zwx").doubts == ()
    assert real.judge("vbn").doubts == ("it is 3 tokens: v | b | n",)
    assert real.judge("vbn").ids == ()
    assert real.judge("the").doubts == (
        f"it is common: place {real.ranks['the</w>']} of {len(real.ranks)}",
    )
    (meaning,) = real.judge("sks").doubts
    assert "a rifle" in meaning
    assert real.judge("SKS").ids == real.judge("sks").ids
    assert "more than 3 letters" in real.judge("moon").doubts[0]


def test_words_of_mini_are_in_none_of_its_captions(mini):
    found = mini.find(10)
    assert len(found) == 10
    assert all(
        one.word.islower() and len(one.ids) == 1 and one.ids[0] not in mini.trained for one in found
    )
    assert mini.judge("cat").doubts == ("the model was trained on captions with it",)


def test_the_command_finds_and_judges(mini):
    run = CliRunner().invoke
    found = json.loads(run(app, ["train", "token", "--count", "3", "--json"]).output)
    assert [one["word"] for one in found] == [one.word for one in mini.find(3)]
    told = run(app, ["train", "token", "--count", "3"]).output
    assert all(one["word"] in told for one in found)
    assert "they mean nothing to it yet" in told
    assert "against it: the model was trained" in run(app, ["train", "token", "cat"]).output
    assert "nothing speaks against it" in run(app, ["train", "token", found[0]["word"]]).output


def test_bad_input_is_one_sentence(real, tmp_path):
    for word in ("", "two words", " sks"):
        with pytest.raises(ConsistError, match="an identifier is one word"):
            real.judge(word)
    with pytest.raises(ConsistError, match="at least 1, not 0"):
        real.find(0)
    with pytest.raises(ConsistError, match="no rare word of at most 3 letters"):
        Tokenizers((real.parts[0], build_tokenizer(["q"]))).find(3)
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(ConsistError, match="a file without a tokenizer"):
        Tokenizers.load(str(file))
    with pytest.raises(ConsistError, match="cannot be loaded"):
        Tokenizers.load(str(tmp_path / "none"))
