import dataclasses
import math
import random

import pytest
import torch
from einops import rearrange

from consist.attention import bank as sharing
from consist.attention.method import Site
from consist.errors import ConsistError
from consist.methods import METHODS, build, defaults_of, spell_out
from consist.methods.isolated import Isolated
from consist.methods.shared import Shared
from consist.methods.spectral import Spectral
from consist.spectra.decomposition import filter_matrix
from consist.spectra.rules import parse_spectrum

LAYER = "up_blocks.0.attentions.1.transformer_blocks.0.attn1"
G, N, H, L, D = 2, 3, 2, 12, 4


def draw_batch(n=N, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shape = (3, G * n, H, L, D)
    return tuple((torch.randn(shape, generator=generator, dtype=torch.float64) + 0.3).to(dtype))


def site(**changes):
    fields = {"layer": LAYER, "height": 3, "width": 4, "progress": 0.5, "g": G, "n": N, "seed": 7}
    return Site(**fields | changes)


def attend(method, q, k, v, **changes):
    return sharing.attend(q, k, v, method(q, k, v, site(n=len(q) // G, **changes)))


# identity


def test_a_method_spelled_out_is_the_same_method():
    for name in METHODS:
        whole = spell_out({"name": name})
        assert whole.keys() == {"name", *defaults_of(name)}
        assert build(whole) == build({"name": name})
    whole = spell_out({"name": "spectral", "keys": "log", "window": "0,0.5"})
    assert (whole["keys"], whole["values"], whole["window"]) == ("log", "log2", (0.0, 0.5))


def test_isolated_shares_nothing_anywhere():
    assert Isolated()(*draw_batch(), site()) is None
    assert Isolated().anchor_images(site()) == ()
    assert Isolated().covers(LAYER)


def test_spectral_with_the_identity_is_shared():
    batch = draw_batch()
    plain = Shared(anchors=2)(*batch, site())
    spectral = Spectral(anchors=2, keys="identity", values="identity")(*batch, site())
    assert torch.equal(spectral.k, plain.k)
    assert torch.equal(spectral.v, plain.v)
    assert torch.equal(spectral.owner, plain.owner)


def test_strength_one_is_no_bias():
    assert Shared()(*draw_batch(), site()).bias is None


def test_one_image_shares_nothing():
    q, k, v = draw_batch(n=1)
    for anchors in ("all", "random", 1):
        assert Shared(anchors=anchors)(q, k, v, site(n=1)) is None


# oracle


@pytest.mark.parametrize("anchors", [1, 2, "all"])
def test_shared_gives_the_tokens_of_the_first_images(anchors):
    _, k, v = draw_batch()
    bank = Shared(anchors=anchors)(*draw_batch(), site())
    count = N if anchors == "all" else anchors
    for x, packed in ((k, bank.k), (v, bank.v)):
        for half in range(G):
            tokens = torch.cat([x[half * N + image] for image in range(count)], dim=1)
            assert torch.equal(packed[half], tokens)
    assert bank.owner.tolist() == [image for image in range(count) for _ in range(L)]


@pytest.mark.parametrize("width", ["head", "full"])
@pytest.mark.parametrize("pool", ["anchor", "all"])
@pytest.mark.parametrize("centered", [False, True])
def test_spectral_filters_the_matrices_it_names(width, pool, centered):
    """Takes each matrix out by hand, and decomposes it alone."""
    batch = draw_batch()
    rules = {"keys": "log|count:2", "values": "log"}
    method = Spectral(anchors=2, width=width, pool=pool, centered=centered, **rules)
    found = method(*batch, site())
    plain = Shared(anchors=2)(*batch, site())
    heads = [slice(h, h + 1) for h in range(H)] if width == "head" else [slice(None)]
    tokens = [slice(0, L), slice(L, 2 * L)] if pool == "anchor" else [slice(None)]
    for x, filtered, text in zip(
        (plain.k, plain.v), (found.k, found.v), rules.values(), strict=True
    ):
        for half, h, s in ((half, h, s) for half in range(G) for h in heads for s in tokens):
            matrix = rearrange(x[half, h, s], "h s d -> s (h d)")
            alone = filter_matrix(matrix, parse_spectrum(text), centered=centered)
            torch.testing.assert_close(rearrange(filtered[half, h, s], "h s d -> s (h d)"), alone)


# property


def test_the_rule_of_the_keys_never_reaches_the_values():
    """The predecessor's defect: one rank for both."""
    batch = draw_batch()
    bank = Spectral(keys="count:1", values="count:3", centered=False)(*batch, site())
    ranks = [
        torch.linalg.matrix_rank(x.unflatten(2, (N, L))).unique().tolist() for x in (bank.k, bank.v)
    ]
    assert ranks == [[1], [3]]
    other = Spectral(keys="count:2", values="count:3", centered=False)(*batch, site())
    assert torch.equal(other.v, bank.v)
    assert not torch.equal(other.k, bank.k)


def test_the_default_keeps_keys_and_flattens_values():
    q, k, v = draw_batch()
    # directions of every strength, as real values have them
    v = v * torch.logspace(0, -2, v.shape[-1])
    bank, plain = Spectral(centered=False)(q, k, v, site()), Shared()(q, k, v, site())
    assert torch.equal(bank.k, plain.k)
    wide, flat = (torch.linalg.svdvals(x) for x in (plain.v, bank.v))
    assert (flat[..., -1] / flat[..., 0] > 3 * wide[..., -1] / wide[..., 0]).all()


@pytest.mark.parametrize("width", ["head", "full"])
@pytest.mark.parametrize("pool", ["anchor", "all"])
def test_guidance_halves_are_never_mixed(width, pool):
    q, k, v = draw_batch()
    method = Spectral(width=width, pool=pool)
    before = method(q, k, v, site())
    k, v = k.clone(), v.clone()
    k[:N] *= 100
    v[:N] += 1
    after = method(q, k, v, site())
    torch.testing.assert_close(after.k[1], before.k[1])
    torch.testing.assert_close(after.v[1], before.v[1])
    assert not torch.isclose(after.k[0], before.k[0]).any()


def test_one_anchor_never_changes_another():
    q, k, v = draw_batch()
    before = Spectral()(q, k, v, site())
    k = k.clone()
    k[0] *= 100
    after = Spectral()(q, k, v, site())
    torch.testing.assert_close(after.k[:, :, L:], before.k[:, :, L:])


@pytest.mark.parametrize("method", [Shared(), Spectral(), Spectral(width="full")])
def test_permuting_images_permutes_outputs(method):
    batch = draw_batch()
    order = torch.tensor([2, 0, 1])
    rows = torch.cat((order, order + N))
    found = attend(method, *(x[rows] for x in batch))
    torch.testing.assert_close(found, attend(method, *batch)[rows])


def test_pooling_with_a_permutation_permutes_outputs():
    batch = draw_batch()
    rows = torch.tensor([1, 2, 0, 4, 5, 3])
    method = Spectral(pool="all")
    found = attend(method, *(x[rows] for x in batch))
    torch.testing.assert_close(found, attend(method, *batch)[rows])


def test_input_is_never_changed():
    batch = draw_batch()
    before = [x.clone() for x in batch]
    Spectral(strength=2.0, width="full", pool="all")(*batch, site())
    assert all(torch.equal(x, y) for x, y in zip(batch, before, strict=True))


def test_strength_weighs_the_shared_tokens():
    batch = draw_batch()
    bank = Shared(strength=3.0)(*batch, site())
    assert bank.bias.dtype == torch.float32
    torch.testing.assert_close(bank.bias, torch.full((N * L,), math.log(3)))
    faint = attend(Shared(strength=1e-12), *batch)
    torch.testing.assert_close(faint, sharing.attend(*batch), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_of_the_batch_is_kept(dtype):
    bank = Spectral()(*draw_batch(dtype=dtype), site())
    assert (bank.k.dtype, bank.v.dtype) == (dtype, dtype)


@pytest.mark.parametrize(
    ("window", "open_at"),
    [
        ((0.0, 1.0), [0.0, 0.2, 0.5, 0.8, 1.0]),
        ((0.2, 0.8), [0.2, 0.5]),
        ((0.5, 1.0), [0.5, 0.8, 1.0]),
        ((0.0, 0.2), [0.0]),
    ],
)
def test_the_window_holds_its_start_and_not_its_stop_except_the_end(window, open_at):
    batch = draw_batch()
    found = [
        progress
        for progress in (0.0, 0.2, 0.5, 0.8, 1.0)
        if Shared(window=window)(*batch, site(progress=progress)) is not None
    ]
    assert found == open_at


@pytest.mark.parametrize(
    ("layers", "layer", "covered"),
    [
        (("up_blocks",), LAYER, True),
        (("up_blocks",), "down_blocks.0.attentions.0.transformer_blocks.0.attn1", False),
        (("up_blocks.0", "mid_block"), "mid_block.attentions.0.transformer_blocks.0.attn1", True),
        (("up_blocks.1",), "up_blocks.10.attentions.0.transformer_blocks.0.attn1", False),
        ((LAYER,), LAYER, True),
    ],
)
def test_layers_are_beginnings_of_dotted_names(layers, layer, covered):
    assert Spectral(layers=layers).covers(layer) is covered


def test_random_draws_one_anchor_that_all_the_others_see():
    batch = draw_batch()
    method = Shared(anchors="random")
    bank = method(*batch, site())
    (anchor,) = method.anchor_images(site())
    assert bank.owner.unique().tolist() == [anchor]
    seen = bank.seen_by(N).all(-1)
    assert seen.tolist() == [image != anchor for image in range(N)]


def test_random_draws_again_at_each_call():
    method = Shared(anchors="random")
    steps = [site(progress=step / 20) for step in range(20)]
    layers = [site(layer=f"up_blocks.{layer}") for layer in range(20)]
    seeds = [site(seed=seed) for seed in range(20)]
    for sites in (steps, layers, seeds):
        assert {method.anchor_images(x) for x in sites} == {(0,), (1,), (2,)}


def test_random_needs_no_global_generator_and_no_count_of_calls():
    method = Shared(anchors="random")
    torch.manual_seed(1)
    random.seed(1)
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    first = [method.anchor_images(site(progress=step / 20)) for step in range(20)]
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    torch.manual_seed(2)
    again = [method.anchor_images(site(progress=step / 20)) for step in reversed(range(20))]
    assert again[::-1] == first


def test_the_generator_of_a_site_is_fixed_for_good():
    assert site().generator().initial_seed() == site(n=5, width=9).generator().initial_seed()
    assert site().generator().initial_seed() != site(seed=8).generator().initial_seed()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_found_by_name_and_made_without_arguments(name):
    method = build({"name": name})
    assert isinstance(method.covers(LAYER), bool)
    bank = method(*draw_batch(), site())
    owners = set() if bank is None else set(bank.owner.tolist())
    assert owners == set(method.anchor_images(site()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.anchors = 2


# refusal


def test_an_unknown_method_is_refused():
    message = r"unknown method 'spectrall', did you mean 'spectral'.*iso"
    with pytest.raises(ConsistError, match=message):
        build({"name": "spectrall"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"anchors": 0}, "anchors is 0; allowed: 'all', 'random' or a whole number from 1"),
        ({"anchors": True}, "anchors is True"),
        ({"anchors": 1.5}, "anchors is 1.5"),
        ({"anchors": "some"}, "anchors is 'some'"),
        ({"layers": "up_blocks"}, "layers is 'up_blocks'; allowed: a tuple of beginnings"),
        ({"layers": ()}, r"layers is \(\)"),
        ({"layers": ("",)}, r"layers is \('',\)"),
        ({"window": (0.5, 0.5)}, r"window is \(0.5, 0.5\); allowed: 0 <= start < stop <= 1"),
        ({"window": (-0.1, 1.0)}, r"window is \(-0.1, 1.0\)"),
        ({"window": (0.0, 1.1)}, r"window is \(0.0, 1.1\)"),
        ({"window": (math.nan, 1.0)}, r"window is \(nan, 1.0\)"),
        ({"window": (0.0,)}, r"window is \(0.0,\)"),
        ({"strength": 0.0}, "strength is 0.0; allowed: finite and above 0"),
        ({"strength": -1.0}, "strength is -1.0"),
        ({"strength": math.inf}, "strength is inf"),
        ({"strength": math.nan}, "strength is nan"),
        ({"keys": "energy:2"}, "keys: spectrum 'energy:2': share is 2.0; allowed: 0 < share <= 1"),
        ({"keys": ""}, "keys: unknown spectrum ''"),
        ({"values": "nullify"}, "values: unknown spectrum 'nullify'"),
        ({"width": "half"}, "width is 'half'; allowed: 'head' or 'full'"),
        ({"pool": "none"}, "pool is 'none'; allowed: 'anchor' or 'all'"),
    ],
)
def test_a_field_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Spectral(**fields)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("progress", [0.1, 0.9])
def test_more_anchors_than_images_are_refused(n, progress):
    method = Shared(anchors=4, window=(0.5, 1.0))
    with pytest.raises(
        ValueError, match=f"anchors is 4; allowed: at most {n}, the images there are"
    ):
        method(*draw_batch(n=n), site(n=n, progress=progress))
