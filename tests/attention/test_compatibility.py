"""Every method with every kind of model, scheduler, size and batch, and beside what others add.

What a method computes is tested in its own file. Here it must run, act, keep to what it was given,
repeat itself and leave nothing behind.
"""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)

import consist
from consist.attention.method import reads_words
from consist.methods import METHODS, build
from consist.runs.chunks import Chunk
from consist.runs.config import RunConfig
from consist.runs.preparing import conditioning, subject_tokens

SCENES = ("in paris", "on the moon", "on a beach", "on the moon on a beach")
SHARING = [name for name in METHODS if name != "isolated"]


def pipe_with(pipe, **parts):
    """A pipeline of the same models, with some parts changed."""
    options = {} if hasattr(pipe, "text_encoder_2") else {"requires_safety_checker": False}
    made = type(pipe)(**{**pipe.components, **parts}, **options)
    made.set_progress_bar_config(disable=True)
    return made


def draw(pipe, name, *, images=3, steps=3, height=16, width=16, **options):
    """Latents of ``images`` scenes of a cat, by a method; and that nothing of it is left."""
    prompts = tuple(f"a cat {SCENES[i % len(SCENES)]}" for i in range(images))
    config = RunConfig(prompts=prompts, seeds=tuple(range(images)))
    fields = {"subject": ["cat"]} if reads_words(METHODS[name]()) else {}
    method = build({"name": name, **fields})
    before = {key: id(processor) for key, processor in pipe.unet.attn_processors.items()}
    generators = [torch.Generator().manual_seed(seed) for seed in config.seeds]
    chunk = Chunk(tuple(range(images)), tuple(range(images)))
    told = {"subject_tokens": subject_tokens(pipe, config, method)}
    with consist.shared_attention(pipe, method, **told):
        latents = pipe(
            **conditioning(pipe, config, chunk, method),
            generator=generators,
            num_inference_steps=steps,
            height=height,
            width=width,
            output_type="latent",
            **options,
        ).images
    assert {key: id(processor) for key, processor in pipe.unet.attn_processors.items()} == before
    modules = pipe.unet.modules()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    return latents


def check(pipe, name, **options):
    """Draws with a method and without: it acts, and what it gives can be decoded."""
    latents, plain = (draw(pipe, given, **options) for given in (name, "isolated"))
    assert latents.isfinite().all()
    assert (latents.shape, latents.dtype) == (plain.shape, pipe.unet.dtype)
    assert not torch.equal(latents, plain)


@pytest.mark.parametrize("pipe", ["sd_pipe", "sd2_pipe", "sdxl_pipe"])
@pytest.mark.parametrize("name", SHARING)
def test_models(pipe, name, request):
    pipe = request.getfixturevalue(pipe)
    check(pipe, name)
    assert torch.equal(draw(pipe, name), draw(pipe, name))


@pytest.mark.parametrize("pipe", ["sd_pipe", "sdxl_pipe"])
@pytest.mark.parametrize("name", SHARING)
@pytest.mark.parametrize("size", [(24, 16), (16, 40)])
def test_sizes(pipe, name, size, request):
    height, width = size
    check(request.getfixturevalue(pipe), name, height=height, width=width)


@pytest.mark.parametrize("name", SHARING)
@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, LCMScheduler]
)
def test_schedulers(sd2_pipe, name, scheduler):
    changed = scheduler.from_config(sd2_pipe.scheduler.config)
    check(pipe_with(sd2_pipe, scheduler=changed), name, steps=6)


@pytest.mark.parametrize("name", SHARING)
def test_fifty_steps(sd_pipe, name):
    assert draw(sd_pipe, name, steps=50).isfinite().all()


@pytest.mark.parametrize("pipe", ["sd_pipe", "sdxl_pipe"])
@pytest.mark.parametrize("name", SHARING)
def test_no_guidance(pipe, name, request):
    check(request.getfixturevalue(pipe), name, guidance_scale=1.0)


@pytest.mark.parametrize("name", SHARING)
@pytest.mark.parametrize("images", [2, 9])
def test_batches(sd_pipe, name, images):
    check(sd_pipe, name, images=images)


@pytest.mark.parametrize("name", [name for name in SHARING if name != "one-prompt"])
def test_one_image_has_nobody_to_share_with(sd_pipe, name):
    alone, plain = (draw(sd_pipe, given, images=1) for given in (name, "isolated"))
    torch.testing.assert_close(alone, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pipe", ["sd_pipe", "sdxl_pipe"])
@pytest.mark.parametrize("name", SHARING)
def test_half_precision(pipe, name, request):
    pipe = request.getfixturevalue(pipe)
    models = {
        part: copy.deepcopy(model).to(torch.bfloat16)
        for part, model in pipe.components.items()
        if isinstance(model, torch.nn.Module)
    }
    check(pipe_with(pipe, **models), name)


@pytest.mark.parametrize("name", SHARING)
def test_a_distilled_model_takes_its_guidance_as_an_input(sd_pipe, name):
    config = {**sd_pipe.unet.config, "time_cond_proj_dim": 8}
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(config).eval()
    scheduler = LCMScheduler.from_config(sd_pipe.scheduler.config)
    pipe = pipe_with(sd_pipe, unet=unet, scheduler=scheduler)
    check(pipe, name, guidance_scale=8.0)


def controlnet_of(unet):
    """A ControlNet whose last layers are not 0, as they are before training."""
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))
    for name, weight in net.named_parameters():
        if name.startswith(("controlnet_", "controlnet_cond_embedding.conv_out")):
            torch.nn.init.normal_(weight, std=0.1)
    return net.eval()


@pytest.mark.parametrize("name", SHARING)
@pytest.mark.parametrize("guess_mode", [False, True])
def test_beside_a_controlnet(sd_pipe, name, guess_mode):
    net = controlnet_of(sd_pipe.unet)
    parts = {**sd_pipe.components, "controlnet": net}
    pipe = StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    options = {"image": image, "guess_mode": guess_mode}
    check(pipe, name, **options)
    free = draw(pipe, name, **options, controlnet_conditioning_scale=0.0)
    assert not torch.equal(draw(pipe, name, **options), free)


@pytest.mark.parametrize("name", SHARING)
def test_beside_a_controlnet_of_sdxl(sdxl_pipe, name):
    parts = {**sdxl_pipe.components, "controlnet": controlnet_of(sdxl_pipe.unet)}
    pipe = StableDiffusionXLControlNetPipeline(**parts, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    check(pipe, name, image=torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)))


def adapted(pipe):
    """A pipeline with an IP-Adapter of random weights that takes embeddings of width 16."""
    torch.manual_seed(0)
    unet = copy.deepcopy(pipe.unet)
    width, keys = unet.config.cross_attention_dim, {}
    crosses = [name for name in unet.attn_processors if "attn2" in name]
    for number, name in enumerate(crosses):
        shape = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape
        keys |= {f"{2 * number + 1}.to_{x}_ip.weight": torch.randn(shape) for x in "kv"}
    projection = {
        "proj.weight": torch.randn(4 * width, 16),
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": keys}])
    return pipe_with(pipe, unet=unet.eval())


@pytest.mark.parametrize("pipe", ["sd_pipe", "sdxl_pipe"])
@pytest.mark.parametrize("name", [name for name in SHARING if name != "one-prompt"])
def test_beside_an_ip_adapter(pipe, name, request):
    pipe = adapted(request.getfixturevalue(pipe))
    photo, another = torch.randn(2, 6, 1, 16, generator=torch.Generator().manual_seed(0))
    check(pipe, name, ip_adapter_image_embeds=[photo])
    seen = draw(pipe, name, ip_adapter_image_embeds=[photo])
    assert not torch.equal(draw(pipe, name, ip_adapter_image_embeds=[another]), seen)


def test_cross_attention_of_an_ip_adapter_is_never_taken_over(sd_pipe):
    pipe = adapted(sd_pipe)
    before = dict(pipe.unet.attn_processors)
    with pytest.raises(NotImplementedError, match="already has a processor of its own, IPAdapter"):
        draw(pipe, "one-prompt", ip_adapter_image_embeds=[torch.randn(6, 1, 16)])
    assert pipe.unet.attn_processors == before


def test_two_pipelines_share_at_once(sd_pipe, sdxl_pipe):
    alone = [draw(pipe, "spectral") for pipe in (sd_pipe, sdxl_pipe)]
    method = consist.Spectral()
    with consist.shared_attention(sd_pipe, method), consist.shared_attention(sdxl_pipe, method):
        both = [plain_call(pipe) for pipe in (sd_pipe, sdxl_pipe)]
    for one, other in zip(alone, both, strict=True):
        assert torch.equal(one, other)


def plain_call(pipe):
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    prompts = [f"a cat {scene}" for scene in SCENES[:3]]
    options = {"num_inference_steps": 3, "height": 16, "width": 16, "output_type": "latent"}
    return pipe(prompts, generator=generators, **options).images


def test_two_threads_do_not_meet(sd_pipe):
    pipes = [pipe_with(sd_pipe, unet=copy.deepcopy(sd_pipe.unet)) for _ in range(2)]
    for pipe in pipes:
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    work = [(pipes[0], "consistory"), (pipes[1], "spectral")]
    alone = [draw(pipe, name) for pipe, name in work]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(lambda job: draw(*job), work))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)
