"""Files of tokens: what each kind looks like, and whether a folder of them is whole.

Ours are .npy files with an index beside them; nanoGPT's .bin (bare uint16), llm.c's .bin (a header
of 256 int32, then uint16) and .npy files of others are read as well. Every file is checked before
the first step of a training, so that a damaged one is a sentence at the start and not a wrong loss
in the middle. Go back to `gpt/shards.py`, which trains on them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt import UserError
from gpt.files import check_regular, sha256
from gpt.json_files import read_sealed

INDEX, UNFINISHED, KIND = "index.json", "unfinished", "shards"
SPLITS = ("train", "validation")

LLMC_MAGIC, LLMC_VERSION, LLMC_HEADER = 20240520, 1, 1024  # the header's bytes
LARGEST_HEADER = 1 << 14  # bytes; NumPy's own limit for a .npy header is 10,000 characters
SCANNED_AT_ONCE = 1 << 22  # tokens

Tokens = np.ndarray[Any, Any]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smaller of two and four bytes that holds every token."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


# ---- One shard ----


@dataclass(frozen=True)
class Shard:
    """A file of tokens: where in it they begin, how many they are, and of which type."""

    path: Path
    tokens: int
    dtype: np.dtype[Any]
    offset: int

    def open(self) -> Tokens:
        """The tokens, memory-mapped: read from the disk when they are looked at."""
        return np.memmap(self.path, self.dtype, "r", self.offset, (self.tokens,))


def read_shard(path: Path) -> Shard:
    """What a shard's header and size say. Raises UserError where they do not agree."""
    try:
        size = check_regular(path).st_size
        with open(path, "rb") as file:
            head = file.read(LARGEST_HEADER)
    except FileNotFoundError:
        raise UserError(f"the shard {path} is missing") from None
    except OSError as error:
        raise UserError(f"the shard {path} cannot be read: {error.strerror}") from None
    if not size:
        raise UserError(f"the shard {path} is empty")
    if path.suffix == ".npy":
        shard = npy_shard(path, head)
    elif path.suffix == ".bin":
        shard = bin_shard(path, head, size)
    else:
        raise UserError(f"{path} is no shard: a shard's name ends in .npy or .bin")
    if not shard.tokens:
        raise UserError(f"the shard {path} is empty: it has a header and no token")
    wanted = shard.offset + shard.tokens * shard.dtype.itemsize
    if size != wanted:
        raise UserError(
            f"the shard {path} is {'cut short' if size < wanted else 'too long'}: {shard.tokens:,} "
            f"tokens take {wanted:,} bytes, and it has {size:,}"
        )
    return shard


def npy_shard(path: Path, head: bytes) -> Shard:
    file = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read_header(file)
    except Exception:  # a damaged header has many ways to fail in NumPy's parser
        raise UserError(f"the shard {path} has no header of a NumPy file") from None
    if len(shape) != 1 or dtype.kind not in "iu" or not 0 <= shape[0] < 1 << 50:
        raise UserError(
            f"the shard {path} must be one row of integers, but its shape is {shape} and its type "
            f"{dtype}"
        )
    return Shard(path, shape[0], dtype, file.tell())


def bin_shard(path: Path, head: bytes, size: int) -> Shard:
    """llm.c's layout if the file begins as llm.c's do, and bare uint16 otherwise."""
    header = np.frombuffer(head[: len(head) // 4 * 4], "<i4")[: LLMC_HEADER // 4]
    magic, version, count = (*header[:3].tolist(), 0, 0, 0)[:3]
    if magic == LLMC_MAGIC:
        if size < LLMC_HEADER or version != LLMC_VERSION or count < 0:
            raise UserError(
                f"the shard {path} has a damaged header of llm.c: version {version}, {count:,} "
                f"tokens in a file of {size:,} bytes"
            )
        return Shard(path, count, np.dtype("<u2"), LLMC_HEADER)
    if version == LLMC_VERSION and LLMC_HEADER + 2 * count == size:
        raise UserError(
            f"the shard {path} has a damaged header of llm.c: it begins with {magic}, not "
            f"{LLMC_MAGIC}"
        )
    if head.startswith(b"\x93NUMPY"):
        raise UserError(f"the shard {path} is misnamed: it is a NumPy file, so call it .npy")
    if len(head) >= 64 and re.fullmatch(rb"[\t\n\r\x20-\x7e]+", head):
        raise UserError(f"the shard {path} is misnamed: it holds text, not tokens")
    if size % 2:
        raise UserError(f"the shard {path} is cut short: {size:,} bytes are no row of uint16")
    return Shard(path, size // 2, np.dtype("<u2"), 0)


def check_tokens(shard: Shard, vocab_size: int) -> None:
    """Reads all of it. Raises UserError for a token outside the vocabulary."""
    tokens = shard.open()
    for start in range(0, shard.tokens, SCANNED_AT_ONCE):
        part = tokens[start : start + SCANNED_AT_ONCE]
        if int(part.max()) >= vocab_size or int(part.min()) < 0:
            at = int(np.argmax((part >= vocab_size) | (part < 0)))
            raise UserError(
                f"the shard {shard.path} was made with another vocabulary: token {start + at:,} is "
                f"{part[at]}, and the vocabulary has {vocab_size:,}"
            )


# ---- A folder of shards ----


@dataclass(frozen=True)
class Entry:
    """What the index says about one shard."""

    file: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """What index.json says: the vocabulary, and the shards of each split."""

    vocab_size: int
    tokenizer_sha256: str
    documents: int
    splits: dict[str, list[Entry]]


def read_index(folder: Path) -> Index | None:
    """The index of a folder that we wrote, or None. Raises UserError where it is damaged."""
    path = folder / INDEX
    if not path.exists():
        if (folder / UNFINISHED).exists():
            raise UserError(
                f"{folder} is not finished; the same `python -m gpt prepare` goes on with it"
            )
        return None
    content = read_sealed(path, KIND)
    try:
        splits = {split: [Entry(**entry) for entry in content[split]] for split in SPLITS}
        return Index(
            content["vocab_size"], content["tokenizer_sha256"], content["documents"], splits
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no index of shards: {error}") from None


def find_shards(
    where: str | Path | Sequence[str | Path],
    split: str = "train",
    vocab_size: int | None = None,
    verify: bool = True,
) -> list[Shard]:
    """The shards of a split, each of them checked.

    `where` is a folder with an index, a folder whose file names contain `train` and `val`, or the
    files themselves. With `verify`, files are compared with their SHA-256 or, without an index,
    their tokens with the vocabulary; either reads them all. Raises UserError that names the file.
    """
    if split not in SPLITS:
        raise ValueError(f"a split is train or validation, not {split!r}")
    paths = [Path(where)] if isinstance(where, str | Path) else [Path(path) for path in where]
    folder = paths[0] if len(paths) == 1 else None
    if folder is not None and folder.is_dir():
        if index := read_index(folder):
            return indexed_shards(folder, index, split, vocab_size, verify)
        word = "val" if split == "validation" else split
        paths = sorted(
            path
            for path in folder.iterdir()
            if word in path.name and path.suffix in (".npy", ".bin")
        )
        if not paths:
            raise UserError(f"{folder} has no shards: no {INDEX}, and no *{word}*.npy or .bin")
    shards = [read_shard(path) for path in paths]
    if verify and vocab_size is not None:
        for shard in shards:
            check_tokens(shard, vocab_size)
    return shards


def indexed_shards(
    folder: Path, index: Index, split: str, vocab_size: int | None, verify: bool
) -> list[Shard]:
    if vocab_size not in (None, index.vocab_size):
        raise UserError(
            f"the shards of {folder} have a vocabulary of {index.vocab_size:,} tokens, not the "
            f"{vocab_size:,} that are expected"
        )
    if sha256(folder / "tokenizer.json") != index.tokenizer_sha256:
        raise UserError(f"{folder}/tokenizer.json is not the tokenizer that {INDEX} names")
    shards = []
    for entry in index.splits[split]:
        path = folder / entry.file
        if not path.exists():
            known = {entry.file for entries in index.splits.values() for entry in entries}
            others = sorted(p.name for p in folder.glob("*.npy") if p.name not in known)
            hint = f"; was {others[0]} renamed?" if others else ""
            raise UserError(f"the shard {path} is missing, though {INDEX} lists it{hint}")
        shard = read_shard(path)
        if shard.tokens != entry.tokens or shard.dtype != token_dtype(index.vocab_size):
            raise UserError(
                f"the shard {path} has {shard.tokens:,} tokens of {shard.dtype}, but {INDEX} says "
                f"{entry.tokens:,} of {token_dtype(index.vocab_size)}"
            )
        if verify and sha256(path) != entry.sha256:
            raise UserError(f"the shard {path} is damaged: its SHA-256 is not the one in {INDEX}")
        shards.append(shard)
    if not shards:
        raise UserError(f"{folder} has no {split} shards")
    return shards
