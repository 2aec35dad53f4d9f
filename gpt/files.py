"""Files that survive a kill or a power cut: written aside, flushed, renamed into place.

And files that were not made here: what is no regular file is refused before it is opened, since a
pipe would be waited for and a device be read without end.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from gpt import UserError

SUMS = "SHA256SUMS"  # as `sha256sum --check` reads it
LARGEST_SUMS = 1 << 20  # bytes


def read(path: Path) -> str:
    try:
        check_regular(path)
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path.as_posix()} cannot be read") from None


def check_regular(path: Path) -> os.stat_result:
    """The file's state. Raises UserError for a folder, a pipe or a device, OSError for nothing."""
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        kind = "a folder" if stat.S_ISDIR(state.st_mode) else "a pipe or a device"
        raise UserError(f"{path} is {kind}, not a file")
    return state


def sha256(path: Path) -> str:
    """The file's hash, or nothing where there is no file."""
    if not path.exists():
        return ""
    try:
        check_regular(path)
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def checksums(folder: Path) -> dict[str, str]:
    """What the folder's SHA256SUMS says of its files; nothing where there is none."""
    path = folder / SUMS
    if not os.path.lexists(path):
        return {}
    try:
        large = check_regular(path).st_size > LARGEST_SUMS
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    lines = [] if large else read(path).splitlines()
    found = [re.fullmatch(r"([0-9a-f]{64}) [ *]([^/\\]+)", line) for line in lines]
    sums = {match[2]: match[1] for match in found if match}
    if not found or len(sums) != len(found):
        raise UserError(f"{path} is damaged: its lines are no hashes of files")
    return sums


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """SHA256SUMS for these files of a folder."""
    lines = [f"{sha256(folder / name)}  {name}\n" for name in names]
    replace_file(folder / SUMS, "".join(lines))


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
