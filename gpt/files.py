"""Files that survive a kill or a power cut: written aside, flushed, renamed into place."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from gpt import UserError


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path.as_posix()} cannot be read") from None


def sha256(path: Path) -> str:
    """The file's hash, or nothing where there is no file."""
    if not path.exists():
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_file(path: Path, text: str) -> None:
    """Writes a whole file or leaves the old one."""
    unfinished = path.with_name(path.name + ".new")
    unfinished.write_text(text, encoding="utf-8")
    flush_file(unfinished)
    os.replace(unfinished, path)
    flush_folder(path.parent)


def flush_file(path: Path) -> None:
    """Waits until the file is on the disk, not only in the system's memory."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """The same for a folder's list of names; Windows keeps that in order by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
