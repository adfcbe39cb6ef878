import math

import pytest
import torch

from consist.attention.masks import (
    BINS,
    GivenMasks,
    RecordedMasks,
    attention_maps,
    find_masks,
    normalize,
    otsu,
    token_weights,
)

N, H, L, S, D = 2, 3, 12, 7, 4
GRID = (3, 4)
# two images, two phrases: one of two tokens, one that the second image lacks
TOKENS = (((1, 2), (4,)), ((3, 4), ()))


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def draw_layer(seed=0, grid=GRID):
    return draw(N, H, math.prod(grid), D, seed=seed), draw(N, H, S, D, seed=seed + 1000)


def blob(rows, columns, row, column):
    """A map that falls off from one place."""
    y, x = torch.arange(rows)[:, None] - row, torch.arange(columns) - column
    return torch.exp(-(y**2 + x**2) / 4.0)


# identity


def test_a_grid_of_their_own_leaves_given_masks_as_they_are():
    masks = draw(N, 2, 5, 7) > 0
    assert torch.equal(GivenMasks(masks).read(5, 7), masks.flatten(2))
    assert torch.equal(GivenMasks(masks[:, 0]).read(5, 7), masks[:, :1].flatten(2))


# oracle


def test_attention_maps_are_those_of_a_loop():
    q, k = draw_layer()
    found = attention_maps(q, k, token_weights(TOKENS, S))
    for image, phrases in enumerate(TOKENS):
        for phrase, positions in enumerate(phrases):
            expected = torch.zeros(L, dtype=torch.float64)
            for h in range(H):
                for place in range(L):
                    logits = torch.stack([q[image, h, place] @ k[image, h, s] for s in range(S)])
                    p = torch.softmax(logits / math.sqrt(D), 0)
                    for position in positions:
                        expected[place] += p[position] / len(positions) / H
            torch.testing.assert_close(found[image, phrase], expected)


def brute_force_class(x):
    """The upper class of the split whose classes vary least within themselves (Otsu 1979)."""
    levels = (x * BINS).floor().clamp_max(BINS - 1)
    best, upper = math.inf, None
    for k in range(BINS - 1):
        low, high = levels[levels <= k], levels[levels > k]
        if len(low) and len(high):
            within = low.var(correction=0) * len(low) + high.var(correction=0) * len(high)
            if within < best - 1e-9:
                best, upper = within, levels > k
    return upper


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [2, 9, 300])
def test_otsu_splits_as_trying_all_thresholds_does(seed, count):
    share = (seed + 1) / 8
    values = draw(count, seed=seed) * 0.1 + (draw(count, seed=seed + 50).abs() > 2 * share)
    values = normalize(values)
    assert torch.equal(values >= otsu(values), brute_force_class(values))


def test_otsu_takes_each_row_alone():
    rows = normalize(torch.stack([draw(40, seed=s) ** 3 for s in range(4)]).reshape(2, 2, 40))
    expected = torch.stack([otsu(row) for row in rows.reshape(4, 40)]).reshape(2, 2)
    assert torch.equal(otsu(rows), expected)


def test_recorded_masks_are_those_of_the_mean_over_layers_and_steps():
    recorded, maps = RecordedMasks(TOKENS), []
    for step in range(4):
        recorded.begin(step / 4, N)
        for layer in range(3):
            q, k = draw_layer(seed=10 * step + layer)
            recorded.add(q, k, *GRID)
            maps.append(attention_maps(q, k, token_weights(TOKENS, S)))
    recorded.begin(0.9, N)
    mean = torch.stack(maps).mean(0).reshape(N, 2, *GRID)
    assert torch.equal(recorded.read(*GRID), find_masks(mean, *GRID))
    assert torch.equal(recorded.read(6, 7), find_masks(mean, 6, 7))


# property


def test_a_mask_is_where_the_subject_is():
    maps = torch.stack([blob(8, 12, 2, 3), blob(8, 12, 5, 9)])[:, None]
    masks = find_masks(maps, 8, 12).reshape(2, 8, 12)
    assert masks[0, 2, 3]
    assert masks[1, 5, 9]
    assert not masks[0, 7, 11]
    assert masks.float().mean() < 0.3


def test_a_mask_does_not_know_the_scale_of_its_map():
    maps = draw(N, 1, *GRID)
    assert torch.equal(find_masks(maps * 1e-3 + 5, *GRID), find_masks(maps, *GRID))


def test_each_phrase_has_a_mask_of_its_own():
    maps = torch.stack([blob(8, 12, 2, 3), 1e-3 * blob(8, 12, 5, 9)])[None]
    both = find_masks(maps, 8, 12)
    alone = [find_masks(maps[:, :1], 8, 12), find_masks(maps[:, 1:], 8, 12)]
    assert torch.equal(both, torch.cat(alone, 1))
    first, second = both.reshape(2, 8, 12)
    assert (first[2, 3], first[5, 9]) == (True, False)
    assert (second[2, 3], second[5, 9]) == (False, True)


def test_a_phrase_is_named_where_it_has_a_token():
    assert RecordedMasks(TOKENS).named.tolist() == [[True, True], [True, False]]


def test_a_phrase_that_is_absent_has_an_empty_mask():
    recorded = RecordedMasks(TOKENS)
    recorded.begin(0.0, N)
    recorded.add(*draw_layer(), *GRID)
    recorded.begin(0.1, N)
    assert recorded.read(*GRID).any(-1).tolist() == recorded.named.tolist()


def test_given_masks_name_what_they_show():
    masks = torch.zeros(2, 2, 4, 6, dtype=torch.bool)
    # less than any place of a coarse grid
    masks[0, 1, 0, 0] = masks[1, 0, 1, 1] = True
    given = GivenMasks(masks)
    assert given.named.tolist() == [[False, True], [True, False]]
    assert not given.read(2, 3).any()


def test_a_single_given_subject_is_named_by_all():
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0] = True
    assert GivenMasks(masks).named.tolist() == [[True], [True]]


def test_a_flat_map_names_no_place():
    assert not find_masks(torch.full((1, 1, 4, 4), 0.3), 6, 5).any()


def test_an_image_does_not_change_with_its_neighbors():
    maps = draw(3, 2, *GRID)
    assert torch.equal(find_masks(maps[:1], 5, 6), find_masks(maps, 5, 6)[:1])


def test_a_step_knows_only_the_steps_before():
    recorded = RecordedMasks(TOKENS)
    recorded.begin(0.0, N)
    recorded.add(*draw_layer(0), *GRID)
    assert recorded.read(*GRID) is None
    recorded.begin(0.1, N)
    before = recorded.read(*GRID)
    recorded.add(*draw_layer(7), *GRID)
    assert torch.equal(recorded.read(*GRID), before)
    other = RecordedMasks(TOKENS)
    other.begin(0.0, N)
    other.add(*draw_layer(0), *GRID)
    other.begin(0.1, N)
    assert torch.equal(other.read(*GRID), before)


def test_a_progress_that_falls_starts_other_pictures():
    recorded = RecordedMasks(TOKENS)
    for progress in (0.2, 0.5, 0.5, 0.9):
        recorded.begin(progress, N)
        recorded.add(*draw_layer(), *GRID)
        assert (recorded.read(*GRID) is None) == (progress == 0.2)
    recorded.begin(0.2, N)
    assert recorded.read(*GRID) is None


def test_memory_does_not_grow_with_layers_and_steps():
    recorded = RecordedMasks(TOKENS)
    for step in range(10):
        recorded.begin(step / 10, N)
        for layer in range(3):
            recorded.add(*draw_layer(layer), *GRID)
        recorded.read(*GRID)
    maps = recorded._maps
    held = [maps._sums, maps._waiting, maps._masks]
    assert [list(tensors) for tensors in held] == [[GRID]] * 3
    assert all(x.numel() <= N * 2 * L for tensors in held for x in tensors.values())


def test_grids_are_added_up_on_the_finest():
    recorded = RecordedMasks(TOKENS)
    recorded.begin(0.0, N)
    recorded.add(*draw_layer(0), *GRID)
    recorded.add(*draw_layer(1, grid=(6, 8)), 6, 8)
    recorded.begin(0.1, N)
    assert recorded.read(12, 16).shape == (N, 2, 12 * 16)


def test_half_precision_is_summed_in_float32():
    q, k = (x.half() for x in draw_layer())
    assert attention_maps(q, k, token_weights(TOKENS, S)).dtype == torch.float32


def test_given_masks_need_half_of_a_place():
    masks = torch.zeros(1, 4, 6, dtype=torch.bool)
    masks[0, :2, :2] = True  # all of a place
    masks[0, 2, 2:4] = True  # half of one
    masks[0, 3, 5] = True  # a quarter
    expected = torch.tensor([[True, False, False], [False, True, False]])
    given = GivenMasks(masks)
    given.begin(0.0, 1)
    assert torch.equal(given.read(2, 3).reshape(2, 3), expected)
    assert torch.equal(
        given.read(8, 12).reshape(8, 12), masks[0].repeat_interleave(2, 0).repeat_interleave(2, 1)
    )


# refusal


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: token_weights((((7,),),), 7), "token 7 was named; allowed: 0 to 6"),
        (lambda: RecordedMasks(()), r"tokens is \(\); allowed: as many phrases"),
        (lambda: RecordedMasks((((1,),), ((1,), (2,)))), "as many phrases for every image"),
        (lambda: RecordedMasks((((1,),), ((),))), "at least one token for every image"),
        (lambda: RecordedMasks(TOKENS).begin(0.0, 3), "are for 2 images, the batch has 3"),
        (lambda: GivenMasks(torch.ones(1, 2, 2)), r"masks is torch.float32 \(1, 2, 2\)"),
        (lambda: GivenMasks(torch.ones(2, 2).bool()), r"allowed: torch.bool \(n, rows, columns\)"),
        (lambda: GivenMasks(torch.ones(2, 0, 4, 4).bool()), r"masks is torch.bool \(2, 0, 4, 4\)"),
        (lambda: GivenMasks(torch.ones(1, 2, 2).bool()).begin(0.0, 2), "for 1 images"),
    ],
)
def test_refuses_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
