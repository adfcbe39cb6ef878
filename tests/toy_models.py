"""Real diffusers classes at toy size with random weights, built once per test run."""

import copy

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from consist.mini.architecture import build_tokenizer
from consist.runs.config import RunConfig
from consist.runs.drawing import load_model

WIDTH = 32


def _unet(**changes) -> UNet2DConditionModel:
    torch.manual_seed(0)
    settings = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": (2, 4),
        "cross_attention_dim": WIDTH,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**settings, **changes}).eval()


def _vae() -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        sample_size=16,
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
    ).eval()


def _text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer(["a cat in paris", "a cat on the moon", "a red bus on a beach"])


@pytest.fixture(scope="session")
def unet() -> UNet2DConditionModel:
    """The UNet of SD 1.x in small: attention in every block, at two resolutions."""
    return _unet()


@pytest.fixture(scope="session")
def sd_pipe(tokenizer) -> StableDiffusionPipeline:
    torch.manual_seed(2)
    pipe = StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(_text_config(tokenizer)).eval(),
        vae=_vae(),
        unet=_unet(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def sdxl_pipe(tokenizer) -> StableDiffusionXLPipeline:
    torch.manual_seed(3)
    pipe = StableDiffusionXLPipeline(
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        text_encoder=CLIPTextModel(_text_config(tokenizer)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer)).eval(),
        vae=_vae(),
        unet=_unet(
            cross_attention_dim=2 * WIDTH,
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        ),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def sd2_pipe(sd_pipe):
    """SD 2.x: linear projections, v-prediction, and a tokenizer that pads with "!"."""
    torch.manual_seed(4)
    config = {**sd_pipe.unet.config, "use_linear_projection": True, "upcast_attention": True}
    tokenizer = copy.deepcopy(sd_pipe.tokenizer)
    tokenizer.pad_token = "!"
    changes = {
        "unet": UNet2DConditionModel.from_config(config).eval(),
        "scheduler": DDIMScheduler(
            prediction_type="v_prediction", clip_sample=False, steps_offset=1
        ),
        "tokenizer": tokenizer,
    }
    parts = {**sd_pipe.components, **changes}
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def shared_mini():
    """`mini`, loaded once a session, and its state then."""
    model = load_model(RunConfig(prompts=("a cat",), seeds=(0,)))
    return model, _state(model.pipe)


@pytest.fixture(scope="session")
def model_for(shared_mini):
    """Gives ``shared_mini`` for the argument of that name; tests must leave it as it was."""
    model, _ = shared_mini
    return lambda config: model


@pytest.fixture(autouse=True)
def mini_stays(request):
    """Fails after a test that changed the `mini` of all."""
    used = "shared_mini" in request.fixturenames
    model, before = request.getfixturevalue("shared_mini") if used else (None, {})
    yield
    if used:
        after = _state(model.pipe)
        changed = sorted(name for name in before | after if before.get(name) != after.get(name))
        assert not changed, f"the test left mini with other {', '.join(changed[:3])}"


def _state(pipe):
    """What a test must leave as it was: weights, attention processors, hooks and the scheduler."""
    state = {"scheduler": (type(pipe.scheduler), dict(pipe.scheduler.config))}
    state["processors"] = [id(one) for one in pipe.unet.attn_processors.values()]
    for part in ("unet", "vae", "text_encoder"):
        model = getattr(pipe, part)
        state[f"modules of {part}"] = [type(one) for one in model.modules()]
        state[f"hooks of {part}"] = [
            len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules()
        ]
        for name, weight in model.named_parameters():
            state[f"{part}.{name}"] = (weight.dtype, weight.shape, weight.detach().sum().item())
    return state


@pytest.fixture
def photos(tmp_path):
    """A folder of three pictures of noise, of different shapes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, size in enumerate(((16, 16), (20, 16), (16, 40))):
        noise = torch.randint(
            256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(index)
        )
        Image.fromarray(noise.byte().numpy()).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def tiny(sd_pipe):
    """``sd_pipe`` with a UNet of two blocks, for tests that take many steps."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16,),
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=sd_pipe.unet.config.cross_attention_dim,
        norm_num_groups=4,
    ).eval()
    parts = {**sd_pipe.components, "unet": unet}
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
