"""The run folder: whole files or none, and no run lost to another."""

import json
import os
from dataclasses import replace

import pytest
from PIL import Image

from consist.errors import ConsistError
from consist.files import write_atomically
from consist.runs.config import RunConfig
from consist.runs.folder import RunFolder, default_folder, find_runs
from consist.runs.grid import draw_grid

CONFIG = RunConfig(prompts=("a cat in Paris", "a dog"), seeds=(0, 1))
OTHER = RunConfig(prompts=("a cat in Paris", "a dog"), seeds=(0, 2))


def test_a_picture_carries_its_text(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_picture(3, "", Image.new("RGB", (8, 8), "red"), {"prompt": "ein Kätzchen 猫"})
    with Image.open(tmp_path / "003.png") as image:
        assert image.text["prompt"] == "ein Kätzchen 猫"
        assert image.size == (8, 8)


def test_a_failed_write_leaves_nothing_and_keeps_what_was(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ConsistError, match="file cannot be written: No space left on device"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupt(file):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", interrupt)
    assert os.listdir(tmp_path) == []


def test_the_same_run_opens_again_and_another_does_not(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.check(CONFIG)
    folder.write_record({"config": CONFIG.to_json()})
    folder.check(CONFIG)
    with pytest.raises(ConsistError, match="holds another run"):
        folder.check(OTHER)


def test_a_run_stays_the_same_run_with_the_isolated_row(tmp_path):
    folder = RunFolder(tmp_path / "run")
    listed = replace(CONFIG, method={"name": "shared", "layers": ("up_blocks",)})
    folder.write_record({"config": listed.to_json()})
    folder.check(replace(listed, compare=True))
    assert default_folder(replace(CONFIG, compare=True)) == default_folder(CONFIG)


def test_a_config_is_read_back(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_record({"config": OTHER.to_json()})
    assert folder.read_config() == OTHER


@pytest.mark.parametrize("given", [None, {}, {**CONFIG.to_json(), "depth": 3}])
def test_a_config_of_another_version_is_named(tmp_path, given):
    folder = RunFolder(tmp_path)
    folder.write_record({"config": given})
    with pytest.raises(ConsistError, match=r"run.json is damaged"):
        folder.read_config()


def test_refuses_a_folder_of_something_else(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ConsistError, match="is not empty and holds no run"):
        RunFolder(tmp_path).check(CONFIG)
    assert os.listdir(tmp_path) == ["letter.txt"]


def test_refuses_a_place_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConsistError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run").write_record({})


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "7"])
def test_a_damaged_record_is_named(tmp_path, text):
    folder = RunFolder(tmp_path)
    folder.record_path.write_text(text)
    with pytest.raises(ConsistError, match=r"run.json is damaged"):
        folder.read_record()


def test_a_record_of_another_format_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    folder.record_path.write_text(json.dumps({"format": 99}))
    with pytest.raises(ConsistError, match="has format 99; this version reads 1"):
        folder.read_record()


def test_a_missing_record_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(ConsistError, match="holds no run"):
            RunFolder(path).read_record()


def test_the_default_folder_tells_runs_apart():
    assert default_folder(CONFIG) == default_folder(CONFIG)
    assert default_folder(CONFIG) != default_folder(OTHER)
    assert default_folder(CONFIG).name.startswith("a-cat-in-paris-")


def test_the_grid_holds_every_picture():
    rows = {
        name: [Image.new("RGB", (128, 128), color) for color in colors]
        for name, colors in (("isolated", ("red", "lime")), ("spectral", ("blue", "yellow")))
    }
    grid = draw_grid(rows, ["a very long prompt that needs more than a single line", "short"])
    counted = {color for _, color in grid.getcolors(maxcolors=1 << 20)}
    for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)):
        assert color in counted


def test_a_folder_is_a_run_or_holds_runs(tmp_path):
    for name in ("b", "a"):
        RunFolder(tmp_path / name).write_record({})
    (tmp_path / "empty").mkdir()
    (tmp_path / "summary.json").write_text("{}")
    assert find_runs(tmp_path / "b") == [RunFolder(tmp_path / "b")]
    assert [run.path.name for run in find_runs(tmp_path)] == ["a", "b"]
    for nothing in ("empty", "summary.json", "missing"):
        with pytest.raises(ConsistError, match="holds no run"):
            find_runs(tmp_path / nothing)
