"""Words that a model's tokenizer has whole but has seldom met: identifiers for a subject.

DreamBooth (Ruiz et al., arXiv:2208.12242, section 3.2) takes rare tokens of at most three letters,
so that the model has little to unlearn. CLIP numbers its merges from the commonest pair on, so a
late one is a rare word. That says nothing of meaning: see what a word draws before training on it.
It must not know text encoders.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from diffusers import DiffusionPipeline
from transformers import CLIPTokenizer

from consist.errors import ConsistError
from consist.mini.world import vocabulary
from consist.models.loading import MINI, MINI_FOLDER
from consist.models.tensor_files import plain_errors

END = "</w>"  # closes the last token of a word
MAX_LETTERS = 3  # of an identifier
RARE = 0.8  # rare words come after this share of the merges
# words late among CLIP's merges that stand for something all the same
MEANINGS = {
    "sks": "a rifle, the SKS, which models draw for it",
    "cov": "short for covid",
    "dbz": "Dragon Ball Z, a cartoon",
    "ewe": "a female sheep",
    "fck": "a swear word",
    "hmv": "a brand whose sign is a dog with a gramophone",
    "jap": "a slur",
    "jig": "a dance and a fishing lure",
    "mib": "Men in Black, a film",
    "ssh": "a call for silence",
    "tux": "a dinner jacket, and the penguin of Linux",
    "ulf": "a name of men",
    "uwe": "a name of men",
}


@dataclass(frozen=True, kw_only=True)
class Identifier:
    """What the tokenizers of a model make of a word.

    Attributes:
        word: As given.
        pieces: Its tokens, in the tokenizer that splits it into the most.
        ids: Its id in each tokenizer; empty if it is not one token in all.
        rank: Its place among the merges of the first tokenizer, 1 for the commonest; 0 for single
            letters, which need none, and for words of several tokens.
        doubts: Why it is no good identifier, a sentence each; empty if nothing speaks against it.
    """

    word: str
    pieces: tuple[str, ...]
    ids: tuple[int, ...]
    rank: int
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class Tokenizers:
    """The tokenizers of a model, one for each text encoder, and what they say of words."""

    parts: tuple[CLIPTokenizer, ...]
    # the ids of the first that are in captions that the model was trained on; None if unknown
    trained: frozenset[int] | None = None

    @classmethod
    def load(cls, model: str) -> Tokenizers:
        """Loads the tokenizers of a model, without its weights.

        Args:
            model: "mini", a folder in diffusers' layout or a hub id.

        Raises:
            ConsistError: There is no such model, it has no CLIP tokenizer, or it is a file, which
                has none either.
        """
        source = str(MINI_FOLDER) if model == MINI else model
        if Path(source).is_file():
            raise ConsistError(f"{model} is a file without a tokenizer; give a folder or a hub id")
        with plain_errors(model):
            index = DiffusionPipeline.load_config(source)
            names = [name for name in ("tokenizer", "tokenizer_2") if name in index]
            if not names:
                raise ConsistError(f"{model} has no CLIP tokenizer")
            parts = tuple(CLIPTokenizer.from_pretrained(source, subfolder=name) for name in names)
        return cls(parts, _words_of_mini(parts[0]) if model == MINI else None)

    @cached_property
    def ranks(self) -> dict[str, int]:
        """The merged tokens of the first tokenizer with their places, 1 for the commonest."""
        known = self.parts[0].get_vocab()
        added = self.parts[0].get_added_vocab()
        merged = [t for t in known if len(t.removesuffix(END)) > 1 and t not in added]
        return {token: place for place, token in enumerate(sorted(merged, key=known.get), 1)}

    def judge(self, word: str) -> Identifier:
        """What a word is to the model, and what speaks against it as an identifier.

        Raises:
            ConsistError: It is empty, or several words.
        """
        if word.split() != [word]:
            raise ConsistError(f"an identifier is one word, not {word!r}")
        split = [tokenizer.tokenize(word) for tokenizer in self.parts]
        most = max(split, key=len)
        whole = len(most) == 1
        pairs = zip(self.parts, split, strict=True)
        ids = tuple(part.convert_tokens_to_ids(tokens[0]) for part, tokens in pairs if whole)
        return Identifier(
            word=word,
            pieces=tuple(token.removesuffix(END) for token in most),
            ids=ids,
            rank=self.ranks.get(most[0], 0) if whole else 0,
            doubts=tuple(self._doubts(most, ids)),
        )

    def _doubts(self, tokens: list[str], ids: tuple[int, ...]) -> Iterator[str]:
        pieces = [token.removesuffix(END) for token in tokens]
        if len(tokens) > 1:
            yield f"it is {len(tokens)} tokens: {' | '.join(pieces)}"
            return
        if meaning := MEANINGS.get(pieces[0]):
            yield f"it stands for something: {meaning}"
        if len(pieces[0]) > MAX_LETTERS:
            yield f"it has more than {MAX_LETTERS} letters; rare ones are mostly names and hashtags"
        rank = self.ranks.get(tokens[0], 0)
        if self.trained is None and rank < RARE * len(self.ranks):
            yield f"it is common: place {rank} of {len(self.ranks)}"
        if self.trained is not None and ids[0] in self.trained:
            yield "the model was trained on captions with it"

    def find(self, count: int) -> list[Identifier]:
        """The rarest words that nothing speaks against, at most ``count``.

        Raises:
            ConsistError: The count is not positive, or there is no such word.
        """
        if count < 1:
            raise ConsistError(f"the count must be at least 1, not {count}")
        words = [t.removesuffix(END) for t in self.parts[0].get_vocab() if t.endswith(END)]
        plain = [w for w in words if w.isascii() and w.isalpha() and w.islower()]
        short = [w for w in plain if len(w) <= MAX_LETTERS]
        found: list[Identifier] = []
        for word in sorted(short, key=lambda word: (-self.ranks.get(word + END, 0), word)):
            identifier = self.judge(word)
            if not identifier.doubts:
                found.append(identifier)
            if len(found) == count:
                break
        if not found:
            raise ConsistError(f"no rare word of at most {MAX_LETTERS} letters is one token here")
        return found


def _words_of_mini(tokenizer: CLIPTokenizer) -> frozenset[int]:
    phrases = [phrase for phrases in vocabulary().values() for phrase in phrases]
    return frozenset(token for ids in tokenizer(phrases).input_ids for token in ids)
