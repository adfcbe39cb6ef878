"""Writes what the docs and the typed names say of methods, from the methods themselves.

The table of methods in README.md, the fields of each in docs/methods.md, and the methods that
consist/__init__.pyi names. Each place lies between two marks.

    python scripts/write_docs.py             # after a method or a field was added or changed
    python scripts/write_docs.py --check     # says what is not up to date, and exits with 1
"""

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from consist.methods import METHODS, Method
from consist.runs.config import DEFAULT_METHOD
from consist.settings.fields import as_text, field_help

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Writes all, or checks all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = [path for path, text in written() if path.read_text(encoding="utf-8") != text]
    for path, text in written():
        if path in stale and not check:
            path.write_text(text, encoding="utf-8")
        if path in stale:
            print(f"{path.relative_to(ROOT)} {'is not up to date' if check else 'was written'}")
    if check and stale:
        sys.exit(1)


def written() -> Iterator[tuple[Path, str]]:
    """The files as they should be."""
    readme = ROOT / "README.md"
    yield readme, between(readme.read_text(encoding="utf-8"), "methods", method_table())
    page = ROOT / "docs" / "methods.md"
    text = page.read_text(encoding="utf-8")
    for name, method in METHODS.items():
        text = between(text, f"fields {name}", field_table(method))
    yield page, text
    stub = ROOT / "consist" / "__init__.pyi"
    yield stub, with_imports(stub.read_text(encoding="utf-8"))


def between(text: str, mark: str, inside: str) -> str:
    """A text with something else between ``<!-- mark -->`` and ``<!-- /mark -->``."""
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    if start not in text or end not in text:
        sys.exit(f"error: a file has no {start} ... {end}, which it must have")
    before, _, rest = text.partition(start)
    # without empty lines some readers of Markdown draw no table
    return f"{before}{start}\n\n{inside}\n{end}{rest.partition(end)[2]}"


def method_table() -> str:
    """A row for each method, the default first."""
    rows = ["| `--method` | what an image sees of the others | after |", "|---|---|---|"]
    names = sorted(METHODS, key=lambda name: name != DEFAULT_METHOD)
    rows += [f"| `{name}` | {METHODS[name].sees} | {METHODS[name].after} |" for name in names]
    return "\n".join(rows) + "\n"


def field_table(method: type[Method]) -> str:
    """A row for each field of a method."""
    told = field_help(method)
    rows = ["| field | default | meaning |", "|---|---|---|"]
    for one in fields(method):  # type: ignore[arg-type]
        meaning = told[one.name].replace("|", r"\|")
        rows.append(f"| `{one.name}` | `{as_text(one.default)}` | {meaning} |")
    return "\n".join(rows) + "\n" if len(rows) > 2 else "It has no fields.\n"


def with_imports(stub: str) -> str:
    """The stub, with an import of each method in the place of those that it has."""
    wanted = [
        f"from .{one.__module__.removeprefix('consist.')} import {one.__name__} as {one.__name__}"
        for one in METHODS.values()
    ]
    kept = [line for line in stub.splitlines() if not re.match(r"from \.methods\.", line)]
    at = kept.index("from .methods import METHODS as METHODS") + 1
    return "\n".join([*kept[:at], *sorted(wanted), *kept[at:]]) + "\n"


if __name__ == "__main__":
    main()
