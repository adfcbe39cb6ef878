"""One picture anew: the others, and what the subject is made of, stay."""

import shutil

import pytest
from pictures import largest_difference
from typer.testing import CliRunner

import consist.runs.drawing as drawing
from consist.cli import app
from consist.errors import ConsistError
from consist.runs.config import RunConfig
from consist.runs.drawing import generate
from consist.runs.extending import extend, redo
from consist.runs.folder import RunFolder

PROMPTS = ("a cat in Paris", "a cat on the moon", "a cat on a beach")


def config(**changes):
    given = {
        "prompts": PROMPTS,
        "seeds": (0, 1, 2),
        "steps": 2,
        "compare": True,
        "width": 64,
        "height": 64,
        **changes,
    }
    return RunConfig(**given)


def pictures(folder):
    """All that lies in a run, by its name."""
    return {
        str(path.relative_to(folder.path)): path.read_bytes()
        for path in folder.path.rglob("*.png")
        if path.name != "grid.png"
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, model_for):
    return generate(config(), tmp_path_factory.mktemp("redo") / "run", model_for=model_for)


@pytest.fixture
def run(drawn, tmp_path):
    """A copy that may be changed."""
    return copy_run(drawn, tmp_path / "run")


def copy_run(run, path):
    return RunFolder(shutil.copytree(run.path, path))


def test_one_picture_is_new_and_nothing_is_lost(run, model_for):
    before = pictures(run)
    grid = run.grid_path.read_bytes()
    redo(run.path, 1, model_for=model_for)
    after = pictures(run)
    for row in ("", "isolated/"):
        assert after.pop(f"{row}001.old-1.png") == before.pop(f"{row}001.png")
        assert after.pop(f"{row}001.png")
    assert after == before
    record = run.read_record()
    assert [image["seed"] for image in record["images"]] == [0, 3, 2]
    assert record["finished"]
    assert run.grid_path.read_bytes() != grid


def test_every_old_picture_is_kept(run, model_for):
    first = run.picture_path(1).read_bytes()
    for seed in (7, 8):
        redo(run.path, 1, seed=seed, model_for=model_for)
    assert (run.path / "001.old-1.png").read_bytes() == first
    assert (run.path / "001.old-2.png").read_bytes() != first
    assert run.read_config().seeds == (0, 8, 2)


def test_the_new_picture_sees_the_anchors_as_they_were(run, tmp_path, model_for):
    """It is what a further picture of the run would be."""
    whole = config(prompts=(*PROMPTS, "a cat in a forest"), seeds=(0, 1, 2, 7), compare=False)
    method = {"name": "matched", "anchors": 3}
    whole = RunConfig(**{**vars(whole), "method": method})
    expected = generate(whole, tmp_path / "whole", model_for=model_for)
    redo(run.path, 0, prompt="a cat in a forest", seed=7, model_for=model_for)
    # batches of other sizes add up in another order
    assert largest_difference(run.read_picture(0), expected.read_picture(3)) <= 2


@pytest.mark.slow
def test_the_subject_stays_what_it_was(run, tmp_path, model_for):
    """Scenes that are added after an anchor was redone are those of the original anchors."""
    untouched = copy_run(run, tmp_path / "untouched")
    redo(run.path, 0, seed=7, model_for=model_for)
    for folder in (run, untouched):
        extend(folder.path, ["a cat in a forest"], seeds=(9,), model_for=model_for)
    assert run.read_config().anchor_seeds == (0, 1, 2)
    assert largest_difference(run.read_picture(3), untouched.read_picture(3)) == 0


def test_the_first_seed_brings_an_anchor_back(run, model_for):
    first = run.picture_path(0).read_bytes()
    for seed in (7, 0):
        redo(run.path, 0, seed=seed, model_for=model_for)
    assert run.read_config().seeds == (0, 1, 2)
    pixels = run.read_picture(0)
    run.picture_path(0).write_bytes(first)
    assert largest_difference(run.read_picture(0), pixels) == 0


def test_a_prompt_alone_keeps_the_seed(run, model_for):
    redo(run.path, 2, prompt="a cat in a forest", model_for=model_for)
    assert run.read_config().prompts[2] == "a cat in a forest"
    assert run.read_config().seeds == (0, 1, 2)


def test_a_full_batch_makes_room_for_the_picture(tmp_path, model_for):
    run = generate(config(batch_size=3), tmp_path / "run", model_for=model_for)
    assert redo(run.path, 0, model_for=model_for).read_config().batch_size == 4


def test_a_killed_redo_goes_on(run, tmp_path, model_for, monkeypatch):
    straight = copy_run(run, tmp_path / "straight")
    redo(straight.path, 1, model_for=model_for)

    def dying_draw(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(drawing, "draw", dying_draw)
        with pytest.raises(KeyboardInterrupt):
            redo(run.path, 1, model_for=model_for)
    assert not run.picture_path(1).exists()
    redo(run.path, 1, model_for=model_for)
    assert pictures(run) == pictures(straight)
    assert run.read_config() == straight.read_config()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"picture": 3}, "has no picture 3; it has 0 to 2"),
        ({"picture": -1}, "has no picture -1; it has 0 to 2"),
        ({"picture": 1, "prompt": ""}, "prompt 2 is empty"),
        ({"picture": 1, "seed": -1}, "seed must be between 0 and"),
        ({"picture": 1, "prompt": "a cat " + "very " * 40}, "falls off the end"),
    ],
)
def test_refuses_and_changes_nothing(run, model_for, arguments, message):
    before = {path: path.read_bytes() for path in run.path.rglob("*.*")}
    with pytest.raises(ConsistError, match=message):
        redo(run.path, **arguments, model_for=model_for)
    assert {path: path.read_bytes() for path in run.path.rglob("*.*")} == before


def test_the_command_counts_as_the_files_do(run):
    result = CliRunner().invoke(app, ["redo", str(run.path), "--image", "002", "--seed", "7"])
    assert result.exit_code == 0, result.output
    assert "002.png  seed 7  a cat on a beach" in result.stdout
    result = CliRunner().invoke(app, ["redo", str(run.path), "--image", "3"])
    assert result.exit_code == 2
    assert "has no picture 3; it has 0 to 2" in result.stderr
