"""What training on photos gives on `mini`, where the truth is known, and what it costs.

    python scripts/measure/training.py --quick        # a try of minutes
    python scripts/measure/training.py                # 4 subjects, 150 and 300 steps
    python scripts/measure/training.py --subjects 8 --at 150 300 600  # goes on from the above

Each subject is an identity that `mini` has never seen, of a class of its own, with 4 renders as
photos. Every way to learn it is trained once; after so many steps it draws the subject in 4 scenes
that no photo shows, one of which `mini` has never seen with that class, and its class without more
words. The reader says how much of the true identity is there, how often the scene, and what became
of the class. Ways without training are drawn from the same noise: those that look at photos share
with them, and the others have no subject but their own, so only the identity in the set says
something of them.

Memory is what training adds to a fresh process over the loaded model. Class images are drawn once
for all trainings of a subject. What is finished is kept in --out, and is not done again.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import diffusers
from learning.copies import CHOICES
from learning.known_subjects import SHOWN, Known, chance_of, make_known, reached_by_photos
from learning.learners import LEARNERS, Learner, discard
from learning.learning_curve import (
    FREE,
    Course,
    Entry,
    added_mib,
    configure,
    measure_free,
    measure_learner,
)
from learning.summary import KEPT, Standing, stand, write_standings
from rich.console import Console
from rich.table import Table

from consist.cli.console import err, hide_loading_bars, say
from consist.errors import ConsistError, unknown
from consist.evaluation.ablation.results import name_cpu
from consist.evaluation.intervals import Interval
from consist.evaluation.judges.by_reader import mean_known
from consist.mini.reader import Reader, load_reader
from consist.models.devices import describe, pick_device
from consist.models.loading import MINI
from consist.runs.loading import SharedModel
from consist.runs.many.worklist import take_shard
from consist.runs.versions import versions
from consist.training.config import TrainConfig
from consist.training.rare_words import Tokenizers

SUBJECTS, AT, CLASS_PICTURES = 4, (150, 300), 10
QUICK = {"subjects": 1, "at": [10], "class_pictures": 4, "steps": 4}
QUICK_TRAINING = {"class_images": 2}
MEMORY_STEPS = 2
# of the table: values, then what is told against the base model
VALUES = ("identity", "within", "subject", "copies", "shown", "class_subject")
GAINS = ("scene", KEPT)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a try of minutes: one subject, few steps")
    add("--subjects", type=int, help=f"how many; {SUBJECTS}")
    add("--at", type=int, nargs="+", help="steps after which pictures are drawn, ascending")
    add("--class-pictures", type=int, help=f"of each class; {CLASS_PICTURES}")
    add("--steps", type=int, help="denoising steps; 10")
    add("--only", nargs="+", default=[], metavar="NAME", help="ways to learn, by name")
    add("--shard", default="1/1", help="do part I of N of the subjects only, as I/N")
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--out", type=Path, default=Path("runs/training"), help="folder of all work, to resume")
    add("--results", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args()
    defaults = {"subjects": SUBJECTS, "at": list(AT), "class_pictures": CLASS_PICTURES, "steps": 10}
    for name, value in (QUICK if options.quick else defaults).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    be_quiet()
    try:
        answer(options)
    except ConsistError as error:
        parser.exit(2, f"error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "stopped. What is finished is kept; the same command continues.\n")


def answer(options: argparse.Namespace) -> None:
    learners = choose(options.only)
    known = make_known(options.subjects, options.seed)
    course = Course(
        out=options.out / ("quick" if options.quick else "whole"),
        identifier=Tokenizers.load(MINI).find(1)[0].word,
        at=tuple(sorted(options.at)),
        class_pictures=options.class_pictures,
        steps=options.steps,
        seed=options.seed,
        device=options.device,
        training=QUICK_TRAINING if options.quick else {},
    )
    reader = load_reader(str(pick_device(options.device)))
    own = take_shard(known, options.shard)
    entries = measure(learners, own, course, reader)
    if len(own) < len(known):
        say(f"part {options.shard} is finished; without --shard the results are written")
        return
    memory = measure_memory(learners, known[0], course)
    standings = stand(entries)
    facts = state(options, course, known, reader, memory)
    Console(width=None if err.is_terminal else 200).print(tabulate(standings, facts))
    folder = course.out if options.quick else options.results
    for path in write_standings(standings, entries, facts, folder, "training"):
        say(str(path))


def choose(names: Sequence[str]) -> list[Learner]:
    for name in names:
        if name not in (known := [one.name for one in LEARNERS]):
            raise ConsistError(unknown("way to learn", name, known))
    return [one for one in LEARNERS if not names or one.name in names]


def measure(
    learners: Sequence[Learner], known: Sequence[Known], course: Course, reader: Reader
) -> list[Entry]:
    """Of each way all subjects, one after another."""
    model = SharedModel()
    free: dict[str, list[Entry]] = {way.name: [] for way in FREE}
    learned: dict[str, list[Entry]] = {learner.name: [] for learner in learners}
    for one in known:
        say(f"{one.name}: without training", err)
        for way in FREE:
            free[way.name].append(measure_free(way, one, course, reader, model))
        for learner in learners:
            learned[learner.name] += measure_learner(
                learner, one, course, reader, lambda text: say(text, err)
            )
    return [entry for group in (*free.values(), *learned.values()) for entry in group]


def measure_memory(
    learners: Sequence[Learner], known: Known, course: Course
) -> Mapping[str, float]:
    """MiB by the names of learners."""
    found = {}
    for learner in learners:
        # class images are there already: drawing them is another matter
        out = course.folder(known) / f"memory-{learner.out_name}"
        config = configure(learner, known, course, steps=MEMORY_STEPS, out=str(out))
        discard(config)
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            found[learner.name] = round(fresh.submit(quietly_added_mib, config).result(), 1)
        discard(config)
    return found


def quietly_added_mib(config: TrainConfig) -> float:
    be_quiet()
    return added_mib(config)


def be_quiet() -> None:
    hide_loading_bars()
    diffusers.utils.logging.set_verbosity_error()
    # that `mini` does not know the identifier is the point
    logging.getLogger("consist").setLevel(logging.ERROR)


def state(
    options: argparse.Namespace,
    course: Course,
    known: Sequence[Known],
    reader: Reader,
    memory: Mapping[str, float],
) -> dict[str, Any]:
    """How it was done."""
    chances = [chance_of(one) for one in known]
    return {
        "title": __doc__.splitlines()[0],
        "question": __doc__.strip(),
        "command": command(options),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(MINI),
        "hardware": {"device": describe(pick_device(options.device)), "cpu": name_cpu()},
        "seed": options.seed,
        "identifier": course.identifier,
        "drawing": {name: getattr(course, name) for name in ("steps", "scheduler", "guidance")},
        "training": dict(course.training),
        "class_pictures": course.class_pictures,
        "choices": {"reader": reader.digest, "shown_from": SHOWN, "copies": CHOICES},
        "chance": {name: round(mean_known(c[name] for c in chances), 5) for name in chances[0]},
        "photos": round(mean_known(reached_by_photos(one, reader) for one in known), 5),
        "memory_mib": dict(memory),
        "known": [
            {"name": one.name, **one.truth, "scenes": one.scenes, "photos": photo_scenes(one)}
            for one in known
        ],
    }


def photo_scenes(known: Known) -> list[str]:
    return [photo.scene for photo in known.photos]


def command(options: argparse.Namespace) -> str:
    """What to type for the same again; folders are left out."""
    words = ["python scripts/measure/training.py"]
    words += ["--quick"] if options.quick else []
    words += [f"--subjects {options.subjects}", f"--at {' '.join(map(str, options.at))}"]
    words += [f"--class-pictures {options.class_pictures}", f"--steps {options.steps}"]
    words += [f"--only {' '.join(map(repr, options.only))}"] if options.only else []
    return " ".join([*words, f"--seed {options.seed}"])


def tabulate(standings: Sequence[Standing], facts: Mapping[str, Any]) -> Table:
    """Ways by what they reach."""
    titles = {
        "identity": "identity",
        "within": "in the set",
        "subject": "class",
        "copies": "copies",
        "shown": "class is subject",
        "class_subject": "class kept",
        "scene": "scene - base",
        KEPT: "diversity / base",
    }
    heads = [titles[name] for name in (*VALUES, *GAINS)]
    table = Table("way", "steps", *heads, "train s", "s/picture", "MiB", box=None)
    table.title = facts["title"]
    for one in standings:
        cells = [cell(one.values[name]) for name in VALUES]
        cells += [cell(one.gains[name]) for name in GAINS]
        training = sum(one.costs[k].value for k in ("training", "class images") if k in one.costs)
        cells += [f"{training:.0f}", f"{one.costs['picture'].value:.2f}"]
        memory = facts["memory_mib"].get(one.name)
        steps = "-" if one.steps is None else str(one.steps)
        table.add_row(one.name, steps, *cells, "-" if memory is None else f"{memory:.0f}")
    table.add_row("the photos", "", f"{facts['photos']:.3f}")
    table.add_row(
        "chance",
        "",
        f"{facts['chance']['identity']:.3f}",
        *[""] * 3,
        f"{facts['chance']['shown']:.3f}",
    )
    return table


def cell(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "-"
    low, high = interval.low, interval.high
    return f"{interval.value:.3f}" + ("" if math.isnan(low) else f"\n\\[{low:.3f} {high:.3f}]")


if __name__ == "__main__":
    main()
