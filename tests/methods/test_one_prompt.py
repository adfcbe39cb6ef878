"""All scenes in one prompt: the reweighting, the places of its parts, the attention, whole runs."""

import copy
import json
import math
from dataclasses import dataclass

import pytest
import torch
from diffusers import (
    StableDiffusionXLPipeline,
)
from diffusers.models.attention_processor import Attention
from PIL import ImageChops
from typer.testing import CliRunner

import consist
from consist.attention.cross_attention import IdentityAttnProcessor
from consist.attention.method import Site
from consist.cli import app
from consist.errors import ConsistError
from consist.methods import build
from consist.methods.one_prompt import END_SCALE, scale_singular_values
from consist.mini.architecture import build_tokenizer
from consist.prompts.one_prompt import Consolidated, find_places, join_frames
from consist.prompts.phrases import find_subject, split_identity
from consist.runs.config import RunConfig
from consist.runs.drawing import generate

PROMPTS = ["a cat in paris", "a cat on the moon", "a cat on a beach", "a cat in a forest"]
FRAMES = ["in paris", "on the moon", "on a beach", "in a forest"]
JOINED = " ".join(["a cat", *FRAMES])
NEUTRAL = {"express": (0.0, 1.0), "suppress": (0.0, 1.0), "ipca": 0.0}
LAYER = "up_blocks.0.attentions.1.transformer_blocks.0.attn2"


def draw_text(rows=20, width=8):
    generator = torch.Generator().manual_seed(0)
    return 5 * torch.randn(rows, width, generator=generator, dtype=torch.float64)


def scale_by_hand(x, alpha, beta):
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    terms = [beta * math.exp(-alpha * s[i]) * s[i] * u[:, i, None] * vh[i] for i in range(len(s))]
    return torch.stack(terms).sum(0)


def reweight_by_hand(text, frames, current, ends, method):
    """Eq. 2-3 of arXiv:2501.13554: other frames first, then the one that is drawn."""
    text = text.double().clone()
    others = [frame for frame in frames if frame is not frames[current]]
    for frame in [*others, frames[current]]:
        alpha, beta = method.express if frame is frames[current] else method.suppress
        rows = [*frame, *ends]
        text[rows] = scale_by_hand(text[rows], alpha, beta)
    return text


# the singular values


@pytest.mark.parametrize("shape", [(3, 8), (12, 8)])
@pytest.mark.parametrize(("alpha", "beta"), [(-0.01, 1.0), (0.01, 0.05), (0.3, 2.0), (0.0, 1.0)])
def test_singular_values_are_scaled_one_by_one(shape, alpha, beta):
    x = draw_text(*shape)
    torch.testing.assert_close(scale_singular_values(x, alpha, beta), scale_by_hand(x, alpha, beta))


@pytest.mark.parametrize("current", [0, 1, 2])
def test_other_frames_are_suppressed_and_then_the_own_one_is_expressed(current):
    method = consist.OnePrompt(express=(-0.02, 1.5), suppress=(0.01, 0.3))
    text, frames, ends = draw_text(), [[3, 4], [5, 6, 7], [8]], [9, 10, 11]
    found = method.reweight(text, frames, current, ends)
    torch.testing.assert_close(found, reweight_by_hand(text, frames, current, ends, method))
    assert torch.equal(found[:3], text[:3])
    assert torch.equal(found[12:], text[12:])
    assert torch.equal(text, draw_text())


def test_scaled_ends_stay_out_of_the_singular_values():
    method = consist.OnePrompt(ends="scaled")
    text, frames, ends = draw_text(), [[3, 4], [5, 6, 7], [8]], [9, 10, 11]
    found = method.reweight(text, frames, 1, ends)
    expected = reweight_by_hand(text, frames, 1, [], method)
    expected[ends] = text[ends] * END_SCALE**3
    torch.testing.assert_close(found, expected)


def test_the_own_frame_leads():
    text, frames, ends = draw_text(), [[3, 4], [5, 6], [8, 9]], [10, 11]
    found = consist.OnePrompt().reweight(text, frames, 1, ends)
    norms = [(found[frame].norm() / text[frame].norm()).item() for frame in frames]
    assert norms[1] > 1
    assert max(norms[0], norms[2]) < 0.1


def test_a_prompt_of_the_identity_alone_expresses_nothing():
    text, frames, ends = draw_text(), [[], [5, 6]], [10, 11]
    method = consist.OnePrompt()
    found = method.reweight(text, frames, 0, ends)
    only = scale_by_hand(text[[5, 6, 10, 11]], *method.suppress)
    torch.testing.assert_close(found[[5, 6, 10, 11]], only)


# the identity and the frames


@pytest.mark.parametrize(
    ("prompts", "subject", "identity", "frames"),
    [
        (PROMPTS, (), "a cat", tuple(FRAMES)),
        (["a cat in Paris", "A cat in Rome."], (), "a cat", ("in Paris", "in Rome.")),
        (["the red cat, at night", "the red cat"], (), "the red cat", ("at night", "")),
        (["a photo of a cat in Paris"], ("cat",), "a photo of a cat", ("in Paris",)),
        (["a cat and a dog at sea", "a cat and a dog"], ("cat", "dog"), "a cat and a dog", None),
        (["oil: a cat-fish", "Oil: a cat-fish on a ship"], ("cat-fish",), "oil: a cat-fish", None),
    ],
)
def test_the_identity_ends_with_the_subject(prompts, subject, identity, frames):
    found = split_identity(prompts, subject)
    assert found[0] == identity
    if frames:
        assert found[1] == frames


@pytest.mark.parametrize(
    ("prompts", "subject", "message"),
    [
        (["a cat at sea", "the cat"], ("cat",), "start alike .* not with 'a cat' and 'the cat'"),
        (PROMPTS, ("dog",), "the prompt 'a cat in paris' does not name the subject, 'dog'"),
        (["a cathedral"], ("cat",), "does not name the subject, 'cat'"),
        (PROMPTS, (" ",), "a subject without a word was given"),
        (["a cat in Paris"], (), "name it with --subject"),
    ],
)
def test_prompts_without_an_identity_are_refused(prompts, subject, message):
    with pytest.raises(ConsistError, match=message):
        split_identity(prompts, subject)


def test_fewer_frames_are_taken_in_a_circle():
    found = join_frames("a cat", ("0", "1", "2"), 2)
    assert [prompt.frames for prompt in found] == [("0", "1"), ("1", "2"), ("2", "0")]
    assert {prompt.current for prompt in found} == {0}
    whole = join_frames("a cat", ("0", "1", "2"), 3)
    assert [(prompt.text, prompt.current) for prompt in whole] == [
        ("a cat 0 1 2", 0),
        ("a cat 0 1 2", 1),
        ("a cat 0 1 2", 2),
    ]


# the places


@pytest.fixture
def second_tokenizer():
    """Splits "moon", "beach" and "forest" into more tokens, and pads with another token."""
    tokenizer = build_tokenizer(["a cat in paris"])
    tokenizer.pad_token = "!"
    return tokenizer


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_places_are_those_of_the_words(sd_pipe, tokenizer, pad):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = pad
    pieces = ("a hippopotamus", "in paris", "", "on a pink UNICYCLE")
    prompt = Consolidated(pieces[0], pieces[1:], 0)
    places = find_places(sd_pipe, tokenizer, prompt)
    ids = tokenizer(prompt.text).input_ids
    tokens = tokenizer.convert_ids_to_tokens(ids)
    texts = ["".join(tokens[p.start : p.stop]) for p in (places.identity, *places.frames)]
    words = [text.replace("</w>", " ").strip() for text in texts]
    assert words == [piece.lower() for piece in pieces]
    assert len(places.identity) > 2
    last = len(ids) - 1
    assert places.ends == (tuple(range(last, 40)) if pad == "<|endoftext|>" else (last,))


def test_a_word_of_several_vectors_has_all_its_places(sd_pipe, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["<toy>", "<toy>_1"])
    places = find_places(sd_pipe, tokenizer, Consolidated("a <toy>", ("in paris",), 0))
    assert (places.identity, places.frames) == (range(1, 4), (range(4, 6),))


# the embeddings


@pytest.fixture
def two_tokenizers_pipe(sdxl_pipe, second_tokenizer):
    parts = {**sdxl_pipe.components, "tokenizer_2": second_tokenizer}
    return StableDiffusionXLPipeline(**parts, add_watermarker=False)


@pytest.fixture(params=["sd_pipe", "sd2_pipe", "sdxl_pipe"])
def pipe(request):
    return request.getfixturevalue(request.param)


def encode_plainly(pipe, text, **options):
    xl = hasattr(pipe, "text_encoder_2")
    places = (text, None, "cpu", 1, True) if xl else (text, "cpu", 1, True)
    with torch.no_grad():
        return pipe.encode_prompt(*places, **options)


@pytest.mark.parametrize("negative", ["", "a red bus"])
def test_neutral_settings_are_plain_encoding_of_the_consolidated_prompt(pipe, negative):
    method = consist.OnePrompt(**NEUTRAL)
    found = consist.encode_prompts(pipe, PROMPTS, method, negative=negative)
    plain = encode_plainly(pipe, [JOINED] * 4, negative_prompt=[negative] * 4 if negative else None)
    assert len(found) == len(plain)
    for name, expected in zip(found, plain, strict=True):
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6)


def test_a_single_prompt_is_its_own_consolidated_one(pipe):
    method = consist.OnePrompt(subject=("cat",), **NEUTRAL)
    found = consist.encode_prompts(pipe, PROMPTS[:1], method)["prompt_embeds"]
    torch.testing.assert_close(found, encode_plainly(pipe, PROMPTS[:1])[0], rtol=0, atol=1e-6)


def test_options_of_the_text_encoder_are_passed_on(sdxl_pipe):
    method = consist.OnePrompt(**NEUTRAL)
    found = consist.encode_prompts(sdxl_pipe, PROMPTS, method, clip_skip=1)["prompt_embeds"]
    expected = encode_plainly(sdxl_pipe, [JOINED] * 4, clip_skip=1)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(found, encode_plainly(sdxl_pipe, [JOINED] * 4)[0])


@pytest.mark.parametrize("name", ["sd_pipe", "sd2_pipe", "sdxl_pipe", "two_tokenizers_pipe"])
def test_each_text_encoder_is_reweighted_by_itself_at_its_own_places(request, name):
    pipe, method = request.getfixturevalue(name), consist.OnePrompt()
    found = consist.encode_prompts(pipe, PROMPTS, method, images=(3, 1))
    embeds, *others = encode_plainly(pipe, [JOINED] * 2)
    tokenizers = [pipe.tokenizer, *filter(None, [getattr(pipe, "tokenizer_2", None)])]
    spans = []
    for part, tokenizer in enumerate(tokenizers):
        features = slice(32 * part, 32 * part + 32)
        frames = [find_subject(tokenizer, [JOINED], [frame])[0][0] for frame in FRAMES]
        spans.append(frames)
        ids = tokenizer(JOINED, padding="max_length").input_ids
        ends = [i for i, token in enumerate(ids) if token == tokenizer.eos_token_id]
        for row, current in enumerate((3, 1)):
            text = embeds[row, :, features]
            expected = reweight_by_hand(text, frames, current, ends, method).float()
            actual = found["prompt_embeds"][row, :, features]
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    for actual, expected in zip(list(found.values())[1:], others, strict=True):
        assert torch.equal(actual, expected)
    assert (name == "two_tokenizers_pipe") == (spans[0] != spans[-1])


def test_the_identity_is_the_same_as_alone(pipe):
    """Why to append its keys and values is to weigh those that are there."""
    found = consist.encode_prompts(pipe, PROMPTS, consist.OnePrompt())["prompt_embeds"]
    alone = encode_plainly(pipe, ["a cat"])[0]
    for row in found:
        torch.testing.assert_close(row[1:3], alone[0, 1:3], rtol=0, atol=1e-5)
    assert not torch.allclose(found[0, 3], alone[0, 3], atol=1e-2)


def test_half_precision_is_kept(sd_pipe):
    text = draw_text().half()
    found = consist.OnePrompt().reweight(text, [[3], [4]], 0, [5])
    assert found.dtype == torch.float16


def test_too_many_frames_are_refused_with_the_number_that_fits(pipe):
    scenes = [f"a cat on a beach in paris on the moon number {number}" for number in range(6)]
    message = (
        r"one prompt for 6 images has \d+ tokens, the text encoder takes 38: what does not fit is "
        r".*'on a beach in paris on the moon number 5'; put fewer into one, with --set frames=(\d)"
    )
    with pytest.raises(ConsistError, match=message) as caught:
        consist.encode_prompts(pipe, scenes, consist.OnePrompt(subject=("cat",)))
    assert "number 0'" not in str(caught.value)
    fits = int(str(caught.value)[-1])
    assert 1 <= fits < 6
    found = consist.encode_prompts(
        pipe, scenes, consist.OnePrompt(subject=("cat",), frames=fits, **NEUTRAL)
    )
    circle = [number % 6 for number in range(4, 4 + fits)]
    text = " ".join(["a cat", *(scenes[number].removeprefix("a cat ") for number in circle)])
    expected = encode_plainly(pipe, [text])[0][0]
    torch.testing.assert_close(found["prompt_embeds"][4], expected, rtol=0, atol=1e-5)
    with pytest.raises(ConsistError, match=f"frames={fits}"):
        consist.identity_tokens(pipe, scenes, consist.OnePrompt(subject=("cat",), frames=fits + 1))


def test_a_prompt_that_is_too_long_alone_is_refused(sd_pipe):
    method = consist.OnePrompt(subject=("cat",))
    with pytest.raises(ConsistError, match=r"one prompt for 1 images .*; shorten the prompts"):
        consist.encode_prompts(sd_pipe, ["a cat " + "on the moon " * 20], method)


def test_embeddings_that_overflow_are_refused(sd_pipe):
    method = consist.OnePrompt(express=(-100.0, 1.0))
    with pytest.raises(ConsistError, match=r"overflow with express=\(-100.0, 1.0\)"):
        consist.encode_prompts(sd_pipe, PROMPTS, method)


# the attention


def site(**changes):
    fields = {"layer": LAYER, "height": 3, "width": 4, "progress": 0.5, "g": 2, "n": 3, "seed": 7}
    return Site(**{**fields, **changes})


@pytest.mark.parametrize("g", [1, 2])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_identity_is_appended_in_the_conditional_half(g, n):
    """Against keys and values that are appended in earnest, with all other columns masked."""
    torch.manual_seed(0)
    heads, d, places, s, words = 2, 4, 12, 9, (1, 2, 3)
    attn = Attention(query_dim=8, cross_attention_dim=6, heads=heads, dim_head=d).double()
    hidden, text = torch.randn(g * n, places, 8).double(), torch.randn(g * n, s, 6).double()
    identity = torch.randn(s, 6).double()
    text[-n:, words] = identity[list(words)]

    tokens = ((words,),) * n
    processor = IdentityAttnProcessor(
        LAYER, consist.OnePrompt(), lambda layer, count: site(g=g, n=n), tokens
    )
    with torch.no_grad():
        found = processor(attn, hidden, text)
        mask = torch.full((s,), -math.inf).double()
        mask[list(words)] = 0
        for row in range(g * n):
            q, k, v = attn.to_q(hidden[row]), attn.to_k(text[row]), attn.to_v(text[row])
            bias = torch.zeros(s).double()
            if row >= (g - 1) * n:
                k = torch.cat((k, attn.to_k(identity)))
                v = torch.cat((v, attn.to_v(identity)))
                bias = torch.cat((bias, mask))
            parts = []
            for head in (slice(h * d, h * d + d) for h in range(heads)):
                logits = q[:, head] @ k[:, head].T / math.sqrt(d) + bias
                parts.append(logits.softmax(-1) @ v[:, head])
            torch.testing.assert_close(found[row], attn.to_out[0](torch.cat(parts, -1)))


def test_dropout_leaves_out_its_share_of_the_words_and_nothing_else():
    method = consist.OnePrompt(ipca_dropout=0.3)
    named = torch.tensor([[False, True, True, False]]).expand(3, 4)
    bias = torch.stack([method.text_bias(named, site(progress=step / 99)) for step in range(100)])
    assert bias.shape == (100, 3, 12, 4)
    assert bias[..., [0, 3]].eq(0).all()
    kept = bias[..., 1:3]
    assert kept.unique().tolist() == [0.0, pytest.approx(math.log(2))]
    assert kept.eq(0).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(kept[:, 0], kept[:, 2])
    assert not torch.equal(kept[0], kept[1])


def test_the_weight_of_the_identity_is_the_number_of_its_copies():
    named = torch.tensor([[False, True]])
    assert consist.OnePrompt(ipca=3.0).text_bias(named, site(n=1)).tolist() == [
        [[0.0, pytest.approx(math.log(4))]]
    ]


# in a pipeline


def latents(pipe, count, guidance, **given):
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    options = {"num_inference_steps": 2, "output_type": "latent", "guidance_scale": guidance}
    return pipe(**given, generator=generators, **options).images


def draw(pipe, method, count=2, guidance=5.0):
    prompts = PROMPTS[:count]
    tokens = consist.identity_tokens(pipe, prompts, method)
    with consist.shared_attention(pipe, method, subject_tokens=tokens):
        given = consist.encode_prompts(pipe, prompts, method)
        return latents(pipe, count, guidance, **given)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_draws_with_every_pipeline(pipe, guidance, count):
    def build_method(**fields):
        return consist.OnePrompt(subject=("cat",), **fields)

    prompt = " ".join(["a cat", *FRAMES[:count]])
    plain = latents(pipe, count, guidance, prompt=[prompt] * count)
    neutral = draw(pipe, build_method(**NEUTRAL), count, guidance)
    torch.testing.assert_close(neutral, plain, rtol=0, atol=1e-4)
    appended = draw(pipe, build_method(**{**NEUTRAL, "ipca": 1.0}), count, guidance)
    reweighted = draw(pipe, build_method(ipca=0.0), count, guidance)
    for changed in (appended, reweighted):
        assert changed.isfinite().all()
        assert ((changed - plain).abs().amax((1, 2, 3)) > 1e-3).all()


def test_sharing_of_self_attention_is_a_setting(pipe):
    fields = {"subject": ("cat",), "ipca_dropout": 0.5}
    alone = draw(pipe, consist.OnePrompt(**fields))
    shared = draw(pipe, consist.OnePrompt(shared=True, **fields))
    assert shared.isfinite().all()
    assert (shared - alone).abs().max() > 1e-3


def test_shared_self_attention_is_that_of_spectral():
    batch = torch.randn(3, 6, 2, 12, 4, generator=torch.Generator().manual_seed(0))
    fields = {"anchors": 2, "keys": "count:2", "window": (0.2, 0.8)}
    found = consist.OnePrompt(shared=True, **fields)(*batch, site())
    expected = consist.Spectral(**fields)(*batch, site())
    assert torch.equal(found.k, expected.k)
    assert torch.equal(found.v, expected.v)
    assert consist.OnePrompt(shared=True, **fields).anchor_count(4) == 2
    assert consist.OnePrompt(**fields)(*batch, site()) is None
    assert consist.OnePrompt(**fields).anchor_count(4) == 0


def test_is_made_from_texts():
    texts = {"subject": "cat", "express": "-0.02,1", "frames": "10", "shared": "true", "ipca": "0"}
    made = build({"name": "one-prompt", **texts, "suppress": [0.1, 0.5]})
    assert made == consist.OnePrompt(
        subject=("cat",),
        express=(-0.02, 1.0),
        suppress=(0.1, 0.5),
        frames=10,
        shared=True,
        ipca=0.0,
    )
    assert made.joins_prompts
    assert not consist.Sdsa().joins_prompts


@dataclass(frozen=True, kw_only=True)
class Failing(consist.OnePrompt):
    def text_bias(self, named, site):
        raise RuntimeError("the method fails")


def trace(unet):
    hooks = [dict(m._forward_pre_hooks) for m in unet.modules()]
    return [id(p) for p in unet.attn_processors.values()], hooks, repr(unet)


def test_leaves_no_trace_even_after_an_error(pipe):
    before = trace(pipe.unet)
    draw(pipe, consist.OnePrompt())
    assert trace(pipe.unet) == before
    with pytest.raises(RuntimeError, match="the method fails"):
        draw(pipe, Failing())
    assert trace(pipe.unet) == before


def test_without_ipca_cross_attention_is_left_alone(unet):
    before = dict(unet.attn_processors)
    method = consist.OnePrompt(ipca=0.0)
    with consist.shared_attention(unet, method, guidance_halves=2):
        now = unet.attn_processors
        assert all(now[name] is p for name, p in before.items() if "attn2" in name)


def test_blocks_nest(unet):
    def enter(method, tokens=None):
        options = {"guidance_halves": 2, "subject_tokens": tokens}
        return consist.shared_attention(unet, method, **options)

    tokens, before = (((1, 2),),) * 2, trace(unet)
    with enter(consist.OnePrompt(), tokens):
        outer = trace(unet)
        with enter(consist.OnePrompt(), tokens):
            assert trace(unet) != outer
        assert trace(unet) == outer
    assert trace(unet) == before


def test_a_foreign_processor_of_cross_attention_is_refused_unless_it_is_left_alone(unet):
    class Foreign:
        """As an IP-Adapter's: none of those that come with every UNet."""

    before = dict(unet.attn_processors)
    unet.set_attn_processor({n: Foreign() if "attn2" in n else p for n, p in before.items()})
    try:
        tokens, own = (((1, 2),),) * 2, trace(unet)
        arguments = {"guidance_halves": 2, "subject_tokens": tokens}
        sharing = consist.shared_attention(unet, consist.OnePrompt(), **arguments)
        message = "attn2 already has a processor of its own, Foreign"
        with pytest.raises(NotImplementedError, match=message), sharing:
            pass
        assert trace(unet) == own
        with consist.shared_attention(unet, consist.OnePrompt(ipca=0.0), guidance_halves=2):
            pass
    finally:
        unet.set_attn_processor(before)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        (consist.OnePrompt(), {}, "OnePrompt takes those tokens that identity_tokens gives"),
        (consist.OnePrompt(), {"masks": torch.ones(2, 8, 8).bool()}, "takes those tokens"),
        (consist.OnePrompt(ipca=0.0), {"subject_tokens": (((1,),),)}, "OnePrompt takes neither"),
    ],
)
def test_refuses_at_once(unet, method, arguments, message):
    sharing = consist.shared_attention(unet, method, guidance_halves=2, **arguments)
    with pytest.raises(ValueError, match=message), sharing:
        pass


def test_refuses_a_batch_that_does_not_fit(sd_pipe):
    method, tokens = consist.OnePrompt(), (((1, 2),),) * 3
    given = consist.encode_prompts(sd_pipe, PROMPTS, method)
    sharing = consist.shared_attention(sd_pipe, method, subject_tokens=tokens)
    message = "subject tokens are for 3 images, the batch has 4"
    with sharing, pytest.raises(ValueError, match=message):
        latents(sd_pipe, 4, 5.0, **given)


def test_refuses_a_mask_of_the_text():
    processor = IdentityAttnProcessor(LAYER, consist.OnePrompt(), None, (((1,),),))
    with pytest.raises(NotImplementedError, match="was given no text, or a mask of it"):
        processor(None, torch.zeros(1), torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"subject": "cat"}, "subject is 'cat'; allowed: phrases such as"),
        ({"frames": 0}, "frames is 0; allowed: 'all' or a whole number from 1"),
        ({"frames": "some"}, "frames is 'some'"),
        ({"express": (0.1,)}, r"express is \(0.1,\); allowed: finite alpha, and beta of at least"),
        ({"express": (math.nan, 1.0)}, "express is"),
        ({"suppress": (0.01, -0.1)}, r"suppress is \(0.01, -0.1\)"),
        ({"ends": "none"}, "ends is 'none'; allowed: 'reweighted' or 'scaled'"),
        ({"ipca": -1.0}, "ipca is -1.0; allowed: finite and at least 0"),
        ({"ipca": math.inf}, "ipca is inf"),
        ({"ipca_dropout": 1.0}, "ipca_dropout is 1.0; allowed: 0 <= chance < 1"),
        ({"keys": "nullify"}, "keys: unknown spectrum 'nullify'"),
    ],
)
def test_a_field_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        consist.OnePrompt(**fields)


# a run


def run(**changes):
    given = {"prompts": tuple(PROMPTS), "seeds": (0, 1, 2, 3), "steps": 2, "negative": "a bus"}
    given |= {"width": 64, "height": 64}
    return RunConfig(**{**given, "method": {"name": "one-prompt", "ipca_dropout": 0.5}, **changes})


def check_alike(one, other):
    for index in range(4):
        pair = one.read_picture(index), other.read_picture(index)
        assert max(high for _, high in ImageChops.difference(*pair).getextrema()) <= 2


@pytest.mark.slow
def test_chunks_draw_what_the_whole_draws(tmp_path):
    whole = generate(run(), tmp_path / "whole")
    check_alike(generate(run(batch_size=3), tmp_path / "chunked"), whole)


@pytest.mark.slow
def test_a_run_with_neutral_settings_draws_the_consolidated_prompt(tmp_path):
    neutral = generate(run(method={"name": "one-prompt", **NEUTRAL}), tmp_path / "neutral")
    joined = run(prompts=(JOINED,) * 4, method={"name": "isolated"})
    check_alike(neutral, generate(joined, tmp_path / "joined"))


def test_prompts_that_do_not_fit_are_refused_before_anything_is_drawn(tmp_path):
    prompts = tuple(f"a cat on a red planet near the number {number}" for number in range(8))
    settings = {"prompts": prompts, "seeds": tuple(range(8)), "compare": True}
    method = {"name": "one-prompt", "subject": ["cat"], "ipca": 0.0}
    with pytest.raises(ConsistError, match="--set frames="):
        generate(run(**settings, method=method), tmp_path)
    assert not list(tmp_path.rglob("*.png"))


def test_the_command_line_knows_it():
    words = ["batch", *PROMPTS, "--method", "one-prompt", "--set", "frames=3", "--subject", "cat"]
    told = CliRunner().invoke(app, [*words, "--dry-run"])
    settings = {"name": "one-prompt", "subject": ["cat"], "frames": "3"}
    assert json.loads(told.stdout)["method"] == settings
