"""README and docs keep their word: code runs, commands parse, paths exist, sentences are short."""

import pkgutil
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import consist
from consist.cli import app
from consist.methods import METHODS
from consist.models.tensor_files import write_tensors
from consist.runs.config import RunConfig
from consist.runs.subject import Subject
from consist.runs.versions import versions

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
MOST_LINES, MOST_WORDS = 150, 20
# names in code that are files of this repository
TREES = ("consist/", "docs/", "kernels/", "scripts/", "tests/", ".ci/")
MARKUP = r"^```.*?^```\n|<!--.*?-->|!\[[^]]*\]\([^)]*\)"


def text_of(page):
    return page.read_text(encoding="utf-8")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def blocks(language, page=README):
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), flags=re.DOTALL)


def commands():
    """Every command of a console block, and those of sentences in the README; each once."""
    found = re.findall(r"`(consist batch [^`]*)`", text_of(README))
    for page in PAGES:
        found += "".join(blocks("console", page)).splitlines()
    return list(dict.fromkeys(line.removeprefix("$ ") for line in found))


def prose(page):
    """The paragraphs, list items and headings of a page, code and links as what a reader sees."""
    text = re.sub(MARKUP, "\n\n", text_of(page), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(\||:::).*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    return re.split(r"\n\s*\n|\n(?=- |\d+\. |#)", text)


def sentences(page):
    for paragraph in prose(page):
        yield from re.split(r"(?<=[.!?])\s+", paragraph.strip("#- \n"))


@pytest.fixture
def household(tmp_path, monkeypatch):
    """A folder with what commands and code of the pages take."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONSIST_HOME", str(tmp_path))
    Path("prompts.txt").write_text("a cat in paris\na cat on a beach\na cat in a forest\n")
    Path("photos").mkdir()
    for path in ("photo.png", "photos/one.png", "photos/two.png"):
        Image.new("RGB", (128, 128), "orange").save(path)
    write_tensors(tmp_path / "cat.safetensors", {}, {"prompt": "a xyz cat"})
    method = {"name": "spectral", "anchors": 1}
    recipe = RunConfig(prompts=("a cat in paris",), seeds=(0,), method=method)
    Subject(config=recipe, versions=versions(recipe.model)).save("tom")
    sets = "pets:\n- subject: a cat\n  settings: [in paris, on the moon]\n"
    Path("sets.yaml").write_text(sets)


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python"))
def test_its_code_runs(code):
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(names["images"]) == len(names["prompts"])


# the code of contributing.md is that of tests/methods/test_contributing.py
GUIDES = [page for page in PAGES if page.parent.name == "guides" and blocks("python", page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_code_of_a_page_runs_from_top_to_bottom(page, household):
    Path("cat.safetensors").unlink()
    names = {}
    for code in blocks("python", page):
        exec(compile(code, name_of(page), "exec"), names)


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command, household):
    # torchrun has options of its own
    words = shlex.split(command, comments=True)
    program, name, *arguments = words[words.index("consist") :]
    assert program == "consist"
    options = ["--dry-run"] if name == "batch" else ["--help"]
    result = CliRunner().invoke(app, [name, *arguments, *options])
    assert result.exit_code == 0, result.output


def test_its_two_commands_are_there_and_ci_runs_the_second():
    first, second = (block.strip() for block in blocks("sh"))
    assert first.endswith('consist batch "a cat in Paris" "a cat on the moon"')
    pattern = re.search(r"grep -m 1 -E '(.*)' README.md", (ROOT / ".ci/run").read_text())
    matching = [line for line in text_of(README).splitlines() if re.match(pattern.group(1), line)]
    assert matching[0] == second


def test_it_is_short():
    assert len(text_of(README).splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_sentences_are_short(page):
    long = [one for one in sentences(page) if len(one.split()) > MOST_WORDS]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_names_a_commit(page):
    names = re.findall(r"\b[0-9a-f]{7,40}\b", text_of(page))
    assert not [name for name in names if re.search("[a-f]", name) and re.search("[0-9]", name)]


def anchors(page):
    titles = re.findall(r"^#+ (.*)", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]*)\)", text_of(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_exist(page):
    """Those in code; ``NAME`` stands for any name."""
    for code in re.findall(r"`([^`\n]*)`", text_of(page)):
        for word in code.split():
            assert not word.startswith(TREES) or any(ROOT.glob(word.rstrip("/"))), word


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_in_the_tables(name):
    assert f"| `{name}` |" in text_of(README).split("<!-- methods -->")[1].split("<!--")[0]
    assert f"<!-- fields {name} -->" in text_of(ROOT / "docs/methods.md")


def test_the_walk_has_every_room():
    walk = text_of(ROOT / "docs/how-it-works.md")
    rooms = [path for path in (ROOT / "consist").glob("[!_]*") if path.suffix in ("", ".py")]
    names = {f"`{name_of(path)}{'/' if path.is_dir() else ''}`" for path in rooms}
    assert len(names) > 10
    assert not [name for name in names if name not in walk]


def test_the_reference_names_what_there_is():
    text = text_of(ROOT / "docs/reference.md")
    for name in re.findall(r"^::: (.*)", text, flags=re.MULTILINE):
        assert pkgutil.resolve_name(name)
    assert not [name for name in consist.__all__ if f"`{name}`" not in text]


def test_the_site_has_every_page():
    site = (ROOT / "mkdocs.yml").read_text()
    assert not [page for page in PAGES[1:] if f" {page.relative_to(ROOT / 'docs')}\n" not in site]
