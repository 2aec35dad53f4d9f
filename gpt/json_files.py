"""JSON files that know whether they are whole: each states the SHA-256 of the rest of it.

A tokenizer with one merge changed would still encode, and an index with one digit changed still
load, only wrongly; a sealed file says so instead. This file knows nothing of what it holds.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from gpt import UserError
from gpt.files import check_regular

LARGEST = 1 << 24  # bytes; GPT-2's tokenizer takes 606,675


def read_json(path: Path) -> object:
    """What a JSON file holds. Raises UserError where it is none, or far larger than any of ours.

    A name that stands twice in an object is an error too, and so are NaN and Infinity, which Python
    would read.
    """
    try:
        if check_regular(path).st_size > LARGEST:
            raise UserError(f"{path} is larger than {LARGEST >> 20} MiB, as no file of ours is")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    return parse_json(text, str(path))


def parse_json(text: str, where: str) -> object:
    """What the text says. Raises UserError, which names `where`, if it is not JSON."""
    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {str(error).splitlines()[0]}") from None


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"it names {twice!r} twice in one object")
    return made


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def brief(value: object) -> str:
    """A value that a file holds, as an error shows it: no longer than a line."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} that is nested too deeply"
    return text if len(text) <= 80 else text[:77] + "…"


def seal(content: dict[str, Any]) -> str:
    """The content as JSON, with its hash."""
    sealed = {"sha256": digest(content), **content}
    return json.dumps(sealed, indent=1, ensure_ascii=False) + "\n"


def read_sealed(path: Path, kind: str) -> dict[str, Any]:
    """The content of a file that `seal` made; `kind` is what its field `kind` must be.

    Raises UserError where it is another kind of file, or not whole.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise UserError(f"{path} is not a file of {kind}")
    if content.pop("sha256", None) != digest(content):
        raise UserError(f"{path} is damaged: its content does not have the SHA-256 that it states")
    return content


def digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)  # ASCII, the same for the same content
    return hashlib.sha256(text.encode("ascii")).hexdigest()
