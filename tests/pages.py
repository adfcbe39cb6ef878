"""Runs that the tests of the page look at."""

from PIL import Image

from consist.runs.config import RunConfig
from consist.runs.folder import RunFolder
from consist.runs.versions import versions

PROMPTS = ("a cat in Paris", "a cat on the moon")
CONFIG = RunConfig(prompts=PROMPTS, seeds=(0, 1), steps=2)


def write_run(folder, config=CONFIG):
    """A run as it is begun, with pictures that nobody drew."""
    run = RunFolder(folder)
    run.write_record({"config": config.to_json(), "versions": versions(config.model)})
    for row in ("", "isolated"):
        run.write_picture(0, row, Image.new("RGB", (8, 8)), {})
    return run
