"""Named subjects: the recipe of the pictures that make one, in a small file.

A recipe draws the same pictures again from their prompts and seeds; no picture, weight or tensor
is kept. Of a subject that was given by pictures it says where they are, and what they were.
It must not know models or methods.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from consist.errors import ConsistError
from consist.files import write_atomically
from consist.runs.config import RunConfig, spread_seeds

FORMAT = 1
NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A subject as the run of the pictures that make it, all of which are its method's anchors."""

    config: RunConfig
    versions: Mapping[str, str] = field(default_factory=dict)  # that they were drawn with
    pictures: tuple[str, ...] = ()  # as anchor_pictures of a run, where they are not drawn
    digests: tuple[str, ...] = ()  # as anchor_digests of a run

    @classmethod
    def load(cls, name: str) -> Subject:
        """Reads a subject by its name, or from a file that ends in ``.json``.

        Raises:
            ConsistError: There is none, or the file is damaged or of another format.
        """
        path = subject_path(name)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            format_ = data.pop("format")
            subject = cls(
                config=RunConfig.from_json(data["config"]),
                versions=data["versions"],
                pictures=tuple(data.get("pictures", ())),
                digests=tuple(data.get("digests", ())),
            )
        except OSError:
            known = ", ".join(list_subjects()) or "none"
            raise ConsistError(f"there is no subject {name!r}; known: {known}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConsistError(f"{path} is damaged, or holds no subject") from None
        if format_ != FORMAT:
            raise ConsistError(f"{path} has format {format_}; this version reads {FORMAT}")
        return subject

    def save(self, name: str, force: bool = False) -> Path:
        """Writes the subject under a name, or to a file that ends in ``.json``, and says where.

        What the anchors of another subject of that name share is removed.

        Raises:
            ConsistError: The name cannot be one, it is taken and not ``force``, or the disk or the
                permissions do not allow it.
        """
        path = subject_path(name)
        if path.exists() and not force:
            raise ConsistError(f"there is a subject {name!r} already; --force overwrites it")
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"
        another = path.exists() and path.read_bytes() != text.encode()
        write_atomically(path, lambda file: file.write(text.encode()))
        if another:
            cache_path(name).unlink(missing_ok=True)
        return path

    def to_json(self) -> dict[str, Any]:
        """What the file holds."""
        recipe = {"config": self.config.to_json(), "versions": dict(self.versions)}
        given = {"pictures": list(self.pictures), "digests": list(self.digests)}
        return {"format": FORMAT, **recipe, **(given if self.pictures else {})}

    def scenes(
        self, prompts: tuple[str, ...], seeds: tuple[int, ...] = (), same_noise: bool = False
    ) -> RunConfig:
        """A run of the subject in new scenes, for ``generate``.

        Args:
            prompts: One per picture.
            seeds: As for ``spread_seeds``; by default they go on from the subject's own.
            same_noise: As for ``spread_seeds``.

        Raises:
            ConsistError: A prompt is missing or empty, or the seeds do not fit.
        """
        given = seeds or (self.config.next_seed(),)
        return replace(
            self.config,
            prompts=prompts,
            seeds=spread_seeds(given, len(prompts), same_noise),
            anchor_prompts=self.config.prompts,
            anchor_seeds=self.config.seeds,
            anchor_pictures=self.pictures,
            anchor_digests=self.digests,
        )


def subject_path(name: str) -> Path:
    """Where the subject of a name lies; a name that ends in ``.json`` is the file itself.

    Raises:
        ConsistError: The name has other characters than letters, digits, - and _.
    """
    if name.endswith(".json"):
        return Path(name)
    if not NAME.fullmatch(name):
        raise ConsistError(
            f"a subject's name has letters, digits, - and _, or is a file that ends in .json, "
            f"not {name!r}"
        )
    return subjects_folder() / f"{name}.json"


def cache_path(name: str) -> Path:
    """Where what the anchors of a subject share is kept, if it is: beside the subject."""
    return subject_path(name).with_suffix(".safetensors").absolute()


def subjects_folder() -> Path:
    """Where named subjects lie: in ``$CONSIST_HOME``, by default ``~/.local/share/consist``."""
    home = os.environ.get("CONSIST_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share" / "consist") / "subjects"


def list_subjects() -> list[str]:
    """The names of the subjects that were saved, in order."""
    return sorted(path.stem for path in subjects_folder().glob("*.json"))
