"""From texts to shards: documents out of every kind of file, several processes, interruption."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpt
from gpt import UserError, cli, documents, prepare
from gpt.bpe import BytePairTokenizer
from gpt.documents import Fields, find_sources
from gpt.prepare import PrepareConfig, TokenizerConfig
from gpt.shard_files import find_shards, read_index
from gpt.tokenizers import load_tokenizer
from gpt.words import WORD

END = "<|endoftext|>"
SENTENCE = "The quick brown fox jumps over the lazy dog.\n"


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """What must survive a power cut waits for the disk; no test here cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a tokenizer in it."""
    monkeypatch.chdir(tmp_path)
    BytePairTokenizer.train([SENTENCE * 2], 256 + 20).save(Path("tokenizer.json"))
    return tmp_path


def sections(*inputs, **fields):
    sources = find_sources([str(name) for name in inputs], Fields(**fields))
    return [section for source in sources for section in source.sections()]


def texts(*inputs, **fields):
    """The documents, whole."""
    found, text = [], ""
    for section in sections(*inputs, **fields):
        text += section.text
        if section.ends:
            found.append(text)
            text = ""
    assert text == ""
    return found


def lines(path, records):
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def run(*inputs, **options):
    config = {"tokenizer": "tokenizer.json", "processes": 1, "validation": "0.2"} | options
    return prepare.prepare(PrepareConfig(tuple(str(name) for name in inputs), **config))


def decoded(folder):
    """What training and validation together say; neighbouring shards share a token."""
    tokenizer = load_tokenizer(folder)
    ids = []
    for split in ("train", "validation"):
        for shard in find_shards(folder, split):
            ids += shard.open().tolist()[1 if ids else 0 :]
    return tokenizer.decode(ids)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- Texts ----


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("", []),
        ("one\n", ["one\n"]),
        (f"one{END}two", ["one", "two"]),
        (f"one\n{END}\ntwo\n", ["one", "two\n"]),
        (f"{END}\none\n\n{END}\n\n{END}{END}\n", ["one\n"]),
        (f"\n\none{END}", ["\n\none"]),
        ("\ufeffd\u00e9j\u00e0\r\nvu\r", ["déjà\nvu\n"]),
    ],
)
@pytest.mark.parametrize("chunk", [1, 2, 5, 1 << 17])
def test_a_text_is_one_document_or_what_its_separators_make(
    tmp_path, monkeypatch, content, wanted, chunk
):
    monkeypatch.setattr(documents, "CHUNK", chunk)
    path = tmp_path / "text.txt"
    path.write_bytes(content.encode())
    packed = tmp_path / "packed.txt.gz"
    packed.write_bytes(gzip.compress(content.encode()))
    assert texts(path) == texts(packed) == wanted
    for file in (path, packed):
        assert sum(section.size for section in sections(file)) <= file.stat().st_size


@given(
    text=st.lists(st.sampled_from(["a", "b1", " ", "\n", "  ", "é", "中", "'s", "!"])).map("".join),
    chunk=st.integers(1, 12),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cutting_a_text_changes_no_word(tmp_path, monkeypatch, text, chunk):
    monkeypatch.setattr(documents, "CHUNK", chunk)
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8", newline="\n")
    found = sections(path)
    assert "".join(section.text for section in found) == text
    assert [word for section in found for word in WORD.findall(section.text)] == WORD.findall(text)
    assert [section.ends for section in found] == [False] * (len(found) - 1) + [True] * bool(found)


def test_a_text_without_white_space_is_cut_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "CHUNK", 64)
    monkeypatch.setattr(documents, "LONGEST_SECTION", 200)
    path = tmp_path / "text.txt"
    path.write_text("x" * 999 + END + "y" * 999)
    assert texts(path) == ["x" * 999, "y" * 999]
    assert max(len(section.text) for section in sections(path)) < 400


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"caf\xe9 noir", "is not UTF-8 text: byte 3 cannot be decoded"),
        (b"x" * 200_000 + b"\xff", "byte 200,000 cannot be decoded"),
        ("é".encode() * 100_000 + b"\xc3", "byte 200,000 cannot be decoded (unexpected end"),
        ("text".encode("utf-16"), "is not UTF-8 text: byte 0"),
        (b"text\0\0\0", "holds zero bytes"),
        (gzip.compress(b"text", mtime=0), "is not UTF-8 text: byte 1"),
    ],
)
def test_a_file_that_is_no_text_is_a_sentence(tmp_path, raw, words):
    path = tmp_path / "text.txt"
    path.write_bytes(raw)
    with pytest.raises(UserError) as caught:
        texts(path)
    assert words in str(caught.value) and "text.txt" in str(caught.value)


def test_a_folder_is_all_its_files_in_the_order_of_their_names(tmp_path):
    (tmp_path / "b" / ".git").mkdir(parents=True)
    (tmp_path / "b" / ".git" / "config").write_text("hidden")
    (tmp_path / ".hidden").write_text("hidden")
    (tmp_path / "c.md").write_text("third")
    (tmp_path / "a.txt").write_text("first")
    lines(tmp_path / "b" / "x.jsonl", [{"text": "second"}])
    assert texts(tmp_path) == ["first", "second", "third"]
    assert texts(tmp_path / "c.md", tmp_path / "a.txt") == ["third", "first"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no files"):
        texts(tmp_path / "empty")


# ---- Records ----


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz", "data.ndjson"])
def test_json_lines(tmp_path, name):
    records = [{"body": "one"}, {"body": ""}, {"body": None}, {"id": 1, "body": f"é\n{END}\u2028"}]
    path = lines(tmp_path / name, records)
    assert texts(path, text="body") == ["one", f"é\n{END}\u2028"]


def test_json_lines_as_editors_leave_them(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\n  \n{"text": "two"}')
    assert texts(path) == ["one", "two"]


GOOD = b'{"text": "one"}\n'


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (GOOD + b'{"text": "tw', "line 2 is not JSON"),
        (GOOD + b"\n" + GOOD[:-2] + b"," + GOOD, "line 3 is not JSON"),
        (b'{"text": "caf\xe9"}', "line 1 is not JSON: 'utf-8' codec can't decode byte 0xe9"),
        (b"[" * 1_000_000, "line 1 is not JSON"),
        (b'{"text": ' + b"1" * 5000 + b"}", "line 1 is not JSON"),
        (b"[1, 2]", "line 1 is a list, not an object"),
        (b'{"body": "one", "id": 3}', "line 1 has no field 'text', but body, id; --text-field"),
        (b'{"text": 3}', "line 1: the text has the type int"),
        (GOOD + b'{"text": "\\ud800"}', "line 2: character 0 of the text is a lone surrogate"),
        (b"\0" * 100, "line 1 is not JSON"),
    ],
)
def test_a_line_that_is_no_document_is_a_sentence(tmp_path, raw, words):
    path = tmp_path / "data.jsonl"
    path.write_bytes(raw)
    with pytest.raises(UserError) as caught:
        texts(path)
    assert words in str(caught.value) and "data.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_compressed_bomb_is_refused_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "LONGEST_LINE", 1 << 20)
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(32):
            file.write(b" " * (1 << 20))
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match="line 1 is longer than 1 MiB"):
        texts(path)


def check_damage(tmp_path, rounds):
    """A damaged file is refused, or says what a plain reading of its lines says."""
    rng = random.Random(0)
    records = [{"id": i, "text": f"Zeile {i}: größer \u2028 " * 3} for i in range(20)]
    for name in ("data.jsonl", "data.jsonl.gz"):
        path = lines(tmp_path / name, records)
        whole = path.read_bytes()
        for _ in range(rounds):
            at = rng.randrange(len(whole))
            spoiled = rng.choice(
                [
                    whole[:at],
                    whole[:at] + bytes([rng.randrange(256)]) + whole[at + 1 :],
                    whole[:at] + whole[at + rng.randint(1, 9) :],
                    whole[:at] + bytes([rng.randrange(256)]) + whole[at:],
                ]
            )
            path.write_bytes(spoiled)
            try:
                found = texts(path)
            except UserError as error:
                assert "\n" not in str(error) and name in str(error)
            else:
                plain = gzip.decompress(spoiled) if name.endswith("gz") else spoiled
                assert found == [
                    json.loads(line)["text"] for line in io.BytesIO(plain) if line.strip()
                ]


def test_damaged_json_lines_are_refused(tmp_path):
    check_damage(tmp_path, rounds=300)


@pytest.mark.nightly
def test_many_damaged_json_lines_are_refused(tmp_path):
    check_damage(tmp_path, rounds=3000)


@pytest.fixture
def pyarrow():
    return pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra: data)")


def test_parquet(tmp_path, pyarrow):
    import pyarrow.parquet as parquet

    path = tmp_path / "data.parquet"
    rows = [f"row {i}" for i in range(600)]
    parquet.write_table(pyarrow.table({"body": ["", None, *rows], "id": range(602)}), path)
    assert texts(path, text="body") == rows
    with pytest.raises(UserError, match="has no column 'text', but body, id; --text-field"):
        texts(path)
    with pytest.raises(UserError, match="row 1: the text has the type int"):
        texts(path, text="id")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"data\.parquet cannot be read"):
        texts(path)


def test_parquet_and_hub_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        UserError, match=r"parquet needs pyarrow; pip install 'tinytensor-gpt\[data"
    ):
        texts(tmp_path / "data.parquet")
    with pytest.raises(UserError, match="no file or folder krvhrv/crawl-books; for a data set of"):
        texts("krvhrv/crawl-books")
    with pytest.raises(UserError, match=r"there is no file or folder absent\.txt$"):
        texts("absent.txt")


class Rows(list):
    """As much of a data set as is asked of one."""

    column_names = ("text", "id")

    def select_columns(self, names):
        assert names == ["text"]
        return self

    def iter(self, batch_size):
        for start in range(0, len(self), batch_size):
            yield {"text": self[start : start + batch_size]}


def test_a_data_set_of_the_hub(monkeypatch):
    asked = []

    def load_dataset(name, subset, split):
        asked.append((name, subset, split))
        if name == "nobody/nothing":
            raise ConnectionError("could not reach the hub\nat all")
        return Rows(f"row {i}" for i in range(600))

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    module.__spec__ = importlib.util.spec_from_loader("datasets", None)
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert texts("krvhrv/crawl-books", split="test") == [f"row {i}" for i in range(600)]
    assert texts("wikitext", subset="raw") and asked[1] == ("wikitext", "raw", "train")
    assert asked[0] == ("krvhrv/crawl-books", None, "test")
    with pytest.raises(UserError, match="no data set of that name: could not reach the hub"):
        texts("nobody/nothing")
    with pytest.raises(UserError, match="wikitext has no column 'body', but text, id"):
        texts("wikitext", text="body")


# ---- Shards ----


def test_documents_become_shards_with_separators(folder, capsys):
    Path("a.txt").write_text(SENTENCE * 3)
    lines(Path("b.jsonl"), [{"text": "one"}, {"text": f"two {END} is ordinary here"}])
    out = run("a.txt", "b.jsonl", shard_tokens=20)
    assert decoded(out) == SENTENCE * 3 + END + "one" + END + f"two {END} is ordinary here" + END
    index = read_index(out)
    assert index.documents == 3
    end = load_tokenizer(out).end_of_text
    ids = [i for split in index.splits for s in find_shards(out, split) for i in s.open().tolist()]
    assert ids.count(end) == 3
    printed = capsys.readouterr()
    assert "shards: 3 documents, a vocabulary of 276" in printed.out
    assert "tokens in 2 shards" in printed.out
    assert printed.err == ""  # no progress bar where nobody looks


def test_the_number_of_processes_changes_nothing(folder, monkeypatch):
    monkeypatch.setattr(prepare, "BATCH", 500)
    lines(Path("data.jsonl.gz"), [{"text": f"{i} {SENTENCE}" * 5} for i in range(60)])
    alone = run("data.jsonl.gz", shard_tokens=1000, out="alone")
    together = run("data.jsonl.gz", shard_tokens=1000, out="together", processes=2)
    assert contents(alone) == contents(together)


def test_characters_are_a_tokenizer_too(folder):
    Path("a.txt").write_text("abc")
    Path("b.txt").write_text("cab")
    out = run("a.txt", "b.txt", tokenizer="char", validation="0.5")
    assert load_tokenizer(out).vocabulary == "\nabc"
    assert decoded(out) == "abc\ncab\n"


def test_an_interrupted_run_goes_on_where_it_stopped(folder, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "BATCH", 500)
    lines(Path("data.jsonl"), [{"text": f"{i} {SENTENCE}" * 5} for i in range(60)])
    wanted = contents(run("data.jsonl", shard_tokens=300, out="straight"))

    encode, encoded = prepare.encode, []

    def interrupted(batch, tokenizer):
        if len(encoded) == stop:
            raise KeyboardInterrupt
        encoded.append(batch)
        return encode(batch, tokenizer)

    monkeypatch.setattr(prepare, "encode", interrupted)
    stop = 12
    with pytest.raises(KeyboardInterrupt):
        run("data.jsonl", shard_tokens=300)
    with pytest.raises(UserError, match="shards is not finished; the same"):
        find_shards("shards")
    stop = 20
    capsys.readouterr()
    with pytest.raises(KeyboardInterrupt):
        run("data.jsonl", shard_tokens=300)
    assert "goes on with" in capsys.readouterr().out
    stop = None
    run("data.jsonl", shard_tokens=300)
    # Each time, the batch in which the last whole shard ends is encoded again, and what follows it.
    assert len(encoded) <= len(list(prepare.batches(sections("data.jsonl")))) + 2 * 2
    assert contents(Path("shards")) == wanted


def test_other_texts_do_not_go_on_with_an_interrupted_run(folder, monkeypatch):
    Path("a.txt").write_text(SENTENCE * 50)
    with pytest.raises(UserError, match="too few"):
        run("a.txt", validation="0.0001")  # leaves its shards behind
    Path("a.txt").write_text(SENTENCE * 51)
    with pytest.raises(UserError, match="was begun with other texts, another tokenizer or other"):
        run("a.txt")
    with pytest.raises(UserError, match="already holds shards"):
        run("a.txt", out="other")
        run("a.txt", out="other")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"inputs": ()}, "prepare needs texts"),
        ({"validation": "some"}, "--validation must be auto, first, or a share in [0, 1), but it"),
        ({"validation": "1"}, "--validation must be auto, first, or a share in [0, 1)"),
        ({"validation": "nan"}, "--validation must be auto, first, or a share in [0, 1)"),
        ({"shard_tokens": 0}, "--shard-tokens must be at least 1, but it is 0"),
        ({"shard_tokens": 1 << 40}, "a shard holds 1 to 2,147,483,648 tokens"),
        ({"processes": -1}, "--processes must be at least 0, but it is -1"),
        ({"tokenizer": "absent"}, "there is no tokenizer absent"),
        ({"inputs": ("absent.txt",)}, "there is no file or folder absent.txt"),
        ({"out": "text.txt"}, "text.txt cannot be written: "),
        ({"validation": "first"}, "the documents fill one shard only"),
        ({"inputs": ("empty.txt",)}, "there are 0 tokens, too few"),
    ],
)
def test_bad_options_are_a_sentence(folder, options, words):
    Path("text.txt").write_text(SENTENCE)
    Path("empty.txt").touch()
    options = {"inputs": ("text.txt",), "tokenizer": "tokenizer.json"} | options
    with pytest.raises(UserError) as caught:
        prepare.prepare(PrepareConfig(**options))
    assert words in str(caught.value)


def test_half_an_array_written_is_a_sentence(folder, monkeypatch):
    def finish(self, validation):
        raise OSError("3 requested and 0 written")  # as ndarray.tofile says it

    monkeypatch.setattr(prepare.ShardWriter, "finish", finish)
    Path("text.txt").write_text(SENTENCE)
    with pytest.raises(UserError, match=r"the disk may be full \(3 requested and 0 written\)"):
        prepare.prepare(PrepareConfig(("text.txt",), tokenizer="tokenizer.json"))


def test_a_tokenizer_is_trained_from_texts(folder, capsys):
    Path("a.txt").write_text(SENTENCE * 50)
    lines(Path("b.jsonl"), [{"body": SENTENCE * 50}])
    trained = prepare.train_tokenizer(
        TokenizerConfig(("a.txt", "b.jsonl"), vocab_size=280, out="new/tok.json", text_field="body")
    )
    assert trained.vocab_size == 280
    assert load_tokenizer("new/tok.json").to_json() == trained.to_json()
    assert "new/tok.json: 280 tokens, 23 of them merges" in capsys.readouterr().out
    prepare.train_tokenizer(TokenizerConfig(("a.txt",), vocab_size=4096))
    assert "no pair occurs twice any more" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--vocab-size must lie in \[257, 16,777,216\]"):
        TokenizerConfig(("a.txt",), vocab_size=256)
    with pytest.raises(UserError, match=r"a\.txt/tok\.json cannot be written"):
        prepare.train_tokenizer(TokenizerConfig(("a.txt",), out="a.txt/tok.json"))


def test_the_command_line_trains_a_tokenizer_and_prepares_shards(folder, capsys):
    Path("text.txt").write_text(SENTENCE * 50)
    assert (
        cli.main(["tokenizer", "train", "text.txt", "--vocab-size", "270", "--out", "t.json"]) == 0
    )
    assert cli.main(["prepare", "text.txt", "--tokenizer=t.json", "--out", "new"]) == 0
    assert read_index(Path("new")).vocab_size == 270
    capsys.readouterr()
    for arguments, words in (
        (["tokenizer"], "a tokenizer can be trained: python -m gpt tokenizer train <texts>"),
        (["tokenizer", "train"], "a tokenizer needs texts"),
        (["prepare"], "prepare needs texts"),
        (["prepare", "text.txt", "--tokenizer", "t.json", "--out", "new"], "already holds shards"),
    ):
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and words in error and error.count("\n") == 1


@pytest.mark.nightly
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
def test_a_killed_process_goes_on_to_the_same_shards(folder):
    """kill -9, at moments that nobody chose, with two processes that encode."""
    lines(Path("data.jsonl"), [{"text": f"{i} {SENTENCE}" * 200} for i in range(2000)])
    wanted = contents(run("data.jsonl", shard_tokens=50_000, out="straight"))
    code = (
        "from gpt.prepare import *\n"
        "if __name__ == '__main__':\n"
        "    prepare(PrepareConfig(('data.jsonl',), tokenizer='tokenizer.json', processes=2,\n"
        "                          shard_tokens=50_000, validation='0.2'))\n"
    )
    Path("script.py").write_text(code)
    env = os.environ | {"PYTHONPATH": str(Path(gpt.__file__).parents[1])}
    kills = 0
    for attempt in range(100):
        process = subprocess.Popen(
            [sys.executable, "script.py"], env=env, start_new_session=True, stdout=subprocess.PIPE
        )
        try:
            process.communicate(timeout=2 + 0.3 * attempt)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            time.sleep(0.1)
        else:
            break
    assert process.returncode == 0 and kills > 1
    assert contents(Path("shards")) == wanted
