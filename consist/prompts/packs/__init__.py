"""Packs: prompts about whatever subject is named, from the package or from a file.

A file is a YAML list of texts. In them ``{subject}`` stands for the words of the subject, such as
"a xyz cat", and ``{noun}`` for these without their article. It must not know models.
"""

from __future__ import annotations

from pathlib import Path

from consist.errors import ConsistError
from consist.prompts.yaml_files import read_yaml

FOLDER = Path(__file__).parent
PACKS = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
ARTICLES = ("a", "an", "the")


def load_pack(name: str, subject: str, model: str = "") -> tuple[str, ...]:
    """The prompts of a pack about a subject.

    >>> load_pack("property", "an orange cat")[0]
    'a red orange cat'

    Args:
        name: A key of ``PACKS``, or a file. Where there is one for the model alone, such as
            ``mini-art`` for ``art``, it is taken instead.
        subject: The subject's words, as prompts begin with them.
        model: That draws.

    Raises:
        ConsistError: There is no such pack, it is damaged, or a prompt has no place for the
            subject.
    """
    path = PACKS.get(f"{model}-{name}") or PACKS.get(name) or Path(name)
    noun = noun_of(subject)
    prompts = []
    for number, text in enumerate(read_pack(name, path), 1):
        prompt = text.replace("{subject}", subject.strip()).replace("{noun}", noun)
        if prompt == text:
            raise ConsistError(
                f"prompt {number} of pack {name} has neither {{subject}} nor {{noun}} in it"
            )
        prompts.append(prompt)
    return tuple(prompts)


def read_pack(name: str, path: Path) -> list[str]:
    """The texts of a pack as they stand there.

    Raises:
        ConsistError: As ``load_pack``.
    """
    texts = read_yaml("pack", name, path, PACKS)
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise ConsistError(f"pack {path} must be a list of texts, and not empty")
    return texts


def noun_of(subject: str) -> str:
    """The words of a subject without their article.

    >>> noun_of("a xyz cat")
    'xyz cat'

    Raises:
        ConsistError: Nothing is left.
    """
    words = subject.split()
    if words and words[0].lower() in ARTICLES:
        words = words[1:]
    if not words:
        raise ConsistError(f"a subject is words such as 'a xyz cat', not {subject!r}")
    return " ".join(words)
