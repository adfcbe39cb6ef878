"""The run folder: whole files or none, and no run lost to another."""

import json
import os

import pytest
from PIL import Image

from consist.config import RunConfig
from consist.errors import ConsistError
from consist.run import RunFolder, default_folder, draw_grid, write_atomically

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
    with pytest.raises(ConsistError, match="holds no run"):
        RunFolder(tmp_path).read_record()


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
