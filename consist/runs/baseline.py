"""Isolated pictures that were drawn for another run, and would be drawn the same for this one."""

from __future__ import annotations

from pathlib import Path

from consist.files import write_atomically
from consist.methods import build
from consist.runs.chunks import plan
from consist.runs.config import SAME_ROW, RunConfig
from consist.runs.folder import ISOLATED, SHARED, RunFolder, identity
from consist.runs.versions import has_weights_of, versions
from consist.settings.fields import marked


def fits(folder: RunFolder, config: RunConfig) -> bool:
    """Whether a folder holds this very run, drawn with these very weights."""
    same = identity(folder.read_config()) == identity(config)
    return same and has_weights_of(folder, config)


def reuse_isolated(folder: RunFolder, config: RunConfig, source: RunFolder) -> None:
    """Copies the isolated row of another run, if it would be drawn the same.

    Args:
        folder: New, or of the run that ``config`` draws.
        config: The run.
        source: The other run, or a folder without one.

    Raises:
        ConsistError: ``folder`` holds something else, or the method cannot draw the run.
    """
    row, count = find_isolated(source, config), len(config.prompts)
    if row is None:
        return
    plan(count, build(config.method).anchor_count(count), config.batch_size)
    folder.check(config)
    if not folder.record_path.exists():
        begun = {"config": config.to_json(), "versions": versions(config.model)}
        folder.write_record({**begun, "finished": False})
    for index in range(count):
        if not folder.picture_path(index, ISOLATED).exists():
            copy_file(source.picture_path(index, row), folder.picture_path(index, ISOLATED))


def find_isolated(source: RunFolder, config: RunConfig) -> str | None:
    """The row of another run that holds the isolated pictures of ``config``; None if none does."""
    if not source.record_path.exists():
        return None
    other = source.read_config()
    ours, theirs = identity(config), identity(other)
    names = (ours.keys() | theirs.keys()) - marked(RunConfig, SAME_ROW).keys()
    if any(ours.get(name) != theirs.get(name) for name in names):
        return None
    if not has_weights_of(source, config):
        return None
    row = SHARED if other.method["name"] == ISOLATED else ISOLATED
    there = all(source.picture_path(i, row).exists() for i in range(len(config.prompts)))
    return row if there else None


def copy_file(source: Path, target: Path) -> None:
    """Copies a file in full or not at all."""
    data = source.read_bytes()
    write_atomically(target, lambda file: file.write(data))
