"""Byte pairs: learning against the textbook's way, encoding against tiktoken, files and damage.

tiktoken's own GPT-2 needs two files that are not ours to ship: the tests that compare with it run
where TIKTOKEN_CACHE_DIR names a folder with them.
"""

from __future__ import annotations

import doctest
import importlib.util
import json
import os
import random
import time
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpt.bpe
from gpt import UserError, tokenizers
from gpt.bpe import BYTES, TOKEN_OF_BYTE, BytePairTokenizer, count_words, learn_merges
from gpt.data import SHAKESPEARE_VARIABLE
from gpt.tokenizer import CharTokenizer
from gpt.tokenizers import (
    GPT2_FILES,
    TiktokenTokenizer,
    cache_name,
    load_tokenizer,
    unreachable,
    write_gpt2_files,
)
from gpt.words import WORD

# Few letters, so that pairs repeat and overlap; then what GPT-2's words turn on; then anything.
SYLLABLES = st.text(alphabet="ab ", max_size=60)
PIECES = st.sampled_from(
    ["  ", "\n", "\n\n ", "\t", "\r\n", "\x00", "\x1c", "\x85", "\xa0", "\u200b", "\u3000"]
    + ["'s", "'ll", " 've", "'S", "’s", "don't", "12", "½", "٣", " x²", "_", "...", "<|endoftext|>"]
    + ["\u0558", "\U00011de0", "\U00033333"]  # letters and a digit since Unicode 17 or 18
    + ["a", "The", " the", "ing", "é", "e\u0301", "ß", "中文", "한국", "\U0001f600"]
)
TEXTS = st.one_of(SYLLABLES, st.lists(PIECES, max_size=40).map("".join), st.text())

LESSON = "the cat sat on the mat, the rat sat on the cat; that's that. " * 3


@pytest.fixture(scope="module")
def tokenizer():
    return BytePairTokenizer.train([LESSON, "中文 中文 中文", "  x\n\n  x\n\n"], 256 + 60)


@pytest.fixture
def tiktoken():
    return pytest.importorskip("tiktoken", reason="tiktoken is not installed")


@pytest.fixture(scope="module")
def gpt2():
    """GPT-2's tokenizer of ours, and tiktoken's."""
    if importlib.util.find_spec("tiktoken") is None:
        pytest.skip("tiktoken is not installed")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", "")
    if not folder or not (Path(folder) / cache_name(tokenizers.GPT2_URL + "vocab.bpe")).exists():
        pytest.skip("TIKTOKEN_CACHE_DIR names no folder with GPT-2's merges")
    import tiktoken

    return tokenizers.gpt2(), tiktoken.get_encoding("gpt2")


def test_the_lesson_in_the_docstring_is_true():
    failures, examples = doctest.testmod(gpt.bpe)
    assert examples >= 3 and not failures


# ---- Learning ----


def textbook_merges(words, number):
    """The definition: count all pairs, merge the first of the most frequent everywhere, repeat."""
    rows = [([TOKEN_OF_BYTE[byte] for byte in word], count) for word, count in words.items()]
    merges = []
    while len(merges) < number:
        pairs = Counter()
        for row, count in rows:
            for pair in pairwise(row):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        merges.append(best)
        rows = [(replace(row, best, 255 + len(merges)), count) for row, count in rows]
    return merges


def replace(row, pair, new):
    merged, i = [], 0
    while i < len(row):
        if tuple(row[i : i + 2]) == pair:
            merged.append(new)
            i += 2
        else:
            merged.append(row[i])
            i += 1
    return merged


@given(st.lists(TEXTS, max_size=4), st.integers(0, 40))
def test_incremental_counts_learn_what_the_textbook_learns(texts, number):
    words = count_words(texts)
    merges = learn_merges(words, number)
    assert merges == textbook_merges(words, number)
    tokenizer = BytePairTokenizer(merges)
    assert unreachable(tokenizer) == []
    # The order of words and texts decides nothing, ties included.
    shuffled = list(words.items())
    random.Random(number).shuffle(shuffled)
    assert learn_merges(dict(shuffled), number) == merges


def test_equally_frequent_pairs_go_by_their_numbers():
    words = Counter({b"dc": 2, b"ab": 2, b"ba": 2, b"aba": 1})  # ab 3, ba 3, dc 2
    tokenizer = BytePairTokenizer(learn_merges(words, 3), ())
    assert tokenizer.tokens[256:] == [b"ab", b"ba", b"dc"]


def test_a_pair_that_occurs_once_is_not_learned():
    tokenizer = BytePairTokenizer.train(["abcdefg"], 300)
    assert tokenizer.merges == [] and tokenizer.vocab_size == 257
    with pytest.raises(UserError, match="a vocabulary of 256 is too small"):
        BytePairTokenizer.train(["aa"], 256)


def test_a_megabyte_is_learned_in_under_a_minute():
    rng = random.Random(0)
    syllables = [a + b for a in "bcdfghjklmnprst" for b in ("a", "e", "i", "o", "u", "an", "or")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 5))) for _ in range(30_000)]
    text = " ".join(rng.choices(words, k=170_000))
    assert len(text) > 1_000_000
    began = time.process_time()
    tokenizer = BytePairTokenizer.train([text], 256 + 8192 + 1)
    assert time.process_time() - began < 60
    assert len(tokenizer.merges) == 8192


# ---- Encoding and decoding ----


def textbook_tokens(tokenizer, word):
    row = [TOKEN_OF_BYTE[byte] for byte in word]
    for number, pair in enumerate(tokenizer.merges):
        row = replace(row, pair, 256 + number)
    return row


@given(TEXTS)
def test_encoding_applies_the_merges_in_their_order(tokenizer, text):
    ids = [i for word in WORD.findall(text) for i in textbook_tokens(tokenizer, word.encode())]
    assert tokenizer.encode(text) == ids


@given(TEXTS)
def test_decoding_undoes_encoding(tokenizer, text):
    for instance in (tokenizer, BytePairTokenizer([])):
        ids = instance.encode(text)
        assert instance.decode(ids) == text
        assert instance.decode_bytes(ids) == text.encode()
        assert instance.encode(text) == ids  # from the cache
    assert tokenizer.decode(tokenizer.encode(text, tokenizer.special_tokens)) == text


def test_words_are_gpt2s():
    words = ["I", "'ve", " 12½", " cats", "!!", "\n ", " they", "'", "LL", "…", "  \n"]
    assert WORD.findall("".join(words)) == words


def test_a_special_token_is_ordinary_text_unless_it_is_allowed(tokenizer):
    end = tokenizer.vocab_size - 1
    assert tokenizer.end_of_text == tokenizer.start == end
    text = "cat<|endoftext|>mat"
    assert end not in tokenizer.encode(text)
    ids = tokenizer.encode(text, ["<|endoftext|>", "<|unknown|>"])
    assert ids == [*tokenizer.encode("cat"), end, *tokenizer.encode("mat")]
    assert tokenizer.decode(ids) == text

    nested = BytePairTokenizer([], ["<a>", "<a><b>"])
    assert nested.encode("<a><b><a>", ["<a>", "<a><b>"]) == [257, 256]
    assert nested.end_of_text is None and nested.tokens[nested.start] == b"\n"


def test_what_is_no_text_and_no_token_is_refused(tokenizer):
    for instance in [tokenizer, *fast_twin(tokenizer)]:
        with pytest.raises(UserError, match=r"character 2 of the text is a lone surrogate \(U\+D8"):
            instance.encode("ab\ud800")
    for number in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"token {number} is outside the vocabulary of"):
            tokenizer.decode([number])
    assert tokenizer.decode([BYTES.index(0xE4)]) == "\ufffd"


@pytest.mark.parametrize(
    ("merges", "names", "words"),
    [
        ([(0, 256)], (), "merge 0 joins 0 and 256, but only the tokens below 256 exist"),
        ([(0, -1)], (), "joins 0 and -1"),
        ([(0, 0), (0, 0)], (), "two merges make the same token, '!!'"),
        ([(0, 0), (0, 256), (256, 0)], (), "two merges make the same token, '!!!'"),
        ([], ("x", "x"), "special tokens must be different names"),
        ([], ("",), "special tokens must be different names"),
    ],
)
def test_merges_that_are_none_are_refused(merges, names, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        BytePairTokenizer(merges, names)


def test_a_long_word_is_no_trap(tokenizer):
    rng = random.Random(0)
    for text in ("a" * 300_000, "".join(rng.choices("thecatsm", k=300_000)), " " * 300_000 + "a"):
        began = time.process_time()
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert time.process_time() - began < 20


# ---- tiktoken ----


@cache
def fast_twin(tokenizer):
    if importlib.util.find_spec("tiktoken") is None:
        return []
    return [TiktokenTokenizer(tokenizer.merges, tokenizer.special_tokens)]


@given(TEXTS)
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_tiktoken_encodes_with_our_merges_as_we_do(tiktoken, tokenizer, text):
    fast = fast_twin(tokenizer)[0]
    encoding = fast.encoding
    assert encoding.encode_ordinary(text) == tokenizer.encode(text)
    assert encoding.n_vocab == tokenizer.vocab_size
    allowed = tokenizer.special_tokens
    ids = tokenizer.encode(text, allowed)
    assert encoding.encode(text, allowed_special=set(allowed)) == ids
    assert fast.encode(text, allowed) == ids


def test_white_space_that_would_end_tiktoken_is_encoded(tiktoken, tokenizer):
    fast = fast_twin(tokenizer)[0]
    text = "x" + " \n" * 510_000 + "cat"
    assert fast.encode(text) == tokenizer.encode(text)


@given(TEXTS)
def test_gpt2_is_tiktokens_gpt2(gpt2, text):
    ours, theirs = gpt2
    ids = theirs.encode_ordinary(text)
    assert ours.encode(text) == ids
    assert ours.decode(ids) == text


def test_gpt2_has_its_published_numbers(gpt2):
    ours, theirs = gpt2
    assert ours.vocab_size == theirs.n_vocab == 50257
    assert ours.start == theirs.eot_token == 50256
    assert ours.encode("Hello, world!") == [15496, 11, 995, 0]
    assert [theirs.decode_single_token_bytes(i) for i in range(50257)] == ours.tokens
    assert load_tokenizer("gpt2").encode("Hello, world!") == [15496, 11, 995, 0]


def test_tiny_shakespeare_has_338025_tokens(gpt2):
    path = os.environ.get(SHAKESPEARE_VARIABLE)
    if not path:
        pytest.skip(f"{SHAKESPEARE_VARIABLE} names no copy of Tiny Shakespeare")
    ours, theirs = gpt2
    text = Path(path).read_text(encoding="utf-8")
    ids = ours.encode(text)
    assert len(ids) == 338_025
    assert ids == theirs.encode_ordinary(text) == load_tokenizer("gpt2").encode(text)


@pytest.mark.nightly
def test_every_character_is_split_as_tiktoken_splits_it(gpt2):
    """The two libraries' tables of Unicode are of different age; `gpt/words.py` makes up for it."""
    ours, theirs = gpt2
    for number in [*range(0xD800), *range(0xE000, 0x110000)]:
        c = chr(number)
        text = f"a{c} {c}{c}1{c}!{c}\n{c}  {c}'s"
        assert ours.encode(text) == theirs.encode_ordinary(text), hex(number)


# ---- Files ----


def test_a_tokenizer_survives_its_file(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    for path in (tmp_path / "tokenizer.json", tmp_path):
        loaded = load_tokenizer(path)
        assert loaded.to_json() == tokenizer.to_json()
        assert loaded.encode(LESSON) == tokenizer.encode(LESSON)


def test_gpt2s_layout_of_files_holds_any_of_our_tokenizers(tokenizer, tmp_path):
    write_gpt2_files(tokenizer, tmp_path)
    assert load_tokenizer(tmp_path).to_json() == tokenizer.to_json()


@pytest.mark.parity
def test_transformers_reads_the_files(tokenizer, tmp_path):
    from transformers import GPT2Tokenizer

    write_gpt2_files(tokenizer, tmp_path)
    theirs = GPT2Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    for text in (LESSON, "  中文 \n\n x\u3000é 12"):
        assert theirs.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"kind": 1' + "0" * 5000 + "}", "is not JSON"),
        ("[]", "is not a file of byte pairs"),
        ('{"kind": "words"}', "is not a file of byte pairs"),
        ('{"kind": "byte pairs", "merges": []}', "is damaged"),
        ('{"kind": "characters", "vocabulary": "ab"}', "is damaged"),
        (CharTokenizer("ba").to_json(), "in sorted order"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_a_sentence(tmp_path, content, words):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        load_tokenizer(path)
    assert words in str(caught.value) and "tokenizer.json" in str(caught.value)


def test_no_tokenizer_at_all_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="there is no tokenizer absent; give gpt2, or a file"):
        load_tokenizer("absent")
    with pytest.raises(UserError, match=r"merges\.txt is missing: a folder's tokenizer is"):
        load_tokenizer(tmp_path)


def damaged(content, rng):
    """The content with a byte changed, added or lost, two lines exchanged, or an end cut off."""
    at = rng.randrange(len(content))
    kind = rng.randrange(5)
    if kind == 0:
        return content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
    if kind == 1:
        return content[:at] + bytes([rng.randrange(256)]) + content[at:]
    if kind == 2:
        return content[:at] + content[at + rng.randint(1, 9) :]
    if kind == 3:
        lines = content.split(b"\n")
        i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
        lines[i], lines[j] = lines[j], lines[i]
        return b"\n".join(lines)
    return content[:at]


def check_damage(tokenizer, folder, rounds):
    """However a file is damaged, a sentence comes of it, or the tokenizer that was meant."""
    write_gpt2_files(tokenizer, folder)
    tokenizer.save(folder / "tokenizer.json")
    places = {"tokenizer.json": "tokenizer.json", "merges.txt": "", "vocab.json": ""}
    rng = random.Random(0)
    refused = 0
    for name, loaded in places.items():
        whole = (folder / name).read_bytes()
        for _ in range(rounds):
            (folder / name).write_bytes(damaged(whole, rng))
            try:
                found = load_tokenizer(folder / loaded)
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and name.split(".")[0] in str(error)
            else:
                # vocab.json alone names the special tokens, so another name is no contradiction.
                assert found.merges == tokenizer.merges
                assert len(found.special_tokens) == 1
        (folder / name).write_bytes(whole)
    assert refused > 2.5 * rounds


def test_damaged_files_are_refused(tokenizer, tmp_path):
    check_damage(tokenizer, tmp_path, rounds=100)


@pytest.mark.nightly
def test_many_damaged_files_are_refused(tokenizer, tmp_path):
    check_damage(tokenizer, tmp_path, rounds=3000)


def test_gpt2_without_its_files_says_which_to_put_where(monkeypatch, tmp_path):
    def fail(url, sha256, name):
        raise ConnectionError("openaipublic.blob.core.windows.net: no route to host")

    monkeypatch.setattr("gpt.data.download", fail)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(UserError) as caught:
        load_tokenizer("gpt2")
    for words in (
        "no route to host",
        "vocab.bpe as 6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
        "encoder.json as 6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
        "set TIKTOKEN_CACHE_DIR",
        "give --tokenizer its path",
    ):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_of_gpt2_is_named_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    path = tmp_path / cache_name(tokenizers.GPT2_URL + next(iter(GPT2_FILES)))
    path.write_text("#version: 0.2\n")
    with pytest.raises(UserError, match="is damaged: its SHA-256 is not that of GPT-2"):
        load_tokenizer("gpt2")
    assert path.exists()


def test_numbers_that_do_not_follow_from_the_merges_are_refused(tokenizer, tmp_path):
    write_gpt2_files(tokenizer, tmp_path)
    numbers = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    numbers["a"], numbers["b"] = numbers["b"], numbers["a"]
    (tmp_path / "vocab.json").write_text(json.dumps(numbers))
    with pytest.raises(
        UserError, match=r"does not belong to merges\.txt: token 'a' has the number"
    ):
        load_tokenizer(tmp_path)
