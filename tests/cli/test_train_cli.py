"""``consist train lora`` and ``dreambooth`` as a person uses them, on `mini` at toy length."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trainings import draw_photos, run

from consist.training.checkpoints import checkpoints

BIN = Path(sys.executable).parent
SHORT = (
    "--steps",
    "2",
    "--resolution",
    "64",
    "--batch-size",
    "2",
    "--lr",
    "1e-3",
    "--device",
    "cpu",
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return draw_photos(tmp_path_factory.mktemp("train") / "photos")


@pytest.fixture(autouse=True)
def inside(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)


@pytest.fixture(scope="module")
def learned(photos):
    """A LoRA of two steps, and how it was asked for."""
    out = photos.parent / "cat.safetensors"
    command = ("train", "lora", photos, "--prompt", "a xyz cat", *SHORT)
    result = run(*command, "--out", out)
    assert result.exit_code == 0, result.output
    return out, command


def distance(one, other):
    """How far two LoRAs are from each other, as a mean over their weights."""
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    return torch.cat([(first[k] - second[k]).abs().flatten() for k in first]).mean().item()


def test_a_lora_is_drawn_with(learned):
    out, _ = learned
    drawn = {}
    for name, options in (("with", ("--lora", out)), ("without", ())):
        result = run("batch", "a xyz cat", "a dog", "--steps", 2, "--out", name, *options)
        assert result.exit_code == 0, result.output
        drawn[name] = Path(name, "000.png").read_bytes()
    assert drawn["with"] != drawn["without"]


def test_the_same_command_changes_nothing_and_another_seed_is_another_lora(learned):
    out, command = learned
    before = out.stat().st_mtime_ns
    result = run(*command, "--out", out)
    assert result.exit_code == 0
    assert out.name in result.stdout
    assert out.stat().st_mtime_ns == before
    assert run(*command, "--out", out, "--seed", 1).exit_code == 2


@pytest.mark.slow
def test_a_run_becomes_a_lora(photos):
    drawn = run("batch", "a cat in paris", "a cat on the moon", "--steps", 1, "--out", "run")
    assert drawn.exit_code == 0, drawn.output
    names = ("--prompt", "a xyz cat", "--class-prompt", "a cat")
    result = run("train", "lora", "--from-run", "run", *names, *SHORT)
    assert result.exit_code == 0, result.output
    assert Path("a-xyz-cat.safetensors").exists()
    record = json.loads(Path("a-xyz-cat.training", "training.json").read_text())
    captions = [photo["caption"] for photo in record["photos"]]
    assert captions == ["a xyz cat in paris", "a xyz cat on the moon"]


@pytest.mark.slow
def test_dreambooth_gives_a_model_that_draws(photos):
    prior = ("--class-prompt", "a cat", "--prior", "base")
    result = run("train", "dreambooth", photos, "--prompt", "a xyz cat", *prior, *SHORT)
    assert result.exit_code == 0, result.output
    drawn = run("batch", "a cat", "--steps", 1, "--model", "./a-xyz-cat-model", "--out", "model")
    assert drawn.exit_code == 0, drawn.output


def test_what_cannot_be_trained_is_one_sentence_and_exit_code_2(photos):
    (photos.parent / "empty").mkdir()
    for options, sentence in (
        ((), "give either a folder of photos or --from-run"),
        ((photos, "--from-run", "run"), "give either a folder of photos or --from-run"),
        (("empty", "--prompt", "a cat"), "empty has no photos"),
        (("nowhere", "--prompt", "a cat"), "nowhere is not a folder of photos"),
        ((photos,), "nothing says what 0.png shows"),
        ((photos, "--prompt", "a cat", "--rank", "0"), "rank must be between 1 and 1024, not 0"),
        ((photos, "--prompt", "a cat", "--prior", "images"), "needs a class prompt"),
        ((photos, "--prompt", "a cat", "--class-prompt", "a cat"), "a word of its own"),
        (("--from-run", "empty"), "empty holds no run"),
    ):
        result = run("train", "lora", *options)
        assert result.exit_code == 2, options
        assert sentence in result.stderr
        assert "\n" not in result.stderr.strip()


@pytest.mark.slow
def test_two_processes_learn_what_one_does(learned, photos):
    out, command = learned
    two = photos.parent / "two.safetensors"
    launch = (
        BIN / "torchrun",
        "--standalone",
        "--nproc_per_node",
        "2",
        "--no-python",
        BIN / "consist",
    )
    arguments = [str(part) for part in (*launch, *command, "--out", two)]
    result = subprocess.run(arguments, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("two.safetensors") == 1
    # in two steps of rate 1e-3, other samples or gradients would make it about 1e-3
    assert distance(out, two) < 1e-5


@pytest.mark.slow
def test_a_killed_training_goes_on(photos):
    out, work = Path("killed.safetensors"), Path("killed.training")
    command = ("train", "lora", photos, "--prompt", "a xyz cat", *SHORT, "--checkpoint-every", 1)
    command = (*command, "--steps", 24, "--out", out)
    started = subprocess.Popen([BIN / "consist", *map(str, command)])
    deadline = time.monotonic() + 300
    while not checkpoints(work) and time.monotonic() < deadline:
        time.sleep(0.05)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert checkpoints(work)
    assert not out.exists()
    assert run(*command).exit_code == 0
    straight = (*command[:-1], "straight.safetensors")
    assert run(*straight).exit_code == 0
    assert distance(out, "straight.safetensors") < 1e-5
