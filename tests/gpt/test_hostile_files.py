"""Every loader against damaged and hostile files: a clear error, or provably the same content.

Each loader reads a good file or folder once. Then, many times over, one of its files is cut, bent,
swapped, filled with nonsense, or replaced by something that is no file at all, and is read again.
What may come of it:

- an error: one sentence in the loader's own class of errors, that names a file;
- the same content as before (white space changed in a JSON file, say);
- where the format carries no checksum, exactly what a second reader, written here, finds in the
  damaged file. That is the share of damage that nobody could notice: a bit of a number in a
  safetensors file from elsewhere, a letter of a text.

Anything else fails: another exception, other content, more than a few seconds or megabytes. The
ordinary run takes a few hundred; `--nightly` takes 10,000.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinytensor as tt
from gpt import UserError, cli
from gpt.bpe import BytePairTokenizer
from gpt.config import TrainConfig
from gpt.documents import decoded, json_lines, parquet_rows
from gpt.export import save_pretrained
from gpt.hellaswag import Example, read_examples
from gpt.model import GPT, GPTConfig
from gpt.runs import MODEL, OPTIMIZER, RunFolder, load_run
from gpt.shard_files import find_shards
from gpt.shard_writer import ShardWriter, write_shards
from gpt.tokenizer import CharTokenizer
from gpt.tokenizers import describe_characters, load_tokenizer, vocabulary, write_gpt2_files
from gpt.weights import TRANSPOSED, load_gpt2, load_pretrained
from tests.gpt import gpt2_files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory, and reads /proc")

SECONDS = 5  # for one load; a good one takes milliseconds
MEGABYTES = 768  # of address space, above what the process has
ORDINARY, NIGHTLY = 40, 10_000  # ordinary: of each loader; nightly: of all together


@dataclass(frozen=True)
class Loader:
    """How to make a good folder, how to read it, and how a second reader reads it."""

    make: Callable[[Path], object]
    load: Callable[[Path], Any]
    again: Callable[[Path], Any] | None = None  # None: nothing may pass that is not the same
    errors: tuple[type[Exception], ...] = (UserError,)


# ---- A second reader, for formats without a checksum ----


def parse_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, Any, bytes]]]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__", None) or {}
    numbers = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        data = content[8 + length + start : 8 + length + stop]
        numbers[name] = (entry["dtype"], tuple(entry["shape"]), data)
    for name, original in json.loads(metadata.get("tinytensor.shared", "{}")).items():
        numbers[name] = numbers[original]
    return metadata, numbers


DTYPE_NAMES = {"float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16",
               "bool": "BOOL", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
               "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8"}  # fmt: skip


def plain(tensor: tt.Tensor) -> tuple[str, Any, bytes]:
    array = tensor.numpy()
    return DTYPE_NAMES[str(array.dtype)], tuple(array.shape), array.tobytes()


def plain_tree(tree: Any) -> Any:
    if isinstance(tree, tt.Tensor):
        return plain(tree)
    if isinstance(tree, dict):
        return {key: plain_tree(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map(plain_tree, tree))
    return repr(tree)  # so that 1, 1.0 and True differ


def parse_checkpoint(path: Path) -> Any:
    metadata, numbers = parse_safetensors(path)
    if "tinytensor.structure" not in metadata:
        return numbers

    def build(x: Any) -> Any:
        if not isinstance(x, list):
            return repr(x)
        tag, *items = x
        if tag == "tensor":
            return numbers[items[0]]
        if tag == "dict":
            return {key: build(value) for key, value in items}
        return {"list": list, "tuple": tuple}[tag](map(build, items))

    return build(json.loads(metadata["tinytensor.structure"]))


def parse_gpt2(folder: Path) -> Any:
    config = json.loads((folder / "config.json").read_text())
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if not (folder / names[0]).exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    found = {}
    for file in names:
        for name, (dtype, shape, data) in parse_safetensors(folder / file)[1].items():
            ours = "transformer." + name.removeprefix("transformer.")
            if re.fullmatch(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)", ours):
                continue
            if name == "lm_head.weight":
                continue  # tied
            assert dtype == "F32"
            array = np.frombuffer(data, "<f4").reshape(shape)
            array = array.T if TRANSPOSED.search(ours) else array
            found[ours] = "F32", array.shape, array.tobytes()
    activation = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
    sizes = GPTConfig(
        config["vocab_size"], config.get("n_positions", config.get("n_ctx")), config["n_layer"],
        config["n_head"], config["n_embd"], config.get("attn_pdrop", 0.1),
        activation=activation.get(config.get("activation_function", "gelu_new"), "other"),
    )  # fmt: skip
    return sizes, found


def read_model(model: GPT) -> Any:
    named = model.named_parameters()
    return model.config, {name: plain(parameter.detach()) for name, parameter in named}


def parse_json_lines(content: bytes) -> list[str]:
    records = [json.loads(line) for line in content.split(b"\n") if line.strip()]
    return [record["text"] for record in records if record["text"]]


def unpack(content: bytes) -> bytes:
    """One or more members of gzip's format, each with the checksum of its content."""
    unpacked = b""
    while content := content.lstrip(b"\0"):
        member = zlib.decompressobj(31)
        unpacked += member.decompress(content)
        assert member.eof
        content = member.unused_data
    return unpacked


def parse_run(folder: Path) -> Any:
    """config.json and state.json say what they say; all else has its hash in state.json."""
    config = json.loads((folder / "run/config.json").read_text())
    (state,) = folder.glob("run/checkpoint-*/state.json")
    said = json.loads(state.read_text())
    said.pop("sha256", None)
    return {**dataclasses.asdict(TrainConfig()), **config}, repr(said)


def parse_text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


# ---- Good files ----

WORDS = "low lower lowest newest widest naïve 日本 \n" * 4


def make_tensors(folder: Path) -> None:
    weight = tt.randn(3, 4)
    tt.save_file(
        {"w": weight, "tied": weight, "half": tt.ones(5).bfloat16(), "on": tt.tensor([True, False]),
         "empty": tt.zeros(0, 4), "count": tt.arange(3)},
        folder / "x.safetensors",
    )  # fmt: skip


def make_checkpoint(folder: Path) -> None:
    model = GPT(GPTConfig(5, 4, 1, 1, 4))
    optimizer = tt.optim.AdamW(model.parameters())
    model(tt.zeros(1, 4, dtype=tt.long), tt.zeros(1, 4, dtype=tt.long))[1].backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "step": 3, 0: (1.5, None), "on": True}
    tt.save(state, folder / "x.safetensors")


def make_run(folder: Path) -> None:
    (folder / "text.txt").write_text(WORDS * 20, encoding="utf-8")
    options = (
        f"--data {folder / 'text.txt'} --folder {folder} --name run --block-size 8 --n-layer 1 "
        "--n-head 2 --n-embd 8 --batch-size 2 --iterations 3 --warmup 1 --eval-every 3 "
        "--eval-batches 1 --sample-chars 0"
    )
    assert cli.main(["train", *options.split()]) == 0
    (folder / "text.txt").unlink()
    run = folder / "run"
    for path in run.iterdir():
        if path.suffix == ".png":
            path.unlink()


def read_run(folder: Path) -> Any:
    run = RunFolder.open(str(folder / "run"))
    state = run.load_state(MODEL, OPTIMIZER)
    model, tokenizer = load_run(str(folder / "run"))
    optimizer = tt.load(run.last_checkpoint() / OPTIMIZER)
    config = dataclasses.asdict(run.config())
    checked = read_model(model)[1], tokenizer.to_json(), plain_tree(optimizer)
    return config, repr(state), checked


def make_shards(folder: Path) -> None:
    tokens = np.arange(300) % 7
    write_shards([tokens], folder, CharTokenizer("abcdefg"), tokens_per_shard=60)


def read_shards(folder: Path) -> Any:
    found = [find_shards(folder, split) for split in ("train", "validation")]
    return [[(shard.path.name, shard.open().tolist()) for shard in part] for part in found]


STREAM = [np.arange(start, start + 25) % 7 for start in range(0, 250, 25)]


def make_unfinished_shards(folder: Path) -> None:
    writer = ShardWriter(folder, CharTokenizer("abcdefg"), tokens_per_shard=60)
    for tokens in STREAM[:8]:
        writer.add(tokens)


def finish_shards(folder: Path) -> Any:
    """A second writer goes on; what it leaves must be whole, and is then read."""
    writer = ShardWriter(folder, CharTokenizer("abcdefg"), tokens_per_shard=60)
    for tokens in STREAM[writer.arrays_done :]:
        writer.add(tokens)
    writer.finish(0.3)
    found = [find_shards(folder, split) for split in ("train", "validation")]
    return [[shard.open().tolist() for shard in part] for part in found]


def make_foreign_shards(folder: Path) -> None:
    tokens = (np.arange(200) % 50).astype(np.uint16)
    tokens.tofile(folder / "train_a.bin")
    header = np.zeros(256, np.int32)
    header[:3] = 20240520, 1, len(tokens)
    (folder / "train_b.bin").write_bytes(header.tobytes() + tokens.tobytes())
    np.save(folder / "train_c.npy", tokens.astype(np.int32))


def read_foreign_shards(folder: Path) -> Any:
    shards = find_shards(folder, vocab_size=60)
    return [(shard.path.name, shard.open().tolist()) for shard in shards]


def parse_foreign_shards(folder: Path) -> Any:
    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        if path.suffix == ".npy":
            tokens = np.load(path, allow_pickle=False)
        elif content[:4] == struct.pack("<i", 20240520):
            tokens = np.frombuffer(content, "<u2", offset=1024)
        else:
            tokens = np.frombuffer(content, "<u2")
        assert tokens.ndim == 1 and len(tokens) and tokens.min() >= 0 and tokens.max() < 60
        found.append((path.name, tokens.tolist()))
    return found


def make_lines(folder: Path) -> None:
    lines = [json.dumps({"id": i, "text": f"text {i} é {WORDS}"}) for i in range(5)]
    content = "".join(line + "\n" for line in lines).encode()
    (folder / "x.jsonl").write_bytes(content)


def make_packed_lines(folder: Path) -> None:
    make_lines(folder)
    content = (folder / "x.jsonl").read_bytes()
    (folder / "x.jsonl").unlink()
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(content, mtime=0))


def make_parquet(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = {"id": list(range(40)), "text": [f"text {i} é {WORDS}" for i in range(40)]}
    pyarrow.parquet.write_table(
        pyarrow.table(rows), folder / "x.parquet", row_group_size=15, write_page_checksum=True
    )


def parse_parquet(path: Path) -> list[str]:
    """The whole table at once; pages have checksums, what the footer says of them has none."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(io.BytesIO(path.read_bytes()), columns=["text"])
    return [text for text in table.column(0).to_pylist() if text]


def make_examples(folder: Path) -> None:
    endings = [" are low.", " is lower.", " was the lowest, naïvely.", " be newest."]
    lines = [
        json.dumps({"ind": i, "ctx": f"The {i} widest", "endings": endings, "label": i % 4})
        for i in range(6)
    ]
    (folder / "x.jsonl").write_text("".join(line + "\n" for line in lines))


def parse_examples(path: Path) -> list[Example]:
    records = [json.loads(line) for line in path.read_text().split("\n") if line.strip()]
    return [Example(r["ctx"], tuple(r["endings"]), int(r["label"])) for r in records]


def trained() -> BytePairTokenizer:
    return BytePairTokenizer.train([WORDS] * 3, 290, ["<|endoftext|>", "<|pad|>"])


def read_bpe(folder: Path) -> Any:
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, BytePairTokenizer)
    return tokenizer.merge_lines(), vocabulary(tokenizer)


def parse_bpe(folder: Path) -> Any:
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    lines = lines[lines[0].startswith("#version") : -1]
    return lines, json.loads((folder / "vocab.json").read_text(encoding="utf-8"))


def make_gpt2(folder: Path) -> None:
    tokenizer = trained()
    sizes = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}
    model = GPT(GPTConfig(tokenizer.vocab_size, **sizes))
    save_pretrained(model, folder / "out", tokenizer)


def read_gpt2(folder: Path) -> Any:
    model, tokenizer = load_pretrained(folder / "out")
    return read_model(model), tokenizer.merge_lines(), vocabulary(tokenizer)


TINY = {"vocab_size": 19, "n_positions": 6, "n_embd": 4, "n_layer": 2, "n_head": 2}


def make_foreign_gpt2(folder: Path, files: int = 1) -> None:
    config = gpt2_files.CONFIG | TINY
    gpt2_files.write(folder, gpt2_files.numbers(config=config), files, **TINY)


LOADERS = {
    "tensors": Loader(
        make_tensors,
        lambda folder: plain_tree(tt.load_file(folder / "x.safetensors")),
        lambda folder: parse_safetensors(folder / "x.safetensors")[1],
        (ValueError, OSError),
    ),
    "tensors, mapped": Loader(
        make_tensors,
        lambda folder: plain_tree(dict(tt.load_file(folder / "x.safetensors", mmap=True))),
        lambda folder: parse_safetensors(folder / "x.safetensors")[1],
        (ValueError, OSError),
    ),
    "checkpoint": Loader(
        make_checkpoint,
        lambda folder: plain_tree(tt.load(folder / "x.safetensors")),
        lambda folder: parse_checkpoint(folder / "x.safetensors"),
        (ValueError, OSError),
    ),
    "run": Loader(make_run, read_run, parse_run),
    "GPT-2 folder of ours": Loader(make_gpt2, read_gpt2),
    "GPT-2 folder of others": Loader(
        make_foreign_gpt2, lambda folder: read_model(load_gpt2(folder)), parse_gpt2
    ),
    "GPT-2 folder in parts": Loader(
        lambda folder: make_foreign_gpt2(folder, 3),
        lambda folder: read_model(load_gpt2(folder)),
        parse_gpt2,
    ),
    "shards of ours": Loader(make_shards, read_shards),
    "shards, unfinished": Loader(
        make_unfinished_shards, finish_shards, errors=(UserError, OSError)
    ),
    "shards of others": Loader(make_foreign_shards, read_foreign_shards, parse_foreign_shards),
    "JSON lines": Loader(
        make_lines,
        lambda folder: [section.text for section in json_lines(folder / "x.jsonl", "text")],
        lambda folder: parse_json_lines((folder / "x.jsonl").read_bytes()),
    ),
    "JSON lines, packed": Loader(
        make_packed_lines,
        lambda folder: [section.text for section in json_lines(folder / "x.jsonl.gz", "text")],
        lambda folder: parse_json_lines(unpack((folder / "x.jsonl.gz").read_bytes())),
    ),
    "parquet": Loader(
        make_parquet,
        lambda folder: [section.text for section in parquet_rows(folder / "x.parquet", "text")],
        lambda folder: parse_parquet(folder / "x.parquet"),
    ),
    "HellaSwag": Loader(
        make_examples,
        lambda folder: read_examples(folder / "x.jsonl"),
        lambda folder: parse_examples(folder / "x.jsonl"),
    ),
    "text": Loader(
        lambda folder: (folder / "x.txt").write_text(WORDS * 9, encoding="utf-8"),
        lambda folder: "".join(text for text, _ in decoded(folder / "x.txt")),
        lambda folder: parse_text(folder / "x.txt"),
    ),
    "byte pairs": Loader(lambda folder: trained().save(folder / "tokenizer.json"), read_bpe),
    "characters": Loader(
        lambda folder: CharTokenizer.of(WORDS).save(folder / "tokenizer.json"),
        lambda folder: load_tokenizer(folder).to_json(),
    ),
    "characters of a library": Loader(
        lambda folder: (folder / "tokenizer.json").write_text(
            json.dumps(describe_characters(CharTokenizer.of(WORDS)))
        ),
        lambda folder: describe_characters(load_tokenizer(folder)),
        lambda folder: json.loads((folder / "tokenizer.json").read_text()),
    ),
    "merges and numbers": Loader(
        lambda folder: write_gpt2_files(trained(), folder), read_bpe, parse_bpe
    ),
}


# ---- Damage ----

JSON_NUMBER = re.compile(rb"-?\d+(\.\d+)?")
JSON_STRING = re.compile(rb'"[^"\\]{1,60}"')
NUMBERS = b"-1 0 1 2.5 99999999999999999999 18446744073709551615 4294967296 1e999".split()
NUMBERS += [b"NaN", b"-Infinity", b"true", b"null", b'"3"', b"[]", b"9" * 5000]
STRINGS = [b'"../../../../etc/passwd"', b'"/dev/zero"', b'""', b'"x"', b'"F64"', b'"I8"']
STRINGS += [b'"BF16"', b'"\\u0000"', b'"\\ud800"', b"null", b"{}", b"3", b'"' + b"a" * 9999 + b'"']
DEEP = [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 900 + b"]" * 900]


def bend(content: bytes, rng: random.Random) -> bytes:
    """The content with one thing wrong."""
    size = len(content)
    at = rng.randrange(size + 1)
    some = rng.choice([1, 1, 2, 4, 8, 40, 400])
    edit = bytearray(content)

    def replaced(pattern: re.Pattern[bytes], values: list[bytes]) -> bytes:
        head = content[: 1 << 16]  # headers and JSON, not megabytes of numbers
        found = list(pattern.finditer(head))
        if not found:
            return content[:at]
        match = rng.choice(found)
        return content[: match.start()] + rng.choice(values) + content[match.end() :]

    def twice() -> bytes:
        """An item of a JSON object stands twice, the second time perhaps with another value."""
        found = list(
            re.finditer(rb'"[^"\\]+":\s*("[^"\\]*"|-?\d[\d.e+-]*|\w+)', content[: 1 << 16])
        )
        if not found:
            return content + content[-some:]
        match = rng.choice(found)
        return content[: match.end()] + b", " + rng.choice(found)[0] + content[match.end() :]

    kind = rng.choice(
        ["cut", "bit", "bit", "bit", "bytes", "swap", "remove", "repeat", "insert", "zeros", "ones"]
        + ["length", "number", "number", "string", "twice", "deep", "no UTF-8", "order"]
        + ["not a number"]
    )
    if kind == "cut":
        return content[:at]
    if kind == "bit" and size:
        edit[at - 1] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        edit[at : at + some] = rng.randbytes(some)
    elif kind == "swap" and size > 1:
        i, j = rng.randrange(size), rng.randrange(size)
        edit[i], edit[j] = edit[j], edit[i]
    elif kind == "remove":
        del edit[at : at + some]
    elif kind == "repeat":
        edit[at:at] = content[at : at + some]
    elif kind == "insert":
        edit[at:at] = rng.randbytes(some)
    elif kind == "zeros":
        edit[at : at + some] = bytes(some)
    elif kind == "ones":
        edit[at : at + some] = b"\xff" * some
    elif kind == "length":
        lengths = [0, 1, 2**31, 2**62, 2**64 - 1, size, size - 8, size + 1, rng.randrange(2**40)]
        edit[:8] = struct.pack("<Q", rng.choice(lengths) % 2**64)
    elif kind == "number":
        return replaced(JSON_NUMBER, NUMBERS)
    elif kind == "string":
        return replaced(JSON_STRING, STRINGS)
    elif kind == "twice":
        return twice()
    elif kind == "deep":
        edit[at:at] = rng.choice(DEEP)
    elif kind == "no UTF-8":
        edit[at:at] = rng.choice([b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88", b"\0"])
    elif kind == "not a number" and size >= 4:
        place = at % (size - 3) // 4 * 4
        edit[place : place + 4] = rng.choice([b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"\1\0\x80\x7f"])
    elif kind == "order":
        half = bytes(edit)
        edit = bytearray(half[at:] + half[:at])
    return bytes(edit)


def replace(path: Path, rng: random.Random) -> None:
    """Something else in the file's place."""
    content = path.read_bytes()
    path.unlink()
    kind = rng.choice(["nothing", "folder", "nowhere", "itself", "zeros", "pipe", "empty", "pickle",
                       "zip", "random", "bomb", "text"])  # fmt: skip
    if kind == "folder":
        path.mkdir()
    elif kind == "nowhere":
        path.symlink_to(path.with_name("nowhere"))
    elif kind == "itself":
        path.symlink_to(path)
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"a": content[:50]}))
    elif kind == "zip":
        path.write_bytes(b"PK\3\4" + content)
    elif kind == "random":
        path.write_bytes(rng.randbytes(len(content)))
    elif kind == "bomb":
        path.write_bytes(bomb())
    elif kind == "text":
        path.write_text("To be, or not to be\n" * 40)


def bomb() -> bytes:
    """300 MB in 300 kB."""
    if not BOMB:
        BOMB.append(gzip.compress(bytes(300_000_000), 1))
    return BOMB[0]


BOMB: list[bytes] = []


# ---- Limits ----


class TooLongError(Exception):
    pass


@contextmanager
def limits() -> Iterator[None]:
    """A few seconds and some hundred megabytes for what runs inside."""

    def stop(*_: object) -> None:
        raise TooLongError

    previous = signal.signal(signal.SIGALRM, stop)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + (MEGABYTES << 20), before[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, before)


# ---- The campaign ----


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name == "parquet":
            pytest.importorskip("pyarrow", reason="reads parquet (pip install -e '.[data]')")
        if name not in made:
            made[name] = tmp_path_factory.mktemp("good")
            tt.manual_seed(1)
            LOADERS[name].make(made[name])
        return made[name]

    return folder


def outcome(loader: Loader, folder: Path, expected: Any) -> str:
    """What came of reading the folder; AssertionError if it may not."""
    try:
        with limits():
            found = loader.load(folder)
    except loader.errors as error:
        text = str(error)
        assert type(error) in (UserError, ValueError) or isinstance(error, OSError), repr(error)
        assert text.strip() and "\n" not in text, f"not one sentence: {text!r}"
        longest = 1 << 20 if loader.load is read_run else 1200
        assert len(text) < longest, f"a sentence of {len(text)} characters: {text[:200]!r}"
        names = [path.name for path in folder.rglob("*")] + [folder.name]
        names += ["--"] * (loader.load is read_run)  # a flag that config.json may not have so
        assert any(name in text for name in names), f"names no file: {text!r}"
        return "refused"
    if found == expected:
        return "the same"
    assert loader.again is not None, "other content passed as good"
    again = loader.again(folder)
    if loader.load is read_run:
        again = (*again, expected[2])
    assert found == again, "what was read is not what the file says"
    return "faithful"


def campaign(loader: Loader, source: Path, place: Path, number: int, seed: str) -> Counter[str]:
    shutil.copytree(source, place / "good")
    with limits():
        expected = loader.load(place / "good")
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    counts: Counter[str] = Counter()
    for i in range(number):
        rng = random.Random(f"{seed} {i}")
        folder = place / f"{i}"
        shutil.copytree(source, folder)
        path = folder / rng.choice(files)
        if rng.random() < 0.1:
            replace(path, rng)
        else:
            damaged = path.read_bytes()
            for _ in range(rng.choice([1, 1, 1, 2, 3])):
                damaged = bend(damaged, rng)
            path.write_bytes(damaged)
        try:
            counts[outcome(loader, folder, expected)] += 1
        except Exception as error:
            raise AssertionError(f"damage {seed} {i} to {path}: {error!r}") from error
        shutil.rmtree(folder)
    return counts


@pytest.mark.parametrize("name", LOADERS)
def test_damaged_files_are_refused(name, good, tmp_path):
    counts = campaign(LOADERS[name], good(name), tmp_path, ORDINARY, name)
    print(name, dict(counts))
    assert counts["refused"] > ORDINARY / 4


@pytest.mark.nightly
@pytest.mark.parametrize("name", LOADERS)
def test_ten_thousand_damaged_files(name, good, tmp_path):
    number = -(-NIGHTLY // len(LOADERS))
    counts = campaign(LOADERS[name], good(name), tmp_path, number, f"nightly {name}")
    print(name, dict(counts))
    assert sum(counts.values()) == number and counts["refused"] > number / 4


# ---- Would it notice? ----


def careless(load: Callable[[Path], Any]) -> Loader:
    return Loader(lambda folder: (folder / "x.json").write_text('{"a": 1}'), load)


def one_digit(folder: Path) -> Any:
    if not (folder / "x.json").is_file() or (folder / "x.json").is_symlink():
        raise UserError("x.json is no file")
    return re.findall(rb"\d", (folder / "x.json").read_bytes())


def no_message(folder: Path) -> Any:
    if (folder / "x.json").read_bytes() != b'{"a": 1}':
        raise UserError("")


def waits(folder: Path) -> None:
    if (folder / "x.json").read_bytes() != b'{"a": 1}':
        time.sleep(60)


def swells(folder: Path) -> None:
    if (folder / "x.json").read_bytes() != b'{"a": 1}':
        bytearray(MEGABYTES << 21)


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (one_digit, "other content passed as good"),
        (lambda folder: json.loads((folder / "x.json").read_bytes()), "DecodeError"),
        (no_message, "not one sentence"),
        (waits, "TooLongError"),
        (swells, "MemoryError"),
    ],
    ids=["silent", "other errors", "no message", "waits", "swells"],
)
def test_a_careless_loader_is_caught(load, words, tmp_path, monkeypatch):
    """Planted: what this file is to find, it finds."""
    monkeypatch.setattr(sys.modules[__name__], "SECONDS", 0.2)
    source, place = tmp_path / "source", tmp_path / "place"
    source.mkdir()
    place.mkdir()
    careless(load).make(source)
    with pytest.raises(AssertionError, match=words):
        campaign(careless(load), source, place, 20, "planted")


def test_a_bit_of_a_number_is_noticed_where_there_is_a_checksum(good, tmp_path):
    """The one damage that only a checksum can find, in each file that has one."""
    for name in ("shards of ours", "GPT-2 folder of ours", "run"):
        source = good(name)
        expected = LOADERS[name].load(source)
        for path in [*source.rglob("*.safetensors"), *source.rglob("*.npy")]:
            whole = path.read_bytes()
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            assert outcome(LOADERS[name], source, expected) == "refused", path
            path.write_bytes(whole)
