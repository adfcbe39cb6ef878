"""A user's own pictures as anchors: noised instead of drawn, and seen by every picture."""

import copy
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderTiny
from diffusers.models.attention_processor import Attention
from pictures import largest_difference
from PIL import Image
from typer.testing import CliRunner

import consist
from consist.attention.method import Site
from consist.attention.processor import SharedAttnProcessor, match_keys
from consist.cli import app
from consist.errors import ConsistError
from consist.methods import build
from consist.models.loading import SCHEDULERS
from consist.runs.chunks import Chunk, places
from consist.runs.config import RunConfig
from consist.runs.drawing import Batch, draw, generate
from consist.runs.extending import extend, redo, take_subject
from consist.runs.grid import draw_grid
from consist.runs.pictures import open_picture
from consist.runs.preparing import Settings
from consist.runs.references import encode, read_pictures, with_references
from consist.runs.subject import Subject

SIZE, STEPS, GUIDANCE = 16, 4, 3.0
SETTINGS = Settings(
    steps=STEPS,
    guidance=GUIDANCE,
    width=SIZE,
    height=SIZE,
    scheduler="",
    device="cpu",
    dtype="float32",
    backend="reference",
)
SCENES = ("a cat in Paris", "a cat on the moon", "a cat on a beach")


def paint(path, color=(220, 60, 20), size=(96, 64)):
    """A picture that is not the same everywhere."""
    image = Image.linear_gradient("L").resize(size)
    Image.merge("RGB", [image.point(lambda x, c=c: (x + c) % 256) for c in color]).save(path)
    return path


@pytest.fixture
def photo(tmp_path):
    return paint(tmp_path / "photo.png")


def config(count=1, **changes):
    given = {"prompts": SCENES[:count], "seeds": tuple(range(count)), "steps": 2}
    given |= {"width": 64, "height": 64, **changes}
    return RunConfig(**given)


# the pictures


def test_a_picture_is_upright_and_on_white(tmp_path):
    image = Image.new("RGB", (4, 2), "red")
    image.putpixel((0, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    turned = open_picture(tmp_path / "turned.png")
    assert turned.size == (2, 4)
    assert turned.getpixel((1, 0)) == (0, 0, 255)
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_the_middle_of_a_picture_is_taken(tmp_path):
    image = Image.new("RGB", (60, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    image.save(tmp_path / "wide.png")
    run = with_references(config(), [tmp_path / "wide.png"], ["a cat"])
    (middle,) = read_pictures(run, 20, 20)
    assert middle.getcolors() == [(400, (0, 0, 255))]


def damaged(folder):
    whole = paint(folder / "whole.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("a cat")
    Image.new("I;16", (4, 4)).save(folder / "deep.png")
    Image.new("RGB", (4, 4)).save(folder / "odd.ppm")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.png", "missing.png cannot be read: No such file or directory"),
        ("cut.png", "cut.png cannot be read: "),
        ("text.png", "text.png is none of JPEG, PNG"),
        # of the many formats that Pillow reads, some run programs
        ("odd.ppm", "odd.ppm is none of JPEG, PNG"),
        ("deep.png", "deep.png has more than 8 bits a channel"),
        ("whole.png", "whole.png has more than 0 megapixels"),
    ],
)
def test_what_is_no_picture_is_one_sentence(tmp_path, monkeypatch, name, message):
    damaged(tmp_path)
    if name == "whole.png":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 96 * 64 - 1)
    with pytest.raises(ConsistError) as error:
        with_references(config(), [tmp_path / name], ["a cat"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def pixels_of(photo):
    (picture,) = read_pictures(with_references(config(), [photo], ["a cat"]), SIZE, SIZE)
    levels = torch.tensor(list(picture.tobytes()), dtype=torch.float32)
    return picture, (levels.reshape(1, SIZE, SIZE, 3).permute(0, 3, 1, 2) / 127.5 - 1)


def test_latents_are_the_mean_of_the_autoencoder(photo, sd_pipe):
    picture, pixels = pixels_of(photo)
    vae = copy.deepcopy(sd_pipe.vae)
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
    parts = {"image_processor": sd_pipe.image_processor, "unet": sd_pipe.unet}
    torch.testing.assert_close(encode(SimpleNamespace(vae=vae, **parts), [picture]), expected)
    # float16 weights, which would overflow in SDXL, work in float32
    half = SimpleNamespace(vae=copy.deepcopy(vae).half(), **parts)
    seen = []
    half.vae.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    torch.testing.assert_close(encode(half, [picture]), expected, rtol=1e-2, atol=1e-2)
    assert seen == [torch.float32]
    assert half.vae.dtype == torch.float16
    means = {"latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [0.5, 1.0, 2.0, 4.0]}
    vae.register_to_config(**means)
    mean, deviation = (torch.tensor(value)[:, None, None] for value in means.values())
    normed = (expected - mean * vae.config.scaling_factor) / deviation
    torch.testing.assert_close(encode(SimpleNamespace(vae=vae, **parts), [picture]), normed)


def test_latents_of_the_tiny_autoencoder(photo, sd_pipe):
    picture, pixels = pixels_of(photo)
    torch.manual_seed(0)
    layers = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    vae = AutoencoderTiny(**layers, **blocks, scaling_factor=0.5).eval()
    pipe = SimpleNamespace(vae=vae, image_processor=sd_pipe.image_processor, unet=sd_pipe.unet)
    with torch.no_grad():
        torch.testing.assert_close(encode(pipe, [picture]), vae.encode(pixels).latents * 0.5)


# the noise


@pytest.fixture(params=["sd_pipe", "sdxl_pipe"])
def pipe(request):
    pipe = request.getfixturevalue(request.param)
    scheduler = pipe.scheduler
    yield pipe
    pipe.scheduler = scheduler


def drawn(pipe, photo, **changes):
    """The run and its only chunk, drawn: the reference and one picture."""
    run = with_references(config(method={"name": "shared"}, **changes), [photo], ["a cat"])
    batch = Batch(
        pipe=pipe,
        config=run.with_anchors(),
        settings=SETTINGS,
        chunk=Chunk(images=(0, 1), new=(1,)),
        method=build(run.method),
    )
    return run, draw(batch)


def clean_and_noise(pipe, photo, run):
    _, pixels = pixels_of(photo)
    with torch.no_grad():
        clean = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    generator = torch.Generator().manual_seed(run.anchor_seeds[0])
    return clean[0], torch.randn(clean[0].shape, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_unet_sees_the_reference_with_the_noise_of_the_step(pipe, photo, name):
    if name == "lms":
        pytest.importorskip("scipy")
    pipe.scheduler = SCHEDULERS[name].from_config(pipe.scheduler.config)
    seen = []

    def look(unet, args, kwargs):
        seen.append((args[0], float(args[1])))

    handle = pipe.unet.register_forward_pre_hook(look, with_kwargs=True)
    try:
        run, _ = drawn(pipe, photo)
    finally:
        handle.remove()
    clean, noise = clean_and_noise(pipe, photo, run)
    assert len(seen) >= STEPS
    for sample, timestep in seen:
        signal = pipe.scheduler.alphas_cumprod[int(timestep)]
        expected = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        assert len(sample) == 4
        for row in (0, 2):
            torch.testing.assert_close(sample[row], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def draw_by_hand(pipe, photo, run, name):
    """The picture of a plain loop over timesteps, guidance and all, where only it is stepped."""
    scheduler = SCHEDULERS[name].from_config(pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    clean, noise = clean_and_noise(pipe, photo, run)
    generator = torch.Generator().manual_seed(run.seeds[0])
    latents = torch.randn((1, *clean.shape), generator=generator) * scheduler.init_noise_sigma
    texts = pipe.encode_prompt(["a cat", SCENES[0]], "cpu", 1, True)
    context = torch.cat((texts[1], texts[0]))
    sharing = consist.shared_attention(
        pipe.unet, consist.Shared(anchors=1), guidance_halves=2, backend="reference", references=1
    )
    with sharing:
        for t in scheduler.timesteps:
            signal = scheduler.alphas_cumprod[int(t)]
            held = signal.sqrt() * clean + (1 - signal).sqrt() * noise
            batch = torch.cat((held[None], scheduler.scale_model_input(latents, t)))
            without, given = pipe.unet(torch.cat((batch, batch)), t, context).sample.chunk(2)
            guided = without + GUIDANCE * (given - without)
            latents = scheduler.step(guided[1:], t, latents).prev_sample
    final = torch.cat((clean[None], latents)) / pipe.vae.config.scaling_factor
    return pipe.image_processor.postprocess(pipe.vae.decode(final).sample)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++"])
def test_a_picture_is_that_of_a_plain_loop(sd_pipe, photo, name):
    before = sd_pipe.scheduler
    sd_pipe.scheduler = SCHEDULERS[name].from_config(before.config)
    try:
        run, images = drawn(sd_pipe, photo)
    finally:
        sd_pipe.scheduler = before
    for found, expected in zip(images, draw_by_hand(sd_pipe, photo, run, name), strict=True):
        assert largest_difference(found, expected) <= 1


# what is seen


def attend_by_hand(q, k, v, references):
    """Images ``n h l d`` that see references normalized to their own keys; those see themselves."""
    out = torch.empty_like(q)
    for image in range(len(q)):
        keys, values = [k[image]], [v[image]]
        for other in range(references if image >= references else 0):
            own, seen = k[image], k[other]
            gain = own.std(-2, correction=0, keepdim=True) / seen.std(
                -2, correction=0, keepdim=True
            )
            keys.append((seen - seen.mean(-2, True)) * gain + own.mean(-2, True))
            values.append(v[other])
        logits = q[image] @ torch.cat(keys, -2).mT / math.sqrt(q.shape[-1])
        out[image] = logits.softmax(-1) @ torch.cat(values, -2)
    return out


def test_references_are_seen_as_an_image_would_have_them():
    g, n, h, l, d, references = 2, 4, 2, 12, 4, 2
    torch.manual_seed(0)
    attn = Attention(query_dim=h * d, heads=h, dim_head=d).double()
    batch = torch.randn(g * n, l, h * d, dtype=torch.float64)
    batch = batch * torch.rand(g * n, 1, h * d).exp() + torch.randn(g * n, 1, h * d)
    site = Site(layer="up_blocks.0", height=3, width=4, progress=0.5, g=g, n=n)
    call = SimpleNamespace(site=lambda layer, tokens: site)
    method = consist.Shared(anchors=references)
    with torch.no_grad():
        # eps of the normalization is small against these variances
        attn.set_processor(
            SharedAttnProcessor("up_blocks.0", method, call, "reference", references)
        )
        found = attn(100 * batch)
        q, k, v = (
            project(100 * batch).reshape(g, n, l, h, d).transpose(2, 3)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        by_hand = torch.stack(
            [attend_by_hand(*half, references) for half in zip(q, k, v, strict=True)]
        )
        expected = attn.to_out[0](by_hand.transpose(2, 3).reshape(g * n, l, h * d))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_more_references_than_images_are_refused(sd_pipe):
    with pytest.raises(ValueError, match="references is -1"):
        consist.shared_attention(sd_pipe, consist.Shared(), references=-1).__enter__()
    sharing = consist.shared_attention(sd_pipe, consist.Shared(), references=2)
    with pytest.raises(ValueError, match="references is 2; allowed: at most 1"), sharing:
        sd_pipe("a cat", num_inference_steps=1)


# the run


@pytest.mark.slow
def test_a_single_picture_sees_the_reference(tmp_path, photo, model_for):
    asked = with_references(config(compare=True), [photo], ["a cat"])
    run = generate(asked, tmp_path / "run", model_for=model_for)
    alone = generate(config(method={"name": "isolated"}), tmp_path / "alone", model_for=model_for)
    assert largest_difference(run.read_picture(0, "isolated"), alone.read_picture(0)) == 0
    assert largest_difference(run.read_picture(0), alone.read_picture(0)) > 20
    record = run.read_record()
    assert record["config"]["anchor_pictures"] == [str(photo)]
    assert [len(digest) for digest in record["config"]["anchor_digests"]] == [64]
    assert [image["file"] for image in record["images"]] == ["000.png"]
    rows = {"isolated": run.read_picture(0, "isolated"), "matched": run.read_picture(0)}
    rows = {name: [*read_pictures(asked, 64, 64), picture] for name, picture in rows.items()}
    with Image.open(run.grid_path) as grid:
        assert largest_difference(grid, draw_grid(rows, ["reference: a cat", SCENES[0]])) == 0
    # another picture, another subject
    other = with_references(config(), [paint(tmp_path / "b.png", (0, 128, 0))], ["a cat"])
    other = generate(other, tmp_path / "other", model_for=model_for)
    assert largest_difference(run.read_picture(0), other.read_picture(0)) > 20


def test_keys_are_matched_beside_references_alone(tmp_path, photo, model_for, monkeypatch):
    calls = []

    def told(q, k, images, references):
        calls.append((images, references))
        return match_keys(q, k, images, references)

    monkeypatch.setattr("consist.attention.processor.match_keys", told)
    asked = with_references(config(2, compare=True), [photo], ["a cat"])
    generate(asked, tmp_path / "run", model_for=model_for)
    assert set(calls) == {(3, 1)}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spectral", "sdsa", "consistory"])
def test_a_picture_does_not_depend_on_its_neighbors(tmp_path, photo, model_for, method):
    both = [photo, paint(tmp_path / "b.png", (0, 128, 0))]
    settings = {"name": method, **({} if method == "spectral" else {"subject": ["cat"]})}
    asked = with_references(config(3, method=settings), both, ["a cat"])
    assert asked.method["anchors"] == 2
    together = generate(asked, tmp_path / "together", model_for=model_for)
    apart = replace(asked, batch_size=3)
    apart = generate(apart, tmp_path / "apart", model_for=model_for)
    for index in range(3):
        pair = together.read_picture(index), apart.read_picture(index)
        # batches of other sizes add up in another order
        assert largest_difference(*pair) <= 2


def test_extended_and_redone_as_if_drawn_at_once(tmp_path, photo, model_for):
    asked = with_references(config(2, batch_size=2), [photo], ["a cat"])
    whole = replace(asked, prompts=SCENES, seeds=(0, 1, 3))
    whole = generate(whole, tmp_path / "whole", model_for=model_for)
    run = generate(asked, tmp_path / "run", model_for=model_for)
    extend(run.path, SCENES[2:], model_for=model_for)
    for index in range(3):
        assert largest_difference(run.read_picture(index), whole.read_picture(index)) == 0
    # what the model decided at first stays
    assert run.read_config().guidance == 4.0
    kept = run.picture_path(2).read_bytes()
    old = run.read_picture(1)
    redo(run.path, 1, model_for=model_for)
    assert largest_difference(run.read_picture(1), old) > 20
    redo(run.path, 1, seed=1, model_for=model_for)
    assert largest_difference(run.read_picture(1), old) == 0
    assert run.picture_path(2).read_bytes() == kept


def test_a_picture_like_the_reference_is_drawn(tmp_path, photo, model_for):
    """Its prompt and seed may be those of the reference: it is another picture all the same."""
    run = with_references(config(), [photo], [SCENES[0]])
    run = replace(run, anchor_seeds=run.seeds)
    assert places(run) == [1]
    folder = generate(run, tmp_path / "run", model_for=model_for)
    (reference,) = read_pictures(run, 64, 64)
    assert largest_difference(folder.read_picture(0), reference) > 100


def test_a_changed_or_lost_picture_is_named(tmp_path, photo, model_for, monkeypatch):
    monkeypatch.setenv("CONSIST_HOME", str(tmp_path / "home"))
    run = generate(
        with_references(config(), [photo], ["a cat"]), tmp_path / "run", model_for=model_for
    )
    take_subject(run.path).save("tom")
    scenes = Subject.load("tom").scenes(SCENES[1:2])
    assert scenes.anchor_prompts == ("a cat",)
    extend(run.path, SCENES[1:2], model_for=model_for)
    found = generate(scenes, tmp_path / "found", model_for=model_for)
    assert largest_difference(found.read_picture(0), run.read_picture(1)) <= 2
    original = photo.read_bytes()
    paint(photo, (1, 2, 3))
    changed = f"the reference {photo} has changed"
    for spoil in (lambda: None, photo.unlink):
        spoil()
        message = changed if photo.exists() else f"{photo} cannot be read: No such"
        for go_on in (
            lambda: extend(run.path, SCENES[2:], model_for=model_for),
            lambda: redo(run.path, 0, model_for=model_for),
            lambda: generate(replace(scenes, seeds=(9,)), tmp_path / "new", model_for=model_for),
            lambda: take_subject(run.path),
        ):
            with pytest.raises(ConsistError) as error:
                go_on()
            assert message in str(error.value)
    assert run.read_config().prompts == SCENES[:2]
    photo.write_bytes(original)
    extend(run.path, SCENES[2:], model_for=model_for)


def test_all_given_pictures_are_shown_unless_only_the_first_is_asked_for(photo):
    default = config(2, method={"name": "matched"})
    assert with_references(default, [photo], ["a cat"]).method["source"] == "all"
    told = config(2, method={"name": "matched", "source": "first"})
    assert with_references(told, [photo], ["a cat"]).method["source"] == "first"


def test_the_subject_is_what_all_prompts_name(photo):
    masked = config(2, method={"name": "sdsa"})
    assert with_references(masked, [photo], ["a cat"]).method["subject"] == ["cat"]
    with pytest.raises(ConsistError, match="name it with --subject"):
        with_references(masked, [photo], ["a dog"])


@pytest.mark.parametrize(
    ("method", "pictures", "prompts", "message"),
    [
        ({"name": "spectral"}, 0, ["a cat"], "a reference prompt was given without a reference"),
        ({"name": "spectral"}, 1, [], "a reference needs a prompt"),
        ({"name": "spectral"}, 3, ["a", "b"], "2 reference prompts were given for 3 references"),
        ({"name": "spectral"}, 1, [" "], "anchor prompt 1 is empty"),
        ({"name": "spectral", "anchors": "random"}, 1, ["a cat"], "leave the method's anchors out"),
        ({"name": "isolated"}, 1, ["a cat"], "isolated takes no references: it shares nothing"),
        (
            {"name": "one-prompt"},
            1,
            ["a cat"],
            "it draws all pictures from one prompt",
        ),
        ({"name": "stylealigned"}, 2, ["a cat"], "stylealigned: anchors is 2; allowed: 1"),
    ],
)
def test_refuses(photo, method, pictures, prompts, message):
    with pytest.raises(ConsistError) as error:
        with_references(config(2, method=method), [photo] * pictures, prompts)
    assert message in str(error.value)


def test_refuses_a_run_with_anchors_or_without_digests(photo):
    run = with_references(config(), [photo], ["a cat"])
    with pytest.raises(ConsistError, match="names its anchors already"):
        with_references(run, [photo], ["a cat"])
    with pytest.raises(ConsistError, match="1 anchor pictures and 0 digests were given"):
        replace(run, anchor_digests=())
    with pytest.raises(ConsistError, match="a batch of 1 has no room beside 1 anchors"):
        generate(replace(run, batch_size=1), photo.parent / "run")


def test_the_command(tmp_path, photo, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["batch", SCENES[0], "--dry-run", "--reference", "photo.png"]
    result = CliRunner().invoke(app, [*given, "--reference-prompt", "a cat"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["anchor_prompts"], told["anchor_pictures"]) == (["a cat"], [str(photo)])
    assert told["method"]["anchors"] == 1
    for more, message in (([], "a reference needs a prompt"), (["--like", "tom"], "--like")):
        result = CliRunner().invoke(app, [*given, *more])
        assert result.exit_code == 2
        assert message in result.stderr
