import pytest

from consist.runs.config import RunConfig
from consist.runs.drawing import generate


@pytest.mark.parametrize(("name", "told"), [("matched", True), ("shared", False)])
def test_a_single_step_that_shares_nothing_says_so(tmp_path, model_for, caplog, name, told):
    config = RunConfig(
        prompts=("a cat in paris", "a cat"), seeds=(0, 1), steps=1, method={"name": name}
    )
    generate(config, tmp_path / "run", model_for=model_for)
    sentence = "nothing is shared in a single step: matched finds the subject in the steps before"
    assert (sentence in caplog.text) is told
