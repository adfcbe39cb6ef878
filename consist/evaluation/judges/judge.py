"""What a judge is: it measures one row of pictures and says what its numbers depend on.

A judge never sees runs, folders or methods, nor the row that another one is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image


@dataclass(frozen=True)
class Row:
    """The pictures of one row of a run."""

    images: Sequence[Image.Image]  # mode RGB, all of one size
    prompts: Sequence[str]  # one per picture
    noun: str | None = None  # the subject, for a segmenter to find


@dataclass(frozen=True)
class RowScores:
    """Scores of a row by the keys of ``SCORES``, and what each picture shows, as JSON takes it."""

    scores: dict[str, float]
    pictures: list[dict[str, Any]]


class Judge(Protocol):
    """Measures rows of pictures."""

    def score(self, row: Row) -> RowScores:
        """Measures one row; NaN where there is nothing to measure."""

    def choices(self, prompts: Sequence[str]) -> dict[str, Any]:
        """All that the scores of pictures of ``prompts`` depend on, as JSON takes it."""
