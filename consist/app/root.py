"""The folder of all runs, and nothing outside it.

What a visitor names is looked up here; it must not know how anything is drawn.
"""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from consist.errors import ConsistError
from consist.runs.config import RunConfig
from consist.runs.folder import RunFolder, default_folder

# what a visitor may look at, inside a run
PICTURE = re.compile(r"(isolated/)?[0-9]{3,}\.png")
KEPT = re.compile(
    rf"{PICTURE.pattern}|(isolated/)?[0-9]{{3,}}\.old-[0-9]+\.png|grid\.png|\w+\.json"
)


@dataclass(frozen=True)
class RunRoot:
    """The folder whose subfolders are the runs that can be seen and changed."""

    path: Path

    def names(self) -> list[str]:
        """The runs that are there, those that were changed last first."""
        records = [path / "run.json" for path in self.path.glob("*") if self._holds(path.name)]
        records.sort(key=lambda record: record.stat().st_mtime, reverse=True)
        return [record.parent.name for record in records]

    def find(self, name: str) -> RunFolder:
        """The run of a name.

        Raises:
            ConsistError: There is none; a path, a link out of the folder or a hidden name is none.
        """
        if not self._holds(name):
            raise ConsistError(f"there is no run {name!r} here")
        return RunFolder(self.path / name)

    def picture(self, name: str, file: str) -> Path:
        """A picture of a run, by its path inside the run, such as ``isolated/000.png``.

        Raises:
            ConsistError: There is none.
        """
        path = self.find(name).path / file
        if not PICTURE.fullmatch(file) or not self._is_inside(path) or not path.is_file():
            raise ConsistError(f"there is no picture {file!r} in {name!r}")
        return path

    def pack(self, name: str) -> bytes:
        """The pictures and the JSON files of a run, as a zip archive with one folder.

        Raises:
            ConsistError: There is no such run.
        """
        folder = self.find(name).path
        archive = io.BytesIO()
        # pictures are compressed already
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
            for path in sorted(folder.rglob("*")):
                inside = path.relative_to(folder).as_posix()
                if KEPT.fullmatch(inside) and self._is_inside(path) and path.is_file():
                    file.write(path, f"{name}/{inside}")
        return archive.getvalue()

    def place(self, config: RunConfig, taken: frozenset[str] = frozenset()) -> RunFolder:
        """Where a run is drawn: its default folder, or with a number behind if that is not free.

        Args:
            config: The run.
            taken: Names that are not free, whatever they hold.
        """
        first = default_folder(config, self.path)
        names = (first.name if number == 1 else f"{first.name}-{number}" for number in count(1))
        folders = (RunFolder(self.path / name) for name in names if name not in taken)
        return next(folder for folder in folders if self._is_free(folder, config))

    def _is_free(self, folder: RunFolder, config: RunConfig) -> bool:
        try:
            folder.check(config)
        except ConsistError:
            return False
        return self._is_inside(folder.path)

    def _holds(self, name: str) -> bool:
        path = self.path / name
        plain = name == path.name and not name.startswith(".")
        return plain and self._is_inside(path) and RunFolder(path).record_path.is_file()

    def _is_inside(self, path: Path) -> bool:
        try:
            return path.resolve().is_relative_to(self.path.resolve())
        except (OSError, ValueError):  # a loop of links, or a name with a null
            return False
