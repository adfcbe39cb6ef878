"""More scenes of a run's subject: the same pictures as if all had been drawn at once."""

import json
import shutil

import pytest
from pictures import largest_difference
from PIL import Image
from typer.testing import CliRunner

import consist.runs.drawing as drawing
from consist.cli import app
from consist.errors import ConsistError
from consist.evaluation.evaluate import current_scores
from consist.evaluation.scores import SetScores, write_scores
from consist.methods import spell_out
from consist.runs.config import RunConfig
from consist.runs.drawing import generate
from consist.runs.extending import extend, take_subject
from consist.runs.folder import RunFolder

PROMPTS = ("a cat in Paris", "a cat on the moon")
MORE = ("a cat on a beach", "a cat in a forest", "a cat in a garden")
SMALL = {"width": 64, "height": 64}


def config(**changes):
    given = {"prompts": PROMPTS, "seeds": (3, 5), "steps": 2, **SMALL, **changes}
    return RunConfig(**given)


def at_once(method, **changes):
    """All pictures in one batch, the first two as anchors."""
    anchored = {"anchors": 2, **method}
    seeds = (3, 5, 6, 7, 8)
    return config(prompts=PROMPTS + MORE, seeds=seeds, method=anchored, **changes)


def pictures(folder, row=""):
    names = sorted((folder.path / row).glob("0*.png"))
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in names}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, model_for):
    return generate(config(), tmp_path_factory.mktemp("extend") / "run", model_for=model_for)


@pytest.fixture
def run(drawn, tmp_path):
    """A copy that may be changed."""
    return copy_run(drawn, tmp_path / "run")


def copy_run(run, path):
    return RunFolder(shutil.copytree(run.path, path))


# oracle


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        {"name": "spectral"},
        {"name": "shared", "anchors": "all", "strength": 2.0},
        {"name": "sdsa", "subject": ["cat"]},
        {"name": "consistory", "subject": ["cat"]},
    ],
)
def test_all_pictures_of_a_run_make_its_subject(tmp_path, method, model_for):
    """What would be drawn if they had been asked for at once, with the first run's as anchors."""
    whole = generate(at_once({**method, "anchors": 2}), tmp_path / "whole", model_for=model_for)
    folder = generate(config(method=method), tmp_path / "run", model_for=model_for)
    extend(folder.path, MORE, batch_size=3, model_for=model_for)
    for index in range(5):
        pair = folder.read_picture(index), whole.read_picture(index)
        # batches of other sizes add up in another order
        assert largest_difference(*pair) <= 2
    assert largest_difference(folder.read_picture(0), folder.read_picture(2)) > 20


@pytest.mark.slow
def test_the_same_batch_gives_the_very_same_pictures(tmp_path, model_for):
    method = {"name": "spectral", "anchors": 1}
    whole = config(prompts=PROMPTS + MORE[:1], seeds=(3, 5, 6), method=method, batch_size=2)
    whole = generate(whole, tmp_path / "whole", model_for=model_for)
    run = generate(config(method=method, batch_size=2), tmp_path / "run", model_for=model_for)
    extend(run.path, MORE[:1], model_for=model_for)
    for index in range(3):
        assert largest_difference(run.read_picture(index), whole.read_picture(index)) == 0


def test_new_pictures_see_the_anchors_and_not_each_other(drawn, tmp_path, model_for):
    together = copy_run(drawn, tmp_path / "together")
    extend(together.path, MORE[:2], model_for=model_for)
    apart = copy_run(drawn, tmp_path / "apart")
    extend(apart.path, MORE[1:2], seeds=(7,), model_for=model_for)
    assert largest_difference(together.read_picture(3), apart.read_picture(2)) <= 2


# the run


@pytest.mark.slow
def test_an_extended_run_is_an_ordinary_one(tmp_path, model_for):
    run = generate(config(compare=True), tmp_path / "run", model_for=model_for)
    before, grid = {row: pictures(run, row) for row in ("", "isolated")}, run.grid_path.read_bytes()
    extend(run.path, MORE[:1], model_for=model_for)
    for row, old in before.items():
        after = pictures(run, row)
        assert after.pop("002.png")
        assert after == old
    record = run.read_record()
    assert record["finished"]
    assert record["images"][2] == {"file": "002.png", "prompt": MORE[0], "seed": 6}
    assert record["config"]["anchor_prompts"] == list(PROMPTS)
    whole = spell_out({"name": "matched", "anchors": 2})
    assert record["config"]["method"] == json.loads(json.dumps(whole))
    assert run.grid_path.read_bytes() != grid
    alone = config(prompts=MORE[:1], seeds=(6,), method={"name": "isolated"})
    alone = generate(alone, tmp_path / "alone", model_for=model_for)
    assert largest_difference(run.read_picture(2, "isolated"), alone.read_picture(0)) <= 2
    with Image.open(run.picture_path(2)) as image:
        assert (image.text["prompt"], image.text["seed"]) == (MORE[0], "6")
    # what evaluate does with a run: it draws nothing more
    assert generate(run.read_config(), run.path, model_for=None) == run


@pytest.mark.slow
def test_nothing_old_is_drawn_again(run, model_for, monkeypatch):
    real_draw, drawn = drawing.draw, []

    def watched_draw(batch):
        drawn.append([batch.config.prompts[image] for image in batch.chunk.new])
        assert len(batch.chunk.images) <= 3
        return real_draw(batch)

    monkeypatch.setattr(drawing, "draw", watched_draw)
    extend(run.path, MORE, batch_size=3, model_for=model_for)
    assert drawn == [[prompt] for prompt in MORE]


def test_memory_is_bounded_without_a_batch_size(run, model_for):
    assert extend(run.path, MORE, model_for=model_for).read_config().batch_size == 4


@pytest.mark.slow
def test_a_killed_extension_goes_on_with_the_same_pictures(drawn, tmp_path, model_for, monkeypatch):
    straight = copy_run(drawn, tmp_path / "straight")
    extend(straight.path, MORE, batch_size=3, model_for=model_for)
    killed = copy_run(drawn, tmp_path / "killed")
    real_draw, calls = drawing.draw, []

    def dying_draw(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real_draw(*args)

    monkeypatch.setattr(drawing, "draw", dying_draw)
    with pytest.raises(KeyboardInterrupt):
        extend(killed.path, MORE, batch_size=3, model_for=model_for)
    assert not killed.read_record()["finished"]
    kept = pictures(killed)
    assert sorted(kept) == ["000.png", "001.png", "002.png"]
    extend(killed.path, MORE, batch_size=3, model_for=model_for)
    after = pictures(killed)
    assert {name: after[name] for name in kept} == kept
    assert [data for data, _ in after.values()] == [data for data, _ in pictures(straight).values()]
    assert killed.read_record()["finished"]


def test_the_same_call_again_adds_nothing_and_another_seed_does(run, model_for):
    extend(run.path, MORE[:1], model_for=model_for)
    before = pictures(run), run.read_record()
    extend(run.path, MORE[:1], model_for=None)
    extend(run.path, MORE[:1], seeds=(6,), model_for=None)
    assert (pictures(run), run.read_record()) == before
    extend(run.path, MORE[:1], seeds=(9,), model_for=model_for)
    assert run.read_config().seeds == (3, 5, 6, 9)
    assert run.read_config().anchor_seeds == (3, 5)


def test_what_the_model_decided_is_written_out(run, model_for):
    record = run.read_record()
    run.write_record({**record, "resolved": {**record["resolved"], "guidance": 2.5}})
    assert extend(run.path, MORE[:1], model_for=model_for).read_config().guidance == 2.5


@pytest.mark.slow
def test_the_method_stays_what_it_was_when_a_default_changes(run, model_for):
    record = run.read_record()
    assert record["config"]["method"] == {"name": "matched"}
    record["resolved"]["method"]["strength"] = 2.5
    run.write_record(record)
    assert extend(run.path, MORE[:1], model_for=model_for).read_config().method["strength"] == 2.5
    assert take_subject(run.path).config.method["strength"] == 2.5
    run.picture_path(2).unlink()
    extend(run.path, MORE[:1], model_for=model_for)
    assert run.picture_path(2).exists()


@pytest.mark.slow
def test_scores_of_before_are_not_those_of_an_extended_run(tmp_path, model_for):
    run = generate(config(compare=True), tmp_path / "run", model_for=model_for)
    write_scores(run, SetScores(scores={}, isolated={}, images=[{}, {}], choices={}))
    assert current_scores(run, {})
    extend(run.path, MORE[:1], model_for=model_for)
    assert current_scores(run, {}) is None


def test_the_words_of_the_subject_are_those_of_the_first_prompts(tmp_path, model_for):
    masked = {"name": "sdsa"}
    run = generate(config(method=masked), tmp_path / "run", model_for=model_for)
    extend(run.path, ["in a forest a cat"], model_for=model_for)
    assert run.read_config().method["subject"] == ["cat"]


# refusal, before anything is changed


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"prompts": ()}, "no prompt was given; give at least one"),
        ({}, {"prompts": (" ",)}, "prompt 3 is empty"),
        ({}, {"seeds": (1, 2)}, "2 seeds were given for 1 prompts; give 1 or 1"),
        ({}, {"batch_size": 2}, "a batch of 2 has no room beside 2 anchors"),
        ({}, {"prompts": ("a cat " + "very " * 40,)}, "falls off the end"),
        ({"method": {"name": "shared", "anchors": "random"}}, {}, "with random anchors each"),
        ({"method": {"name": "isolated"}}, {}, "more of a subject: it shares nothing"),
        (
            {"method": {"name": "one-prompt"}},
            {},
            "it draws all pictures from one prompt",
        ),
        ({"method": {"name": "sdsa"}}, {"prompts": ("a dog",)}, "does not name the subject, 'cat'"),
    ],
)
def test_refuses_and_changes_nothing(tmp_path, model_for, changes, arguments, message):
    run = generate(config(steps=1, **changes), tmp_path / "run", model_for=model_for)
    before = {path: path.read_bytes() for path in run.path.rglob("*.*")}
    with pytest.raises(ConsistError, match=message):
        extend(run.path, **{"prompts": MORE[:1], "model_for": model_for, **arguments})
    assert {path: path.read_bytes() for path in run.path.rglob("*.*")} == before


def test_refuses_what_is_no_run(tmp_path):
    with pytest.raises(ConsistError, match="holds no run"):
        extend(tmp_path, MORE)


def test_refuses_other_anchors_than_the_run_names(tmp_path):
    odd = config(anchor_prompts=PROMPTS[:1], anchor_seeds=(0,), method={"name": "spectral"})
    with pytest.raises(ConsistError, match="the method has 3 anchors, but the run names 1"):
        generate(odd, tmp_path / "run", model_for=None)
    assert not (tmp_path / "run").exists()


# the command


@pytest.mark.slow
def test_the_command_adds_and_says_when_it_does_not(run, monkeypatch):
    monkeypatch.chdir(run.path.parent)
    for expected in ("", "run has these prompts already; --seed draws them once more"):
        result = CliRunner().invoke(app, ["extend", "run", MORE[0]])
        assert result.exit_code == 0, result.output
        assert "run/002.png  seed 6  a cat on a beach" in result.stdout
        assert (expected in result.stderr) if expected else ("already" not in result.stderr)
    result = CliRunner().invoke(app, ["extend", "run", MORE[0], "--seed", "9", "--json"])
    assert json.loads(result.stdout)["images"][3] == {
        "file": "003.png",
        "prompt": MORE[0],
        "seed": 9,
    }
    result = CliRunner().invoke(app, ["extend", "nowhere", MORE[0]])
    assert result.exit_code == 2
    assert result.stderr.strip() == "error: nowhere holds no run (no run.json)"
