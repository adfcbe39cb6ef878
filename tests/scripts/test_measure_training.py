"""What is known of subjects, what pictures tell of them, and how ways to learn are compared."""

import io
import json
import logging
import math
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import numpy as np
import pytest
from learning import learning_curve as course_module
from learning.copies import COPIED, Originals
from learning.curve_plot import Curve, Panel, draw_curves
from learning.known_subjects import (
    PHOTOS,
    SHOWN,
    chance_of,
    find_class,
    make_known,
    reached_by_photos,
    score_class,
    score_subject,
    seen_identities,
    write_photos,
)
from learning.learners import LEARNERS, TOKEN, Learner, drawn_with
from learning.learning_curve import BASE, FREE, Course, Entry, measure_free, measure_learner
from learning.summary import KEPT, plot, stand, write_standings
from PIL import Image, ImageEnhance, ImageOps
from readings import REST

from consist.errors import ConsistError
from consist.evaluation.intervals import Interval
from consist.mini.reader import Reading, SubjectReading, Value, load_reader
from consist.mini.scenes import SCENES
from consist.mini.world import HELD_OUT, Figure, Picture, draw, sample_identity, sample_pose
from consist.runs.folder import RunFolder
from consist.runs.loading import SharedModel
from consist.training.config import DREAMBOOTH, KINDS, LORA, SUITED, TEXTUAL_INVERSION
from consist.training.mini.autoencoder import picture

SCRIPT = Path(__file__).parents[2] / "scripts" / "measure" / "training.py"
MASK = np.ones((4, 4), dtype=bool)


@pytest.fixture(autouse=True)
def little_seen(monkeypatch):
    """Fewer pictures of the world to look through, but for the test that counts them."""
    monkeypatch.setattr("learning.known_subjects.seen_identities", frozenset)


@pytest.fixture
def known():
    return make_known(1)[0]


def reading(known, scene, noun=None, **changes):
    """What a reader would say of the subject, were some attributes others."""
    absent = {name: value or "none" for name, value in known.truth.items()}
    values = {**REST, **absent, **changes}
    figure = SubjectReading(
        Value(noun or known.noun, 1.0), {k: Value(v, 1.0) for k, v in values.items()}, MASK
    )
    return Reading(Value(scene, 1.0), Value("flat", 1.0), (figure,), np.zeros(3, np.float32))


# the subjects


def test_subjects_are_new_to_mini_and_so_are_their_scenes():
    subjects = make_known(8)
    assert len({one.noun for one in subjects}) == 8
    for one in subjects:
        places = [photo.scene for photo in one.photos]
        assert (one.noun, one.scenes[0]) in HELD_OUT
        assert len({*places, *one.scenes}) == PHOTOS + len(one.scenes)
        assert all(figure.identity == one.identity for p in one.photos for figure in p.figures)
    assert make_known(3) == subjects[:3]
    assert make_known(1, seed=1)[0].identity != subjects[0].identity


def test_an_identity_that_mini_has_seen_is_passed_over(monkeypatch, known):
    monkeypatch.setattr("learning.known_subjects.seen_identities", lambda: {known.identity})
    assert make_known(1)[0].identity != known.identity


def test_what_mini_has_seen_is_what_it_is_trained_on(monkeypatch):
    monkeypatch.setattr("learning.known_subjects.Recipe", lambda: type("R", (), {"pictures": 40}))
    seen_identities.cache_clear()
    assert seen_identities() == {f.identity for i in range(40) for f in picture(i).figures}
    seen_identities.cache_clear()


def test_photos_are_renders_with_captions(tmp_path, known):
    folder = write_photos(known, tmp_path / "photos", "th bus")
    assert [p.name for p in sorted(folder.iterdir())][:2] == ["0.png", "0.txt"]
    phrase = SCENES[known.photos[0].scene].phrase
    assert (folder / "0.txt").read_text() == f"a th bus {phrase}"
    before = (folder / "0.png").stat().st_mtime_ns
    write_photos(known, folder, "th bus")
    assert (folder / "0.png").stat().st_mtime_ns == before
    assert reached_by_photos(known, load_reader()) > 0.8


# what pictures tell


def test_identity_is_what_agrees_with_the_truth(known):
    first, *others = known.scenes
    same = [reading(known, first), *(reading(known, scene) for scene in others)]
    told = score_subject(known, same)
    assert told == {"identity": 1.0, "within": 1.0, "scene": 1.0, "subject": 1.0}
    color = next(c for c in ("red", "blue") if c != known.truth["color"])
    applicable = sum(value is not None for value in known.truth.values())
    changed = score_subject(known, [reading(known, s, color=color) for s in known.scenes])
    assert changed["identity"] == pytest.approx(1 - 1 / applicable)
    # alike among themselves, whoever they are
    assert changed["within"] == 1.0


def test_another_class_or_scene_is_told_apart(known):
    _, second, *others = known.scenes
    readings = [reading(known, second), reading(known, second, noun="frog", color="red")]
    told = score_subject(known, [*readings, *(reading(known, scene) for scene in others)])
    assert told["scene"] == pytest.approx(3 / 4)
    assert told["subject"] == pytest.approx(3 / 4)
    assert told["identity"] == 1.0  # of those whose class is right


def test_a_class_that_became_the_subject_has_no_diversity_left(known):
    same = score_class(known, [reading(known, "moon")] * 3)
    assert same["diversity"] == 0
    assert same["shown"] == same["class_identity"] == same["class_subject"] == 1
    rng = Random(0)
    others = [vars(sample_identity(rng, known.noun)) for _ in range(30)]
    mixed = [
        reading(known, "moon", **{k: v or "none" for k, v in o.items() if k in known.truth})
        for o in others
    ]
    told = score_class(known, mixed)
    assert told["diversity"] > 0.4
    assert told["shown"] < 0.2
    assert told["class_identity"] == pytest.approx(chance_of(known)["identity"], abs=0.1)
    gone = score_class(known, [reading(known, "moon", noun="frog")])
    assert gone["class_subject"] == 0
    assert math.isnan(gone["diversity"])


def test_chance_counts_as_pictures_do(known):
    chance = chance_of(known)
    assert 0.2 < chance["identity"] < 0.6
    assert 0 < SHOWN <= 1
    assert chance["shown"] < 0.1
    assert find_class(known, [reading(known, "moon", noun="frog")]) == []


# copies


def render(rng, identity, scene):
    figure = Figure(identity=identity, pose=sample_pose(rng))
    return draw(Picture(figures=(figure,), scene=scene, scene_seed=rng.randrange(99))).image


def compressed(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=20)
    return Image.open(buffer)


WAYS = {
    "cut": lambda image: image.crop((5, 10, 114, 119)),
    "cut more": lambda image: image.crop((20, 6, 116, 102)).resize((128, 128)),
    "mirrored": lambda image: ImageOps.mirror(image).crop((8, 8, 120, 120)),
    "paler": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "compressed": compressed,
    "turned": lambda image: image.rotate(3),
    "tinted": lambda image: Image.blend(image, Image.new("RGB", image.size, "blue"), 0.3),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_is_found_whatever_was_done_to_it(way):
    rng = Random(1)
    photos = [render(rng, sample_identity(rng), scene) for scene in ("paris", "cave", "kitchen")]
    for number, photo in enumerate(photos):
        nearest, likeness = Originals(photos).nearest(WAYS[way](photo))
        assert nearest == number
        assert likeness >= COPIED


def test_the_same_subject_elsewhere_is_no_copy():
    rng = Random(2)
    for _ in range(12):
        identity = sample_identity(rng)
        *places, other = rng.sample(list(SCENES), 5)
        originals = Originals([render(rng, identity, scene) for scene in places])
        assert originals.nearest(render(rng, identity, other))[1] < COPIED


def test_a_plain_picture_is_a_copy_of_nothing():
    rng = Random(3)
    plain = Image.new("RGB", (64, 64), "red")
    assert Originals([render(rng, sample_identity(rng), "moon")]).nearest(plain)[1] < 0.01
    with pytest.raises(ValueError, match="no photo"):
        Originals([])


# ways to learn


def test_every_way_to_learn_is_another_training():
    names = [one.out_name for one in LEARNERS]
    assert len({*names, *(one.name for one in LEARNERS)}) == 2 * len(LEARNERS)
    given = {"prompt": "a th cat", "class_prompt": "a cat", "steps": 3}
    for learner in LEARNERS:
        prompt = f"a {learner.words('th', 'cat')}"
        config = learner.configure(Path("p"), Path("f"), "cat", **{**given, "prompt": prompt})
        assert config.kind == learner.kind
        assert config.steps == 3
        (out,) = [v for v in drawn_with(config).values() if "f" in str(v) and v != "mini"]
        assert str(Path("f").resolve()) in str(out)


@pytest.mark.parametrize("kind", KINDS)
def test_what_suits_mini_is_taken_only_where_nothing_is_asked(kind):
    learner, given = Learner(name="x", kind=kind), {"prompt": f"a {TOKEN}"}
    found = learner.configure(Path("p"), Path("f"), "cat", **given).suited_to("mini")
    suited = vars(SUITED[kind, "mini"])
    assert {name: getattr(found, name) for name in suited} == suited
    asked = {"steps": 7, "lr": 1e-5, "batch_size": 3, "ema": 0.0}
    config = learner.configure(Path("p"), Path("f"), "cat", **given, **asked)
    assert {name: getattr(config.suited_to("mini"), name) for name in asked} == asked


def test_what_was_learned_is_drawn_with_as_it_is_written():
    given = {"prompt": f"a {TOKEN}", "steps": 1}
    fields = {}
    for kind in (LORA, DREAMBOOTH, TEXTUAL_INVERSION):
        config = Learner(name="x", kind=kind).configure(Path("p"), Path("f"), "cat", **given)
        fields[kind] = set(drawn_with(config))
    assert fields == {
        LORA: {"model", "loras"},
        DREAMBOOTH: {"model"},
        TEXTUAL_INVERSION: {"model", "embeddings"},
    }


@pytest.fixture(scope="module")
def reader():
    return load_reader()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Course(
        out=tmp_path_factory.mktemp("course"),
        identifier="th",
        at=(1, 2),
        class_pictures=2,
        steps=1,
        device="cpu",
        training={"resolution": 64, "batch_size": 1},
    )


@pytest.mark.slow
def test_a_course_is_measured_once(small, reader, model_for, known, monkeypatch):
    learner = Learner(name="lora", kind=LORA, settings={"rank": 2})
    told = []
    entries = measure_learner(learner, known, small, reader, told.append)
    assert [one.steps for one in entries] == [1, 2]
    assert told == [f"{known.name}: lora, {steps} steps" for steps in (1, 2)]
    assert entries[0].costs["training"] < entries[1].costs["training"]
    assert entries[1].costs["class images"] == 0
    assert {"identity", "scene", "copies", "diversity"} <= entries[0].scores.keys()
    monkeypatch.setattr(course_module, "finetune", None)
    again = measure_learner(learner, known, small, reader, told.append)
    for one, other in zip(again, entries, strict=True):
        assert one.scores == pytest.approx(other.scores, nan_ok=True)
        assert one.costs == other.costs
    late = replace(small, at=(1, 2, 3), out=small.out)
    with pytest.raises(TypeError, match="not callable"):
        measure_learner(learner, known, late, reader, told.append)


@pytest.mark.slow
def test_what_is_learned_once_is_drawn_in_several_ways(small, reader, known, monkeypatch):
    ways = {"": {}, "twice": {"lora_negative": 0.5}}
    learner = Learner(name="lora", kind=LORA, settings={"rank": 4}, drawings=ways)
    trained, finetune = [], course_module.finetune
    monkeypatch.setattr(
        course_module, "finetune", lambda config: trained.append(finetune(config)) or trained[-1]
    )
    entries = measure_learner(learner, known, small, reader, str)
    assert [(one.name, one.steps) for one in entries] == [
        *(("lora", 1), ("lora, twice", 1)),
        *(("lora", 2), ("lora, twice", 2)),
    ]
    assert len(set(trained)) == 1
    folder = small.folder(known)
    runs = [RunFolder(path.parent) for path in sorted(folder.glob("*.training/*/run.json"))]
    configs = {run.path.name: run.read_config() for run in runs}
    asked = {name: (one.lora_negative, one.lora_subject) for name, one in configs.items()}
    twice = (0.5, (known.noun,))
    assert asked.items() >= {"drawn-00001": (1.0, ()), "drawn-00001-twice": twice}.items()


def test_other_settings_have_other_folders(small, known):
    def folder(**changes):
        return replace(small, **changes).folder(known)

    same = {small.folder(known), folder(at=(9,)), folder(device="cuda")}
    changes = ({"seed": 1}, {"steps": 2}, {"class_pictures": 3}, {"training": {}})
    assert len({*same, *(folder(**one) for one in changes)}) == len(same) + len(changes) == 5


@pytest.mark.slow
def test_a_number_of_steps_that_was_passed_is_one_sentence(small, reader, known):
    learner = Learner(name="lora", kind=LORA, settings={"rank": 3})
    measure_learner(learner, known, replace(small, at=(2,)), reader, str)
    with pytest.raises(ConsistError, match="has taken 2 steps, so 1 cannot be drawn"):
        measure_learner(learner, known, replace(small, at=(1,)), reader, str)


@pytest.mark.slow
def test_photos_are_looked_at_without_training(small, reader, known):
    ways = {way.name: way for way in FREE}
    model_for = SharedModel()  # its own: a course names a scheduler, which stays on a model
    entries = [
        measure_free(ways[name], known, small, reader, model_for)
        for name in (BASE, "reference, 1 photo")
    ]
    assert "diversity" in entries[0].scores
    assert "diversity" not in entries[1].scores
    run = small.folder(known) / "reference-1-photo" / "run.json"
    config = json.loads(run.read_text())["config"]
    assert config["anchor_prompts"] == [known.captions(known.noun)[0]]
    assert config["prompts"] == list(known.prompts(known.noun))


# results


def entry(name, subject, steps=None, **scores):
    costs = {"picture": 1.0} if steps is None else {"picture": 1.0, "training": 10.0}
    return Entry(name=name, steps=steps, subject=subject, scores=scores, costs=costs)


ENTRIES = [
    entry(BASE, "a", identity=0.4, scene=1.0, diversity=0.5),
    entry(BASE, "b", identity=0.2, scene=0.5, diversity=0.4),
    entry("lora", "a", 10, identity=0.9, scene=0.75, diversity=0.25),
    entry("lora", "b", 10, identity=0.7, scene=0.5, diversity=0.4),
    entry("lora", "a", 20, identity=1.0, scene=0.75, diversity=0.0),
    entry("lora", "b", 20, identity=0.8, scene=0.25, diversity=math.nan),
]


def test_ways_are_compared_subject_by_subject():
    base, ten, twenty = stand(ENTRIES)
    assert (base.name, base.steps, ten.steps, twenty.steps) == (BASE, None, 10, 20)
    assert ten.values["identity"].value == pytest.approx(0.8)
    assert ten.gains["identity"].value == pytest.approx(0.5)
    assert ten.gains["scene"].value == pytest.approx(-0.125)
    assert ten.gains[KEPT].value == pytest.approx((0.5 + 1.0) / 2)
    assert (twenty.gains[KEPT].value, twenty.gains[KEPT].sets) == (0, 1)
    assert base.gains["scene"].value == 0
    assert ten.costs["training"].value == 10


def test_results_are_files_that_can_be_read(tmp_path):
    facts = {"title": "a & b", "chance": {"identity": 0.3, "shown": 0.0}, "photos": 0.95}
    paths = write_standings(stand(ENTRIES), ENTRIES, facts, tmp_path, "training")
    written = json.loads(paths[0].read_text())
    assert written["standings"][1]["gains"]["scene"][0] == -0.125
    assert written["subjects"][-1]["scores"]["diversity"] is None
    texts = [e.text for e in ElementTree.parse(paths[1]).iter() if e.tag.endswith("text")]
    assert "a & b" in texts
    assert {"lora", BASE, "chance", "the photos"} <= set(texts)
    # in each of three panels what is known of two names
    assert plot(written).count('<g class="point">') == 3 + 3 + 3
    assert plot(written) == paths[1].read_text()


def test_a_plot_leaves_out_what_is_not_known():
    nothing = Interval(math.nan, math.nan, math.nan, 0)
    some = Interval(0.5, 0.4, 0.6, 3)
    panel = Panel("score", [Curve("x", ((1, nothing), (2, some)))], {"level": math.nan})
    drawn = draw_curves([panel], "steps", "title", "note")
    ElementTree.fromstring(drawn)
    assert "nan" not in drawn
    assert drawn.count('<g class="point">') == 1


def test_points_at_one_place_stand_beside_each_other():
    some = Interval(0.5, 0.4, 0.6, 3)
    curves = [Curve(name, ((0, some), (100, some))) for name in "abc"]
    drawn = draw_curves([Panel("score", curves, {})], "steps", "title", "note")
    points = [e for e in ElementTree.fromstring(drawn).iter() if e.get("class") == "point"]
    places = {used.get("x") for point in points for used in point.iter() if used.get("x")}
    assert len(places) == 6


# the script


@pytest.fixture
def talkative():
    """The script silences the package, for good."""
    log = logging.getLogger("consist")
    before = log.level
    yield
    log.setLevel(before)


@pytest.mark.usefixtures("talkative")
def test_the_script_says_how_it_is_called(monkeypatch, capsys, tmp_path):
    module = runpy.run_path(str(SCRIPT))
    assert f"python scripts/measure/{SCRIPT.name} --quick" in module["__doc__"]
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--only", "lroa", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        module["main"]()
    assert stopped.value.code == 2
    assert "unknown way to learn 'lroa', did you mean 'lora'?" in capsys.readouterr().err


def test_the_command_of_the_results_names_no_folder():
    module = runpy.run_path(str(SCRIPT))
    options = type("Options", (), {})()
    vars(options).update(
        quick=False,
        subjects=2,
        at=[5],
        class_pictures=3,
        steps=4,
        seed=0,
        only=["lora, base model"],
    )
    options.out = Path("/secret")
    assert module["command"](options) == (
        "python scripts/measure/training.py --subjects 2 --at 5 --class-pictures 3 --steps 4 "
        "--only 'lora, base model' --seed 0"
    )
