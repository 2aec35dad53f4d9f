"""What a run learns from: a text or a folder of shards, which look alike from here on.

A `Corpus` knows its tokenizer, what a loss on it means, and gives two kinds of batches: endless
ones to train on, whose place can be saved, and the same few again and again to evaluate on. Texts
are cut into random windows (`gpt/data.py`), shards are read in order (`gpt/shards.py`). Go next to
`gpt/train.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import tinytensor as tt
from gpt import UserError
from gpt.config import SCRATCH, TrainConfig
from gpt.data import Text, Windows, entropies, load_text, random_stream, split
from gpt.fields import plural
from gpt.shard_files import find_shards, token_dtype
from gpt.shards import ShardDataLoader
from gpt.tokenizer import CharTokenizer, Tokenizer
from gpt.tokenizers import load_tokenizer
from gpt.weights import pretrained_tokenizer

Batch = tuple[tt.Tensor, tt.Tensor]

# So many tokens of a folder of shards are counted for its entropies: a second's work.
COUNTED = 1 << 21


class Batches(Protocol):
    """An endless sequence of batches with a place in it."""

    def next_batch(self) -> Batch: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Corpus:
    """What both kinds offer.

    `source` is the `--data` that finds it again, `digest` tells it from another, `splits` has the
    tokens of each split (of the first shard of each), `tokens` is how many there are in all.
    """

    source: str
    digest: str
    note = ""  # a sentence that the reader of the run should see
    tokens: int
    splits: dict[str, np.ndarray[Any, Any]]

    def __init__(self, config: TrainConfig, tokenizer: Tokenizer):
        self.config, self.tokenizer = config, tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.unit = "character" if isinstance(tokenizer, CharTokenizer) else "token"
        self.known = entropies(self.splits["train"][:COUNTED], self.vocab_size)

    def describe(self) -> str:
        """The text as the run introduces it."""
        raise NotImplementedError

    def training_batches(self) -> Batches:
        raise NotImplementedError

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """`config.eval_batches` batches, the same ones each time."""
        raise NotImplementedError


class TextCorpus(Corpus):
    """A text in one piece, its last tenth for validation."""

    def __init__(self, config: TrainConfig, text: Text, tokenizer: Tokenizer):
        self.source, self.digest, self.note = text.source, text.sha256, text.note
        self.characters = len(text.content)
        try:
            numbers = tokenizer.encode(text.content)
        except UserError as error:
            raise UserError(f"{config.data} cannot be learned: {error}") from None
        ids = np.array(numbers, dtype=token_dtype(tokenizer.vocab_size))
        self.tokens = len(ids)
        train, validation = split(ids, config.block_size, text.source)
        self.splits = {"train": train, "validation": validation}
        super().__init__(config, tokenizer)

    def describe(self) -> str:
        name = os.path.basename(self.source)
        if self.unit == "character":
            return f"{name}: {self.characters:,} characters, {self.vocab_size} different"
        return (
            f"{name}: {self.characters:,} characters, {self.tokens:,} tokens of "
            f"{self.vocab_size:,} different"
        )

    def training_batches(self) -> Batches:
        return self.windows("train", "batches")

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        windows = self.windows(split, f"evaluation on {split}")
        return (windows.next_batch() for _ in range(self.config.eval_batches))

    def windows(self, split: str, purpose: str) -> Windows:
        config = self.config
        generator = random_stream(config.seed, purpose)
        return Windows(self.splits[split], config.block_size, config.batch_size, generator)


class ShardCorpus(Corpus):
    """A folder of shards, each token once an epoch."""

    def __init__(self, config: TrainConfig, folder: Path, tokenizer: Tokenizer):
        self.source, self.config = str(folder), config
        self.vocab_size = tokenizer.vocab_size
        shards = {
            name: find_shards(folder, name, tokenizer.vocab_size)
            for name in ("train", "validation")
        }
        self.tokens = sum(shard.tokens - 1 for shard in shards["train"])
        self.shards = len(shards["train"])
        self.splits = {name: parts[0].open() for name, parts in shards.items()}
        facts = [(name, s.path.name, s.tokens) for name, parts in shards.items() for s in parts]
        self.digest = hashlib.sha256(repr(facts).encode()).hexdigest()
        # Opened once and put back to the beginning for each evaluation.
        self.evaluation = {name: self.loader(name, seed=None) for name in shards}
        super().__init__(config, tokenizer)

    def describe(self) -> str:
        name = os.path.basename(self.source)
        return (
            f"{name}: {self.tokens:,} tokens in {plural(self.shards, 'shard')}, vocabulary of "
            f"{self.vocab_size:,}"
        )

    def training_batches(self) -> Batches:
        return self.loader("train", seed=self.config.seed)

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        loader = self.evaluation[split]
        loader.seek(0)
        count = min(self.config.eval_batches, loader.batches_per_epoch)
        return (loader.next_batch() for _ in range(count))

    def loader(self, split: str, seed: int | None) -> ShardDataLoader:
        config = self.config
        return ShardDataLoader(
            self.source,
            config.batch_size,
            config.block_size,
            split,
            seed=seed,
            vocab_size=self.vocab_size,
            verify=False,  # `find_shards` has just done it
        )


def load_corpus(
    config: TrainConfig, tokenizer: Tokenizer | None = None, digest: str = ""
) -> Corpus:
    """What `--data` and `--tokenizer` name; a resumed run gives its own tokenizer and digest.

    Raises UserError for data that cannot be read, is too short, or is not the resumed run's.
    """
    path = Path(config.data)
    if path.is_dir():
        folder = path.resolve()
        corpus: Corpus = ShardCorpus(config, folder, tokenizer or shard_tokenizer(config, folder))
        check_same_data(corpus.source, corpus.digest, digest)
        return corpus
    text = load_text(config.data)
    check_same_data(text.source, text.sha256, digest)
    return TextCorpus(config, text, tokenizer or text_tokenizer(config, text.content))


def text_tokenizer(config: TrainConfig, text: str) -> Tokenizer:
    """The tokenizer that was asked for, that of the weights to go on with, or characters."""
    if config.tokenizer not in ("", "characters"):
        return load_tokenizer(config.tokenizer)
    if config.init_from != SCRATCH and not config.tokenizer:
        return pretrained_tokenizer(config.init_from)
    return CharTokenizer.of(text)


def shard_tokenizer(config: TrainConfig, folder: Path) -> Tokenizer:
    """The tokenizer that a folder's tokens are numbers of."""
    own = folder / "tokenizer.json"
    if config.tokenizer == "characters":
        raise UserError("--tokenizer characters is for texts; shards have the tokenizer they have")
    if config.tokenizer:
        tokenizer = load_tokenizer(config.tokenizer)
        if own.exists() and load_tokenizer(own).to_json() != tokenizer.to_json():
            raise UserError(
                f"{folder} was made with another tokenizer than --tokenizer {config.tokenizer}; "
                "without the flag, its own is taken"
            )
        return tokenizer
    if config.init_from != SCRATCH:
        tokenizer = pretrained_tokenizer(config.init_from)
        if own.exists() and load_tokenizer(own).to_json() != tokenizer.to_json():
            raise UserError(
                f"{folder} was made with another tokenizer than that of --init-from "
                f"{config.init_from}; give `python -m gpt prepare --tokenizer` that folder"
            )
        return tokenizer
    if not own.exists():
        find_shards(folder, verify=False)  # a folder without any is refused as that
        raise UserError(
            f"{folder} does not say which tokenizer its tokens are of; name it with --tokenizer "
            "(GPT-2's is gpt2)"
        )
    return load_tokenizer(own)


def check_same_data(source: str, found: str, digest: str) -> None:
    if digest and found != digest:
        raise UserError(
            f"{source} is not the text that the run began with (its SHA-256 begins {found[:8]}, "
            f"then {digest[:8]}); a run goes on with its own text only"
        )


def first_windows(tokens: np.ndarray[Any, Any], count: int, length: int) -> list[Any]:
    """`count` windows of `length` tokens, evenly spread over an array."""
    last = len(tokens) - length
    starts = range(0, last + 1, max(1, last // max(1, count - 1)))
    return [np.array(tokens[start : start + length]) for start in itertools.islice(starts, count)]
