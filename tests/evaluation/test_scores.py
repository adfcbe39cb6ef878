"""Scores: what is written is read back, and many sets make means with intervals."""

import json
import math

import pytest

from consist.errors import ConsistError
from consist.evaluation.intervals import Interval
from consist.evaluation.scores import (
    QUALITIES,
    SCORES,
    Evaluation,
    SetScores,
    Summary,
    read_scores,
    read_summary,
    scores_path,
    summarize,
    write_scores,
    write_summary,
)
from consist.runs.folder import RunFolder

CHOICES = {"reader": {"sure": 0.8}}


def one(identity, isolated, **more):
    return SetScores(
        scores={"identity": identity, **more},
        isolated={"identity": isolated, **more},
        images=[{"file": "000.png", "prompt": "ein Kätzchen"}],
        choices=CHOICES,
    )


def test_scores_are_read_back(tmp_path):
    folder = RunFolder(tmp_path)
    write_scores(folder, one(0.75, 0.5))
    assert read_scores(folder) == one(0.75, 0.5)


def test_nothing_measured_is_null(tmp_path):
    folder = RunFolder(tmp_path)
    write_scores(folder, one(math.nan, 0.5))
    assert json.loads(scores_path(folder).read_text())["scores"]["identity"] is None
    assert math.isnan(read_scores(folder).scores["identity"])


def test_means_are_over_the_sets_that_have_a_score():
    sets = [one(0.8, 0.5), one(0.6, 0.5), one(math.nan, 0.4), one(0.7, 0.2, scene=1.0)]
    summary = summarize(sets)
    assert list(summary) == ["identity", "scene"]
    assert summary["identity"].value.value == pytest.approx(0.7)
    assert summary["identity"].isolated.value == pytest.approx(0.4)
    # of the three sets that have both
    assert summary["identity"].difference.value == pytest.approx(0.3)
    assert summary["identity"].difference.sets == 3
    assert summary["scene"].value.sets == 1


def test_a_summary_is_read_back(tmp_path):
    summary = Summary(
        value=Interval(0.7, 0.6, 0.8, 3),
        isolated=Interval(0.4, 0.3, 0.5, 3),
        difference=Interval(0.3, 0.2, 0.4, 3),
    )
    evaluation = Evaluation(
        scores={"identity": summary},
        tags={"free": {"identity": summary}},
        chance={"": {"world": 0.3}},
        quality={"frechet": summary},
        settings={"method": {"name": "spectral"}},
        choices=CHOICES,
        runs=["runs/a"],
    )
    write_summary(tmp_path / "summary.json", evaluation)
    assert read_summary(tmp_path / "summary.json") == evaluation


def test_an_interval_of_one_set_is_written_as_null(tmp_path):
    scores = summarize([one(0.8, 0.5)])
    parts = {"tags": {}, "chance": {"": {"world": math.nan}}, "quality": {}}
    rest = {"settings": {}, "choices": {}, "runs": []}
    write_summary(tmp_path / "summary.json", Evaluation(scores=scores, **parts, **rest))
    found = read_summary(tmp_path / "summary.json")
    assert found.scores["identity"].value.value == 0.8
    assert math.isnan(found.scores["identity"].value.low)
    assert math.isnan(found.chance[""]["world"])


def test_every_score_says_what_it_is():
    for score in (*SCORES.values(), *QUALITIES.values()):
        assert score.title
        assert score.meaning
        assert score.better in (-1, 0, 1)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "scores": 3}'])
def test_damaged_files_are_named(tmp_path, text):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ConsistError, match=r"scores.json is damaged; evaluate the run again"):
        read_scores(RunFolder(tmp_path))
    with pytest.raises(ConsistError, match=r"scores.json is damaged; evaluate the run again"):
        read_summary(tmp_path / "scores.json")


def test_missing_and_foreign_files_are_named(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(ConsistError, match="has no scores; run 'consist evaluate' on it"):
        read_scores(folder)
    with pytest.raises(ConsistError, match=r"summary.json is no summary; write one with"):
        read_summary(tmp_path / "summary.json")
    scores_path(folder).write_text('{"format": 99}')
    with pytest.raises(ConsistError, match="was written by another version"):
        read_scores(folder)
