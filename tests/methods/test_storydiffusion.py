"""Sharing of random tokens: what is drawn, when, and the attention that follows."""

import math

import pytest
import torch

import consist
from consist.attention import bank as sharing
from consist.attention.method import Site
from consist.methods import build

LAYER = "up_blocks.0.attentions.1.transformer_blocks.0.attn1"
G, N, H, ROWS, COLUMNS, D = 2, 3, 2, 4, 6, 4
L = ROWS * COLUMNS
CODE = {"window": (0.02, 1.0), "chances": (0.7, 0.9)}


def draw_batch(n=N):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, G * n, H, L, D, generator=generator, dtype=torch.float64)


def site(**changes):
    fields = {"layer": LAYER, "height": ROWS, "width": COLUMNS, "progress": 0.5, "g": G, "n": N}
    return Site(**{**fields, "seed": 7, **changes})


def drawn_by(method, **changes):
    """Which tokens of all images a method shares, ``(n, l)``: each token's value is its place."""
    place = site(**{**changes, "g": 1})
    k = torch.arange(place.n * L, dtype=torch.float64).reshape(place.n, 1, L, 1)
    bank = method(k, k, k, place)
    assert len(bank.k.unique()) == bank.k.numel()
    return torch.isin(torch.arange(place.n * L), bank.k.flatten().long()).reshape(place.n, L)


# identity


def test_a_rate_of_one_is_plain_sharing():
    batch = draw_batch()
    found = consist.StoryDiffusion(rate=1.0, anchors=2)(*batch, site())
    expected = consist.Shared(anchors=2)(*batch, site())
    for field in ("k", "v", "owner"):
        assert torch.equal(getattr(found, field), getattr(expected, field))


def test_one_image_shares_nothing():
    assert consist.StoryDiffusion()(*draw_batch(n=1), site(n=1)) is None


# oracle


@pytest.mark.parametrize("anchors", [1, 2, "all"])
def test_an_image_attends_to_its_own_tokens_and_to_those_drawn(anchors):
    q, k, v = draw_batch()
    method = consist.StoryDiffusion(anchors=anchors)
    found, drawn = sharing.attend(q, k, v, method(q, k, v, site())), drawn_by(method)
    assert drawn.any(1).tolist() == [anchors == "all" or j < anchors for j in range(N)]
    for half, i, h in ((half, i, h) for half in range(G) for i in range(N) for h in range(H)):
        keys, values = [], []
        for j in range(N):
            for token in range(L):
                if i == j or drawn[j, token]:
                    keys.append(k[half * N + j, h, token])
                    values.append(v[half * N + j, h, token])
        logits = q[half * N + i, h] @ torch.stack(keys).T / math.sqrt(D)
        expected = logits.softmax(-1) @ torch.stack(values)
        torch.testing.assert_close(found[half * N + i, h], expected)


# property


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_the_rate_is_the_share_of_the_tokens_that_are_seen(rate):
    method = consist.StoryDiffusion(rate=rate)
    drawn = [drawn_by(method, progress=step / 100).float().mean() for step in range(100)]
    assert torch.stack(drawn).mean().item() == pytest.approx(rate, abs=0.03)


def test_tokens_are_drawn_anew_at_each_step_and_grid_and_alike_in_all_layers():
    method = consist.StoryDiffusion()
    drawn = drawn_by(method)
    assert torch.equal(drawn_by(method, layer="up_blocks.1"), drawn)
    for changes in ({"progress": 0.6}, {"height": COLUMNS, "width": ROWS}, {"seed": 8}):
        assert not torch.equal(drawn_by(method, **changes), drawn)


def test_tokens_of_an_image_do_not_change_with_the_images_after():
    method = consist.StoryDiffusion(anchors=2)
    assert torch.equal(drawn_by(method)[:2], drawn_by(method, n=2))


def test_mask_dropout_is_another_draw():
    kept = drawn_by(consist.Sdsa(), masks=torch.ones(N, 1, L, dtype=torch.bool))
    drawn = drawn_by(consist.StoryDiffusion())
    # what is dropped lies below the same chance as what is drawn
    assert (drawn & kept).any()
    assert (drawn & ~kept).any()


def shares(method, **changes):
    return method(*draw_batch(), site(**changes)) is not None


def test_all_layers_share_at_all_steps_by_default():
    assert all(
        shares(consist.StoryDiffusion(), progress=step / 50, layer=f"up_blocks.{layer}")
        for step in range(51)
        for layer in range(4)
    )


def test_layers_stay_alone_by_the_chance_of_their_step():
    method = consist.StoryDiffusion(**CODE)

    def frequency(*progress):
        calls = [
            shares(method, progress=p, layer=f"up_blocks.{layer}")
            for p in progress
            for layer in range(300 // len(progress))
        ]
        return sum(calls) / len(calls)

    assert frequency(0.0, 0.019) == 0
    # over many layers at one step, and over many steps
    for early in ([0.02], [0.399], [0.02 + step / 1000 for step in range(300)]):
        assert frequency(*early) == pytest.approx(0.7, abs=0.08)
    for late in ([0.4], [1.0], [0.4 + step / 500 for step in range(300)]):
        assert frequency(*late) == pytest.approx(0.9, abs=0.06)


def test_a_layer_asked_twice_gives_the_same():
    method = consist.StoryDiffusion(chances=(0.5, 0.5))
    calls = [{"progress": step / 40} for step in range(40)]
    assert [shares(method, **c) for c in calls] == [shares(method, **c) for c in calls]


def test_needs_no_global_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = drawn_by(consist.StoryDiffusion(chances=(0.5, 1.0)))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert torch.equal(drawn_by(consist.StoryDiffusion(chances=(0.5, 1.0))), first)


def test_is_made_from_texts():
    texts = {"rate": "0.3", "chances": "0.7, 0.9", "window": "0.02,1", "warm_up": "0.5"}
    expected = consist.StoryDiffusion(rate=0.3, warm_up=0.5, **CODE)
    assert build({"name": "storydiffusion", **texts}) == expected


# in a pipeline


@pytest.mark.parametrize("pipe", ["sd_pipe", "sdxl_pipe"])
def test_sharing_changes_pictures_and_repeats_with_its_seed(pipe, request):
    pipe = request.getfixturevalue(pipe)

    def draw(method, seed=0):
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        with consist.shared_attention(pipe, method, seed=seed):
            return pipe(
                ["a cat in paris", "a cat on the moon"],
                generator=generators,
                num_inference_steps=2,
                output_type="latent",
            ).images

    shared = draw(consist.StoryDiffusion())
    assert shared.isfinite().all()
    for other in (draw(consist.Isolated()), draw(consist.Shared())):
        assert (shared - other).abs().max() > 1e-3
    torch.testing.assert_close(draw(consist.StoryDiffusion()), shared, rtol=0, atol=0)
    assert not torch.equal(draw(consist.StoryDiffusion(), seed=1), shared)


# refusal


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": 0.0}, "rate is 0.0; allowed: 0 < chance <= 1"),
        ({"rate": 1.1}, "rate is 1.1"),
        ({"rate": math.nan}, "rate is nan"),
        ({"chances": (0.7, 1.1)}, r"chances is \(0.7, 1.1\); allowed: two numbers from 0 to 1"),
        ({"chances": (math.nan, 0.9)}, r"chances is \(nan, 0.9\)"),
        ({"chances": (0.7,)}, r"chances is \(0.7,\)"),
        ({"warm_up": -0.1}, "warm_up is -0.1; allowed: 0 <= progress <= 1"),
        ({"warm_up": math.nan}, "warm_up is nan"),
        ({"anchors": 0}, "anchors is 0"),
    ],
)
def test_a_field_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        consist.StoryDiffusion(**fields)
