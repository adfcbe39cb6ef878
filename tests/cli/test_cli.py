"""The commands as a person uses them; first of all the installed one, in a process of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from consist.cli import app

CONSIST = Path(sys.executable).parent / "consist"
PROMPTS = ("a cat in Paris", "a cat on the moon")


def run_alone(*arguments, cwd):
    """The installed command, in a process of its own."""
    command = [CONSIST, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def run(*arguments, cwd):
    """The same in this process."""
    with contextlib.chdir(cwd):
        return CliRunner().invoke(app, [str(part) for part in arguments])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    options = ["--steps", 3, "--compare", "--out", "run"]
    return folder, run_alone("batch", *PROMPTS, *options, cwd=folder)


def test_batch_draws_and_says_where(drawn):
    folder, result = drawn
    assert result.returncode == 0, result.stderr
    assert "run/000.png  seed 0  a cat in Paris" in result.stdout
    assert "run/grid.png" in result.stdout
    for row in ("", "isolated"):
        for index, prompt in enumerate(PROMPTS):
            with Image.open(folder / "run" / row / f"{index:03d}.png") as image:
                assert image.text["prompt"] == prompt
                assert image.text["seed"] == str(index)
                assert len(image.getcolors(maxcolors=1 << 20)) > 100
    assert json.loads((folder / "run" / "run.json").read_text())["finished"]
    assert not list((folder / "run").glob(".*"))


def test_the_same_command_changes_nothing(drawn):
    folder, _ = drawn
    before = (folder / "run" / "000.png").stat().st_mtime_ns
    result = run("batch", *PROMPTS, "--steps", 3, "--compare", "--out", "run", "--json", cwd=folder)
    assert json.loads(result.stdout)["images"][1]["prompt"] == PROMPTS[1]
    assert (folder / "run" / "000.png").stat().st_mtime_ns == before


def test_another_run_is_not_overwritten(drawn):
    folder, _ = drawn
    before = (folder / "run" / "run.json").read_bytes()
    result = run("batch", "a dog", "--out", "run", cwd=folder)
    assert result.exit_code == 2
    assert "holds another run" in result.stderr
    assert (folder / "run" / "run.json").read_bytes() == before


def test_prompts_come_from_a_file(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat in Paris\n\na bus in the snow\n")
    result = run("batch", "--file", "prompts.txt", "--dry-run", cwd=tmp_path)
    assert json.loads(result.stdout)["prompts"] == ["a cat in Paris", "a bus in the snow"]
    assert os.listdir(tmp_path) == ["prompts.txt"]


def test_new_words_are_named(tmp_path, caplog):
    result = run("batch", "a unicorn in Paris", "--steps", 1, "--out", "run", cwd=tmp_path)
    assert result.exit_code == 0
    assert "mini has never seen 'unicorn'. It knows subjects: cat," in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no prompt was given"),
        ([""], "prompt 1 is empty"),
        (["a cat", "--method", "spektral"], "did you mean 'spectral'"),
        (["a cat", "--keys", "energy:2"], "share is 2.0; allowed: 0 < share <= 1"),
        (["a cat", "--values", "nope"], "unknown spectrum 'nope'"),
        (["a cat", "--strength", "nan"], "strength is nan"),
        (["a cat", "--anchors", "2"], "2 anchors were asked for, but there are 1 images"),
        (["a cat", "--anchors", "some"], "anchors is 'some'"),
        (["a cat", "--set", "pool"], "--set takes NAME=VALUE"),
        (["a cat", "--set", "depth=3"], "matched has no field 'depth'"),
        (["a cat", "--guidance", "nan"], "guidance must be between 0 and 100, not nan"),
        (["a cat", "--steps", "0"], "steps must be between 1 and 1000, not 0"),
        (["a cat", "--size", "big"], "size 'big' is neither"),
        (["a cat", "--seed", "1", "--seed", "2"], "2 seeds were given for 1 prompts"),
        (["--file", "missing.txt"], "prompts cannot be read from missing.txt"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, message):
    result = run("batch", *arguments, "--out", "run", "--dry-run", cwd=tmp_path)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_no_permission_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    result = run("batch", "a cat", "--out", "file/run", cwd=tmp_path)
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


@pytest.mark.slow
def test_ctrl_c_keeps_pictures_and_the_same_command_continues(tmp_path):
    places = ("in paris", "on the moon", "on a beach", "in a forest", "in a garden", "in a library")
    prompts = [f"a cat {place}" for place in places]
    options = ["--anchors", "1", "--batch-size", "2", "--steps", "30", "--out", "run"]
    command = [CONSIST, "batch", *prompts, *options]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "001.png").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "The finished pictures are kept; the same command continues." in messages
    assert "Traceback" not in messages
    kept = (tmp_path / "run" / "000.png").read_bytes()
    assert not (tmp_path / "run" / "005.png").exists()
    result = run(*command[1:], cwd=tmp_path)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "run" / "005.png").exists()
    assert (tmp_path / "run" / "000.png").read_bytes() == kept


def test_models_and_doctor_answer(tmp_path):
    assert "mini" in run("models", cwd=tmp_path).stdout
    findings = run("doctor", cwd=tmp_path).stdout
    for word in ("torch", "device", "attention", "model cache"):
        assert word in findings


def test_doctor_says_what_to_install_to_the_letter(tmp_path, monkeypatch):
    monkeypatch.setattr("consist.cli.doctor.find_spec", lambda name: None)
    findings = run("doctor", cwd=tmp_path).stdout
    for extra in ("train", "study", "eval"):
        assert f"'consist[{extra}]'" in " ".join(findings.split())


def test_help_does_not_import_torch(tmp_path):
    code = "import sys, consist, consist.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0
    assert "batch" in run("--help", cwd=tmp_path).stdout


def test_report_writes_a_page_and_a_table(drawn):
    folder, _ = drawn
    result = run("report", "run", "--out", "page.html", cwd=folder)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == "page.html"
    assert "a cat on the moon" in (folder / "page.html").read_text()
    assert (folder / "page.md").exists()
    result = run("report", ".", "nowhere", cwd=folder)
    assert (result.exit_code, result.stderr) == (2, "error: nowhere holds no run (no run.json)\n")
