"""Runs to one HTML page that needs nothing else, and to a Markdown table beside it.

All styles, pictures and plots lie inside the page; it asks nothing of the network. It must not
know how pictures are drawn or scores are measured.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from consist.errors import ConsistError
from consist.evaluation.report.figure import MISSING
from consist.evaluation.report.markdown import draw_markdown, markdown_table
from consist.evaluation.report.page import draw_page, plots_missing
from consist.evaluation.report.runs import read_groups
from consist.evaluation.report.text import verdict
from consist.evaluation.scores import Evaluation
from consist.files import write_atomically
from consist.runs.folder import RunFolder

__all__ = ["markdown_table", "verdict", "write_report"]

log = logging.getLogger(__name__)


def write_report(
    runs: Sequence[RunFolder], out: Path, evaluations: Sequence[Evaluation] = ()
) -> Path:
    """Writes a page about ``runs``, and beside it the same numbers as Markdown.

    Runs without scores are shown as pictures. Runs of different settings are compared. Without
    matplotlib the page has no plots, and says so.

    Args:
        runs: Finished or not; a folder named twice counts once.
        out: The page, ``.html``; the table gets the same name with ``.md``.
        evaluations: Summaries of these runs, one per method: chance levels, tags and the quality
            of all pictures are taken from them, all else from the runs.

    Returns:
        The path of the page.

    Raises:
        ConsistError: No run was given, one cannot be read, or ``out`` cannot be written.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConsistError(f"the report is a page; name it {out.name or 'report'}.html")
    groups = read_groups(runs, evaluations)
    page, table = draw_page(groups), draw_markdown(groups)
    write_atomically(out, lambda file: file.write(page.encode()))
    write_atomically(out.with_suffix(".md"), lambda file: file.write(table.encode()))
    if plots_missing(groups):
        log.warning(MISSING)
    return out
