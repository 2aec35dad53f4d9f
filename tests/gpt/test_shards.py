"""Shards: what is written, what is read, in which order, and what is refused by name."""

from __future__ import annotations

import doctest
import json
import os
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpt.shard_writer
from gpt import UserError
from gpt.bpe import BytePairTokenizer
from gpt.shard_files import LLMC_MAGIC, find_shards, read_index, read_shard
from gpt.shard_writer import ShardWriter, deal, write_shards
from gpt.shards import ShardDataLoader

V = 257  # the vocabulary of the smallest tokenizer
TOKENIZER = BytePairTokenizer([])


def npy(path, tokens):
    np.save(path, tokens)
    return path


def nanogpt(path, tokens):
    path.write_bytes(np.asarray(tokens, "<u2").tobytes())
    return path


def llmc(path, tokens, magic=LLMC_MAGIC, version=1, count=None):
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    path.write_bytes(header.tobytes() + np.asarray(tokens, "<u2").tobytes())
    return path


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """What must survive a power cut waits for the disk; no test here cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def numbers(n, seed=0):
    return np.random.default_rng(seed).integers(0, V, n)


def rows(batch):
    return batch.numpy().tolist()


def batches(loader, n):
    """The inputs of the next n batches."""
    return [rows(loader.next_batch()[0]) for _ in range(n)]


# ---- Reading in order ----


@pytest.mark.parametrize("write", [npy, nanogpt, llmc])
def test_the_articles_shard_of_nine(tmp_path, write):
    path = write(
        tmp_path / f"train.{'npy' if write is npy else 'bin'}", np.arange(1, 10, dtype="u2")
    )
    with ShardDataLoader(path, batch_size=2, block_size=4, vocab_size=10) as loader:
        assert loader.batches_per_epoch == 1
        for _ in range(3):  # the shard is one batch, so every epoch is the same
            x, y = loader.next_batch()
            assert rows(x) == [[1, 2, 3, 4], [5, 6, 7, 8]]
            assert rows(y) == [[2, 3, 4, 5], [6, 7, 8, 9]]
            assert x.dtype == y.dtype == np.int64


@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=4),
    B=st.integers(1, 3),
    T=st.integers(1, 4),
    world_size=st.integers(1, 3),
    seed=st.one_of(st.none(), st.integers(0, 99)),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_ranks_share_every_shard_without_overlap(tmp_path, sizes, B, T, world_size, seed):
    ends = np.cumsum(sizes)
    paths = [
        npy(tmp_path / f"{i}.npy", np.arange(end - size, end, dtype=np.uint16))
        for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]
    per_step = B * T * world_size
    steps = [(size - 1) // per_step for size in sizes]
    if not any(steps):
        with pytest.raises(UserError, match="no train shard fills one step"):
            ShardDataLoader(paths, B, T, world_size=world_size)
        return
    seen = [[], []]
    for rank in range(world_size):
        with ShardDataLoader(paths, B, T, rank=rank, world_size=world_size, seed=seed) as loader:
            assert loader.batches_per_epoch == sum(steps)
            for epoch in seen:
                for _ in range(sum(steps)):
                    x, y = (np.array(rows(part)) for part in loader.next_batch())
                    assert x.shape == (B, T) and (y == x + 1).all()
                    assert np.ravel(x).tolist() == list(range(x[0, 0], x[0, 0] + B * T))
                    epoch += np.ravel(x).tolist()
    wanted = [
        token
        for size, end, step in zip(sizes, ends, steps, strict=True)
        for token in range(end - size, end - size + step * per_step)
    ]
    assert sorted(seen[0]) == sorted(seen[1]) == wanted
    if seed is None and world_size == 1:
        assert seen[0] == wanted  # the shards in their order


def test_the_order_of_shards_is_the_seeds_and_changes_with_the_epoch(tmp_path):
    for i in range(8):
        npy(tmp_path / f"train_{i}.npy", np.full(5, i, np.uint16))

    def order(seed, n=24):
        with ShardDataLoader(tmp_path, 1, 4, seed=seed) as loader:
            return [batch[0][0] for batch in batches(loader, n)]

    first, again, other = order(1), order(1), order(2)
    assert first == again != other
    epochs = [first[:8], first[8:16], first[16:]]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order(None, 8) == list(range(8))
    assert first[:8] == [6, 2, 3, 5, 7, 4, 0, 1]  # the same on every machine, for ever


@pytest.mark.parametrize("prefetch", [0, 3])
def test_the_place_is_saved_and_restored_exactly(tmp_path, prefetch):
    for i in range(3):
        npy(tmp_path / f"train_{i}.npy", numbers(100 + i, seed=i).astype(np.uint16))

    def loader(**changed):
        options = {"batch_size": 2, "block_size": 5, "seed": 7, "prefetch": prefetch} | changed
        return ShardDataLoader(tmp_path, **options)

    with loader() as straight:
        wanted = batches(straight, 70)
    for stop in (0, 1, 29, 30, 64):
        with loader() as before:
            batches(before, stop)
            state = json.loads(json.dumps(before.state_dict()))
        with loader() as after:
            batches(after, 3)
            after.load_state_dict(state)
            assert after.batches_drawn == stop
            assert batches(after, 5) == wanted[stop : stop + 5]
            after.seek(0)
            assert batches(after, 2) == wanted[:2]
    for changed, words in (
        ({"seed": 8}, "their seed was 7, and is 8 now"),
        ({"batch_size": 3}, "their tokens_per_step was 10, and is 15 now"),
        ({"batch_size": 1, "block_size": 10}, "their block_size was 5, and is 10 now"),
    ):
        with loader(**changed) as other, pytest.raises(UserError, match=words):
            other.load_state_dict(state)
    npy(tmp_path / "train_3.npy", numbers(100).astype(np.uint16))
    with loader() as other, pytest.raises(UserError, match="their shards was"):
        other.load_state_dict(state)


def test_sizes_and_ranks_that_are_none_are_refused(tmp_path):
    for options in ({"batch_size": 0}, {"block_size": 0}, {"rank": 1}, {"world_size": 0}):
        with pytest.raises(ValueError, match="sizes begin at 1, ranks at 0"):
            ShardDataLoader(tmp_path, **options)


def test_names_say_the_split_where_there_is_no_index(tmp_path):
    for name in ("corpus_train_000001.bin", "corpus_train_000000.bin", "corpus_val_000000.bin"):
        nanogpt(tmp_path / name, numbers(9))
    (tmp_path / "train.txt").write_text("no shard")
    names = [shard.path.name for shard in find_shards(tmp_path)]
    assert names == ["corpus_train_000000.bin", "corpus_train_000001.bin"]
    (shard,) = find_shards(tmp_path, "validation")
    assert shard.path.name == "corpus_val_000000.bin"


# ---- Writing ----


def test_the_dealing_in_the_docstring_is_true():
    failures, examples = doctest.testmod(gpt.shard_writer)
    assert examples >= 2 and not failures


def contents(folder, split):
    return [shard.open().tolist() for shard in find_shards(folder, split, V)]


def joined(parts):
    """The stream again: each shard begins with the last token of the one before."""
    whole = parts[0][:1]
    for part in parts:
        assert part[0] == whole[-1]
        whole += part[1:]
    return whole


@given(
    lengths=st.lists(st.integers(0, 30), max_size=8),
    per_shard=st.integers(1, 25),
    validation=st.sampled_from(["auto", "first", 0, 0.1, 0.5, 0.9]),
)
@settings(max_examples=60)
def test_shards_hold_the_stream_and_no_token_is_a_target_twice(
    tmp_path_factory, lengths, per_shard, validation
):
    folder = tmp_path_factory.mktemp("shards")
    stream = numbers(sum(lengths)).tolist()
    arrays = np.split(np.array(stream, np.uint16), np.cumsum(lengths)[:-1]) if lengths else []
    try:
        write_shards(arrays, folder, TOKENIZER, per_shard, validation)
    except UserError as error:
        n = len(stream) - 1
        if validation == "first":
            assert n <= per_shard, error
        else:
            assert n < 2 or round(n * (0.1 if validation == "auto" else validation)) in (0, n), (
                error
            )
        return
    train = contents(folder, "train")
    held = [] if validation == 0 else contents(folder, "validation")
    assert all(len(part) <= per_shard + 1 for part in train + held)
    if validation == "first" or (
        validation == "auto" and len(train) >= 9 and held[0] == stream[: per_shard + 1]
    ):
        assert joined(held + train) == stream and len(held) == 1
    else:
        assert joined(train + held) == stream
        targets = [sum(len(part) - 1 for part in parts) for parts in (held, train)]
        share = 0.1 if validation == "auto" else validation
        assert targets[0] == round(share * sum(targets))
    files = {path.name for path in folder.iterdir()}
    listed = {entry.file for entries in read_index(folder).splits.values() for entry in entries}
    assert files == listed | {"index.json", "tokenizer.json"}


def test_large_vocabularies_take_four_bytes(tmp_path):
    class Large:
        vocab_size = 1 << 17

        def to_json(self):
            return "{}"

    write_shards([np.array([1, 2, 100_000, 3])], tmp_path, Large(), validation=0)
    (shard,) = find_shards(tmp_path, vocab_size=1 << 17)
    assert shard.dtype == np.uint32 and shard.open().tolist() == [1, 2, 100_000, 3]


def test_tokens_outside_the_vocabulary_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="tokens from 3 to 257 do not fit a vocabulary of 257"):
        write_shards([np.array([3, 257])], tmp_path, TOKENIZER)


class Killed(BaseException):
    pass


def test_a_writer_killed_anywhere_goes_on_to_the_same_files(tmp_path, monkeypatch):
    """The process dies at its k-th rename, for every k; each step on the disk ends with one."""
    arrays = [numbers(n, seed=n).astype(np.uint16) for n in (5, 40, 0, 13, 25, 3)]

    def run(folder):
        writer = ShardWriter(folder, TOKENIZER, 10, "plan")
        for tokens in [] if writer.complete else arrays[writer.arrays_done :]:
            writer.add(tokens, documents=1)
        writer.finish(0.3)

    def files(folder):
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    run(tmp_path / "straight")
    wanted = files(tmp_path / "straight")
    assert read_index(tmp_path / "straight").documents == len(arrays)

    replace = os.replace
    renames = 0
    while True:
        folder = tmp_path / str(renames)
        left = renames

        def die_later(source, target):
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            replace(source, target)

        monkeypatch.setattr(os, "replace", die_later)
        try:
            run(folder)
        except Killed:
            monkeypatch.setattr(os, "replace", replace)
            with pytest.raises(UserError, match=r"is not finished|has no shards"):
                find_shards(folder)
            run(folder)
            assert files(folder) == wanted
        else:
            break
        renames += 1
    assert renames > 20


def test_a_writer_takes_up_only_what_was_begun_alike(tmp_path):
    def begin(plan="plan", per_shard=4, tokenizer=TOKENIZER):
        return ShardWriter(tmp_path, tokenizer, per_shard, plan)

    writer = begin()
    writer.add(numbers(10))
    assert begin().arrays_done == 0 and begin().shards == 2
    for changed in (
        {"plan": "other"},
        {"per_shard": 5},
        {"tokenizer": BytePairTokenizer([(0, 0)])},
    ):
        with pytest.raises(UserError, match="was begun with other texts, another tokenizer"):
            begin(**changed)
    progress = tmp_path / "unfinished" / "progress.json"
    whole = progress.read_text()
    progress.write_text(whole.replace('"offset": 9', '"offset": 8'))
    with pytest.raises(UserError, match=r"progress\.json is damaged: .* to begin again"):
        begin()
    progress.write_text(whole)
    npy(tmp_path / "unfinished" / "00001.npy", numbers(3).astype(np.uint16))
    with pytest.raises(UserError, match="is not the file that progress"):
        begin()


def test_shards_are_not_written_over(tmp_path):
    write_shards([numbers(100)], tmp_path, TOKENIZER)
    with pytest.raises(UserError, match="already holds shards"):
        write_shards([numbers(100)], tmp_path, TOKENIZER)


@pytest.mark.parametrize(
    ("parts", "validation", "words"),
    [
        ([], 0.1, "there are 0 tokens, too few"),
        ([5], 0.1, "there are 5 tokens, too few to keep 0.1 of them"),
        ([5], 0.99, "too few"),
        ([5], "first", "the documents fill one shard only"),
    ],
)
def test_too_few_tokens_for_both_splits_is_a_sentence(parts, validation, words):
    with pytest.raises(UserError, match=words):
        deal(parts, validation)


# ---- What is refused ----


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train.npy", b"", "is empty"),
        ("train.npy", b"\x93NUMPY\x01\x00v\x00{'descr'", "has no header of a NumPy file"),
        ("train.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{'descr'", "has no header"),
        ("train.npy", b"1 2 3 4 5 6 7 8 9", "has no header of a NumPy file"),
        ("train.npy", np.arange(9.0), "must be one row of integers, but its shape is (9,)"),
        (
            "train.npy",
            np.zeros((3, 3), "u2"),
            "must be one row of integers, but its shape is (3, 3)",
        ),
        ("train.npy", np.array([None] * 9), "must be one row of integers"),
        ("train.npy", np.zeros(0, "u2"), "is empty: it has a header and no token"),
        ("train.npy", -np.ones(9, "i4"), "another vocabulary: token 0 is -1"),
        (
            "train.npy",
            np.full(9, V, "u2"),
            "another vocabulary: token 0 is 257, and the vocabulary",
        ),
        ("train.bin", b"", "is empty"),
        ("train.bin", bytes(17), "is cut short: 17 bytes are no row of uint16"),
        ("train.bin", b"To be, or not to be: that is the question.\n" * 99, "it holds text"),
        ("train.bin", np.arange(99, dtype="u2"), "it is a NumPy file, so call it .npy"),
        ("train.bin", np.arange(200, 300, dtype="u2").tobytes(), "another vocabulary: token 57 is"),
        ("train.tok", bytes(18), "a shard's name ends in .npy or .bin"),
    ],
)
def test_a_file_that_is_no_shard_is_a_sentence(tmp_path, name, content, words):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with open(path, "wb") as file:
            np.save(file, content)
    with pytest.raises(UserError) as caught:
        ShardDataLoader([path], 1, 4, vocab_size=V)
    assert words in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"version": 2}, "damaged header of llm.c: version 2"),
        ({"magic": LLMC_MAGIC + 1}, f"begins with {LLMC_MAGIC + 1}, not {LLMC_MAGIC}"),
        ({"count": 10}, "is cut short: 10 tokens take 1,044 bytes, and it has 1,042"),
        ({"count": 8}, "is too long: 8 tokens take 1,040 bytes, and it has 1,042"),
        ({"count": -1}, "damaged header of llm.c"),
    ],
)
def test_a_damaged_header_of_llmc_is_a_sentence(tmp_path, changed, words):
    path = llmc(tmp_path / "train.bin", np.arange(9), **changed)
    with pytest.raises(UserError) as caught:
        read_shard(path)
    assert words in str(caught.value)


@pytest.fixture
def folder(tmp_path):
    write_shards([numbers(100)], tmp_path, TOKENIZER, tokens_per_shard=30, validation=0.3)
    return tmp_path


def spoil(path, change):
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda f: (f / "train-00001.npy").unlink(),
            "train-00001.npy is missing, though index.json",
        ),
        (lambda f: (f / "train-00001.npy").rename(f / "train-1.npy"), "was train-1.npy renamed?"),
        (lambda f: spoil(f / "train-00000.npy", lambda b: b.pop()), "train-00000.npy is cut short"),
        (lambda f: spoil(f / "train-00000.npy", lambda b: b.append(0)), "0.npy is too long"),
        (lambda f: (f / "train-00000.npy").write_bytes(b""), "train-00000.npy is empty"),
        (lambda f: spoil(f / "train-00000.npy", lambda b: b.reverse()), "has no header"),
        (lambda f: npy(f / "train-00000.npy", numbers(9)), "has 9 tokens of int64, but index.json"),
        (
            lambda f: npy(f / "train-00000.npy", numbers(31).astype("u2")[::-1]),
            "train-00000.npy is damaged: its SHA-256",
        ),
        (lambda f: spoil(f / "index.json", lambda b: b.pop(9)), "index.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "is not the tokenizer that index.json"),
    ],
)
def test_a_folder_that_is_not_whole_is_a_sentence(folder, change, words):
    with ShardDataLoader(folder, 1, 4, vocab_size=V) as loader:
        loader.next_batch()
    change(folder)
    with pytest.raises(UserError) as caught:
        ShardDataLoader(folder, 1, 4, vocab_size=V)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_another_vocabulary_is_a_sentence(folder):
    with pytest.raises(UserError, match="have a vocabulary of 257 tokens, not the 50,257"):
        ShardDataLoader(folder, 1, 4, vocab_size=50257)


def test_no_shards_at_all_is_a_sentence(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no shards: no index\.json, and no \*train\*\.npy"):
        find_shards(tmp_path / "empty")
    with pytest.raises(UserError, match=r"the shard .*absent\.npy is missing"):
        find_shards(tmp_path / "absent.npy")
    write_shards([numbers(50)], tmp_path / "all", TOKENIZER, validation=0)
    with pytest.raises(UserError, match="has no validation shards"):
        find_shards(tmp_path / "all", "validation")


def test_a_shard_that_changes_under_the_training_is_a_sentence(tmp_path):
    path = nanogpt(tmp_path / "train.bin", numbers(100))
    with ShardDataLoader(path, 1, 4, vocab_size=V, prefetch=0) as loader:
        loader.next_batch()
        with open(path, "r+b") as file:
            file.write(b"\xff" * 200)
        with pytest.raises(UserError, match=r"train\.bin has changed: it holds tokens outside"):
            loader.next_batch()


def damaged(content, rng):
    """The content with a byte changed, added or lost, or an end cut off."""
    at = rng.randrange(len(content))
    kind = rng.randrange(4)
    if kind == 0:
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if kind == 1:
        return content[:at] + bytes([rng.randrange(256)]) + content[at:]
    if kind == 2:
        return content[:at] + content[at + rng.randint(1, 9) :]
    return content[:at]


def check_damage(folder, rounds):
    """With an index, every damage is found. Without one, a header's is: a token changed into
    another, or a tail of bare uint16 lost, leaves a file as good as the first."""
    rng = random.Random(0)
    tokens = np.random.default_rng(0).integers(0, 50257, 60).astype("<u2")
    ours = folder / "ours"
    write_shards([numbers(200)], ours, TOKENIZER, tokens_per_shard=80, validation=0.2)
    for path in sorted(ours.iterdir()):
        whole = path.read_bytes()
        for _ in range(rounds):
            spoiled = damaged(whole, rng)
            if spoiled == whole or (path.suffix == ".json" and spoiled.split() == whole.split()):
                continue  # or a line break of index.json more or less
            path.write_bytes(spoiled)
            with pytest.raises(UserError) as caught:
                find_shards(ours, "train", V)
                find_shards(ours, "validation", V)
            assert "\n" not in str(caught.value)
        path.write_bytes(whole)
    others = [npy(folder / "a.npy", tokens), llmc(folder / "b.bin", tokens)]
    for path in others:
        whole = path.read_bytes()
        header = len(whole) - tokens.nbytes
        for _ in range(rounds):
            path.write_bytes(damaged(whole[:header], rng) + whole[header:])
            try:
                (shard,) = find_shards(path, vocab_size=50257)
            except UserError as error:
                assert "\n" not in str(error)
            else:
                assert shard.open().tolist() == tokens.tolist()
        for length in range(0, len(whole), 7):
            path.write_bytes(whole[:length])
            with pytest.raises(UserError):
                find_shards(path, vocab_size=50257)


def test_damaged_shards_are_refused(tmp_path):
    check_damage(tmp_path, rounds=60)


@pytest.mark.nightly
def test_many_damaged_shards_are_refused(tmp_path):
    check_damage(tmp_path, rounds=2000)
