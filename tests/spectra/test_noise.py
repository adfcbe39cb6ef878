import math

import pytest
import torch

from consist.spectra.random_matrix import (
    edge,
    keep_above_edge,
    keep_above_optimum,
    median_of_noise,
    noise_level,
    optimal_threshold,
    shrink,
)

BETAS = [0.002, 0.05, 0.3, 0.5, 1.0]


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def draw_noisy(m=200, n=400, x=(4.0, 2.5, 0.5)):
    """A matrix of rank 3 with these values, in units of the noise level; and its clean part."""
    u = torch.linalg.qr(draw(m, len(x), seed=1))[0]
    v = torch.linalg.qr(draw(n, len(x), seed=2))[0]
    clean = (u * torch.tensor(x, dtype=u.dtype) * math.sqrt(n)) @ v.mT
    return clean + draw(m, n), clean


# oracle


@pytest.mark.parametrize("beta", BETAS)
def test_half_of_the_marchenko_pastur_law_lies_below_its_median(beta):
    """Integrates the density itself, by midpoints."""
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    # midpoints crowd at the ends, where the density of square matrices is infinite
    angles = (torch.arange(200_000, dtype=torch.float64) + 0.5) * math.pi / 200_000
    x = low + (high - low) * (1 - angles.cos()) / 2
    width = (high - low) * angles.sin() / 2 * math.pi / 200_000
    mass = ((high - x) * (x - low)).clamp_min(0).sqrt() / (2 * math.pi * beta * x) * width
    assert mass.sum() == pytest.approx(1, abs=1e-6)
    assert mass[x < median_of_noise(beta)].sum() == pytest.approx(0.5, abs=2e-5)


@pytest.mark.parametrize(("m", "n"), [(200, 200), (100, 400)])
def test_noise_has_the_median_and_the_edge_that_are_said(m, n):
    s = torch.linalg.svdvals(draw(m, n)) / math.sqrt(n)
    assert float(s.median()) ** 2 == pytest.approx(median_of_noise(m / n), rel=0.03)
    assert float(s[0]) == pytest.approx(edge(m / n), rel=0.03)


# Gavish 2014, abstract and table of omega(beta)
@pytest.mark.parametrize(
    ("beta", "omega"), [(0.05, 1.5194), (0.1, 1.6089), (0.5, 2.1711), (1.0, 2.858)]
)
def test_the_published_coefficients_are_met(beta, omega):
    found = optimal_threshold(beta) / math.sqrt(median_of_noise(beta))
    assert found == pytest.approx(omega, abs=5e-4)
    polynomial = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    assert found == pytest.approx(polynomial, abs=0.02)
    assert optimal_threshold(1.0) == pytest.approx(4 / math.sqrt(3))


@pytest.mark.parametrize("beta", BETAS)
def test_the_threshold_is_where_keeping_costs_as_much_as_dropping(beta):
    """Keeping ``y`` costs ``y^2 - 2 y eta(y)`` more than dropping it, so they meet at 2 eta = y."""
    y = optimal_threshold(beta)
    s = torch.tensor([y, 1.0], dtype=torch.float64)
    # two values: the noise level is 1 at this share of their norm
    noise = math.sqrt(2) / float(s.norm())
    assert noise_level(s, noise).item() == pytest.approx(1)
    assert shrink(s, noise, beta=beta)[0].item() == pytest.approx(y / 2)


def test_shrink_is_the_multiple_of_least_error():
    noisy, clean = draw_noisy()
    u, s, vh = torch.linalg.svd(noisy, full_matrices=False)
    best = ((u.mT @ clean) * vh).sum(-1)
    found = shrink(s, beta=0.5)
    # a matrix of finite size strays from the limit by about 1 / sqrt(m) = 7 %
    torch.testing.assert_close(found[:2], best[:2], rtol=0.07, atol=0)
    assert (found[2:] < 0.1 * s[2]).all()
    level = noise_level(s, beta=0.5).item()
    assert level == pytest.approx(math.sqrt(400), rel=0.02)
    y = float(s[0]) / level
    expected = math.sqrt((y * y - 1.5) ** 2 - 2) / y * level
    assert found[0].item() == pytest.approx(expected)


# noise of finite size passes the edge by a hair
@pytest.mark.parametrize(("rule", "more"), [(keep_above_optimum, 0), (keep_above_edge, 1)])
def test_hard_rules_find_the_rank_that_can_be_found(rule, more):
    noisy, _ = draw_noisy()
    s = torch.linalg.svdvals(noisy)
    share = 1 / float(noisy.square().mean().sqrt())
    for noise in (0.0, share):
        assert 2 <= rule(s, noise, beta=0.5).count_nonzero() <= 2 + more
        assert torch.equal(rule(s, noise, beta=0.5)[:2], s[:2])


@pytest.mark.parametrize("beta", BETAS)
def test_hard_rules_cut_where_they_say(beta):
    s = torch.linspace(1, 0, 401, dtype=torch.float64) ** 3
    level = float(noise_level(s, beta=beta))
    for rule, threshold in ((keep_above_edge, edge), (keep_above_optimum, optimal_threshold)):
        assert torch.equal(rule(s, beta=beta) > 0, s > threshold(beta) * level)


def test_the_optimum_errs_less_than_the_edge_and_shrinking_less_than_both():
    noisy, clean = draw_noisy(150, 150, x=(1.8, 1.7, 1.3))
    u, s, vh = torch.linalg.svd(noisy, full_matrices=False)

    def error(kept):
        return float(((u * kept) @ vh - clean).norm())

    assert error(keep_above_optimum(s)) < error(keep_above_edge(s))
    assert error(shrink(s)) < error(keep_above_optimum(s))


# property


@pytest.mark.parametrize("rule", [keep_above_optimum, keep_above_edge, shrink])
@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [2.0], [1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
def test_the_largest_value_stays_whole_where_all_look_like_noise(rule, values):
    s = torch.tensor(values)
    for noise in (0.0, 1.0):
        found = rule(s, noise, beta=0.5)
        assert found.isfinite().all()
        if len(set(values)) == 1:
            assert found[0] == s[0]
    assert rule(s, beta=0.5)[0] == s[0]
