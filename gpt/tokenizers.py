"""Which tokenizer: GPT-2's, one of one's own, at the speed of tiktoken where that is installed.

`load_tokenizer` finds a tokenizer by name or path. GPT-2's is two files that OpenAI publishes: its
merges, and the numbers of its tokens, which follow from the merges. They are looked for where
tiktoken keeps them, then fetched. Folders in Hugging Face's layout (merges.txt, vocab.json) hold
the same two. Go back to `gpt/bpe.py` for how any of it works.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regex

from gpt import UserError
from gpt.bpe import END_OF_TEXT, BytePairTokenizer, Pair, read_merges, show
from gpt.files import replace_file, sha256
from gpt.json_files import read_json
from gpt.tokenizer import CharTokenizer, Tokenizer
from gpt.words import WORDS, check_unicode

if TYPE_CHECKING:
    import tiktoken

GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_FILES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
CACHE_VARIABLES = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")  # tiktoken's, in its order
LARGEST_MERGES = 1 << 28  # bytes; GPT-2's file has 456,318


def load_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """`gpt2`, or the tokenizer in a file that `save` wrote, a folder with one, or Hugging Face's.

    Raises UserError where there is none, or none that is whole.
    """
    if name_or_path == "gpt2":
        return fast(gpt2())
    path = Path(name_or_path)
    if (path / "tokenizer.json").exists() and not (path / "merges.txt").exists():
        path /= "tokenizer.json"
    if path.is_dir():
        return fast(read_gpt2_files(path / "merges.txt", path / "vocab.json"))
    if not path.exists():
        raise UserError(
            f"there is no tokenizer {name_or_path}; give gpt2, or a file that "
            "`python -m gpt tokenizer train` wrote"
        )
    content = read_json(path)
    if isinstance(content, dict) and content.get("kind") == CharTokenizer.kind:
        return CharTokenizer.load(path)
    if isinstance(content, dict) and "model" in content:
        return read_characters(content, path)
    return fast(BytePairTokenizer.load(path))


# ---- Characters, in the terms of Hugging Face's library `tokenizers` ----


def describe_characters(tokenizer: CharTokenizer) -> dict[str, Any]:
    """The content of its tokenizer.json: each character is a word of its own."""
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": r"[\s\S]"},
            "behavior": "Isolated",
            "invert": False,
        },
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": tokenizer.number, "unk_token": ""},
    }


def read_characters(content: dict[str, Any], path: Path) -> CharTokenizer:
    """The tokenizer that `describe_characters` described. Raises UserError for any other."""
    model = content["model"]
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict) and all(len(character) == 1 for character in vocab):
        tokenizer = CharTokenizer("".join(vocab))
        if describe_characters(tokenizer) == content:
            return tokenizer
    raise UserError(
        f"{path} is a tokenizer of the library `tokenizers`; of those, folders with merges.txt and "
        "vocab.json are read, and the characters that `python -m gpt export` writes"
    )


# ---- tiktoken ----


class TiktokenTokenizer(BytePairTokenizer):
    """The same tokens as the tokenizer that it is made of, found by tiktoken's compiled code."""

    # tiktoken's engine of regular expressions remembers a million steps back; a longer run of
    # white space ends the process's thread with a panic instead of an exception.
    longest_space = 500_000

    def __init__(self, merges: Iterable[Pair], special_tokens: Iterable[str] = (END_OF_TEXT,)):
        super().__init__(merges, special_tokens)
        self.encoding = to_tiktoken(self)

    def encode_ordinary(self, text: str) -> list[int]:
        check_unicode(text)  # tiktoken would replace what it cannot write
        if len(text) > self.longest_space and regex.search(rf"\s{{{self.longest_space}}}", text):
            return super().encode_ordinary(text)
        return self.encoding.encode_ordinary(text)


def to_tiktoken(tokenizer: BytePairTokenizer, name: str = "tinytensor") -> tiktoken.Encoding:
    """The tokenizer as an `Encoding` of tiktoken, with the same numbers.

    tiktoken joins any two neighbours that make a token; we join those that were learned as a pair.
    Merges that were learned leave no difference: a token's bytes are always put together the same
    way (`unreachable` finds the tokens of other merges for which that fails).
    """
    import tiktoken

    ordinary = tokenizer.tokens[: 256 + len(tokenizer.merges)]
    return tiktoken.Encoding(
        name,
        pat_str=WORDS,
        mergeable_ranks={token: i for i, token in enumerate(ordinary)},
        special_tokens=tokenizer.special_tokens,
    )


def fast(tokenizer: BytePairTokenizer) -> BytePairTokenizer:
    """The tokenizer on tiktoken, where that is installed."""
    if importlib.util.find_spec("tiktoken") is None:
        return tokenizer
    return TiktokenTokenizer(tokenizer.merges, tokenizer.special_tokens)


# ---- GPT-2's files, and Hugging Face's ----


def gpt2() -> BytePairTokenizer:
    """GPT-2's tokenizer of 50,257 tokens. Raises UserError where its files cannot be had."""
    merges, _ = (gpt2_file(name) for name in GPT2_FILES)
    # Both files have the known hashes, so that there is nothing left to compare.
    return BytePairTokenizer(read_merge_file(merges))


def gpt2_file(name: str) -> Path:
    """One of GPT-2's two files, from tiktoken's cache or the network."""
    url, wanted = GPT2_URL + name, GPT2_FILES[name]
    folders = [folder for variable in CACHE_VARIABLES if (folder := os.environ.get(variable))]
    folders += [os.path.join(tempfile.gettempdir(), "data-gym-cache")]
    path = Path(folders[0]) / cache_name(url)
    if path.is_file():
        if sha256(path) != wanted:
            raise UserError(f"{path} is damaged: its SHA-256 is not that of GPT-2's {name}")
        return path

    from gpt.data import download

    try:
        return download(url, wanted, f"gpt2-{name}")
    except ConnectionError as error:
        places = " and ".join(f"{file} as {cache_name(GPT2_URL + file)}" for file in GPT2_FILES)
        raise UserError(
            f"GPT-2's merges could not be fetched ({error}); put {places}, both from {GPT2_URL}, "
            f"into one folder and set {CACHE_VARIABLES[0]} to it, or train a tokenizer of your "
            "own with `python -m gpt tokenizer train` and give --tokenizer its path"
        ) from None


def cache_name(url: str) -> str:
    """tiktoken's name for a file that came from `url`."""
    return hashlib.sha1(url.encode()).hexdigest()


def read_gpt2_files(merges: Path, numbers: Path) -> BytePairTokenizer:
    """The tokenizer of a file of merges and a file with every token's number.

    Raises UserError unless the numbers are those that the merges give: bytes in GPT-2's order,
    merges, special tokens.
    """
    for path in (merges, numbers):
        if not path.is_file():
            raise UserError(
                f"{path} is missing: a folder's tokenizer is tokenizer.json, or {merges.name} and "
                f"{numbers.name}"
            )
    pairs = read_merge_file(merges)
    content = read_json(numbers)
    if not isinstance(content, dict) or not all(type(i) is int for i in content.values()):
        raise UserError(f"{numbers} does not give each token its number")
    names = sorted(content, key=content.__getitem__)[256 + len(pairs) :]
    for name in names:
        if not regex.fullmatch(r"<.+>|\[.+\]", name):  # so a word is no special token by accident
            raise UserError(f"{numbers} does not belong to {merges.name}: no merge makes {name!r}")
    try:
        tokenizer = BytePairTokenizer(pairs, names)
    except ValueError as error:
        raise UserError(f"{merges} and {numbers.name} give no tokenizer: {error}") from None
    for name, i in vocabulary(tokenizer).items():
        if content.get(name) != i:
            raise UserError(
                f"{numbers} does not belong to {merges.name}: token {name!r} has the number "
                f"{content.get(name)}, but the merges give it {i}"
            )
    if lost := unreachable(tokenizer):
        raise UserError(
            f"{merges} is damaged: merge {lost[0] - 255} makes {show(tokenizer.tokens[lost[0]])!r} "
            "of parts that earlier merges never leave"
        )
    return tokenizer


def write_gpt2_files(tokenizer: BytePairTokenizer, folder: Path) -> None:
    """vocab.json and merges.txt, as Hugging Face's `GPT2Tokenizer` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *tokenizer.merge_lines()]
    replace_file(folder / "merges.txt", "\n".join(lines) + "\n")
    numbers = json.dumps(vocabulary(tokenizer), ensure_ascii=False)
    replace_file(folder / "vocab.json", numbers + "\n")


def vocabulary(tokenizer: BytePairTokenizer) -> dict[str, int]:
    ordinary = tokenizer.tokens[: 256 + len(tokenizer.merges)]
    return {show(token): i for i, token in enumerate(ordinary)} | tokenizer.special_tokens


def unreachable(tokenizer: BytePairTokenizer) -> list[int]:
    """The tokens that no text encodes to, because earlier merges put their bytes elsewhere."""
    ordinary = tokenizer.tokens[: 256 + len(tokenizer.merges)]
    return [i for i, token in enumerate(ordinary) if tokenizer.merge(token) != [i]]


def read_merge_file(path: Path) -> list[Pair]:
    """The merges of a file in GPT-2's format. Raises UserError that names the line."""
    try:
        if path.stat().st_size > LARGEST_MERGES:
            raise UserError(f"{path} is larger than {LARGEST_MERGES >> 20} MiB; no merges are")
        lines = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start} is no part of one") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if lines[-1]:
        raise UserError(f"{path} is cut short: its last line has no end")
    return read_merges(lines[lines[0].startswith("#version") : -1], str(path))
