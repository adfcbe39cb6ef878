"""Trainings of a few steps, for tests: on a tiny pipeline that is a fixture, or typed."""

import copy

import torch
from PIL import Image
from typer.testing import CliRunner

from consist.cli import app
from consist.models.loading import Defaults, Model
from consist.training import checkpoints
from consist.training.checkpoints import read_checkpoint
from consist.training.config import TrainConfig
from consist.training.denoising import Denoising
from consist.training.finetune import choose_albums, choose_photos
from consist.training.parts import Parts

CPU = torch.device("cpu")


def draw_photos(folder):
    """Two photos in a new folder, which is given back."""
    folder.mkdir()
    for index, color in enumerate(("red", "orange")):
        Image.new("RGB", (64, 64), color).save(folder / f"{index}.png")
    return folder


def run(*arguments):
    """What the command line gives."""
    return CliRunner().invoke(app, [str(part) for part in arguments])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def fresh(pipe):
    """A pipeline of the same weights that may be changed."""
    parts = {name: copy.deepcopy(part) for name, part in pipe.components.items()}
    is_sd = "safety_checker" in parts
    made = type(pipe)(**parts, **({"requires_safety_checker": False} if is_sd else {}))
    made.set_progress_bar_config(disable=True)
    return made


def model_of(pipe):
    return lambda config, device: Model(fresh(pipe), Defaults(steps=1, guidance=1.0))


def config_of(photos, kind="lora", out="cat.safetensors", **changes):
    given = {"prompt": "a xyz cat", "model": "tiny", "steps": 12, "lr": 1e-2, "rank": 2}
    given |= {"batch_size": 2, "class_images": 2, "device": "cpu", **changes}
    return TrainConfig(kind=kind, photos=str(photos), out=str(photos.parent / out), **given)


def last_tensors(config):
    (path,) = checkpoints.checkpoints(config.work_folder)
    return read_checkpoint(path)[0]


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def denoising_of(config, pipe):
    """What the loop would ask, and the parts that it would train."""
    model = model_of(pipe)(config, CPU)
    resolved = config.suited_to("sd")
    albums = choose_albums(resolved, model, choose_photos(config), lambda done, count: None)
    parts = Parts(model.pipe, resolved)
    denoising = Denoising(parts, albums, config.work_folder / "latents", CPU)
    denoising.prepare()
    return denoising, parts
