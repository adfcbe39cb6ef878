"""The Triton kernel against the plain attention in float64, in Triton's interpreter or on a GPU.

Triton decides at import whether kernels are interpreted. So one test runs this file once more in a
process of its own with TRITON_INTERPRET=1, where the tests of the kernel run on the CPU; in this
process, which other test files share, nothing changes, and they run on a GPU if there is one.
"""

import doctest
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

from consist.sharing import Bank, attend

triton = pytest.importorskip("triton")

from consist_kernels import shared_attention as kernel  # noqa: E402
from consist_kernels.shared_attention import INTERPRETED, Tile, attend_bank, block_table  # noqa: E402

# relative error of an image, beyond twice that of plain PyTorch in the same dtype
TOLERANCE = {
    torch.float32: 1e-6,  # sums in another order: some roundings of 6e-8
    torch.float16: 1e-4,  # plain PyTorch rounds more often than the kernel
    torch.bfloat16: 1e-3,  # the same, but the interpreter cuts the output off, unrounded
}
DEVICE = "cpu" if INTERPRETED else "cuda"
# the interpreter takes 5 ms for a step of 64 x 64; on a GPU the tiles that users get
TILE = Tile(32, 32, 4, 2) if INTERPRETED else None
CASES = [
    (d, tokens, dtype)
    for d, tokens, dtype in itertools.product((40, 64, 80), (63, 77, 128), TOLERANCE)
    if not INTERPRETED or tokens == 63 or dtype == torch.float16
]
OLD_INTERPRETER = triton.__version__.startswith(("3.2", "3.3", "3.4", "3.5", "3.6"))


def runs_kernel(test):
    """Marks a test that launches the kernel: it needs a GPU where nothing is interpreted."""
    missing = not INTERPRETED and not torch.cuda.is_available()
    skipped = pytest.mark.skipif(missing, reason="needs CUDA; interpreted in a process of its own")
    return test if INTERPRETED else pytest.mark.gpu(skipped(test))


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """What the launcher leaves uninitialised is NaN; random numbers start anew."""
    torch.manual_seed(0)
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda x: empty_like(x).fill_(torch.nan))


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
    return attend_bank(q, k, v, bank.k, bank.v, bank.owner, bank.bias, bank.visible, TILE)


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
@pytest.mark.parametrize("d", [8, 96, 128, 160])
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
    monkeypatch.setattr(torch.Tensor, "index_select", None)
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


def test_doctests():
    assert doctest.testmod(kernel).failed == 0


def test_every_token_has_one_slot_and_every_block_one_owner():
    owner = torch.randint(0, 4, (50,))
    order, table, counts = block_table(owner, None, 3, 8)
    assert order[order >= 0].sort().values.tolist() == list(range(50))
    blocks = [set(owner[block[block >= 0]].tolist()) for block in order.reshape(-1, 8)]
    for image in range(3):
        seen = table[image, : counts[image]].tolist()
        assert seen == [i for i, owners in enumerate(blocks) if owners != {image}]
    assert all(len(owners) == 1 for owners in blocks)


def test_lists_only_visible_blocks():
    visible = torch.tensor([[True, False, True], [False, False, False]])
    _, table, counts = block_table(torch.tensor([2, 0, 1, 2]), visible, 2, 1)
    assert counts.tolist() == [2, 0]
    assert table[0].tolist() == [2, 3]


def arguments(**changed):
    """Arguments of ``shared_attention`` that fit one another, on the CPU, some of them changed."""
    own, pool = torch.randn(2, 1, 5, 64), torch.randn(1, 1, 64, 64)
    table, counts = torch.tensor([[1], [0]]).int(), torch.tensor([1, 1]).int()
    fitting = {"q": own, "k": own, "v": own, "pool_k": pool, "pool_v": pool}
    return fitting | {"table": table, "counts": counts} | changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": torch.randn(2, 1, 5, 44)}, "head size is 44"),
        ({"q": torch.randn(2, 1, 5, 168)}, "head size is 168"),
        ({"q": torch.randn(2, 1, 5, 64).double()}, "dtype is torch.float64"),
        ({"k": torch.randn(2, 1, 6, 64)}, r"v is \(\(2, 1, 5, 64\)"),
        ({"pool_k": torch.randn(1, 1, 64, 64).half()}, "pool_k is .* torch.float16"),
        ({"table": torch.tensor([[1], [0]])}, "table is .* torch.int64"),
        ({"counts": torch.tensor([1]).int()}, r"counts is \(\(1,\)"),
        ({"bias": torch.zeros(63)}, r"bias is \(\(63,\)"),
        (
            {"pool_k": torch.randn(1, 1, 40, 64), "pool_v": torch.randn(1, 1, 40, 64)},
            "blocks of 32",
        ),
        ({"k": torch.randn(2, 1, 0, 64), "v": torch.randn(2, 1, 0, 64)}, "at least one key"),
    ],
)
def test_refuses_what_does_not_fit(changed, message):
    with pytest.raises(ValueError, match=message):
        kernel.shared_attention(**arguments(**changed))


def test_refuses_visibility_of_another_number_of_images():
    with pytest.raises(ValueError, match="visible is for 1 images, the batch has 2"):
        block_table(torch.tensor([0]), torch.ones(1, 1, dtype=torch.bool), 2, 32)


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


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
@pytest.mark.skipif(
    OLD_INTERPRETER and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0",
    reason="loops of this interpreter fail with numpy 2.4",
)
def test_kernel_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    folder, environment = Path(__file__).parents[1], os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 30, done.stdout


def compile_for_hopper(d):
    """The kernel as a GPU with compute capability 9.0 gets it: bfloat16, with a bias."""
    function, tile = kernel._shared_attention_kernel, kernel.choose_tile(d, torch.bfloat16)
    names = function.arg_names
    block_d = max(64, triton.next_power_of_2(d))
    constants = {"D": d, "BLOCK_D": block_d, "BLOCK_M": tile.queries, "BLOCK_N": tile.keys}
    constants |= {"WHOLE_M": True, "WHOLE_N": True, "UNIT": 8, "UPCAST": False}
    constants |= {name: 1 for name in names if name.endswith("_step")}
    types = dict.fromkeys(("q", "k", "v", "pool_k", "pool_v", "out"), "*bf16")
    types |= {"table": "*i32", "counts": "*i32", "bias": "*fp32", "scale": "fp32"}
    types |= dict.fromkeys(constants, "constexpr")
    # of sizes and strides, the launcher knows which are multiples of 16: not all that are of heads
    unknown = {"q_head", "k_head", "v_head", "out_head", "table_image", "images", "scale"}
    aligned = [i for i, name in enumerate(names) if name not in unknown | constants.keys()]
    source = triton.compiler.ASTSource(
        fn=function,
        signature={name: types.get(name, "i32") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    return triton.compile(
        source,
        target=triton.backends.compiler.GPUTarget("cuda", 90, 32),
        options={"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True},
    )


# products of tiles, waits for them, copies of 16 bytes past the registers
MNEMONICS = ("HGMMA", "WARPGROUP.DEPBAR", "LDGSTS.E.BYPASS.128")


def read_tool(name, *arguments):
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run((tool, *arguments), capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled here")
@pytest.mark.parametrize("d", [40, 64])
def test_compiles_well_for_hopper(d, tmp_path):
    compiled = compile_for_hopper(d)
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage, assembly = read_tool("cuobjdump", "-res-usage", cubin), read_tool("nvdisasm", cubin)
    count = {name: len(re.findall(rf"\b{name}\b", assembly)) for name in MNEMONICS}
    assert " STACK:0 " in usage, "registers are spilled"
    assert compiled.metadata.shared <= 227 * 1024
    # as many waits as products mean that the products run one after the other
    assert count["HGMMA"] > 2 * count["WARPGROUP.DEPBAR"] > 0
    assert count["LDGSTS.E.BYPASS.128"] > 0, "tiles are not copied 16 bytes at a time"
