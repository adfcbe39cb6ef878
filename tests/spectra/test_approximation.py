import math

import pytest
import torch

from consist.attention.method import Site
from consist.methods.spectral import Spectral
from consist.spectra import approximation
from consist.spectra.approximation import (
    Bases,
    find_solver,
    fitted,
    is_smooth,
    iterate,
    largest_eigenvalue,
    solve_smoothly,
)
from consist.spectra.decomposition import filter_matrix, solve_exactly
from consist.spectra.rules import parse_spectrum

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMOOTH = ["log", "log2", "exp:2", "power:0.5", "schulz:4", "log|power:2"]
HARD = ["energy:0.9", "count:3", "log|energy:0.95"]


def draw_orthogonal(d, batch=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(*batch, d, d, generator=generator, dtype=torch.float64))[0]


def with_values(s, tokens=50, seed=0):
    """A matrix ``(tokens, d)`` with singular values ``s (d,)``."""
    return draw_orthogonal(tokens, seed=seed)[:, : len(s)] * s @ draw_orthogonal(len(s), seed=seed)


def spread(d, least):
    return torch.logspace(0, math.log10(least), d, dtype=torch.float64)


# what the fast solvers miss, and by how much at most


@pytest.mark.parametrize(
    ("text", "least", "allowed"),
    # as the docstring of ``fitted`` has it
    [
        ("log", 0.01, 0.007),
        ("log", 1e-4, 0.05),
        ("log2", 0.01, 0.008),
        ("power:0.5", 0.01, 0.008),
        ("exp:2", 0.01, 0.002),
        ("schulz:4", 1e-4, 1e-9),
    ],
)
def test_the_polynomial_is_as_near_to_the_spectrum_as_it_says(text, least, allowed):
    found, wanted = fitted(spread(3000, least), parse_spectrum(text))
    error = (found - wanted).abs().max()
    assert error <= allowed
    # and no nearer, so that what is said is of use
    assert error >= allowed / 2 or text == "schulz:4"


@pytest.mark.parametrize("d", [8, 40, 64, 160])
def test_the_largest_eigenvalue_is_nearly_found(d):
    worst = 1.0
    for t in (0.0, 0.5, 0.9, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98, 1.0):
        values = torch.full((d,), t, dtype=torch.float64)
        values[0] = 1
        q = draw_orthogonal(d)
        found = largest_eigenvalue(7 * (q * values) @ q.mT).item() / 7
        assert found <= 1 + 1e-12
        worst = min(worst, found)
    assert worst >= 0.95


@pytest.mark.parametrize("text", SMOOTH)
@pytest.mark.parametrize("least", [0.3, 0.01, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_smooth_maps_are_within_the_bound(text, least, dtype):
    """The error of each singular value is at most that of the fit, and that of the unit.

    With ``h`` the values of the spectrum before their norm is put back, and ``g`` those found,
    ``|n g / |g| - n h / |h|| <= 2 n |g - h| / |h|`` (Dunkl and Williams 1964), where ``n`` is the
    old norm.
    """
    s, spectrum = spread(24, least), parse_spectrum(text)
    a = with_values(s)
    found = filter_matrix(a.to(dtype), spectrum, solve=solve_smoothly).double()
    exact = filter_matrix(a, spectrum)
    unit = largest_eigenvalue(a.mT @ a).sqrt()
    h = fitted(s, spectrum)[1]
    g = fitted(torch.cat((torch.ones(1), s / unit)).double(), spectrum)[0][1:]
    bound = 2 * a.norm() * (g - h).norm() / h.norm()
    # float32 knows the least squared singular value to eps of the largest
    rounding = 64 * torch.finfo(dtype).eps / least
    assert (found - exact).norm() <= bound + rounding * a.norm()
    # which is of use, too: less than a tenth
    assert bound <= 0.1 * a.norm()


@pytest.mark.parametrize("r", [3, 10])
def test_orthogonal_iteration_turns_towards_the_leading_vectors(r):
    """``tan <= (s_{r+1}^2 / s_r^2)^rounds tan`` (Golub and Van Loan, theorem 8.2.2)."""
    s = spread(16, 0.05)
    a = with_values(s)
    exact = torch.linalg.svd(a)[2].mT
    generator = torch.Generator().manual_seed(1)
    nudge = torch.randn(16, 16, generator=generator, dtype=torch.float64)
    start = torch.linalg.qr(exact + 0.05 * nudge)[0]
    # in the order in which the iteration takes them
    start = approximation._sort_columns(start, a.mT @ a)[1]

    def tangent(v):
        cosines = torch.linalg.svdvals(exact[:, :r].mT @ v[:, :r])
        return torch.tan(torch.acos(cosines.min().clamp(max=1)))

    before = tangent(start)
    assert before > 0.1
    for rounds in (1, 2, 4):
        s_found, v = iterate(a.mT @ a, start, rounds)
        torch.testing.assert_close(v.mT @ v, torch.eye(16, dtype=torch.float64))
        assert (s_found.diff() <= 0).all()
        assert tangent(v) <= 1.01 * (s[r] / s[r - 1]) ** (2 * rounds) * before


def test_iteration_of_what_is_converged_changes_nothing():
    a = with_values(spread(16, 0.01)).float()
    gram = a.mT @ a
    s, v = torch.linalg.svd(a)[1:]
    found, again = iterate(gram, v.mT)
    # float32 knows the least squared value, 1e-4, to some 1e-7, and its neighbors are as near
    torch.testing.assert_close(found, s, rtol=1e-2, atol=0)
    torch.testing.assert_close((v @ again).abs(), torch.eye(16), rtol=0, atol=1e-2)


@pytest.mark.parametrize("gram", [torch.zeros(4, 4), torch.ones(4, 4), torch.eye(4)])
def test_degenerate_matrices_give_finite_numbers(gram):
    for rounds in (1, 3):
        s, v = iterate(gram, torch.eye(4), rounds)
        assert s.isfinite().all()
        torch.testing.assert_close(v.mT @ v, torch.eye(4), rtol=0, atol=1e-4)
    assert solve_smoothly(gram, parse_spectrum("log"), 1.0).isfinite().all()


# which solver, and what it remembers


def test_auto_is_exact_on_a_cpu_and_fast_on_cuda():
    def find(name, text, device):
        return find_solver(name, text, device, Bases(), "here", 0.5)

    assert find("auto", "log", CPU) is solve_exactly
    assert find("exact", "log", CUDA) is solve_exactly
    assert find("auto", "log", CUDA) is solve_smoothly
    assert find("fast", "log", CPU) is solve_smoothly
    assert find("auto", "energy:0.9", CUDA).func is approximation._solve_warm


@pytest.mark.parametrize("text", [*SMOOTH, *HARD])
def test_smooth_spectra_are_those_without_cuts(text):
    assert is_smooth(text) == (text in SMOOTH)


@pytest.mark.parametrize("text", HARD)
def test_hard_cuts_are_exact_at_first_and_warm_later(text, monkeypatch):
    bases, spectrum = Bases(), parse_spectrum(text)
    a = with_values(spread(8, 0.1)).float()
    rounds = []
    original = approximation.iterate
    monkeypatch.setattr(approximation, "iterate", lambda *args: rounds.append(1) or original(*args))

    def solve(progress, gram, place="here"):
        return find_solver("fast", text, CPU, bases, place, progress)(gram, spectrum, 0.5)

    gram = a.mT @ a
    exact = solve_exactly(gram, spectrum, 0.5)
    assert torch.equal(solve(0.1, gram), exact)
    assert not rounds
    torch.testing.assert_close(solve(0.2, gram), exact, rtol=1e-3, atol=1e-3)
    assert len(rounds) == 1
    # another place, an earlier step as in the next picture, other sizes
    solve(0.3, gram, "there")
    solve(0.0, gram)
    solve(0.4, gram[None])
    assert len(rounds) == 1


def test_a_method_remembers_from_step_to_step():
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 4, 2, 12, 4, generator=generator)
    bases = Bases()
    fields = {"layer": "up", "height": 3, "width": 4, "g": 2, "n": 2, "bases": bases}
    fast, exact = (Spectral(keys="energy:0.95", solver=solver) for solver in ("fast", "exact"))
    first, second = Site(progress=0.1, **fields), Site(progress=0.2, **fields)
    fast(q, k, v, first)
    assert set(bases._known) == {"keys of up"}
    found, expected = fast(q, k, v, second), exact(q, k, v, second)
    assert bases._known["keys of up"][0] == 0.2
    torch.testing.assert_close(found.k, expected.k, rtol=0.05, atol=0.05)
    torch.testing.assert_close(found.v, expected.v, rtol=0.05, atol=0.05)


def test_an_unknown_solver_is_refused():
    with pytest.raises(ValueError, match="solver is 'quick'; allowed: auto, exact, fast"):
        Spectral(solver="quick")
