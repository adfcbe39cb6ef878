"""What images have in common: matches of keys, their masks, and methods that share those."""

from itertools import product

import pytest
import torch

from consist.attention.common_tokens import RecordedMatches, average, averaged, match
from consist.attention.layers import matched_layers
from consist.attention.masks import find_masks, normalize
from consist.attention.method import Site
from consist.attention.processor import shared_attention
from consist.attention.recorders import KeyRecorder, UNetCall
from consist.methods.isolated import Isolated
from consist.methods.matched import Matched
from consist.methods.sdsa import Sdsa
from consist.methods.shared import Shared
from consist.methods.spectral import Spectral

A, L, C = 3, 12, 48
GRID = (3, 4)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def site(masks=None, n=4, progress=0.5):
    height, width = GRID
    masks = None if masks is None else masks[:, None]
    return Site(
        layer="up_blocks.0", height=height, width=width, progress=progress, g=2, n=n, masks=masks
    )


def record(k, images=A):
    """What is in common, one step after the keys of some images were told of."""
    matches = RecordedMatches(lambda n: A)
    matches.begin(0.0, images)
    matches.add(k, k[:A], range(images), *GRID)
    assert matches.read(*GRID) is None
    matches.begin(0.1, images)
    return matches


# oracle


def test_matches_are_those_of_a_loop():
    k = draw(A + 1, L, C)
    anchors = k[:A].double()
    mean = anchors.mean((0, 1))
    found = match(k, k[:A], range(A + 1))
    for image, token in product(range(A + 1), range(L)):
        nearest = []
        for other in {0, 1, 2} - {image}:
            x, those = k[image, token].double() - mean, anchors[other] - mean
            nearest.append(max(float(x @ y / (x.norm() * y.norm())) for y in those))
        assert found[image, token].item() == pytest.approx(min(nearest), abs=1e-5)


def test_what_all_anchors_show_is_found_wherever_it_is():
    subject = draw(2, C, seed=1) * 10
    k = draw(A + 1, L, C, seed=2)
    places = [(0, 5), (7, 8), (11, 2), (4, 9)]
    for image, own in enumerate(places):
        k[image, list(own)] = subject + 0.1 * draw(2, C, seed=image)
    found = record(k, A + 1).read(*GRID)[:, 0]
    assert [set(row.nonzero().flatten().tolist()) for row in found] == [set(p) for p in places]


def test_what_one_anchor_lacks_is_not_in_common():
    thing = draw(C, seed=1) * 10
    k = draw(A, L, C, seed=2)
    k[0, 3] = k[1, 4] = thing
    everywhere = k.clone()
    everywhere[2, 5] = thing
    assert match(everywhere, everywhere, range(A))[0, 3] > 0.99
    assert match(k, k, range(A))[0, 3] < 0.6


# the masks


def test_masks_are_those_of_the_sum_of_maps():
    k = draw(A, L, C)
    maps = normalize(match(k, k, range(A)))[:, None].double().unflatten(-1, GRID)
    matches = record(k)
    assert torch.equal(matches.read(*GRID), find_masks(maps, *GRID))
    assert matches.named.tolist() == [[True]] * A
    matches.begin(0.0, A)
    assert matches.read(*GRID) is None


def test_all_of_a_single_anchor_counts():
    matches = RecordedMatches(lambda n: 1)
    matches.begin(0.0, 2)
    assert matches.read(*GRID).all()
    assert matches.read(*GRID).shape == (2, 1, L)


def test_grids_that_are_too_fine_are_averaged():
    k = draw(1, 70 * 40, C)
    pooled = average(k, 70, 40)
    assert averaged(70, 40) == (24, 14)
    assert pooled.shape == (1, 24 * 14, C)
    grid = k.unflatten(1, (70, 40))
    torch.testing.assert_close(pooled[0, 0], grid[0, :3, :3].mean((0, 1)))
    torch.testing.assert_close(pooled[0, -1], grid[0, 69:, 39:].mean((0, 1)))
    assert average(k[:, : 32 * 20], 32, 20).shape == (1, 32 * 20, C)


# methods


@pytest.mark.parametrize("kind", [Spectral, Sdsa])
def test_the_tokens_in_common_are_shared_and_no_others(kind):
    q, k, v = (draw(8, 2, L, 4, seed=s) for s in range(3))
    masks = draw(4, L, seed=5) > 0
    plain = {"keys": "identity", "values": "identity", "masks": "matches", "anchors": A}
    dropout = {"mask_dropout": 0.0} if kind is Sdsa else {}
    bank = kind(**plain, **dropout)(q, k, v, site(masks))
    whole = Shared(anchors=A)(q, k, v, site())
    kept = masks[:A].flatten()
    assert torch.equal(bank.k, whole.k[:, :, kept])
    assert torch.equal(bank.v, whole.v[:, :, kept])
    assert torch.equal(bank.owner, whole.owner[kept])


def test_spectra_act_before_the_choice():
    q, k, v = (draw(8, 2, L, 4, seed=s) for s in range(3))
    masks = draw(4, L, seed=5) > 0
    spectra = {"anchors": A, "keys": "log", "values": "count:2", "masks": "matches"}
    bank = Spectral(**spectra)(q, k, v, site(masks))
    whole = Spectral(**{**spectra, "masks": "none"})(q, k, v, site())
    assert torch.equal(bank.k, whole.k[:, :, masks[:A].flatten()])


def test_nothing_is_shared_before_anything_is_known():
    q, k, v = (draw(8, 2, L, 4, seed=s) for s in range(3))
    assert Spectral(anchors=A, masks="matches")(q, k, v, site()) is None
    assert Spectral(anchors=A, masks="none")(q, k, v, site()) is not None


def test_a_random_anchor_shares_its_own_tokens():
    q, k, v = (draw(8, 2, L, 4, seed=s) for s in range(3))
    masks = draw(4, L, seed=5) > 0
    method = Spectral(anchors="random", masks="matches", keys="identity", values="identity")
    place = site(masks)
    (anchor,) = method.anchor_images(place)
    bank = method(q, k, v, place)
    assert bank.k.shape[2] == masks[anchor].sum()
    assert set(bank.owner.tolist()) == {anchor}


@pytest.mark.parametrize(("kind", "known"), [(Spectral, "'none' or 'matches'"), (Sdsa, "'words'")])
def test_other_masks_are_refused(kind, known):
    with pytest.raises(ValueError, match=f"masks is 'all'; allowed: {known}"):
        kind(masks="all")


# in a UNet


def test_the_first_layer_of_each_block_of_the_decoder_is_recorded(sd_pipe, sdxl_pipe):
    for pipe in (sd_pipe, sdxl_pipe):
        names = list(matched_layers(pipe.unet))
        assert names
        assert all(name.startswith("up_blocks.") and name.endswith("attn1") for name in names)
        blocks = [name.split(".")[1] for name in names]
        assert len(set(blocks)) == len(blocks)
        assert all(".attentions.0.transformer_blocks.0." in name for name in names)


def denoise(unet, latents, text, method, steps=3, **given):
    """The latents after some steps of one size, without guidance."""
    with torch.no_grad(), shared_attention(unet, method, guidance_halves=1, **given):
        for step in range(steps):
            latents = latents - 0.1 * unet(latents, 999 - 100 * step, text).sample
    return latents


def test_pictures_depend_on_the_anchors_alone(unet):
    size = unet.config.sample_size
    latents = draw(4, unet.config.in_channels, size, size)
    text = draw(4, 5, unet.config.cross_attention_dim, seed=1)
    method = Spectral(anchors=2, masks="matches")
    whole = denoise(unet, latents, text, method)
    without = denoise(unet, latents[[0, 1, 3]], text[[0, 1, 3]], method)
    torch.testing.assert_close(without, whole[[0, 1, 3]], atol=1e-5, rtol=1e-4)
    unmasked = denoise(unet, latents, text, Spectral(anchors=2, masks="none"))
    assert (unmasked - whole).abs().max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True])
def test_the_first_anchor_alone_is_shown_and_sees_nobody(unet, known):
    size = unet.config.sample_size
    latents = draw(3, unet.config.in_channels, size, size)
    text = draw(3, 5, unet.config.cross_attention_dim, seed=1)
    # beginning with the step in which features of the one before are there
    open_ = {"injection_window": (0.05, 1.0)}
    shown = torch.zeros(3, 4, 4, dtype=torch.bool)
    shown[:, 1:3, 1:3] = True
    given = {"masks": shown} if known else {}
    alone = denoise(unet, latents, text, Isolated())
    first = denoise(unet, latents, text, Matched(source="first", **open_), **given)
    every = denoise(unet, latents, text, Matched(source="all", **open_), **given)
    torch.testing.assert_close(first[0], alone[0], atol=1e-5, rtol=1e-4)
    if known:
        # the second image sees the first, but not the third
        given = {"masks": shown[:2]}
        pair = denoise(unet, latents[:2], text[:2], Matched(source="first", **open_), **given)
        torch.testing.assert_close(pair, first[:2], atol=1e-5, rtol=1e-4)
    for image in (1, 2):
        assert (first[image] - alone[image]).abs().max() > 1e-4
        assert (first[image] - every[image]).abs().max() > 1e-4


def test_given_masks_take_the_place_of_matches(unet):
    size = unet.config.sample_size
    latents = draw(2, unet.config.in_channels, size, size)
    text = draw(2, 5, unet.config.cross_attention_dim, seed=1)
    masks = torch.ones(2, 4, 4, dtype=torch.bool)
    given = denoise(unet, latents, text, Spectral(masks="matches"), masks=masks)
    torch.testing.assert_close(given, denoise(unet, latents, text, Spectral(masks="none")))


def test_only_the_conditional_half_tells_what_is_in_common(unet):
    matches = RecordedMatches(lambda n: n)
    call = UNetCall(lambda: 2, 1000, 0, matches, None)
    attn = next(iter(matched_layers(unet).values()))
    size = unet.config.sample_size
    halves = draw(4, size * size, attn.to_k.in_features)
    seen = []
    matches.add = lambda k, *others: seen.append(k)
    call(None, (torch.zeros(4, 4, size, size), 500), {})
    KeyRecorder(call, matches)(attn, (halves,))
    assert torch.equal(seen[0], attn.to_k(halves[2:]))
