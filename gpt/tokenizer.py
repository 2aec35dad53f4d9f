"""Text to token numbers and back.

`Tokenizer` is what the rest of the package asks of any tokenizer; `CharTokenizer` is the simplest
one, a token a character. A run folder keeps its tokenizer as `tokenizer.json`. This file knows text
and integers, no tensors. Go next to `gpt/data.py`, which cuts the numbers into batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from gpt import UserError
from gpt.json_files import read_sealed, seal


class Tokenizer(Protocol):
    """Numbers 0 … vocab_size - 1 for pieces of text; `decode(encode(text)) == text`."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def start(self) -> int:
        """The token that a text begins after, for a model to continue where there is no prompt."""
        ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def to_json(self) -> str: ...

    def save(self, path: Path) -> None: ...


class CharTokenizer:
    """A token is a character; its number is its place in the sorted vocabulary.

    >>> tokenizer = CharTokenizer.of("to be or not to be")
    >>> tokenizer.vocabulary
    ' benort'
    >>> tokenizer.encode("bet")
    [1, 2, 6]
    >>> tokenizer.decode([1, 2, 6])
    'bet'
    """

    kind = "characters"

    def __init__(self, vocabulary: str):
        if len(set(vocabulary)) != len(vocabulary):
            raise ValueError(f"a character occurs twice in the vocabulary {vocabulary!r}")
        self.vocabulary = vocabulary
        self.number = {character: i for i, character in enumerate(vocabulary)}

    @classmethod
    def of(cls, text: str) -> CharTokenizer:
        """The tokenizer whose vocabulary is exactly the characters of `text`."""
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    @property
    def start(self) -> int:
        """The line break, or the first character of a vocabulary that has none."""
        return self.number.get("\n", 0)

    def encode(self, text: str) -> list[int]:
        """The number of each character. Raises UserError that lists the characters it lacks."""
        try:
            return [self.number[character] for character in text]
        except KeyError:
            missing = sorted(set(text) - set(self.vocabulary))
            shown = ", ".join(repr(character) for character in missing[:10])
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            raise UserError(
                f"the vocabulary of {self.vocab_size} characters has no {shown}{more}"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these numbers. Raises ValueError for a number outside the vocabulary."""
        ids = list(ids)
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token {i} is outside the vocabulary of {self.vocab_size}")
        return "".join(self.vocabulary[i] for i in ids)

    def to_json(self) -> str:
        """The vocabulary, and a hash against damage."""
        return seal({"kind": self.kind, "vocabulary": self.vocabulary})

    def save(self, path: Path) -> None:
        path.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> CharTokenizer:
        """The tokenizer that `save` wrote. Raises UserError where the file is something else."""
        vocabulary = read_sealed(path, cls.kind).get("vocabulary")
        if (
            not isinstance(vocabulary, str)
            or not vocabulary
            or sorted(set(vocabulary)) != list(vocabulary)
        ):
            raise UserError(f"{path}: the vocabulary must be distinct characters in sorted order")
        return cls(vocabulary)
