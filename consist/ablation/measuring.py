"""Draws and measures settings, each in a folder of its own, beside isolated pictures drawn once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from consist.ablation.given import draw_with_masks
from consist.ablation.settings import Setting
from consist.benchmarks import PromptSet
from consist.drawing import Load, Watch, generate
from consist.evaluate import SharedModel, configure, evaluate_benchmark
from consist.judges.judge import Judge
from consist.origin import check_weights
from consist.reuse import reuse_isolated
from consist.run import ISOLATED, RunFolder
from consist.scores import SUMMARY, Evaluation, write_summary

ALONE = Setting(name=ISOLATED, method={"name": ISOLATED})


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
        return {**self.base, "method": setting.spelled()}


def measure(
    settings: Sequence[Setting], work: Work, watch: Watch = lambda done, count: None
) -> dict[str, Evaluation]:
    """Draws and measures all settings; what is there already is not drawn again.

    Args:
        settings: Of different names.
        work: Where, on which sets and by whom.
        watch: Told how many runs are done (fractions count), and how many there are.

    Returns:
        By the names of the settings, over the sets that are finished.

    Raises:
        ConsistError: A run cannot be drawn or measured.
    """
    model_for, count = SharedModel(), len(work.chosen)
    total = (1 + len(settings)) * count

    def part(number: int) -> Watch:
        return lambda done, runs: watch((number + done / runs) * count, total)

    isolated = draw_isolated(work, part(0), model_for)
    found = {}
    for number, setting in enumerate(settings, 1):
        told = part(number)
        if setting.masked:
            draw_masked(setting, work, isolated, told, model_for)
        found[setting.name] = evaluate_benchmark(
            work.sets,
            work.judges,
            work.folder(setting),
            work.settings(setting),
            chosen=work.chosen,
            seed=work.seed,
            noun=work.noun,
            isolated=isolated,
            # of masked settings all is drawn by now
            watch=(lambda done, runs: None) if setting.masked else told,
            model_for=model_for,
        )
        write_summary(work.folder(setting) / SUMMARY, found[setting.name])
    return found


def draw_isolated(work: Work, watch: Watch, model_for: Load) -> Path:
    """Draws the isolated pictures that all settings are compared with, and gives their folder."""
    out = work.folder(ALONE)
    for number, one in enumerate(work.chosen):
        folder = RunFolder(out / one.name)
        config = replace(configure(one, work.settings(ALONE), work.seed), compare=False)
        if folder.record_path.exists():
            check_weights(folder, config)
        generate(config, folder.path, _part(watch, number, len(work.chosen)), model_for)
    return out


def draw_masked(
    setting: Setting, work: Work, isolated: Path, watch: Watch, model_for: Load
) -> None:
    """Draws the pictures of a setting that is told the masks of the isolated ones."""
    for number, one in enumerate(work.chosen):
        folder = RunFolder(work.folder(setting) / one.name)
        config = configure(one, work.settings(setting), work.seed)
        if folder.record_path.exists():
            check_weights(folder, config)
        reuse_isolated(folder, config, RunFolder(isolated / one.name))
        part = _part(watch, number, len(work.chosen))
        draw_with_masks(folder, config, work.judges, part, model_for)


def _part(watch: Watch, number: int, count: int) -> Watch:
    """Hears of one run and tells of all."""
    return lambda done, images: watch(number + done / images, count)
