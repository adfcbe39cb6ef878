"""Options that are the fields of configs: none is missing, and the help tells all about them."""

import re
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import version

import pytest
import typer
from trainings import run
from typer.main import get_command

from consist.cli import app
from consist.cli.engine_options import EngineOptions
from consist.cli.from_fields import options, read, takes
from consist.cli.options import MethodOptions
from consist.methods import METHODS
from consist.runs.config import RunConfig
from consist.settings.fields import as_text, field_help, settings_of
from consist.training.config import KINDS, TrainConfig, fields_of


def parameters(*names):
    """The parameters of a command by their names."""
    command = get_command(app)
    for name in names:
        command = command.commands[name]
    return {one.name: one for one in command.params}


@pytest.mark.parametrize("kind", [RunConfig, TrainConfig, MethodOptions, EngineOptions])
def test_every_field_says_what_it_means(kind):
    meanings = field_help(kind)
    assert list(meanings) == [one.name for one in fields(kind)]
    assert all(text.endswith(".") for text in meanings.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_takes_all_fields_of_its_kind_and_no_others(kind):
    assert set(parameters("train", kind)) == {*fields_of(kind), "photos", "out", "from_run"}


def test_pivotal_takes_the_fields_of_both_trainings_but_the_file_between_them():
    both = {*fields_of("lora"), *fields_of("textual-inversion")} - {"embedding"}
    own = {"photos", "out", "from_run", "word_steps", "word_lr"}
    assert set(parameters("train", "pivotal")) == both | own


def test_batch_takes_all_fields_of_a_run_that_have_a_title():
    shown = {name for name, known in settings_of(RunConfig).items() if known.panel}
    assert shown <= set(parameters("batch"))


@pytest.mark.parametrize(
    ("command", "name", "flag"),
    [
        (("batch",), "loras", "--lora"),
        (("batch",), "embeddings", "--embedding"),
        (("batch",), "sets", "--set"),
        (("train", "lora"), "sample_prompts", "--sample-prompt"),
        (("train", "lora"), "text_lr", "--text-lr"),
    ],
)
def test_options_are_named_after_the_fields(command, name, flag):
    assert parameters(*command)[name].opts == [flag]


def test_batch_has_groups_of_at_most_eight_and_names_them():
    panels = {}
    for name, one in parameters("batch").items():
        if one.param_type_name == "option":
            panels.setdefault(one.rich_help_panel, []).append(name)
    assert None not in panels
    assert max(map(len, panels.values())) <= 8


@pytest.mark.parametrize(
    "command",
    [("batch",), ("evaluate",), ("extend",), *(("train", kind) for kind in (*KINDS, "pivotal"))],
)
def test_every_option_has_help(command):
    assert [name for name, one in parameters(*command).items() if not one.help] == []


def test_the_help_tells_defaults_and_limits_and_shows_flags_as_flags(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    lines = run("train", "lora", "--help").output.splitlines()
    told = {line.split()[1]: line for line in lines if line.startswith("│ --")}
    assert "From 1 to 1024. [default: (16, for mini 64)]" in told["--rank"]
    assert "[default: (800, for mini 300)]" in told["--steps"]
    assert "One of adamw, adamw8bit, prodigy. [default: adamw]" in told["--optimizer"]
    assert "From 0 to 1. [default: 0.0]" in told["--caption-dropout"]
    assert "images with a class prompt" in told["--prior"]
    for flag in ("--dora", "--tensorboard", "--buckets", "--help"):
        assert "<" not in told[flag]


@pytest.mark.parametrize("name", METHODS)
def test_the_fields_of_a_method_are_printed_one_a_line(name):
    result = run("batch", "--method", name, "--help-fields")
    assert result.exit_code == 0, result.output
    if name == "isolated":
        assert result.output == "isolated has no fields\n"
        return
    printed = [re.split("  +", line) for line in result.output.splitlines()]
    known = fields(METHODS[name])
    assert [line[0] for line in printed] == [one.name for one in known]
    assert [line[2] for line in printed] == [as_text(one.default) for one in known]
    assert [line[3] for line in printed] == [*field_help(METHODS[name]).values()]


def test_the_methods_are_listed():
    listed = run("methods").output
    assert all(name in listed for name in METHODS)


def test_the_fields_of_an_unknown_method_are_one_sentence():
    result = run("batch", "--method", "spektral", "--help-fields")
    assert result.exit_code == 2
    assert "unknown method 'spektral', did you mean 'spectral'?" in result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["train", "lora", "--help"], ["--version"]])
def test_help_and_version_do_not_import_torch(arguments):
    code = (
        "import sys\n"
        "from consist.cli import app\n"
        f"app({arguments!r}, standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_version_is_told():
    assert run("--version").stdout == f"consist {version('consist')}\n"


def test_a_command_gets_its_fields_beside_its_own_options():
    seen = {}

    @takes(options(RunConfig, ["steps", "loras", "compare"]))
    def command(name: str, *, steps: int | None, **given):
        seen.update(name=name, steps=steps, **read(RunConfig, given))

    small = typer.Typer()
    small.command()(command)
    words = ["--steps", "3", "--lora", "a", "--lora", "b", "x"]
    get_command(small).main(words, standalone_mode=False)
    assert seen == {"name": "x", "steps": 3, "loras": ("a", "b"), "compare": False}
