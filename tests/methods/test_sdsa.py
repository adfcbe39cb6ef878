"""Sharing of the subject alone: the method, the recorder in real pipelines, and a whole run."""

import copy
import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import ImageChops
from typer.testing import CliRunner

import consist
from consist.attention import bank as sharing
from consist.attention.layers import recorded_layers
from consist.attention.masks import RecordedMasks, find_masks
from consist.attention.method import NONE, WORDS, Site
from consist.attention.recorders import CrossAttentionRecorder
from consist.cli import app
from consist.errors import ConsistError
from consist.methods import build
from consist.runs.config import RunConfig
from consist.runs.drawing import generate

LAYER = "up_blocks.0.attentions.1.transformer_blocks.0.attn1"
G, N, H, ROWS, COLUMNS, D = 2, 3, 2, 3, 4, 4
L = ROWS * COLUMNS
PROMPTS = ["a cat in paris", "a cat on the moon", "a cat on a beach"]
TOKENS = (((2,),),) * 3


def draw_batch(n=N):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, G * n, H, L, D, generator=generator, dtype=torch.float64)


def draw_masks(n=N, c=1, l=L):
    return torch.rand(n, c, l, generator=torch.Generator().manual_seed(1)) < 0.5


def site(**changes):
    fields = {"layer": LAYER, "height": ROWS, "width": COLUMNS, "progress": 0.5, "g": G, "n": N}
    return Site(**{**fields, "seed": 7, "masks": draw_masks(), **changes})


def kept_of(method, **changes):
    """Which tokens of all images a method shares, ``(n, l)``: each token's value is its place."""
    place = site(**changes)
    k = torch.arange(place.n * L, dtype=torch.float64).reshape(place.n, 1, L, 1)
    bank = method(k, k, k, site(**{**changes, "g": 1}))
    return torch.isin(torch.arange(place.n * L), bank.k.flatten().long()).reshape(place.n, L)


# identity


def test_full_masks_are_plain_sharing():
    batch, masks = draw_batch(), torch.ones(N, 1, L, dtype=torch.bool)
    found = consist.Sdsa(mask_dropout=0.0)(*batch, site(masks=masks))
    expected = consist.Shared()(*batch, site())
    assert torch.equal(found.k, expected.k)
    assert torch.equal(found.v, expected.v)
    assert torch.equal(found.owner, expected.owner)


def test_nothing_is_shared_before_there_are_masks():
    assert consist.Sdsa()(*draw_batch(), site(masks=None)) is None
    assert consist.Sdsa().anchor_images(site(masks=None)) == ()


def test_empty_masks_are_plain_attention():
    q, k, v = draw_batch()
    bank = consist.Sdsa()(q, k, v, site(masks=torch.zeros(N, 1, L, dtype=torch.bool)))
    torch.testing.assert_close(sharing.attend(q, k, v, bank), sharing.attend(q, k, v))


# oracle


@pytest.mark.parametrize("anchors", [1, 2, "all"])
def test_sdsa_is_the_attention_of_the_paper(anchors):
    """Eq. 2-3 of arXiv:2402.03286, with images outside the anchors (section 4.4) masked whole."""
    q, k, v = draw_batch()
    masks = draw_masks()
    count = N if anchors == "all" else anchors
    bank = consist.Sdsa(anchors=anchors, mask_dropout=0.0)(q, k, v, site(masks=masks))
    found = sharing.attend(q, k, v, bank)
    for half in range(G):
        rows = range(half * N, half * N + N)
        for i in range(N):
            mask = [torch.ones(L) if j == i else masks[j, 0] * float(j < count) for j in range(N)]
            bias = torch.cat(mask).double().log()
            for h in range(H):
                keys, values = (torch.cat([x[row, h] for row in rows]) for x in (k, v))
                logits = q[rows[i], h] @ keys.T / math.sqrt(D) + bias
                torch.testing.assert_close(found[rows[i], h], logits.softmax(-1) @ values)


def test_spectra_act_before_the_mask():
    batch = draw_batch()
    spectra = {"keys": "log", "values": "count:1", "anchors": 2}
    found = consist.Sdsa(mask_dropout=0.0, **spectra)(*batch, site())
    whole = consist.Spectral(masks="none", **spectra)(*batch, site())
    kept = draw_masks()[:2].flatten()
    assert torch.equal(found.k, whole.k[:, :, kept])
    assert torch.equal(found.v, whole.v[:, :, kept])


# property


def test_dropout_leaves_out_its_share_of_the_subject():
    dropped = []
    for step in range(100):
        kept = kept_of(consist.Sdsa(mask_dropout=0.3), progress=step / 100)
        assert not (kept & ~draw_masks()[:, 0]).any()
        dropped.append(1 - kept.sum() / draw_masks().sum())
    assert torch.stack(dropped).mean().item() == pytest.approx(0.3, abs=0.03)


def test_dropout_is_drawn_anew_at_each_step_and_grid_and_alike_in_all_layers():
    method, masks = consist.Sdsa(), torch.ones(N, 1, L, dtype=torch.bool)
    kept = kept_of(method, masks=masks)
    assert torch.equal(kept_of(method, masks=masks, layer="up_blocks.1"), kept)
    for changes in ({"progress": 0.6}, {"height": COLUMNS, "width": ROWS}, {"seed": 8}):
        assert not torch.equal(kept_of(method, masks=masks, **changes), kept)


def test_dropout_does_not_know_the_images_after():
    method = consist.Sdsa(anchors=2)
    pair = kept_of(method, n=2, masks=draw_masks()[:2])
    assert torch.equal(kept_of(method)[:2], pair)


def test_dropout_needs_no_global_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = kept_of(consist.Sdsa())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert torch.equal(kept_of(consist.Sdsa()), first)


# several subjects


# by image: both subjects, the first, the second, and the second again
NAMED = torch.tensor([[True, True], [True, False], [False, True], [False, True]])


def site_of_subjects(named=NAMED):
    """Masks overlap; those of a subject that the prompt lacks are empty."""
    masks = draw_masks(n=len(named), c=2) & named[:, :, None]
    return site(n=len(named), masks=masks, named=named)


def visible_to(image, anchor, place):
    """Whether the place shows a subject that the image's prompt names, in the mask of one."""
    shown = place.masks[anchor] & place.named[image][:, None]
    return shown.any(0) if image != anchor else torch.zeros(L, dtype=torch.bool)


@pytest.mark.parametrize("anchors", [1, 2, "all"])
def test_an_image_sees_the_subjects_that_its_prompt_names(anchors):
    q, k, v = draw_batch(n=4)
    place = site_of_subjects()
    method = consist.Sdsa(anchors=anchors, mask_dropout=0.0, strength=1.5)
    found = sharing.attend(q, k, v, method(q, k, v, place))
    for i in range(4):
        seen = [visible_to(i, j, place) for j in range(4 if anchors == "all" else anchors)]
        for half, h in ((half, h) for half in range(G) for h in range(H)):
            rows = [half * 4 + j for j in range(len(seen))]
            own = half * 4 + i
            keys, values = (
                torch.cat([x[own, h], *(x[row, h][s] for row, s in zip(rows, seen, strict=True))])
                for x in (k, v)
            )
            bias = torch.full((len(keys),), math.log(1.5), dtype=torch.float32).double()
            bias[:L] = 0
            logits = q[own, h] @ keys.T / math.sqrt(D) + bias
            torch.testing.assert_close(found[own, h], logits.softmax(-1) @ values)


@pytest.mark.parametrize("named", [NAMED, NAMED[[1, 2, 3]], NAMED[:2], torch.ones(3, 2).bool()])
def test_a_token_is_packed_once_and_only_if_another_image_may_see_it(named):
    place, n = site_of_subjects(named), len(named)
    k = torch.arange(n * L, dtype=torch.float64).reshape(n, 1, L, 1)
    bank = consist.Sdsa(mask_dropout=0.0)(k, k, k, replace(place, g=1))
    packed, seen = bank.k.flatten().long(), bank.seen_by(n)
    for i in range(n):
        expected = torch.cat([visible_to(i, j, place) for j in range(n)])
        assert packed[seen[i]].tolist() == expected.nonzero()[:, 0].tolist()
    assert seen.any(0).all()
    assert len(packed.unique()) == len(packed)


def test_one_subject_is_packed_as_its_mask_is():
    q, k, v = draw_batch()
    masks = draw_masks()
    for named in (None, torch.ones(N, 1).bool()):
        bank = consist.Sdsa(mask_dropout=0.0)(q, k, v, site(masks=masks, named=named))
        expected = sharing.pack(k, v, [0, 1, 2], images=N, tokens=masks[:, 0])
        for field in ("k", "v", "owner"):
            assert torch.equal(getattr(bank, field), getattr(expected, field))
        assert torch.equal(bank.seen_by(N), expected.seen_by(N))


def test_subjects_that_all_prompts_name_are_shared_as_one():
    batch, masks = draw_batch(), draw_masks(c=2)
    found = sharing.attend(*batch, consist.Sdsa()(*batch, site(masks=masks)))
    union = masks.any(1, keepdim=True)
    torch.testing.assert_close(
        found, sharing.attend(*batch, consist.Sdsa()(*batch, site(masks=union)))
    )


def test_strength_weighs_the_tokens_that_are_kept():
    bank = consist.Sdsa(strength=2.0)(*draw_batch(), site())
    torch.testing.assert_close(bank.bias, torch.full(bank.owner.shape, math.log(2)))


def test_nothing_is_shared_outside_the_window():
    method = consist.Sdsa(window=(0.2, 0.5))
    open_at = [p for p in (0.1, 0.2, 0.4, 0.5, 0.9) if method(*draw_batch(), site(progress=p))]
    assert open_at == [0.2, 0.4]


def test_is_made_from_texts():
    expected = consist.Sdsa(subject=("red cat", "bus"), mask_dropout=0.7, anchors=2)
    texts = {"subject": "red cat, bus", "mask_dropout": "0.7", "anchors": "2"}
    assert build({"name": "sdsa", **texts}) == expected
    assert build({"name": "sdsa", "subject": ["cat"]}).subject == ("cat",)
    assert expected.masks == WORDS
    assert expected.reads_words
    assert not consist.Spectral(masks="matches").reads_words
    assert consist.Shared().masks == NONE


# in a pipeline


@dataclass(frozen=True, kw_only=True)
class Spy(consist.Sdsa):
    """Shares nothing, and remembers the sites at which it was asked."""

    sites: list = ()

    def __call__(self, q, k, v, site):
        self.sites.append(site)


@dataclass(frozen=True, kw_only=True)
class Failing(consist.Sdsa):
    def __call__(self, q, k, v, site):
        raise RuntimeError("the method fails")


def draw(pipe, **options):
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    options = {"num_inference_steps": 4, "output_type": "latent", **options}
    return pipe(PROMPTS, generator=generators, **options).images


def forward(unet, timestep=500, size=(8, 8), **options):
    generator = torch.Generator().manual_seed(5)
    sample = torch.randn(6, 4, *size, generator=generator)
    text = torch.randn(6, 7, 32, generator=generator)
    with torch.no_grad():
        return unet(sample, timestep, text, **options).sample


def trace(unet):
    hooks = [dict(m._forward_pre_hooks) for m in unet.modules()]
    return [id(p) for p in unet.attn_processors.values()], hooks, repr(unet)


@pytest.fixture(params=["sd_pipe", "sdxl_pipe"])
def pipe(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def tokens(pipe):
    return consist.find_subject(pipe.tokenizer, PROMPTS)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_recording_leaves_every_bit_of_the_pictures(pipe, tokens, guidance):
    expected = draw(pipe, guidance_scale=guidance)
    spy = Spy(sites=[])
    with consist.shared_attention(pipe, spy, subject_tokens=tokens):
        actual = draw(pipe, guidance_scale=guidance)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert {s.masks is None for s in spy.sites} == {True, False}


def test_masks_begin_with_the_second_step_on_the_grid_of_the_layer(pipe, tokens):
    spy = Spy(sites=[])
    with consist.shared_attention(pipe, spy, subject_tokens=tokens):
        draw(pipe, height=16, width=24)
    first = spy.sites[0].progress
    assert {(s.height, s.width) for s in spy.sites} == {(8, 12), (4, 6)}
    for s in spy.sites:
        if s.progress == first:
            assert s.masks is None
        else:
            assert s.masks.shape == (3, 1, s.height * s.width)
            assert 0 < s.masks.sum() < s.masks.numel()


def test_sharing_the_subject_changes_pictures_from_the_second_step_on(pipe, tokens):
    with consist.shared_attention(pipe, consist.Sdsa(), subject_tokens=tokens):
        once = draw(pipe, num_inference_steps=1)
        shared = draw(pipe)
        again = draw(pipe)
    torch.testing.assert_close(once, draw(pipe, num_inference_steps=1), rtol=0, atol=0)
    assert shared.isfinite().all()
    assert (shared - draw(pipe)).abs().max() > 1e-3
    # nothing of the pictures before is left
    torch.testing.assert_close(again, shared, rtol=0, atol=0)


def test_the_maps_are_those_of_the_conditional_half(unet):
    """Against the probabilities that diffusers' own layers give for the same inputs."""
    maps = []

    def listen(attn, args, kwargs):
        q, k = attn.to_q(args[0]), attn.to_k(kwargs["encoder_hidden_states"])
        scores = attn.get_attention_scores(attn.head_to_batch_dim(q), attn.head_to_batch_dim(k))
        maps.append(scores.unflatten(0, (6, attn.heads))[3:, :, :, 2].mean(1))

    layers = recorded_layers(unet).values()
    handles = [attn.register_forward_pre_hook(listen, with_kwargs=True) for attn in layers]
    spy = Spy(sites=[], layers=("up_blocks", "down_blocks", "mid_block"))
    sharing = consist.shared_attention(unet, spy, guidance_halves=2, subject_tokens=TOKENS)
    try:
        with sharing, torch.no_grad():
            forward(unet, 900, (6, 10))
            mean = torch.stack(maps).mean(0).reshape(3, 1, 3, 5)
            forward(unet, 500, (6, 10))
    finally:
        for handle in handles:
            handle.remove()
    assert {s.masks is None for s in spy.sites if s.progress < 0.3} == {True}
    for s in (s for s in spy.sites if s.progress > 0.3):
        assert torch.equal(s.masks, find_masks(mean.double(), s.height, s.width))


@pytest.mark.slow
def test_a_prompt_that_shares_no_subject_is_drawn_alone(pipe):
    """Two cats and a bus: the cats are drawn as a pair, the bus as by itself."""
    prompts = ["a cat in paris", "a cat on the moon", "a red bus on a beach"]
    method = consist.Sdsa(subject=("cat", "red bus"), mask_dropout=0.0)
    tokens = consist.find_subject(pipe.tokenizer, prompts, method.subject)

    def draw_images(images, method):
        picked = tuple(tokens[i] for i in images)
        generators = [torch.Generator().manual_seed(i) for i in images]
        with consist.shared_attention(pipe, method, subject_tokens=picked):
            return pipe(
                [prompts[i] for i in images],
                generator=generators,
                num_inference_steps=4,
                output_type="latent",
            ).images

    together = draw_images([0, 1, 2], method)
    pair = draw_images([0, 1], method)
    alone = draw_images([0, 1, 2], Spy(sites=[]))
    torch.testing.assert_close(together[:2], pair, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(together[2], alone[2], rtol=1e-3, atol=1e-3)
    assert (together - alone).abs().amax((1, 2, 3))[:2].min() > 1e-2


def test_given_masks_need_no_recorder(unet):
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[:, 2:6, 2:6] = True
    spy, hooks = Spy(sites=[]), trace(unet)[1]
    sharing = consist.shared_attention(
        unet, spy, guidance_halves=2, masks=masks, subject_tokens=TOKENS
    )
    with sharing:
        assert sum(before != now for before, now in zip(hooks, trace(unet)[1], strict=True)) == 1
        forward(unet)
    assert all(s.masks is not None for s in spy.sites)
    whole = [s.masks for s in spy.sites if s.height == 8]
    assert torch.equal(whole[0], masks[:, None].flatten(2))
    assert all(s.named.tolist() == [[True]] * 3 for s in spy.sites)


def test_the_processors_of_cross_attention_are_left_alone(unet):
    class Foreign(AttnProcessor2_0):
        pass

    before = dict(unet.attn_processors)
    own = {name: Foreign() if "attn2" in name else p for name, p in before.items()}
    unet.set_attn_processor(dict(own))
    try:
        spy = Spy(sites=[])
        with consist.shared_attention(unet, spy, guidance_halves=2, subject_tokens=TOKENS):
            now = unet.attn_processors
            assert all(now[name] is p for name, p in own.items() if "attn2" in name)
            forward(unet, 900)
            forward(unet, 500)
    finally:
        unet.set_attn_processor(before)
    assert spy.sites[-1].masks is not None


def add_ip_adapter(unet):
    """A copy of the UNet with an IP-Adapter of random weights that takes embeddings of width 16."""
    unet, keys = copy.deepcopy(unet), {}
    crosses = [name for name in unet.attn_processors if "attn2" in name]
    for number, name in enumerate(crosses):
        width = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape
        keys |= {f"{2 * number + 1}.to_{x}_ip.weight": torch.randn(width) for x in "kv"}
    projection = {"proj.weight": torch.randn(4 * 32, 16), "proj.bias": torch.zeros(4 * 32)}
    norm = {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)}
    unet._load_ip_adapter_weights([{"image_proj": projection | norm, "ip_adapter": keys}])
    return unet.eval()


def test_works_beside_an_ip_adapter(unet):
    unet = add_ip_adapter(unet)
    crosses = {name: p for name, p in unet.attn_processors.items() if "attn2" in name}
    image = {"added_cond_kwargs": {"image_embeds": [torch.randn(6, 1, 16)]}}
    expected = forward(unet, **image)
    spy = Spy(sites=[])
    with consist.shared_attention(unet, spy, guidance_halves=2, subject_tokens=TOKENS):
        forward(unet, 900, **image)
        assert all(unet.attn_processors[name] is p for name, p in crosses.items())
        torch.testing.assert_close(forward(unet, **image), expected, rtol=0, atol=0)
    assert spy.sites[-1].masks is not None


def test_leaves_no_trace_even_after_an_error(unet):
    before = trace(unet)
    with consist.shared_attention(unet, consist.Sdsa(), guidance_halves=2, subject_tokens=TOKENS):
        assert trace(unet)[1] != before[1]
        forward(unet)
    assert trace(unet) == before
    failing = consist.shared_attention(unet, Failing(), guidance_halves=2, subject_tokens=TOKENS)
    with pytest.raises(RuntimeError, match="the method fails"), failing:
        forward(unet)
    assert trace(unet) == before


# a run


def run(count=4, **changes):
    prompts = ("a cat in paris", "a cat on the moon", "a cat on a beach", "a cat in a forest")
    method = {"name": "sdsa", "anchors": 2, "subject": ["cat"]}
    given = {"prompts": prompts[:count], "seeds": tuple(range(count)), "steps": 3}
    given |= {"width": 64, "height": 64}
    return RunConfig(**{**given, "method": method, **changes})


@pytest.mark.slow
def test_chunks_draw_the_same_subject_from_the_same_anchors(tmp_path):
    whole = generate(run(), tmp_path / "whole")
    chunked = generate(run(batch_size=3), tmp_path / "chunked")
    for index in range(4):
        pair = whole.read_picture(index), chunked.read_picture(index)
        assert max(high for _, high in ImageChops.difference(*pair).getextrema()) <= 2


def test_a_subject_that_no_prompt_names_is_refused_before_anything_is_drawn(tmp_path):
    changes = {"method": {"name": "sdsa", "subject": "dog"}, "compare": True}
    with pytest.raises(ConsistError, match="no prompt has the words of --subject 'dog'"):
        generate(run(**changes), tmp_path)
    assert not list(tmp_path.rglob("*.png"))


def test_the_command_line_names_subjects():
    words = ["batch", "a cat", "a bus", "--method", "sdsa", "--dry-run"]
    told = CliRunner().invoke(app, [*words, "--subject", "cat", "--subject", "bus"])
    assert json.loads(told.stdout)["method"] == {"name": "sdsa", "subject": ["cat", "bus"]}


# refusal


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"subject": "cat"}, "subject is 'cat'; allowed: phrases such as"),
        ({"subject": ("cat", "")}, r"subject is \('cat', ''\)"),
        ({"source": "last"}, "source is 'last'; allowed: 'all' or 'first'"),
        ({"mask_dropout": 1.0}, "mask_dropout is 1.0; allowed: 0 <= chance < 1"),
        ({"mask_dropout": -0.1}, "mask_dropout is -0.1"),
        ({"mask_dropout": math.nan}, "mask_dropout is nan"),
        ({"keys": "nullify"}, "keys: unknown spectrum 'nullify'"),
    ],
)
def test_a_field_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        consist.Sdsa(**fields)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        (consist.Sdsa(), {}, "Sdsa takes one of them"),
        (consist.Shared(), {"subject_tokens": TOKENS}, "Shared takes neither"),
        (consist.Shared(), {"masks": torch.ones(3, 8, 8).bool()}, "Shared takes neither"),
        (consist.Sdsa(), {"masks": torch.ones(3, 8, 8)}, "masks is torch.float32"),
    ],
)
def test_refuses_at_once(unet, method, arguments, message):
    before = trace(unet)
    sharing = consist.shared_attention(unet, method, guidance_halves=2, **arguments)
    with pytest.raises(ValueError, match=message), sharing:
        pass
    assert trace(unet) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subject_tokens": TOKENS[:2]}, "subject tokens are for 2 images, the batch has 3"),
        ({"masks": torch.ones(2, 8, 8).bool()}, "masks are for 2 images, the batch has 3"),
        ({"subject_tokens": (((7,),),) * 3}, "token 7 was named; allowed: 0 to 6"),
    ],
)
def test_refuses_a_batch_that_does_not_fit(unet, arguments, message):
    sharing = consist.shared_attention(unet, consist.Sdsa(), guidance_halves=2, **arguments)
    with sharing, pytest.raises(ValueError, match=message):
        forward(unet)


def test_refuses_a_mask_of_the_text(unet):
    attn = next(iter(recorded_layers(unet).values()))
    recorder = CrossAttentionRecorder("here", None, RecordedMasks(TOKENS))
    with pytest.raises(NotImplementedError, match="here was given a mask of the text"):
        recorder(attn, (torch.zeros(1),), {"attention_mask": torch.zeros(1)})
