"""`python -m gpt prepare`: documents in, shards of tokens out; and `tokenizer train`.

The stream runs through one process that reads (`gpt/documents.py`), several that encode, and the
first again, which writes (`gpt/shard_writer.py`). Batches of sections keep their order, so the
shards do not depend on the number of processes, and a batch has a number by which an interrupted
run finds its place again. Go next to `gpt/shards.py`, which trains on the result.
"""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from gpt import UserError
from gpt.bpe import BytePairTokenizer
from gpt.documents import Fields, Section, Source, find_sources
from gpt.fields import at_least, plural, require, with_help
from gpt.shard_files import Tokens, read_index, token_dtype
from gpt.shard_writer import TOKENS_PER_SHARD, ShardWriter
from gpt.tokenizer import CharTokenizer, Tokenizer
from gpt.tokenizers import load_tokenizer

BATCH = 1 << 18  # characters that a process encodes at once
ALONE = 1 << 26  # below this many bytes, starting other processes costs more than they save
BATCHES_AHEAD = 4  # for each process, so that memory stays bounded whatever the text's size

Texts = tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXTS")]]

worker_tokenizer: Tokenizer  # of a process that encodes


@with_help
@dataclass(frozen=True)
class PrepareConfig:
    """Texts as shards of tokens, for `python -m gpt train` to read."""

    inputs: Texts
    """Text files, JSON lines (.jsonl, .jsonl.gz), parquet files, folders of these, or the name of a
    data set on the Hugging Face hub."""
    out: str = "shards"
    """The folder to write. The same command goes on where an interrupted one stopped."""
    tokenizer: str = "gpt2"
    """`gpt2`, the path of a tokenizer that `tokenizer train` wrote, or `char`: a token for each
    character of the texts."""
    validation: str = "auto"
    """What is kept from training: the share of the tokens at the end (0.1), the `first` shard, or
    nothing (0). `auto` is the first shard of ten or more, else the last tenth."""
    shard_tokens: int = TOKENS_PER_SHARD
    """Tokens in a shard, and one more, the target of the last. The default is 40 of GPT-2's batches
    of 524,288."""
    text_field: str = "text"
    """The field of a record, or the column of a table, that holds the text."""
    subset: str = ""
    """Which configuration of a data set of the hub."""
    split: str = "train"
    """Which split of a data set of the hub."""
    processes: int = 0
    """How many processes encode; 0 is one for each processor, or this one alone for small texts."""

    def __post_init__(self) -> None:
        require(bool(self.inputs), "prepare needs texts: files, folders or the name of a data set")
        at_least(self, "shard_tokens", 1)
        at_least(self, "processes", 0)
        share(self.validation)


@with_help
@dataclass(frozen=True)
class TokenizerConfig:
    """A byte-pair tokenizer learned from texts; see `gpt/bpe.py` for how."""

    inputs: Texts
    """Text files, JSON lines, parquet files, folders of these, or a data set's name."""
    vocab_size: int = 4096
    """How many tokens: 256 bytes, then merges, then <|endoftext|>. More of them make a text shorter
    and the model's table larger."""
    out: str = "tokenizer.json"
    """The file to write."""
    text_field: str = "text"
    """The field of a record, or the column of a table, that holds the text."""

    def __post_init__(self) -> None:
        require(bool(self.inputs), "a tokenizer needs texts: files, folders or a data set's name")
        require(
            257 <= self.vocab_size <= 1 << 24,
            f"--vocab-size must lie in [257, {1 << 24:,}] (256 bytes and <|endoftext|> come "
            f"first), but it is {self.vocab_size}",
        )


def share(validation: str) -> float | str:
    """`--validation` as `ShardWriter.finish` takes it."""
    if validation in ("auto", "first"):
        return validation
    try:
        fraction = float(validation)
    except ValueError:
        fraction = -1.0
    require(
        0 <= fraction < 1,
        f"--validation must be auto, first, or a share in [0, 1), but it is {validation!r}",
    )
    return fraction


# ---- The commands ----


def prepare(config: PrepareConfig) -> Path:
    """Writes the shards and returns their folder. Raises UserError for what can be put right."""
    folder = Path(config.out)
    sources = find_sources(
        list(config.inputs), Fields(config.text_field, config.subset, config.split)
    )
    plan = json.dumps([source.identity for source in sources])
    try:
        tokenizer = find_tokenizer(config.tokenizer, sources)
        writer = ShardWriter(folder, tokenizer, config.shard_tokens, plan)
        if writer.shards:
            print(f"goes on with {plural(writer.shards, 'shard')} in {writer.work}")
        if not writer.complete:
            encode_all(sources, writer, tokenizer, config.processes)
        writer.finish(share(config.validation))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        # NumPy says how much of an array it could write, and not why.
        reason = error.strerror or f"the disk may be full ({error})"
        raise UserError(f"{folder} cannot be written: {reason}") from None
    index = read_index(folder)
    assert index is not None
    for split, entries in index.splits.items():
        tokens = sum(entry.tokens for entry in entries)
        print(f"{split:<10}  {tokens:>14,} tokens in {plural(len(entries), 'shard')}")
    documents = plural(index.documents, "document")
    print(f"{folder}: {documents}, a vocabulary of {index.vocab_size:,}")
    return folder


def train_tokenizer(config: TokenizerConfig) -> BytePairTokenizer:
    """Learns a tokenizer and writes it. Raises UserError for what can be put right."""
    sources = find_sources(list(config.inputs), Fields(config.text_field))
    with reading_bar(sources) as bar:
        texts = (section.text for section in counted(sections(sources), bar))
        tokenizer = BytePairTokenizer.train(texts, config.vocab_size, progress=merging_bar)
    require(
        bool(tokenizer.merges) or config.vocab_size == 257,
        "no pair of bytes occurs twice in these texts: there is nothing to learn",
    )
    out = Path(config.out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    print(f"{out}: {tokenizer.vocab_size:,} tokens, {len(tokenizer.merges):,} of them merges")
    if tokenizer.vocab_size < config.vocab_size:
        print(f"no pair occurs twice any more, so there are fewer than {config.vocab_size:,}")
    return tokenizer


def find_tokenizer(name: str, sources: list[Source]) -> Tokenizer:
    """`--tokenizer`; the characters of the texts are found by reading them all once more."""
    if name != "char":
        return load_tokenizer(name)
    characters = {"\n"}  # it also stands between two documents
    with reading_bar(sources) as bar:
        for section in counted(sections(sources), bar):
            characters.update(section.text)
    return CharTokenizer.of("".join(characters))


# ---- The stream ----


def sections(sources: Iterable[Source]) -> Iterator[Section]:
    return itertools.chain.from_iterable(source.sections() for source in sources)


def batches(stream: Iterable[Section]) -> Iterator[list[Section]]:
    """Sections in groups of at least BATCH characters, the last one excepted."""
    batch: list[Section] = []
    length = 0
    for section in stream:
        batch.append(section)
        length += len(section.text)
        if length >= BATCH:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def encode_all(
    sources: list[Source], writer: ShardWriter, tokenizer: Tokenizer, processes: int
) -> None:
    """Adds all documents to the shards, but for the batches that are in them already."""
    if not processes:
        small = sum(source.size for source in sources) < ALONE
        processes = 1 if small else available_processors()
    with reading_bar(sources) as bar:
        stream = batches(counted(sections(sources), bar))
        rest = itertools.islice(stream, writer.arrays_done, None)
        if processes == 1:
            for batch in rest:
                writer.add(*encode(batch, tokenizer))
            return
        with closing(encoded(rest, writer.folder / "tokenizer.json", processes)) as results:
            for tokens, documents in results:
                writer.add(tokens, documents)


def encode(batch: list[Section], tokenizer: Tokenizer) -> tuple[Tokens, int]:
    """The batch's tokens, an end of text after each document, and how many documents end."""
    end = getattr(tokenizer, "end_of_text", None)
    end = tokenizer.start if end is None else end
    ids: list[int] = []
    for section in batch:
        ids += tokenizer.encode(section.text)
        if section.ends:
            ids.append(end)
    tokens = np.array(ids, token_dtype(tokenizer.vocab_size))
    return tokens, sum(section.ends for section in batch)


def encoded(
    stream: Iterable[list[Section]], tokenizer: Path, processes: int
) -> Generator[tuple[Tokens, int], None, None]:
    """`encode` of each batch, in order, by several processes; only a few batches are under way."""
    pool = ProcessPoolExecutor(
        processes,
        multiprocessing.get_context("spawn"),  # no fork: other threads may hold locks by now
        begin_worker,
        (tokenizer,),
    )
    ahead: deque[Future[tuple[Tokens, int]]] = deque()
    try:
        for batch in stream:
            ahead.append(pool.submit(encode_in_worker, batch))
            if len(ahead) > BATCHES_AHEAD * processes:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a process that encodes has died, perhaps for want of memory; the same command goes "
            "on, and --processes says how many there are"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def begin_worker(tokenizer: Path) -> None:
    """Keeps the tokenizer for all batches, and leaves Ctrl-C to the process that started it."""
    global worker_tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker_tokenizer = load_tokenizer(tokenizer)


def encode_in_worker(batch: list[Section]) -> tuple[Tokens, int]:
    return encode(batch, worker_tokenizer)


def available_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ---- Progress, on stderr and only on a terminal (disable=None) ----


def reading_bar(sources: list[Source]) -> tqdm[Any]:
    unit = "B" if all(source.is_file for source in sources) else " documents"
    total = sum(source.size for source in sources)
    return tqdm(total=total, unit=unit, unit_scale=True, disable=None, dynamic_ncols=True)


def merging_bar(numbers: Iterable[int]) -> Iterable[int]:
    return tqdm(numbers, unit=" merges", disable=None, dynamic_ncols=True)


def counted(parts: Iterable[Section], bar: tqdm[Any]) -> Iterator[Section]:
    """The same sections, with the bar moving as they are read."""
    for section in parts:
        yield section
        bar.update(section.size)
