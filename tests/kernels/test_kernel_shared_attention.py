"""The attention kernel against the plain attention in float64, interpreted or on a GPU."""

import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from einops import rearrange

from consist.attention.bank import Bank, attend

triton = pytest.importorskip("triton")

from consist_kernels import shared_attention as kernel  # noqa: E402
from consist_kernels.pool import attend_bank  # noqa: E402
from consist_kernels.shared_attention import INTERPRETED  # noqa: E402
from consist_kernels.tiles import Tile, read_tiles  # noqa: E402
from interpreting import DEVICE, poison, runs_kernel  # noqa: E402

# relative error of an image, beyond twice that of plain PyTorch in the same dtype
TOLERANCE = {
    torch.float16: 1e-4,  # plain PyTorch rounds more often than the kernel
    torch.bfloat16: 1e-3,  # the same, but the interpreter cuts the output off, unrounded
}
# the interpreter takes 5 ms for a step of 64 x 64; on a GPU the tiles that users get
SMALL = Tile(32, 32, 4, 2)
TILE = SMALL if INTERPRETED else None
CASES = [
    (d, tokens, dtype)
    for d, tokens, dtype in itertools.product((40, 64, 80, 96, 128, 160), (63, 77, 500), TOLERANCE)
    # interpreted, all sizes at one length, and all lengths at one size
    if not INTERPRETED or tokens == 63 or (d == 40 and dtype == torch.float16)
]
OLD_INTERPRETER = triton.__version__.startswith(("3.2", "3.3", "3.4", "3.5", "3.6"))


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    poison(monkeypatch)


def draw(rows, heads, tokens, d, dtype=torch.float16):
    """``b h l d``, a view of ``b l (h d)`` with NaN behind the last token."""
    x = torch.full((rows, tokens + 3, heads * d), torch.nan)
    x[:, :tokens] = torch.randn(rows, tokens, heads * d)
    return rearrange(x.to(DEVICE, dtype)[:, :tokens], "b l (h d) -> b h l d", h=heads)


def draw_bank(shape, tokens, dtype=torch.float16, biased=False, visible=None):
    """A bank of ``tokens[i]`` tokens from image i; ``shape`` is g, h, d."""
    g, h, d = shape
    owner = torch.arange(len(tokens)).repeat_interleave(torch.tensor(tokens, dtype=torch.int64))
    k, v = (torch.randn(g, h, len(owner), d).to(DEVICE, dtype) for _ in range(2))
    bias = 2 * torch.randn(len(owner)).to(DEVICE) if biased else None
    return Bank(k=k, v=v, owner=owner, bias=bias, visible=visible)


def shuffle(bank):
    """The same bank with its tokens in another order."""
    order = torch.randperm(len(bank.owner))
    on_device = order.to(DEVICE)
    bias = None if bank.bias is None else bank.bias[on_device]
    k, v = bank.k[:, :, on_device], bank.v[:, :, on_device]
    return replace(bank, k=k, v=v, owner=bank.owner[order], bias=bias)


def run(q, k, v, bank):
    # interpreted, many tokens take fewer of the larger tiles
    tile = Tile(128, 64, 4, 2) if INTERPRETED and q.shape[2] > 128 else TILE
    return attend_bank(q, k, v, bank.k, bank.v, bank.owner, bank.bias, bank.visible, tile)


def relative_error(given, truth):
    difference, size = given.double() - truth, truth.flatten(1).norm(dim=1)
    return difference.flatten(1).norm(dim=1) / size


def assert_exact(q, k, v, bank):
    exact = replace(bank, k=bank.k.double(), v=bank.v.double())
    truth = attend(q.double(), k.double(), v.double(), exact)
    given, plain = run(q, k, v, bank), attend(q, k, v, bank)
    assert given.dtype == q.dtype
    allowed = 2 * relative_error(plain, truth) + TOLERANCE[q.dtype]
    assert (relative_error(given, truth) <= allowed).all()


@runs_kernel
@pytest.mark.parametrize(("d", "tokens", "dtype"), CASES)
def test_attends_as_the_plain_version(d, tokens, dtype):
    q, k, v = (draw(4, 1, tokens, d, dtype) for _ in range(3))
    # image 0 sees 1 and 2, image 1 sees 0 only; no image is a whole number of blocks, 2 is absent
    visible = torch.tensor([[True, True, True], [True, False, False]])
    bank = draw_bank((2, 1, d), [37, 5, 21], dtype, biased=True, visible=visible)
    assert_exact(q, k, v, shuffle(bank))


@runs_kernel
@pytest.mark.parametrize("d", [8, 24, 56, 104, 152])
def test_pads_other_head_sizes(d):
    q, k, v = (draw(1, 2, 33, d) for _ in range(3))
    assert_exact(q, k, v, draw_bank((1, 2, d), [0, 20]))


@runs_kernel
def test_an_empty_bank_is_plain_self_attention():
    q, k, v = (draw(2, 2, 63, 40) for _ in range(3))
    assert_exact(q, k, v, draw_bank((2, 2, 40), []))


@runs_kernel
def test_an_image_without_anchors_sees_only_itself():
    q, k, v = (draw(3, 1, 40, 64) for _ in range(3))
    visible = torch.tensor([[True, True], [False, False], [True, False]])
    bank = draw_bank((1, 1, 64), [33, 20], visible=visible)
    assert_exact(q, k, v, bank)
    alone = run(q[1:2], k[1:2], v[1:2], draw_bank((1, 1, 64), []))
    torch.testing.assert_close(run(q, k, v, bank)[1:2], alone, rtol=0, atol=0)


@runs_kernel
@pytest.mark.parametrize("biased", [False, True])
def test_reads_a_bank_of_whole_blocks_in_place(biased, monkeypatch):
    q, k, v = (draw(4, 2, 40, 64) for _ in range(3))
    bank = draw_bank((2, 2, 64), [64, 128], biased=biased)
    assert_exact(q, k, v, bank)
    monkeypatch.setattr("consist_kernels.pool.gather_tokens", None)
    run(q, k, v, bank)


@runs_kernel
def test_guidance_halves_do_not_mix():
    q, k, v = (draw(4, 1, 40, 64) for _ in range(3))
    bank = draw_bank((2, 1, 64), [30, 40])
    before = run(q, k, v, bank)
    bank.k[1], bank.v[1] = 3, 5
    after = run(q, k, v, bank)
    torch.testing.assert_close(after[:2], before[:2], rtol=0, atol=0)
    assert not torch.isclose(after[2:], before[2:], atol=0.01).all(3).any()


@runs_kernel
def test_takes_slices_of_one_projection_and_fewer_queries():
    x = draw(2, 6, 50, 40)
    q, k, v = x[:, :2, :33], x[:, 2:4], x[:, 4:]
    assert_exact(q, k, v, draw_bank((1, 2, 40), [7, 40], biased=True))


@runs_kernel
@pytest.mark.parametrize("biased", [False, True])
def test_the_log_sum_exp_is_that_of_all_scores(biased):
    given = arguments(bias=torch.randn(64) if biased else None)
    given = {name: x if x is None else x.to(DEVICE) for name, x in given.items()}
    out, lse = kernel.shared_attention_lse(**given, tile=SMALL)
    assert torch.equal(out, kernel.shared_attention(**given, tile=SMALL))
    q, k, pool = (given[name].double() for name in ("q", "k", "pool_k"))
    own, shared = (q @ x.mT / 8 for x in (k, pool.expand(2, -1, -1, -1)))
    if biased:
        shared = shared + given["bias"].double()
    expected = torch.cat((own, shared), -1).logsumexp(-1)
    assert lse.dtype == torch.float32
    # own products of float16 are exact in float32; sums of 69 terms
    torch.testing.assert_close(lse.double(), expected, rtol=1e-5, atol=1e-5)


@runs_kernel
def test_two_pools_merged_by_log_sum_exp_are_one():
    given = {name: x.to(DEVICE) for name, x in arguments().items()}
    # else each token would see itself above all
    given["q"] = torch.randn(given["q"].shape).to(given["q"])
    whole, both = kernel.shared_attention_lse(**given, tile=SMALL)
    none = given | {"counts": torch.zeros_like(given["counts"])}
    own, alone = kernel.shared_attention_lse(**none, tile=SMALL)
    share = (alone - both).exp().unsqueeze(-1)
    q, pool = given["q"].double(), given["pool_k"].double()
    shared = (q @ pool.mT / 8).softmax(-1) @ pool
    expected = share * own + (1 - share) * shared
    assert 0.01 < share.min() < share.max() < 0.99
    torch.testing.assert_close(whole.double(), expected, rtol=0, atol=5e-3)


@runs_kernel
def test_torch_takes_it_for_an_operator():
    given = {name: x.to(DEVICE) for name, x in arguments(bias=torch.randn(64)).items()}
    operator = torch.ops.consist.shared_attention.default
    for with_lse in (False, True):
        torch.library.opcheck(operator, (*given.values(), list(SMALL), with_lse))


@runs_kernel
def test_compiles_whole():
    given = {name: x.to(DEVICE) for name, x in arguments().items()}
    backend = "aot_eager" if INTERPRETED else "inductor"
    compiled = torch.compile(kernel.shared_attention, fullgraph=True, backend=backend)
    expected = kernel.shared_attention(**given, tile=SMALL)
    assert torch.equal(compiled(**given, tile=SMALL), expected)


@runs_kernel
@pytest.mark.skipif(INTERPRETED, reason="a CUDA graph needs CUDA")
def test_runs_in_a_cuda_graph():
    given = {name: x.to(DEVICE) for name, x in arguments().items()}
    expected = kernel.shared_attention(**given, tile=SMALL)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = kernel.shared_attention(**given, tile=SMALL)
    graph.replay()
    assert torch.equal(found, expected)


@runs_kernel
@pytest.mark.skipif(not INTERPRETED, reason="all other tests run the tiles of this GPU")
def test_every_tile_of_the_file_attends_alike():
    tiles = {
        (d, tile.queries, tile.keys)
        for device in read_tiles().values()
        for d, lengths in device.items()
        for tile in lengths.values()
    }
    for d, queries, keys in tiles:
        q, k, v = (draw(1, 1, 70, d) for _ in range(3))
        bank = draw_bank((1, 1, d), [0, 40])
        # warps and stages mean nothing here
        found = attend_bank(q, k, v, bank.k, bank.v, bank.owner, tile=Tile(queries, keys, 4, 1))
        torch.testing.assert_close(found, attend(q, k, v, bank), rtol=5e-3, atol=5e-3)


def arguments(**changed):
    """Tensors for ``shared_attention`` with SMALL tiles, on the CPU, some of them changed."""
    own, pool = torch.randn(2, 1, 5, 64).half(), torch.randn(1, 1, 64, 64).half()
    table, counts = torch.tensor([[1, 0], [0, 1]]).int(), torch.tensor([2, 2]).int()
    # on their own, since an operator may be checked for what it changes
    fitting = {name: own.clone() for name in "qkv"}
    fitting |= {"pool_k": pool, "pool_v": pool.clone()}
    return fitting | {"table": table, "counts": counts} | changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": torch.randn(2, 1, 5, 44)}, "head size is 44"),
        ({"q": torch.randn(2, 1, 5, 168)}, "head size is 168"),
        ({"q": torch.randn(2, 1, 5, 64)}, "dtype is torch.float32; allowed: float16, bfloat16"),
        ({"k": torch.randn(2, 1, 6, 64).half()}, r"v is \(\(2, 1, 5, 64\)"),
        ({"pool_k": torch.randn(1, 1, 64, 64)}, "pool_k is .* torch.float32"),
        ({"table": torch.tensor([[1], [0]])}, "table is .* torch.int64"),
        ({"counts": torch.tensor([1]).int()}, r"counts is \(\(1,\)"),
        ({"bias": torch.zeros(63)}, r"bias is \(\(63,\)"),
        (
            dict.fromkeys(("pool_k", "pool_v"), torch.zeros(1, 1, 40, 64, dtype=torch.float16)),
            "blocks of 32",
        ),
        (dict.fromkeys("kv", torch.zeros(2, 1, 0, 64, dtype=torch.float16)), "at least one key"),
    ],
)
def test_refuses_what_does_not_fit(changed, message):
    with pytest.raises(ValueError, match=message):
        kernel.shared_attention(**arguments(**changed), tile=SMALL)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes the CPU")
def test_refuses_the_cpu():
    with pytest.raises(ValueError, match="tensors are on cpu; allowed: cuda"):
        kernel.shared_attention(**arguments())


@runs_kernel
def test_refuses_gradients():
    given = {name: x.to(DEVICE) for name, x in arguments().items()}
    given["pool_v"].requires_grad_()
    with pytest.raises(ValueError, match="forward only"):
        kernel.shared_attention(**given)


def needs_interpreter(test):
    """Marks a test that starts a process where kernels are interpreted."""
    test = pytest.mark.skipif(
        OLD_INTERPRETER and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0",
        reason="loops of this interpreter fail with numpy 2.4",
    )(test)
    return pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")(test)


@pytest.mark.slow
@needs_interpreter
def test_kernels_in_the_interpreter():
    assert count_interpreted("-n2", *Path(__file__).parent.glob("test_kernel_*.py")) > 50


@pytest.mark.slow
@needs_interpreter
def test_two_kernels_in_the_interpreter():
    """A few of those above, and of ``test_kernel_pack.py``, each day."""
    pack = Path(__file__).with_name("test_kernel_pack.py")
    tests = (
        f"{__file__}::test_pads_other_head_sizes[24]",
        f"{__file__}::test_an_image_without_anchors_sees_only_itself",
        f"{pack}::test_gathers_bit_by_bit",
        f"{pack}::test_what_is_too_large_is_clamped",
    )
    assert count_interpreted("-n0", *tests) == len(tests)


def count_interpreted(*arguments):
    """How many tests of kernels pass in a process where kernels are interpreted."""
    folder, environment = Path(__file__).parent, os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # kernels need no pipelines, which take seconds to import
    command = [*command, "--noconftest", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    return int(passed[1])
