"""Lists of tasks and who does them: shards, ranks, engines, and files of sets."""

import json

import pytest
from typer.testing import CliRunner

from consist.cli import app
from consist.errors import ConsistError
from consist.runs.folder import RunFolder
from consist.runs.many.ranks import Ranks, joined
from consist.runs.many.ray_actors import RayEngine
from consist.runs.many.worklist import do_here, take_shard, unwatched

SETS = """
pets:
- subject: a cat
  settings: [in paris, on the moon]
  seed: 5
- subject: a dog
  settings: [in paris, on a beach, on the moon]
"""


# lists


def test_parts_of_a_list_hold_every_task_once():
    parts = [take_shard(range(11), f"{number}/3") for number in (1, 2, 3)]
    assert sorted(task for part in parts for task in part) == list(range(11))
    for shard in ("0/4", "5/4", "1", "a/b", "-1/2"):
        with pytest.raises(ConsistError, match="is not I/N with I from 1 to N"):
            take_shard(range(4), shard)


def test_tasks_are_done_by_one_worker_and_parts_of_them_told():
    hired, told = [], []

    def hire():
        hired.append([])

        def worker(task, watch):
            watch(1, 2)
            hired[-1].append(task)

        return worker

    do_here("abc", hire, lambda *progress: told.append(progress))
    assert hired == [["a", "b", "c"]]
    assert told == [(0.5, 3), (1.5, 3), (2.5, 3), (3, 3)]


def test_ranks_take_the_list_in_turn_and_wait_for_one_another(monkeypatch):
    waited, done, told = [], [], []
    monkeypatch.setattr("torch.distributed.barrier", lambda: waited.append(len(done)))
    for rank in range(3):
        hire = lambda rank=rank: lambda task, watch: done.append((rank, task))  # noqa: E731
        Ranks(rank, 3).do(range(7), hire, lambda *progress: told.append(progress))
    assert sorted(task for _, task in done) == list(range(7))
    assert all(task % 3 == rank for rank, task in done)
    assert waited == [3, 5, 7]
    assert told == [(3, 3)]
    Ranks().do(range(2), lambda: lambda task, watch: None, unwatched)
    assert len(waited) == 3


def test_a_process_that_was_launched_alone_is_alone(monkeypatch):
    for size in (None, "1"):
        if size:
            monkeypatch.setenv("WORLD_SIZE", size)
        with joined() as ranks:
            assert ranks == Ranks(0, 1)
            assert ranks.leads


# ray, as far as it goes without


def test_without_ray_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConsistError, match=r"pip install 'consist\[ray\]'"):
        RayEngine(workers=1)([1], lambda: None, unwatched)
    (tmp_path / "sets.yaml").write_text(SETS)
    result = invoke("--file", tmp_path / "sets.yaml", "--engine", "ray", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "pip install 'consist[ray]'" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("engine", "resources", "count"),
    [
        ({}, {"CPU": 8.0, "GPU": 4.0}, (4, 1)),
        ({"workers": 2}, {"CPU": 8.0, "GPU": 4.0}, (2, 1)),
        ({"workers": 2}, {"CPU": 8.0}, (2, 0)),
        ({"workers": 9, "device": "cpu"}, {"CPU": 8.0, "GPU": 4.0}, (9, 0)),
    ],
)
def test_there_is_a_worker_for_each_gpu_unless_told_otherwise(engine, resources, count):
    assert RayEngine(**engine)._count(resources) == count


@pytest.mark.parametrize(
    ("engine", "resources", "message"),
    [
        ({}, {"CPU": 8.0}, "no GPU to count: say how many with --workers N"),
        ({"workers": 5}, {"GPU": 4.0}, "5 workers need a GPU each, and there are 4"),
        ({"workers": 0}, {"CPU": 8.0}, "workers must be at least 1, not 0"),
    ],
)
def test_refuses_numbers_of_workers_that_cannot_be(engine, resources, message):
    with pytest.raises(ConsistError, match=message):
        RayEngine(**engine)._count(resources)


# sets


def invoke(*arguments):
    return CliRunner().invoke(app, ["batch", *map(str, arguments)])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "sets.yaml"
    path.write_text(SETS)
    return path


def test_every_set_of_a_file_is_a_run_of_its_own(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ("--file", file, "--steps", 1, "--size", 64, "--seed", 7, "--method", "sdsa")
    result = invoke(*common, "--shard", "2/2")
    assert result.exit_code == 0, result.output
    (out,) = (tmp_path / "runs").iterdir()
    assert out.name.startswith("sets-sdsa-")
    assert [path.name for path in out.iterdir()] == ["pets_1"]
    result = invoke(*common, "--json")
    assert result.exit_code == 0, result.output
    records = json.loads(result.output[result.output.index("[{") :])
    assert [record["folder"] for record in records] == [f"runs/{out.name}/pets_{i}" for i in (0, 1)]
    first, second = (RunFolder(out / name).read_config() for name in ("pets_0", "pets_1"))
    assert first.prompts == ("a cat in paris", "a cat on the moon")
    assert (first.seeds, second.seeds) == ((12, 13), (49, 50, 51))
    assert (first.method["subject"], second.method["subject"]) == (["cat"], ["dog"])
    assert not (out / "pets_0" / "isolated").exists()
    assert sorted(path.name for path in out.iterdir()) == ["pets_0", "pets_1"]


def test_a_dry_run_lists_the_sets_and_draws_nothing(file, tmp_path):
    result = invoke("--file", file, "--out", tmp_path / "out", "--same-noise", "--dry-run")
    assert result.exit_code == 0, result.output
    listed = json.loads(result.output)
    assert [one["seeds"] for one in listed] == [[5, 5], [42, 42, 42]]
    assert listed[1]["out"] == str(tmp_path / "out" / "pets_1")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--file", "sets.yaml", "a cat"), "prompts were given beside sets.yaml"),
        (("--file", "sets.yaml", "--like", "tom"), "--like goes without a file of sets"),
        (("--file", "sets.yaml", "--seed", 1, "--seed", 2), "a file of sets takes one seed"),
        (("--file", "sets.yaml", "--shard", "3/2"), "shard '3/2' is not I/N"),
        (("--file", "sets.yaml", "--engine", "rai"), "unknown engine 'rai', did you mean 'ray'?"),
        (("--file", "sets.yaml", "--workers", 2), "--workers go with --engine ray"),
        (("--file", "none.yaml"), "none.yaml"),
        (("a cat", "a dog", "--shard", "1/2"), "--shard goes with --file sets.yaml"),
        (("a cat", "a dog", "--engine", "ray"), "--engine goes with --file sets.yaml"),
    ],
)
def test_bad_input_is_one_sentence(file, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert [path.name for path in tmp_path.iterdir()] == ["sets.yaml"]
