"""Files that are written in full or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from consist.errors import ConsistError


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes ``path`` in full or not at all, also when the disk is full or the process dies.

    Raises:
        ConsistError: The disk or the permissions do not allow it.
    """
    name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException as error:
        if name is not None:
            Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ConsistError(f"{path} cannot be written: {error.strerror or error}") from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_png(path: Path, image: Image.Image, text: dict[str, str]) -> None:
    """Writes a picture with ``text`` in its PNG text chunks, in full or not at all."""
    info = PngInfo()
    for key, value in text.items():
        info.add_itxt(key, value)
    write_atomically(path, lambda file: image.save(file, "PNG", pnginfo=info))
