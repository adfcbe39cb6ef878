"""Prompts to a run folder: chunks, resume, refusals, on the embedded model at a few steps."""

import json

import pytest
import torch
from pictures import largest_difference
from PIL import Image

import consist.runs.drawing as drawing
from consist.errors import ConsistError
from consist.runs.config import RunConfig
from consist.runs.drawing import generate, load_model

PROMPTS = ("a cat in Paris", "a cat on the moon", "a cat on a beach", "a cat in a forest")


def config(count=2, **changes):
    given = {"prompts": PROMPTS[:count], "seeds": tuple(range(count)), "steps": 2}
    given |= {"width": 64, "height": 64, **changes}
    return RunConfig(**given)


def pictures(folder, count=2, row=""):
    return [folder.picture_path(i, row).read_bytes() for i in range(count)]


# the run


def test_a_run_holds_what_was_asked(tmp_path):
    told = []
    folder = generate(config(compare=True), tmp_path / "run", lambda *a: told.append(a))
    record = folder.read_record()
    assert record["finished"]
    assert record["config"] == config(compare=True).to_json()
    assert record["resolved"]["steps"] == 2
    assert record["resolved"]["width"] == 64
    assert record["seconds"] > 0
    for row in ("", "isolated"):
        for index in range(2):
            with Image.open(folder.picture_path(index, row)) as image:
                assert image.size == (64, 64)
                assert image.text["prompt"] == PROMPTS[index]
                assert image.text["seed"] == str(index)
                assert json.loads(image.text["consist"])["row"] == (row or "matched")
    with Image.open(folder.grid_path) as grid:
        assert grid.width > 2 * 64
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (4, 4)


def test_a_half_drawn_run_does_not_go_on_with_another_default(tmp_path, model_for):
    run = generate(config(), tmp_path / "run", model_for=model_for)
    assert run.read_record()["resolved"]["method"]["window"] == [0.0, 1.0]
    record = run.read_record()
    record["resolved"]["method"]["strength"] = 2.5
    run.write_record(record)
    generate(config(), run.path, model_for=model_for)  # finished: nothing goes on
    run.picture_path(0).unlink()
    with pytest.raises(ConsistError, match=r"run was begun with strength 2\.5, and this version"):
        generate(config(), run.path, model_for=model_for)
    assert run.read_record() == record


def test_sharing_starts_from_the_noise_of_isolated(tmp_path, model_for):
    compared = generate(config(compare=True), tmp_path / "both", model_for=model_for)
    alone = generate(config(method={"name": "isolated"}), tmp_path / "alone", model_for=model_for)
    for index in range(2):
        pair = compared.read_picture(index, "isolated"), alone.read_picture(index)
        assert largest_difference(*pair) == 0
    assert pictures(compared) != pictures(compared, row="isolated")


def test_an_image_depends_on_its_seed_and_not_on_its_neighbors(tmp_path, model_for):
    isolated = {"name": "isolated"}
    pair = generate(config(method=isolated), tmp_path / "pair", model_for=model_for)
    one = config(prompts=PROMPTS[1:2], seeds=(1,), method=isolated)
    single = generate(one, tmp_path / "single", model_for=model_for)
    # batches of other sizes add up in another order
    assert largest_difference(pair.read_picture(1), single.read_picture(0)) <= 2


@pytest.mark.slow
def test_chunks_draw_the_same_subject_from_the_same_anchors(tmp_path, model_for):
    spectral = {"name": "spectral", "anchors": 1}
    whole = generate(config(4, method=spectral), tmp_path / "whole", model_for=model_for)
    chunked = generate(
        config(4, method=spectral, batch_size=2), tmp_path / "chunked", model_for=model_for
    )
    for index in range(4):
        assert largest_difference(whole.read_picture(index), chunked.read_picture(index)) <= 2


def test_a_killed_run_goes_on_with_the_same_pictures(tmp_path, monkeypatch, model_for):
    settings = config(3, method={"name": "spectral", "anchors": 1}, batch_size=2, compare=True)
    expected = generate(settings, tmp_path / "straight", model_for=model_for)
    real_draw, calls = drawing.draw, []

    def dying_draw(*args):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(args)
        return real_draw(*args)

    monkeypatch.setattr(drawing, "draw", dying_draw)
    with pytest.raises(KeyboardInterrupt):
        generate(settings, tmp_path / "killed", model_for=model_for)
    monkeypatch.setattr(drawing, "draw", real_draw)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("0*.png")}
    assert kept
    continued = generate(settings, tmp_path / "killed", model_for=model_for)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for row in ("", "isolated"):
        assert pictures(continued, 3, row) == pictures(expected, 3, row)


def test_a_finished_run_is_not_drawn_again(tmp_path, monkeypatch, model_for):
    folder = generate(config(), tmp_path, model_for=model_for)
    monkeypatch.setattr(drawing, "load", None)
    assert generate(config(), tmp_path) == folder


@pytest.mark.slow
def test_a_finished_run_is_completed_by_its_isolated_row(tmp_path, model_for):
    folder = generate(config(), tmp_path / "run", model_for=model_for)
    before = pictures(folder)
    straight = generate(config(compare=True), tmp_path / "straight", model_for=model_for)
    completed = generate(config(compare=True), tmp_path / "run", model_for=model_for)
    assert pictures(completed) == before
    assert pictures(completed, row="isolated") == pictures(straight, row="isolated")
    assert completed.read_config().compare
    assert completed.grid_path.read_bytes() == straight.grid_path.read_bytes()


def test_the_model_is_asked_for_once_and_only_to_draw(tmp_path):
    model, asked = load_model(config()), []

    def model_for(given):
        asked.append(given)
        return model

    for _ in range(2):
        generate(config(), tmp_path, model_for=model_for)
    assert asked == [config()]


def test_a_missing_picture_is_drawn_again(tmp_path, model_for):
    folder = generate(config(), tmp_path, model_for=model_for)
    before = pictures(folder)
    folder.picture_path(1).unlink()
    assert pictures(generate(config(), tmp_path, model_for=model_for)) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 96, "height": 64},
        {"width": None, "height": None},
        {"scheduler": "dpm++"},
        {"scheduler": "euler-a"},
        {"guidance": 1.0},
        {"guidance_rescale": 0.7},
        {"negative": "a red cat"},
        {"method": {"name": "shared", "anchors": "random"}},
        {"method": {"name": "spectral", "keys": "log|fraction:0.5", "pool": "all"}},
        {"dtype": "bfloat16"},
        {"backend": "reference"},
    ],
)
def test_options_draw(tmp_path, changes, model_for):
    loads = {"scheduler", "dtype"} & changes.keys()  # which stay on a model
    folder = generate(config(**changes), tmp_path, model_for=load_model if loads else model_for)
    size = (changes.get("width", 64) or 128, changes.get("height", 64) or 128)
    assert {folder.read_picture(i).size for i in range(2)} == {size}


def test_leaves_the_global_random_state_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    generate(config(scheduler="euler-a"), tmp_path)
    assert torch.equal(torch.rand(1), expected)


# refusal, before anything is written


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 100}, "size 100x64 must be a multiple of 8 both ways"),
        ({"scheduler": "eulr"}, "unknown scheduler 'eulr', did you mean 'euler'"),
        ({"dtype": "float8"}, "unknown dtype 'float8'"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here"),
        ({"backend": "tritton"}, "unknown backend 'tritton'"),
        ({"method": {"name": "spectrl"}}, "unknown method 'spectrl', did you mean 'spectral'"),
        ({"method": {"name": "spectral", "keys": "enrgy:1"}}, "did you mean 'energy'"),
        ({"method": {"name": "spectral", "anchors": 3}}, "3 anchors were asked for"),
        ({"method": {"name": "shared", "keys": "log"}}, "shared has no field 'keys'"),
        ({"model": "mni"}, "unknown model 'mni', did you mean 'mini'"),
        ({"prompts": ("a cat " + "very " * 40, "a dog")}, "'very very.*falls off the end"),
    ],
)
def test_refuses_and_draws_nothing(tmp_path, changes, message):
    with pytest.raises(ConsistError, match=message):
        generate(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
