"""Scores against numbers worked out by hand, and intervals against the truth of a simulation."""

import itertools
import math

import numpy as np
import pytest

from consist.evaluation.crops import background, masked_crop, masked_histogram
from consist.evaluation.intervals import Interval, bootstrap, bootstrap_difference
from consist.evaluation.metrics import (
    agreement,
    aligned_overlap,
    cosines,
    displacement,
    expected_calibration_error,
    frechet_distance,
    kernel_distance,
    mask_overlap,
    mean_pairwise_cosine,
    mean_pairwise_distance,
    normalized_entropy,
)

IDENTITIES = [
    {"coat": "red", "hat": "bow", "ears": "long"},
    {"coat": "red", "hat": "bow", "ears": None},
    {"coat": "blue", "hat": "bow", "ears": "long"},
]


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def mask_of(*boxes, size=(8, 10)):
    """One mask per box ``(top, left, bottom, right)``; an empty box is an empty mask."""
    masks = np.zeros((len(boxes), *size), dtype=bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return masks


# identity


def test_images_that_are_alike_score_one():
    assert agreement(IDENTITIES[:1] * 3) == 1
    assert mask_overlap(mask_of((1, 2, 4, 6), (1, 2, 4, 6))) == 1
    assert aligned_overlap(mask_of((1, 2, 4, 6), (1, 2, 4, 6))) == 1
    assert displacement(mask_of((1, 2, 4, 6), (1, 2, 4, 6))) == 0
    row = draw(1, 5)
    assert mean_pairwise_cosine(np.concatenate([row, 3 * row])) == pytest.approx(1)
    assert mean_pairwise_distance(np.concatenate([row, 3 * row])) == pytest.approx(0)
    a = draw(20, 4)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


# oracle


def test_bootstrap_gives_the_mean_and_the_quantiles_of_resampled_means():
    values = draw(12, seed=1)
    found = bootstrap(values, resamples=2000, level=0.8, seed=5)
    index = np.random.default_rng(5).integers(12, size=(2000, 12))
    low, high = np.quantile([values[row].mean() for row in index], [0.1, 0.9])
    assert found == Interval(
        pytest.approx(values.mean()), pytest.approx(low), pytest.approx(high), 12
    )


def test_the_interval_covers_the_truth_as_often_as_it_says():
    trials = [bootstrap(draw(40, seed=seed), resamples=400, seed=seed) for seed in range(600)]
    covered = np.mean([found.low <= 0 <= found.high for found in trials])
    assert 0.915 <= covered <= 0.97
    width = np.mean([found.high - found.low for found in trials])
    assert width == pytest.approx(2 * 1.96 / math.sqrt(40), rel=0.05)


def test_pairing_removes_what_sets_share():
    difficulty = 100 * draw(30, seed=2)
    baseline = difficulty + draw(30, seed=3)
    found = bootstrap_difference(difficulty + 1, baseline, resamples=500)
    assert found == bootstrap(difficulty + 1 - baseline, resamples=500)
    assert found.high - found.low < 1.5


def test_agreement_by_hand():
    # coat and hat agree: 2/2; hat and ears of three: 2/3; hat of coat and hat: 1/2
    assert agreement(IDENTITIES) == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)


def test_overlap_by_hand():
    # 2 x 2 and 2 x 3 share 2 x 1; the third is away from both
    masks = mask_of((0, 0, 2, 2), (0, 1, 2, 4), (5, 5, 8, 10))
    assert mask_overlap(masks) == pytest.approx((2 / 8 + 0 + 0) / 3)


def test_displacement_by_hand():
    # centroids 3 down and 4 right of each other, on a picture of 6 x 8 with diagonal 10
    masks = mask_of((0, 0, 2, 2), (3, 4, 5, 6), size=(6, 8))
    assert displacement(masks) == pytest.approx(0.5)


def test_aligned_overlap_by_hand():
    # a bar of 1 x 5 on a bar of 5 x 1 share the middle
    assert aligned_overlap(mask_of((0, 0, 1, 5), (3, 9, 8, 10))) == pytest.approx(1 / 9)


def test_cosines_by_hand():
    a = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    root = math.sqrt(0.5)
    assert cosines(a, a[[1, 1, 0]]) == pytest.approx([root, 1, 0])
    assert mean_pairwise_cosine(a) == pytest.approx((root + 0 + root) / 3)
    assert mean_pairwise_distance(a) == pytest.approx(1 - 2 * root / 3)
    centered = mean_pairwise_cosine(a, center=np.array([0.0, 1.0]))
    assert centered == pytest.approx((root - root + 0) / 3)


def test_frechet_of_gaussians_on_a_line():
    # (mean difference)^2 + (difference of standard deviations)^2
    a = np.array([[0.0], [2.0]])
    b = np.array([[5.0], [11.0]])
    assert frechet_distance(a, b) == pytest.approx(49 + (math.sqrt(2) - math.sqrt(18)) ** 2)


@pytest.mark.parametrize("samples", [(5, 7), (50, 60)])
def test_frechet_is_the_form_with_the_nuclear_norm(samples):
    a, b = draw(samples[0], 10), 2 * draw(samples[1], 10, seed=1) + 0.5
    x, y = a - a.mean(0), b - b.mean(0)
    n, m = len(x) - 1, len(y) - 1
    crossed = np.linalg.svd(x @ y.T, compute_uv=False).sum() / math.sqrt(n * m)
    expected = np.square(a.mean(0) - b.mean(0)).sum() - 2 * crossed
    expected += np.square(x).sum() / n + np.square(y).sum() / m
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_kernel_distance_is_the_loop_over_pairs():
    a, b = draw(4, 3), draw(5, 3, seed=1) + 1

    def kernel(x, y):
        return (sum(x * y) / 3 + 1) ** 3

    within = [
        np.mean([kernel(x, y) for x, y in itertools.permutations(rows, 2)]) for rows in (a, b)
    ]
    across = np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(sum(within) - 2 * across)


def test_kernel_distance_is_unbiased_for_few_samples():
    scores = [kernel_distance(draw(6, 8, seed=s), draw(6, 8, seed=1000 + s)) for s in range(400)]
    assert abs(np.mean(scores)) < 4 * np.std(scores) / 20
    assert kernel_distance(draw(6, 8), draw(6, 8, seed=1) + 1) > np.std(scores)


def test_entropy_by_hand():
    assert normalized_entropy([1, 1, 1, 1]) == pytest.approx(1)
    assert normalized_entropy([3, 0, 0, 0]) == 0
    assert normalized_entropy([2, 2, 0, 0]) == pytest.approx(0.5)
    assert normalized_entropy([2, 1]) == pytest.approx(
        -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    )


def test_calibration_error_by_hand():
    # bin (0.5, 0.6]: 2 answers, 0.55 sure, half right; bin (0.9, 1]: 2 answers, 1 sure, half right
    sure, right = [0.5, 0.6, 1.0, 1.0], [True, False, True, False]
    assert expected_calibration_error(sure, right, bins=2) == pytest.approx(
        abs(0.5 - 1) / 4 + abs(0.6 + 1 + 1 - 1) / 4
    )
    assert expected_calibration_error([0.0, 0.25, 0.25, 0.25], [0, 1, 0, 0]) == pytest.approx(
        0.25 * 0 + 0.75 * abs(1 / 3 - 0.25)
    )


def test_histogram_by_hand():
    pixels = np.array([[[0, 0, 0], [255, 63, 64]], [[10, 20, 30], [128, 128, 128]]], np.uint8)
    mask = np.array([[True, True], [True, False]])
    found = masked_histogram(pixels, mask)
    expected = np.zeros(64)
    expected[0], expected[3 * 16 + 0 * 4 + 1] = 2 / math.sqrt(5), 1 / math.sqrt(5)
    np.testing.assert_allclose(found, expected)
    halves = masked_histogram(pixels, mask, bins=2)
    np.testing.assert_allclose(halves, np.array([2, 0, 0, 0, 1, 0, 0, 0]) / math.sqrt(5))


def test_crop_by_hand():
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    mask = np.zeros((4, 5), dtype=bool)
    mask[1, 1:4] = True
    mask[2, 2] = True
    found = masked_crop(pixels, mask, fill=9)
    expected = np.full((3, 3, 3), 9, np.uint8)
    expected[0] = pixels[1, 1:4]
    expected[1, 1] = pixels[2, 2]
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8
    rest = background(pixels, mask, fill=9)
    assert (rest[mask] == 9).all()
    np.testing.assert_array_equal(rest[~mask], pixels[~mask])


# property


def test_the_order_of_images_changes_nothing():
    masks = mask_of((0, 0, 2, 2), (0, 1, 2, 4), (5, 5, 8, 10), (0, 0, 0, 0))
    features = draw(4, 6)
    for order in itertools.permutations(range(4)):
        index = list(order)
        for score in (mask_overlap, aligned_overlap, displacement):
            assert score(masks[index]) == pytest.approx(score(masks))
        assert mean_pairwise_cosine(features[index]) == pytest.approx(
            mean_pairwise_cosine(features)
        )
        assert frechet_distance(features[index], features) == pytest.approx(0, abs=1e-9)
    for order in itertools.permutations(IDENTITIES):
        assert agreement(order) == pytest.approx(agreement(IDENTITIES))


def test_sets_with_nothing_to_measure_do_not_count():
    values, other = draw(10), draw(10, seed=1)
    holes = np.insert(values, [0, 4, 10], math.nan)
    assert bootstrap(holes) == bootstrap(values)
    values[0] = other[3] = math.nan
    kept = [i for i in range(10) if i not in (0, 3)]
    assert bootstrap_difference(values, other) == bootstrap(values[kept] - other[kept])
    assert bootstrap_difference(values, other).sets == 8


def test_the_global_generator_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    assert bootstrap(draw(9), seed=3) == bootstrap(draw(9), seed=3)
    assert bootstrap(draw(9), seed=3) != bootstrap(draw(9), seed=4)
    assert np.random.get_state()[1].tolist() == before


def test_many_sets_are_resampled_in_blocks(monkeypatch):
    values = draw(50)
    expected = bootstrap(values, resamples=3000)
    monkeypatch.setattr("consist.evaluation.intervals.BLOCK", 700)
    found = bootstrap(values, resamples=3000)
    assert found.low == pytest.approx(expected.low, abs=0.05)
    assert found.sets == 50


def test_a_pose_is_recognized_wherever_it_stands():
    masks = mask_of((0, 0, 3, 4), (5, 6, 8, 10), (2, 3, 5, 7))
    masks[:, 0, 0] = False
    masks[1] = np.roll(masks[0], (5, 6), (0, 1))
    masks[2] = np.roll(masks[0], (2, 3), (0, 1))
    assert aligned_overlap(masks) == 1
    assert mask_overlap(masks) < 0.3
    assert displacement(masks) > 0.2


def test_a_centroid_between_two_pixels_is_rounded_one_way():
    # two pixels side by side, with centroids 0.5, 1.5, 2.5 and 3.5
    assert aligned_overlap(mask_of(*((0, x, 1, x + 2) for x in range(4)))) == 1


def test_lengths_and_types_of_features_change_no_cosine():
    a = draw(5, 7)
    scaled = (a * np.arange(1, 6)[:, None]).astype(np.float32)
    assert mean_pairwise_cosine(scaled) == pytest.approx(mean_pairwise_cosine(a), abs=1e-6)


def test_input_is_never_changed():
    pixels = np.full((4, 4, 3), 7, np.uint8)
    mask = np.eye(4, dtype=bool)
    masked_crop(pixels, mask)
    background(pixels, mask)
    assert (pixels == 7).all()
    features = draw(3, 3)
    before = features.copy()
    mean_pairwise_cosine(features, center=features.mean(0))
    np.testing.assert_array_equal(features, before)


# degenerate


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (lambda: agreement([]), "no image"),
        (lambda: agreement(IDENTITIES[:1]), "one image"),
        (lambda: agreement([{"coat": None}, {"coat": "red"}, {}]), "nothing known in both"),
        (lambda: mask_overlap(mask_of((0, 0, 2, 2))), "one mask"),
        (lambda: mask_overlap(mask_of((0, 0, 0, 0), (0, 0, 0, 0))), "empty masks"),
        (lambda: aligned_overlap(mask_of((0, 0, 0, 0), (0, 0, 0, 0))), "empty masks"),
        (lambda: displacement(mask_of((0, 0, 0, 0), (0, 0, 2, 2))), "an empty mask"),
        (lambda: mean_pairwise_cosine(np.ones((1, 3))), "one row"),
        (lambda: mean_pairwise_cosine(np.zeros((0, 3))), "no row"),
        (lambda: mean_pairwise_cosine(np.array([[0.0, 0.0], [1.0, 0.0]])), "a zero row"),
        (lambda: mean_pairwise_distance(np.ones((3, 2)), np.ones(2)), "only zero rows"),
        (lambda: frechet_distance(np.ones((1, 3)), np.ones((4, 3))), "one row"),
        (lambda: kernel_distance(np.ones((4, 3)), np.ones((1, 3))), "one row"),
        (lambda: normalized_entropy([0, 0]), "no count"),
        (lambda: normalized_entropy([5]), "one possible value"),
        (lambda: normalized_entropy([]), "no possible value"),
        (lambda: expected_calibration_error([], []), "no answers"),
    ],
)
def test_nothing_to_measure_is_nan(found, what):
    assert math.isnan(found()), what


def test_an_empty_mask_among_others():
    masks = mask_of((0, 0, 2, 2), (0, 0, 2, 2), (0, 0, 0, 0))
    assert mask_overlap(masks) == pytest.approx(1 / 3)
    assert aligned_overlap(masks) == pytest.approx(1 / 3)
    assert displacement(masks) == 0


def test_an_empty_mask_has_no_crop_and_no_colors():
    pixels, mask = np.full((4, 5, 3), 7, np.uint8), np.zeros((4, 5), dtype=bool)
    assert masked_crop(pixels, mask) is None
    np.testing.assert_array_equal(background(pixels, mask), pixels)
    assert not masked_histogram(pixels, mask).any()


def test_few_sets_say_little():
    empty = bootstrap([math.nan, math.nan])
    assert (math.isnan(empty.value), math.isnan(empty.low), empty.sets) == (True, True, 0)
    one = bootstrap([0.3, math.nan])
    assert (one.value, math.isnan(one.low), math.isnan(one.high), one.sets) == (0.3, True, True, 1)
    assert bootstrap([0.3, 0.3]) == Interval(
        pytest.approx(0.3), pytest.approx(0.3), pytest.approx(0.3), 2
    )


def test_a_zero_row_has_no_cosine():
    assert np.isnan(cosines(np.zeros((1, 2)), np.ones((1, 2)))).all()


# refusal


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap([1.0], level=1), "level is 1; allowed: 0 < level < 1"),
        (lambda: bootstrap([1.0], resamples=0), "resamples is 0; allowed: resamples >= 1"),
        (lambda: bootstrap([[1.0]]), r"shape \(1, 1\); allowed: one number per set"),
        (lambda: bootstrap_difference([1.0], [1.0, 2.0]), r"shapes \(1,\) and \(2,\)"),
        (lambda: mask_overlap(np.zeros((2, 3, 3))), "masks are float64"),
        (lambda: mask_overlap(np.zeros((3, 3), dtype=bool)), r"bool \(3, 3\); allowed: bool"),
        (lambda: cosines(np.ones((2, 3)), np.ones((3, 3))), "allowed: one shape"),
        (lambda: mean_pairwise_cosine(np.ones(3)), r"shape \(3,\); allowed: \(n d\)"),
        (lambda: frechet_distance(np.ones((2, 3)), np.ones((2, 4))), "allowed: .*m d"),
        (lambda: normalized_entropy([1, -1]), "allowed: counts >= 0"),
        (lambda: expected_calibration_error([0.5], [True, False]), "shapes"),
        (lambda: expected_calibration_error([0.5], [True], bins=0), "bins 0"),
        (lambda: expected_calibration_error([math.nan], [True]), r"outside \[0, 1\]"),
        (
            lambda: masked_histogram(np.zeros((2, 2, 3), np.uint8), np.ones((2, 2), bool), 0),
            "bins is 0; allowed: 1 <= bins <= 256",
        ),
        (
            lambda: masked_crop(np.zeros((2, 2, 3), np.uint8), np.ones((3, 2), bool)),
            r"the mask bool \(3, 2\)",
        ),
        (lambda: background(np.zeros((2, 2, 3)), np.ones((2, 2), bool)), "pixels are float64"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
