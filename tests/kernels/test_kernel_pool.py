"""Banks in blocks: which token stands where, and who sees which block."""

import doctest

import pytest
import torch

pytest.importorskip("triton")

from consist_kernels import pool, shared_attention, tiles
from consist_kernels.pool import block_table, lay_out

CPU = torch.device("cpu")


@pytest.mark.parametrize("module", [pool, shared_attention, tiles])
def test_doctests(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


def test_every_token_has_one_slot_and_every_block_one_owner():
    owner = torch.randint(0, 4, (50,), generator=torch.Generator().manual_seed(0))
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


def test_banks_of_the_same_owners_share_one_layout():
    owner = torch.tensor([0] * 8 + [1] * 5)
    first = lay_out(owner, None, 2, 4, CPU)
    assert lay_out(owner.clone(), None, 2, 4, CPU) is first
    routed = lay_out(owner, torch.tensor([[True, False], [True, True]]), 2, 4, CPU)
    assert routed is not first
    assert routed.counts.tolist() == [0, 2]
    assert first.counts.tolist() == [2, 2]
    assert lay_out(owner, None, 2, 8, CPU) is not first
    assert lay_out(owner, None, 3, 4, CPU).counts.tolist() == [2, 2, 4]


def test_a_bank_of_whole_blocks_stays_where_it_is():
    assert lay_out(torch.tensor([0, 0, 1, 1]), None, 2, 2, CPU).index is None
    assert lay_out(torch.tensor([1, 1, 0, 0]), None, 2, 2, CPU).index.tolist() == [2, 3, 0, 1]


def test_slots_to_spare_weigh_nothing():
    layout = lay_out(torch.tensor([0, 0, 0]), None, 2, 2, CPU)
    assert layout.bias.exp().tolist() == [1, 1, 1, 0]
    assert layout.bias.isfinite().all()


def test_refuses_visibility_of_another_number_of_images():
    with pytest.raises(ValueError, match="visible is for 1 images, the batch has 2"):
        block_table(torch.tensor([0]), torch.ones(1, 1, dtype=torch.bool), 2, 32)


def test_tiles_are_those_of_the_device_or_the_default(monkeypatch):
    some = {"default": {64: {"small": "a", "large": "b"}, 160: {"small": "c", "large": "d"}}}
    some["GPU"] = {64: {"small": "e", "large": "f"}}
    monkeypatch.setattr(tiles, "read_tiles", lambda: some)
    assert tiles.choose_tile(40, 1024) == "a"
    assert tiles.choose_tile(64, 1025) == "b"
    assert tiles.choose_tile(64, 1025, "GPU") == "f"
    assert tiles.choose_tile(72, 1, "GPU") == "c"
    assert tiles.choose_tile(72, 1, "another GPU") == "c"


def test_every_tile_of_the_file_can_be_compiled():
    for lengths in (lengths for heads in tiles.read_tiles().values() for lengths in heads.values()):
        assert set(lengths) == set(tiles.LENGTHS)
        for tile in lengths.values():
            assert all(size >= 16 and size & (size - 1) == 0 for size in tile[:2])
            assert tile.warps in (1, 2, 4, 8, 16)
            assert tile.stages >= 1
