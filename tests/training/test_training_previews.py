"""What is seen of a training: pictures and curves that tell the truth, and change nothing."""

import re
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from accelerate import PartialState
from PIL import Image, ImageChops
from safetensors.torch import load_file
from trainings import assert_same, config_of, fresh, last_tensors, model_of
from typer.testing import CliRunner

import consist
from consist.cli import app
from consist.errors import ConsistError
from consist.methods.isolated import Isolated
from consist.models.loading import Defaults, Model
from consist.runs.chunks import Chunk
from consist.runs.config import RunConfig
from consist.runs.drawing import Batch, draw
from consist.runs.preparing import prepare
from consist.training import config as recipe
from consist.training.finetune import finetune
from consist.training.parts import Parts
from consist.training.previews import MOST_ROWS, Previews, evenly
from consist.training.subject import SubjectTrainee
from consist.training.watching import Observer

CPU = torch.device("cpu")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
PROMPTS = ("a xyz cat in paris", "a cat on the moon")
KINDS = {
    "lora": {
        "text_encoder": True,
        "prior": "base",
        "class_prompt": "a cat",
        "gradient_checkpointing": True,
    },
    "dreambooth": {"kind": "dreambooth", "lr": 1e-3, "ema": 0.9, "precision": "bfloat16"},
}


WORD = {"kind": "textual-inversion", "token": "<my-cat>", "init": "cat", "prompt": "a <my-cat>"}


class Stop(Exception):
    pass


def seen(config):
    """The pictures of a training by name, and what their PNG text says."""
    found = {}
    for path in sorted((config.work_folder / "samples").iterdir()):
        with Image.open(path) as image:
            found[path.name] = (image.convert("RGB"), image.text)
    return found


def previews_of(photos, pipe, **changes):
    """What draws while a fresh pipeline is trained, and the parts that are."""
    config = config_of(photos, sample_prompts=PROMPTS, **changes).suited_to("sd")
    model = Model(fresh(pipe), Defaults(steps=2, guidance=2.0))
    parts = Parts(model.pipe, config)
    return Previews(model, config, CPU), parts


@pytest.mark.slow
@pytest.mark.parametrize("changes", [*KINDS.values(), WORD], ids=[*KINDS, "textual-inversion"])
def test_a_training_with_pictures_is_the_one_without(photos, tiny, changes):
    suffix = "" if changes.get("kind") == "dreambooth" else ".safetensors"
    configs = [
        config_of(photos, steps=3, out=f"{out}{suffix}", **changes) for out in ("plain", "seen")
    ]
    configs[1] = replace(configs[1], sample_prompts=PROMPTS, sample_every=1)
    results = [finetune(config, model_for=model_of(tiny)) for config in configs]
    assert_same(*map(last_tensors, configs))
    files = [path / WEIGHTS if path.is_dir() else path for path in results]
    assert_same(*map(load_file, files))
    assert len(seen(configs[1])) == 4 * 2 + 1
    assert not (configs[0].work_folder / "samples").exists()


@pytest.mark.parametrize("name", KINDS)
def test_drawing_leaves_the_pipeline_as_it_was(photos, tiny, name):
    out = "cat.safetensors" if name == "lora" else "cat"
    previews, parts = previews_of(photos, tiny, out=out, **KINDS[name])
    pipe = parts.pipe
    modules = [pipe.unet, pipe.text_encoder, pipe.vae]

    def state():
        return (
            [(id(m), m.training) for module in modules for m in module.modules()],
            [(id(p), p.dtype, p.requires_grad) for m in modules for p in m.parameters()],
            [id(processor) for processor in pipe.unet.attn_processors.values()],
            list(vars(pipe.vae)),
        )

    before, rng = state(), torch.get_rng_state()
    weights = [p.detach().clone() for m in modules for p in m.parameters()]
    previews.draw(0)
    after = state()
    assert before == after
    assert torch.equal(rng, torch.get_rng_state())
    now = [p.detach() for m in modules for p in m.parameters()]
    assert all(map(torch.equal, weights, now))


def test_what_is_seen_is_what_is_loaded_later(photos, tiny):
    """The last picture is that of the file, which has the moving average."""
    config = config_of(
        photos, steps=2, lr=0.3, ema=0.5, text_encoder=True, text_lr=0.3, sample_prompts=PROMPTS
    )
    out = finetune(config, model_for=model_of(tiny))
    pipe = fresh(tiny)
    pipe.load_lora_weights(str(out.parent), weight_name=out.name)
    run = RunConfig(prompts=PROMPTS, seeds=(0, 1), model="tiny", method={"name": "isolated"})
    settings = prepare(Model(pipe, Defaults(steps=1, guidance=1.0)), run)
    pictures = seen(config)
    for i in range(2):
        chunk = Chunk((i,), (i,))
        (expected,) = draw(
            Batch(pipe=pipe, config=run, settings=settings, chunk=chunk, method=Isolated())
        )
        image, _ = pictures[f"step-000002-{i}.png"]
        assert image.tobytes() == expected.tobytes()
        assert image.tobytes() != pictures[f"step-000000-{i}.png"][0].tobytes()


@pytest.mark.parametrize("kind", ["lora", "dreambooth"])
def test_the_autoencoder_draws_in_full_precision(photos, tiny, kind):
    out = "cat.safetensors" if kind == "lora" else "cat"
    previews, parts = previews_of(photos, tiny, kind=kind, out=out, precision="bfloat16")
    kinds = {}

    def note(name):
        return lambda module, given, made: kinds.update({name: made[0].dtype})

    parts.pipe.vae.decoder.register_forward_hook(note("autoencoder"))
    parts.pipe.unet.register_forward_hook(note("unet"))
    previews.draw(0)
    assert kinds == {"autoencoder": torch.float32, "unet": torch.bfloat16}


def test_pictures_come_at_their_steps_with_a_sheet(photos, tiny):
    config = config_of(photos, steps=5, sample_prompts=PROMPTS, sample_every=2)
    finetune(config, model_for=model_of(tiny))
    pictures = seen(config)
    names = [f"step-{step:06d}-{i}.png" for step in (0, 2, 4, 5) for i in range(2)]
    assert list(pictures) == ["sheet.png", *names]
    _, text = pictures["step-000004-1.png"]
    assert text == {"prompt": PROMPTS[1], "seed": "1", "step": "4"}
    sheet, _ = pictures["sheet.png"]
    assert sheet.height > 4 * 192
    # with another prompt, the pictures of the one before are not taken for its own
    changed = replace(config, steps=6, sample_prompts=("a cat",))
    finetune(changed, model_for=model_of(tiny))
    assert 192 < seen(changed)["sheet.png"][0].height < 2 * 192


@pytest.mark.slow
def test_a_training_killed_while_it_draws_misses_no_picture(photos, tiny, monkeypatch):
    shown = {"sample_prompts": PROMPTS[:1], "sample_every": 1, "checkpoint_every": 2}
    straight = config_of(photos, steps=4, out="straight.safetensors", **shown)
    parts = config_of(photos, steps=4, out="parts.safetensors", **shown)
    finetune(straight, model_for=model_of(tiny))

    def die(previews, step):
        if step == 2:
            raise Stop
        return plain(previews, step)

    plain = Previews.draw
    monkeypatch.setattr(Previews, "draw", die)
    with pytest.raises(Stop):
        finetune(parts, model_for=model_of(tiny))
    monkeypatch.setattr(Previews, "draw", plain)
    finetune(parts, model_for=model_of(tiny))
    one, other = seen(straight), seen(parts)
    assert one.keys() == other.keys()
    for name, (image, _) in one.items():
        assert not ImageChops.difference(image, other[name][0]).getbbox()


def test_of_several_processes_one_looks(photos, tiny, monkeypatch):
    _, parts = previews_of(photos, tiny, tensorboard=True)
    trainee = SubjectTrainee([(parts.unet_parameters, 1e-2)], parts.config, CPU)
    model = Model(parts.pipe, Defaults(steps=1, guidance=1.0))
    monkeypatch.setattr(PartialState, "is_main_process", False)
    observer = Observer(model, trainee, parts.config, CPU)
    observer.look()
    observer(torch.tensor(0.5))
    observer.close()
    assert not parts.config.work_folder.exists()


@pytest.mark.slow
def test_curves_go_on_where_a_training_does(photos, tiny):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses = {}

    def watch(step, steps, loss):
        losses[step] = loss
        if step == 3 and first:
            raise Stop

    config = config_of(
        photos,
        steps=4,
        checkpoint_every=2,
        tensorboard=True,
        sample_prompts=PROMPTS[:1],
        sample_every=2,
        text_encoder=True,
    )
    first = True
    with pytest.raises(Stop):
        finetune(config, watch, model_for=model_of(tiny))
    first = False
    finetune(config, watch, model_for=model_of(tiny))
    events = EventAccumulator(str(config.work_folder / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert [step for step, _ in found] == [1, 2, 3, 4]
    assert [value for _, value in found] == pytest.approx([losses[i] for i in (1, 2, 3, 4)])
    for name, rate in (("lr/0", 1e-2), ("lr/1", 1e-3)):
        assert [event.value for event in events.Scalars(name)] == pytest.approx([rate] * 4)
    assert all(event.value > 0 for event in events.Scalars("steps per second"))
    (tag,) = events.Tags()["images"]
    assert tag == f"0 {PROMPTS[0]}"
    assert [event.step for event in events.Images(tag)] == [0, 2, 4]


def test_a_missing_tensorboard_is_said_before_the_model_is_loaded(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConsistError, match=r"not installed: pip install 'consist\[train\]'"):
        finetune(config_of(photos, tensorboard=True), model_for=pytest.fail)


def test_prompts_that_cannot_be_drawn_are_refused(photos, tiny):
    for changes, sentence in (
        ({"sample_every": 5}, "pictures every 5 steps need a sample prompt, such as"),
        ({"sample_every": 0, "sample_prompts": PROMPTS}, "sample every must be between 1 and"),
        ({"sample_prompts": ("a cat", " ")}, "a sample prompt is empty"),
    ):
        with pytest.raises(ConsistError, match=sentence):
            config_of(photos, **changes)
    config = config_of(photos, sample_prompts=("a cat " * 60,))
    with pytest.raises(ConsistError, match="falls off the end"):
        finetune(config, model_for=model_of(tiny))
    assert not (config.work_folder / "latents").exists()


def test_a_long_training_shows_steps_from_all_of_it():
    steps = list(range(0, 1001, 10))
    shown = evenly(steps, MOST_ROWS)
    assert (shown[0], shown[-1], len(set(shown))) == (0, 1000, MOST_ROWS)
    assert max(b - a for a, b in pairwise(shown)) <= 60


def test_the_example_of_finetune_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(recipe.SUITED, ("lora", "mini"), recipe.Suited(steps=1, lr=1e-3))
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (128, 128), "orange").save(tmp_path / "photos" / "0.png")
    (code,) = re.findall(r"```python\n(.*?)```", consist.finetune.__doc__, flags=re.DOTALL)
    exec("\n".join(line[4:] for line in code.splitlines()), {"consist": consist})
    assert (tmp_path / "cat.safetensors").exists()


@pytest.mark.slow
def test_the_command_draws_at_the_size_that_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64), "orange").save(tmp_path / "photos" / "0.png")
    command = ["train", "lora", "photos", "--prompt", "a xyz cat", "--out", "cat.safetensors"]
    few = ["--steps", "1", "--batch-size", "1", "--resolution", "64", "--device", "cpu"]
    result = CliRunner().invoke(app, [*command, *few, "--sample-prompt", "a cat in paris"])
    assert result.exit_code == 0, result.output
    for step in (0, 1):
        with Image.open(f"cat.training/samples/step-{step:06d}-0.png") as image:
            assert image.size == (64, 64)
    refused = CliRunner().invoke(app, [*command, "--sample-every", "5"])
    assert refused.exit_code == 2
    assert "pictures every 5 steps need a sample prompt" in refused.stderr
