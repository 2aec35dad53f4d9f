"""Text as it is written: whole characters only, and nothing past a stop string.

A byte-level token may end in the middle of a character, and a stop string may be spread over
several tokens. `TextStream` holds back what may still become either.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from gpt.tokenizer import Tokenizer


class TextStream:
    """Turns tokens into text, piece by piece: the pieces joined are `decode` of all the tokens.

    It ends before the first of the stop strings to be complete, and the longest of those complete
    at the same character. Bytes that are no UTF-8 become U+FFFD, as in `decode`. Raises ValueError
    for an empty stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        if not all(stop):
            raise ValueError("generate: a stop string must not be empty; every text contains it")
        self.stop = sorted(stop, key=len, reverse=True)
        self.stopped = False
        self.held = ""  # may be the beginning of a stop string
        self.tokenizer: Any = tokenizer
        self.decoder = None
        if hasattr(tokenizer, "token_bytes"):
            self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        """The text that is certain now, often empty."""
        if self.decoder is None:
            return self.certain(self.tokenizer.decode([token]))
        return self.certain(self.decoder.decode(self.tokenizer.token_bytes(token)))

    def finish(self) -> str:
        """What was held back, when no token comes any more."""
        rest = self.certain(self.decoder.decode(b"", final=True)) if self.decoder else ""
        rest, self.held = rest + self.held, ""
        return rest

    def certain(self, piece: str) -> str:
        """Goes character by character, so that it does not matter how they came in tokens."""
        out = ""
        for character in piece:
            if self.stopped:
                break
            self.held += character
            for stop in self.stop:
                if self.held.endswith(stop):
                    out += self.held[: -len(stop)]
                    self.held, self.stopped = "", True
                    break
            else:
                kept = self.beginning()
                out += self.held[: len(self.held) - kept]
                self.held = self.held[len(self.held) - kept :]
        return out

    def beginning(self) -> int:
        """The length of the longest end of what is held that begins a stop string."""
        longest = min(len(self.held), len(self.stop[0]) - 1) if self.stop else 0
        for length in range(longest, 0, -1):
            if any(stop.startswith(self.held[-length:]) for stop in self.stop):
                return length
        return 0
