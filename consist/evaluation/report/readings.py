"""What was read off a picture, and where it is not what was expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consist.evaluation.report.html import Html, tag
from consist.evaluation.report.text import DASH

# what may change from picture to picture
FREE = {"class", "scene", "style", "action"}


@dataclass(frozen=True)
class Reading:
    """What was read off one picture, and what was expected of it."""

    fields: Mapping[str, str]  # such as {"class": "cat", "scene": "paris", "color": "red"}
    wished: Mapping[str, str]  # of the prompt, or of most pictures of the row; may lack some

    def wrong(self, name: str) -> bool:
        """Whether something else was expected."""
        return name in self.wished and self.wished[name] != self.fields.get(name)

    def shown(self, name: str) -> list[Html | str]:
        """A field as text, marked where it disagrees."""
        text = self.fields.get(name, DASH).replace("_", " ")
        if not self.wrong(name):
            return [text]
        return [tag("mark", text), f" not {self.wished[name].replace('_', ' ')}"]

    def caption(self) -> list[Html | str]:
        """Class and scene, then all else that disagrees."""
        parts: list[Html | str] = []
        for name in ("class", "scene"):
            if name in self.fields:
                parts += [*([" · "] if parts else []), *self.shown(name)]
        for name in dict.fromkeys((*self.fields, *self.wished)):
            if name not in ("class", "scene") and self.wrong(name):
                parts += [tag("br"), name.replace("_", " "), " ", *self.shown(name)]
        return parts


def read_row(images: Sequence[Mapping[str, Any]], key: str) -> list[Reading | None]:
    """What was read off each picture of a row; None where nothing was.

    Args:
        images: As ``SetScores`` has them.
        key: "read", or "isolated" for the row without sharing.
    """
    pairs = []
    for image in images:
        asked = image.get("asked") or {}
        several = len(asked.get("subjects", ())) > 1
        pairs.append((_flat(image.get(key) or {}, several), _flat(asked, several)))
    usual = _usual([fields for fields, _ in pairs])
    return [Reading(fields, {**usual, **asked}) if fields else None for fields, asked in pairs]


def _flat(read: Mapping[str, Any], several: bool) -> dict[str, str]:
    """All that was read or asked, by name; attributes of several subjects by their class."""
    subjects = read.get("subjects", ())[: None if several else 1]
    names = [_word(one["subject"]) for one in subjects]
    fields = {"class": " and ".join(sorted(filter(None, names))) or None}
    fields |= {key: _word(value) for key, value in read.items()}
    for name, one in zip(names, subjects, strict=True):
        start = f"{name} " if several else ""
        fields |= {f"{start}{key}": _word(value) for key, value in one["attributes"].items()}
    return {key: value for key, value in fields.items() if value is not None}


def _word(value: Any) -> str | None:
    """A value, or its name where it comes with a confidence; None where it is no word."""
    if isinstance(value, Mapping):
        value = value.get("name")
    return value if isinstance(value, str) else None


def _usual(readings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What most pictures of a row say of the identity."""
    said: dict[str, Counter[str]] = {}
    for name, value in (pair for one in readings for pair in one.items()):
        if name.split(" ")[-1] not in FREE:
            said.setdefault(name, Counter())[value] += 1
    return {name: values.most_common(1)[0][0] for name, values in said.items()}
