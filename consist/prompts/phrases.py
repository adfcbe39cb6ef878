"""Where prompts name their subject: the words, and their tokens.

It must not know models; a tokenizer is CLIP's, whose tokens end in ``</w>`` where a word ends.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from consist.attention.masks import SubjectTokens
from consist.errors import ConsistError

# also those of Textual Inversion, <my-cat>, whose further tokens are <my-cat>_1 and so on
WORD = re.compile(r"<[\w-]+>(?:_\d+)?|[\w'-]+|[^\w\s]")
# words that no noun phrase goes on behind
BREAKS = {
    *("a", "an", "the", "this", "that", "these", "those", "some"),
    *("my", "your", "his", "her", "its", "our", "their"),
    *("of", "in", "on", "at", "under", "over", "above", "below", "behind", "beside", "near", "by"),
    *("with", "without", "from", "to", "into", "onto", "through", "across", "inside", "outside"),
    *("between", "against", "around", "along", "during", "before", "after", "for", "as"),
    *("and", "or", "but", "while", "who", "which", "is", "are", "was", "were", "has", "have"),
}


def find_subject(
    tokenizer: Any, prompts: Sequence[str], subject: Sequence[str] = ()
) -> SubjectTokens:
    """Finds the tokens that name the subject in each prompt.

    Every occurrence counts, with all tokens of its words. SDXL's second tokenizer splits words as
    its first one does, so that the positions of either hold for both.

    Args:
        tokenizer: Of the pipeline, ``pipe.tokenizer``.
        prompts: One for each image.
        subject: Phrases such as ``("cat", "red bus")``, of which each prompt has at least one.
            Empty: the one that all prompts start with, see ``shared_phrase``.

    Returns:
        Positions by image and phrase, the start token being 0; () where a prompt lacks a phrase.

    Raises:
        ConsistError: A phrase is in no prompt, a prompt has no phrase, or none can be found.
    """
    phrases = tuple(subject) or (shared_phrase(prompts),)
    found = tuple(tuple(_positions(tokenizer, p, phrase) for phrase in phrases) for p in prompts)
    for number, phrase in enumerate(phrases):
        if not any(positions[number] for positions in found):
            raise ConsistError(
                f"no prompt has the words of --subject {phrase!r}; they must stand there as given"
            )
    for prompt, positions in zip(prompts, found, strict=True):
        if not any(positions):
            names = " nor ".join(map(repr, phrases))
            raise ConsistError(f"the prompt {prompt!r} does not name the subject, {names}")
    return found


def shared_phrase(prompts: Sequence[str]) -> str:
    """The noun phrase that all prompts start with, without its article.

    It is safe if it is the only one in what the prompts share, and ends where that ends or before:
    at the end of a prompt, a mark, a word such as "in", or one with "-ing".

    >>> shared_phrase(["A red cat on the moon", "a red cat dancing in Paris"])
    'red cat'

    Raises:
        ConsistError: There is none, or more than one, or it may go on differently.
    """
    words = [WORD.findall(prompt.lower()) for prompt in prompts]
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))
    shared = [column[0] for column in columns]
    marked = " ".join("|" if _breaks(word) else word for word in shared)
    phrases = [phrase.strip() for phrase in marked.split("|") if phrase.strip()]
    following = [rest[len(shared)] for rest in words if len(rest) > len(shared)]
    open_ended = not marked.endswith("|") and not all(
        _breaks(word) or word.endswith("ing") for word in following
    )
    if len(phrases) != 1 or open_ended:
        start = f"start with {' '.join(shared)!r}" if shared else "start with different words"
        raise ConsistError(
            f"the subject cannot be told from the prompts, which {start}; name it with --subject"
        )
    return phrases[0]


def split_identity(
    prompts: Sequence[str], subject: Sequence[str] = ()
) -> tuple[str, tuple[str, ...]]:
    """Splits prompts into the identity that all start with, and what each goes on with.

    >>> split_identity(["a cat in Paris", "a cat, on the moon"])
    ('a cat', ('in Paris', 'on the moon'))

    Args:
        prompts: One for each image.
        subject: Phrases such as ``("red cat",)``, with the last of which the identity ends. Empty:
            the one that all prompts start with, see ``shared_phrase``.

    Returns:
        The identity, and the rest of each prompt, "" where there is none.

    Raises:
        ConsistError: A prompt lacks a phrase, prompts differ before it, or none can be found.
    """
    phrases = tuple(subject) or (shared_phrase(prompts),)
    ends = [max(_end_of(prompt, phrase) for phrase in phrases) for prompt in prompts]
    starts = [prompt[:end] for prompt, end in zip(prompts, ends, strict=True)]
    for start in starts:
        if WORD.findall(start.lower()) != WORD.findall(starts[0].lower()):
            raise ConsistError(
                "prompts that become one must start alike up to the subject, "
                f"not with {starts[0]!r} and {start!r}"
            )
    rests = (prompt[end:] for prompt, end in zip(prompts, ends, strict=True))
    return starts[0].strip(), tuple(rest.strip(" ,;:") for rest in rests)


def _end_of(prompt: str, phrase: str) -> int:
    """The end of the first occurrence of ``phrase`` in ``prompt``, in letters."""
    words = list(WORD.finditer(prompt))
    wanted = WORD.findall(phrase.lower())
    if not wanted:
        raise ConsistError("a subject without a word was given")
    for start in range(len(words) - len(wanted) + 1):
        found = words[start : start + len(wanted)]
        if [word.group().lower() for word in found] == wanted:
            return found[-1].end()
    raise ConsistError(f"the prompt {prompt!r} does not name the subject, {phrase!r}")


def _breaks(word: str) -> bool:
    learned = word.startswith("<") and len(word) > 1
    return word in BREAKS or not (word[0].isalnum() or learned)


def _positions(tokenizer: Any, prompt: str, phrase: str) -> tuple[int, ...]:
    """The positions of all tokens of ``phrase`` in ``prompt``, wherever it stands."""
    wanted = tokenizer(phrase, add_special_tokens=False).input_ids
    if not wanted:
        raise ConsistError("a subject without a word was given")
    ids = tokenizer(prompt, truncation=True).input_ids
    tokens = tokenizer.convert_ids_to_tokens(ids)
    starts = (
        start
        for start in range(1, len(ids) - len(wanted) + 1)
        if ids[start : start + len(wanted)] == wanted and _ends_word(tokenizer, tokens[start - 1])
    )
    return tuple(position for start in starts for position in range(start, start + len(wanted)))


def _ends_word(tokenizer: Any, token: str) -> bool:
    # what was added to a vocabulary is a word, or the start of the text
    return token.endswith("</w>") or token in tokenizer.get_added_vocab()
