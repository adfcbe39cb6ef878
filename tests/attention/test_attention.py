"""The plug: exact when neutral, gone without a trace, and honest about what it cannot do."""

import copy

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPAGPipeline,
)
from diffusers.models.attention_processor import AttnProcessor2_0, FusedAttnProcessor2_0

import consist
from consist.attention.layers import grid_of
from consist.attention.method import Method, Site
from consist.attention.processor import SharedAttnProcessor
from consist.runs.memory import count_held

PROMPTS = ["a cat in paris", "a cat on the moon", "a red bus"]
ALL_LAYERS = ("down_blocks", "mid_block", "up_blocks")


def forward(unet, n=3, halves=2, size=(8, 8), timestep=500):
    generator = torch.Generator().manual_seed(5)
    sample = torch.randn(halves * n, 4, *size, generator=generator)
    text = torch.randn(halves * n, 7, 32, generator=generator)
    with torch.no_grad():
        return unet(sample, timestep, text).sample


def generators(n=3):
    return [torch.Generator().manual_seed(i) for i in range(n)]


def draw(pipe, prompts=PROMPTS, **options):
    options = {"num_inference_steps": 3, "output_type": "latent", **options}
    return pipe(prompts, generator=generators(len(prompts)), **options).images


class Spy(Method):
    """A method that shares nothing and remembers the sites at which it was asked."""

    def __init__(self):
        self.sites: list[Site] = []

    def __call__(self, q, k, v, site):
        assert q.shape[0] == site.g * site.n
        assert q.shape[2] == site.height * site.width
        self.sites.append(site)


class Failing(Spy):
    def __call__(self, q, k, v, site):
        raise RuntimeError("the method fails")


# identity


def test_isolated_is_the_untouched_model(unet):
    expected = forward(unet)
    with consist.shared_attention(unet, consist.Isolated(), guidance_halves=2):
        torch.testing.assert_close(forward(unet), expected, rtol=0, atol=0)


@pytest.mark.parametrize("pipe", ["sd_pipe", "sdxl_pipe"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_isolated_is_the_untouched_pipeline(pipe, guidance, request):
    pipe = request.getfixturevalue(pipe)
    expected = draw(pipe, guidance_scale=guidance)
    with consist.shared_attention(pipe, consist.Isolated()):
        actual = draw(pipe, guidance_scale=guidance)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_identity_spectra_are_shared(unet):
    with consist.shared_attention(unet, consist.Shared(), guidance_halves=2):
        expected = forward(unet)
    plain = consist.Spectral(keys="identity", values="identity")
    with consist.shared_attention(unet, plain, guidance_halves=2):
        torch.testing.assert_close(forward(unet), expected, rtol=0, atol=0)


# oracle: sharing everything is attention over the tokens of all images side by side


def test_sharing_everything_is_attention_over_all_tokens(unet):
    class AllTokens(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, *args, **kwargs):
            b, l, c = hidden_states.shape
            side_by_side = hidden_states.reshape(2, b // 2 * l, c)
            return super().__call__(attn, side_by_side, *args, **kwargs).reshape(b, l, c)

    processors = dict(unet.attn_processors)
    own = {name: AllTokens() if "attn1" in name else p for name, p in processors.items()}
    unet.set_attn_processor(own)
    try:
        expected = forward(unet)
    finally:
        unet.set_attn_processor(dict(processors))
    with consist.shared_attention(unet, consist.Shared(layers=ALL_LAYERS), guidance_halves=2):
        torch.testing.assert_close(forward(unet), expected, rtol=1e-4, atol=1e-5)


# property


def test_guidance_halves_do_not_see_each_other(unet):
    generator = torch.Generator().manual_seed(5)
    sample = torch.randn(6, 4, 8, 8, generator=generator)
    text = torch.randn(6, 7, 32, generator=generator)
    with torch.no_grad(), consist.shared_attention(unet, consist.Shared(), guidance_halves=2):
        both = unet(sample, 500, text).sample
    with torch.no_grad(), consist.shared_attention(unet, consist.Shared(), guidance_halves=1):
        second = unet(sample[3:], 500, text[3:]).sample
    torch.testing.assert_close(both[3:], second, rtol=1e-4, atol=1e-5)


def test_images_follow_their_order(unet):
    generator = torch.Generator().manual_seed(5)
    sample, text = torch.randn(3, 4, 8, 8, generator=generator), torch.randn(3, 7, 32)
    order = [2, 0, 1]
    with torch.no_grad(), consist.shared_attention(unet, consist.Spectral(), guidance_halves=1):
        straight = unet(sample, 500, text).sample
        turned = unet(sample[order], 500, text[order]).sample
    torch.testing.assert_close(turned, straight[order], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", [consist.Shared(), consist.Spectral()])
@pytest.mark.parametrize("pipe", ["sd_pipe", "sdxl_pipe"])
def test_sharing_changes_pictures(pipe, method, request):
    pipe = request.getfixturevalue(pipe)
    alone = draw(pipe)
    with consist.shared_attention(pipe, method):
        shared = draw(pipe)
    assert shared.isfinite().all()
    assert (shared - alone).abs().max() > 1e-3


@pytest.mark.parametrize(
    "method",
    [
        consist.Shared(halves="conditional", strength=2.0),
        consist.Spectral(halves="conditional"),
        consist.StoryDiffusion(halves="conditional"),
        consist.Matched(halves="conditional"),
        consist.Shared(halves="conditional", window=(0.9, 1.0)),
    ],
    ids=repr,
)
def test_the_unconditional_half_stays_alone(unet, method):
    """Two steps of it are those of the model alone, beside those of the method without guidance."""
    generator = torch.Generator().manual_seed(5)
    sample, text = torch.randn(6, 4, 8, 8, generator=generator), torch.randn(6, 7, 32)

    def steps(rows):
        with torch.no_grad():
            return torch.cat([unet(sample[rows], t, text[rows]).sample for t in (900, 800)], 1)

    with consist.shared_attention(unet, method, guidance_halves=2):
        together = steps(slice(None))
    with consist.shared_attention(unet, method, guidance_halves=1):
        conditional = steps(slice(3, None))
    expected = torch.cat((steps(slice(3)), conditional))
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)


def test_halves_are_both_or_the_conditional_one():
    with pytest.raises(ValueError, match="halves is 'left'; allowed: 'both' or 'conditional'"):
        consist.Shared(halves="left")


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 12)])
def test_the_grid_is_that_of_the_layer_at_any_size(unet, size):
    spy = Spy()
    with consist.shared_attention(unet, spy, guidance_halves=2):
        forward(unet, size=size)
    half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    assert {(site.height, site.width) for site in spy.sites} == {size, half}
    assert {(site.g, site.n) for site in spy.sites} == {(2, 3)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheduler", [EulerDiscreteScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler]
)
@pytest.mark.parametrize("steps", [2, 5])
def test_progress_rises_with_any_scheduler_and_step_count(sd_pipe, scheduler, steps):
    spy, before = Spy(), sd_pipe.scheduler
    sd_pipe.scheduler = scheduler.from_config(before.config)
    try:
        with consist.shared_attention(sd_pipe, spy):
            draw(sd_pipe, num_inference_steps=steps)
    finally:
        sd_pipe.scheduler = before
    progress = [site.progress for site in spy.sites]
    assert progress == sorted(progress)
    assert 0 <= progress[0] < 0.5 <= progress[-1] <= 1


def test_guidance_is_read_from_the_call(sd_pipe):
    spy = Spy()
    with consist.shared_attention(sd_pipe, spy):
        draw(sd_pipe, guidance_scale=1.0)
        draw(sd_pipe, guidance_scale=7.0)
    assert {site.g for site in spy.sites} == {1, 2}
    assert {site.n for site in spy.sites} == {3}


def test_random_anchors_repeat_with_their_seed(unet):
    def once(seed):
        method = consist.Shared(anchors="random")
        with consist.shared_attention(unet, method, guidance_halves=2, seed=seed):
            return forward(unet)

    torch.testing.assert_close(once(1), once(1), rtol=0, atol=0)
    assert any(not torch.equal(once(1), once(seed)) for seed in (2, 3, 4))


def test_a_lora_stays_in_effect(sd_pipe):
    from peft import LoraConfig

    alone, pipe = draw(sd_pipe), copy.deepcopy(sd_pipe)
    lora = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipe.unet.add_adapter(lora)
    adapted = draw(pipe)
    assert (adapted - alone).abs().max() > 1e-4
    with consist.shared_attention(pipe, consist.Isolated()):
        torch.testing.assert_close(draw(pipe), adapted, rtol=0, atol=0)
    with consist.shared_attention(pipe, consist.Spectral()):
        assert (draw(pipe) - adapted).abs().max() > 1e-3


def test_an_img2img_pipeline_shares_too(sd_pipe):
    pipe = StableDiffusionImg2ImgPipeline.from_pipe(sd_pipe)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    spy = Spy()
    with consist.shared_attention(pipe, spy):
        draw(pipe, image=image, strength=0.7, num_inference_steps=4)
    assert {site.n for site in spy.sites} == {3}


# restoration


def trace(unet):
    hooks = [dict(m._forward_pre_hooks) for m in unet.modules()]
    return [id(p) for p in unet.attn_processors.values()], hooks, repr(unet)


def test_leaves_the_very_objects(unet):
    before = trace(unet)
    with consist.shared_attention(unet, consist.Spectral(), guidance_halves=2):
        assert trace(unet) != before
    assert trace(unet) == before


def test_a_soak_would_see_what_is_left(unet):
    idle = count_held(unet)
    assert (idle["hooks"], idle["processors of ours"]) == (0, 0)
    with consist.shared_attention(unet, consist.Matched(), guidance_halves=2):
        held = count_held(unet)
        assert held["hooks"] > 0
        assert held["processors of ours"] > 0
    assert count_held(unet) == idle


def test_leaves_no_trace_even_after_an_error(unet):
    before = trace(unet)
    with (
        pytest.raises(RuntimeError, match="the method fails"),
        consist.shared_attention(unet, Failing(), guidance_halves=2),
    ):
        forward(unet)
    assert trace(unet) == before


def test_nests_and_the_inner_one_wins(unet):
    before, outer, inner = trace(unet), Spy(), Spy()
    with consist.shared_attention(unet, outer, guidance_halves=2):
        middle = trace(unet)
        with consist.shared_attention(unet, inner, guidance_halves=2):
            forward(unet)
        assert trace(unet) == middle
        assert inner.sites
        assert not outer.sites
    assert trace(unet) == before


def test_a_refusal_leaves_no_trace(unet):
    attn = unet.get_submodule("up_blocks.1.attentions.1.transformer_blocks.0.attn1")
    stock = attn.processor
    attn.set_processor(FusedAttnProcessor2_0())
    before = trace(unet)
    try:
        with (
            pytest.raises(NotImplementedError, match="FusedAttnProcessor2_0"),
            consist.shared_attention(unet, consist.Shared(), guidance_halves=2),
        ):
            pass
        assert trace(unet) == before
    finally:
        attn.set_processor(stock)


def test_does_not_touch_the_global_random_state(unet):
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    with consist.shared_attention(unet, consist.Shared(anchors="random"), guidance_halves=2):
        forward(unet)
    assert torch.equal(torch.rand(1), expected)


# refusal


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": consist.Shared(layers=("nowhere",))}, ValueError, "no self-attention layer"),
        ({"guidance_halves": 3}, ValueError, "must be 1 or 2, not 3"),
        ({"guidance_halves": None}, ValueError, "pass guidance_halves=1 or 2"),
        ({"backend": "tritn"}, ValueError, "tritn"),
        ({"pipe": torch.nn.Linear(1, 1)}, TypeError, "Linear has no UNet2DConditionModel"),
    ],
)
def test_refuses_at_once(unet, arguments, error, message):
    given = {"pipe": unet, "method": consist.Shared(), "guidance_halves": 2, **arguments}
    with pytest.raises(error, match=message), consist.shared_attention(**given):
        pass


def test_refuses_a_batch_that_does_not_hold_its_halves(unet):
    with (
        consist.shared_attention(unet, consist.Shared(), guidance_halves=2),
        pytest.raises(ValueError, match="batch of 3 cannot hold 2 guidance halves"),
    ):
        forward(unet, halves=1)


def test_refuses_timesteps_that_differ(unet):
    with (
        consist.shared_attention(unet, consist.Shared(), guidance_halves=2),
        pytest.raises(NotImplementedError, match="one timestep"),
    ):
        forward(unet, timestep=torch.tensor([1, 2, 3, 1, 2, 3]))


def test_refuses_a_text_context_in_self_attention():
    processor = SharedAttnProcessor("here", consist.Shared(), None, "torch")
    with pytest.raises(NotImplementedError, match="here was given a text context"):
        processor(None, torch.zeros(1), encoder_hidden_states=torch.zeros(1))


def test_refuses_perturbed_attention_guidance(sd_pipe):
    # a copy, since that pipeline leaves processors of its own behind when it fails
    pipe = StableDiffusionPAGPipeline.from_pipe(copy.deepcopy(sd_pipe))
    pipe.set_progress_bar_config(disable=True)
    with (
        pytest.raises(NotImplementedError),
        consist.shared_attention(pipe, consist.Shared()),
    ):
        draw(pipe, pag_scale=1.0)


def test_refuses_a_grid_that_no_level_has():
    with pytest.raises(NotImplementedError, match="no level of a 8x8 UNet has 15 tokens"):
        grid_of(15, 8, 8)
