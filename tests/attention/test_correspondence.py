import math

import pytest
import torch

from consist.attention.correspondence import (
    FARTHEST,
    RecordedFeatures,
    accept,
    find_matches,
    nearest,
    smooth,
)

N, C, ROWS, COLUMNS = 3, 5, 4, 6
L = ROWS * COLUMNS


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def draw_masks(phrases=1, seed=1):
    return draw(N, phrases, L, seed=seed) < 0.2


def cosine_distance(a, b):
    return 1 - (a @ b) / math.sqrt((a @ a) * (b @ b))


def otsu_by_hand(values):
    """The lower edge of the upper class, of 256 bins between the smallest and the largest value."""
    low, high = min(values), max(values)
    bins = [min(int((v - low) / (high - low) * 256), 255) for v in values]
    spreads = []
    for split in range(1, 256):
        classes = [b for b in bins if b < split], [b for b in bins if b >= split]
        if not all(classes):
            spreads.append(0.0)
            continue
        weights = [len(x) / len(bins) for x in classes]
        means = [sum(x) / len(x) for x in classes]
        spreads.append(weights[0] * weights[1] * (means[0] - means[1]) ** 2)
    return low + (spreads.index(max(spreads)) + 1) / 256 * (high - low)


# oracle


def test_smooth_is_a_weighted_mean_of_nine_places():
    x = draw(2, C, ROWS, COLUMNS)
    weights = {(i, j): math.exp(-(i * i + j * j) / 2) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    expected = torch.zeros_like(x)
    for row in range(ROWS):
        for column in range(COLUMNS):
            for (i, j), weight in weights.items():
                y, z = min(max(row + i, 0), ROWS - 1), min(max(column + j, 0), COLUMNS - 1)
                expected[:, :, row, column] += weight / sum(weights.values()) * x[:, :, y, z]
    torch.testing.assert_close(smooth(x), expected)


def test_nearest_is_the_least_cosine_distance_inside_the_mask():
    target, source, mask = draw(C, 7), draw(C, 9, seed=1), draw(9, seed=2) < 0
    distances, places = nearest(target, source, mask)
    for place in range(7):
        by_place = {m: cosine_distance(target[:, place], source[:, m]) for m in range(9) if mask[m]}
        best = min(by_place, key=by_place.get)
        assert places[place] == best
        assert distances[place].item() == pytest.approx(by_place[best].item())


def test_accepted_is_nearer_than_the_threshold_of_the_image_and_subject():
    distances, masks = draw(N, L).sigmoid() + 0.1, draw_masks()[:, 0]
    accepted = accept(distances, masks)
    for image in range(N):
        threshold = otsu_by_hand(distances[image].tolist())
        expected = [
            d < threshold and m for d, m in zip(distances[image], masks[image], strict=True)
        ]
        assert accepted[image].tolist() == expected
    assert 0 < accepted.sum() < masks.sum()


@pytest.mark.parametrize("sources", [(0,), (0, 1), (0, 1, 2)])
@pytest.mark.parametrize("named", [None, [[1, 1], [1, 0], [0, 1]]])
def test_matches_are_those_of_a_loop_over_all_places(sources, named):
    features, masks = draw(N, C, ROWS, COLUMNS), draw_masks(phrases=2)
    names = torch.ones(N, 2).bool() if named is None else torch.tensor(named).bool()
    found = find_matches(features, masks, sources, None if named is None else names)
    x = smooth(features).reshape(N, C, L)
    for i in range(N):
        distances = []
        for place in range(L):
            pairs = {
                (j, m): cosine_distance(x[i, :, place], x[j, :, m]).item()
                for j in sources
                for m in range(L)
                if j != i and any(masks[j, p, m] and names[i, p] for p in range(2))
            }
            distances.append(min(pairs.values(), default=2.0))
            if pairs:
                best = min(pairs, key=pairs.get)
                assert (found.image[i, place].item(), found.place[i, place].item()) == best
        if min(distances) == 2:
            assert not found.accepted[i].any()
            continue
        threshold = otsu_by_hand(distances)
        expected = [d < threshold and bool(masks[i, :, m].any()) for m, d in enumerate(distances)]
        assert found.accepted[i].tolist() == expected


# property


def test_a_mirrored_picture_is_matched_with_its_mirror_image():
    x = draw(1, C, ROWS, COLUMNS)
    found = find_matches(torch.cat((x, x.flip(-1))), torch.ones(2, 1, L).bool(), (0,))
    mirrored = torch.arange(L).reshape(ROWS, COLUMNS).flip(-1).flatten()
    assert torch.equal(found.place[1], mirrored)


def test_no_image_is_matched_with_itself():
    found = find_matches(draw(N, C, ROWS, COLUMNS), draw_masks(), (0, 1))
    assert not found.accepted[0][found.image[0] == 0].any()
    assert set(found.image[0].tolist()) == {1}
    assert set(found.image[1].tolist()) == {0}
    assert set(found.image[2].tolist()) == {0, 1}


def test_sources_without_a_subject_give_nothing():
    features, masks = draw(N, C, ROWS, COLUMNS), draw_masks()
    masks[:2] = False
    assert not find_matches(features, masks, (0, 1)).accepted.any()
    assert not find_matches(features, masks, (2,)).accepted[2].any()
    distances, _ = nearest(features[0].flatten(1), features[1].flatten(1), masks[0, 0])
    assert distances.tolist() == [FARTHEST] * L


def test_a_source_without_a_subject_leaves_the_others_their_matches():
    features, masks = draw(N, C, ROWS, COLUMNS), draw_masks()
    masks[1] = False
    both, one = (find_matches(features, masks, sources) for sources in ((0, 1), (0,)))
    assert torch.equal(both.accepted, one.accepted)
    assert torch.equal(both.place[2], one.place[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_matched_in_float32_and_left_alone(dtype):
    features = draw(N, C, ROWS, COLUMNS).to(dtype)
    before = features.clone()
    found = find_matches(features, draw_masks(), (0, 1))
    assert torch.equal(features, before)
    assert torch.equal(found.place, find_matches(features.float(), draw_masks(), (0, 1)).place)


# features of the step before


def steps(recorded, *progresses):
    """Goes through steps whose features are all different, and ends in the midst of the last."""
    for seed, progress in enumerate(progresses):
        recorded.begin(progress)
        found = recorded.match((ROWS, COLUMNS), draw_masks(), (0, 1))
        recorded.add(draw(N, C, ROWS, COLUMNS, seed=seed))
    return found


@pytest.mark.parametrize(
    ("progresses", "expected"),
    [((0.1,), None), ((0.1, 0.2), 0), ((0.1, 0.2, 0.2), 1), ((0.1, 0.2, 0.1), None)],
)
def test_matches_are_those_of_the_step_before(progresses, expected):
    found = steps(RecordedFeatures(), *progresses)
    if expected is None:
        assert found is None
    else:
        before = find_matches(draw(N, C, ROWS, COLUMNS, seed=expected), draw_masks(), (0, 1))
        assert torch.equal(found.place, before.place)
        assert torch.equal(found.accepted, before.accepted)


def test_matches_are_found_once_in_a_step_and_on_their_own_grid_only():
    recorded = RecordedFeatures()
    found = steps(recorded, 0.1, 0.2)
    assert recorded.match((ROWS, COLUMNS), draw_masks(), (0, 1)) is found
    assert recorded.match((ROWS, COLUMNS), draw_masks(), (0,)) is not found
    assert recorded.match((COLUMNS, ROWS), draw_masks(), (0, 1)) is None
    recorded.begin(0.3)
    assert recorded.match((ROWS, COLUMNS), draw_masks(), (0, 1)) is not found
