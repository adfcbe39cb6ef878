"""Gathering, mapping and Gram matrices against float64, interpreted or on a GPU."""

import pytest
import torch

pytest.importorskip("triton")

from consist_kernels import pack
from consist_kernels.pack import gather_tokens, gram_matrices
from interpreting import DEVICE, poison, runs_kernel

from consist.attention import backends as backend
from consist.spectra.decomposition import filter_matrix, solve_exactly
from consist.spectra.rules import parse_spectrum

# half a unit in the last place of the output, and one in the interpreter, which cuts bfloat16 off
ROUNDING = {torch.float16: 2**-11, torch.bfloat16: 2**-7}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    poison(monkeypatch)


def draw(*shape, dtype=torch.float16):
    """A view whose tokens are not next to each other, with NaN between them."""
    x = torch.full((*shape[:-1], shape[-1] + 8), torch.nan)
    x[..., : shape[-1]] = torch.randn(shape)
    return x.to(DEVICE, dtype)[..., : shape[-1]]


@runs_kernel
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("d", [8, 40, 80])
def test_maps_what_it_gathers(d, dtype):
    x = draw(2, 2, 70, d, dtype=dtype)
    index = torch.randint(0, 70, (90,), dtype=torch.int32).to(DEVICE)
    matrix, shift = torch.randn(2, 2, d, d).to(DEVICE), torch.randn(2, 2, d).to(DEVICE)
    found = gather_tokens(x, index, matrix, shift)
    gathered = x.double().index_select(-2, index)
    expected = gathered @ matrix.double() + shift.double().unsqueeze(-2)
    assert found.dtype == dtype
    # the sum of d products in float32 or three tf32 parts, then the rounding of the output
    summed = gathered.abs() @ matrix.double().abs() + shift.double().abs().unsqueeze(-2)
    allowed = ROUNDING[dtype] * expected.abs() + (d + 2) * 2.0**-21 * summed
    assert ((found.double() - expected).abs() <= allowed).all()


@runs_kernel
def test_gathers_bit_by_bit():
    x = draw(3, 33, 40)
    index = torch.randint(0, 33, (65,), dtype=torch.int32).to(DEVICE)
    assert torch.equal(gather_tokens(x, index), x.index_select(-2, index))
    assert torch.equal(gather_tokens(x), x)
    assert gather_tokens(x, index[:0]).shape == (3, 0, 40)


@runs_kernel
def test_what_is_too_large_is_clamped():
    x = torch.full((1, 2, 16), 60000.0).to(DEVICE, torch.float16)
    found = gather_tokens(x, matrix=torch.eye(16)[None].to(DEVICE) * 2)
    assert (found == torch.finfo(torch.float16).max).all()


@runs_kernel
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize(("tokens", "d"), [(70, 40), (150, 80)])
def test_gram_matrices_are_exact(tokens, d, centered, monkeypatch):
    monkeypatch.setattr(pack, "CHUNK", 128)
    x = draw(2, 2, tokens, d) + 2
    mean = x.float().mean(-2) if centered else None
    unit = torch.tensor([[1.0, 2.0], [4.0, 8.0]]).to(DEVICE)
    found = gram_matrices(x, mean, unit)
    a = x.double() - (mean.double().unsqueeze(-2) if centered else 0)
    a = a / unit.double()[..., None, None]
    allowed = (tokens + 2) * 2.0**-21 * (a.mT.abs() @ a.abs())
    assert ((found.double() - a.mT @ a).abs() <= allowed).all()


@runs_kernel
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("text", ["energy:0.9", "log"])
def test_filters_as_torch_does(text, centered):
    x = draw(2, 70, 40) * torch.linspace(1, 0.1, 40).to(DEVICE).half() + 1
    spectrum = parse_spectrum(text)
    found = backend.filter_triton(x, spectrum, centered=centered, solve=solve_exactly)
    expected = filter_matrix(x.double(), spectrum, centered=centered)
    assert found.dtype == x.dtype
    assert (found.double() - expected).norm() <= 2 * ROUNDING[x.dtype] * expected.norm()


@runs_kernel
@pytest.mark.parametrize(
    ("version", "default"), [("filter_matrix", False), ("filter_triton", True)]
)
def test_one_switch_decides_for_maps_too(version, default, monkeypatch):
    taken = []
    monkeypatch.setattr(backend, version, lambda *a, **k: taken.append(version))
    monkeypatch.setattr(backend, "TRITON_BY_DEFAULT", default)
    spectrum = parse_spectrum("log")
    backend.filter_tokens(draw(2, 70, 40), spectrum, centered=True, solve=solve_exactly)
    assert taken == [version]
