"""A stream of tokens written as shards: whole files, and an interrupted stream goes on.

`ShardWriter` cuts the stream; `deal` says which tokens are for training and which for validation;
`write_shards` is both for tokens that are at hand. Go back to `gpt/shards.py` for what a folder of
shards is, or to `gpt/prepare.py` for where the tokens come from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gpt import UserError
from gpt.files import flush_file, flush_folder, replace_file, sha256
from gpt.json_files import read_sealed, seal
from gpt.shard_files import INDEX, KIND, UNFINISHED, Tokens, read_shard, token_dtype
from gpt.tokenizer import Tokenizer

TOKENS_PER_SHARD = 20_971_520  # 40 batches of 524,288
PROGRESS = "progress.json"
MOST_TOKENS_PER_SHARD = 1 << 31  # a shard is gathered in memory


def write_shards(
    arrays: Iterable[Tokens],
    folder: str | Path,
    tokenizer: Tokenizer,
    tokens_per_shard: int = TOKENS_PER_SHARD,
    validation: float | str = "auto",
) -> None:
    """One stream of tokens, which comes in arrays of any length, as a folder of shards."""
    shutil.rmtree(Path(folder) / UNFINISHED, ignore_errors=True)
    writer = ShardWriter(Path(folder), tokenizer, tokens_per_shard)
    for tokens in arrays:
        writer.add(tokens)
    writer.finish(validation)


class ShardWriter:
    """Cuts a stream of tokens into shards; killed at any moment, it goes on from its last shard.

    `folder/unfinished` holds the shards so far and progress.json, which says how many arrays of the
    stream they took. A new writer of the same `plan`, a text that decides the stream, takes up from
    there: pass it the stream without its first `arrays_done` arrays, or nothing where it is
    `complete`. `finish` deals the shards to training and validation, and writes the index last.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        tokens_per_shard: int = TOKENS_PER_SHARD,
        plan: str = "",
    ):
        if not 1 <= tokens_per_shard <= MOST_TOKENS_PER_SHARD:
            raise UserError(
                f"a shard holds 1 to {MOST_TOKENS_PER_SHARD:,} tokens, not {tokens_per_shard:,}"
            )
        self.folder, self.work = folder, folder / UNFINISHED
        if (folder / INDEX).exists():
            raise UserError(f"{folder} already holds shards; write to another folder, or remove it")
        vocabulary = tokenizer.to_json()
        self.vocab_size = tokenizer.vocab_size
        self.buffer = np.empty(tokens_per_shard + 1, token_dtype(tokenizer.vocab_size))
        self.filled = 0
        everything = json.dumps([plan, tokens_per_shard, vocabulary])
        self.progress: dict[str, Any] = {
            "kind": "unfinished shards",
            "plan": hashlib.sha256(everything.encode()).hexdigest(),
            "shards": [],  # [tokens, SHA-256] of each
            "arrays": 0,  # of the stream, all whose tokens are in these shards
            "offset": 0,  # tokens of the next array that are
            "documents": 0,  # that ended in those arrays
            "complete": False,  # whether the stream has ended
            "validation": None,  # how the shards are being dealt
        }
        if (self.work / PROGRESS).exists():
            self.resume()
        self.skip = self.progress["offset"]
        self.arrays, self.documents = self.progress["arrays"], self.progress["documents"]
        self.work.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "tokenizer.json", vocabulary)

    def resume(self) -> None:
        path = self.work / PROGRESS
        again = f"remove {self.work} to begin again"
        try:
            found = read_sealed(path, self.progress["kind"])
        except UserError as error:
            raise UserError(f"{error}; {again}") from None
        if found["plan"] != self.progress["plan"]:
            raise UserError(
                f"{self.work} was begun with other texts, another tokenizer or other options; "
                f"give the same, or {again}"
            )
        self.progress = found
        for i, (tokens, _) in enumerate([] if self.complete else found["shards"]):
            shard = read_shard(self.part(i))
            if shard.tokens != tokens or shard.dtype != self.buffer.dtype:
                raise UserError(f"{shard.path} is not the file that {path.name} lists; {again}")
            self.buffer[0], self.filled = shard.open()[-1], 1
        if self.filled:  # its last token is about to be used; the others are checked by their index
            self.check(len(found["shards"]) - 1)

    def check(self, number: int) -> None:
        """Raises UserError if a shard is not what was written."""
        if sha256(self.part(number)) != self.progress["shards"][number][1]:
            raise UserError(
                f"the shard {self.part(number)} is damaged: its SHA-256 is not the one in "
                f"{PROGRESS}; remove {self.work} to begin again"
            )

    def part(self, number: int) -> Path:
        return self.work / f"{number:05d}.npy"

    @property
    def arrays_done(self) -> int:
        """How many arrays at the beginning of the stream are not needed any more."""
        return self.progress["arrays"]

    @property
    def shards(self) -> int:
        return len(self.progress["shards"])

    @property
    def complete(self) -> bool:
        return self.progress["complete"]

    def add(self, tokens: Tokens, documents: int = 0) -> None:
        """The stream's next array, in which so many documents end."""
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocab_size:
            raise ValueError(
                f"tokens from {tokens.min()} to {tokens.max()} do not fit a vocabulary of "
                f"{self.vocab_size}"
            )
        rest = tokens[self.skip :]
        self.skip = 0
        while len(rest):
            room = len(self.buffer) - self.filled
            taken, rest = rest[:room], rest[room:]
            self.buffer[self.filled : self.filled + len(taken)] = taken
            self.filled += len(taken)
            if self.filled == len(self.buffer):
                self.write(offset=len(tokens) - len(rest))
        self.arrays += 1
        self.documents += documents

    def write(self, offset: int) -> None:
        """What has been gathered becomes a shard; its last token begins the next one."""
        path = self.part(len(self.progress["shards"]))
        digest = save_tokens(path, self.buffer[: self.filled])
        self.progress["shards"].append([self.filled, digest])
        self.progress |= {"arrays": self.arrays, "offset": offset, "documents": self.documents}
        self.save_progress()
        self.buffer[0], self.filled = self.buffer[self.filled - 1], 1

    def save_progress(self) -> None:
        replace_file(self.work / PROGRESS, seal(self.progress))

    def finish(self, validation: float | str = "auto") -> None:
        """Deals the shards out and writes the index.

        `validation` is the share of the tokens, from the end, that training will not see; `first`
        sets the first shard aside instead; `auto` does that where there are ten, and otherwise
        takes the last tenth. Raises UserError where a side would be left with nothing.
        """
        if not self.complete:
            self.progress |= {"complete": True, "documents": self.documents}
            if self.filled > 1:
                self.write(offset=0)
            self.save_progress()
        dealt = deal([tokens for tokens, _ in self.progress["shards"]], validation)
        if self.progress["validation"] not in (None, validation):
            raise UserError(
                f"{self.work} is already being dealt with validation "
                f"{self.progress['validation']}, not {validation}"
            )
        self.progress["validation"] = validation
        self.save_progress()
        splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
        for split, i, start, stop in dealt:
            name = f"{split}-{len(splits[split]):05d}.npy"
            tokens, digest = self.progress["shards"][i]
            place = self.folder / name
            if (start, stop) == (0, tokens):
                if self.part(i).exists():
                    os.replace(self.part(i), place)
            else:
                tokens = stop - start
                if self.part(i).exists():
                    self.check(i)
                    save_tokens(place, read_shard(self.part(i)).open()[start:stop])
                digest = sha256(place)
            splits[split].append({"file": name, "tokens": tokens, "sha256": digest})
        flush_folder(self.folder)
        index = {
            "kind": KIND,
            "vocab_size": self.vocab_size,
            "tokenizer_sha256": sha256(self.folder / "tokenizer.json"),
            "documents": self.documents,
            **splits,
        }
        replace_file(self.folder / INDEX, seal(index))
        shutil.rmtree(self.work)


def deal(parts: list[int], validation: float | str) -> list[tuple[str, int, int, int]]:
    """Which tokens of which part go to which split: (split, part, start, stop), in order.

    >>> deal([9, 9, 5], "first")
    [('validation', 0, 0, 9), ('train', 1, 0, 9), ('train', 2, 0, 5)]
    >>> deal([9, 9, 5], 0.3)  # of 20 targets, the last 6
    [('train', 0, 0, 9), ('train', 1, 0, 7), ('validation', 1, 6, 9), ('validation', 2, 0, 5)]
    """
    if validation == "auto":
        validation = "first" if len(parts) >= 10 else 0.1
    if validation == "first":
        if len(parts) < 2:
            raise UserError(
                "the documents fill one shard only, and validation would take it; give a fraction, "
                "such as 0.1, or smaller shards"
            )
        splits = ["validation"] + ["train"] * (len(parts) - 1)
        return [(splits[i], i, 0, tokens) for i, tokens in enumerate(parts)]
    targets = sum(tokens - 1 for tokens in parts)
    border = targets - round(float(validation) * targets)  # the first target's input
    if targets < 1 or border < 1 or (border == targets and float(validation) > 0):
        raise UserError(
            f"there are {targets + 1 if parts else 0} tokens, too few to keep {validation} of them "
            "for validation and learn from the others"
        )
    dealt = []
    begin = 0
    for i, tokens in enumerate(parts):
        cut = min(max(border - begin, 0), tokens - 1)
        if cut > 0:
            dealt.append(("train", i, 0, cut + 1))
        if cut < tokens - 1:
            dealt.append(("validation", i, cut, tokens))
        begin += tokens - 1
    return dealt


def save_tokens(path: Path, tokens: Tokens) -> str:
    """Writes a shard whole or not at all, and returns its SHA-256."""
    aside = path.with_name(path.name + ".new")
    with open(aside, "wb") as file:
        np.lib.format.write_array(file, np.ascontiguousarray(tokens), allow_pickle=False)
    flush_file(aside)
    digest = sha256(aside)
    os.replace(aside, path)
    flush_folder(path.parent)
    return digest
