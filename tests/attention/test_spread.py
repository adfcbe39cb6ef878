"""One batch spread over processes: the bank that each sees, and the pictures that all draw."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pictures import largest_difference

import consist.runs.many.one_batch
from consist.attention.bank import Bank, attend, pack
from consist.attention.batch_split import Spread
from consist.errors import ConsistError
from consist.runs.chunks import Chunk
from consist.runs.config import RunConfig
from consist.runs.drawing import Batch, generate
from consist.runs.folder import RunFolder
from consist.runs.many.one_batch import Leader, generate_across, refuse_unspread
from consist.runs.many.ranks import Ranks
from consist.runs.many.worklist import unwatched

TESTS = Path(__file__).parents[1]
PROMPTS = tuple(f"a cat {place}" for place in ("in paris", "on the moon", "on a beach", "in paris"))
# of 255: banks are the same to the bit, but batches of other sizes add up in another order
LEVELS = 2


def torchrun(*arguments):
    """Runs two processes on the CPU."""
    command = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    place = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0")
    line = [*command, *place, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


# the bank


def test_the_images_are_dealt_in_turn():
    assert [Spread(images=5, rank=rank, count=2).own for rank in range(2)] == [(0, 2, 4), (1, 3)]
    assert Spread(images=5, rank=0, count=2).most([0, 1, 2]) == 2
    assert Spread(images=5, rank=0, count=2).most([3]) == 1


@pytest.mark.parametrize(("images", "rank", "count"), [(1, 0, 2), (4, 2, 2), (4, -1, 2)])
def test_refuses_processes_without_images(images, rank, count):
    with pytest.raises(ValueError, match="at least one image for each process"):
        Spread(images=images, rank=rank, count=count)


@pytest.mark.parametrize("routed", [False, True])
def test_each_image_sees_of_a_local_bank_what_it_saw_of_the_whole(routed):
    torch.manual_seed(0)
    images, halves = 5, 2
    q, k, v = torch.randn(3, halves * images, 2, 6, 4, dtype=torch.float64)
    bank = pack(k, v, [0, 1, 3], images=images)
    if routed:
        # owners of several kinds, and images that see some of them alone
        owner = bank.owner + images * (torch.arange(len(bank.owner)) % 3)
        visible = torch.rand(images, 3 * images) < 0.6
        bank = Bank(k=bank.k, v=bank.v, owner=owner, visible=visible)
    whole = attend(q, k, v, bank).unflatten(0, (halves, images))
    for rank in range(2):
        spread = Spread(images=images, rank=rank, count=2)
        mine = list(spread.own)
        own = [x.unflatten(0, (halves, images))[:, mine].flatten(0, 1) for x in (q, k, v)]
        found = attend(*own, spread.localize(bank)).unflatten(0, (halves, len(mine)))
        torch.testing.assert_close(found, whole[:, mine], rtol=1e-12, atol=1e-12)


# pictures

METHODS = {
    "isolated": {"name": "isolated"},
    "shared": {"name": "shared", "strength": 2.0},
    "random": {"name": "shared", "anchors": "random", "halves": "conditional"},
    "spectral": {"name": "spectral", "anchors": 1},
    "common": {"name": "spectral", "anchors": 3},
    "notch": {"name": "notch", "anchors": 3},
    "storydiffusion": {"name": "storydiffusion"},
    "sdsa": {"name": "sdsa", "subject": ["cat"], "anchors": 3},
}
THREE = {"prompts": PROMPTS[:3], "seeds": (0, 1, 2)}


def config(method, **changes):
    layers = {} if method["name"] == "isolated" else {"layers": ["down_blocks", "up_blocks"]}
    given = {
        **{"prompts": PROMPTS, "seeds": (0, 1, 2, 3), "steps": 2},
        **{"width": 64, "height": 64, "method": {**method, **layers}},
    }
    return RunConfig(**{**given, **changes})


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """Runs that two processes drew, and some that they could not."""
    folder = tmp_path_factory.mktemp("spread")
    runs = {name: config(method) for name, method in METHODS.items()}
    runs["chunks"] = config(METHODS["spectral"], batch_size=2, **THREE)
    runs["compared"] = config(METHODS["sdsa"], compare=True, **THREE)
    runs["alone"] = config(METHODS["shared"], prompts=PROMPTS[:1], seeds=(0,))
    runs["stylealigned"] = config({"name": "stylealigned"})
    plain = {name: one.to_json() for name, one in runs.items()}
    (folder / "runs.json").write_text(json.dumps(plain))
    torchrun(TESTS / "spreading.py", folder)
    return folder, {
        name: one for name, one in runs.items() if name not in ("alone", "stylealigned")
    }


@pytest.mark.slow
def test_pictures_of_two_processes_are_those_of_one(spread, tmp_path, model_for):
    folder, runs = spread
    for name, run in runs.items():
        expected, found = (
            generate(run, tmp_path / name, model_for=model_for),
            RunFolder(folder / name),
        )
        assert found.read_record()["finished"]
        assert found.read_config() == run
        for row in ("", "isolated") if run.compare else ("",):
            for index in range(len(run.prompts)):
                pair = found.read_picture(index, row), expected.read_picture(index, row)
                assert largest_difference(*pair) <= LEVELS, (name, row, index)


@pytest.mark.slow
def test_sharing_changes_these_pictures(spread):
    folder, _ = spread
    isolated, *others = (RunFolder(folder / name).read_picture(1) for name in METHODS)
    assert all(largest_difference(isolated, other) > 5 * LEVELS for other in others)


@pytest.mark.slow
def test_what_cannot_be_spread_is_said_and_the_rest_goes_on(spread):
    folder, _ = spread
    too_few = "2 processes were started for a batch of 1 pictures"
    # the other one is not asked for anything
    assert too_few in (folder / "alone-0.txt").read_text()
    assert not (folder / "alone-1.txt").exists()
    for rank in range(2):
        said = (folder / f"stylealigned-{rank}.txt").read_text()
        assert "stylealigned cannot be spread over processes: queries and keys" in said
    assert not (folder / "stylealigned").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": {"name": "consistory"}}, "features of the anchors are injected"),
        ({"method": {"name": "one-prompt"}}, "all pictures from one prompt"),
        ({"anchor_prompts": ("a cat",), "anchor_seeds": (0,), "cache": "x"}, "with a cache"),
    ],
)
def test_refuses_what_needs_all_pictures_in_one_batch(changes, reason):
    with pytest.raises(ConsistError, match=reason):
        refuse_unspread(RunConfig(prompts=PROMPTS, seeds=(0, 1, 2, 3), **changes))


def test_the_others_are_not_told_to_go_in_the_middle_of_a_chunk(monkeypatch, tmp_path):
    def fail(*given, **options):
        raise ConsistError("no room")

    def draw_one(*given, drawn_by):
        return drawn_by(Batch(pipe=None, config=run, settings=None, chunk=chunk, method=None))

    run = RunConfig(prompts=PROMPTS, seeds=(0, 1, 2, 3), method={"name": "spectral"})
    chunk = Chunk((0, 1), (0, 1))
    told, leader = [], Leader(Ranks(0, 2))
    monkeypatch.setattr(consist.runs.many.one_batch, "tell", told.append)
    monkeypatch.setattr(consist.runs.many.one_batch, "Leader", lambda ranks: leader)
    monkeypatch.setattr(consist.runs.many.one_batch, "generate", fail)
    with pytest.raises(ConsistError, match="no room"):
        generate_across(Ranks(0, 2), run, tmp_path, unwatched)
    assert told == [None]
    told.clear()
    monkeypatch.setattr(consist.runs.many.one_batch, "generate", draw_one)
    monkeypatch.setattr(consist.runs.many.one_batch, "draw_share", fail)
    with pytest.raises(ConsistError, match="no room"):
        generate_across(Ranks(0, 2), run, tmp_path, unwatched)
    assert told == [(chunk, None)]


# the command


@pytest.mark.slow
def test_torchrun_draws_one_set_with_the_command_line(tmp_path):
    prompts = ("a cat in paris", "a cat on the moon", "a cat on a beach")
    asked = ("--steps", 2, "--size", 64, "--method", "spectral", "--set", "masks=matches")
    done = torchrun("-m", "consist", "batch", *prompts, *asked, "--out", tmp_path / "two")
    assert done.stdout.count("all in one picture") == 1
    method = {"name": "spectral", "masks": "matches"}
    given = {"prompts": prompts, "seeds": (0, 1, 2), "steps": 2, "width": 64, "height": 64}
    one = generate(RunConfig(**given, method=method), tmp_path / "one")
    two = RunFolder(tmp_path / "two")
    assert two.read_config() == one.read_config()
    for index in range(3):
        assert largest_difference(one.read_picture(index), two.read_picture(index)) <= LEVELS
