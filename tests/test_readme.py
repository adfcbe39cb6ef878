"""The README keeps its word: its code runs, its commands parse, its paths exist."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from consist.cli import app
from consist.models.tensor_files import write_tensors
from consist.runs.config import RunConfig
from consist.runs.subject import Subject
from consist.runs.versions import versions

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands():
    found = re.findall(r"`(consist batch [^`]*)`", README.replace("\n", " "))
    for line in "".join(blocks("console")).splitlines():
        found.append(line.removeprefix("$ "))
    return found


@pytest.mark.parametrize("code", blocks("python"))
def test_its_code_runs(code):
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(names["images"]) == len(names["prompts"])


@pytest.mark.parametrize("command", commands())
def test_its_commands_parse(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONSIST_HOME", str(tmp_path))
    Path("prompts.txt").write_text("a cat in paris\na cat on a beach\na cat in a forest\n")
    Image.new("RGB", (8, 8)).save("photo.png")
    write_tensors(tmp_path / "cat.safetensors", {}, {"prompt": "a xyz cat"})
    method = {"name": "spectral", "anchors": 1}
    recipe = RunConfig(prompts=("a cat in paris",), seeds=(0,), method=method)
    Subject(config=recipe, versions=versions(recipe.model)).save("tom")
    sets = "pets:\n- subject: a cat\n  settings: [in paris, on the moon]\n"
    Path("sets.yaml").write_text(sets)
    # torchrun has options of its own
    words = shlex.split(command.removeprefix("$ "), comments=True)
    program, name, *arguments = words[words.index("consist") :]
    assert program == "consist"
    options = ["--dry-run"] if name == "batch" else ["--help"]
    result = CliRunner().invoke(app, [name, *arguments, *options])
    assert result.exit_code == 0, result.output


def test_its_two_commands_are_there_and_ci_runs_the_second():
    first, second = (block.strip() for block in blocks("sh"))
    assert first.endswith('consist batch "a cat in Paris" "a cat on the moon"')
    pattern = re.search(r"grep -m 1 -E '(.*)' README.md", (ROOT / ".ci/run").read_text())
    matching = [line for line in README.splitlines() if re.match(pattern.group(1), line)]
    assert matching[0] == second


def test_its_table_has_every_module():
    modules = (path for path in (ROOT / "consist").glob("[!_]*.py"))
    assert [path.name for path in modules if f"`consist/{path.name}`" not in README] == []


def test_its_paths_exist():
    links = re.findall(r"\]\(([^)]*)\)", README)
    table = re.findall(r"^\| (.*?) \|", README, flags=re.MULTILINE)
    cells = [name for cell in table for name in re.findall(r"`([^`]*)`", cell)]
    paths = [name for name in cells if "/" in name]
    titles = re.findall(r"^## (.*)", README, flags=re.MULTILINE)
    anchors = {"#" + title.lower().replace(",", "").replace(" ", "-") for title in titles}
    for path in [*links, *paths]:
        assert path in anchors or (ROOT / path).exists(), path
