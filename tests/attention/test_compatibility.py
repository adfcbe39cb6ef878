"""Every method with every kind of model, scheduler, size and batch, and beside what others add.

What a method computes is tested in its own file. Here it must run, act, keep to what it was given,
repeat itself and leave nothing behind.
"""

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property

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
from consist.methods import METHODS, build
from consist.runs.chunks import Chunk
from consist.runs.config import RunConfig
from consist.runs.preparing import conditioning, subject_tokens

SCENES = ("in paris", "on the moon", "on a beach", "on the moon on a beach")
SHARING = [name for name in METHODS if name != "isolated"]
SCHEDULERS = (
    DDIMScheduler,
    EulerDiscreteScheduler,
    DPMSolverMultistepScheduler,
    LCMScheduler,
)


def pipe_with(pipe, kind=None, **parts):
    """A pipeline of the same models, with some parts changed."""
    is_xl = hasattr(pipe, "text_encoder_2")
    options = {"add_watermarker": False} if is_xl else {"requires_safety_checker": False}
    made = (kind or type(pipe))(**{**pipe.components, **parts}, **options)
    made.set_progress_bar_config(disable=True)
    return made


def draw(pipe, name, *, images=3, steps=3, height=16, width=16, **options):
    """Latents of ``images`` scenes of a cat, by a method; and that nothing of it is left."""
    prompts = tuple(f"a cat {SCENES[i % len(SCENES)]}" for i in range(images))
    config = RunConfig(prompts=prompts, seeds=tuple(range(images)))
    fields = {"subject": ["cat"]} if METHODS[name]().reads_words else {}
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


class Place:
    """A pipeline and how it is called; what it draws by no method is drawn once."""

    def __init__(self, pipe, **options):
        self.pipe, self.options = pipe, options

    @cached_property
    def plain(self):
        return self.draw("isolated")

    def draw(self, name, **changes):
        return draw(self.pipe, name, **{**self.options, **changes})

    def check(self, name):
        """Draws with a method: it acts, and what it gives can be decoded."""
        latents = self.draw(name)
        assert latents.isfinite().all()
        assert (latents.shape, latents.dtype) == (self.plain.shape, self.pipe.unet.dtype)
        assert not torch.equal(latents, self.plain)
        return latents


def halved(pipe):
    models = {
        part: copy.deepcopy(model).to(torch.bfloat16)
        for part, model in pipe.components.items()
        if isinstance(model, torch.nn.Module)
    }
    return pipe_with(pipe, **models)


def distilled(pipe):
    """One that takes its guidance as an input."""
    torch.manual_seed(0)
    config = {**pipe.unet.config, "time_cond_proj_dim": 8}
    unet = UNet2DConditionModel.from_config(config).eval()
    return pipe_with(pipe, unet=unet, scheduler=LCMScheduler.from_config(pipe.scheduler.config))


def controlled(pipe):
    """With a ControlNet whose last layers are not 0, as they are before training."""
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(16, 32))
    for name, weight in net.named_parameters():
        if name.startswith(("controlnet_", "controlnet_cond_embedding.conv_out")):
            torch.nn.init.normal_(weight, std=0.1)
    is_xl = hasattr(pipe, "text_encoder_2")
    kind = StableDiffusionXLControlNetPipeline if is_xl else StableDiffusionControlNetPipeline
    return pipe_with(pipe, kind, controlnet=net.eval())


def adapted(pipe):
    """With an IP-Adapter of random weights that takes embeddings of width 16."""
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


OUTLINE = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PHOTO, ANOTHER = torch.randn(2, 6, 1, 16, generator=torch.Generator().manual_seed(0))

PLACES = {
    "sd": Place,
    "sd2": Place,
    "sdxl": Place,
    "sd 24x16": lambda pipe: Place(pipe, height=24, width=16),
    "sd 16x40": lambda pipe: Place(pipe, height=16, width=40),
    "sdxl 24x16": lambda pipe: Place(pipe, height=24, width=16),
    "sdxl 16x40": lambda pipe: Place(pipe, height=16, width=40),
    **{
        f"sd2 {kind.__name__}": lambda pipe, kind=kind: Place(
            pipe_with(pipe, scheduler=kind.from_config(pipe.scheduler.config)), steps=6
        )
        for kind in SCHEDULERS
    },
    "sd unguided": lambda pipe: Place(pipe, guidance_scale=1.0),
    "sdxl unguided": lambda pipe: Place(pipe, guidance_scale=1.0),
    "sd 2 images": lambda pipe: Place(pipe, images=2),
    "sd 9 images": lambda pipe: Place(pipe, images=9),
    "sd bfloat16": lambda pipe: Place(halved(pipe)),
    "sdxl bfloat16": lambda pipe: Place(halved(pipe)),
    "sd distilled": lambda pipe: Place(distilled(pipe), guidance_scale=8.0),
    "sd ControlNet": lambda pipe: Place(controlled(pipe), image=OUTLINE),
    "sd ControlNet guessing": lambda pipe: Place(controlled(pipe), image=OUTLINE, guess_mode=True),
    "sdxl ControlNet": lambda pipe: Place(controlled(pipe), image=OUTLINE),
    "sd IP-Adapter": lambda pipe: Place(adapted(pipe), ip_adapter_image_embeds=[PHOTO]),
    "sdxl IP-Adapter": lambda pipe: Place(adapted(pipe), ip_adapter_image_embeds=[PHOTO]),
}


@pytest.fixture(scope="module")
def place_of(request):
    """Makes a place, once."""
    return cache(
        lambda name: PLACES[name](request.getfixturevalue(f"{name.split()[0]}_pipe")),
    )


def pairs():
    """Every method in every place: each day with each model, and one in each of the others."""
    for number, place in enumerate(PLACES):
        for turn, name in enumerate(SHARING):
            if name == "one-prompt" and "IP-Adapter" in place:
                continue  # refused, below
            daily = " " not in place or (number + turn) % len(SHARING) == 0
            yield pytest.param(place, name, marks=() if daily else pytest.mark.slow)


@pytest.mark.parametrize(("place", "name"), list(pairs()))
def test_acts_and_leaves_nothing_behind(place_of, place, name):
    there = place_of(place)
    latents = there.check(name)
    if " " not in place:
        assert torch.equal(there.draw(name), latents)
    if "ControlNet" in place and place != "sdxl ControlNet":
        assert not torch.equal(there.draw(name, controlnet_conditioning_scale=0.0), latents)
    if "IP-Adapter" in place:
        assert not torch.equal(there.draw(name, ip_adapter_image_embeds=[ANOTHER]), latents)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARING)
def test_fifty_steps(sd_pipe, name):
    assert draw(sd_pipe, name, images=2, steps=50).isfinite().all()


@pytest.fixture(scope="module")
def alone(sd_pipe):
    return Place(sd_pipe, images=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SHARING if name != "one-prompt"])
def test_one_image_has_nobody_to_share_with(alone, name):
    torch.testing.assert_close(alone.draw(name), alone.plain, rtol=1e-4, atol=1e-4)


def test_cross_attention_of_an_ip_adapter_is_never_taken_over(sd_pipe):
    pipe = adapted(sd_pipe)
    before = dict(pipe.unet.attn_processors)
    with pytest.raises(NotImplementedError, match="already has a processor of its own, IPAdapter"):
        draw(pipe, "one-prompt", ip_adapter_image_embeds=[torch.randn(6, 1, 16)])
    assert pipe.unet.attn_processors == before


@pytest.mark.slow
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
