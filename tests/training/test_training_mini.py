"""Training `mini`: exact to resume, right in its formulas, whole from end to end at toy length."""

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from consist.cli import app
from consist.errors import ConsistError
from consist.mini.architecture import build_tokenizer, build_unet
from consist.mini.reader import WEIGHTS, load_reader
from consist.mini.world import Picture, bare, draw, sample_picture
from consist.models.loading import MINI_FOLDER
from consist.training.checkpoints import checkpoints
from consist.training.mini.autoencoder import Album, crop, draw_pictures, off_standard, picture
from consist.training.mini.denoiser import (
    DETAIL_WEIGHT,
    PAIRED,
    PATTERNED,
    STYLED,
    SUBJECT_WEIGHT,
    coverage,
    details_of,
    extra_weights,
    faded,
    frequency,
    hidden_weights,
    stratified_timesteps,
    train_unet,
    use_fast_cpu_attention,
)
from consist.training.mini.session import OutOfTime, Recipe, Session, is_fast_in_half
from consist.training.mini.train import copy_reader, load_parts, train
from consist.training.mini.trainee import MiniTrainee

CPU = torch.device("cpu")


def session(folder, **recipe):
    return Session(folder, Recipe(warmup=3, **recipe), CPU, lambda *a: None, 0.0)


def fit_line(folder, steps, **recipe):
    """Fits a line to noisy points; the points of a step depend on the step alone."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)

    def loss(step):
        x = torch.randn(8, 2, generator=torch.Generator().manual_seed(step))
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    session(folder, **recipe).fit("line", {"line": model}, 0.1, steps, loss)
    return model


def fit_picture(folder, steps, muon=("net.0.weight", "net.2.weight")):
    """Fits a kernel and a matrix by Muon, and biases by AdamW."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 5))
    model = model.to(memory_format=torch.channels_last)

    def loss(step):
        x = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        return (model(x) - x.mean((1, 2, 3))[:, None]).square().mean()

    session(folder).fit("net", {"net": model}, 0.02, steps, loss, muon)
    return model


def fit_by_adamw(folder, steps):
    """Fits a kernel whose channels lie last by AdamW, whose momenta must lie as it does."""
    return fit_picture(folder, steps, ())


@pytest.mark.parametrize("fit", [fit_line, fit_picture, fit_by_adamw])
def test_twelve_steps_are_seven_and_five(fit, tmp_path, monkeypatch):
    # the rate depends on the length of the whole, so it is held still
    monkeypatch.setattr("consist.training.mini.trainee.lr_factor", lambda step, steps, warmup: 1.0)
    for name in ("straight", "parts"):
        (tmp_path / name).mkdir()
    straight = fit(tmp_path / "straight", 12)
    fit(tmp_path / "parts", 7)
    resumed = fit(tmp_path / "parts", 12)
    for name, parameter in straight.named_parameters():
        assert torch.equal(parameter, dict(resumed.named_parameters())[name]), name


def test_muon_turns_all_directions_alike_and_as_far_as_adamw():
    torch.manual_seed(0)
    kernel = nn.Conv2d(8, 16, 3).to(memory_format=torch.channels_last)
    before = kernel.weight.detach().clone()
    gradient = torch.randn(16, 8, 3, 3) * torch.logspace(0, -1.5, 16)[:, None, None, None]
    trainee = MiniTrainee({"c": kernel}, 0.1, 4, 1, ["c.weight"])
    trainee.update([(kernel.weight * gradient).sum()])
    moved = kernel.weight.detach() - before * (1 - 0.1 * 0.01)
    sizes = torch.linalg.svdvals(moved.flatten(1))
    assert sizes.max() / sizes.min() < 2  # of the gradient: over 30
    assert 0.75 < moved.square().mean().sqrt() / (0.1 * 0.2) < 1.25


def test_muon_needs_its_pytorch_and_its_layout(monkeypatch):
    kernel = nn.Conv2d(8, 16, 3)
    with pytest.raises(ValueError, match="channels last"):
        MiniTrainee({"c": kernel}, 0.1, 4, 1, ["c.weight"])
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConsistError, match=r"PyTorch 2\.9"):
        MiniTrainee({"c": nn.Linear(2, 2)}, 0.1, 4, 1, ["c.weight"])


def test_muon_moves_what_lies_inside():
    names = hidden_weights(build_unet())
    assert "mid_block.attentions.0.transformer_blocks.0.attn1.to_k.weight" in names
    assert "up_blocks.1.resnets.0.conv1.weight" in names
    assert not [name for name in names if "norm" in name or name.endswith("bias")]
    outside = ("conv_in.weight", "conv_out.weight", "time_embedding.linear_1.weight")
    assert not {*outside}.intersection(names)


@pytest.mark.parametrize(
    ("device", "capability", "fast"),
    [
        ("cpu", "AVX512", True),
        ("cpu", "AVX2", False),
        ("cpu", "DEFAULT", False),
        ("cuda", "", True),
    ],
)
def test_products_are_in_half_precision_only_where_that_is_fast(
    device, capability, fast, monkeypatch
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert is_fast_in_half(torch.device(device)) == fast


def test_learns(tmp_path):
    model = fit_line(tmp_path, 300)
    torch.testing.assert_close(model.weight.data, torch.ones(1, 2), atol=0.05, rtol=0)


def test_out_of_time_keeps_a_checkpoint(tmp_path):
    with pytest.raises(OutOfTime):
        fit_line(tmp_path, 12, minutes=0.0)
    assert [path.name for path in checkpoints(tmp_path / "line")] == ["step-0000001.safetensors"]
    assert not list(tmp_path.rglob("*.part"))
    fit_line(tmp_path, 12)


@pytest.mark.slow
def test_errors_count_more_on_figures_and_most_on_details(tmp_path):
    masks = draw_pictures(tmp_path, 3).masks
    extra, covered, details = extra_weights(masks), coverage(masks), details_of([0, 1, 2])
    assert extra.shape == covered.shape == details.shape == (3, 1, 16, 16)
    expected = SUBJECT_WEIGHT * covered + DETAIL_WEIGHT * torch.from_numpy(details)
    torch.testing.assert_close(extra, expected)
    assert extra.max() > SUBJECT_WEIGHT + 0.5 * DETAIL_WEIGHT
    assert extra.min() == 0


def test_coverage_is_that_of_any_figure():
    masks = np.zeros((2, 2, 4, 4), np.uint8)
    masks[:, 1, :2] = 255  # the upper half, by the second figure
    assert coverage(masks)[0].tolist() == [[[1.0] * 2, [0.0] * 2]]


def test_what_is_extra_fades_where_noise_hides_it():
    extra = torch.full((3, 1, 2, 2), 4.0)
    clear, half, hidden = faded(extra, torch.tensor([1.0, 0.25, 0.0])).mean((1, 2, 3)).tolist()
    assert (clear, half, hidden) == (5.0, 3.0, 1.0)


def test_timesteps_are_one_from_each_part_of_a_rising_density():
    drawn = stratified_timesteps(10, 1000, torch.Generator().manual_seed(0))
    parts = (drawn / 1000).square() * 10  # what rises in a line has a square below it
    assert sorted(parts.int().tolist()) == list(range(10))
    assert drawn.tolist() != sorted(drawn.tolist())
    many = stratified_timesteps(10_000, 1000, torch.Generator().manual_seed(0))
    assert many.max() == 999
    assert (many < 500).float().mean().item() == pytest.approx(0.25, abs=0.001)


def test_what_is_hard_to_draw_is_learned_from_more_often():
    some = sample_picture(Random(0)).figures[0]
    plain = replace(some, identity=bare(some.identity))
    spotted = replace(
        plain, identity=replace(plain.identity, pattern="spots", pattern_color="white")
    )
    for figures, times in (([plain], 1.0), ([spotted], PATTERNED), ([plain, spotted], PAIRED)):
        flat = Picture(figures=tuple(figures), scene="beach", scene_seed=0)
        assert frequency(flat) == times
        assert frequency(replace(flat, style="pixel")) == times * STYLED


@pytest.mark.slow
def test_a_batch_is_of_pictures_by_their_frequency(tmp_path, monkeypatch):
    losses, described = [], []

    def describe(one, *_):
        described.append(one)
        return ""

    monkeypatch.setattr(Session, "fit", lambda self, *args: losses.append(args[4]))
    monkeypatch.setattr(
        "consist.training.mini.denoiser.frequency", lambda one: float(one == picture(1))
    )
    monkeypatch.setattr("consist.training.mini.denoiser.caption", describe)
    parts = load_parts(MINI_FOLDER)
    album, latents = draw_pictures(tmp_path, 2), torch.zeros(2, 8, 16, 16)
    learning = session(tmp_path, unet_batch=4)
    train_unet(learning, parts.tokenizer, parts.encoder, parts.unet, latents, album)
    losses[0](0)
    assert described == [picture(1)] * 4


@pytest.mark.parametrize("fast", [True, False])
def test_muon_is_for_where_its_products_are_fast(tmp_path, monkeypatch, fast):
    monkeypatch.setattr("consist.training.mini.denoiser.is_fast_in_half", lambda device: fast)
    asked = []
    monkeypatch.setattr(Session, "fit", lambda self, *args: asked.extend(args[-1]))
    parts = load_parts(MINI_FOLDER)
    album = draw_pictures(tmp_path, 2)
    latents = torch.zeros(2, 8, 16, 16)
    train_unet(session(tmp_path), parts.tokenizer, parts.encoder, parts.unet, latents, album)
    assert bool(asked) == fast


def test_fast_attention_is_the_same_attention():
    torch.manual_seed(0)
    unet = build_unet().eval()
    given = torch.randn(2, 8, 16, 16), 500, torch.randn(2, 32, 128)
    with torch.no_grad():
        expected = unet(*given).sample
        use_fast_cpu_attention(unet)
        torch.testing.assert_close(unet(*given).sample, expected, rtol=1e-4, atol=1e-5)


def test_latents_are_pulled_to_mean_0_and_deviation_1():
    standard = torch.randn(4, 8, 64, 64, generator=torch.Generator().manual_seed(0))
    assert off_standard(standard) < 0.01
    assert off_standard(standard + 1) > 0.9
    assert off_standard(3 * standard) > 3.9


@pytest.mark.slow
def test_many_pictures_are_drawn_by_processes_and_are_the_same(tmp_path, monkeypatch):
    for folder in ("alone", "together"):
        (tmp_path / folder).mkdir()
    alone = draw_pictures(tmp_path / "alone", 3)
    monkeypatch.setattr("consist.training.mini.autoencoder.FEW", 3)
    together = draw_pictures(tmp_path / "together", 3)
    assert (together.pixels == alone.pixels).all()
    assert (together.masks == alone.masks).all()


def test_the_album_holds_what_is_drawn(tmp_path):
    album = draw_pictures(tmp_path, 32)
    for index in (0, 31):
        drawing = draw(picture(index))
        assert np.array_equal(album.pixels[index], np.asarray(drawing.image))
        share = np.asarray(drawing.masks[0]).mean()
        assert abs(album.masks[index, 0].mean() - share) < 1
    assert draw_pictures(tmp_path, 32).pixels[5].any()
    with pytest.raises(ConsistError, match="holds 32 pictures, not 33"):
        draw_pictures(tmp_path, 33)


def test_crops_stay_inside():
    album = Album(np.zeros((5, 128, 128, 3), np.uint8), np.zeros((5, 2, 32, 32), np.uint8))
    rng = session(None).random("vae", 0)
    assert {crop(album, i % 5, rng).shape for i in range(200)} == {(64, 64, 3)}


def test_bytes_that_no_caption_has_tokenize():
    tokenizer = build_tokenizer(["a cat"])
    for text in ("zebra", "猫", "q"):
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids[1:-1]


@pytest.mark.slow
def test_trains_from_nothing_to_a_pipeline_in_two_goes(tmp_path):
    lengths = {"vae_steps": 2, "vae_batch": 2, "word_steps": 2, "word_batch": 4}
    lengths |= {"reader_steps": 2, "reader_batch": 4}
    recipe = {"pictures": 64, "unet_steps": 3, "unet_batch": 2, **lengths}
    stages = []

    def report(stage, step, steps, loss):
        stages.append(stage)

    with pytest.raises(OutOfTime):
        train(tmp_path, Recipe(**recipe, minutes=0.0), CPU, report)
    folder = train(tmp_path, Recipe(**recipe), CPU, report)
    assert "latents" in stages
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a cat", num_inference_steps=2).images[0].size == (128, 128)
    reader = load_reader(path=folder / "reader.safetensors")
    assert len(reader.read([Image.new("RGB", (64, 64))])) == 1
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_begins_with_given_weights_and_keeps_its_eyes(tmp_path):
    recipe = Recipe(pictures=64, unet_steps=1, unet_batch=2, reader_steps=0)
    folder = train(tmp_path, recipe, CPU, lambda *a: None, MINI_FOLDER)
    before, after = (StableDiffusionPipeline.from_pretrained(f) for f in (MINI_FOLDER, folder))
    vaes = zip(before.vae.parameters(), after.vae.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in vaes)
    assert before.tokenizer.get_vocab() == after.tokenizer.get_vocab()
    old, new = (nn.utils.parameters_to_vector(x.unet.parameters()) for x in (before, after))
    assert 0 < torch.dist(old, new) < 0.01 * old.norm()  # one step away
    assert (folder / "reader.safetensors").read_bytes() == WEIGHTS.read_bytes()
    configs = [path.read_text() for path in folder.rglob("*.json")]
    assert not any(str(MINI_FOLDER) in config for config in configs)


def test_other_draws_are_the_same_each_time(tmp_path):
    plain, other = session(tmp_path), replace(session(tmp_path), draws="a-")
    assert other.random("unet", 3).random() == other.random("unet", 3).random()
    assert other.random("unet", 3).random() != plain.random("unet", 3).random()


@pytest.mark.slow
def test_what_is_drawn_depends_on_the_start(tmp_path, monkeypatch):
    drawn = []

    def note(session, *parts):
        drawn.append(session.draws)

    monkeypatch.setattr("consist.training.mini.train.train_unet", note)
    recipe = Recipe(pictures=64, unet_steps=1, reader_steps=0)
    folder = train(tmp_path, recipe, CPU, lambda *a: None, MINI_FOLDER)
    train(tmp_path, recipe, CPU, lambda *a: None, folder)
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(unet)
    weights["conv_out.bias"][0] += 1
    save_file(weights, unet, {"format": "pt"})
    train(tmp_path, recipe, CPU, lambda *a: None, folder)
    first, same, other = drawn
    assert first == same != other


@pytest.mark.slow
def test_a_reader_learns_on_beside_a_model_that_stays(tmp_path):
    recipe = Recipe(pictures=64, unet_steps=0, reader_steps=1, reader_batch=2, warmup=1)
    folder = train(tmp_path, recipe, CPU, lambda *a: None, MINI_FOLDER)
    old, new = (load_file(file) for file in (WEIGHTS, folder / "reader.safetensors"))
    moved = torch.cat([(new[name].float() - old[name].float()).flatten() for name in old])
    assert 0 < moved.abs().median() < 0.01  # one step away
    unet = Path("unet", "diffusion_pytorch_model.safetensors")
    assert (folder / unet).read_bytes() == (MINI_FOLDER / unet).read_bytes()


def test_begins_with_nothing_else(tmp_path, sd_pipe):
    with pytest.raises(ConsistError, match="no model to start from"):
        load_parts(tmp_path)
    sd_pipe.save_pretrained(tmp_path)
    with pytest.raises(ConsistError, match="of another make than mini"):
        load_parts(tmp_path)
    with pytest.raises(ConsistError, match="holds no reader"):
        copy_reader(tmp_path / "reader.safetensors", tmp_path / "copy")


def test_a_start_that_is_not_there_is_one_sentence(tmp_path):
    args = ["train", "mini", str(tmp_path / "work"), "--start", str(tmp_path / "nowhere")]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2
    assert "nowhere holds no model to start from" in " ".join(result.output.split())
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("words", "steps", "rate"),
    [
        ("", 4_200, 2e-3),
        ("--start mini", 0, 4e-4),
        ("--start mini --steps 0 --reader-steps 7", 7, 4e-4),
    ],
)
def test_a_reader_is_kept_unless_it_shall_learn_on(words, steps, rate, tmp_path, monkeypatch):
    recipes = []

    def train(folder, recipe, *rest):
        recipes.append(recipe)
        return folder

    monkeypatch.setattr("consist.training.mini.train.train", train)
    result = CliRunner().invoke(app, ["train", "mini", str(tmp_path), *words.split()])
    assert result.exit_code == 0, result.output
    assert [(one.reader_steps, one.reader_lr) for one in recipes] == [(steps, rate)]
