"""How do time and memory go with the number of workers, for many sets?

``python scripts/bench/workers.py --sets 40 --workers 1 2`` draws the same sets with each number of
Ray's workers, on this machine, and prints

- start: seconds until the first worker has loaded its model and begins;
- drawing: from there to the end of the last set, sets per minute, and the speed-up over the first;
- each worker's memory after its first set, at its most and after its last, in MiB: what it shares
  with others counted in full (RSS) and in parts (PSS), which add up over workers; likewise its
  threads and open files, and the hooks and processors that are left on its model;
- of that, the weights that are memory-mapped safetensors: those that are stored in the dtype that
  they run in. ``--stored`` makes such a copy of the model first.

The pictures of all numbers of workers are compared byte by byte.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from consist.cli.console import hide_loading_bars
from consist.models.devices import describe, pick_device
from consist.models.loading import load
from consist.runs.config import RunConfig
from consist.runs.many.benchmarks import load_benchmark, select
from consist.runs.many.ray_actors import RayEngine
from consist.runs.many.sets import Painter, SetRun, plan_sets
from consist.runs.many.worklist import Watch
from consist.runs.memory import count_held

FIELDS = {"Rss:": "rss", "Pss:": "pss"}


def memory_mib() -> dict[str, float]:
    """Memory of this process, and that of its mapped weights, by kind."""
    whole = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    found = {"rss": 0.0, "pss": 0.0, "mapped rss": 0.0, "mapped pss": 0.0}
    for line in whole:
        add(found, "", line)
    weights = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split()[0].endswith(":"):
            weights = line.endswith(".safetensors")
        elif weights:
            add(found, "mapped ", line)
    return found


def add(found: dict[str, float], kind: str, line: str) -> None:
    """Adds a line such as ``Rss: 12 kB``."""
    name, value = line.split()[:2]
    if name in FIELDS:
        found[kind + FIELDS[name]] += int(value) / 1024


class Timed(Painter):
    """A painter that writes down when it drew, and how much memory it had then."""

    def __init__(self, journal: Path):
        super().__init__()
        self.journal = journal

    def __call__(self, run: SetRun, watch: Watch) -> None:
        self.model_for(run.config)
        begun = time.time()
        super().__call__(run, watch)
        held = count_held(self.model_for(run.config).pipe.unet)
        note = {"begun": begun, "ended": time.time(), **memory_mib(), **held}
        with (self.journal / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(note) + "\n")


def measure(workers: int, runs: list[SetRun], hire: Callable[[], Timed], journal: Path) -> dict:
    """Draws all runs and reads what the workers wrote."""
    started = time.time()
    RayEngine(workers=workers)(runs, hire, lambda done, count: None)
    notes = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(journal.glob("*.jsonl"))
    ]
    first = min(note["begun"] for lines in notes for note in lines)
    last = max(note["ended"] for lines in notes for note in lines)
    return {"start": first - started, "drawing": last - first, "notes": notes}


def count_alike(one: list[SetRun], other: list[SetRun]) -> int:
    """How many sets have the same pixels in both."""
    alike = 0
    for a, b in zip(one, other, strict=True):
        count = range(len(a.config.prompts))
        pairs = ((run.folder.read_picture(i).tobytes() for run in (a, b)) for i in count)
        alike += all(len(set(pair)) == 1 for pair in pairs)
    return alike


def store(model: str, folder: Path) -> str:
    """Writes a model in the dtype that it runs in here."""
    load(model).pipe.save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=int, default=40)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--benchmark", default="mini-sets")
    parser.add_argument("--stored", action="store_true", help="store the model as it runs first")
    options = parser.parse_args()
    hide_loading_bars()
    with tempfile.TemporaryDirectory() as name:
        bench(options, Path(name))


def bench(options: argparse.Namespace, place: Path) -> None:
    """Measures each number of workers, and prints a table."""
    model = store(options.model, place / "model") if options.stored else options.model
    sets = select(load_benchmark(options.benchmark), limit=options.sets)
    template = RunConfig(prompts=("a",), seeds=(0,), model=model, steps=options.steps)
    times = Table("workers", "start, s", "drawing, s", "sets/min", "speed-up", "same pixels")
    memory = Table("workers", "MiB, or count", "first", "most", "last", "sum of the last")
    drawn: dict[int, list[SetRun]] = {}
    slowest = 0.0
    for workers in options.workers:
        journal = place / f"journal-{workers}"
        journal.mkdir()
        drawn[workers] = plan_sets(sets, template, place / str(workers))
        found = measure(workers, drawn[workers], partial(Timed, journal), journal)
        slowest = slowest or found["drawing"]
        alike = count_alike(drawn[options.workers[0]], drawn[workers])
        times.add_row(
            str(workers),
            f"{found['start']:.1f}",
            f"{found['drawing']:.1f}",
            f"{len(sets) * 60 / found['drawing']:.1f}",
            f"{slowest / found['drawing']:.2f}",
            f"{alike} of {len(sets)}",
        )
        for kind in [name for name in found["notes"][0][0] if name not in ("begun", "ended")]:
            values = [[note[kind] for note in lines] for lines in found["notes"]]
            ends = [
                " ".join(f"{pick(one):.0f}" for one in values)
                for pick in (lambda one: one[0], max, lambda one: one[-1])
            ]
            memory.add_row(str(workers), kind, *ends, f"{sum(one[-1] for one in values):.0f}")
    console = Console()
    print(
        f"{len(sets)} sets, {options.steps} steps, {options.model}; {describe(pick_device('auto'))}"
    )
    print(f"{os.cpu_count()} cores, one thread for each worker that has no GPU")
    console.print(times, memory)


if __name__ == "__main__":
    main()
