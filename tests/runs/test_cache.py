"""Further pictures without their anchors: from what the anchors shared, kept in a file."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import HeunDiscreteScheduler
from PIL import ImageChops, ImageStat
from safetensors.torch import save_file
from typer.testing import CliRunner

import consist.runs.drawing as drawing
from consist.attention import bank as sharing
from consist.attention.anchor_cache import (
    Cached,
    Recording,
    compress,
    expand,
    factor,
    refuse_uncached,
)
from consist.attention.method import Method, Site
from consist.attention.processor import shared_attention
from consist.cli import app
from consist.errors import ConsistError
from consist.methods import build
from consist.prompts.phrases import find_subject
from consist.runs.baseline import find_isolated
from consist.runs.cache_file import CacheFile, describe
from consist.runs.config import RunConfig
from consist.runs.drawing import complete, generate
from consist.runs.extending import CACHE_FILE, extend, redo, take_subject
from consist.runs.folder import RunFolder, default_folder, identity
from consist.runs.subject import Subject, cache_path
from consist.runs.versions import versions

PROMPTS = ("a cat in paris", "a cat on the moon")
NEW = ("a cat on a beach",)
MORE = ("a cat on a beach", "a cat in a forest")
STEPS = 3
SMALL = {"width": 64, "height": 64}


def config(**changes):
    return RunConfig(**{"prompts": PROMPTS, "seeds": (3, 5), "steps": 2, **SMALL, **changes})


def latents(pipe, prompts, method, seeds, *, guidance=3.0, subject=False):
    tokens = find_subject(pipe.tokenizer, prompts, ["cat"]) if subject else None
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with shared_attention(pipe, method, subject_tokens=tokens):
        return pipe(
            list(prompts),
            generator=generators,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            output_type="latent",
        ).images


def record(pipe, method, *, anchors=PROMPTS, guidance=3.0, energy=1.0, dtype=torch.float32):
    """As the recorded run draws them: the anchors, and the first of them once more."""
    recording = Recording(method, energy=energy, dtype=dtype)
    subject = method.reads_words
    seeds = (*range(len(anchors)), 0)
    drawn = (*anchors, anchors[0])
    latents(pipe, drawn, recording, seeds, guidance=guidance, subject=subject)
    return recording.kept


def from_both(pipe, method, guidance=3.0, **changes):
    """New latents beside their anchors, from the cache, and without either."""
    subject = method.reads_words
    whole = latents(pipe, PROMPTS + NEW, method, (0, 1, 2), guidance=guidance, subject=subject)
    kept = record(pipe, method, guidance=guidance, **changes)
    cached = latents(pipe, NEW, Cached(method, kept), (2,), guidance=guidance)
    alone = latents(pipe, NEW, build({"name": "isolated"}), (2,), guidance=guidance)
    return whole[2:], cached, alone


def mean_difference(a, b):
    return sum(ImageStat.Stat(ImageChops.difference(a, b)).mean) / 3


def pictures(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.path.glob("0*.png"))}


# oracle


@pytest.mark.slow
@pytest.mark.parametrize("host", ["sd_pipe", "sdxl_pipe"])
@pytest.mark.parametrize(
    ("method", "guidance"),
    [
        ({"name": "spectral"}, 3.0),
        ({"name": "spectral", "window": "0,0.7"}, 1.0),
        ({"name": "shared", "strength": 2.0}, 3.0),
        ({"name": "sdsa", "subject": ["cat"], "strength": 2.0}, 3.0),
        ({"name": "storydiffusion", "chances": "0.5,1"}, 3.0),
        ({"name": "matched", "injection": 0.0, "blending": (0.0, 0.0)}, 3.0),
    ],
)
def test_all_that_was_shared_gives_what_the_anchors_give(host, method, guidance, request):
    pipe = request.getfixturevalue(host)
    processors = dict(pipe.unet.attn_processors)
    whole, cached, alone = from_both(pipe, build({"anchors": 2, **method}), guidance)
    torch.testing.assert_close(cached, whole, rtol=0, atol=1e-4)
    assert (alone - whole).abs().max() > 1e-3
    assert dict(pipe.unet.attn_processors) == processors


def test_anchors_are_drawn_as_they_are_without_a_recording():
    method = build({"name": "matched"})
    recording = Recording(method)
    assert recording.masks == "matches"
    assert not recording.reads_words
    assert recording.reads_features
    assert recording.reads_plain_queries
    layer, site = "up_blocks.0", Site(layer="x", height=1, width=2, progress=0.05, g=1, n=2)
    blending = Recording(build({"name": "consistory"}))
    assert blending.blends(layer, 0.05)
    assert not recording.blends(layer, 0.05)
    q, k, v = torch.rand(3, 2, 1, 2, 4)
    assert recording.inject(q, site) is method.inject(q, site)
    assert recording.rewrite(q, k, v, site) == (q, k, v)


def test_a_single_anchor_is_recorded_too(sd_pipe):
    method = build({"name": "shared", "anchors": 1})
    whole = latents(sd_pipe, PROMPTS, method, (0, 1))
    cached = Cached(method, record(sd_pipe, method, anchors=PROMPTS[:1]))
    again = latents(sd_pipe, PROMPTS[1:], cached, (1,))
    torch.testing.assert_close(again, whole[1:], rtol=0, atol=1e-4)


SITE = Site(layer="up_blocks.0", height=2, width=2, progress=0.5, g=2, n=3)


def record_last(hidden):
    """Records three images that show two tokens each; ``hidden`` are those that the last misses.

    Returns what the last image gets beside the others, its q, k, v, and what is kept.
    """
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2 * 3, 2, 4, 8, generator=generator)
    visible = torch.ones(3, 3, dtype=torch.bool)
    visible[-1, hidden] = False
    bank = sharing.Bank(
        k=torch.randn(2, 2, 6, 8, generator=generator),
        v=torch.randn(2, 2, 6, 8, generator=generator),
        owner=torch.tensor([0, 0, 1, 1, 2, 2]),
        bias=torch.randn(6, generator=generator),
        visible=visible,
    )

    class Fixed(Method):
        def __call__(self, q, k, v, site):
            return bank

    recording = Recording(Fixed(), energy=1.0, dtype=torch.float32)
    recording(q, k, v, SITE)
    last = [x[[2, 5]] for x in (q, k, v)]
    return sharing.attend(q, k, v, bank)[[2, 5]], last, recording.kept


@pytest.mark.parametrize("hidden", [[], [0], [1]])
def test_only_what_the_last_image_sees_is_kept(hidden):
    beside, last, kept = record_last(hidden)
    bank = Cached(build({"name": "shared"}), kept)(*last, replace(SITE, n=1))
    assert bank.k.shape[2] == 4 - 2 * len(hidden)
    torch.testing.assert_close(sharing.attend(*last, bank), beside, rtol=1e-4, atol=1e-4)


def test_an_image_that_sees_nothing_keeps_nothing():
    _, last, kept = record_last([0, 1])
    assert Cached(build({"name": "shared"}), kept)(*last, replace(SITE, n=1)) is None
    assert not any(len(x) for x in kept.values())


def test_a_timestep_may_come_twice(sd_pipe, monkeypatch):
    heun = HeunDiscreteScheduler.from_config(sd_pipe.scheduler.config)
    monkeypatch.setattr(sd_pipe, "scheduler", heun)
    whole, cached, _ = from_both(sd_pipe, build({"name": "shared", "anchors": 2}))
    # its noise is larger, and so are its latents
    torch.testing.assert_close(cached, whole, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_more_energy_is_a_smaller_error(sd_pipe):
    method = build({"name": "shared", "anchors": 2})
    errors = []
    for energy in (0.3, 0.9, 0.999):
        whole, cached, _ = from_both(sd_pipe, method, energy=energy, dtype=torch.float16)
        errors.append((cached - whole).norm())
    assert errors[0] > 1.5 * errors[1] > 3 * errors[2]


def test_steps_or_guidance_that_were_not_recorded_are_refused(sd_pipe):
    method = build({"name": "shared", "anchors": 2})
    kept = record(sd_pipe, method)
    with pytest.raises(ValueError, match=r"at progress .* with 1 guidance halves"):
        latents(sd_pipe, NEW, Cached(method, kept), (2,), guidance=1.0)
    cached = Cached(method, kept)
    latents(sd_pipe, NEW, cached, (2,))
    with pytest.raises(ValueError, match=r"nothing was recorded of up_blocks\..* at progress"):
        latents(sd_pipe, NEW, cached, (2,))


# factors


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
def test_factors_keep_enough_energy_and_no_more(shape):
    torch.manual_seed(0)
    a = torch.randn(*shape, dtype=torch.float64) ** 3
    s = torch.linalg.svdvals(a)
    left, right = factor(a, 0.9)
    rank = left.shape[1]
    assert s[:rank].square().sum() >= 0.9 * s.square().sum() > s[: rank - 1].square().sum()
    assert right.shape == (rank, shape[1])
    u, _, vh = torch.linalg.svd(a, full_matrices=False)
    torch.testing.assert_close(left @ right, u[:, :rank] * s[:rank] @ vh[:rank])
    torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1))


def test_the_mean_token_costs_no_rank():
    torch.manual_seed(0)
    low = torch.randn(64, 3) @ torch.randn(3, 32)
    parts = compress(low + 100, 0.9999)
    assert parts["left"].shape == (64, 3)
    torch.testing.assert_close(expand(parts), low + 100, rtol=1e-4, atol=1e-3)


def test_what_has_no_low_rank_is_kept_in_full():
    torch.manual_seed(0)
    a = torch.randn(16, 16)
    assert torch.equal(compress(a, 0.999)["full"], a)


def test_half_precision_holds_factors_where_it_holds_the_matrix():
    torch.manual_seed(0)
    a = 60_000 * torch.rand(4096, 1) * torch.sign(torch.randn(1, 64))
    parts = {name: part.half() for name, part in compress(a, 0.999).items()}
    error = expand({name: part.float() for name, part in parts.items()}) - a
    assert error.norm() < 1e-2 * a.norm()


# which methods


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ({"name": "one-prompt"}, "it draws all pictures from one prompt"),
        ({"name": "stylealigned"}, "queries and keys of each picture are brought to those"),
        ({"name": "sdsa", "subject": ["cat", "bus"]}, "needs one subject to look for, and has 2"),
        ({"name": "sdsa"}, "needs one subject to look for, and has 0"),
        ({"name": "isolated"}, "it shares nothing"),
    ],
)
def test_a_method_that_needs_its_anchors_is_refused(method, reason):
    name = method["name"]
    with pytest.raises(ConsistError, match=f"{name} cannot be drawn from a cache: .*{reason}"):
        refuse_uncached(build(method), name)


@pytest.mark.parametrize("name", ["shared", "spectral", "matched", "notch", "storydiffusion"])
def test_the_others_are_not(name):
    refuse_uncached(build({"name": name}), name)


# the file

RESOLVED = {"steps": 2, "guidance": 3.0, "width": 64, "height": 64, "scheduler": "DDIMScheduler"}


def of(path, resolved=RESOLVED, **changes):
    named = {"prompts": NEW, "seeds": (9,), "anchor_prompts": PROMPTS, "anchor_seeds": (3, 5)}
    return CacheFile(path, describe(config(**{**named, **changes}), resolved))


def test_a_file_is_read_back(tmp_path):
    kept = {"a/k0/full": torch.rand(3, 2).half(), "b/nothing": torch.empty(0)}
    file = of(tmp_path / "cache.safetensors")
    assert file.read() is None
    file.write(kept)
    found = of(file.path, prompts=("a dog",), batch_size=7, device="cpu").read()
    assert list(found) == list(kept)
    assert all(torch.equal(found[name], kept[name]) for name in kept)
    assert [path.name for path in tmp_path.iterdir()] == ["cache.safetensors"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "some/model"}, 'model "mini", not "some/model"'),
        ({"method": {"name": "shared"}}, 'method {"name": "matched"}, not {"name": "shared"}'),
        ({"loras": ("style.safetensors",)}, r"loras \[\], not"),
        ({"embeddings": ("tom.safetensors",)}, r"embeddings \[\], not"),
        ({"anchor_prompts": (PROMPTS[0], "a dog")}, "anchor prompts .*, not .*dog"),
        ({"anchor_seeds": (3, 6)}, r"anchor seeds \[3, 5\], not \[3, 6\]"),
        ({"negative": "blur"}, 'negative "", not "blur"'),
        ({"guidance_rescale": 0.5}, "guidance rescale 0.0, not 0.5"),
        ({"loras": ("a",), "lora_negative": 0.5}, "LoRAs in the negative 1.0, not 0.5"),
        (
            {"loras": ("a",), "lora_negative": 0.5, "lora_subject": ("cat",)},
            r"words of the LoRAs \[\], not \[\"cat\"\]",
        ),
        ({"resolved": {**RESOLVED, "steps": 3}}, "steps 2, not 3"),
        ({"resolved": {**RESOLVED, "guidance": 1.0}}, "guidance 3.0, not 1.0"),
        ({"resolved": {**RESOLVED, "width": 32}}, "width 64, not 32"),
        ({"resolved": {**RESOLVED, "height": 32}}, "height 64, not 32"),
        ({"resolved": {**RESOLVED, "scheduler": "HeunDiscreteScheduler"}}, "scheduler .*DDIM"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, changes, message):
    path = tmp_path / "cache.safetensors"
    of(path).write({"nothing": torch.empty(0)})
    with pytest.raises(ConsistError, match=f"was made with {message}.*; remove it to have it made"):
        of(path, **changes).read()


def test_other_weights_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "cache.safetensors"
    of(path).write({"nothing": torch.empty(0)})
    monkeypatch.setattr("consist.runs.cache_file.versions", lambda model: {"mini": "0" * 12})
    with pytest.raises(ConsistError, match=r'was made with weights ".*", not "0{12}"'):
        of(path).read()


def test_another_format_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "cache.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("consist.runs.cache_file.FORMAT", 2)
        of(path).write({"nothing": torch.empty(0)})
    with pytest.raises(ConsistError, match="was made with format 2, not 1"):
        of(path).read()


def damage(path, how):
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    elif how == "foreign":
        save_file({"x": torch.zeros(2)}, path)
    elif how == "other header":
        save_file({"x": torch.zeros(2)}, path, {"consist": "[]"})
    else:
        path.write_bytes(how)


@pytest.mark.parametrize("how", ["cut", "foreign", "other header", b"", b"no tensors at all"])
def test_a_damaged_file_is_one_sentence(tmp_path, how):
    path = tmp_path / "cache.safetensors"
    of(path).write({"a/k0/full": torch.rand(8, 8)})
    damage(path, how)
    with pytest.raises(ConsistError, match="is damaged, or no cache; remove it to have it made"):
        of(path).read()


# the run


def test_the_folders_of_other_runs_keep_their_names():
    named = config(anchor_prompts=PROMPTS, anchor_seeds=(3, 5))
    assert "cache" not in identity(named)
    cached = [config(anchor_prompts=PROMPTS, anchor_seeds=(3, 5), cache=at) for at in ("a", "/b")]
    assert default_folder(cached[0]) == default_folder(cached[1]) != default_folder(named)


def test_the_isolated_row_is_that_of_a_run_without_a_cache(tmp_path):
    named = config(anchor_prompts=PROMPTS, anchor_seeds=(3, 5))
    cached = config(anchor_prompts=PROMPTS, anchor_seeds=(3, 5), cache=CACHE_FILE)
    source = RunFolder(tmp_path)
    source.write_record({"config": named.to_json(), "versions": versions("mini")})
    (tmp_path / "isolated").mkdir()
    for index in range(2):
        source.picture_path(index, "isolated").touch()
    assert find_isolated(source, cached) == "isolated"


def test_a_cache_is_of_anchors():
    with pytest.raises(ConsistError, match="a cache is of anchors that a run names"):
        config(cache=CACHE_FILE)
    with pytest.raises(ConsistError, match="and not of given pictures"):
        config(
            cache=CACHE_FILE,
            anchor_prompts=PROMPTS[:1],
            anchor_seeds=(0,),
            anchor_pictures=("/a.png",),
            anchor_digests=("0",),
        )


@pytest.fixture
def drawn(monkeypatch):
    """How many images each call of a pipeline draws."""
    real_draw, sizes = drawing.draw, []

    def watched_draw(batch):
        sizes.append(len(batch.chunk.images))
        return real_draw(batch)

    monkeypatch.setattr(drawing, "draw", watched_draw)
    return sizes


def test_the_anchors_are_drawn_once(tmp_path, model_for, drawn):
    run = generate(config(), tmp_path / "run", model_for=model_for)
    plain = generate(config(), tmp_path / "plain", model_for=model_for)
    extend(plain.path, MORE, model_for=model_for)
    before, told = pictures(run), []
    drawn.clear()
    extend(
        run.path,
        MORE[:1],
        cache=True,
        model_for=model_for,
        watch=lambda done, count: told.append((round(done, 3), count)),
    )
    assert drawn == [3, 1]
    # the three that were recorded count too
    assert told == [(3.5, 6), (5.0, 6), (5.5, 6), (6.0, 6)]
    extend(run.path, MORE[1:], batch_size=1, model_for=model_for)
    assert drawn == [3, 1, 1]
    redo(run.path, 2, model_for=model_for)
    assert drawn == [3, 1, 1, 1]
    assert {name: pictures(run)[name] for name in before} == before
    assert run.read_config().cache == CACHE_FILE
    beside, cached = plain.read_picture(3), run.read_picture(3)
    first = run.read_picture(0)
    assert mean_difference(beside, cached) < 0.1 * mean_difference(beside, first)


@pytest.mark.slow
def test_a_killed_extension_goes_on_with_the_same_pictures(tmp_path, model_for, monkeypatch):
    killed = generate(config(), tmp_path / "run", model_for=model_for)
    real_draw = drawing.draw

    def extend_until(stop):
        calls = []

        def dying_draw(*args):
            calls.append(args)
            if len(calls) > stop:
                raise KeyboardInterrupt
            return real_draw(*args)

        monkeypatch.setattr(drawing, "draw", dying_draw)
        extend(killed.path, MORE, batch_size=3, cache=True, model_for=model_for)
        return len(calls)

    def at_once():
        straight = generate(config(), tmp_path / "straight", model_for=model_for)
        return extend(straight.path, MORE, batch_size=3, cache=True, model_for=model_for)

    for stop in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            extend_until(stop)
        assert (killed.path / CACHE_FILE).exists() == (stop > 0)
    # the file is read
    assert extend_until(9) == 1
    assert pictures(killed) == pictures(at_once())


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ({"name": "stylealigned"}, {}, "stylealigned cannot be drawn from a cache"),
        ({"name": "spectral"}, {"batch_size": 2}, "a batch of 2 has no room beside 2 anchors"),
    ],
)
def test_refuses_and_changes_nothing(tmp_path, model_for, method, arguments, message):
    run = generate(config(steps=1, method=method), tmp_path / "run", model_for=model_for)
    before = {path: path.read_bytes() for path in run.path.rglob("*.*")}
    with pytest.raises(ConsistError, match=message):
        extend(run.path, NEW, cache=True, model_for=model_for, **arguments)
    assert {path: path.read_bytes() for path in run.path.rglob("*.*")} == before


def test_a_file_that_does_not_fit_stops_the_run(tmp_path, model_for):
    run = generate(config(steps=1), tmp_path / "run", model_for=model_for)
    (run.path / CACHE_FILE).write_bytes(b"")
    record = run.read_record()
    with pytest.raises(ConsistError, match="is damaged, or no cache"):
        extend(run.path, NEW, cache=True, model_for=model_for)
    assert run.read_record() == record


@pytest.mark.slow
def test_subjects_have_a_cache_beside_them(tmp_path, model_for, drawn, monkeypatch):
    monkeypatch.setenv("CONSIST_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    run = generate(config(steps=1), tmp_path / "run", model_for=model_for)
    take_subject(run.path).save("tom")
    drawn.clear()
    for number, sizes in enumerate([[3, 1], [3, 1, 1]]):
        out = ("--out", f"scene-{number}")
        result = CliRunner().invoke(app, ["batch", NEW[0], "--like", "tom", "--cache", *out])
        assert result.exit_code == 0, result.output
        assert drawn == sizes
    assert (tmp_path / "scene-0" / "000.png").read_bytes()
    shown = CliRunner().invoke(app, ["subject", "show", "tom"]).stdout
    assert f"cache  {cache_path('tom')}, " in shown
    assert Subject.load("tom").config.cache == ""
    # a picture that is an anchor is drawn with the others, as it was
    scene = Subject.load("tom").scenes((PROMPTS[1],), (5,))
    scene = RunConfig(**{**vars(scene), "cache": str(cache_path("tom"))})
    found = complete(type(run)(tmp_path / "anchor"), scene, model_for=model_for)
    assert pictures(found)["000.png"] != b""
    assert mean_difference(found.read_picture(0), run.read_picture(1)) == 0
    assert drawn == [3, 1, 1, 2]


def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = generate(config(steps=1), "run")
    result = CliRunner().invoke(app, ["extend", "run", NEW[0], "--cache", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["config"]["cache"] == CACHE_FILE
    assert (run.path / CACHE_FILE).exists()
    result = CliRunner().invoke(app, ["batch", *PROMPTS, "--cache"])
    assert result.exit_code == 2
    assert "--cache goes with --like, or with consist extend" in result.stderr
