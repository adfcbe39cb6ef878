import subprocess
import sys

import pytest
from diffusers.utils import logging as of_diffusers
from transformers.utils import logging as of_transformers

from consist.models.loading import load
from consist.models.quiet import quiet

LIBRARIES = (of_diffusers, of_transformers)


def test_after_it_both_libraries_are_as_before():
    before = [(one.get_verbosity(), one.is_progress_bar_enabled()) for one in LIBRARIES]
    with quiet():
        assert all(one.get_verbosity() == one.ERROR for one in LIBRARIES)
        assert not any(one.is_progress_bar_enabled() for one in LIBRARIES)
    with pytest.raises(RuntimeError), quiet():
        raise RuntimeError
    assert [(one.get_verbosity(), one.is_progress_bar_enabled()) for one in LIBRARIES] == before


def test_loading_mini_prints_nothing(capfd):
    load("mini")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_first_picture_from_python_prints_nothing(tmp_path):
    code = (
        "import consist\n"
        "config = consist.RunConfig(prompts=('a cat', 'a cat in paris'), seeds=(0, 1), steps=1,\n"
        "                           method={'name': 'shared'})\n"
        "consist.generate(config, 'run')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
