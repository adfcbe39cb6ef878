"""Draws and measures settings, each in a folder of its own, beside isolated pictures drawn once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from consist.evaluation.ablation.comparison import Comparison, compare
from consist.evaluation.ablation.known_masks import draw_with_masks
from consist.evaluation.ablation.settings import Setting, choose
from consist.evaluation.evaluate import SetEvaluator, sum_up
from consist.evaluation.judges import load_judges
from consist.evaluation.judges.judge import Judge
from consist.evaluation.scores import SUMMARY, Evaluation, read_scores, write_summary
from consist.methods import spell_out
from consist.runs.baseline import reuse_isolated
from consist.runs.drawing import generate
from consist.runs.folder import ISOLATED, RunFolder
from consist.runs.loading import SharedModel
from consist.runs.many.benchmarks import PromptSet, load_benchmark, select
from consist.runs.many.sets import configure
from consist.runs.many.worklist import Engine, Watch, Worker, do_here, unwatched
from consist.runs.versions import check_weights

ALONE = Setting(name=ISOLATED, method={"name": ISOLATED})

Trial = tuple[Setting, PromptSet]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all settings have in common."""

    sets: Sequence[PromptSet]  # that are summed up
    chosen: Sequence[PromptSet]  # of them, those to draw and measure now
    judges: Sequence[Judge]
    out: Path  # holds a folder of run folders for each setting
    base: Mapping[str, Any] = field(default_factory=dict)  # fields of RunConfig but the method
    seed: int = 0  # added to that of every set
    noun: str | None = None  # the subject, for sets that do not name theirs

    def folder(self, setting: Setting) -> Path:
        """Where the runs of a setting lie, whichever script draws them."""
        words = "".join(c if c.isalnum() or c in ".-" else " " for c in setting.name).split()
        digest = setting.digest({**self.base, "seed": self.seed})
        return self.out / f"{'-'.join(words)[:60]}-{digest}"

    def settings(self, setting: Setting) -> dict[str, Any]:
        """The fields of RunConfig that draw a setting."""
        return {**self.base, "method": spell_out(setting.method)}


def ablate(
    settings: Sequence[Setting],
    *,
    benchmark: str = "mini-sets",
    limit: int | None = None,
    out: Path | str = "runs/ablations",
    judges: Sequence[Judge] | None = None,
    base: Mapping[str, Any] | None = None,
    seed: int = 0,
    watch: Watch = unwatched,
) -> Comparison:
    """Draws settings of methods from the same noise, measures them, and compares them.

    ```python
    keys = ("energy:0.9", "energy:0.99")
    settings = [
        consist.Setting(name=text, method={"name": "spectral", "keys": text}) for text in keys
    ]
    for outcome in consist.ablate(settings, limit=8).outcomes:
        print(outcome.setting.name, outcome.gains["identity"])
    ```

    What is there already is not drawn again.

    Args:
        settings: What is tried, of different names.
        benchmark: Sets of prompts: ``mini-sets``, or a ``.yaml`` file in ConsiStory+'s format.
        limit: At most so many sets, spread evenly; None: all.
        out: The folder of all runs.
        judges: What measures; by default the reader of the drawn world, which knows `mini` alone.
        base: Fields of ``RunConfig`` for all runs, such as ``{"steps": 10}``.
        seed: Added to the seed of every set.
        watch: Told how many runs are done (fractions count), and how many there are.

    Raises:
        ValueError: Two settings have one name, or one is compared with none of them.
        ConsistError: A run cannot be drawn or measured.
    """
    chosen = choose(settings)
    sets = select(load_benchmark(benchmark), limit=limit)
    measuring = load_judges(reader=True) if judges is None else judges
    work = Work(
        sets=sets, chosen=sets, judges=measuring, out=Path(out), base=dict(base or {}), seed=seed
    )
    return compare_all(chosen, measure(chosen, work, watch))


def measure(
    settings: Sequence[Setting],
    work: Work,
    watch: Watch = unwatched,
    engine: Engine = do_here,
    judging: Callable[[], Sequence[Judge]] | None = None,
) -> dict[str, Evaluation]:
    """Draws and measures all settings; what is there already is not drawn again.

    Args:
        settings: Of different names.
        work: Where, on which sets and by whom.
        watch: Told how many runs are done (fractions count), and how many there are.
        engine: Who draws and measures.
        judging: Gives the judges where the engine's workers are; None: they are here.

    Returns:
        By the names of the settings, over the sets that are finished.

    Raises:
        ConsistError: A run cannot be drawn or measured.
    """
    isolated = [(ALONE, one) for one in work.chosen]
    others = [(setting, one) for setting in settings for one in work.chosen]
    total = len(isolated) + len(others)
    hire = hiring(work, judging)
    # all others are compared with the isolated pictures, so these come first
    engine(isolated, hire, lambda done, count: watch(done, total))
    engine(others, hire, lambda done, count: watch(len(isolated) + done, total))
    return {setting.name: sum_up_setting(setting, work) for setting in settings}


def compare_all(settings: Sequence[Setting], found: Mapping[str, Evaluation]) -> Comparison:
    """Compares settings by the scores that lie in their run folders."""
    scores = {
        name: [read_scores(RunFolder(Path(run))) for run in one.runs] for name, one in found.items()
    }
    summaries = {name: {**one.scores, **one.quality} for name, one in found.items()}
    return compare(settings, scores, summaries)


def hiring(
    work: Work, judging: Callable[[], Sequence[Judge]] | None
) -> Callable[[], Worker[Trial]]:
    """What makes measurers: the same one again and again, unless they load their own judges."""
    if judging:
        return partial(Measurer, replace(work, judges=()), judging)
    measurer = Measurer(work)
    return lambda: measurer


def sum_up_setting(setting: Setting, work: Work) -> Evaluation:
    """Sums up the sets of a setting that are finished, and writes the summary."""
    folder, seed = work.folder(setting), work.seed
    given = work.sets, work.judges, folder, work.settings(setting)
    evaluation = sum_up(*given, seed=seed, noun=work.noun)
    write_summary(folder / SUMMARY, evaluation)
    return evaluation


class Measurer:
    """Draws and measures one setting on one set, again and again: the ``Worker`` of ablations."""

    def __init__(self, work: Work, judging: Callable[[], Sequence[Judge]] | None = None):
        self.work = replace(work, judges=judging()) if judging else work
        self.model_for = SharedModel()

    def __call__(self, trial: Trial, watch: Watch) -> None:
        """Draws a trial, and measures it unless it is ``ALONE``."""
        setting, one = trial
        if setting == ALONE:
            self._draw_isolated(one, watch)
            return
        if setting.masked:
            self._draw_masked(setting, one, watch)
        evaluator = SetEvaluator(
            judges=self.work.judges,
            out=self.work.folder(setting),
            settings=self.work.settings(setting),
            seed=self.work.seed,
            noun=self.work.noun,
            isolated=self.work.folder(ALONE),
            model_for=self.model_for,
        )
        # of masked settings all is drawn by now
        evaluator(one, unwatched if setting.masked else watch)

    def _draw_isolated(self, one: PromptSet, watch: Watch) -> None:
        """Draws the isolated pictures that all settings are compared with."""
        work = self.work
        folder = RunFolder(work.folder(ALONE) / one.name)
        config = replace(configure(one, work.settings(ALONE), work.seed), compare=False)
        if folder.record_path.exists():
            check_weights(folder, config)
        generate(config, folder.path, watch, self.model_for)

    def _draw_masked(self, setting: Setting, one: PromptSet, watch: Watch) -> None:
        """Draws the pictures of a setting that is told the masks of the isolated ones."""
        work = self.work
        folder = RunFolder(work.folder(setting) / one.name)
        config = configure(one, work.settings(setting), work.seed)
        if folder.record_path.exists():
            check_weights(folder, config)
        reuse_isolated(folder, config, RunFolder(work.folder(ALONE) / one.name))
        draw_with_masks(folder, config, work.judges, watch, self.model_for)
