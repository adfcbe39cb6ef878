import itertools
import math

import pytest
import torch

from consist.spectra.decomposition import filter_matrix
from consist.spectra.rules import (
    SPECTRA,
    at_aspect,
    chain,
    exp,
    identity,
    keep_count,
    keep_energy,
    keep_fraction,
    keep_quantile,
    log,
    log2,
    parse_spectrum,
    power,
    schulz,
)

TEXTS = [
    "identity",
    "count:3",
    "fraction:0.2",
    "quantile:0.1",
    "energy:0.95",
    "energy:1e-9",
    "log",
    "log2",
    "exp:20",
    "exp:-1",
    "power:0.1",
    "power:8",
    "schulz:1",
    "schulz:30",
    "soft:0.3",
    "soft:0.99",
    "svht",
    "svht:0.5",
    "edge",
    "edge:0.5",
    "shrink",
    "shrink:0.3",
    "log|energy:0.9",
    "energy:0.9|log",
    "schulz:3|shrink",
]
# tokens fewer than features, as many, and more
SHAPES = [(5, 8), (8, 8), (40, 8)]


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def draw_with(s, tokens=30):
    """A matrix with exactly these singular values."""
    s = torch.as_tensor(s, dtype=torch.float64)
    u = torch.linalg.qr(draw(tokens, len(s)))[0]
    v = torch.linalg.qr(draw(len(s), len(s), seed=1))[0]
    return (u * s) @ v.mT


def assert_close(found, expected, case, **tolerances):
    torch.testing.assert_close(found, expected, msg=lambda why: f"{case}: {why}", **tolerances)


def values_of(a):
    return torch.linalg.svdvals(a.double())


# identity


@pytest.mark.parametrize("text", ["identity", "identity|identity"])
def test_identity_gives_the_very_matrix(text):
    a = draw(2, 6, 4)
    assert parse_spectrum(text) is identity
    assert filter_matrix(a, parse_spectrum(text), centered=True) is a


@pytest.mark.parametrize(
    "text", ["exp:0", "power:1", "count:99", "fraction:1", "quantile:1", "soft:0"]
)
@pytest.mark.parametrize("centered", [False, True])
def test_neutral_parameters_give_the_matrix(text, centered):
    a = draw(2, 20, 6)
    torch.testing.assert_close(filter_matrix(a, parse_spectrum(text), centered=centered), a)


def test_chain_leaves_the_identity_out():
    assert chain(identity, log) is log
    assert chain() is identity


# oracle


@pytest.mark.parametrize("text", TEXTS)
def test_filter_is_the_svd_with_other_singular_values(text):
    for shape, centered in itertools.product(SHAPES, [False, True]):
        a = draw(2, 3, *shape) + 0.5
        mean = a.mean(-2, keepdim=True) if centered else torch.zeros(())
        u, s, vh = torch.linalg.svd(a - mean, full_matrices=False)
        # centering empties a direction; the spectrum sees sqrt(eps) of the largest value there
        seen = s.maximum(s[..., :1] * torch.finfo(s.dtype).eps ** 0.5)
        spectrum = at_aspect(parse_spectrum(text), min(shape) / max(shape))
        expected = (u * (s * spectrum(seen) / seen).unsqueeze(-2)) @ vh + mean
        found = filter_matrix(a, parse_spectrum(text), centered=centered)
        assert_close(found, expected, (shape, centered), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    "text",
    [
        "energy:0.95",
        "log",
        "log2",
        "count:3",
        "exp:2",
        "power:0.5",
        "schulz:4",
        "soft:0.2",
        "shrink",
    ],
)
def test_lower_precision_stays_near_float64(text):
    # float32: the Gram matrix knows singular values to sqrt(eps) = 3.5e-4; halves: their own eps
    tolerances = {torch.float32: 1e-3, torch.float16: 4e-3, torch.bfloat16: 3e-2}
    for dtype, tolerance in tolerances.items():
        a = draw_with([9.0, 5.0, 2.0, 1.0, 0.3, 0.1]).to(dtype)
        expected = filter_matrix(a.double(), parse_spectrum(text))
        found = filter_matrix(a, parse_spectrum(text))
        assert found.dtype == dtype
        assert (found.double() - expected).norm() <= tolerance * expected.norm(), dtype


def test_log_follows_algorithm_1_in_units_of_a_thousandth():
    s = torch.tensor([2.0, 0.4, 0.001], dtype=torch.float64)
    logs = [math.log(1000), math.log(200), 0.0]
    scale = math.hypot(*s.tolist()) / math.hypot(*logs)
    torch.testing.assert_close(log(s), torch.tensor([x * scale for x in logs], dtype=s.dtype))
    squares = [x * x for x in logs]
    scale = math.hypot(*s.tolist()) / math.hypot(*squares)
    torch.testing.assert_close(log2(s), torch.tensor([x * scale for x in squares], dtype=s.dtype))


def test_exp_and_power_follow_their_formulas():
    s = torch.tensor([2.0, 1.0], dtype=torch.float64)
    sharp = [2 * math.e, 1 * math.exp(0.5)]
    scale = math.hypot(2, 1) / math.hypot(*sharp)
    torch.testing.assert_close(exp(s, 1), torch.tensor([x * scale for x in sharp], dtype=s.dtype))
    flat = [math.sqrt(2), 1.0]
    scale = math.hypot(2, 1) / math.hypot(*flat)
    torch.testing.assert_close(
        power(s, 0.5), torch.tensor([x * scale for x in flat], dtype=s.dtype)
    )


def test_schulz_is_the_iteration_on_the_matrix_itself():
    a = draw_with([2.0, 1.0, 0.5, 0.1], tokens=9)
    x = a / 2
    for _ in range(4):
        x = x @ (3 * torch.eye(4, dtype=x.dtype) - x.mT @ x) / 2
    expected = x * (a.norm() / x.norm())
    torch.testing.assert_close(filter_matrix(a, parse_spectrum("schulz:4")), expected)


def test_schulz_ends_with_equal_values():
    s = torch.tensor([1.0, 0.1, 1e-4], dtype=torch.float64)
    flat = schulz(s, 30)
    torch.testing.assert_close(flat, torch.full_like(s, float(s.norm()) / 3**0.5))


def test_soft_is_the_proximal_point_of_the_nuclear_norm():
    """Nothing near it has a smaller ``|x - a|^2 / 2 + t s_1 |x|_*``."""
    a = draw_with([2.0, 1.0, 0.5], tokens=6)
    found = filter_matrix(a, parse_spectrum("soft:0.3"))
    expected = torch.tensor([1.4, 0.4, 0.0], dtype=torch.float64)
    torch.testing.assert_close(values_of(found), expected)

    def cost(x):
        return (x - a).square().sum() / 2 + 0.6 * values_of(x).sum()

    for seed in range(50):
        assert cost(found) < cost(found + 0.01 * draw(6, 3, seed=seed))


def test_a_spectrum_is_told_the_shape_of_its_matrix():
    told = []

    def spy(s, *, beta=1.0):
        told.append(beta)
        return s

    for shape in ((8, 4), (4, 8), (2, 40, 10)):
        filter_matrix(draw(*shape), chain(log, spy))
    assert told == [0.5, 0.5, 0.25]
    assert at_aspect(log, 0.5) is log


def test_quantile_is_that_of_torch_for_each_matrix():
    s = draw(4, 10).abs().sort(-1, descending=True).values
    for row, kept in zip(s, keep_quantile(s, 0.25), strict=True):
        assert torch.equal(kept, torch.where(row >= row.quantile(0.75), row, 0))


# property


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.95, 0.999, 1.0])
def test_keep_energy_keeps_enough_and_no_more(share):
    for s in draw(20, 12, seed=3).abs().sort(-1, descending=True).values:
        n = int(keep_energy(s, share).count_nonzero())
        energy = s.square().cumsum(0) / s.square().sum()
        assert energy[n - 1] >= share - 1e-12
        assert n == 1 or energy[n - 2] < share


def test_keep_energy_keeps_the_value_that_crosses():
    assert keep_energy(torch.tensor([10.0, 1.0, 0.1]), 0.9).tolist() == [10.0, 0.0, 0.0]
    s = torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0])
    assert keep_energy(s, 0.5).tolist() == [2.0, 0.0, 0.0, 0.0, 0.0]
    assert keep_energy(s, 0.51).count_nonzero() == 2


def test_keep_energy_of_everything_drops_no_long_tail():
    s = torch.full((1000,), 1e-5)
    s[0] = 1.0
    assert torch.equal(keep_energy(s, 1.0), s)


@pytest.mark.parametrize(
    ("p", "r", "n"), [(0.05, 20, 1), (0.05, 21, 2), (0.07, 100, 7), (1e-6, 8, 1), (1.0, 8, 8)]
)
def test_keep_fraction_rounds_up(p, r, n):
    assert keep_fraction(torch.ones(r), p).count_nonzero() == n


@pytest.mark.parametrize("n", [1, 3, 8])
def test_keep_count_is_the_rank(n):
    a = draw(40, 8)
    assert torch.linalg.matrix_rank(filter_matrix(a, parse_spectrum(f"count:{n}"))) == n


@pytest.mark.parametrize("text", [*TEXTS, "fraction:1e-9", "quantile:1e-9"])
def test_spectra_keep_order_and_at_least_one_value(text):
    for dtype in (torch.float32, torch.float64):
        s = draw(50, 9, seed=5, dtype=dtype).abs().sort(-1, descending=True).values
        found = parse_spectrum(text)(s)
        assert (found[:, 0] > 0).all(), dtype
        assert (found >= 0).all(), dtype
        assert (found.diff(dim=-1) <= 1e-6).all(), dtype


@pytest.mark.parametrize("text", ["log", "log2", "exp:3", "power:0.5", "power:3", "schulz:5"])
def test_reweighting_keeps_the_norm_of_each_matrix(text):
    for shape in SHAPES:
        a = draw(3, *shape) * torch.tensor([1.0, 10.0, 100.0]).reshape(3, 1, 1)
        found = filter_matrix(a, parse_spectrum(text))
        assert_close(found.norm(dim=(-2, -1)), a.norm(dim=(-2, -1)), shape)


@pytest.mark.parametrize("text", TEXTS)
def test_each_matrix_is_filtered_alone(text):
    a = draw(3, 12, 6) * torch.tensor([1e-3, 1.0, 1e3]).reshape(3, 1, 1)
    for centered in (False, True):
        together = filter_matrix(a, parse_spectrum(text), centered=centered)
        for matrix, found in zip(a, together, strict=True):
            alone = filter_matrix(matrix, parse_spectrum(text), centered=centered)
            size = float(matrix.abs().max())
            assert_close(found, alone, (centered, size), rtol=1e-9, atol=1e-9 * size)


@pytest.mark.parametrize("text", TEXTS)
def test_the_scale_of_a_matrix_changes_nothing_else(text):
    spectrum = parse_spectrum(text)
    s = torch.tensor([9.0, 5.0, 2.0, 1.0, 0.3])
    a = draw_with(s).float()
    expected = filter_matrix(a, spectrum)
    for scale in (1e-20, 1e-4, 1e20):
        # float32 knows the weight of the smallest of these values to about 1e-4
        found = filter_matrix(a * scale, spectrum) / scale
        assert_close(found, expected, scale, rtol=1e-4, atol=3e-4)
        assert_close(spectrum(s * scale) / scale, spectrum(s), scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: torch.zeros(2, 6, 4), id="zero"),
        pytest.param(lambda: torch.ones(6, 4), id="rank 1"),
        pytest.param(lambda: torch.eye(6)[:, :4], id="equal values"),
        pytest.param(lambda: draw(6, 4) * 6e4 / 3, id="near the limit of float16"),
        pytest.param(lambda: draw(6, 4) * 1e-20, id="tiny"),
        pytest.param(lambda: draw(6, 4) * 1e-42, id="denormal"),
        pytest.param(lambda: draw(4, 6) * 1e-7, id="small and wide"),
        pytest.param(lambda: draw(1, 6), id="one token"),
        pytest.param(lambda: draw(6, 1), id="one feature"),
        pytest.param(lambda: draw(2, 0, 4), id="no token"),
    ],
)
def test_every_finite_matrix_gives_finite_numbers(dtype, make):
    a = make().clamp(-6.5e4, 6.5e4).to(dtype)
    for text, centered in itertools.product(TEXTS, [False, True]):
        found = filter_matrix(a, parse_spectrum(text), centered=centered)
        assert found.shape == a.shape
        assert found.isfinite().all(), text


@pytest.mark.parametrize("text", TEXTS)
def test_the_largest_floats_do_not_overflow(text):
    a = draw(6, 4, dtype=torch.float32).sign() * 3e38
    assert filter_matrix(a, parse_spectrum(text), centered=True).isfinite().all()


def test_centering_keeps_the_mean_and_sees_behind_it():
    a = draw(40, 6) + 100
    energy = parse_spectrum("energy:0.95")
    centered = filter_matrix(a, energy, centered=True)
    torch.testing.assert_close(centered.mean(0), a.mean(0))
    assert torch.linalg.matrix_rank(filter_matrix(a, energy)) == 1
    assert torch.linalg.matrix_rank(centered - centered.mean(0)) > 1


@pytest.mark.parametrize("text", TEXTS)
def test_input_is_never_changed(text):
    a = draw(2, 12, 6)
    before = a.clone()
    filter_matrix(a, parse_spectrum(text), centered=True)
    assert torch.equal(a, before)
    s = values_of(a)
    before = s.clone()
    parse_spectrum(text)(s)
    assert torch.equal(s, before)


def test_text_is_read_from_left_to_right():
    s = torch.tensor([4.0, 2.0, 1.0, 0.5])
    expected = keep_energy(log(s), 0.6)
    assert torch.equal(parse_spectrum("log|energy:0.6")(s), expected)
    assert not torch.equal(parse_spectrum("energy:0.6|log")(s), expected)
    assert torch.equal(parse_spectrum(" count : 2 ")(s), keep_count(s, 2))


def test_the_same_text_is_parsed_once():
    assert parse_spectrum("log|energy:0.9") is parse_spectrum("log|energy:0.9")


def test_every_spectrum_has_a_text():
    assert {text.split(":")[0] for text in TEXTS if "|" not in text} == set(SPECTRA)


def test_autocast_changes_nothing():
    a = draw_with([9.0, 5.0, 2.0, 1.0, 0.3]).float()
    expected = filter_matrix(a, log, centered=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(filter_matrix(a, log, centered=True), expected)


def test_gradients_are_finite_where_singular_values_meet():
    a = torch.eye(6)[:, :4].requires_grad_()
    filter_matrix(a, log).square().sum().backward()
    assert a.grad.isfinite().all()
    assert a.grad.abs().sum() > 0


# restoration


def test_the_number_of_threads_is_put_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        filter_matrix(draw(6, 4), log)
        assert torch.get_num_threads() == 2
        with pytest.raises(torch.linalg.LinAlgError):
            filter_matrix(torch.full((6, 4), math.nan), log)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# refusal


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("enrgy:0.9", "unknown spectrum 'enrgy', did you mean 'energy'.* identity, count"),
        ("", "unknown spectrum '';.* identity, count"),
        ("log|", "unknown spectrum ''"),
        ("zzz", "unknown spectrum 'zzz';.* identity, count"),
        ("energy", "spectrum 'energy': energy needs share, as energy:"),
        ("log:2", "spectrum 'log:2': log takes no parameter"),
        ("log:", "spectrum 'log:': log takes no parameter"),
        ("energy:", "share is ''; allowed: a number"),
        ("energy:much", "spectrum 'energy:much': share is 'much'; allowed: a number"),
        ("svht:", "noise is ''; allowed: a number"),
        ("svht:-0.1", "noise is -0.1; allowed: 0 <= noise <= 1"),
        ("edge:nan", "noise is nan; allowed: 0 <= noise <= 1"),
        ("shrink:1.5", "noise is 1.5; allowed: 0 <= noise <= 1"),
        ("schulz", "spectrum 'schulz': schulz needs n, as schulz:"),
        ("schulz:0", "n is 0; allowed: 1 <= n <= 30"),
        ("schulz:31", "n is 31; allowed: 1 <= n <= 30"),
        ("soft:1", "t is 1.0; allowed: 0 <= t <= 0.99"),
        ("soft:nan", "t is nan; allowed: 0 <= t <= 0.99"),
        ("count:2.5", "n is '2.5'; allowed: a whole number"),
        ("count:0", "spectrum 'count:0': n is 0; allowed: n >= 1"),
        ("energy:0", "share is 0.0; allowed: 0 < share <= 1"),
        ("energy:1.01", "share is 1.01; allowed: 0 < share <= 1"),
        ("energy:nan", "share is nan; allowed: 0 < share <= 1"),
        ("fraction:-0.1", "p is -0.1; allowed: 0 < p <= 1"),
        ("quantile:2", "p is 2.0; allowed: 0 < p <= 1"),
        ("exp:nan", "a is nan; allowed: -1 <= a <= 20"),
        ("exp:inf", "a is inf; allowed: -1 <= a <= 20"),
        ("exp:-1.5", "a is -1.5; allowed: -1 <= a <= 20"),
        ("power:0", "p is 0.0; allowed: 0 < p <= 8"),
        ("power:9", "p is 9.0; allowed: 0 < p <= 8"),
        ("log|energy:7", "spectrum 'energy:7': share is 7.0"),
    ],
)
def test_bad_text_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_spectrum(text)
