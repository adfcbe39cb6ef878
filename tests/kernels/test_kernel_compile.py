"""Kernels as GPUs get them, compiled without one: registers, shared memory, matrix instructions."""

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from consist_kernels import pack, shared_attention  # noqa: E402
from consist_kernels.shared_attention import INTERPRETED, split_head  # noqa: E402
from consist_kernels.tiles import read_tiles  # noqa: E402

pytestmark = pytest.mark.skipif(INTERPRETED, reason="nothing is compiled in the interpreter")

# products of tiles, by compute capability
PRODUCTS = {80: r"HMMA", 90: r"HGMMA", 100: r"UTC\w*MMA"}
# bytes of shared memory that a block of threads may have, by compute capability
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# registers and threads of a multiprocessor, of each of these capabilities
REGISTERS, THREADS = 64 * 1024, 2048


@dataclass(frozen=True)
class Needs:
    """What a compiled kernel needs."""

    registers: int  # of a thread
    stack: int  # bytes of a thread, of registers that are spilled
    shared: int  # bytes of a block of threads
    warps: int
    counts: Counter  # mnemonics

    def at_once(self, capability):
        """How many blocks of threads a multiprocessor holds."""
        threads = 32 * self.warps
        by_registers = REGISTERS // (self.registers * threads)
        # each block also takes 1 KiB for the system
        by_shared = (SHARED[capability] + 1024) // (self.shared + 1024)
        return min(by_registers, by_shared, THREADS // threads)


def compile_kernel(function, types, constants, aligned, capability, warps=4, stages=3):
    """Compiles for ``capability``; arguments without a type are 32-bit integers."""
    names = function.arg_names
    types = types | dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(
        fn=function,
        signature={name: types.get(name, "i32") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=options)


def attention_kernel(d, tile, dtype, capability):
    """The kernel with a bias and without a log-sum-exp, for whole tiles."""
    function = shared_attention._shared_attention_kernel
    first, rest = split_head(d)
    constants = {"D": d, "D0": first, "D1": rest, "BLOCK_M": tile.queries, "BLOCK_N": tile.keys}
    constants |= {"WHOLE_M": True, "WHOLE_N": True, "UNIT": 8, "UPCAST": False, "lse": None}
    constants |= {name: 1 for name in function.arg_names if name.endswith("_step")}
    types = dict.fromkeys(("q", "k", "v", "pool_k", "pool_v", "out"), f"*{dtype}")
    types |= {"table": "*i32", "counts": "*i32", "bias": "*fp32", "scale": "fp32"}
    # of sizes and strides, the launcher knows which are multiples of 16: not all that are of heads
    unknown = {"q_head", "k_head", "v_head", "out_head", "table_image", "images", "scale"}
    aligned = [name for name in function.arg_names if name not in unknown | constants.keys()]
    return compile_kernel(function, types, constants, aligned, capability, *tile[2:])


def map_kernel(d, capability):
    """The kernel that gathers and maps."""
    constants = {"D": d, "ROWS": pack.TOKENS, "COLUMNS": pack.FEATURES, "DEPTH": pack.DEPTH}
    types = {"x": "*bf16", "index": "*i32", "matrix": "*fp32", "shift": "*fp32", "out": "*bf16"}
    aligned = [*types, "x_batch", "x_token"]
    types |= {"limit": "fp32"}
    constants |= {"x_step": 1}
    return compile_kernel(pack._gather_kernel, types, constants, aligned, capability)


def gram_kernel(d, capability):
    """The kernel of centered Gram matrices."""
    constants = {"D": d, "CHUNK": pack.CHUNK, "ROWS": pack.TOKENS, "COLUMNS": pack.FEATURES}
    types = {"x": "*bf16", "mean": "*fp32", "unit": "*fp32", "out": "*fp32"}
    aligned = [*types, "x_batch", "x_token"]
    constants |= {"x_step": 1}
    return compile_kernel(pack._gram_kernel, types, constants, aligned, capability)


def needs(compiled, folder):
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = read_tool("cuobjdump", "-res-usage", cubin)
    registers, stack = (int(re.search(rf"\b{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    assembly = read_tool("nvdisasm", "-c", cubin)
    # the shared memory that cuobjdump tells is the static part alone
    shared, warps = compiled.metadata.shared, compiled.metadata.num_warps
    mnemonics = re.findall(
        r"^\s+(?:/\*\w+\*/\s+)?(?:@\S+\s+)?([A-Z][\w.]*)", assembly, re.MULTILINE
    )
    return Needs(registers, stack, shared, warps, Counter(mnemonics))


def read_tool(name, *arguments):
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run((tool, *arguments), capture_output=True, text=True, check=True).stdout


def count(found, pattern):
    return sum(n for name, n in found.counts.items() if re.match(rf"(?:{pattern})\b", name))


# of each shipped tile in bfloat16 on capability 9.0: blocks of threads at once on a multiprocessor,
# at least, and KiB of shared memory, at most
TABLE = {
    (40, "small"): (4, 31),
    (40, "large"): (2, 37),
    (64, "small"): (4, 57),
    (64, "large"): (2, 65),
    (80, "small"): (3, 52),
    (80, "large"): (1, 61),
    (96, "small"): (3, 62),
    (96, "large"): (1, 73),
    (128, "small"): (2, 82),
    (128, "large"): (1, 97),
    (160, "small"): (1, 81),
    (160, "large"): (1, 81),
}


def test_the_table_is_of_the_tiles_that_are_shipped():
    default = read_tiles()["default"]
    assert set(TABLE) == {(d, length) for d, lengths in default.items() for length in lengths}


# one a day
@pytest.mark.parametrize(
    ("d", "length"),
    [
        pytest.param(*tile, marks=() if tile == (64, "large") else pytest.mark.slow)
        for tile in TABLE
    ],
)
def test_attention_needs_no_more_than_the_table_says(d, length, tmp_path):
    tile = read_tiles()["default"][d][length]
    found = needs(attention_kernel(d, tile, "bf16", 90), tmp_path)
    at_once, shared = TABLE[d, length]
    assert found.stack == 0, "registers are spilled"
    assert found.at_once(90) >= at_once
    assert found.shared <= shared * 1024 <= SHARED[90]
    # as many waits as products mean that the products run one after the other
    assert count(found, PRODUCTS[90]) > 2 * count(found, r"WARPGROUP\.DEPBAR") > 0
    assert count(found, r"LDGSTS\.E\.BYPASS\.128") > 0, "tiles are not copied 16 bytes at a time"


@pytest.mark.slow
@pytest.mark.parametrize("d", [64, 160])
@pytest.mark.parametrize("capability", [80, 100])
def test_attention_compiles_for_other_gpus_too(capability, d, tmp_path):
    tile = read_tiles()["default"][d]["large"]
    found = needs(attention_kernel(d, tile, "fp16", capability), tmp_path)
    assert found.stack == 0, "registers are spilled"
    assert found.shared <= SHARED[capability]
    assert count(found, PRODUCTS[capability]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("make", [map_kernel, gram_kernel])
@pytest.mark.parametrize("d", [64, 160])
def test_maps_and_gram_matrices_compile(make, d, tmp_path):
    found = needs(make(d, 90), tmp_path)
    assert found.stack == 0, "registers are spilled"
    assert found.shared <= SHARED[90]
    assert count(found, "HG?MMA") > 0
