"""What tools see of the package: names, types, a version, and nothing that is not public."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import consist

ROOT = Path(__file__).parent.parent


def test_dir_shows_public_names_alone():
    assert set(dir(consist)) == set(consist.__all__)
    assert {"generate", "Spectral", "Notch", "METHODS", "load", "ablate"} <= set(dir(consist))
    assert not {"Any", "import_module", "attach_stub"} & set(vars(consist))


@pytest.mark.parametrize("name", consist.__all__)
def test_every_public_name_is_there_and_explained(name):
    found = getattr(consist, name)
    assert name == "METHODS" or found.__doc__


def test_it_says_its_version():
    assert consist.__version__ == version("consist")


def test_importing_it_does_not_import_torch():
    code = (
        "import consist, sys; consist.__version__, dir(consist); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def check(path):
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", path]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout


@pytest.mark.slow
def test_a_type_checker_knows_the_names_and_their_fields(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import consist\n"
        "consist.Spectral(valuez='log')\n"
        "consist.Matched(strength='much')\n"
        "consist.no_such_name\n"
        "consist.RunConfig(prompts=('a cat',), seeds=('0',))\n"
    )
    told = check(wrong)
    assert re.findall(r"wrong.py:(\d+): error", told) == ["2", "3", "4", "5"], told


@pytest.mark.slow
def test_the_python_of_the_readme_passes_a_type_checker(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    for number, code in enumerate(blocks):
        path = tmp_path / f"block_{number}.py"
        path.write_text(code)
        assert "Success" in check(path), check(path)
