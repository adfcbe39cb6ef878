"""Run folders to scores, alone and many together, by a reader that knows colors only."""

import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from readings import REST
from transformers import CLIPTokenizer
from typer.testing import CliRunner

import consist.evaluation.judges
import consist.runs.drawing
from consist.cli import app
from consist.errors import ConsistError
from consist.evaluation.evaluate import evaluate_benchmark, evaluate_runs, score_run
from consist.evaluation.intervals import jackknife
from consist.evaluation.judges.by_reader import ReadingJudge
from consist.evaluation.report.runs import read_groups
from consist.evaluation.scores import read_scores, read_summary, scores_path
from consist.evaluation.summary import chance_levels, combine, measure_quality
from consist.mini.reader import Reading, SubjectReading, Value
from consist.mini.subjects import COLORS
from consist.models.loading import MINI_FOLDER
from consist.models.weights import digest_of
from consist.prompts.phrases import find_subject
from consist.runs.baseline import find_isolated
from consist.runs.config import RunConfig
from consist.runs.drawing import generate
from consist.runs.folder import RunFolder
from consist.runs.loading import SharedModel
from consist.runs.many.benchmarks import PromptSet, load_benchmark
from consist.runs.many.sets import configure
from consist.runs.versions import versions

PROMPTS = ("a cat in paris", "a cat on the moon")


class ColorReader:
    """Sees a cat in Paris everywhere, in the color that is nearest to the picture's mean."""

    digest = "none"

    def __init__(self):
        self.pictures = 0

    def read(self, images):
        self.pictures += len(images)
        return [self._read(image) for image in images]

    def features(self, images):
        means = [np.asarray(image, np.float32).mean((0, 1)) for image in images]
        return np.stack(means) / 255 if means else np.zeros((0, 3), np.float32)

    def _read(self, image):
        mean = np.asarray(image).mean((0, 1))
        color = min(COLORS, key=lambda name: np.abs(mean - COLORS[name]).sum())
        values = {k: Value(v, 1.0) for k, v in {"color": color, **REST}.items()}
        mask = np.zeros(image.size[::-1], dtype=bool)
        mask[4:12, 4:12] = True
        cat = SubjectReading(Value("cat", 1.0), values, mask)
        return Reading(Value("paris", 1.0), Value("flat", 1.0), (cat,), np.zeros(3))


@pytest.fixture(autouse=True)
def few_references(monkeypatch):
    """Less to draw; what it changes is not tested here."""
    monkeypatch.setattr("consist.evaluation.judges.by_reader.REFERENCES", 4)


@pytest.fixture
def reader():
    return ColorReader()


@pytest.fixture
def judges(reader):
    return [ReadingJudge(reader)]


def write_run(path, shared, isolated, prompts=PROMPTS, seeds=(0, 1), **changes):
    """A finished run with pictures of one color each."""
    folder = RunFolder(path)
    given = {"method": {"name": "shared"}, "width": 64, "height": 64, **changes}
    config = RunConfig(prompts=prompts, seeds=seeds, compare=True, **given)
    for row, colors in (("", shared), ("isolated", isolated)):
        for index, color in enumerate(colors):
            image = Image.new("RGB", (16, 16), COLORS[color])
            folder.write_picture(index, row, image, {})
    record = {"config": config.to_json(), "versions": versions("mini"), "finished": True}
    folder.write_record(record)
    return folder


# one run


def test_both_rows_are_measured_and_told(tmp_path, judges):
    folder = write_run(tmp_path, ("red", "red"), ("red", "blue"))
    scores = score_run(folder, judges)
    assert scores.scores["identity"] == 1
    assert scores.isolated["identity"] == pytest.approx(4 / 5)
    assert scores.scores["scene"] == scores.isolated["scene"] == 1 / 2
    assert scores.scores["other_scene"] == 1 / 2
    first, second = scores.images
    assert (first["file"], first["prompt"]) == ("000.png", PROMPTS[0])
    assert second["asked"]["scene"] == "moon"
    assert second["asked"]["subjects"] == [{"subject": "cat", "attributes": {}}]
    assert second["read"]["subjects"][0]["attributes"]["color"] == "red"
    assert second["isolated"]["subjects"][0]["attributes"]["color"] == "blue"
    assert read_scores(folder) == scores


def test_what_was_measured_is_not_measured_again(tmp_path, judges, reader):
    folder = write_run(tmp_path, ("red", "red"), ("red", "blue"))
    first = score_run(folder, judges)
    count = reader.pictures
    assert score_run(folder, judges) == first
    assert reader.pictures == count
    score_run(folder, judges, redo=True)
    assert reader.pictures == count + 4


def test_other_choices_newer_pictures_and_damage_are_measured_again(tmp_path, judges, reader):
    folder = write_run(tmp_path, ("red", "red"), ("red", "blue"))
    score_run(folder, judges)
    count = reader.pictures
    score_run(folder, judges, noun="cat")
    assert reader.pictures == count + 4
    later = scores_path(folder).stat().st_mtime + 10
    os.utime(folder.picture_path(0), (later, later))
    score_run(folder, judges, noun="cat")
    assert reader.pictures == count + 8
    scores_path(folder).write_text("{")
    score_run(folder, judges, noun="cat")
    assert reader.pictures == count + 12


def test_a_run_drawn_without_its_isolated_row_gets_it(tmp_path, judges):
    config = configure(SETS[0], QUICK)
    folder = generate(config, tmp_path / "run")
    before = folder.picture_path(0).read_bytes()
    scores = score_run(folder, judges)
    assert folder.picture_path(0).read_bytes() == before
    assert folder.picture_path(1, "isolated").exists()
    assert folder.read_config().compare
    assert set(scores.isolated) == set(scores.scores)


def test_refuses_what_is_no_run(tmp_path, judges):
    with pytest.raises(ConsistError, match="holds no run"):
        score_run(RunFolder(tmp_path), judges)


# many runs


def test_runs_are_summed_up(tmp_path, judges):
    folders = [
        write_run(tmp_path / "a", ("red", "red"), ("red", "blue")),
        write_run(tmp_path / "b", ("blue", "blue"), ("red", "red"), seeds=(5, 6)),
    ]
    told = []
    evaluation = evaluate_runs(folders, judges, watch=lambda *a: told.append(a))
    assert evaluation.scores["identity"].value.value == 1
    assert evaluation.scores["identity"].isolated.value == pytest.approx(0.9)
    assert evaluation.scores["identity"].difference.value == pytest.approx(0.1)
    assert evaluation.settings["method"] == {"name": "shared"}
    assert "seeds" not in evaluation.settings
    assert evaluation.choices["crop"] == "left out"
    assert evaluation.runs == [str(folder.path) for folder in folders]
    assert evaluation.tags == {}
    assert told[-1] == (2, 2)


def test_settings_that_differ_are_left_out(tmp_path, judges):
    folders = [
        write_run(tmp_path / "a", ("red", "red"), ("red", "blue")),
        write_run(tmp_path / "b", ("red", "red"), ("red", "blue"), steps=3),
    ]
    evaluation = evaluate_runs(folders, judges)
    assert "steps" not in evaluation.settings
    assert evaluation.settings["model"] == "mini"


def test_chance_is_measured_between_sets_alone(tmp_path, judges):
    folders = [
        write_run(tmp_path / "a", ("red", "red"), ("red", "red")),
        write_run(tmp_path / "b", ("red", "red"), ("blue", "blue")),
        write_run(tmp_path / "c", ("red",) * 2, ("red",) * 2, ("a dog in paris", "a dog")),
    ]
    levels = chance_levels([score_run(folder, judges) for folder in folders])
    # within a set all agree, which is no chance; no dog was found
    assert levels["measured"] == pytest.approx(4 / 5)
    assert 0.2 < levels["world"] < 0.5


def test_quality_is_the_distance_to_the_world(tmp_path, judges, reader):
    colors = ("red", "blue")
    near = write_run(tmp_path / "near", colors, colors)
    far = write_run(tmp_path / "far", ("black", "black"), colors, seeds=(3, 4))
    quality = measure_quality([near, far], reader)
    assert set(quality) == {"frechet", "kernel"}
    assert quality["frechet"].difference.value == pytest.approx(
        quality["frechet"].value.value - quality["frechet"].isolated.value
    )
    same = measure_quality([near, near], reader)["frechet"]
    assert same.difference.value == 0
    assert (same.difference.low, same.difference.high) == (0, 0)
    foreign = write_run(tmp_path / "foreign", colors, colors, ("a photo", "a painting"))
    assert math.isnan(measure_quality([foreign], reader)["frechet"].value.value)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=50)
    without = [np.delete(values, i).mean() for i in range(50)]
    interval = jackknife(values.mean(), without, 50)
    error = values.std(ddof=1) / math.sqrt(50)
    assert interval.high - interval.value == pytest.approx(1.96 * error)
    assert math.isnan(jackknife(1.0, [1.0], 1).low)


def test_nothing_to_sum_up_is_named():
    with pytest.raises(ConsistError, match="there is no finished run to sum up"):
        combine([], [], [])


# a benchmark

SETS = [
    PromptSet(name=f"free_{i}", prompts=PROMPTS, seed=10 * i, tags=("free", f"odd-{i % 2}"))
    for i in range(3)
]
QUICK = {"steps": 1, "width": 64, "height": 64, "method": {"name": "shared"}}


@pytest.mark.slow
def test_shards_together_make_one_summary(tmp_path, judges):
    first = evaluate_benchmark(SETS, judges, tmp_path / "out", QUICK, chosen=SETS[:2])
    assert len(first.runs) == 2
    assert set(first.tags) == {"free", "odd-0", "odd-1"}
    record = RunFolder(tmp_path / "out" / "free_1").read_record()
    assert record["finished"]
    assert record["config"]["seeds"] == [10, 11]
    whole = evaluate_benchmark(SETS, judges, tmp_path / "out", QUICK, chosen=SETS[2:])
    assert len(whole.runs) == 3
    assert whole.tags["odd-0"]["identity"].value.sets == 2
    assert set(whole.chance) == {"", "free", "odd-0", "odd-1"}


def test_a_benchmark_goes_on_without_drawing_again(tmp_path, judges, monkeypatch):
    out = tmp_path / "out"
    before = evaluate_benchmark(SETS, judges, out, QUICK, chosen=SETS[:1])
    monkeypatch.setattr("consist.runs.loading.load_model", None)
    assert evaluate_benchmark(SETS, judges, out, QUICK, chosen=SETS[:1]) == before
    with pytest.raises(ConsistError, match="holds another run"):
        evaluate_benchmark(SETS, judges, out, {**QUICK, "steps": 2}, chosen=SETS[:1])


@pytest.mark.slow
def test_a_run_of_other_settings_is_not_summed_up(tmp_path, judges):
    out = tmp_path / "out"
    evaluate_benchmark(SETS, judges, out, QUICK, chosen=SETS[:1])
    other = evaluate_benchmark(SETS, judges, out, {**QUICK, "guidance": 2.0}, chosen=SETS[1:2])
    assert other.runs == [str(out / "free_1")]


@pytest.mark.slow
def test_isolated_rows_are_reused(tmp_path, judges, monkeypatch):
    first = tmp_path / "first"
    evaluate_benchmark(SETS, judges, first, QUICK, chosen=SETS[:1])
    drawn, draw = [], consist.runs.drawing.draw

    def counting_draw(batch):
        drawn.append(type(batch.method).__name__)
        return draw(batch)

    monkeypatch.setattr("consist.runs.drawing.draw", counting_draw)
    spectral = {**QUICK, "method": {"name": "spectral"}}
    second = tmp_path / "second"
    evaluate_benchmark(SETS, judges, second, spectral, chosen=SETS[:1], isolated=first)
    assert drawn == ["Spectral"]
    for index in range(2):
        copies = [(path / "free_0" / "isolated" / f"00{index}.png") for path in (first, second)]
        assert copies[0].read_bytes() == copies[1].read_bytes()


def test_isolated_rows_are_reused_only_where_they_fit(tmp_path):
    config = configure(SETS[0], QUICK)
    assert find_isolated(RunFolder(tmp_path / "nothing"), config) is None
    colors = ("red", "blue")
    same = write_run(tmp_path / "same", colors, colors, steps=1, method={"name": "spectral"})
    assert find_isolated(same, config) == "isolated"
    plain = write_run(tmp_path / "plain", colors, (), steps=1, method={"name": "isolated"})
    assert find_isolated(plain, config) == ""
    for number, changes in enumerate(({"steps": 2}, {"guidance": 1.0}, {"seeds": (0, 2)})):
        other = write_run(tmp_path / str(number), colors, colors, **{"steps": 1, **changes})
        assert find_isolated(other, config) is None
    gone = write_run(tmp_path / "gone", colors, colors[:1], steps=1)
    assert find_isolated(gone, config) is None


@pytest.fixture
def retrained(monkeypatch):
    """Tells that mini has other weights from now on."""
    return lambda: monkeypatch.setattr("consist.runs.versions.digest_of", lambda folder: "others")


@pytest.mark.slow
def test_pictures_of_other_weights_are_neither_reused_nor_continued(tmp_path, judges, retrained):
    first, second = tmp_path / "first", tmp_path / "second"
    evaluate_benchmark(SETS, judges, first, QUICK, chosen=SETS[:1])
    config = configure(SETS[0], QUICK)
    assert find_isolated(RunFolder(first / "free_0"), config) == "isolated"
    retrained()
    assert find_isolated(RunFolder(first / "free_0"), config) is None
    with pytest.raises(ConsistError, match="free_0 was drawn with other weights of mini and"):
        evaluate_benchmark(SETS, judges, first, QUICK, chosen=SETS[:1])
    spectral = {**QUICK, "method": {"name": "spectral"}}
    evaluate_benchmark(SETS, judges, second, spectral, chosen=SETS[:1], isolated=first)
    record = RunFolder(second / "free_0").read_record()
    assert record["versions"]["mini"] == "others"
    # runs that lie there from before do not count either
    assert evaluate_benchmark(SETS, judges, first, QUICK, chosen=SETS[1:2]).runs == [
        str(first / "free_1")
    ]


def test_a_begun_run_is_not_finished_with_other_weights(tmp_path, judges, retrained):
    config = configure(SETS[0], QUICK)
    folder = generate(config, tmp_path / "run")
    scores = score_run(folder, judges)
    retrained()
    # what is finished can be measured again
    assert score_run(folder, judges, redo=True) == scores
    folder.picture_path(1).unlink()
    with pytest.raises(ConsistError, match="run was drawn with other weights of mini"):
        generate(config, folder.path)


def test_runs_of_unknown_weights_do_not_fit(tmp_path):
    folder = write_run(tmp_path, ("red", "red"), ("red", "red"), seeds=(0, 1), steps=1)
    assert find_isolated(folder, configure(SETS[0], QUICK)) == "isolated"
    record = folder.read_record()
    folder.write_record({**record, "versions": {}})
    assert find_isolated(folder, configure(SETS[0], QUICK)) is None


def test_models_that_are_known_by_name_have_no_digest(tmp_path):
    assert "mini" not in versions("some/model")
    named = {**QUICK, "model": "some/model"}
    folder = write_run(tmp_path, ("red", "red"), ("red", "red"), steps=1, model="some/model")
    assert find_isolated(folder, configure(SETS[0], named)) == "isolated"


def test_the_digest_is_of_weights_and_configs_but_not_of_the_reader(tmp_path):
    def digest_with(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        digest_of.cache_clear()
        return digest_of(tmp_path)

    first = digest_with("unet/model.safetensors", b"1")
    assert len(first) == 12
    assert digest_with("reader.safetensors", b"2") == first
    configured = digest_with("scheduler/config.json", b"3")
    assert configured != first
    assert digest_with("unet/model.safetensors", b"4") != configured
    digest_of.cache_clear()


def test_a_masked_method_is_told_the_subject_of_the_set(tmp_path, judges):
    named = [replace(one, subject="moon") for one in SETS[:1]]
    quick = {**QUICK, "method": {"name": "sdsa", "mask_dropout": 0.0}}
    with pytest.raises(ConsistError, match="'a cat in paris' does not name the subject, 'moon'"):
        evaluate_benchmark(named, judges, tmp_path / "moon", quick, chosen=named)
    asking = [replace(SETS[0], prompts=("pixel art of a cat", "pixel art of a cat on the moon"))]
    evaluation = evaluate_benchmark(asking, judges, tmp_path / "out", quick, chosen=asking)
    config = RunFolder(tmp_path / "out" / "free_0").read_config()
    assert config.method == {"name": "sdsa", "mask_dropout": 0.0, "subject": ["cat"]}
    # of the settings, which all sets have in common, it is none
    assert evaluation.settings["method"] == quick["method"]


def test_the_subject_is_told_only_to_methods_that_ask(tmp_path):
    named = replace(SETS[0], subject="moon")
    assert configure(named, QUICK).method == {"name": "shared"}
    assert configure(named, {"method": {"name": "sdsa"}}).method["subject"] == ["moon"]
    given = {"name": "sdsa", "subject": "a cat"}
    assert configure(named, {"method": given}).method == given
    foreign = replace(SETS[0], prompts=("a photo", "a painting"))
    assert configure(foreign, {"method": {"name": "sdsa"}}).method == {"name": "sdsa"}


def test_runs_that_differ_in_their_subject_are_of_one_method(tmp_path):
    folders = [
        write_run(
            tmp_path / noun, *[("red", "red")] * 2, method={"name": "sdsa", "subject": [noun]}
        )
        for noun in ("cat", "moon")
    ]
    (group,) = read_groups(folders)
    assert group.label == "sdsa"


def test_every_set_of_the_mini_world_tells_its_subject():
    tokenizer = CLIPTokenizer.from_pretrained(MINI_FOLDER / "tokenizer")
    for one in load_benchmark("mini-sets"):
        config = configure(one, {"method": {"name": "sdsa"}})
        tokens = find_subject(tokenizer, config.prompts, config.method["subject"])
        assert all(all(phrases) for phrases in tokens), one.name
        assert len(tokens[0]) == (2 if "pair" in one.tags and "and" in one.prompts[0] else 1)


def test_a_bad_method_leaves_no_run_behind(tmp_path, judges):
    bad = {**QUICK, "method": {"name": "spektral"}}
    first = tmp_path / "first"
    evaluate_benchmark(SETS, judges, first, QUICK, chosen=SETS[:1])
    for isolated in (None, first):
        with pytest.raises(ConsistError, match="unknown method 'spektral'"):
            evaluate_benchmark(
                SETS, judges, tmp_path / "bad", bad, chosen=SETS[:1], isolated=isolated
            )
    assert not (tmp_path / "bad").exists()


def test_a_model_is_loaded_once(monkeypatch):
    loaded = []

    def load_model(config):
        loaded.append(config)
        return object()

    monkeypatch.setattr("consist.runs.loading.load_model", load_model)
    model_for = SharedModel()
    config = configure(SETS[0], QUICK)
    assert model_for(config) is model_for(configure(SETS[1], QUICK))
    assert model_for(configure(SETS[0], {**QUICK, "scheduler": "euler"})) is not model_for(config)
    lora = configure(SETS[0], {**QUICK, "loras": ("a.safetensors",)})
    assert model_for(lora) is not model_for(lora)
    assert len(loaded) == 5


# the command


def invoke(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


@pytest.fixture
def patched(monkeypatch):
    monkeypatch.setattr(consist.evaluation.judges, "load_reader", lambda device: ColorReader())
    monkeypatch.setattr(consist.evaluation.judges, "find_spec", lambda name: None)


def test_the_command_prints_and_writes_a_summary(tmp_path, patched):
    folder = write_run(tmp_path / "run", ("red", "red"), ("red", "blue"))
    result = invoke(folder.path, "--out", tmp_path / "summary.json")
    assert result.exit_code == 0, result.output
    assert "identity agreement" in result.output
    assert "+0.200" in result.output
    assert read_summary(tmp_path / "summary.json").runs == [str(folder.path)]
    printed = json.loads(invoke(folder.path, "--json").output)
    assert printed["scores"]["identity"]["difference"]["value"] == pytest.approx(0.2)


@pytest.mark.slow
def test_the_command_draws_a_benchmark(tmp_path, patched, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets.yaml").write_text(
        "free:\n- subject: a cat\n  settings: [in paris, on the moon]\n  tags: [small]\n"
        "- subject: a dog\n  settings: [in paris, on the moon]\n"
    )
    options = ("--benchmark", "sets.yaml", "--method", "shared", "--steps", 1)
    result = invoke(*options, "--shard", "1/2")
    assert result.exit_code == 0, result.output
    (out,) = (tmp_path / "runs").iterdir()
    assert out.name.startswith("sets-shared-")
    result = invoke(*options, "--shard", "2/2")
    assert sorted(path.name for path in out.iterdir()) == ["free_0", "free_1", "summary.json"]
    assert len(read_summary(out / "summary.json").runs) == 2
    assert "small" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either run folders or --benchmark"),
        (("run", "--benchmark", "mini-sets"), "give either run folders or --benchmark"),
        (("run", "--steps", 3), "--steps goes with --benchmark; runs are drawn as they were"),
        (("run", "--set", "pool=all"), "--set goes with --benchmark"),
        (("missing",), "missing holds no run"),
        (("--benchmark", "mini-set"), "did you mean 'mini-sets'"),
        (("--benchmark", "mini-sets", "--tag", "freee"), "did you mean 'free'"),
        (("--benchmark", "mini-sets", "--shard", "3/2"), "shard '3/2' is not I/N"),
        (("--benchmark", "mini-sets", "--no-reader"), "there is nothing to measure with"),
        (("--benchmark", "mini-sets", "--method", "shard"), "unknown method 'shard'"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, patched, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")
    assert os.listdir(tmp_path) == []
