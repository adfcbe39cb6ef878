"""The half that guidance leads away from, with less of the LoRAs."""

import numpy as np
import pytest
import torch
from einops import rearrange
from peft import LoraConfig
from pictures import largest_difference
from trainings import fresh

from consist.attention.lora_guidance import weak_unconditional
from consist.attention.masks import RecordedMasks
from consist.models.loading import load
from consist.models.lora_files import write_lora
from consist.runs.config import RunConfig
from consist.runs.drawing import generate

WEIGHT = 0.25
TOKENS = (((1,),), ((2,),))  # of two images
WHOLE = {"width": 128, "height": 128}  # as `mini` draws best


@pytest.fixture
def pipe(sd_pipe):
    """With a LoRA, in guidance."""
    made = fresh(sd_pipe)
    torch.manual_seed(0)
    targets = ["to_q", "to_v", "to_out.0", "conv1"]
    made.unet.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    made._guidance_scale = 4.0
    return made


def call(pipe, rows=4):
    """What the UNet says of a batch of two halves."""
    source = torch.Generator().manual_seed(1)
    config = pipe.unet.config
    sample = torch.randn(rows, config.in_channels, 8, 8, generator=source)
    text = torch.randn(rows, 5, config.cross_attention_dim, generator=source)
    with torch.no_grad():
        return pipe.unet(sample, 500, encoder_hidden_states=text).sample


def hooks(pipe):
    modules = pipe.unet.modules()
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in modules)


def weigh(pipe, weight):
    pipe.unet.set_adapters(pipe.unet.active_adapters(), [weight])


def test_the_halves_have_their_own_weights(pipe):
    full = call(pipe)
    with weak_unconditional(pipe, WEIGHT):
        mixed = call(pipe)
    weigh(pipe, WEIGHT)
    weak = call(pipe)
    assert (full - weak).abs().max() > 1e-2
    torch.testing.assert_close(mixed[:2], weak[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[2:], full[2:], rtol=1e-4, atol=1e-5)


def test_at_zero_the_base_model_is_led_away_from(pipe):
    with weak_unconditional(pipe, 0):
        mixed = call(pipe)
    pipe.unet.disable_adapters()
    torch.testing.assert_close(mixed[:2], call(pipe)[:2], rtol=1e-4, atol=1e-5)


def outputs(layer, pipe, tokens):
    """What a layer is given, and gives without and with the weakening, in the second step."""
    kept = []
    remember = lambda module, args, given: kept.append((args[0], given))  # noqa: E731
    first = layer.register_forward_hook(remember)
    with weak_unconditional(pipe, WEIGHT, tokens):
        second = layer.register_forward_hook(remember)
        call(pipe)
        call(pipe)
        second.remove()
    first.remove()
    (inputs, before), (_, after) = kept[-2:]
    return inputs, before, after


@pytest.mark.parametrize("name", ["down_blocks.0.resnets.0.conv1", "down_blocks.0", "mid_block"])
def test_less_of_a_lora_counts_where_the_subject_is(pipe, monkeypatch, name):
    """Of two images one has its subject on the left, with a margin up to the middle."""
    subject = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    subject[0, :, :, :3] = True
    monkeypatch.setattr(RecordedMasks, "read", lambda self, height, width: subject.flatten(2))
    layers = {n: m for n, m in pipe.unet.named_modules() if n.startswith(name)}
    layer = next(m for n, m in layers.items() if n.endswith(("conv1", "attn1.to_q")))
    inputs, before, after = outputs(layer, pipe, TOKENS)
    plain = layer.base_layer(inputs)
    if before.ndim == 3:
        side = int(before.shape[1] ** 0.5)
        before, after, plain = (
            rearrange(x, "b (h w) c -> b c h w", h=side) for x in (before, after, plain)
        )
    middle = before.shape[-1] // 2
    weak = torch.lerp(plain, before, WEIGHT)
    torch.testing.assert_close(after[0, ..., :middle], weak[0, ..., :middle])
    assert (weak - before)[0, ..., :middle].abs().max() > 1e-3
    assert torch.equal(after[0, ..., middle:], before[0, ..., middle:])
    assert torch.equal(after[1:], before[1:])


def test_without_a_subject_guidance_is_plain(pipe, monkeypatch):
    """Also in the layers that see the text, which has no places."""
    nothing = torch.zeros(2, 1, 64, dtype=torch.bool)
    monkeypatch.setattr(RecordedMasks, "read", lambda self, height, width: nothing)
    full = call(pipe)
    with weak_unconditional(pipe, 0, TOKENS):
        assert torch.equal(call(pipe), full)


def test_the_first_step_is_plain(pipe):
    """Masks are of the steps before."""
    full = call(pipe)
    with weak_unconditional(pipe, WEIGHT, TOKENS):
        first, second = call(pipe), call(pipe)
    assert torch.equal(first, full)
    assert (second - full)[:2].abs().max() > 1e-3
    torch.testing.assert_close(second[2:], full[2:], rtol=1e-4, atol=1e-5)


def test_a_batch_of_other_images_is_refused(pipe):
    message = "subject tokens are for 2 images, the batch has 3"
    with pytest.raises(ValueError, match=message), weak_unconditional(pipe, 0, TOKENS):
        call(pipe, rows=6)


def test_a_dora_is_mixed_with_the_base_model(sd_pipe):
    pipe = fresh(sd_pipe)
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False, use_dora=True)
    pipe.unet.add_adapter(lora)
    pipe._guidance_scale = 4.0
    layer = next(module for name, module in pipe.unet.named_modules() if name.endswith("to_q"))
    kept = []
    layer.register_forward_hook(lambda module, args, given: kept.append((args[0], given)))
    with weak_unconditional(pipe, WEIGHT), torch.no_grad():
        layer.register_forward_hook(lambda module, args, given: kept.append((args[0], given)))
        call(pipe)
    (inputs, before), (_, after) = kept
    plain = layer.base_layer(inputs)[:2]
    torch.testing.assert_close(after[:2], plain + WEIGHT * (before[:2] - plain))
    assert torch.equal(after[2:], before[2:])


@pytest.mark.parametrize(("weight", "guidance"), [(1, 4.0), (WEIGHT, 1.0)])
def test_nothing_changes_without_need(pipe, weight, guidance):
    pipe._guidance_scale = guidance
    full = call(pipe)
    with weak_unconditional(pipe, weight):
        assert torch.equal(call(pipe), full)


def test_no_trace_is_left(pipe):
    full, before = call(pipe), hooks(pipe)
    with pytest.raises(AttributeError), weak_unconditional(pipe, 0, TOKENS):
        pipe.unet(None, 500, encoder_hidden_states=None)
    assert hooks(pipe) == before
    assert torch.equal(call(pipe), full)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_out_of_range_is_refused(pipe, weight):
    message = "weight must be between 0 and 1"
    with pytest.raises(ValueError, match=message), weak_unconditional(pipe, weight):
        pass


# drawing


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """Of `mini`, and strong enough to be seen."""
    unet = load("mini", "cpu").pipe.unet
    torch.manual_seed(0)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_v"], init_lora_weights=False))
    path = tmp_path_factory.mktemp("lora") / "a.safetensors"
    write_lora(path, unet=unet, metadata={"prompt": "a th cat"})
    return path


def draw(lora, folder, **changes):
    given = {"prompts": ("a cat in Paris", "a cat on the moon"), "seeds": (0, 1), "steps": 2}
    given |= {"width": 64, "height": 64, "device": "cpu", "loras": (f"{lora}:0.3",), **changes}
    config = RunConfig(**given)
    return [generate(config, folder).read_picture(i) for i in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [{"name": "isolated"}, {"name": "matched"}, {"name": "consistory", "subject": ("cat",)}],
)
def test_a_run_is_drawn_with_less_of_a_lora_in_the_negative(lora, tmp_path, method):
    plain = draw(lora, tmp_path / "plain", method=method)
    weak = draw(lora, tmp_path / "weak", method=method, lora_negative=0.0)
    assert all(largest_difference(*pair) > 8 for pair in zip(plain, weak, strict=True))


def test_words_that_a_lora_was_trained_on_are_known(lora, tmp_path, caplog):
    prompts = ("a th cat in Paris", "a th cat asleep")
    # two steps: of a single one it is told that nothing is shared
    draw(lora, tmp_path / "run", prompts=prompts)
    (warning,) = caplog.messages
    assert warning.startswith("mini has never seen 'asleep'. It knows")


@pytest.mark.slow
def test_contrast_is_taken_back(lora, tmp_path):
    """Shares of it draw between nothing and all: diffusers mixes the two."""
    drawn = [
        draw(lora, tmp_path / str(part), guidance_rescale=part, **WHOLE) for part in (0, 0.5, 1)
    ]
    contrasts = [[np.std(image) for image in images] for images in drawn]
    for plain, half, whole in zip(*contrasts, strict=True):
        assert whole < half < plain
