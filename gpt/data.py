"""A text, where it comes from, and the batches that are cut from it.

`load_text` finds a text by name or path, `split` keeps its last tenth for validation, `Windows`
draws random batches with their targets, and `entropies` says which losses mean what on this very
text. This file knows texts and token numbers, and nothing of models. Go next to `gpt/corpus.py`,
where texts and shards look alike.

The article's `get_batch(split)` compares `split == 'train'` but is called with True and False: all
its batches, those that it trains on included, come from the validation split, and the labels of the
two losses that it prints are swapped besides. Here a split is an array, with no name to mistake.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import pydoc_data.topics
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tinytensor as tt
from gpt import UserError
from gpt.files import check_regular

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_VARIABLE = "TINYTENSOR_SHAKESPEARE"
DOWNLOAD_TIMEOUT = 10  # seconds without a byte; a machine with no network should know soon

TRAIN_FRACTION = 0.9


@dataclass(frozen=True)
class Text:
    """A text and the `--data` that finds it again."""

    source: str
    content: str
    note: str = ""  # a sentence that the reader of the run should see

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content.encode("utf-8", "surrogatepass")).hexdigest()


# ---- Where texts come from ----


def load_text(data: str) -> Text:
    """The text that `--data` names. Raises UserError for one that cannot be read or is empty.

    Where Shakespeare can be neither found nor fetched, the text is Python's language reference and
    `note` says why.
    """
    if data == "python":
        return Text("python", python_reference())
    if data == "shakespeare":
        try:
            return Text("shakespeare", shakespeare())
        except ConnectionError as error:
            note = (
                f"Shakespeare could not be fetched ({error}); training on Python's language "
                f"reference instead (with a copy at hand, set {SHAKESPEARE_VARIABLE} to its path)"
            )
            return Text("python", python_reference(), note)
    path = Path(data)
    return Text(str(path.resolve()), read_text(path))


def read_text(path: Path) -> str:
    """A UTF-8 file, with line endings as Python's text mode reads them and no byte-order mark."""
    try:
        check_regular(path)
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"there is no file or folder {path}; --data takes a path, or one of shakespeare and "
            "python"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text: byte {error.start} (0x{raw[error.start]:02x}) cannot be "
            f"decoded ({error.reason})"
        ) from None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text:
        raise UserError(f"{path} is empty")
    return text


def shakespeare() -> str:
    """Tiny Shakespeare, 1,115,394 characters, from the environment, the cache or the network.

    Raises ConnectionError, with a short reason, where it is nowhere to be had.
    """
    if named := os.environ.get(SHAKESPEARE_VARIABLE):
        path = Path(named)
        text = read_text(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != SHAKESPEARE_SHA256:
            raise UserError(
                f"{SHAKESPEARE_VARIABLE} names {path}, which is another text (its SHA-256 begins "
                f"{digest[:8]}, not {SHAKESPEARE_SHA256[:8]}); --data trains on any text"
            )
        return text
    return read_text(download(SHAKESPEARE_URL, SHAKESPEARE_SHA256, "tinyshakespeare.txt"))


def download(url: str, sha256: str, name: str) -> Path:
    """The file at `url`, fetched once into the user's cache folder and checked there."""
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)  # one line of our own instead of its two
    fetch = pooch.HTTPDownloader(timeout=DOWNLOAD_TIMEOUT)
    folder = pooch.os_cache("tinytensor")
    try:
        return Path(pooch.retrieve(url, f"sha256:{sha256}", name, folder, downloader=fetch))
    except (OSError, ValueError) as error:  # no network, no right to write, or another file
        host = url.split("/")[2]
        raise ConnectionError(f"{host}: {innermost_reason(error)}") from error


def innermost_reason(error: BaseException) -> str:
    """The innermost cause in a few words: a download fails through five layers of exceptions."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return words.splitlines()[0].rstrip(".")


def python_reference() -> str:
    """The prose that every Python installation carries: its language reference, 465 kB."""
    topics = pydoc_data.topics.topics
    return "\n".join(topics[title] for title in sorted(topics))


# ---- Splits and batches ----


def split(tokens: np.ndarray[Any, Any], block_size: int, source: str) -> tuple[Any, Any]:
    """The first 90 % of the tokens, to learn from, and the last 10 %, never learned from.

    Raises UserError where a part does not hold one window and its targets, block_size + 1 tokens.
    """
    border = int(TRAIN_FRACTION * len(tokens))
    train, validation = tokens[:border], tokens[border:]
    if min(len(train), len(validation)) <= block_size:
        raise UserError(
            f"{source} has {len(tokens):,} tokens, too few for a context of {block_size:,}: its "
            f"last tenth must hold {block_size + 1:,} of them and holds {len(validation):,}"
        )
    return train, validation


class Windows:
    """Endless batches of random windows, with the token that follows each token as its target.

    >>> windows = Windows(np.arange(100), block_size=4, batch_size=2, generator=tt.Generator(0))
    >>> x, y = windows.next_batch()
    >>> x.shape, bool((y == x + 1).all())
    ((2, 4), True)
    """

    def __init__(
        self,
        tokens: np.ndarray[Any, Any],
        block_size: int,
        batch_size: int,
        generator: tt.Generator,
    ):
        self.tokens = tokens
        self.block_size = block_size
        self.batch_size = batch_size
        self.generator = generator
        self.batches_drawn = 0

    def next_batch(self) -> tuple[tt.Tensor, tt.Tensor]:
        """Inputs and targets (B, T), int64: y[b, t] comes right after x[b, t]."""
        last_start = len(self.tokens) - self.block_size  # excluded: the targets reach one further
        starts = tt.randint(last_start, (self.batch_size, 1), generator=self.generator).numpy()
        windows = self.tokens[starts + np.arange(self.block_size + 1)].astype(np.int64)  # (B, T+1)
        self.batches_drawn += 1
        return tt.from_numpy(windows[:, :-1].copy()), tt.from_numpy(windows[:, 1:].copy())

    def state_dict(self) -> dict[str, Any]:
        """The position in the endless sequence of batches, as JSON can hold it."""
        return {"batches_drawn": self.batches_drawn, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches_drawn = state["batches_drawn"]
        self.generator.set_state(state["generator"])


def random_stream(seed: int, purpose: str) -> tt.Generator:
    """Random numbers of a run for one purpose, independent of those for others."""
    return tt.Generator(stream_seed(seed, purpose))


def stream_seed(seed: int, purpose: str) -> int:
    return zlib.crc32(f"{seed} {purpose}".encode())


# ---- What a loss means ----


@dataclass(frozen=True)
class Entropies:
    """The losses, in nats per token, of three models that know little.

    `uniform`, ln V, knows nothing. `unigram` knows how often each token occurs: -Σ p(a) ln p(a).
    `bigram` knows how often each follows each: -Σ p(a, b) ln p(b | a), the best that a model can do
    which sees one token only. (C. E. Shannon, "Prediction and entropy of printed English", 1951.)
    """

    uniform: float
    unigram: float
    bigram: float

    def meaning(self, loss: float) -> str:
        """What a model with this loss has learned, in words."""
        if loss < self.bigram:
            return "sees further than pairs"
        if loss < self.unigram:
            return "learns what follows what"
        if loss < self.uniform:
            return "learns what is frequent"
        return "guesses"


def entropies(tokens: np.ndarray[Any, Any], vocab_size: int) -> Entropies:
    """Counted from the tokens themselves, all pairs of neighbours included."""
    singles = np.bincount(tokens, minlength=vocab_size)
    firsts = np.bincount(tokens[:-1], minlength=vocab_size)
    # Pairs are numbered a·V + b; only those that occur are counted, so large vocabularies fit.
    pairs = np.unique(tokens[:-1].astype(np.int64) * vocab_size + tokens[1:], return_counts=True)[1]
    return Entropies(
        uniform=math.log(vocab_size),
        unigram=entropy(singles),
        bigram=entropy(pairs) - entropy(firsts),  # H(b | a) = H(a, b) - H(a)
    )


def entropy(counts: np.ndarray[Any, Any]) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())
