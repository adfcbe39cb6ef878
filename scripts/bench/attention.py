"""What shared attention costs: our backends beside other ways to do the same work.

    python scripts/bench/attention.py --device cpu                # shapes of mini and SD 1.5
    python scripts/bench/attention.py --device cuda --images 2 4 8
    python scripts/bench/attention.py --only mini --share 1

All contenders get the same queries, keys and bank, and what they pack or gather is part of their
time. They take turns, so that a machine whose speed drifts treats them alike; the table gives the
median over rounds of the ratio to the fastest peer of the same round (below 1: ours is faster), and
the growth of memory. Inputs rotate, so that no cache holds them. Results are also written as JSON
to scripts/results/.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from consist.attention.backends import attend_torch, attend_triton, triton_obstacle
from consist.attention.bank import Bank, keep_tokens, pack
from consist.runs.memory import grown_mib
from consist.runs.versions import versions

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Shape:
    """Self-attention of a UNet at one resolution."""

    name: str
    side: int  # tokens
    heads: int
    d: int


SHAPES = [
    Shape("mini 16", 16, 3, 32),
    Shape("mini 8", 8, 6, 32),
    Shape("sd15 64", 64, 8, 40),
    Shape("sd15 32", 32, 8, 80),
    Shape("sd15 16", 16, 8, 160),
    Shape("sdxl 64", 64, 10, 64),
    Shape("sdxl 32", 32, 20, 64),
]
# on a CPU those whose dense peers take seconds need patience: they are left to --only
SLOW = {"sd15 64", "sdxl 64", "sdxl 32"}


@dataclass(frozen=True)
class Inputs:
    """One self-attention call."""

    q: Tensor  # (g n) h l d
    k: Tensor
    v: Tensor
    bank: Bank
    shared: Tensor  # which of all images' tokens are in the bank, bool (n l)

    def useful_flop(self) -> float:
        """Operations of both products, over own and visible keys alone."""
        rows, heads, own, d = self.q.shape
        n = self.bank.count_images(self.q)
        keys = n * own + int(self.bank.seen_by(n).sum())
        return 4.0 * d * heads * own * keys * (rows // n)


Contender = Callable[[Inputs], Tensor]


def make_inputs(shape: Shape, images: int, share: float, device: str, seed: int) -> Inputs:
    """Random tokens; all images are anchors, of which ``share`` of the tokens are shared."""
    generator = torch.Generator().manual_seed(seed)
    tokens = shape.side**2
    size = (3, 2 * images, tokens, shape.heads * shape.d)
    dtype = torch.float16 if device == "cuda" else torch.float32
    x = torch.randn(size, generator=generator).to(device, dtype)
    q, k, v = rearrange(x, "three b l (h d) -> three b h l d", h=shape.heads)
    # an ellipse, as subjects are: whole stretches of each row
    line = torch.linspace(-1, 1, shape.side)
    inside = line[:, None] ** 2 + line**2 <= (4 * share / torch.pi if share < 1 else 2)
    shared = inside.flatten().repeat(images)
    bank = pack(k, v, range(images), images=images)
    if share < 1:
        bank = keep_tokens(bank, shared)
    return Inputs(q, k, v, bank, shared)


def own_alone(given: Inputs) -> Tensor:
    """No sharing at all: not a peer, but the floor."""
    return F.scaled_dot_product_attention(given.q, given.k, given.v)


def dense(given: Inputs, backend: SDPBackend | None = None) -> Tensor:
    """All tokens of all images in one sequence, without a filter."""
    n = given.bank.count_images(given.q)
    q, k, v = (rearrange(x, "(g n) h l d -> g h (n l) d", n=n) for x in (given.q, given.k, given.v))
    with nullcontext() if backend is None else sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(q, k, v)
    return rearrange(out, "g h (n l) d -> (g n) h l d", n=n)


def joined_masked(given: Inputs, backend: SDPBackend | None = None) -> Tensor:
    """All keys beside the own ones, once per image, and a mask over them."""
    n = given.bank.count_images(given.q)
    k, v = (
        torch.cat((own, repeat(shared, "g h s d -> (g n) h s d", n=n)), 2)
        for own, shared in ((given.k, given.bank.k), (given.v, given.bank.v))
    )
    seen = F.pad(given.bank.seen_by(n), (given.k.shape[2], 0), value=True).to(k.device)
    mask = repeat(seen, "n s -> (g n) 1 l s", g=len(given.q) // n, l=given.q.shape[2])
    with nullcontext() if backend is None else sdpa_kernel(backend):
        return F.scaled_dot_product_attention(given.q, k, v, attn_mask=mask)


def row_by_row(given: Inputs) -> Tensor:
    """ConsiStory's way: a loop over the rows of the batch, with keys gathered by a mask."""
    n = given.bank.count_images(given.q)
    seen = given.bank.seen_by(n).to(given.q.device)
    rows = []
    for row in range(len(given.q)):
        half, image = divmod(row, n)
        k = torch.cat((given.k[row], given.bank.k[half][:, seen[image]]), 1)
        v = torch.cat((given.v[row], given.bank.v[half][:, seen[image]]), 1)
        rows.append(F.scaled_dot_product_attention(given.q[row][None], k[None], v[None]))
    return torch.cat(rows)


def merged_parts(given: Inputs) -> Tensor:
    """Own and shared keys by themselves, merged by log-sum-exp (Hydragen, arXiv:2402.05099)."""
    n = given.bank.count_images(given.q)
    own, own_lse = attend_with_lse(given.q, given.k, given.v)
    seen, out = given.bank.seen_by(n), torch.empty_like(own)
    for image in range(n):
        index = seen[image].nonzero()[:, 0].to(own.device)
        k, v = (x.index_select(2, index) for x in (given.bank.k, given.bank.v))
        shared, lse = attend_with_lse(given.q[image::n], k, v)
        weight = (own_lse[image::n] - lse).sigmoid().unsqueeze(-1).to(own.dtype)
        out[image::n] = shared.lerp(own[image::n], weight)
    return out


def attend_with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp of its scores, float32 ``b h l``."""
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
    return out, lse.reshape(out.shape[:3])


def flex_packed(given: Inputs) -> Tensor:
    """FlexAttention with a block mask over own and packed keys."""
    from torch.nn.attention.flex_attention import create_block_mask

    n = given.bank.count_images(given.q)
    own = given.k.shape[2]
    k, v = (
        torch.cat((x, repeat(shared, "g h s d -> (g n) h s d", n=n)), 2)
        for x, shared in ((given.k, given.bank.k), (given.v, given.bank.v))
    )
    owner = F.pad(given.bank.owner, (own, 0), value=-1).to(k.device)

    def allowed(b: Tensor, h: Tensor, q: Tensor, key: Tensor) -> Tensor:
        return owner[key] != b % n

    mask = create_block_mask(allowed, len(k), None, given.q.shape[2], k.shape[2], k.device)
    return compiled_flex()(given.q, k, v, block_mask=mask)


def flex_unpacked(given: Inputs) -> Tensor:
    """FlexAttention with a block mask over all tokens of all images, where they lie."""
    from torch.nn.attention.flex_attention import create_block_mask

    n, own = given.bank.count_images(given.q), given.k.shape[2]
    q, k, v = (rearrange(x, "(g n) h l d -> g h (n l) d", n=n) for x in (given.q, given.k, given.v))
    shared = given.shared.to(k.device)

    def allowed(b: Tensor, h: Tensor, q: Tensor, key: Tensor) -> Tensor:
        return (q // own == key // own) | shared[key]

    mask = create_block_mask(allowed, None, None, n * own, n * own, k.device)
    out = compiled_flex()(q, k, v, block_mask=mask)
    return rearrange(out, "g h (n l) d -> (g n) h l d", n=n)


def varlen(given: Inputs) -> Tensor:
    """FlashAttention over rows of any length, each with its own and visible keys."""
    from torch.nn.attention.varlen import varlen_attn

    n, (rows, _, own, _) = given.bank.count_images(given.q), given.q.shape
    seen = given.bank.seen_by(n)
    indices = [one.nonzero()[:, 0].to(given.q.device) for one in seen]
    k, v = (
        torch.cat([pack_row(x, bank, row, indices[row % n], n) for row in range(rows)])
        for x, bank in ((given.k, given.bank.k), (given.v, given.bank.v))
    )
    counts = own + seen.sum(1).repeat(rows // n)
    ends_q, ends_k = (
        F.pad(lengths.cumsum(0), (1, 0)).to(given.q.device, torch.int32)
        for lengths in (torch.full((rows,), own), counts)
    )
    q = rearrange(given.q, "b h l d -> (b l) h d")
    out = varlen_attn(q, k, v, ends_q, ends_k, own, int(counts.max()))
    return rearrange(out, "(b l) h d -> b h l d", b=rows)


def pack_row(own: Tensor, bank: Tensor, row: int, index: Tensor, n: int) -> Tensor:
    """Own and visible keys of one row of the batch, ``(s, h, d)``."""
    visible = bank[row // n].index_select(1, index)
    return rearrange(torch.cat((own[row], visible), 1), "h s d -> s h d")


@functools.cache
def compiled_flex() -> Callable[..., Tensor]:
    """FlexAttention compiled, without which it is of no use."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@dataclass(frozen=True)
class Field:
    """All that take turns, by name."""

    ours: dict[str, Contender]
    peers: dict[str, Contender]  # they do the same work
    others: dict[str, Contender]  # they do less or more: for comparison


def contenders(device: str, d: int, share: float) -> Field:
    """Who can be measured on a device; dense attention is a peer where nothing is hidden."""
    ours = {"torch": lambda x: attend_torch(x.q, x.k, x.v, x.bank)}
    peers = {"row by row": row_by_row, "merged parts": merged_parts}
    others = {"own keys alone": own_alone}
    everything = peers if share == 1 else others
    if device == "cpu":
        peers["joined, masked"] = joined_masked
        everything["dense"] = dense
        return Field(ours, peers, others)
    if triton_obstacle(torch.device(device), torch.float16, d) is None:
        ours["triton"] = lambda x: attend_triton(x.q, x.k, x.v, x.bank)
    flash, cudnn = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
    efficient = SDPBackend.EFFICIENT_ATTENTION
    peers |= {
        "joined, efficient": functools.partial(joined_masked, backend=efficient),
        "joined, cudnn": functools.partial(joined_masked, backend=cudnn),
        "flex, packed": flex_packed,
        "flex, unpacked": flex_unpacked,
        "varlen": varlen,
    }
    everything |= {
        "dense, flash": functools.partial(dense, backend=flash),
        "dense, cudnn": functools.partial(dense, backend=cudnn),
    }
    return Field(ours, peers, others)


def timed_ms(run: Callable[[Any], object], given: Any, repeats: int) -> float:
    """Milliseconds of one call, out of several in a row."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        run(given)
    synchronize()
    return 1000 * (time.perf_counter() - started) / repeats


@torch.no_grad()
def measure(shape: Shape, images: int, share: float, args: argparse.Namespace) -> list[dict]:
    """One row of results for each contender."""
    # a limit to what one function may be compiled for would leave FlexAttention uncompiled
    torch.compiler.reset()
    sets = [make_inputs(shape, images, share, args.device, seed) for seed in range(args.sets)]
    field = contenders(args.device, shape.d, share)
    runs, failed = {**field.others, **field.peers, **field.ours}, {}
    truth = row_by_row(sets[0])
    for name, run in list(runs.items()):
        try:
            error = (run(sets[0]) - truth).norm() / truth.norm()
        except Exception as reason:
            # what a compiler may raise is no closed list
            failed[name] = (str(reason) or type(reason).__name__).splitlines()[0]
            del runs[name]
            continue
        if name not in field.others and error > 1e-2:
            raise SystemExit(f"{name} is wrong: relative error {error:.1e}")
    memory = {name: grown_mib(functools.partial(run, sets[0])) for name, run in runs.items()}
    slowest = max(timed_ms(run, sets[0], 1) for run in runs.values())
    repeats = max(1, min(50, int(args.round_ms / slowest)))
    rounds = [
        {name: timed_ms(run, sets[i % len(sets)], repeats) for name, run in runs.items()}
        for i in range(args.rounds)
    ]
    best = [min(times[name] for name in field.peers if name in runs) for times in rounds]
    about = {"shape": shape.name, "images": images, "share": share}
    rows: list[dict] = []
    for name in runs:
        ratios = [times[name] / least for times, least in zip(rounds, best, strict=True)]
        spread = {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        ms = statistics.median(times[name] for times in rounds)
        row = {**about, "contender": name, "ms": ms, **spread, "mib": memory[name]}
        if name not in field.others:
            row["tflops"] = 1e-9 * sets[0].useful_flop() / ms
        rows.append(row)
    rows += [{**about, "contender": name, "failed": why} for name, why in failed.items()]
    return rows


def ceilings(device: str) -> dict[str, float]:
    """What this machine can do at all: a product of matrices, and a copy."""
    size, dtype = (8192, torch.float16) if device == "cuda" else (1024, torch.float32)
    x = torch.randn(size, size, device=device).to(dtype)
    times = {
        name: min(timed_ms(run, x, 3) for _ in range(5))
        for name, run in (("product", lambda x: x @ x), ("copy", lambda x: x.clone()))
    }
    return {
        "product_tflops": 2e-9 * size**3 / times["product"],
        "copy_gb_per_s": 2e-6 * x.nbytes / times["copy"],
    }


def clocks() -> str:
    """Clock now and at most, and the limit of power, as the driver tells."""
    query = "--query-gpu=clocks.sm,clocks.max.sm,power.limit"
    asked = ["nvidia-smi", query, "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--images", type=int, nargs="+", default=[4])
    parser.add_argument("--share", type=float, nargs="+", default=[1.0, 0.25])
    parser.add_argument("--only", nargs="+", default=[], help="beginnings of shapes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--round-ms", type=float, default=100, help="of each contender")
    parser.add_argument("--sets", type=int, default=3, help="of inputs that take turns")
    parser.add_argument("--out", type=Path, help="of the JSON; by default named by the machine")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "error: --device cuda needs a CUDA device, and there is none here\n")
    # in the order that is asked for
    shapes = [s for start in args.only or [""] for s in SHAPES if s.name.startswith(start)]
    if args.device == "cpu" and not args.only:
        shapes = [shape for shape in shapes if shape.name not in SLOW]
    if not shapes:
        known = ", ".join(shape.name for shape in SHAPES)
        parser.exit(2, f"error: no shape begins with {args.only}; there are {known}\n")

    machine = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    about = {"machine": machine, "threads": torch.get_num_threads(), **versions()}
    about["cudnn"] = str(torch.backends.cudnn.version())
    if args.device == "cuda":
        about["clocks"] = clocks()
    about |= {name: round(rate, 2) for name, rate in ceilings(args.device).items()}
    print(about)
    print(f"{'shape':>8} {'n':>2} {'share':>5} {'contender':>18} {'ms':>9} {'x peer':>7}", end="")
    print(f" {'min..max':>13} {'MiB':>7} {'TFLOP/s':>8}")
    path = args.out or RESULTS / f"bench_attention-{'-'.join(machine.lower().split())}.json"
    path.parent.mkdir(exist_ok=True)
    rows: list[dict] = []
    for shape, images, share in itertools.product(shapes, args.images, args.share):
        found = measure(shape, images, share, args)
        print(*map(format_row, found), sep="\n", flush=True)
        rows += found
        # at once, so that a run that is cut short leaves what it has
        path.write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n")
    print(f"written to {path}")


def format_row(row: dict) -> str:
    if "failed" in row:
        return f"{row['shape']:>8} {row['contender']:>27} cannot: {row['failed'][:80]}"
    spread = f"{row['least']:.2f}..{row['most']:.2f}"
    rate = f"{row['tflops']:8.2f}" if "tflops" in row else ""
    return (
        f"{row['shape']:>8} {row['images']:2} {row['share']:5.2f} {row['contender']:>18} "
        f"{row['ms']:9.3f} {row['ratio']:7.2f} {spread:>13} {row['mib']:7.1f} {rate}"
    )


if __name__ == "__main__":
    main()
