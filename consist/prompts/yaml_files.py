"""YAML files that have a name in the package, or lie at a path of the user's.

It must not know what they hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from consist.errors import ConsistError, unknown


def read_yaml(kind: str, name: str, path: Path, known: Mapping[str, Path]) -> Any:
    """What a file holds: plain lists, dicts, texts and numbers.

    Args:
        kind: What the file is, for errors: "pack".
        name: As it was asked for.
        path: Where that is.
        known: The files of this kind that the package has, by name.

    Raises:
        ConsistError: There is no such file, or it is no YAML.
    """
    if not path.is_file():
        raise ConsistError(f"{unknown(kind, name, known)}, or a .yaml file")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConsistError(f"{kind} {path} cannot be read: {reason}") from error
