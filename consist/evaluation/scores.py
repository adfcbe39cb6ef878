"""What is measured, in which direction it is good, and the files that hold it.

``scores.json`` lies beside ``run.json`` and belongs to one set; many of them make a summary.
It must not know how anything is measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from consist.errors import ConsistError
from consist.evaluation.intervals import Interval, bootstrap, bootstrap_difference
from consist.files import write_atomically
from consist.models.tensor_files import plain_errors
from consist.runs.folder import RunFolder

FORMAT = 1
SUMMARY = "summary.json"  # beside the run folders of a benchmark
DAMAGED = "{name} is damaged; evaluate the run again"


@dataclass(frozen=True)
class Score:
    """One thing that is measured."""

    title: str
    meaning: str  # one sentence for people
    better: int  # 1: more is better, -1: less is better, 0: neither, shown so that nobody cheats


SCORES: dict[str, Score] = {
    "identity": Score("identity agreement", "share of the identity's attributes that agree", 1),
    "identity_sure": Score(
        "identity agreement, sure", "the same, of attributes that the reader is sure of", 1
    ),
    "scene": Score("scene fidelity", "share of pictures that show the prompt's scene", 1),
    "subject": Score("class fidelity", "share of pictures that show the prompt's subjects", 1),
    "action": Score("action fidelity", "share of pictures that show the prompt's action", 1),
    "style": Score("style fidelity", "share of pictures in the prompt's style", 1),
    "attributes": Score("attributes named", "share of the prompts' attributes that are there", 1),
    "background": Score("background similarity", "cosine between pictures, subjects removed", 0),
    "other_scene": Score("leaked scenes", "share of pictures that show another prompt's scene", -1),
    "overlap": Score("mask overlap", "intersection over union of subjects between pictures", 0),
    "aligned_overlap": Score("pose overlap", "mask overlap of subjects moved onto each other", 0),
    "displacement": Score("displacement", "distance of subjects between pictures, in diagonals", 0),
    "crop": Score("crop similarity", "cosine of masked crops, EfficientNet-Lite0", 1),
    "histogram": Score("color similarity", "cosine of masked color histograms, a baseline", 0),
    "clip_t": Score("CLIP-T", "2.5 x cosine of picture and prompt", 1),
    "clip_i": Score("CLIP-I", "cosine between pictures, CLIP", 1),
    "clip_i_foreground": Score("CLIP-I, subject", "CLIP-I with the background replaced", 1),
    "clip_i_background": Score("CLIP-I, background", "CLIP-I with the subject replaced", -1),
    "dino": Score("DINO", "cosine between pictures, DINO", 1),
    "dino_foreground": Score("DINO, subject", "DINO with the background replaced", 1),
    "dino_background": Score("DINO, background", "DINO with the subject replaced", -1),
    "dreamsim": Score("DreamSim", "distance between pictures", -1),
    "dreamsim_foreground": Score("DreamSim, subject", "distance, background replaced", -1),
    "dreamsim_background": Score("DreamSim, background", "distance, subject replaced", 1),
}
# of all pictures at once, against pictures drawn by the world itself
QUALITIES: dict[str, Score] = {
    "frechet": Score("Fréchet distance", "to drawn pictures of the same content", -1),
    "kernel": Score("kernel distance", "to drawn pictures of the same content, unbiased", -1),
}


@dataclass(frozen=True, kw_only=True)
class SetScores:
    """The scores of one run: of its pictures, and of those drawn without sharing.

    Args:
        scores: By the keys of ``SCORES``; NaN where there was nothing to measure.
        isolated: The same for the ``isolated`` row, drawn from the same noise.
        images: Per picture: file, prompt, and what was asked, read, and read without sharing.
        choices: Everything that the numbers depend on: reader, encoders, constants.
    """

    scores: Mapping[str, float]
    isolated: Mapping[str, float]
    images: Sequence[Mapping[str, Any]]
    choices: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One score over many sets, with 95 % intervals over the sets."""

    value: Interval
    isolated: Interval
    difference: Interval  # paired


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What many runs come to: the content of ``summary.json``.

    Args:
        scores: By the keys of ``SCORES``, over all sets.
        tags: The same over the sets of each tag.
        chance: By tag, "" for all sets: the identity agreement of unrelated subjects, as the
            world draws them ("world") and as the model draws them without sharing ("measured").
        quality: By the keys of ``QUALITIES``.
        settings: What the configs of all runs have in common, the method included.
        runs: The folders.
    """

    scores: Mapping[str, Summary]
    tags: Mapping[str, Mapping[str, Summary]]
    chance: Mapping[str, Mapping[str, float]]
    quality: Mapping[str, Summary]
    settings: Mapping[str, Any]
    choices: Mapping[str, Any]
    runs: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Plain lists, texts and numbers; NaN becomes null."""
        plain: dict[str, Any] = to_plain(asdict(self))
        return {"format": FORMAT, **plain}


def scores_path(folder: RunFolder) -> Path:
    """Where the scores of a run lie."""
    return folder.path / "scores.json"


def write_scores(folder: RunFolder, scores: SetScores) -> None:
    """Writes ``scores.json``; NaN becomes null."""
    _write(scores_path(folder), {"format": FORMAT, **to_plain(asdict(scores))})


def read_scores(folder: RunFolder) -> SetScores:
    """Reads ``scores.json``.

    Raises:
        ConsistError: It is missing, damaged or of another format.
    """
    path = scores_path(folder)
    if not path.exists():
        raise ConsistError(f"{folder.path} has no scores; run 'consist evaluate' on it")
    with plain_errors(path, DAMAGED):
        data = _read(path)
        for row in ("scores", "isolated"):
            data[row] = {name: _number(value) for name, value in data[row].items()}
        return SetScores(**data)


def write_summary(path: Path, evaluation: Evaluation) -> None:
    """Writes ``summary.json``; NaN becomes null."""
    _write(path, evaluation.to_json())


def read_summary(path: Path) -> Evaluation:
    """Reads ``summary.json``.

    Raises:
        ConsistError: It is missing, damaged or of another format.
    """
    if not path.is_file():
        raise ConsistError(f"{path} is no summary; write one with 'consist evaluate --out'")
    with plain_errors(path, DAMAGED):
        data = _read(path)
        for part in ("scores", "quality"):
            data[part] = _read_summaries(data[part])
        data["tags"] = {tag: _read_summaries(one) for tag, one in data["tags"].items()}
        data["chance"] = {
            tag: {name: _number(value) for name, value in one.items()}
            for tag, one in data["chance"].items()
        }
        return Evaluation(**data)


def summarize(sets: Sequence[SetScores]) -> dict[str, Summary]:
    """The mean of every score over the sets that have it, in the order of ``SCORES``."""
    names = [name for name in SCORES if any(name in one.scores for one in sets)]
    return {name: _summarize(name, sets) for name in names}


def _summarize(name: str, sets: Sequence[SetScores]) -> Summary:
    values = [one.scores.get(name, math.nan) for one in sets]
    baseline = [one.isolated.get(name, math.nan) for one in sets]
    return Summary(
        value=bootstrap(values),
        isolated=bootstrap(baseline),
        difference=bootstrap_difference(values, baseline),
    )


def _write(path: Path, data: Mapping[str, Any]) -> None:
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if data.pop("format") != FORMAT:
        raise ConsistError(f"{path} was written by another version; evaluate the run again")
    return data


def _read_summaries(data: Mapping[str, Any]) -> dict[str, Summary]:
    return {
        name: Summary(**{part: Interval(**_read_interval(one[part])) for part in one})
        for name, one in data.items()
    }


def _read_interval(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value if name == "sets" else _number(value) for name, value in data.items()}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def to_plain(value: Any) -> Any:
    """The value as it is read back from JSON: lists for tuples, None for what is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value
