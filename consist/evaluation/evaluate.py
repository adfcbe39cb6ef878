"""Run folders to scores: each run beside itself, and all runs together.

A run is always compared with its own ``isolated`` row, drawn without sharing from the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from consist.errors import ConsistError
from consist.evaluation.judges import load_judges
from consist.evaluation.judges.by_reader import ReadingJudge
from consist.evaluation.judges.judge import Judge, Row, RowScores
from consist.evaluation.scores import (
    Evaluation,
    SetScores,
    read_scores,
    scores_path,
    to_plain,
    write_scores,
)
from consist.evaluation.summary import combine
from consist.mini.prompts import asked
from consist.models.loading import MINI
from consist.runs.baseline import fits, reuse_isolated
from consist.runs.config import RunConfig
from consist.runs.drawing import Load, Watch, generate, load_model
from consist.runs.folder import ROWS, RunFolder
from consist.runs.loading import SharedModel
from consist.runs.many.benchmarks import PromptSet
from consist.runs.many.sets import configure
from consist.runs.many.worklist import Engine, do_here, part
from consist.runs.versions import check_weights

# one run


def score_run(
    folder: RunFolder,
    judges: Sequence[Judge],
    *,
    noun: str | None = None,
    redo: bool = False,
    watch: Watch = lambda done, count: None,
    model_for: Load = load_model,
) -> SetScores:
    """Completes a run, measures both of its rows and writes ``scores.json``.

    Args:
        folder: Of a run; pictures that are missing, the isolated row among them, are drawn.
        judges: What measures.
        noun: The subject, for a segmenter to find.
        redo: Measure also what was measured by these judges before.
        watch: Told of the drawing; see ``generate``.
        model_for: Asked for the model if there is something to draw.

    Raises:
        ConsistError: The folder holds no run, or the run cannot be drawn or measured.
    """
    config = folder.read_config()
    choices = gather_choices(judges, config.prompts, noun)
    if not redo and (scores := current_scores(folder, choices)):
        return scores
    generate(replace(config, compare=True), folder.path, watch, model_for)
    shared, isolated = (judge_row(folder, row, config, judges, noun) for row in ROWS)
    told = any(isinstance(judge, ReadingJudge) for judge in judges)
    scores = SetScores(
        scores=shared.scores,
        isolated=isolated.scores,
        images=[
            {
                "file": folder.picture_path(index).name,
                "prompt": prompt,
                **({"asked": describe_wish(prompt)} if told else {}),
                "read": shared.pictures[index],
                "isolated": isolated.pictures[index],
            }
            for index, prompt in enumerate(config.prompts)
        ],
        choices=choices,
    )
    write_scores(folder, scores)
    return scores


def gather_choices(
    judges: Sequence[Judge], prompts: Sequence[str], noun: str | None
) -> dict[str, Any]:
    """All that the scores of a run depend on beside its pictures, as it is read back from JSON."""
    choices: dict[str, Any] = {"noun": noun} if noun else {}
    for judge in judges:
        choices |= judge.choices(prompts)
    plain: dict[str, Any] = to_plain(choices)
    return plain


def current_scores(folder: RunFolder, choices: Mapping[str, Any]) -> SetScores | None:
    """The scores of a run, if they were made with these choices and no picture is newer."""
    try:
        scores = read_scores(folder)
    except ConsistError:
        return None
    written = scores_path(folder).stat().st_mtime_ns
    pictures = range(len(folder.read_config().prompts))
    paths = [folder.picture_path(i, row) for row in ROWS for i in pictures]
    fresh = all(path.exists() and path.stat().st_mtime_ns <= written for path in paths)
    return scores if fresh and scores.choices == choices else None


def judge_row(
    folder: RunFolder, row: str, config: RunConfig, judges: Sequence[Judge], noun: str | None
) -> RowScores:
    """What all judges say of one row."""
    images = [folder.read_picture(index, row) for index in range(len(config.prompts))]
    scores: dict[str, float] = {}
    pictures: list[dict[str, Any]] = [{} for _ in images]
    for judge in judges:
        said = judge.score(Row(images, config.prompts, noun))
        scores |= said.scores
        pictures = [{**a, **b} for a, b in zip(pictures, said.pictures, strict=True)]
    return RowScores(scores, pictures)


def describe_wish(prompt: str) -> dict[str, Any]:
    """What a prompt asks of the mini world, as JSON takes it."""
    wish = asked(prompt)
    return {
        "scene": wish.scene,
        "style": wish.style,
        "action": wish.action,
        "subjects": [
            {"subject": one.subject, "attributes": dict(one.attributes)} for one in wish.subjects
        ],
    }


# many runs


def evaluate(
    *runs: Path | str,
    judges: Sequence[Judge] | None = None,
    noun: str | None = None,
    redo: bool = False,
    watch: Watch = lambda done, count: None,
) -> Evaluation:
    """Measures runs beside the same prompts drawn without sharing, and sums them up.

    ```python
    print(consist.evaluate("runs/cat").scores["identity"])
    ```

    Args:
        runs: Run folders, at least one. What they lack is drawn.
        judges: What measures, of ``consist.evaluation.judges.load_judges``; by default the reader
            of the drawn world, which knows pictures of `mini` alone.
        noun: What a segmenter shall find.
        redo: Measure also what was measured by these judges before.
        watch: Told how many runs are done (fractions count), and how many there are.

    Raises:
        ValueError: No run was given.
        ConsistError: A folder holds no run, or it cannot be drawn or measured.
    """
    if not runs:
        raise ValueError("no run was given; give at least one folder")
    folders = [RunFolder(Path(run)) for run in runs]
    for folder in folders:
        model = folder.read_config().model
        if judges is None and model != MINI:
            raise ConsistError(
                f"{folder.path} was drawn by {model}, which the reader does not know; give judges"
            )
    measuring = load_judges(reader=True) if judges is None else judges
    return evaluate_runs(folders, measuring, noun=noun, redo=redo, watch=watch)


def evaluate_runs(
    folders: Sequence[RunFolder],
    judges: Sequence[Judge],
    *,
    noun: str | None = None,
    redo: bool = False,
    watch: Watch = lambda done, count: None,
) -> Evaluation:
    """Measures runs and sums them up.

    Args:
        folders: At least one.
        judges: What measures.
        noun: As in ``score_run``.
        redo: As in ``score_run``.
        watch: Told how many runs are done (fractions count), and how many there are.

    Raises:
        ConsistError: As in ``score_run``.
    """
    model_for = SharedModel()
    scores = [
        score_run(
            folder,
            judges,
            noun=noun,
            redo=redo,
            watch=part(watch, number, len(folders)),
            model_for=model_for,
        )
        for number, folder in enumerate(folders)
    ]
    watch(len(folders), len(folders))
    return combine(folders, scores, judges)


def evaluate_benchmark(
    sets: Sequence[PromptSet],
    judges: Sequence[Judge],
    out: Path,
    settings: Mapping[str, Any],
    *,
    chosen: Sequence[PromptSet],
    seed: int = 0,
    noun: str | None = None,
    isolated: Path | None = None,
    redo: bool = False,
    watch: Watch = lambda done, count: None,
    engine: Engine = do_here,
    judging: Callable[[], Sequence[Judge]] | None = None,
) -> Evaluation:
    """Draws and measures sets of prompts, each in a run folder of its own, and sums them up.

    Args:
        sets: The whole benchmark.
        judges: What measures.
        out: The folder that holds the run folders. All finished runs of ``sets`` in it that were
            drawn with these settings are summed up, whoever drew them.
        settings: Fields of ``RunConfig`` for all runs.
        chosen: The sets to draw and measure now.
        seed: Added to the seed of every set.
        noun: The subject, for sets that do not name theirs.
        isolated: Another such folder; isolated rows that fit are copied instead of drawn.
        redo: As in ``score_run``.
        watch: As in ``evaluate_runs``.
        engine: Who draws and measures.
        judging: Gives ``judges`` where the engine's workers are; None: they are here.

    Raises:
        ConsistError: A run cannot be drawn or measured, or was drawn with other weights.
    """
    fields = {"out": out, "settings": settings, "seed": seed, "noun": noun, "redo": redo}
    hire = partial(SetEvaluator.hired, judging or (lambda: judges), isolated=isolated, **fields)
    engine(chosen, hire, watch)
    return sum_up(sets, judges, out, settings, seed=seed, noun=noun)


@dataclass(frozen=True, kw_only=True)
class SetEvaluator:
    """Draws and measures one set after another: the ``Worker`` of ``evaluate_benchmark``."""

    judges: Sequence[Judge]
    out: Path
    settings: Mapping[str, Any]
    seed: int = 0
    noun: str | None = None
    isolated: Path | None = None
    redo: bool = False
    model_for: Load = field(default_factory=SharedModel)

    @classmethod
    def hired(cls, judging: Callable[[], Sequence[Judge]], **fields: Any) -> SetEvaluator:
        """The evaluator whose judges are loaded here."""
        return cls(judges=judging(), **fields)

    def __call__(self, one: PromptSet, watch: Watch) -> None:
        """Draws and measures a set, unless that is done."""
        folder, config = RunFolder(self.out / one.name), configure(one, self.settings, self.seed)
        if folder.record_path.exists():
            check_weights(folder, config)
        if self.isolated:
            reuse_isolated(folder, config, RunFolder(self.isolated / one.name))
        generate(config, folder.path, watch, self.model_for)
        record = folder.read_record()
        if record.get("tags") != (tags := list(one.tags)):
            folder.write_record({**record, "tags": tags})
        score_run(folder, self.judges, noun=one.subject or self.noun, redo=self.redo)


def sum_up(
    sets: Sequence[PromptSet],
    judges: Sequence[Judge],
    out: Path,
    settings: Mapping[str, Any],
    *,
    seed: int = 0,
    noun: str | None = None,
) -> Evaluation:
    """Sums up all finished sets of a benchmark; arguments as for ``evaluate_benchmark``."""
    finished = []
    for one in sets:
        folder, config = RunFolder(out / one.name), configure(one, settings, seed)
        choices = gather_choices(judges, config.prompts, one.subject or noun)
        if (scores := current_scores(folder, choices)) and fits(folder, config):
            finished.append((folder, scores, one.tags))
    return combine(
        [folder for folder, _, _ in finished],
        [scores for _, scores, _ in finished],
        judges,
        [tags for _, _, tags in finished],
    )
