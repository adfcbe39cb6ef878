"""The benchmark's contenders do the same work, those that only a GPU runs too."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch.nn.attention.flex_attention import flex_attention

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "attention.py"
PEERS = ("joined_masked", "merged_parts", "flex_packed", "flex_unpacked", "varlen")


@pytest.fixture(scope="module")
def bench():
    return runpy.run_path(str(SCRIPT), run_name="bench_attention")


def attend_rows(q, k, v, ends_q, ends_k, most_q, most_k):
    """What ``varlen_attn`` computes, row by row; there is none for CPUs."""
    assert (most_q, most_k) == (int(ends_q.diff().max()), int(ends_k.diff().max()))
    rows = []
    for (a, b), (c, d) in zip(spans(ends_q), spans(ends_k), strict=True):
        given = (rearrange(x, "s h d -> 1 h s d") for x in (q[a:b], k[c:d], v[c:d]))
        rows.append(rearrange(F.scaled_dot_product_attention(*given), "1 h s d -> s h d"))
    return torch.cat(rows)


def spans(ends):
    return zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("share", [1.0, 0.25])
@pytest.mark.parametrize("peer", PEERS)
def test_peers_agree_with_the_loop_over_rows(bench, peer, share, monkeypatch):
    module = SimpleNamespace(varlen_attn=attend_rows)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    monkeypatch.setitem(bench[peer].__globals__, "compiled_flex", lambda: flex_attention)
    given = bench["make_inputs"](bench["Shape"]("toy", 4, 2, 8), 3, share, "cpu", 0)
    torch.testing.assert_close(bench[peer](given), bench["row_by_row"](given))


def test_dense_attention_is_that_of_all_tokens_shared(bench):
    given = bench["make_inputs"](bench["Shape"]("toy", 4, 2, 8), 3, 1.0, "cpu", 0)
    torch.testing.assert_close(bench["dense"](given), bench["row_by_row"](given))


def test_useful_work_counts_own_and_visible_keys_alone(bench):
    given = bench["make_inputs"](bench["Shape"]("toy", 4, 2, 8), 3, 0.25, "cpu", 0)
    shared = int(given.shared[:16].sum())
    assert 0 < shared < 16
    # 2 halves x 3 images x 2 heads x 16 queries x their keys, products of 8 numbers, twice
    assert given.useful_flop() == 2 * 3 * 2 * 16 * (16 + 2 * shared) * 2 * 8 * 2
