"""What goes wrong in a training is one sentence, said as early as can be, and loses nothing."""

import resource
import sys
from dataclasses import replace

import pytest
import torch
from trainings import assert_same, config_of, fresh, model_of

from consist.errors import ConsistError
from consist.models.loading import Defaults, Model
from consist.models.lora import add_loras
from consist.training import encoding
from consist.training.checkpoints import (
    checkpoint_path,
    checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from consist.training.denoising import Denoising
from consist.training.finetune import choose_albums, choose_photos, finetune
from consist.training.parts import Parts


@pytest.fixture
def no_room():
    """Lets files grow to so many bytes; the kernel refuses the next one, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def leave(count):
        resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))

    yield leave
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_keeps_the_checkpoint_before(tmp_path, no_room):
    first, second = ({"w": torch.full((4096,), float(value))} for value in (1, 2))
    write_checkpoint(checkpoint_path(tmp_path, 1), first, {"step": 1})
    no_room(8192)
    with pytest.raises(ConsistError, match=r"step-0000002\.safetensors cannot be written: .*large"):
        write_checkpoint(checkpoint_path(tmp_path, 2), second, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001.safetensors"]
    tensors, state = read_checkpoint(checkpoints(tmp_path)[-1])
    assert_same(tensors, first)
    assert state == {"step": 1}


def test_a_training_goes_on_once_there_is_room_again(photos, tiny, no_room):
    config = config_of(photos, steps=3, checkpoint_every=1)

    def fill_disk(step, steps, loss):
        if step == 1:
            no_room(2048)

    with pytest.raises(ConsistError, match="cannot be written"):
        finetune(config, fill_disk, model_for=model_of(tiny))
    no_room(resource.RLIM_INFINITY)
    seen = []
    finetune(config, lambda step, *_: seen.append(step), model_for=model_of(tiny))
    assert seen == [2, 3]


@pytest.mark.parametrize("optimizer", ["prodigy", "adamw8bit"])
def test_a_missing_optimizer_is_said_before_the_model_is_loaded(photos, monkeypatch, optimizer):
    for package in ("prodigyopt", "bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConsistError, match=rf"optimizer '{optimizer}' needs \w+: pip install"):
        finetune(config_of(photos, optimizer=optimizer), model_for=pytest.fail)


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({}, set()),
        ({"random_crop": True}, {"vae"}),
        ({"text_encoder": True}, {"text_encoder"}),
    ],
)
def test_what_is_needed_no_more_leaves_the_device(photos, tiny, monkeypatch, changes, left):
    """There may be no device but the CPU here: it is seen who is told to go there."""
    config = config_of(photos, **changes).suited_to("sd")
    model = Model(fresh(tiny), Defaults(steps=1, guidance=1.0))
    albums = choose_albums(config, model, choose_photos(config), lambda done, count: None)
    parts = Parts(model.pipe, config)
    gone = set()
    for name in ("vae", "text_encoder", "unet"):
        module = getattr(model.pipe, name)
        monkeypatch.setattr(module, "to", lambda place, name=name: gone.add((name, place)))
    monkeypatch.setattr(encoding.Texts, "keep", lambda texts, captions: None)
    latents = config.work_folder / "latents"
    Denoising(parts, albums, latents, torch.device("cuda")).prepare()
    assert gone == {(name, "cpu") for name in {"vae", "text_encoder"} - left}
    Denoising(parts, albums, latents, torch.device("cpu")).prepare()
    assert len(gone) == 2 - len(left)


def test_a_lora_of_another_base_model_is_refused(photos, tiny, sdxl_pipe):
    out = finetune(config_of(photos, steps=1), model_for=model_of(tiny))
    with pytest.raises(ConsistError, match=r"cat\.safetensors is for another base model"):
        add_loras(fresh(sdxl_pipe), (str(out),))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lr": 0}, "lr must be between 1e-12 and 10, not 0"),
        ({"lr": -1e-4}, "lr must be between 1e-12 and 10, not -0.0001"),
        ({"lr": 11}, "lr must be between 1e-12 and 10, not 11"),
        ({"text_lr": float("inf")}, "text lr must be between 1e-12 and 10, not inf"),
        ({"rank": -1}, "rank must be between 1 and 1024, not -1"),
        ({"rank": 2000}, "rank must be between 1 and 1024, not 2000"),
        ({"steps": 0}, "steps must be between 1 and"),
        ({"caption_dropout": 1.1}, "caption dropout must be between 0 and 1, not 1.1"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam', did you mean 'adamw'"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"background": "bas"}, "unknown background 'bas', did you mean 'base'"),
        ({"prior": "images"}, "prior 'images' needs a class prompt, such as 'a cat'"),
    ],
)
def test_settings_out_of_range_are_refused(photos, changes, sentence):
    with pytest.raises(ConsistError) as refused:
        config_of(photos, **changes)
    assert sentence in str(refused.value)


def test_a_photo_that_changes_or_goes_while_it_waits_is_said(photos, tiny):
    """Between two starts: the record has the digest of every photo."""
    config = config_of(photos, steps=1)
    finetune(config, model_for=model_of(tiny))
    (photos / "1.png").unlink()
    with pytest.raises(ConsistError, match="the photos or their captions are others"):
        finetune(replace(config, steps=2), model_for=pytest.fail)
