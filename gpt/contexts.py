"""What a model sees of a text that it is writing, and what that costs.

A model reads `block_size` tokens at most. A longer text slides: when its window is full, the oldest
`slide` tokens leave it at once, and it fills again. So the token after n others is drawn given

    text[s:n], s = 0 for n ≤ block_size, else the least multiple of `slide` with n - s ≤ block_size

and this depends on n alone: not on the batch, and not on whether there is a cache. Why not one by
one? The positions of GPT-2 are learned, and every token of a window that moves gets another one, so
that all keys and values change and the window must be read again. With `slide` = 1 that happens for
each token (and the window is always the last `block_size` tokens); with a quarter of the window,
the default, each token costs three quarters of a window read again in a quarter as many steps: some
three tokens, in one pass.

`CachedContexts` does this with a cache, for `GPT`; `PlainContexts` for any model, by definition.
Tests hold the one against the other. Go back to `gpt/generate.py`, which draws from the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import tinytensor as tt
from gpt.cache import KeyValueCache
from gpt.devices import device_of
from gpt.language_model import LanguageModel, evaluating
from gpt.model import GPT

# Columns of a padded batch that are read at once: its mask of (B, T, S) and what attention makes of
# it stay small. A batch without padding has no mask and is read whole.
PADDED_AT_ONCE = 128


def default_slide(block_size: int) -> int:
    return max(1, block_size // 4)


def window_start(n: int, block_size: int, slide: int) -> int:
    """Where in a text of n tokens the context of the next one begins."""
    return -(-max(0, n - block_size) // slide) * slide


class Contexts(Protocol):
    """Texts that grow by one token at a time."""

    texts: list[list[int]]

    def next_logits(self) -> tt.Tensor:
        """For each text, the scores of every token that could come next: (B, V), on the model's
        device.
        """
        ...

    def append(self, tokens: Sequence[int]) -> None:
        """A token more for each text."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with these texts only."""
        ...


def contexts_of(
    model: LanguageModel, texts: Sequence[Sequence[int]], room: int, slide: int, cached: bool = True
) -> Contexts:
    """The contexts of these texts, which will grow by at most `room` tokens each.

    Models other than `GPT` have no cache.
    """
    copies = [list(text) for text in texts]
    if cached and isinstance(model, GPT):
        return CachedContexts(model, copies, room, slide)
    return PlainContexts(model, copies, slide)


class PlainContexts:
    """Every text is read from the beginning of its window for every token."""

    def __init__(self, model: LanguageModel, texts: list[list[int]], slide: int):
        self.model, self.texts, self.slide = model, texts, slide

    def next_logits(self) -> tt.Tensor:
        return tt.stack([self.logits_of(text) for text in self.texts])

    def logits_of(self, text: list[int]) -> tt.Tensor:
        start = window_start(len(text), self.model.block_size, self.slide)
        with evaluating(self.model):
            idx = tt.tensor([text[start:]], dtype=tt.long, device=device_of(self.model))
            logits, _ = self.model(idx)  # (1, T, V)
        return logits[0, -1]

    def append(self, tokens: Sequence[int]) -> None:
        for text, token in zip(self.texts, tokens, strict=True):
            text.append(token)

    def keep(self, rows: Sequence[int]) -> None:
        self.texts = [self.texts[row] for row in rows]


class CachedContexts:
    """All texts in one cache; each token is read once, and again only where its window slides."""

    def __init__(self, model: GPT, texts: list[list[int]], room: int, slide: int):
        self.model, self.texts, self.slide = model, texts, slide
        windows = [self.window(text) for text in texts]
        longest = max(len(window) for window in windows)
        weight = model.transformer.wte.weight
        self.cache = KeyValueCache(
            model.config,
            len(texts),
            min(model.block_size, longest + room),
            weight.dtype,
            weight.device,
        )
        self.cache.starts = [longest - len(window) for window in windows]
        # What has not been read yet: at first everything, padded on the left, then a token each.
        self.unread = [[0] * (longest - len(window)) + window for window in windows]
        self.logits = tt.empty(0)

    def window(self, text: list[int]) -> list[int]:
        return text[window_start(len(text), self.model.block_size, self.slide) :]

    def next_logits(self) -> tt.Tensor:
        if self.unread[0]:
            with evaluating(self.model):
                if self.cache.length == self.cache.capacity:
                    self.make_room()
                self.logits = self.read(self.unread)
            self.unread = [[] for _ in self.texts]
        return self.logits

    def read(self, tokens: list[list[int]]) -> tt.Tensor:
        """Takes as many tokens into every row; returns the scores (B, V) after the last ones."""
        idx = tt.tensor(tokens, dtype=tt.long, device=self.cache.device)
        T = idx.shape[1]
        step = T if len(set(self.cache.starts)) == 1 else PADDED_AT_ONCE
        for i in range(0, T, step):
            hidden = self.model.transformer(idx[:, i : i + step], self.cache)  # (B, ≤ step, C)
        return self.model.lm_head(hidden[:, -1])[:, : self.model.vocab_size]

    def make_room(self) -> None:
        """Slides the texts whose windows are full, then moves everything to the left.

        The rows that begin in column 0 are the full ones: the cache is as wide as a window.
        """
        cache = self.cache
        for row, text in enumerate(self.texts):
            if cache.starts[row] == 0:
                kept = self.window(text)[:-1]  # the last one is about to be read with the others
                cache.starts[row] = cache.length - len(kept)
                if kept:
                    view = cache.view(row, cache.starts[row], cache.length)
                    self.model.transformer(
                        tt.tensor([kept], dtype=tt.long, device=cache.device), view
                    )
        cache.drop_columns(min(cache.starts))

    def append(self, tokens: Sequence[int]) -> None:
        for text, unread, token in zip(self.texts, self.unread, tokens, strict=True):
            text.append(token)
            unread.append(token)

    def keep(self, rows: Sequence[int]) -> None:
        if len(rows) == len(self.texts):
            return
        self.texts = [self.texts[row] for row in rows]
        self.unread = [self.unread[row] for row in rows]
        self.logits = self.logits[list(rows)]
        if rows:
            self.cache = self.cache.rows(rows)
