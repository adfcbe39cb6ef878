"""Subjects by name: the same pictures from a small file, in another folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pictures import largest_difference
from typer.testing import CliRunner

from consist.cli import app
from consist.errors import ConsistError
from consist.methods import spell_out
from consist.runs.config import RunConfig
from consist.runs.drawing import generate
from consist.runs.extending import check_weights_of, extend, redo, take_subject
from consist.runs.subject import Subject, cache_path, list_subjects, subject_path

PROMPTS = ("a cat in Paris", "a cat on the moon")


def asked(**changes):
    given = {"prompts": PROMPTS, "seeds": (0, 1), "steps": 2, "width": 64, "height": 64}
    return RunConfig(**{**given, **changes})


RECIPE = asked(method={"name": "matched", "anchors": 2})


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CONSIST_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home" / "subjects"


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_for):
    config = asked(compare=True, batch_size=2)
    return generate(config, tmp_path_factory.mktemp("subject") / "run", model_for=model_for)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# the recipe


def test_a_subject_draws_the_same_as_its_run_would(run, tmp_path, model_for):
    take_subject(run.path).save("tom")
    scene = Subject.load("tom").scenes(("a cat on a beach", "a cat in a forest"))
    found = generate(scene, tmp_path / "found", model_for=model_for)
    expected = generate(asked(), tmp_path / "run", model_for=model_for)
    extend(expected.path, scene.prompts, batch_size=4, model_for=model_for)
    for index in range(2):
        pair = found.read_picture(index), expected.read_picture(2 + index)
        assert largest_difference(*pair) == 0
    # an ordinary run, whose anchors are not among its pictures
    assert [image["seed"] for image in found.read_record()["images"]] == [2, 3]
    assert not found.picture_path(2).exists()


def test_the_recipe_is_all_that_the_subject_depends_on(run):
    subject = take_subject(run.path)
    method = json.loads(json.dumps(spell_out(RECIPE.method)))
    assert subject.config == RunConfig(**{**vars(RECIPE), "method": method, "guidance": 4.0})
    assert subject.versions == run.read_record()["versions"]


@pytest.mark.slow
def test_the_recipe_survives_a_redo(run, tmp_path, model_for):
    other = generate(asked(), tmp_path / "other", model_for=model_for)
    redo(other.path, 0, seed=9, model_for=model_for)
    assert take_subject(other.path) == take_subject(run.path)


def test_a_picture_like_an_anchor_is_that_anchor(run, tmp_path, model_for):
    scene = take_subject(run.path).scenes((PROMPTS[1], "a cat on a beach"), (1, 5))
    found = generate(scene, tmp_path / "found", model_for=model_for)
    assert largest_difference(found.read_picture(0), run.read_picture(1)) == 0


def test_a_run_of_a_subject_compares_and_extends(run, tmp_path, model_for):
    scene = take_subject(run.path).scenes(("a cat on a beach",))
    scene = RunConfig(**{**vars(scene), "compare": True})
    found = generate(scene, tmp_path / "found", model_for=model_for)
    alone = asked(prompts=scene.prompts, seeds=scene.seeds, method={"name": "isolated"})
    alone = generate(alone, tmp_path / "alone", model_for=model_for)
    assert largest_difference(found.read_picture(0, "isolated"), alone.read_picture(0)) == 0
    extend(found.path, ["a cat in a forest"], model_for=model_for)
    assert found.read_config().seeds == (2, 3)
    assert found.read_config().anchor_seeds == (0, 1)


def test_models_and_loras_are_found_from_anywhere(run, tmp_path):
    Path("weights").mkdir()
    Path("style.safetensors").write_bytes(b"")
    record = run.read_record()
    record["config"] |= {"model": "weights", "loras": ["style.safetensors:0.5", "gone.safetensors"]}
    other = type(run)(tmp_path / "other")
    other.write_record(record)
    config = take_subject(other.path).config
    assert config.model == str(tmp_path / "weights")
    assert config.loras == (f"{tmp_path}/style.safetensors:0.5", "gone.safetensors:1.0")


def test_other_weights_are_refused(run):
    subject = take_subject(run.path)
    check_weights_of(subject)
    changed = Subject(config=subject.config, versions={**subject.versions, "mini": "0" * 12})
    with pytest.raises(ConsistError, match="was drawn with other weights of mini"):
        check_weights_of(changed)


# the file


def test_a_subject_is_read_back(home):
    subject = Subject(config=RECIPE, versions={"torch": "2"})
    assert subject.save("tom") == home / "tom.json"
    assert Subject.load("tom") == subject
    assert list_subjects() == ["tom"]
    subject.save("elsewhere.json")
    assert Subject.load("elsewhere.json") == subject
    assert list_subjects() == ["tom"]


def test_nothing_is_overwritten_unless_forced():
    first = Subject(config=RECIPE)
    second = Subject(config=RECIPE, versions={"torch": "3"})
    first.save("tom")
    with pytest.raises(ConsistError, match="there is a subject 'tom' already; --force overwrites"):
        second.save("tom")
    assert Subject.load("tom") == first
    second.save("tom", force=True)
    assert Subject.load("tom") == second


def test_what_the_anchors_of_another_subject_share_is_not_kept():
    subject = Subject(config=RECIPE)
    subject.save("tom")
    cache = cache_path("tom")
    cache.touch()
    subject.save("tom", force=True)
    assert cache.exists()
    Subject(config=RECIPE, versions={"torch": "3"}).save("tom", force=True)
    assert not cache.exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", "tom cat", "tom.txt", "tom\n"])
def test_a_name_is_no_path(name):
    with pytest.raises(ConsistError, match="a subject's name has letters, digits, - and _"):
        subject_path(name)


def test_an_unknown_subject_is_named():
    Subject(config=RECIPE).save("tom")
    with pytest.raises(ConsistError, match="there is no subject 'tim'; known: tom"):
        Subject.load("tim")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "config": {}, "versions": {}}'])
def test_a_damaged_file_is_named(text):
    Path("tom.json").write_text(text)
    with pytest.raises(ConsistError, match=r"tom.json is damaged, or holds no subject"):
        Subject.load("tom.json")


def test_another_format_is_refused():
    path = Subject(config=RECIPE).save("tom")
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(ConsistError, match="has format 2; this version reads 1"):
        Subject.load("tom")


# the commands


def test_the_commands_save_list_show_and_draw(run):
    saved = invoke("subject", "save", run.path, "tom")
    assert saved.exit_code == 0, saved.output
    assert saved.stdout.strip().endswith("tom.json")
    assert invoke("subject", "save", run.path, "tom").exit_code == 2
    assert invoke("subject", "save", run.path, "tom", "--force").exit_code == 0
    listed = invoke("subject", "list").stdout
    assert "tom" in listed
    assert "matched" in listed
    (entry,) = json.loads(invoke("subject", "list", "--json").stdout)
    assert (entry["name"], entry["config"]["seeds"]) == ("tom", [0, 1])
    shown = invoke("subject", "show", "tom").stdout
    assert "seed 1  a cat on the moon" in shown
    assert json.loads(invoke("subject", "show", "tom", "--json").stdout)["name"] == "tom"
    scene = ("batch", "a cat on a beach", "--like", "tom", "--out", "scene")
    drawn = invoke(*scene, "--batch-size", 3)
    assert drawn.exit_code == 0, drawn.output
    assert "scene/000.png  seed 2  a cat on a beach" in drawn.stdout
    plain = json.loads(invoke(*scene, "--dry-run").stdout)
    assert plain["anchor_prompts"] == list(PROMPTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--like", "tim"], "there is no subject 'tim'; known: tom"),
        (["--like", "tom", "--steps", "9"], "--steps goes without --like; the subject has its own"),
        (["--like", "tom", "--set", "pool=all"], "--set goes without --like"),
        (["--like", "tom", "--batch-size", "2"], "a batch of 2 has no room beside 2 anchors"),
    ],
)
def test_bad_input_is_one_sentence(run, arguments, message):
    take_subject(run.path).save("tom")
    result = invoke("batch", "a cat", "--dry-run", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_damaged_subject_does_not_hide_the_others(home):
    Subject(config=RECIPE).save("tom")
    (home / "bad.json").write_text("{")
    result = invoke("subject", "list")
    assert result.exit_code == 0
    assert "tom" in result.stdout
    assert "bad.json is damaged" in result.stderr


def test_listing_does_not_import_torch(home):
    Subject(config=RECIPE).save("tom")
    code = (
        "import sys, typer.testing, consist.cli as c\n"
        "r = typer.testing.CliRunner().invoke(c.app, ['subject', 'show', 'tom'])\n"
        "sys.exit(r.exit_code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert done.returncode == 0
