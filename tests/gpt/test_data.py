"""Texts, the vocabulary, windows and entropies. No test here touches the network."""

from __future__ import annotations

import hashlib
import math
import os
import socket

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from gpt import UserError, data
from gpt.data import Entropies, Windows, entropies, load_text, split
from gpt.tokenizer import CharTokenizer
from gpt.tokenizers import load_tokenizer

# The 65 characters of Tiny Shakespeare, sorted.
SHAKESPEARE_VOCABULARY = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


# ---- The vocabulary ----


def test_the_articles_sentence_has_the_articles_numbers():
    tokenizer = CharTokenizer.of(SHAKESPEARE_VOCABULARY[::-1])
    assert tokenizer.vocab_size == 65
    ids = tokenizer.encode("I like to eat")
    assert ids == [21, 1, 50, 47, 49, 43, 1, 58, 53, 1, 43, 39, 58]
    assert tokenizer.decode(ids) == "I like to eat"
    assert tokenizer.decode([tokenizer.start]) == "\n"


@given(st.text(min_size=1))
def test_decoding_undoes_encoding(text):
    tokenizer = CharTokenizer.of(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert sorted(tokenizer.encode(tokenizer.vocabulary)) == list(range(tokenizer.vocab_size))


def test_characters_that_the_vocabulary_lacks_are_named():
    with pytest.raises(UserError) as caught:
        CharTokenizer.of("abc").encode("a €uro, cab")
    words = str(caught.value)
    assert "of 3 characters has no" in words
    for missing in ("' '", "'€'", "'u'", "'r'", "'o'", "','"):
        assert missing in words


def test_a_number_outside_the_vocabulary_is_refused():
    for number in (3, -1):
        with pytest.raises(ValueError, match=f"token {number} is outside the vocabulary of 3"):
            CharTokenizer.of("abc").decode([0, number])


def test_a_tokenizer_survives_its_file(tmp_path):
    tokenizer = CharTokenizer.of('naïve "quotes"\\ \n\u2028\U0001f600')
    tokenizer.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path / "tokenizer.json").to_json() == tokenizer.to_json()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"kind": "words"}', '{"kind": "characters", "vocabulary": "ba"}']
)
def test_a_file_that_is_no_tokenizer_is_a_sentence(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(path)


# ---- Texts ----


def test_a_text_is_read_as_python_reads_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffdéjà\r\nvu\n".encode())
    text = load_text(str(path))
    assert text.content == "déjà\nvu\n"
    assert load_text(text.source) == text


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is empty"),
        (b"caf\xe9 noir", "is not UTF-8 text: byte 3 (0xe9) cannot be decoded"),
        (None, "there is no file"),
    ],
)
def test_a_file_that_is_no_text_is_a_sentence(tmp_path, raw, words):
    path = tmp_path / "text.txt"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(UserError) as caught:
        load_text(str(path))
    assert words in str(caught.value) and "text.txt" in str(caught.value)


def test_a_folder_is_not_a_text(tmp_path):
    with pytest.raises(UserError, match="is a folder, not a file"):
        load_text(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX's")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "text.txt")
    with pytest.raises(UserError, match="is a pipe or a device, not a file"):
        load_text(str(tmp_path / "text.txt"))


@pytest.fixture
def small_shakespeare(monkeypatch, tmp_path):
    """Another text in Shakespeare's place, so that its hash can be checked; and an empty cache."""
    text = "To be, or not to be: that is the question.\n"
    monkeypatch.setattr(data, "SHAKESPEARE_SHA256", hashlib.sha256(text.encode()).hexdigest())
    monkeypatch.delenv(data.SHAKESPEARE_VARIABLE, raising=False)
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    return text


def test_shakespeare_is_found_through_the_environment(small_shakespeare, monkeypatch, tmp_path):
    path = tmp_path / "copy.txt"
    path.write_text(small_shakespeare)
    monkeypatch.setenv(data.SHAKESPEARE_VARIABLE, str(path))
    assert load_text("shakespeare") == data.Text("shakespeare", small_shakespeare)
    path.write_text("Something rotten")
    with pytest.raises(UserError, match=r"TINYTENSOR_SHAKESPEARE names .* which is another text"):
        load_text("shakespeare")


def test_shakespeare_is_downloaded_once(small_shakespeare, monkeypatch):
    fetched = []

    def fetch(self, url, output_file, *_, **__):
        fetched.append(url)
        with open(output_file, "w") as file:
            file.write(small_shakespeare)

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", fetch)
    assert load_text("shakespeare").content == small_shakespeare
    assert load_text("shakespeare").content == small_shakespeare
    assert fetched == [data.SHAKESPEARE_URL]


def no_network(*_, **__):
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def another_file(self, url, output_file, *_, **__):
    with open(output_file, "w") as file:
        file.write("<html>please log in to this hotel's network</html>")


@pytest.mark.parametrize(
    ("target", "failure", "words"),
    [
        ("socket.getaddrinfo", no_network, "raw.githubusercontent.com: Name or service not known"),
        ("pooch.HTTPDownloader.__call__", another_file, "SHA256 hash of downloaded file"),
    ],
)
def test_without_shakespeare_the_python_reference_is_read(
    small_shakespeare, monkeypatch, target, failure, words
):
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    monkeypatch.setattr(target, failure)
    text = load_text("shakespeare")
    assert text.source == "python" and text.content == load_text("python").content
    assert text.note.startswith("Shakespeare could not be fetched (") and words in text.note
    assert "\n" not in text.note


def test_the_python_reference_is_prose_enough():
    content = load_text("python").content
    assert len(content) > 300_000 and "The standard type hierarchy" in content


# ---- Splits and windows ----


def test_the_last_tenth_is_for_validation():
    train, validation = split(np.arange(1003), 8, "a text")
    assert train.tolist() == list(range(902)) and validation.tolist() == list(range(902, 1003))


def test_a_text_shorter_than_the_context_is_refused():
    split(np.arange(81), 8, "a text")
    with pytest.raises(UserError, match="a text has 80 tokens, too few for a context of 8"):
        split(np.arange(80), 8, "a text")


def test_targets_are_the_input_moved_by_one():
    tokens = np.arange(50, 90, dtype=np.uint16)
    windows = Windows(tokens, 8, 500, tt.Generator(3))
    x, y = (tensor.numpy() for tensor in windows.next_batch())
    assert x.shape == y.shape == (500, 8) and x.dtype == y.dtype == np.int64
    assert (y == x + 1).all() and (np.diff(x, axis=1) == 1).all()
    # Every window occurs, the last one included, and none reaches outside.
    assert set(x[:, 0]) == set(range(50, 90 - 8)) and y.max() == 89


def test_windows_go_on_where_their_state_was_taken():
    def fresh():
        return Windows(np.arange(100), 4, 3, tt.Generator(5))

    first, second = fresh(), fresh()
    for _ in range(7):
        first.next_batch()
    state = first.state_dict()
    assert state["batches_drawn"] == 7
    second.load_state_dict(state)
    for _ in range(3):
        assert first.next_batch()[0].tolist() == second.next_batch()[0].tolist()


# ---- Entropies ----


def test_entropies_of_a_text_that_one_can_count():
    # aabbaabb…: both letters are equally frequent, and each is followed by either just as often.
    known = entropies(np.array([0, 0, 1, 1] * 100 + [0]), 4)
    assert known.uniform == pytest.approx(math.log(4))
    assert known.unigram == pytest.approx(math.log(2), abs=1e-4)
    assert known.bigram == pytest.approx(math.log(2), abs=1e-4)
    # abab…: after each letter, the other.
    assert entropies(np.array([0, 1] * 100), 2).bigram == pytest.approx(0, abs=1e-9)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=200))
def test_who_knows_more_loses_less(tokens):
    known = entropies(np.array(tokens, dtype=np.uint16), 5)
    assert known.unigram <= known.uniform + 1e-9
    # Pairs are one fewer than tokens, which lets the bound be off by the last token's share.
    assert -1e-9 <= known.bigram <= known.unigram + 2 * math.log(5 * len(tokens)) / len(tokens)


def test_a_loss_in_words():
    known = Entropies(uniform=4.2, unigram=3.3, bigram=2.5)
    words = [known.meaning(loss) for loss in (4.3, 4.0, 3.0, 2.0)]
    assert words[0] == "guesses" and words[3] == "sees further than pairs"
    assert len(set(words)) == 4
