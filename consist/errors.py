"""What goes wrong in a way that the user can mend, said in one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ConsistError(Exception):
    """Something that the user can mend; the command line prints it and exits with code 2."""


def unknown(kind: str, given: str, known: Iterable[str]) -> str:
    """The sentence for a name that does not exist.

    >>> unknown("method", "spektral", ["isolated", "spectral"])
    "unknown method 'spektral', did you mean 'spectral'? known: isolated, spectral"
    """
    names = list(known)
    near = get_close_matches(given.lower(), names, n=1, cutoff=0.5)
    hint = f", did you mean {near[0]!r}?" if near else ";"
    return f"unknown {kind} {given!r}{hint} known: {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__
