"""ConsiStory: eq. 4 and the injection against loops, and all of it in real pipelines."""

import copy
import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Thread

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel

import consist
from consist.attention.correspondence import RecordedFeatures, find_matches
from consist.attention.layers import feature_block, recorded_layers
from consist.attention.masks import find_masks
from consist.attention.method import Site
from consist.methods import build

UP = "up_blocks.1.attentions.0.transformer_blocks.0.attn1"
DOWN = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
MID = "mid_block.attentions.0.transformer_blocks.0.attn1"
G, N, H, ROWS, COLUMNS, D = 2, 3, 2, 4, 6, 4
L = ROWS * COLUMNS
PROMPTS = ["a cat in paris", "a cat on the moon", "a cat on a beach", "a cat in a forest"]
TOKENS = (((2,),),) * 3


def draw_numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def draw_masks(n=N, phrases=1):
    return draw_numbers(n, phrases, L, seed=1) < 0.3


def recorded(n=N):
    """Features as a UNet call leaves them to the next one."""
    features = RecordedFeatures()
    features.begin(0.1)
    features.add(draw_numbers(n, 5, ROWS, COLUMNS, seed=2))
    features.begin(0.2)
    return features


def site(**changes):
    fields = {"layer": UP, "height": ROWS, "width": COLUMNS, "progress": 0.2, "g": G, "n": N}
    return Site(**{**fields, "masks": draw_masks(), "features": recorded(), **changes})


# identity


def test_without_blending_and_injection_it_is_sdsa():
    method = consist.Consistory(blending=(0.0, 0.0), injection=0.0)
    q, k, v = draw_numbers(3, G * N, H, L, D)
    bank, expected = method(q, k, v, site()), consist.Sdsa()(q, k, v, site())
    assert torch.equal(bank.k, expected.k)
    assert torch.equal(bank.owner, expected.owner)
    assert [method.covers(layer) for layer in (UP, DOWN, MID)] == [True, False, False]
    assert not any(method.blends(UP, progress) for progress in (0.0, 0.05, 0.5))
    assert method.inject(v, site()) is v


# oracle


@pytest.mark.parametrize(("progress", "nu"), [(0.0, 0.9), (0.02, 0.88), (0.05, 0.85), (0.09, 0.81)])
def test_queries_are_blended_as_in_the_paper(progress, nu):
    """Eq. 4 of arXiv:2402.03286, number by number."""
    q, k, v = draw_numbers(3, G * N, H, L, D)
    vanilla = draw_numbers(G * N, H, L, D, seed=3)
    before = q.clone()
    there = site(progress=progress, vanilla_q=vanilla)
    found, *others = consist.Consistory().rewrite(q, k, v, there)
    mixed = zip(q.flatten().tolist(), vanilla.flatten().tolist(), strict=True)
    expected = [(1 - nu) * shared + nu * plain for shared, plain in mixed]
    torch.testing.assert_close(found.flatten(), torch.tensor(expected, dtype=torch.float64))
    assert others[0] is k
    assert others[1] is v
    assert torch.equal(q, before)


@pytest.mark.parametrize("anchors", [1, 2, "all"])
@pytest.mark.parametrize("g", [1, 2])
def test_features_are_injected_as_in_the_paper(anchors, g):
    """Section 4.3: every source is read as it was before anything was injected."""
    out, sources = draw_numbers(g * N, L, 7), range(N if anchors == "all" else anchors)
    named = torch.tensor([[1, 1], [1, 0], [1, 1]]).bool()
    there = site(g=g, masks=draw_masks(phrases=2), named=named)
    features = draw_numbers(N, 5, ROWS, COLUMNS, seed=2)
    matches = find_matches(features, there.masks, tuple(sources), named)
    expected = out.clone()
    for i in range(N):
        for place in range(L):
            if matches.accepted[i, place]:
                j, m = matches.image[i, place], matches.place[i, place]
                assert j in sources
                row, source = (g - 1) * N + i, out[(g - 1) * N + j, m]
                expected[row, place] = 0.2 * out[row, place] + 0.8 * source
    before = out.clone()
    found = consist.Consistory(anchors=anchors).inject(out, there)
    torch.testing.assert_close(found, expected)
    assert (found != out).any(-1).any(-1).sum() == (N if anchors != 1 else N - 1)
    assert torch.equal(out, before)


# property


def test_windows_are_those_of_the_paper_with_fifty_steps():
    method, out = consist.Consistory(), draw_numbers(G * N, L, 7)
    timesteps = [981 - 20 * step for step in range(50)]
    blended = [t for t in timesteps if method.blends(UP, 1 - t / 1000)]
    assert blended == [981, 961, 941, 921, 901]
    injected = [
        t for t in timesteps if (method.inject(out, site(progress=1 - t / 1000)) != out).any()
    ]
    assert injected == [t for t in timesteps if 680 <= t <= 900]


def test_layers_share_in_the_decoder_and_inject_in_the_encoder_too():
    method, batch, out = (
        consist.Consistory(),
        draw_numbers(3, G * N, H, L, D),
        draw_numbers(6, L, 7),
    )
    layers = (UP, DOWN, MID)
    assert [method.covers(layer) for layer in layers] == [True, True, False]
    assert [method(*batch, site(layer=layer)) is not None for layer in layers] == [1, 0, 0]
    assert [method.blends(layer, 0.05) for layer in layers] == [True, False, False]
    assert [method.inject(out, site(layer=layer)) is not out for layer in layers] == [1, 1, 0]


@pytest.mark.parametrize(
    "changes",
    [{"masks": None}, {"features": None}, {"n": 1, "g": 6}, {"height": COLUMNS, "width": ROWS}],
)
def test_nothing_is_injected_without_masks_features_others_or_their_grid(changes):
    out = draw_numbers(G * N, L, 7)
    assert consist.Consistory().inject(out, site(**changes)) is out


def test_queries_are_blended_only_where_images_share():
    q, k, v = draw_numbers(3, G * N, H, L, D)
    there = site(vanilla_q=k)
    assert consist.Consistory(sides=(1, 5)).rewrite(q, k, v, there)[0] is q
    assert consist.Consistory(window=(0.3, 1.0)).rewrite(q, k, v, there)[0] is q
    assert not consist.Consistory(window=(0.3, 1.0)).blends(UP, 0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays(dtype):
    q, k, v = draw_numbers(3, G * N, H, L, D).to(dtype)
    method = consist.Consistory()
    assert method.rewrite(q, k, v, site(vanilla_q=q))[0].dtype == dtype
    assert method.inject(draw_numbers(G * N, L, 7).to(dtype), site()).dtype == dtype


def test_is_made_from_texts():
    texts = {"blending": "0.7,0.5", "injection": "0", "injection_window": "0.1,0.34"}
    made = build({"name": "consistory", **texts})
    windows = {"injection_window": (0.1, 0.34)}
    assert made == consist.Consistory(blending=(0.7, 0.5), injection=0.0, **windows)
    for asked in ("reads_words", "reads_features", "reads_plain_queries"):
        assert getattr(made, asked)
        assert not getattr(consist.Spectral(), asked)


# in a UNet


@dataclass(frozen=True, kw_only=True)
class Spy(consist.Consistory):
    """Remembers the sites at which it was asked."""

    sites: list = ()

    def __call__(self, q, k, v, site):
        self.sites.append(site)
        return super().__call__(q, k, v, site)


@dataclass(frozen=True, kw_only=True)
class Failing(consist.Consistory):
    """Fails in the midst of a call that had a plain forward before it."""

    def rewrite(self, q, k, v, site):
        if site.vanilla_q is not None:
            raise RuntimeError("the method fails")
        return q, k, v


def forward(unet, timestep, seed=5, size=(8, 8), n=3, **options):
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(2, 3, 4, *size, generator=generator)[:, :n].flatten(0, 1)
    text = torch.randn(2, 3, 7, 32, generator=generator)[:, :n].flatten(0, 1)
    with torch.no_grad():
        return unet(sample, timestep, text, **options).sample


def sharing(unet, method, tokens=TOKENS, **options):
    return consist.shared_attention(
        unet, method, guidance_halves=2, subject_tokens=tokens, **options
    )


@contextmanager
def heard(module, hear):
    """Lets ``hear`` be told of what goes into and comes out of a module."""
    handle = module.register_forward_hook(
        lambda module, args, kwargs, output: hear(module, args, kwargs, output), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()


def trace(unet):
    hooks = [(dict(m._forward_pre_hooks), dict(m._forward_hooks)) for m in unet.modules()]
    return [id(p) for p in unet.attn_processors.values()], hooks


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (7, 9)])
def test_vanilla_queries_are_those_of_the_untouched_unet(unet, size):
    spy, queries = Spy(sites=[], anchors=2), []
    attn = unet.get_submodule(UP)
    with sharing(unet, spy):
        forward(unet, 980, size=size)
        spy.sites.clear()
        forward(unet, 950, size=size)
    with heard(attn.to_q, lambda *x: queries.append(x[-1])):
        forward(unet, 950, size=size)
    (there,) = [s for s in spy.sites if s.layer == UP]
    expected = queries[0].unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    torch.testing.assert_close(there.vanilla_q, expected, rtol=0, atol=0)
    assert all(s.vanilla_q is None for s in spy.sites if not s.layer.startswith("up_blocks"))


def test_vanilla_queries_are_let_go_of(unet):
    with sharing(unet, consist.Consistory()):
        forward(unet, 980)
        forward(unet, 950)
        assert unet.get_submodule(UP).processor.call.vanilla == {}


def test_the_plain_forward_is_not_recorded(unet):
    """Masks at the third step come from the two real calls before, and not from three."""
    layers, seen = recorded_layers(unet), {name: [] for name in recorded_layers(unet)}

    def listen(name):
        def hear(attn, args, kwargs):
            q, k = attn.to_q(args[0]), attn.to_k(kwargs["encoder_hidden_states"])
            scores = attn.get_attention_scores(attn.head_to_batch_dim(q), attn.head_to_batch_dim(k))
            seen[name].append(scores.unflatten(0, (6, attn.heads))[3:, :, :, 2].mean(1))

        return hear

    handles = [
        attn.register_forward_pre_hook(listen(name), with_kwargs=True)
        for name, attn in layers.items()
    ]
    spy = Spy(sites=[], blending=(1.0, 0.9))
    try:
        with sharing(unet, spy, seed=3):
            forward(unet, 980)
            forward(unet, 920, seed=6)
            forward(unet, 500)
    finally:
        for handle in handles:
            handle.remove()
    assert {len(maps) for maps in seen.values()} == {4}
    real = [torch.stack([maps[i] for maps in seen.values()]).sum(0) for i in (0, 2)]
    mean = torch.stack(real).sum(0).reshape(3, 1, 4, 4)
    there = spy.sites[-1]
    assert torch.equal(there.masks, find_masks(mean.double(), there.height, there.width))


@pytest.mark.parametrize("freeu", [False, True])
def test_features_are_those_of_the_step_before(unet, freeu):
    """Of the conditional half, and as the block gave them: FreeU scales them in place."""
    features, found = [], []

    @dataclass(frozen=True, kw_only=True)
    class Asking(consist.Consistory):
        def inject(self, out, site):
            found.append(site.features.match((8, 8), torch.ones(3, 1, 64).bool(), (0, 1)))
            return out

    if freeu:
        unet.enable_freeu(s1=0.6, s2=0.4, b1=1.1, b2=1.2)
    try:
        with (
            sharing(unet, Asking()),
            heard(feature_block(unet), lambda *x: features.append(x[-1].clone())),
        ):
            forward(unet, 980)
            assert set(found) == {None}
            found.clear()
            forward(unet, 930, seed=6)
            first = found[0]
            forward(unet, 800)
    finally:
        unet.disable_freeu()
    # the second call has a plain forward before it
    assert len(features) == 4
    for matches, before in ((first, features[0]), (found[-1], features[2])):
        expected = find_matches(before[3:], torch.ones(3, 1, 64).bool(), (0, 1))
        assert torch.equal(matches.place, expected.place)
        assert torch.equal(matches.image, expected.image)


def test_a_plain_forward_leaves_the_residuals_of_an_adapter(unet):
    """With empty masks nothing is shared, so that the pictures stay as they are."""
    residuals = [draw_numbers(6, 32, 8, 8).float(), draw_numbers(6, 64, 4, 4).float()]
    expected = forward(unet, 950, down_intrablock_additional_residuals=list(residuals))
    method, masks = consist.Consistory(), torch.zeros(3, 8, 8).bool()
    with consist.shared_attention(unet, method, guidance_halves=2, masks=masks):
        found = forward(unet, 950, down_intrablock_additional_residuals=list(residuals))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (expected - forward(unet, 950)).abs().max() > 1e-3


def test_leaves_no_trace_even_after_an_error(unet):
    before = trace(unet)
    with sharing(unet, consist.Consistory()):
        assert trace(unet) != before
        forward(unet, 980)
        forward(unet, 950)
    assert trace(unet) == before
    failing = sharing(unet, Failing(), masks=torch.ones(3, 8, 8).bool())
    with pytest.raises(RuntimeError, match="the method fails"), failing:
        forward(unet, 950)
    assert trace(unet) == before


def test_an_error_in_the_plain_forward_leaves_the_block_as_it_was(unet):
    def fail(*args):
        if unet.get_submodule(UP).processor.__class__.__name__ != "SharedAttnProcessor":
            raise RuntimeError("the plain forward fails")

    with sharing(unet, consist.Consistory()):
        inside = trace(unet)
        expected = [forward(unet, t) for t in (980, 950, 800)][-1]
        forward(unet, 980)
        with heard(unet.conv_out, fail), pytest.raises(RuntimeError, match="plain forward fails"):
            forward(unet, 950)
        assert trace(unet) == inside
        again = [forward(unet, t) for t in (980, 950, 800)][-1]
        torch.testing.assert_close(again, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("levels", "block", "halvings"),
    [(3, "up_blocks.0", 1), (4, "up_blocks.1", 1), (2, "up_blocks.0", 0)],
    ids=["SDXL", "SD 1 and 2", "mini"],
)
def test_features_come_from_the_middle_of_the_decoder(levels, block, halvings):
    unet = UNet2DConditionModel(
        block_out_channels=(8,) * levels,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=2,
    )
    assert feature_block(unet) is unet.get_submodule(block)
    grids = []
    with heard(feature_block(unet), lambda *x: grids.append(x[-1].shape[2:])):
        forward(unet, 500, size=(16, 24))
    assert grids == [(16 >> halvings, 24 >> halvings)]


# in a pipeline


def draw(pipe, n=3, **options):
    generators = [torch.Generator().manual_seed(i) for i in range(n)]
    options = {"num_inference_steps": 12, "output_type": "latent", **options}
    return pipe(PROMPTS[:n], generator=generators, **options).images


def draw_with(pipe, method, n=3, **options):
    tokens = consist.find_subject(pipe.tokenizer, PROMPTS[:n], ("cat",))
    with consist.shared_attention(pipe, method, subject_tokens=tokens):
        return draw(pipe, n, **options)


@contextmanager
def scheduled(pipe, scheduler):
    before = pipe.scheduler
    pipe.scheduler = scheduler(before.config)
    try:
        yield
    finally:
        pipe.scheduler = before


LEADING = DDIMScheduler.from_config
TRAILING = partial(DDIMScheduler.from_config, timestep_spacing="trailing")
EULER = EulerDiscreteScheduler.from_config

DAILY = [
    ("sd_pipe", EULER, 2, {"height": 16, "width": 24, "guidance_scale": 1.0}),
    ("sdxl_pipe", TRAILING, 2, {"num_inference_steps": 4, "guidance_scale": 5.0}),
]
SLOW = [
    ("sd_pipe", LEADING, 2, {"guidance_scale": 5.0}),
    ("sd_pipe", EULER, 4, {"height": 16, "width": 24, "guidance_scale": 1.0}),
    ("sdxl_pipe", EULER, 2, {"guidance_scale": 5.0}),
    ("sdxl_pipe", TRAILING, 4, {"height": 24, "width": 16, "guidance_scale": 1.0}),
]
PIPELINES = [*DAILY, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scheduler", "n", "options"), PIPELINES)
def test_every_part_changes_pictures_and_without_them_it_is_sdsa(
    name, scheduler, n, options, request
):
    pipe = request.getfixturevalue(name)
    neutral = {"blending": (0.0, 0.0), "injection": 0.0}
    parts = [neutral, {**neutral, "injection": 0.8}]
    if scheduler is not LEADING and "num_inference_steps" not in options:
        # else no step but the first, when there are no masks, is early enough
        parts.append({**neutral, "blending": (0.9, 0.8)})
    with scheduled(pipe, scheduler):
        sdsa = draw_with(pipe, consist.Sdsa(), n, **options)
        same, *others = (draw_with(pipe, consist.Consistory(**x), n, **options) for x in parts)
        torch.testing.assert_close(same, sdsa, rtol=0, atol=0)
        for images in others:
            assert images.isfinite().all()
            assert (images - sdsa).abs().max() > 1e-4
        alone = draw_with(pipe, consist.Consistory(), 1, **options)
        torch.testing.assert_close(alone, draw(pipe, 1, **options), rtol=0, atol=0)


def test_nothing_is_left_of_the_pictures_before(sd_pipe):
    tokens = consist.find_subject(sd_pipe.tokenizer, PROMPTS[:2])
    with (
        scheduled(sd_pipe, EULER),
        consist.shared_attention(sd_pipe, consist.Consistory(), subject_tokens=tokens),
    ):
        first, second = draw(sd_pipe, 2), draw(sd_pipe, 2)
    torch.testing.assert_close(second, first, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("scheduler", "steps", "changes", "calls"),
    [
        pytest.param(LEADING, 50, {}, 54, marks=pytest.mark.slow),
        (EULER, 12, {}, 13),
        (EULER, 12, {"blending": (0.0, 0.0)}, 12),
        (EULER, 12, {"blending_window": (0.0, 0.2)}, 14),
        (TRAILING, 4, {}, 4),
    ],
)
def test_one_run_is_enough(sd_pipe, scheduler, steps, changes, calls):
    """Counted at the first convolution: 50 steps of DDIM take 54 calls of the UNet."""
    counted = []
    with scheduled(sd_pipe, scheduler), heard(sd_pipe.unet.conv_in, lambda *x: counted.append(1)):
        draw_with(sd_pipe, consist.Consistory(**changes), 2, num_inference_steps=steps)
    assert len(counted) == calls


@pytest.mark.slow
def test_anchors_do_not_know_the_other_images(sdxl_pipe):
    method = consist.Consistory(anchors=2)
    with scheduled(sdxl_pipe, EULER):
        pair, three = (draw_with(sdxl_pipe, method, n) for n in (2, 3))
        without = draw_with(sdxl_pipe, consist.Consistory(anchors=2, injection=0.0), 3)
    torch.testing.assert_close(three[:2], pair, rtol=1e-3, atol=1e-4)
    # all are injected into, the anchors from each other
    assert ((three - without).abs().amax((1, 2, 3)) > 1e-4).all()


@pytest.mark.slow
def test_two_pipelines_at_once_do_not_meet(sd_pipe):
    pipes, method, drawn = [copy.deepcopy(sd_pipe) for _ in range(2)], consist.Consistory(), {}
    for pipe in pipes:
        pipe.scheduler = EULER(sd_pipe.scheduler.config)
    expected = {n: draw_with(pipes[0], method, n) for n in (2, 3)}

    def run(pipe, n):
        drawn[n] = draw_with(pipe, method, n)

    threads = [Thread(target=run, args=x) for x in zip(pipes, (2, 3), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, images in expected.items():
        torch.testing.assert_close(drawn[n], images, rtol=1e-4, atol=1e-5)


# refusal


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"blending": (0.9,)}, r"blending is \(0.9,\); allowed: two weights in \[0, 1\]"),
        ({"blending": (0.9, 1.1)}, r"blending is \(0.9, 1.1\)"),
        ({"blending": (math.nan, 0.5)}, r"blending is \(nan, 0.5\)"),
        ({"injection": 1.5}, "injection is 1.5; allowed: 0 <= weight <= 1"),
        ({"injection": math.nan}, "injection is nan"),
        ({"blending_window": (0.1, 0.1)}, r"blending_window is \(0.1, 0.1\); allowed: 0 <= start"),
        ({"injection_window": (0.1, 1.1)}, r"injection_window is \(0.1, 1.1\)"),
        ({"injection_window": (0.1,)}, r"injection_window is \(0.1,\)"),
        ({"mask_dropout": 1.0}, "mask_dropout is 1.0"),
    ],
)
def test_a_field_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        consist.Consistory(**fields)


def test_more_anchors_than_images_are_refused():
    with pytest.raises(ValueError, match="anchors is 4; allowed: at most 3"):
        consist.Consistory(anchors=4).inject(draw_numbers(G * N, L, 7), site())


def test_it_must_be_told_the_subject(unet):
    before = trace(unet)
    with (
        pytest.raises(ValueError, match="Consistory takes one of them"),
        consist.shared_attention(unet, consist.Consistory(), guidance_halves=2),
    ):
        pass
    assert trace(unet) == before
