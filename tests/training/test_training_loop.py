"""Training on photos: exact to resume, right in its gradients, loaded back as it was learned."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from trainings import (
    CPU,
    assert_same,
    config_of,
    denoising_of,
    fresh,
    last_tensors,
    model_of,
    seeded,
)

from consist.errors import ConsistError
from consist.models.loading import Defaults, Model, load
from consist.training import checkpoints, encoding
from consist.training.config import differences, remedies
from consist.training.denoising import Denoising
from consist.training.finetune import finetune
from consist.training.photos import View
from consist.training.samples import batches, share


@pytest.fixture(autouse=True)
def few_class_images(monkeypatch):
    monkeypatch.setattr("consist.training.class_images.RUN_SIZE", 3)


class Stop(Exception):
    pass


RECIPES = {
    "lora": {
        "kind": "lora",
        "batch_size": 1,
        "text_encoder": True,
        "dora": True,
        "alpha": 4.0,
        "prior": "base",
        "class_prompt": "a cat",
        "random_crop": True,
        "random_flip": True,
        "background": "base",
        "caption_dropout": 0.5,
        "schedule": "cosine",
        "warmup": 3,
    },
    "dreambooth": {
        "kind": "dreambooth",
        "lr": 1e-3,
        "prior": "images",
        "class_prompt": "a cat",
        "accumulate": 2,
        "ema": 0.9,
        "min_snr": 5.0,
        "schedule": "linear",
        "batch_size": 1,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_twelve_steps_are_seven_and_five(photos, tiny, name):
    def stop(step, steps, loss):
        if step == 7:
            raise Stop

    suffix = ".safetensors" if name == "lora" else ""
    straight = config_of(photos, out=f"straight{suffix}", **RECIPES[name])
    parts = config_of(photos, out=f"parts{suffix}", checkpoint_every=7, **RECIPES[name])
    finetune(straight, model_for=model_of(tiny))
    with pytest.raises(Stop):
        finetune(parts, stop, model_for=model_of(tiny))
    seen = []
    finetune(parts, lambda step, *_: seen.append(step), model_for=model_of(tiny))
    assert seen == [8, 9, 10, 11, 12]
    assert_same(last_tensors(parts), last_tensors(straight))


def test_a_finished_training_is_not_done_again(photos, tiny):
    config = config_of(photos, steps=1)
    out = finetune(config, model_for=model_of(tiny))
    before = out.stat().st_mtime_ns
    assert finetune(config, model_for=pytest.fail) == out
    assert out.stat().st_mtime_ns == before
    # where the rate does not depend on it, more steps go on from there
    seen = []
    finetune(replace(config, steps=2), lambda *a: seen.append(a[0]), model_for=model_of(tiny))
    assert seen == [2]


def test_another_training_is_refused_and_said(photos, tiny):
    config = config_of(photos, steps=1)
    finetune(config, model_for=model_of(tiny))
    with pytest.raises(ConsistError, match=r"training: lr was 0\.01 and is 0\.5; rank was 2"):
        finetune(replace(config, lr=0.5, rank=3), model_for=pytest.fail)
    (photos / "0.txt").write_text("another caption")
    with pytest.raises(ConsistError, match="the photos or their captions are others"):
        finetune(config, model_for=pytest.fail)
    (config.work_folder / "training.json").unlink()
    with pytest.raises(ConsistError, match="is there already"):
        finetune(config, model_for=pytest.fail)
    assert differences({"schedule": "cosine", "steps": 1}, {"schedule": "cosine", "steps": 2})


@pytest.mark.slow
def test_a_training_goes_on_that_is_older_than_a_setting(photos, tiny):
    config = config_of(photos, steps=1)
    finetune(config, model_for=model_of(tiny))
    path = config.work_folder / "training.json"
    record = json.loads(path.read_text())
    del record["config"]["caption_dropout"]
    path.write_text(json.dumps(record))
    with pytest.raises(ConsistError, match=r"caption dropout was 0\.0 and is 0\.2"):
        finetune(replace(config, caption_dropout=0.2), model_for=pytest.fail)
    finetune(replace(config, steps=2), model_for=model_of(tiny))


@pytest.mark.parametrize("conv", [False, True])
def test_a_lora_is_loaded_back_exactly_with_its_alpha(photos, tiny, conv):
    config = config_of(photos, steps=3, alpha=8.0, text_encoder=True, conv=conv)
    trained, loaded = fresh(tiny), fresh(tiny)
    out = finetune(config, model_for=lambda *a: Model(trained, Defaults(steps=1, guidance=1.0)))
    loaded.load_lora_weights(str(out.parent), weight_name=out.name)
    assert any("resnets" in name for name in load_file(out)) == conv
    latents = torch.randn(1, 4, 8, 8, generator=seeded(0))

    def answer(pipe):
        embeds, _ = pipe.encode_prompt("a xyz cat", CPU, 1, False)
        with torch.no_grad():
            return pipe.unet(latents, 5, embeds).sample

    assert torch.equal(answer(loaded), answer(trained))
    assert not torch.allclose(answer(loaded), answer(tiny), atol=1e-3)


def test_a_lora_has_all_matrices_of_the_transformers_and_no_other(photos, tiny):
    _, parts = denoising_of(config_of(photos), tiny)
    names = {name.partition(".lora_")[0].removeprefix("unet.") for name in parts.unet_parameters}
    unet = tiny.unet.named_modules()
    wanted = {n for n, m in unet if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    assert names == {name for name in wanted if ".attentions." in name}


def test_a_lora_has_convolutions_where_they_are_asked_for(photos, tiny):
    config = config_of(photos, steps=3, conv=True)
    _, parts = denoising_of(config, tiny)
    names = {name.partition(".lora_")[0] for name in parts.unet_parameters}
    blocks = {n for n, _ in tiny.unet.named_modules() if n.endswith((".conv1", ".conv2"))}
    assert {f"unet.{name}" for name in blocks} < names
    assert not {"unet.conv_in", "unet.conv_out"} & names


def test_sdxl_is_told_of_sizes_and_learns(photos, sdxl_pipe):
    config = config_of(photos, steps=1, batch_size=1, text_encoder=True)
    out = finetune(config, model_for=model_of(sdxl_pipe))
    names = " ".join(load_file(out))
    assert all(part in names for part in ("unet.", "text_encoder.", "text_encoder_2."))


def test_a_dreambooth_model_is_a_model(photos, tiny):
    config = config_of(photos, kind="dreambooth", out="my-cat", steps=1, lr=1e-3)
    trained = fresh(tiny)
    out = finetune(config, model_for=lambda *a: Model(trained, Defaults(steps=1, guidance=1.0)))
    loaded = load(str(out), "cpu").pipe
    for name, weight in loaded.unet.state_dict().items():
        torch.testing.assert_close(weight, trained.unet.state_dict()[name].float())
    assert not torch.equal(loaded.unet.conv_in.weight, tiny.unet.conv_in.weight)
    assert json.loads((config.work_folder / "training.json").read_text())["finished"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["lora", "dreambooth"])
def test_what_is_trained_is_float32_whatever_the_precision(photos, tiny, kind, precision):
    out = "cat.safetensors" if kind == "lora" else "cat"
    config = config_of(photos, kind=kind, out=out, precision=precision, text_encoder=True)
    denoising, parts = denoising_of(config, tiny)
    weights = {**parts.unet_parameters, **parts.text_parameters}
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert parts.pipe.vae.dtype == torch.float32
    if kind == "lora":
        assert parts.pipe.unet.conv_in.weight.dtype == getattr(torch, precision)
    else:
        # and never was rounded
        assert torch.equal(parts.pipe.unet.conv_in.weight, tiny.unet.conv_in.weight)
    sum(denoising.losses(0)).backward()
    assert all(weights[name].grad.isfinite().all() for name in parts.unet_parameters)


def test_every_weight_of_a_lora_moves_in_half_precision(photos, tiny):
    """At a rate at which AdamW's steps vanish beside weights in bfloat16."""
    config = config_of(photos, precision="bfloat16", lr=1e-4, steps=4)
    _, parts = denoising_of(config, tiny)
    before = {name: weight.detach().clone() for name, weight in parts.unet_parameters.items()}
    finetune(config, model_for=lambda *a: Model(fresh(tiny), Defaults(steps=1, guidance=1.0)))
    after = last_tensors(config)
    downs = [name for name in before if "lora_A" in name]
    still = [(after[f"weight.{name}"] == before[name]).float().mean() for name in downs]
    assert max(still) < 0.05


def test_the_base_model_is_there_while_its_lora_is_trained(photos, tiny):
    config = config_of(photos, prior="base", class_prompt="a cat", text_encoder=True)
    denoising, parts = denoising_of(config, tiny)
    with torch.no_grad():
        for weight in (*parts.unet_parameters.values(), *parts.text_parameters.values()):
            weight.add_(0.1)
    noisy, timesteps = torch.randn(1, 4, 8, 8, generator=seeded(1)), torch.tensor([500])
    samples = denoising.albums[1].draw(0, parts.config, 1000)[:1]
    with parts.as_before():
        before = denoising.predict(noisy, timesteps, samples)
    embeds, _ = tiny.encode_prompt("a cat", CPU, 1, False)
    with torch.no_grad():
        expected = tiny.unet(noisy, timesteps, embeds).sample
    assert torch.equal(before, expected)
    now = denoising.predict(noisy, timesteps, samples)
    assert not torch.allclose(now, expected, atol=1e-3)
    assert now.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "dreambooth"])
def test_the_prior_of_the_base_model_is_kept_at_first(photos, tiny, kind):
    """Nothing is learned yet: the class half has no error, and the photos have all of it."""
    out = "cat.safetensors" if kind == "lora" else "cat"
    config = config_of(photos, kind=kind, out=out, prior="base", class_prompt="a cat")
    denoising, _ = denoising_of(config, tiny)
    samples = [album.draw(0, denoising.config, 1000) for album in denoising.albums]
    assert [denoising.loss([sample]).item() for sample in samples[1]] == [0, 0]
    assert all(denoising.loss([sample]).item() > 0 for sample in samples[0])


def test_a_prior_without_weight_is_no_prior(photos, tiny):
    plain = config_of(photos, steps=3, out="plain.safetensors")
    weightless = config_of(
        photos, steps=3, out="no.safetensors", prior="images", class_prompt="a cat", prior_weight=0
    )
    for config in (plain, weightless):
        finetune(config, model_for=model_of(tiny))
    assert_same(last_tensors(plain), last_tensors(weightless))
    assert not (photos.parent / "class-images").exists()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_min_snr_weighs_each_sample_of_both_halves_by_its_own_timestep(photos, tiny, batch_size):
    # so small a gamma that no two timesteps count alike
    config = config_of(
        photos, batch_size=batch_size, min_snr=0.01, prior="images", class_prompt="a cat"
    )
    denoising, _ = denoising_of(replace(config, buckets=False), tiny)
    halves = [album.draw(0, denoising.config, 1000) for album in denoising.albums]
    samples = [sample for half in halves for sample in half]
    assert len({sample.timestep for sample in samples}) > batch_size
    alone = [denoising.loss([sample]) for sample in samples]
    torch.testing.assert_close(denoising.loss(samples), sum(alone))
    # by hand, from the definition
    sample = samples[-1]
    alphas = tiny.scheduler.alphas_cumprod[sample.timestep]
    snr = alphas / (1 - alphas)
    denoising.config = replace(denoising.config, min_snr=None)
    plain = denoising.loss([sample])
    torch.testing.assert_close(alone[-1], plain * snr.clamp(max=0.01) / snr)


def test_parts_of_a_step_and_checkpointed_gradients_change_nothing(photos, tiny):
    found = []
    for changes in ({}, {"accumulate": 4}, {"gradient_checkpointing": True, "text_encoder": False}):
        config = config_of(photos, batch_size=4, **changes)
        denoising, parts = denoising_of(config, tiny)
        losses = list(denoising.losses(0))
        sum(losses).backward()
        found.append((sum(losses).detach(), [p.grad for p in parts.unet_parameters.values()]))
    assert any(grad.abs().max() > 0 for grad in found[0][1])
    for loss, gradients in found[1:]:
        torch.testing.assert_close(loss, found[0][0])
        torch.testing.assert_close(gradients, found[0][1], atol=1e-6, rtol=1e-4)


def test_a_text_encoder_learns_also_with_checkpointed_gradients(photos, tiny):
    config = config_of(photos, text_encoder=True, gradient_checkpointing=True)
    denoising, parts = denoising_of(config, tiny)
    sum(denoising.losses(0)).backward()
    ups = [p for name, p in parts.text_parameters.items() if "lora_B" in name]
    assert ups
    assert all(up.grad.abs().max() > 0 for up in ups)


def test_processes_share_a_step_and_never_draw_the_same(photos, tiny):
    denoising, _ = denoising_of(config_of(photos, batch_size=5), tiny)
    samples = denoising.albums[0].draw(3, denoising.config, 1000)
    assert len({sample.seed for sample in samples}) == 5
    parts = [share(samples, process, 3) for process in range(3)]
    assert sorted(s.seed for part in parts for s in part) == sorted(s.seed for s in samples)
    assert sum(sample.weight for sample in samples) == pytest.approx(1)
    for batch in batches(samples, 2):
        assert len({(s.view.width, s.view.height) for s in batch}) == 1
        assert len(batch) <= 3


def test_all_photos_come_before_one_comes_again(photos, tiny):
    denoising, _ = denoising_of(config_of(photos), tiny)
    drawn = [s for step in range(6) for s in denoising.albums[0].draw(step, denoising.config, 10)]
    names = [sample.photo.path.name for sample in drawn]
    rounds = [names[i : i + 3] for i in range(0, 12, 3)]
    assert all(sorted(seen) == ["0.png", "1.png", "2.png"] for seen in rounds)
    assert len(set(map(tuple, rounds))) > 1


def test_crops_and_flips_are_drawn_anew_at_each_step(photos, tiny):
    config = config_of(photos, random_crop=True, random_flip=True)
    denoising, _ = denoising_of(config, tiny)
    drawn = [s.view for i in range(8) for s in denoising.albums[0].draw(i, denoising.config, 10)]
    assert len({(view.x, view.y) for view in drawn}) == 16
    assert {view.flipped for view in drawn} == {False, True}


def test_captions_of_the_subject_are_left_out_as_often_as_is_said(photos, tiny):
    config = config_of(photos, caption_dropout=0.3, prior="images", class_prompt="a cat")
    denoising, _ = denoising_of(config, tiny)
    subject, others = (
        [s for step in range(300) for s in album.draw(step, denoising.config, 10)]
        for album in denoising.albums
    )
    empty = [sample for sample in subject if not sample.photo.caption]
    assert len(empty) == pytest.approx(0.3 * len(subject), abs=60)
    assert {sample.photo.caption for sample in others} == {"a cat"}
    # all else of a step is as it would be with them
    named = replace(denoising.albums[0], dropout=0.0)
    spoken = [s for step in range(300) for s in named.draw(step, denoising.config, 10)]
    assert [(s.seed, s.timestep) for s in spoken] == [(s.seed, s.timestep) for s in subject]
    assert all(sample.photo.caption for sample in spoken)


def test_a_step_without_any_caption_is_one_of_no_words(photos, tiny):
    config = config_of(photos, caption_dropout=1.0)
    denoising, parts = denoising_of(config, tiny)
    assert denoising.texts.kept.keys() >= {""}
    nothing, _ = parts.pipe.encode_prompt("", CPU, 1, False)
    assert torch.equal(denoising.embed([""])[0], nothing)
    assert all(loss.isfinite() for loss in denoising.losses(0))


@pytest.mark.parametrize("zeros", [True, False])
def test_sdxl_takes_no_caption_as_it_does_when_it_draws(photos, sdxl_pipe, zeros):
    pipe = fresh(sdxl_pipe)
    pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
    _, nothing, _, nothing_pooled = pipe.encode_prompt("a cat", device=CPU)
    said, said_pooled = encoding.Texts(pipe, CPU).encode(["", "a cat"])
    torch.testing.assert_close(said[:1], nothing)
    torch.testing.assert_close(said_pooled[:1], nothing_pooled)
    assert said[1].abs().min() > 0
    assert zeros != bool(said[0].any())


def test_latents_are_kept_by_what_they_are_of(photos, tiny, monkeypatch):
    denoising, parts = denoising_of(config_of(photos), tiny)
    monkeypatch.setattr(encoding, "cut", pytest.fail)
    again = encoding.Latents(parts.pipe.vae, denoising.latents.folder)
    photo = denoising.albums[0].photos[0]
    view = View(width=16, height=16)
    # mean and deviation are kept, so that each use is another draw
    first, second = (again(photo, view, seeded(seed)) for seed in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, denoising.latents(photo, view, seeded(0)))
    other = copy.deepcopy(parts.pipe.vae)
    next(other.parameters()).data.add_(1)
    names = {
        again.key(photo, view),
        again.key(photo, replace(view, flipped=True)),
        again.key(replace(photo, digest="x"), view),
        encoding.Latents(other, again.folder).key(photo, view),
    }
    assert len(names) == 4


def test_latents_are_scaled_as_the_pipeline_decodes_them(photos, tiny):
    denoising, parts = denoising_of(config_of(photos), tiny)
    photo = denoising.albums[0].photos[0]
    vae = parts.pipe.vae
    mean = denoising.latents.moments(photo, View(width=16, height=16))["mean"]
    pixels = encoding.as_pixels(photo.read())[None]
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mean[0] * vae.config.scaling_factor
    torch.testing.assert_close(mean, expected)


@pytest.mark.slow
def test_class_images_are_drawn_once_and_say_what_they_are(photos, tiny):
    config = config_of(photos, prior="images", class_prompt="a cat", class_images=4)
    denoising_of(config, tiny)
    (first, *rest) = sorted((photos.parent / "class-images").iterdir())
    assert len(rest) == 1
    record = json.loads((first / "run.json").read_text())
    assert {image["prompt"] for image in record["images"]} == {"a cat"}
    before = (first / "000.png").stat().st_mtime_ns
    denoising, _ = denoising_of(config, tiny)
    assert (first / "000.png").stat().st_mtime_ns == before
    paths = [photo.path for photo in denoising.albums[1].photos]
    assert len(set(paths)) == 4
    seeds = [
        image["seed"]
        for path in (first, *rest)
        for image in json.loads((path / "run.json").read_text())["images"]
    ]
    assert sorted(seeds) == list(range(6))


def test_a_full_disk_keeps_the_checkpoint_before(photos, tiny, monkeypatch):
    config = config_of(photos, steps=2, checkpoint_every=1)
    save = checkpoints.save_file

    def fill_disk(tensors, path, metadata):
        if "0000002" in path.name:
            path.write_bytes(b"half")
            raise SafetensorError("No space left on device")
        save(tensors, path, metadata)

    monkeypatch.setattr(checkpoints, "save_file", fill_disk)
    with pytest.raises(ConsistError, match="cannot be written: No space left on device"):
        finetune(config, model_for=model_of(tiny))
    assert [path.name for path in config.work_folder.glob("step-*")] == ["step-0000001.safetensors"]


def test_a_damaged_checkpoint_is_said(photos, tiny):
    config = config_of(photos, steps=1)
    finetune(config, model_for=model_of(tiny))
    (path,) = checkpoints.checkpoints(config.work_folder)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConsistError, match=r"is damaged .* remove it to go on from the one before"):
        finetune(replace(config, steps=2), model_for=model_of(tiny))


def test_a_loss_that_is_not_finite_ends_it(photos, tiny):
    pipe = fresh(tiny)
    pipe.unet.conv_in.weight.data.fill_(float("inf"))
    with pytest.raises(ConsistError, match="the loss of step 1 is not finite; take a lower rate"):
        finetune(config_of(photos), model_for=model_of(pipe))


def test_too_little_memory_says_what_to_turn_on(photos, tiny, monkeypatch):
    def run_out(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Denoising, "loss", run_out)
    config = config_of(photos)
    with pytest.raises(ConsistError, match="out of memory; turn on gradient checkpointing, more"):
        finetune(config, model_for=model_of(tiny))
    small = replace(
        config.suited_to("sd"),
        gradient_checkpointing=True,
        accumulate=2,
        precision="bfloat16",
        optimizer="adamw8bit",
    )
    assert remedies(small) == "take a lower resolution"


def test_what_cannot_be_trained_is_refused(photos, tiny):
    for changes, sentence in (
        ({"optimizer": "prodigy"}, "needs prodigyopt: pip install prodigyopt"),
        ({"optimizer": "adamw8bit"}, "needs bitsandbytes: pip install bitsandbytes"),
        ({"resolution": 17}, "resolution must be a multiple of 2, not 17"),
        ({"prompt": "a cat " * 60}, "the text encoder takes"),
    ):
        with pytest.raises(ConsistError, match=sentence):
            finetune(config_of(photos, **changes), model_for=model_of(tiny))
    for changes, sentence in (
        ({"kind": "lorra"}, "unknown kind 'lorra', did you mean 'lora'"),
        ({"rank": 0}, "rank must be between 1 and 1024, not 0"),
        ({"lr": float("nan")}, "lr must be between 1e-12 and 10, not nan"),
        ({"prior": "base"}, "prior 'base' needs a class prompt"),
        ({"class_prompt": "a xyz cat"}, "needs a word of its own"),
        ({"out": "cat.pt"}, "lora writes a .safetensors file, not"),
        ({"kind": "dreambooth"}, "dreambooth writes a folder, not"),
        ({"warmup": 5}, "a constant schedule has no warmup"),
    ):
        with pytest.raises(ConsistError, match=sentence):
            config_of(photos, **changes)
