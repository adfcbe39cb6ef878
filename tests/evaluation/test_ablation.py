"""Ablations: halves, corrected comparisons, the front, files, and whole runs that go on."""

import json
import math
import re
import runpy
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from readings import REST
from rich.console import Console

import consist.cli.ablation
import consist.runs.drawing
from consist.cli.ablation import ablate, answer, make_parser, tabulate
from consist.cli.console import out
from consist.errors import ConsistError
from consist.evaluation.ablation.comparison import compare, merit, pareto_front, widen
from consist.evaluation.ablation.known_masks import find_subjects
from consist.evaluation.ablation.measuring import Work, measure
from consist.evaluation.ablation.results import Trial, plot, to_json, write_results
from consist.evaluation.ablation.settings import HALVES, Setting, choose, split_half
from consist.evaluation.intervals import Interval, bootstrap_difference
from consist.evaluation.judges.by_reader import ReadingJudge
from consist.evaluation.judges.judge import RowScores
from consist.evaluation.scores import SetScores, Summary, summarize
from consist.methods import METHODS
from consist.mini.architecture import HEAD_WIDTH
from consist.mini.reader import Reading, SubjectReading, Value
from consist.runs.folder import RunFolder
from consist.runs.many.benchmarks import PromptSet, load_benchmark
from consist.spectra.rules import parse_spectrum

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path for path in (ROOT / "scripts" / "ablate").glob("*.py") if path.stem != "learn_spectrum"
)
MINI_SETS = load_benchmark("mini-sets")
SVG = "{http://www.w3.org/2000/svg}"


def setting(name, against="", **changes):
    return Setting(name=name, method={"name": "shared"}, against=against, **changes)


# settings and sets


def test_halves_hold_every_set_once_and_always_the_same():
    first, second = (split_half(MINI_SETS, half) for half in HALVES)
    names = [one.name for one in (*first, *second)]
    assert sorted(names) == sorted(one.name for one in MINI_SETS)
    assert abs(len(first) - len(second)) <= 1
    assert [one.name for one in first[:4]] == ["free_2", "free_3", "free_5", "free_9"]


def test_halves_have_as_many_sets_of_each_kind():
    first, second = (Counter(one.tags for one in split_half(MINI_SETS, half)) for half in HALVES)
    assert all(abs(first[tags] - second[tags]) <= 1 for tags in first | second)


def test_halves_do_not_follow_the_order_of_the_benchmark():
    style = [one for one in MINI_SETS if "style" in one.tags]
    kept = {one.name for one in split_half(MINI_SETS, "first")}
    turns = [one.name in kept for one in style]
    assert turns not in ([i % 2 == 0 for i in range(len(style))], [i % 2 == 1 for i in range(20)])


def test_refuses_halves_that_are_none():
    with pytest.raises(ConsistError, match="unknown half 'third'"):
        split_half(MINI_SETS, "third")
    with pytest.raises(ConsistError, match="the second half of 1 sets is empty"):
        split_half(MINI_SETS[:1], "second")


def test_chosen_settings_bring_what_they_are_compared_with():
    settings = [setting("a"), setting("b"), setting("c", against="a"), setting("d", against="b")]
    assert choose(settings) == settings
    assert [one.name for one in choose(settings, ["d"])] == ["b", "d"]
    assert [one.name for one in choose(settings, most=2)] == ["a", "c"]
    assert [one.name for one in choose(settings, most=9)] == ["a", "b", "c", "d"]
    with pytest.raises(ConsistError, match="unknown setting 'e'"):
        choose(settings, ["e"])
    with pytest.raises(ValueError, match="x is compared with 'a', no setting"):
        choose([setting("x", against="a")])
    with pytest.raises(ValueError, match="the same name"):
        choose([setting("a"), setting("a")])


def test_settings_are_told_apart_by_all_their_fields():
    spectral = Setting(name="x", method={"name": "spectral", "keys": "log"})
    same = Setting(name="y", method={"name": "spectral", "keys": "log", "values": "log2"})
    assert same.digest({}) == spectral.digest({})
    assert spectral.digest({"steps": 1}) != spectral.digest({})
    masked = Setting(name="x", method=spectral.method, masked=True)
    assert masked.digest({}) != spectral.digest({})


# comparison


def test_the_front_holds_what_nothing_beats():
    points = [(0.0, 0.0), (1.0, 3.0), (2.0, 2.0), (1.0, 2.0), (3.0, -1.0), (1.0, 3.0)]
    assert pareto_front(points) == [1, 5, 2, 4]
    assert pareto_front([(math.nan, 9.0), (0.0, 0.0), (9.0, math.nan)]) == [1]
    rng = np.random.default_rng(0)
    cloud = [tuple(point) for point in rng.normal(size=(60, 2))]
    by_hand = [i for i, (a, b) in enumerate(cloud) if not any(c > a and d > b for c, d in cloud)]
    assert sorted(pareto_front(cloud)) == by_hand


def planted(gains, leaks, sets=30, seed=0):
    """Scores of as many sets, whose means are what is planted but for noise that pairs cancel."""
    rng = np.random.default_rng(seed)
    base = {"identity": rng.uniform(0.3, 0.6, sets), "background": rng.uniform(0, 0.4, sets)}
    jitter = rng.normal(0, 0.02, (2, sets))
    rows = {"identity": gains + jitter[0], "background": leaks + jitter[1]}
    return [
        SetScores(
            scores={name: float(base[name][i] + rows[name][i]) for name in base},
            isolated={name: float(base[name][i]) for name in base},
            images=[],
            choices={},
        )
        for i in range(sets)
    ]


def compared(scores, settings):
    summaries = {name: summarize(sets) for name, sets in scores.items()}
    return compare(settings, scores, summaries)


PLANTED = {
    "weak": planted(0.1, 0.02, seed=1),
    "strong": planted(0.3, 0.1, seed=1),
    "leaky": planted(0.2, 0.3, seed=1),
}
SETTINGS = [setting("weak"), setting("strong", against="weak"), setting("leaky")]


def test_planted_gains_are_found_and_the_front_is_drawn_through_them():
    found = compared(PLANTED, SETTINGS)
    assert found.axes == ("background", "identity")
    assert found.front == ["isolated", "weak", "strong"]
    weak, strong, leaky = found.outcomes
    assert weak.gains["identity"].value == pytest.approx(0.1, abs=0.02)
    assert weak.gains["identity"].low > 0
    assert leaky.gains["background"].value == pytest.approx(0.3, abs=0.02)
    assert strong.contrasts["identity"].value == pytest.approx(0.2, abs=1e-6)
    assert weak.contrasts == {}
    assert found.isolated["identity"].value == pytest.approx(
        np.mean([one.isolated["identity"] for one in PLANTED["weak"]])
    )


def test_intervals_are_corrected_for_all_comparisons():
    found = compared(PLANTED, SETTINGS)
    assert (found.comparisons, found.level) == (4, 1 - 0.05 / 4)
    sets = PLANTED["leaky"]
    ours, theirs = (
        [getattr(one, row)["identity"] for one in sets] for row in ("scores", "isolated")
    )
    assert found.outcomes[2].gains["identity"] == bootstrap_difference(
        ours, theirs, level=1 - 0.05 / 4
    )
    plain = bootstrap_difference(ours, theirs)
    corrected = found.outcomes[2].gains["identity"]
    assert corrected.low < plain.low < plain.high < corrected.high


@pytest.mark.slow
def test_many_settings_that_do_nothing_are_not_called_different():
    scores = {f"null {i}": planted(0.0, 0.0, seed=100 + i) for i in range(60)}
    found = compared(scores, [setting(name) for name in scores])
    gains = [one.gains["identity"] for one in found.outcomes]
    alone = [summarize(sets)["identity"].difference for sets in scores.values()]
    assert sum(one.low > 0 or one.high < 0 for one in alone) >= 2
    assert not any(one.low > 0 or one.high < 0 for one in gains)


def test_quality_is_widened_as_the_normal_interval_that_it_is():
    assert widen(Interval(1.0, 0.0, 2.0, 5), 0.95).high == pytest.approx(2.0, abs=1e-4)
    wide = widen(Interval(1.0, 0.0, 3.0, 5), 1 - 0.05 / 10)
    assert wide.high - wide.value == pytest.approx(2 * 2.807 / 1.96, abs=1e-3)
    assert wide.value - wide.low == pytest.approx(2.807 / 1.96, abs=1e-3)


def test_quality_is_compared_beside_the_scores():
    quality = Summary(
        value=Interval(2.0, 1.0, 3.0, 30),
        isolated=Interval(1.5, 1.0, 2.0, 30),
        difference=Interval(0.5, 0.0, 1.0, 30),
    )
    summaries = {name: {**summarize(sets), "kernel": quality} for name, sets in PLANTED.items()}
    found = compare(SETTINGS, PLANTED, summaries)
    kernel = found.outcomes[0].gains["kernel"]
    assert kernel.value == 0.5
    assert kernel.low < 0 < 1 < kernel.high
    assert found.isolated["kernel"].value == 1.5


def test_settings_of_different_sets_are_refused():
    with pytest.raises(ValueError, match=r"measured on \[29, 30\] sets"):
        compared({**PLANTED, "weak": PLANTED["weak"][1:]}, SETTINGS)


def test_directions_of_the_axes():
    assert (merit("identity"), merit("background")) == (1, -1)
    assert (merit("dreamsim_foreground"), merit("dreamsim_background")) == (-1, 1)


# files


def trial(costs=None):
    facts = {"command": "python scripts/ablate_x.py", "sets": ["a"]}
    question = "What is best?\n\nNobody knows.\n"
    found = compared(PLANTED, SETTINGS)
    return Trial(question=question, comparison=found, facts=facts, costs=costs or {})


def test_results_hold_all_that_was_done_and_found(tmp_path):
    done = trial({"weak": {"time": 1.5}})
    paths = write_results(done, tmp_path / "results", "x")
    assert [path.name for path in paths] == ["x.json", "x.svg"]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["x.json", "x.svg"]
    written = json.loads(paths[0].read_text())
    assert written["question"].startswith("What is best?")
    assert written["command"] == "python scripts/ablate_x.py"
    assert "Bonferroni" in written["correction"]
    assert written["front"] == ["isolated", "weak", "strong"]
    weak, strong, _ = written["outcomes"]
    assert weak["method"] == {"name": "shared"}
    assert weak["costs"] == {"time": 1.5}
    gain = done.comparison.outcomes[0].gains["identity"]
    assert weak["gains"]["identity"] == [
        *(round(x, 5) for x in (gain.value, gain.low, gain.high)),
        30,
    ]
    assert strong["against"] == "weak"
    assert set(strong["contrasts"]) == {"identity", "background"}


def marked(root, kind):
    return [part for part in root.iter(f"{SVG}g") if part.get("class") == kind]


def corners_of(part):
    """The places that a line goes through."""
    (path,) = part.iter(f"{SVG}path")
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.get("d"))]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def place_of(part):
    (used,) = part.iter(f"{SVG}use")
    return float(used.get("x")), float(used.get("y"))


def test_the_plot_shows_every_setting_with_its_intervals_and_the_front():
    found = compared(PLANTED, SETTINGS)
    asked = to_json(Trial(question="Which < is best?", comparison=found, facts={}, costs={}))
    root = ElementTree.fromstring(plot(asked))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "Which < is best?" in texts
    assert [text.split() for text in texts[-4:]] == [
        ["1", "isolated"],
        ["2", "weak"],
        ["3", "strong"],
        ["4", "leaky"],
    ]
    assert "background similarity, minus isolated (lower is better)" in texts
    assert [place[0].text.split(":")[0] for place in marked(root, "point")] == [
        *("isolated", "weak", "strong", "leaky"),
    ]
    places = [place_of(part) for part in marked(root, "point")]
    isolated, weak, strong, leaky = places
    (front,) = marked(root, "front")
    # a stair of level and upright steps: more leakage first, then more identity
    stair = [isolated, (weak[0], isolated[1]), weak, (strong[0], weak[1]), strong]
    assert corners_of(front) == [pytest.approx(corner, abs=0.01) for corner in stair]
    bars = [corners_of(part) for part in marked(root, "interval")]
    assert len(bars) == 2 * 4
    for place, level, upright in zip(places, bars[::2], bars[1::2], strict=True):
        assert level[0][0] <= place[0] <= level[1][0]
        assert [y for _, y in level] == pytest.approx([place[1]] * 2, abs=0.01)
        assert upright[1][1] <= place[1] <= upright[0][1]
        assert [x for x, _ in upright] == pytest.approx([place[0]] * 2, abs=0.01)
    width, height = (float(root.get(side)) for side in ("width", "height"))
    every = [*places, *(corner for bar in bars for corner in bar)]
    assert all(0 < x < width and 0 < y < height for x, y in every)
    assert strong[1] < weak[1]
    assert leaky[0] > strong[0]


def test_the_same_results_are_the_same_plot_to_the_byte(tmp_path):
    _, drawn = write_results(trial(), tmp_path, "x")
    found = json.loads((tmp_path / "x.json").read_text())
    assert plot(found) == plot(found) == drawn.read_text()


def test_a_setting_without_a_place_is_left_out():
    found = to_json(trial())
    found["outcomes"][1]["gains"]["identity"] = [None, None, None, 0]
    root = ElementTree.fromstring(plot(found))
    assert len(marked(root, "point")) == 3
    assert [text.text.split()[0] for text in root.iter(f"{SVG}text")][-3:] == ["1", "2", "4"]


def test_without_matplotlib_the_numbers_are_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConsistError, match=r"pip install 'consist\[study\]'"):
        write_results(trial(), tmp_path, "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.slow
def test_numbers_in_a_crowd_cover_neither_points_nor_each_other():
    crowd = {f"s{i}": planted(0.2 + 0.004 * i, 0.1 + 0.003 * (i % 7), seed=i) for i in range(40)}
    found = compared(crowd, [setting(name) for name in crowd])
    root = ElementTree.fromstring(
        plot(to_json(Trial(question="A crowd", comparison=found, facts={}, costs={})))
    )
    texts = [part for number in marked(root, "number") for part in number.iter(f"{SVG}text")]
    places = [(float(text.get("x")), float(text.get("y"))) for text in texts]
    assert len(places) == 41
    covered = sum(
        abs(a - c) < 10 and abs(b - d) < 8 for i, (a, b) in enumerate(places) for c, d in places[:i]
    )
    assert covered <= 2


def test_the_table_has_a_row_per_setting_and_the_isolated_one():
    table = tabulate(trial({name: {"time": 2.0} for name in PLANTED}))
    console = Console(width=200)
    with console.capture() as caught:
        console.print(table)
    text = caught.get()
    assert "What is best?" in text
    for words in (
        "identity agreement",
        "background similarity",
        "time",
        "minus weak",
        "isolated, itself",
    ):
        assert words in text
    found = compared(PLANTED, SETTINGS).outcomes[0].gains["identity"]
    assert f"{found.value:+.3f}" in text
    assert f"[{found.low:+.3f} {found.high:+.3f}]" in text
    assert text.count("2.000") == 3


# whole runs

SETS = [
    PromptSet(
        name=f"free_{i}",
        prompts=("a cat in paris", "a cat on the moon"),
        seed=10 * i,
        tags=("free",),
    )
    for i in range(2)
]


class SquareReader:
    """Sees a red cat in Paris in the middle of every picture, and a dog beside it if asked to."""

    digest = "none"

    def __init__(self, names=("cat",)):
        self.names = names

    def read(self, images):
        return [self._read(image) for image in images]

    def features(self, images):
        means = [np.asarray(image, np.float32).mean((0, 1)) for image in images]
        return np.stack(means) / 255 if means else np.zeros((0, 3), np.float32)

    def _read(self, image):
        values = {name: Value(value, 1.0) for name, value in {"color": "red", **REST}.items()}
        subjects = []
        for place, name in enumerate(self.names):
            mask = np.zeros(image.size[::-1], dtype=bool)
            mask[32:96, 32 + 64 * place : 64 + 64 * place] = True
            subjects.append(SubjectReading(Value(name, 1.0), values, mask))
        return Reading(Value("paris", 1.0), Value("flat", 1.0), tuple(subjects), np.zeros(3))


@pytest.fixture
def judges(monkeypatch):
    monkeypatch.setattr("consist.evaluation.judges.by_reader.REFERENCES", 4)
    return [ReadingJudge(SquareReader())]


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn: method and masks of every chunk."""
    calls, draw = [], consist.runs.drawing.draw

    def told(batch, masks=None):
        calls.append((type(batch.method).__name__, masks))
        return draw(batch, masks)

    monkeypatch.setattr("consist.runs.drawing.draw", told)
    monkeypatch.setattr("consist.evaluation.ablation.known_masks.draw", told)
    return calls


TRIED = [
    Setting(name="shared", method={"name": "shared"}),
    Setting(name="found masks", method={"name": "sdsa"}, against="shared", masked=True),
]


def test_settings_are_drawn_once_beside_isolated_pictures_drawn_once(tmp_path, judges, drawn):
    work = Work(sets=SETS, chosen=SETS, judges=judges, out=tmp_path, base={"steps": 2})
    told = []
    found = measure(TRIED, work, lambda *progress: told.append(progress))
    assert {name: len(one.runs) for name, one in found.items()} == {"shared": 2, "found masks": 2}
    assert Counter(name for name, _ in drawn) == {"Isolated": 2, "Shared": 2, "Sdsa": 2}
    assert told[-1] == (6, 6)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    masks = [masks for name, masks in drawn if name == "Sdsa"]
    assert [given.shape for given in masks] == [(2, 1, 128, 128)] * 2
    assert all(int(given[0].sum()) == 64 * 32 for given in masks)
    (folder,) = tmp_path.glob("found-masks-*")
    run = RunFolder(folder / "free_0")
    assert run.read_config().method["subject"] == ["cat"]
    with Image.open(run.picture_path(0)) as image:
        assert json.loads(image.text["consist"])["masks"] == "isolated"
    assert run.read_record()["finished"]
    # all is there: nothing is drawn, and the same is found
    drawn.clear()
    assert measure(TRIED, work) == found
    assert drawn == []


@pytest.mark.slow
def test_given_masks_change_the_pictures(tmp_path, judges):
    """At the first step predicted masks are not there yet, so a run of one step shows whose act."""
    both = [*TRIED, Setting(name="sdsa", method={"name": "sdsa"})]
    work = Work(sets=SETS[:1], chosen=SETS[:1], judges=judges, out=tmp_path, base={"steps": 1})
    measure(both, work)
    pictures = {
        name: RunFolder(next(tmp_path.glob(f"{name}-*")) / "free_0").read_picture(1).tobytes()
        for name in ("isolated", "sdsa", "found-masks")
    }
    assert pictures["sdsa"] == pictures["isolated"]
    assert pictures["found-masks"] != pictures["isolated"]


def test_masks_are_told_apart_only_where_there_are_two_subjects():
    images = [Image.new("RGB", (128, 128))]
    pair = [ReadingJudge(SquareReader(("cat", "dog")))]
    assert find_subjects(pair, images, ("cat", "dog")).flatten(2).sum(-1).tolist() == [[2048, 2048]]
    assert find_subjects(pair, images, ("bus", "dog")).flatten(2).sum(-1).tolist() == [[0, 2048]]
    # whatever it was taken for
    assert find_subjects(pair, images, ("bus",)).flatten(2).sum(-1).tolist() == [[4096]]
    nothing = [ReadingJudge(SquareReader(()))]
    assert find_subjects(nothing, images, ("bus",)).sum() == 0
    with pytest.raises(ConsistError, match="nothing says where the subject is"):
        find_subjects([], images, ("cat",))


@pytest.mark.slow
def test_a_script_writes_its_results_when_all_shards_are_done(tmp_path, judges, drawn, monkeypatch):
    monkeypatch.setattr(consist.cli.ablation, "load_judges", lambda **given: judges)
    monkeypatch.setattr(consist.cli.ablation, "load_benchmark", lambda name: SETS * 1)
    monkeypatch.setattr(consist.cli.ablation, "split_half", lambda sets, half: sets)
    parser = make_parser("Is it so?", tmp_path / "scripts" / "ablate" / "small.py")
    common = ["--steps", "1", "--out", str(tmp_path / "runs")]
    for shard, files in (("1/2", 0), ("2/2", 2)):
        options = parser.parse_args([*common, "--shard", shard])
        with out.capture() as caught:
            answer("Is it so?\n\nPerhaps.", TRIED[:1], options)
        results = tmp_path / "scripts" / "results"
        assert len(list(results.glob("small.*"))) == files
        said = "1 of 2 runs are finished" if not files else "front of identity agreement"
        assert said in caught.get()
    written = json.loads((results / "small.json").read_text())
    assert written["sets"] == ["free_0", "free_1"]
    assert written["base"]["steps"] == 1
    assert set(written["versions"]) > {"torch", "mini"}
    assert written["hardware"]["cpu"]
    assert written["choices"]["reader"]["weights"] == "none"
    assert written["outcomes"][0]["gains"]["identity"][0] == 0
    options = parser.parse_args([*common, "--half", "second"])
    answer("Is it so?", TRIED[:1], options)
    assert (results / "small-second.json").exists()
    assert len(drawn) == 4
    options = parser.parse_args([*common, "--half", "second", "--pictures", "2"])
    answer("Is it so?", TRIED[:1], options)
    written = json.loads((results / "small-2-second.json").read_text())
    assert written["sets"] == ["free_0-2", "free_1-2"]


class PlainJudge:
    """Stands for the encoders of real models."""

    def score(self, row):
        light = [float(np.asarray(image).mean()) / 255 for image in row.images]
        scores = {"clip_t": float(np.mean(light)), "clip_i": 1 - float(np.std(light))}
        return RowScores(scores, [{} for _ in light])

    def choices(self, prompts):
        return {"judge": "plain"}


def test_runs_with_any_model_and_its_own_metrics(tmp_path, sdxl_pipe):
    sdxl_pipe.save_pretrained(tmp_path / "tiny-sdxl")
    base = {"model": str(tmp_path / "tiny-sdxl"), "steps": 1}
    work = Work(
        sets=SETS[:1], chosen=SETS[:1], judges=[PlainJudge()], out=tmp_path / "runs", base=base
    )
    found = measure(TRIED[:1], work)
    comparison = consist.cli.ablation.compare_all(TRIED[:1], found)
    assert comparison.axes == ("clip_t", "clip_i")
    assert set(comparison.outcomes[0].gains) == {"clip_t", "clip_i"}
    masked = [TRIED[0], TRIED[1]]
    with pytest.raises(ConsistError, match="nothing says where the subject is"):
        measure(masked, work)


# the scripts


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("model", ["mini", "some/sdxl"])
def test_every_script_asks_one_question_with_settings_that_can_be_built(script, model):
    module = runpy.run_path(str(script))
    settings = module["settings"](model)
    assert choose(settings) == settings
    assert len({(one.digest({}), one.masked) for one in settings}) == len(settings)
    assert module["__doc__"].count("\n\n") >= 2
    assert f"python scripts/ablate/{script.name} --quick" in module["__doc__"]


def test_there_is_a_script_for_every_question():
    assert [path.stem for path in SCRIPTS] == [
        *("baselines", "geometry", "ideas", "masks", "matched", "one_prompt", "reweighting"),
        "zeroing",
    ]
    (baselines,) = [path for path in SCRIPTS if path.stem == "baselines"]
    names = [one.name for one in runpy.run_path(str(baselines))["settings"]("mini")]
    assert {"isolated", *names} == set(METHODS)


def test_shares_of_minis_singular_values_are_counts():
    s = torch.rand(7, HEAD_WIDTH, generator=torch.Generator().manual_seed(0))
    s = s.sort(-1, descending=True).values
    for rule in ("fraction", "quantile"):
        for share, count in ((0.05, 2), (0.25, 8), (0.5, 16), (0.75, 24)):
            kept = parse_spectrum(f"{rule}:{share}")(s)
            assert torch.equal(kept, parse_spectrum(f"count:{count}")(s))


def test_bad_input_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["small.py", "--only", "shred"])
    with pytest.raises(SystemExit) as stopped:
        ablate("Is it so?", lambda model: TRIED, "scripts/ablate/small.py")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: unknown setting 'shred', did you mean 'shared'? known: shared, found masks\n"
    )
