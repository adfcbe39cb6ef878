"""Lists of tasks on a real Ray cluster of this machine: death, failure, interruption, pictures."""

import gc
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

import consist.runs.many.sets
from consist.cli import app
from consist.errors import ConsistError
from consist.runs.folder import ROWS, RunFolder
from consist.runs.many.ray_actors import RETRIES, RayEngine, connected
from consist.runs.many.sets import Painter
from consist.runs.many.worklist import unwatched

ray = pytest.importorskip("ray")
# Ray's own
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.slow]

SETS = 6
VICTIM = "cats_3"


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One cluster for all tests: ``RayEngine`` takes the one that it finds."""
    # workers do not find this module, so its classes go to them whole
    this = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(this)
    with connected(ray, None, 2):
        yield
    ray.cloudpickle.unregister_pickle_by_value(this)
    # what Ray leaves open is found here, where it is not an error, and not in a later test
    gc.collect()


class Chronicler(Painter):
    """A painter that writes down what it begins and ends, and is killed once."""

    def __init__(self, journal):
        super().__init__()
        self.journal = journal

    def __call__(self, run, watch):
        name = run.folder.path.name
        self.note(f"begun {name}")
        super().__call__(run, partial(self.die, run.folder))
        self.note(f"ended {name}")

    def note(self, line):
        with (self.journal / "lines").open("a") as file:
            file.write(f"{line} {os.getpid()}\n")

    def die(self, folder, done, count):
        """In the second row of the victim, when the first is written."""
        grave = self.journal / "grave"
        if folder.path.name == VICTIM and 2 < done < count and not grave.exists():
            grave.write_text(json.dumps(written(folder, "isolated")))
            os.kill(os.getpid(), signal.SIGKILL)


def written(folder, row):
    """When the pictures of a row were written."""
    return [folder.picture_path(index, row).stat().st_mtime_ns for index in range(2)]


def draw_sets(file, out, *options):
    given = ("--steps", 2, "--size", 64, "--compare", "--method", "shared", "--out", out, *options)
    result = CliRunner().invoke(app, ["batch", "--file", str(file), *map(str, given)])
    assert result.exit_code == 0, result.output
    return result


def test_a_worker_that_is_killed_loses_nothing_and_draws_nothing_twice(tmp_path, monkeypatch):
    scenes = "  settings: [in paris, on the moon]\n"
    sets = "".join(f"- subject: a cat\n{scenes}  seed: {seed}\n" for seed in range(SETS))
    file, journal = tmp_path / "sets.yaml", tmp_path / "journal"
    file.write_text(f"cats:\n{sets}")
    journal.mkdir()
    draw_sets(file, tmp_path / "here")
    monkeypatch.setattr(consist.runs.many.sets, "Painter", partial(Chronicler, journal))
    draw_sets(file, tmp_path / "ray", "--engine", "ray", "--workers", 2)

    lines = [line.split() for line in (journal / "lines").read_text().splitlines()]
    names = sorted(f"cats_{number}" for number in range(SETS))
    assert sorted(name for event, name, _ in lines if event == "ended") == names
    assert sorted(name for event, name, _ in lines if event == "begun") == sorted([*names, VICTIM])
    assert len({pid for _, _, pid in lines}) == 3
    before = json.loads((journal / "grave").read_text())
    assert written(RunFolder(tmp_path / "ray" / VICTIM), "isolated") == before
    for name in names:
        one, other = (RunFolder(tmp_path / engine / name) for engine in ("here", "ray"))
        assert other.read_record()["finished"]
        assert one.read_config() == other.read_config()
        for row in ROWS:
            for index in range(2):
                pictures = (run.read_picture(index, row).tobytes() for run in (one, other))
                assert len(set(pictures)) == 1, (name, row, index)
    # nothing is left over, and nothing to do
    assert not list((tmp_path / "ray").rglob(".*[!g]"))
    monkeypatch.setattr(consist.runs.many.sets, "Painter", Painter)
    monkeypatch.setattr("consist.evaluation.evaluate.load_model", None)
    assert f"{SETS} sets in" in draw_sets(file, tmp_path / "ray").output


# tasks that are no pictures


def test_what_the_user_can_mend_arrives_as_it_was_said():
    class Clerk:
        def __call__(self, task, watch):
            if task == 2:
                raise ConsistError("no room on the disk")

    with pytest.raises(ConsistError, match=r"^no room on the disk$"):
        RayEngine(workers=1)(range(4), Clerk, unwatched)


def test_a_task_that_always_kills_is_given_up_and_named():
    class Clerk:
        def __call__(self, task, watch):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ConsistError, match=f"'poison' was given up after {1 + RETRIES} tries"):
        RayEngine(workers=1)(["poison"], Clerk, unwatched)


def test_a_list_that_is_interrupted_goes_on(tmp_path):
    class Clerk:
        def __init__(self, folder):
            self.folder = folder

        def __call__(self, task, watch):
            path = Path(self.folder, f"{task}-{os.getpid()}")
            if not list(Path(self.folder).glob(f"{task}-*")):
                path.touch()

    def stop(done, count):
        told.append((done, count))
        if done == 2:
            raise KeyboardInterrupt

    told = []
    hire = partial(Clerk, str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        RayEngine(workers=2)(range(5), hire, stop)
    assert told == [(0, 5), (1, 5), (2, 5)]
    begun = {path.name for path in tmp_path.iterdir()}
    assert 2 <= len(begun) < 5
    told.clear()
    RayEngine(workers=2)(range(5), hire, lambda *progress: told.append(progress))
    assert told[-1] == (5, 5)
    names = {path.name for path in tmp_path.iterdir()}
    assert begun < names
    assert len(names) == 5


def test_a_cluster_that_is_not_there_is_said_in_one_sentence():
    ray.shutdown()
    with (
        pytest.raises(ConsistError, match=r"no Ray cluster at localhost:1: .*refused"),
        connected(ray, "localhost:1", None),
    ):
        pass
