"""Documents to learn from, one after another, out of files of any size.

A source is a text file, a file of JSON lines (either plain or gzip), a parquet file, or the name of
a data set on the Hugging Face hub; a folder stands for all its files. Nothing is read whole: a long
text comes in sections, cut where the words of `gpt/words.py` end anyway. Parquet and the hub need
the extra `data`. This file knows text, no tokens. Go next to `gpt/prepare.py`.
"""

from __future__ import annotations

import codecs
import gzip
import importlib.util
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from gpt import UserError
from gpt.bpe import END_OF_TEXT
from gpt.files import check_regular
from gpt.words import check_unicode

CHUNK = 1 << 17  # bytes read at once, and characters after which a text is cut
LONGEST_SECTION = 1 << 20  # characters after which it is cut even inside a word
LONGEST_LINE = 1 << 26  # bytes of one JSON line: a compressed bomb is refused, not unpacked

# A word ends where white space begins, whatever stands before or after: cutting there changes no
# token. Greedy, so that it finds the last such place.
LAST_WORD_END = re.compile(r".*\S(?=\s)", re.DOTALL)

JSON_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
HUB_NAME = re.compile(r"[\w-]+|[\w-][\w.-]*/[\w.-]+")
EXTRA = "pip install 'tinytensor-gpt[data]'"


@dataclass(frozen=True)
class Section:
    """A document, or a part of one."""

    text: str
    ends: bool  # whether the document ends here
    size: float  # what reading it took of its source's size


@dataclass(frozen=True)
class Source:
    """Where documents come from; sources of equal identity give the same ones."""

    name: str
    size: int  # bytes of a file, rows of a data set
    identity: list[Any]
    sections: Callable[[], Iterator[Section]]
    is_file: bool = True


@dataclass(frozen=True)
class Fields:
    """Where in a record the text stands, and which part of a data set is meant."""

    text: str = "text"
    subset: str = ""
    split: str = "train"


TEXT_IN_TEXT = Fields()


def find_sources(inputs: list[str], fields: Fields = TEXT_IN_TEXT) -> list[Source]:
    """The sources that paths and names stand for; a folder's files come in the order of names.

    Hidden files of a folder are left out. Raises UserError for an input that is nothing of the
    kind.
    """
    sources = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            files = [f for f in files if not any(p[0] == "." for p in f.relative_to(path).parts)]
            if not files:
                raise UserError(f"the folder {path} has no files")
            sources += [file_source(file, fields) for file in files]
        elif path.exists():
            sources.append(file_source(path, fields))
        else:
            sources.append(hub_source(name, fields))
    return sources


def file_source(path: Path, fields: Fields) -> Source:
    if path.name.endswith(JSON_LINES):
        read = partial(json_lines, path, fields.text)
    elif path.suffix == ".parquet":
        read = partial(parquet_rows, path, fields.text)
    else:
        read = partial(text_sections, path)
    with reading(path):
        state = path.stat()
    identity = [str(path.resolve()), state.st_size, state.st_mtime_ns, fields.text]
    return Source(path.name, state.st_size, identity, read)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong below Python's files, as a sentence."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path} cannot be read: {reason}") from None


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The file's content, unpacked, and the file itself, whose place tells how far one is."""
    with reading(path):
        state = check_regular(path)
    with reading(path), open(path, "rb") as file:
        if path.suffix != ".gz":
            yield file, file
            return
        if not state.st_size:  # Python would read it as the packed form of nothing
            raise UserError(f"{path} is empty, which no packed file is")
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield unpacked, file  # type: ignore[misc]


# ---- Text ----


def text_sections(path: Path) -> Iterator[Section]:
    """A text file's documents: what `<|endoftext|>` separates, or all of it.

    The line break on each side of a separator belongs to neither document.
    """
    rest, size = "", 0
    opening, begun = False, False  # the text comes right after a separator; has been yielded from
    for text, read in decoded(path):
        size += read
        *documents, rest = (rest + text).split(END_OF_TEXT)
        for document in documents:
            document = document.removesuffix("\n").removeprefix("\n" if opening else "")
            if document or begun:
                yield Section(document, True, size)
                size = 0
            opening, begun = True, False
        if len(rest) >= CHUNK:
            word_end = LAST_WORD_END.match(rest)
            if word_end:
                end = word_end.end()
            elif len(rest) > LONGEST_SECTION:
                end = len(rest) - len(END_OF_TEXT)  # the beginning of a separator stays whole
            else:
                continue
            yield Section(rest[:end].removeprefix("\n" if opening else ""), False, size)
            rest, size = rest[end:], 0
            opening, begun = False, True
    rest = rest.removeprefix("\n" if opening else "")
    if rest or begun:
        yield Section(rest, True, size)


def decoded(path: Path) -> Iterator[tuple[str, int]]:
    """A UTF-8 file in pieces, with line endings as Python's text mode reads them, and the bytes
    of the file that each piece took."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line_ends = io.IncrementalNewlineDecoder(None, translate=True)
    position, place = 0, 0
    with opened(path) as (content, file):
        while True:
            chunk = content.read(CHUNK)
            start = position - len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, not chunk)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path} is not UTF-8 text: byte {start + error.start:,} cannot be decoded "
                    f"({error.reason})"
                ) from None
            if "\0" in text:
                raise UserError(f"{path} holds zero bytes, as no text does; is it another format?")
            if start == 0:
                text = text.removeprefix("\ufeff")
            yield line_ends.decode(text, not chunk), file.tell() - place
            place = file.tell()
            position += len(chunk)
            if not chunk:
                return


# ---- Records ----


def json_lines(path: Path, field: str) -> Iterator[Section]:
    """The text in `field` of each line's object. Raises UserError that names the line."""
    place = 0
    with opened(path) as (content, file):
        for number, line in enumerate(iter(lambda: content.readline(LONGEST_LINE + 1), b""), 1):
            where = f"{path}, line {number:,}"
            if len(line) > LONGEST_LINE:
                raise UserError(f"{where} is longer than {LONGEST_LINE >> 20} MiB")
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is not JSON: {error}") from None
            if not isinstance(record, dict):
                raise UserError(f"{where} is a {type(record).__name__}, not an object with fields")
            if field not in record:
                names = ", ".join(name[:60] for name in [*record][:8])
                raise UserError(
                    f"{where} has no field {field!r}, but {names or 'none'}; --text-field names "
                    "the field of the text"
                )
            if text := text_of(record[field], where):
                yield Section(text, True, file.tell() - place)
                place = file.tell()


def parquet_rows(path: Path, field: str) -> Iterator[Section]:
    """The text in the column `field` of each row."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{path}: parquet needs pyarrow; {EXTRA}")
    import pyarrow
    import pyarrow.parquet

    with reading(path):
        check_regular(path)
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            if field not in file.schema_arrow.names:
                raise UserError(
                    f"{path} has no column {field!r}, but {', '.join(file.schema_arrow.names)}; "
                    "--text-field names the column of the text"
                )
            share = path.stat().st_size / max(1, file.metadata.num_rows)
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=[field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    if text := text_of(value, f"{path}, row {number:,}"):
                        yield Section(text, True, share)
            if number != (said := file.metadata.num_rows):
                raise UserError(f"{path} is damaged: it has {number:,} rows, but says {said:,}")
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None


def hub_source(name: str, fields: Fields) -> Source:
    """A data set of the Hugging Face hub, fetched by the library `datasets`."""
    if not HUB_NAME.fullmatch(name):
        raise UserError(f"there is no file or folder {name}")
    if importlib.util.find_spec("datasets") is None:
        raise UserError(
            f"there is no file or folder {name}; for a data set of that name on the Hugging Face "
            f"hub, {EXTRA}"
        )
    import datasets

    try:
        rows = datasets.load_dataset(name, fields.subset or None, split=fields.split)
    except Exception as error:  # the library has a class of its own for each of its reasons
        raise UserError(
            f"there is no file or folder {name}, and the Hugging Face hub gives no data set of "
            f"that name: {first_line(error)}"
        ) from None
    if fields.text not in rows.column_names:
        raise UserError(
            f"{name} has no column {fields.text!r}, but {', '.join(rows.column_names)}; "
            "--text-field names the column of the text"
        )

    def sections() -> Iterator[Section]:
        number = 0
        for batch in rows.select_columns([fields.text]).iter(batch_size=256):
            for value in batch[fields.text]:
                number += 1
                if text := text_of(value, f"{name}, row {number:,}"):
                    yield Section(text, True, 1)

    identity = [name, fields.subset, fields.split, fields.text, len(rows)]
    return Source(name, len(rows), identity, sections, is_file=False)


def text_of(value: object, where: str) -> str:
    """A record's text. One without a text (null, or "") is passed over."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: the text has the type {type(value).__name__}")
    try:
        check_unicode(value)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return value


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
