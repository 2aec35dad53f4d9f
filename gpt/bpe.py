"""Byte-pair encoding: the tokenizer of GPT-2, taught from a text.

A text is cut into words (`gpt/words.py`), a word into the bytes of its UTF-8, and the 256 bytes are
the first tokens. Learning: find the pair of neighbouring tokens that occurs most often, give it a
number of its own, put that number wherever the pair stands, begin again. Encoding repeats those
merges on a new text, the earliest learned first. No text is unknown: what was never seen stays
bytes.

    >>> tokenizer = BytePairTokenizer.train(["low low low lower lowest"], vocab_size=256 + 4)
    >>> [tokenizer.token_bytes(i) for i in range(256, 260)]
    [b'lo', b'low', b' low', b'<|endoftext|>']
    >>> [tokenizer.token_bytes(i) for i in tokenizer.encode("lowest flow")]
    [b'low', b'e', b's', b't', b' ', b'f', b'low']

(R. Sennrich, B. Haddow, A. Birch, "Neural machine translation of rare words with subword units",
2016; on bytes: A. Radford et al., "Language models are unsupervised multitask learners", 2019.)
This file knows bytes and integers. Go next to `gpt/tokenizers.py`: GPT-2's own merges, and speed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from heapq import heapify, heappop, heappush
from pathlib import Path

import regex

from gpt import UserError
from gpt.json_files import read_sealed, seal
from gpt.words import WORD, check_unicode

Pair = tuple[int, int]

END_OF_TEXT = "<|endoftext|>"

# Tokens 0 to 255 are the bytes in GPT-2's order: those that print in Latin-1, then the others.
PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = bytes(PRINTED + [byte for byte in range(256) if byte not in PRINTED])
TOKEN_OF_BYTE = [BYTES.index(byte) for byte in range(256)]
# In a file of merges each byte is one visible character: itself, or one from U+0100 on ("Ġ" is the
# space).
CHARACTERS = [chr(byte) for byte in PRINTED] + [chr(0x100 + i) for i in range(256 - len(PRINTED))]
SHOWN = dict(zip(BYTES, CHARACTERS, strict=True))
BYTE_SHOWN = {character: byte for byte, character in SHOWN.items()}

NOTHING = -1  # a position whose token went into its left neighbour, or the gap between two words
CACHED_WORDS, CACHED_LENGTH = 1 << 17, 64


# ---- Learning ----


def learn_merges(
    words: Mapping[bytes, int],
    number: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[Pair]:
    """The first `number` merges for words that occur so many times each.

    The most frequent pair is merged next; among equally frequent ones, the pair whose left token
    has the smaller number, then the right. A pair that occurs once is not worth a token, so a short
    text may give fewer merges. All words stand in one row, chained left and right, and a merge
    touches its own places only: its cost is how often the pair occurs, not how long the text is.
    """
    tokens, weights = [NOTHING], [0]
    for word, count in words.items():
        tokens += [TOKEN_OF_BYTE[byte] for byte in word] + [NOTHING]
        weights += [count] * (len(word) + 1)
    left = list(range(-1, len(tokens) - 1))
    right = list(range(1, len(tokens) + 1))

    counts: Counter[Pair] = Counter()
    places: dict[Pair, list[int]] = {}  # where a pair begins, or once began
    for i in range(len(tokens) - 1):
        if tokens[i] != NOTHING != tokens[i + 1]:
            pair = tokens[i], tokens[i + 1]
            counts[pair] += weights[i]
            places.setdefault(pair, []).append(i)
    queue = [(-count, pair) for pair, count in counts.items()]
    heapify(queue)

    merges: list[Pair] = []
    for new in progress(range(256, 256 + number)):
        while queue and -queue[0][0] != counts[queue[0][1]]:
            heappop(queue)  # counted before other merges changed it; it is queued again below
        if not queue or queue[0][0] > -2:
            break
        merged = heappop(queue)[1]
        merges.append(merged)
        changed = set()
        for i in sorted(set(places.pop(merged))):
            j = right[i]
            if (tokens[i], tokens[j]) != merged:
                continue  # an earlier merge took one of the two
            before, after, weight = left[i], right[j], weights[i]
            counts[merged] -= weight
            if tokens[before] != NOTHING:
                lost, gained = (tokens[before], tokens[i]), (tokens[before], new)
                counts[lost] -= weight
                counts[gained] += weight
                places.setdefault(gained, []).append(before)
                changed |= {lost, gained}
            if tokens[after] != NOTHING:
                lost, gained = (tokens[j], tokens[after]), (new, tokens[after])
                counts[lost] -= weight
                counts[gained] += weight
                places.setdefault(gained, []).append(i)
                changed |= {lost, gained}
            tokens[i], tokens[j] = new, NOTHING
            right[i], left[after] = after, i
        for pair in changed:
            if counts[pair] > 1:
                heappush(queue, (-counts[pair], pair))
    return merges


def count_words(texts: Iterable[str]) -> Counter[bytes]:
    """How often each word occurs in all of the texts."""
    counts: Counter[str] = Counter()
    for text in texts:
        check_unicode(text)
        counts.update(WORD.findall(text))
    return Counter({word.encode("utf-8"): count for word, count in counts.items()})


# ---- Encoding ----


class BytePairTokenizer:
    """Bytes, then what the merges made of them, then the special tokens: numbered in this order.

    A special token such as `<|endoftext|>` marks something that no text may say by accident, so
    `encode` reads its characters as ordinary text unless `allowed_special` names it. Raises
    ValueError for merges that are not pairs of earlier tokens, or make the same bytes twice.
    """

    kind = "byte pairs"

    def __init__(self, merges: Iterable[Pair], special_tokens: Iterable[str] = (END_OF_TEXT,)):
        self.merges = list(merges)
        self.tokens = [bytes([byte]) for byte in BYTES]
        for left, right in self.merges:
            if not 0 <= min(left, right) <= max(left, right) < len(self.tokens):
                raise ValueError(
                    f"merge {len(self.tokens) - 256} joins {left} and {right}, but only the tokens "
                    f"below {len(self.tokens)} exist by then"
                )
            self.tokens.append(self.tokens[left] + self.tokens[right])
        if len(set(self.tokens)) != len(self.tokens):
            twice = Counter(self.tokens).most_common(1)[0][0]
            raise ValueError(f"two merges make the same token, {show(twice)!r}")
        self.token_of_pair = {pair: 256 + i for i, pair in enumerate(self.merges)}
        names = list(special_tokens)
        if not all(names) or len(set(names)) != len(names):
            raise ValueError(f"special tokens must be different names, not {names}")
        self.special_tokens = {name: len(self.tokens) + i for i, name in enumerate(names)}
        self.tokens += [name.encode("utf-8") for name in names]
        self.cache: dict[str, list[int]] = {}

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        special_tokens: Collection[str] = (END_OF_TEXT,),
        progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    ) -> BytePairTokenizer:
        """A tokenizer of `vocab_size` tokens, or fewer where no pair occurs twice any more."""
        number = vocab_size - 256 - len(special_tokens)
        if number < 0:
            raise UserError(
                f"a vocabulary of {vocab_size} is too small: the 256 bytes and "
                f"{len(special_tokens)} special tokens come first"
            )
        return cls(learn_merges(count_words(texts), number, progress), special_tokens)

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @property
    def end_of_text(self) -> int | None:
        """The token between two documents."""
        return self.special_tokens.get(END_OF_TEXT)

    @property
    def start(self) -> int:
        """The end of the text before, or the line break of a tokenizer that has no such token."""
        end = self.end_of_text
        return TOKEN_OF_BYTE[ord("\n")] if end is None else end

    def encode(self, text: str, allowed_special: Iterable[str] = ()) -> list[int]:
        """The tokens of a text. Raises UserError for a lone surrogate, which is no character."""
        names = sorted(set(allowed_special) & self.special_tokens.keys(), key=len, reverse=True)
        if not names:
            return self.encode_ordinary(text)
        ids: list[int] = []
        for part in regex.split("(" + "|".join(map(regex.escape, names)) + ")", text):
            ids += [self.special_tokens[part]] if part in names else self.encode_ordinary(part)
        return ids

    def encode_ordinary(self, text: str) -> list[int]:
        check_unicode(text)
        ids: list[int] = []
        cache = self.cache
        for word in WORD.findall(text):
            found = cache.get(word)
            if found is None:
                found = self.merge(word.encode("utf-8"))
                if len(word) <= CACHED_LENGTH:
                    if len(cache) >= CACHED_WORDS:
                        cache.clear()
                    cache[word] = found
            ids += found
        return ids

    def merge(self, word: bytes) -> list[int]:
        """The tokens of one word: the earliest learned merge first, from the left.

        The queue makes it n log n, so that a megabyte without a space is no trap.
        """
        tokens = [TOKEN_OF_BYTE[byte] for byte in word] + [NOTHING]
        left = list(range(-1, len(word)))
        right = list(range(1, len(word) + 2))
        made = self.token_of_pair.get
        queue = [(new, i) for i in range(len(word)) if (new := made((tokens[i], tokens[i + 1])))]
        heapify(queue)
        while queue:
            new, i = heappop(queue)
            j = right[i]
            if made((tokens[i], tokens[j])) != new:
                continue  # one of the two has been merged with its other neighbour
            tokens[i], tokens[j] = new, NOTHING
            after = right[i] = right[j]
            left[after] = i
            if following := made((new, tokens[after])):
                heappush(queue, (following, i))
            if (before := left[i]) >= 0 and (following := made((tokens[before], new))):
                heappush(queue, (following, before))
        return [token for token in tokens if token != NOTHING]

    # ---- Decoding ----

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for. Raises ValueError for a number outside the vocabulary."""
        if not 0 <= token < len(self.tokens):
            raise ValueError(f"token {token} is outside the vocabulary of {len(self.tokens)}")
        return self.tokens[token]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join([self.token_bytes(i) for i in ids])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these tokens; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    # ---- Files ----

    def merge_lines(self) -> list[str]:
        """Each merge as two tokens with a space between, a visible character a byte."""
        return [f"{show(self.tokens[a])} {show(self.tokens[b])}" for a, b in self.merges]

    def to_json(self) -> str:
        """The merges as GPT-2's files write them, and a hash against damage."""
        names = list(self.special_tokens)
        return seal({"kind": self.kind, "special_tokens": names, "merges": self.merge_lines()})

    def save(self, path: Path) -> None:
        path.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> BytePairTokenizer:
        """The tokenizer that `save` wrote. Raises UserError where the file is something else."""
        content = read_sealed(path, cls.kind)
        try:
            return cls(read_merges(content["merges"], str(path)), content["special_tokens"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no tokenizer: {error}") from None


def read_merges(lines: Iterable[str], where: str) -> list[Pair]:
    """Merges as GPT-2's files write them: two tokens, each of them a byte or made before, a line.

    Raises UserError that names the line.
    """
    numbers = {bytes([byte]): i for i, byte in enumerate(BYTES)}
    merges: list[Pair] = []
    for line in lines:
        try:
            left, right = (
                numbers[bytes([BYTE_SHOWN[character] for character in part])]
                for part in line.split(" ")
            )
        except (KeyError, ValueError):
            raise UserError(
                f"{where}: merge {len(merges) + 1} is {line[:60]!r}, not two tokens that are "
                "bytes or were merged before"
            ) from None
        merges.append((left, right))
        numbers[bytes([BYTE_SHOWN[c] for c in line if c != " "])] = 255 + len(merges)
    return merges


def show(token: bytes) -> str:
    """A token with one visible character a byte."""
    return "".join([SHOWN[byte] for byte in token])
