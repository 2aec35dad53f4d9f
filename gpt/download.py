"""`python -m gpt download gpt2`: the published weights, fetched once, checked, and kept.

The hub states a checksum with each file: the SHA-256 of a large one, git's SHA-1 of a small one. A
file stands under its name only when it is whole and has that checksum. Until then it is called
`….partial`; a download that was interrupted goes on from there. Go next to `gpt/weights.py`, which
reads the folder.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from tqdm import tqdm

from gpt import UserError
from gpt.data import DOWNLOAD_TIMEOUT, innermost_reason
from gpt.fields import require, with_help
from gpt.files import SUMS, checksums, flush_file, flush_folder, sha256, write_checksums
from gpt.tokenizers import GPT2_FILES
from gpt.weights import CONFIG, WEIGHTS, cache_folder

HUB = "https://huggingface.co"
CHUNK = 1 << 20  # bytes
TRIES = 5  # without a single new byte
PAUSE = 0.5  # seconds before the second try, doubled before each that follows


@dataclass(frozen=True)
class Published:
    """A state of a repository on the hub, and what is known of its files beforehand."""

    revision: str
    weights: str = ""  # SHA-256 of model.safetensors

    @property
    def files(self) -> dict[str, str]:
        """Each file, and its SHA-256 where it is known. The four sizes share their tokenizer."""
        return {
            CONFIG: "",
            "vocab.json": GPT2_FILES["encoder.json"],
            "merges.txt": GPT2_FILES["vocab.bpe"],
            WEIGHTS: self.weights,
        }


PUBLISHED = {
    "gpt2": Published(
        "607a30d783dfa663caf39e06633721c8d4cfcd7e",
        "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    ),
    "gpt2-medium": Published("6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "gpt2-large": Published("32b71b12589c2f8d625668d2335a01cac3249519"),
    "gpt2-xl": Published(
        "15ea56dee5df4983c59b2538573817e1667135e2",
        "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
    ),
}


@with_help
@dataclass(frozen=True)
class DownloadConfig:
    """GPT-2's published weights and tokenizer, from the Hugging Face hub."""

    name: tyro.conf.Positional[Literal["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]] = "gpt2"
    """Which size: 0.5, 1.5, 3.2 or 6.4 GB."""
    folder: str = ""
    """Where to put the files; without it, the user's cache, where the name alone finds them."""
    hub: str = HUB
    """The address of the hub, or of a mirror with the same paths."""

    def __post_init__(self) -> None:
        require(
            bool(re.match(r"https?://[^/]", self.hub)),
            f"--hub must begin with https:// or http://, but it is {self.hub!r}",
        )


def download(config: DownloadConfig) -> Path:
    """Fetches what is missing, and returns the folder. Raises UserError where that fails."""
    published = PUBLISHED[config.name]
    folder = Path(config.folder) if config.folder else cache_folder(config.name)
    page = f"{config.hub.rstrip('/')}/openai-community/{config.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}") from None
    if is_whole(folder, published):
        return folder
    for name, known in published.files.items():
        try:
            fetch(f"{page}/resolve/{published.revision}/{name}", folder / name, known)
        except ConnectionError as error:
            raise UserError(
                f"{config.name} could not be fetched ({error}); the same command goes on from "
                f"here, or put {', '.join(published.files)} from {page}/tree/"
                f"{published.revision} into {folder}"
            ) from None
    write_checksums(folder, published.files)
    return folder


def is_whole(folder: Path, published: Published) -> bool:
    """Whether an earlier download has ended, and its files are what they were."""
    if not (folder / SUMS).exists():
        return False
    sums = checksums(folder)
    return all(sums.get(name) == sha256(folder / name) for name in published.files)


# ---- One file ----


@dataclass(frozen=True)
class Remote:
    """What the server says of a file before it sends it."""

    size: int
    checksum: str  # 64 hexadecimal digits of SHA-256, 40 of git's SHA-1, or nothing

    def matches(self, path: Path) -> bool:
        """Whether the file has the stated length and, where one is stated, checksum."""
        if self.size != path.stat().st_size:
            return False
        if len(self.checksum) == 40:
            return git_sha1(path) == self.checksum
        return not self.checksum or sha256(path) == self.checksum


def fetch(url: str, path: Path, known: str = "") -> None:
    """The file at `url` as `path`, whole or not at all; `known` is its SHA-256 where that is known.

    Goes on with what an earlier call left. Raises ConnectionError, with the host and a reason, if
    the server cannot be reached, keeps breaking off, or sends another file; UserError if the disk
    is at fault.
    """
    host = url.split("/")[2]
    try:
        remote = ask(url, known)
        if path.exists() and remote.matches(path):
            return
        partial = path.with_name(f"{path.name}.{remote.checksum[:12] or 'unknown'}.partial")
        check_room(path.parent, remote.size - length(partial))
        for _ in range(2):  # what an earlier call left may be damaged
            receive_all(url, partial, remote)
            if remote.matches(partial):
                flush_file(partial)
                os.replace(partial, path)
                flush_folder(path.parent)
                return
            partial.unlink()
    except urllib.error.HTTPError as error:
        error.close()
        raise ConnectionError(f"{host}: {error.code} {error.reason} for {path.name}") from None
    except (OSError, http.client.HTTPException) as error:
        if is_the_disk(error):
            raise UserError(f"{path} cannot be written: {innermost_reason(error)}") from None
        raise ConnectionError(f"{host}: {innermost_reason(error)}") from None
    raise ConnectionError(f"{host}: what it sends as {path.name} does not have its checksum")


def ask(url: str, known: str) -> Remote:
    """The file's length and checksum. They come with the hub's own answer, a redirection."""
    with opened(urllib.request.Request(url, method="HEAD")) as (response, linked):
        size = linked.get("X-Linked-Size") or response.headers.get("Content-Length") or ""
        tag = linked.get("X-Linked-Etag") or response.headers.get("ETag") or ""
    stated = tag.removeprefix("W/").strip('"')
    checksum = stated if re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", stated) else ""
    if known and len(checksum) == 64 and checksum != known:
        raise ConnectionError(f"it has another {url.split('/')[-1]} than the one published")
    if not size.isdecimal():
        raise ConnectionError(f"it does not state the length of {url.split('/')[-1]}")
    return Remote(int(size), known or checksum)


def receive_all(url: str, partial: Path, remote: Remote) -> None:
    """Asks for the rest of the file again and again, as long as something new comes."""
    failures = 0
    while (have := length(partial)) != remote.size:
        try:
            receive(url, partial, have, remote)
            reason: BaseException = ConnectionError("it broke off")
        except urllib.error.HTTPError as error:
            if error.code == 416:  # it has nothing behind what we have
                partial.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 429):
                raise
            error.close()
            reason = ConnectionError(f"{error.code} {error.reason} for {url.split('/')[-1]}")
        except (OSError, http.client.HTTPException) as error:
            if is_the_disk(error):
                raise
            reason = error
        failures = 0 if length(partial) > have else failures + 1
        if failures == TRIES:
            raise reason
        time.sleep(PAUSE * 2**failures if failures else 0)


def receive(url: str, partial: Path, have: int, remote: Remote) -> None:
    """Appends what follows the `have` bytes of a file; begins anew where the server does."""
    request = urllib.request.Request(url)
    if 0 < have < remote.size:
        request.add_header("Range", f"bytes={have}-")
    with opened(request) as (response, _):
        if response.status == 206:
            part = response.headers.get("Content-Range", "")
            if not re.fullmatch(rf"bytes {have}-\d+/({remote.size}|[*])", part):
                raise ConnectionError(f"it sends the part {part!r} when asked for {have}-")
        else:
            have = 0
        with (
            open(partial, "ab" if have else "wb") as file,
            tqdm(
                desc=url.split("/")[-1],
                initial=have,
                total=remote.size,
                unit="B",
                unit_scale=True,
                disable=None,
                dynamic_ncols=True,
            ) as bar,
        ):
            while chunk := response.read(CHUNK):
                have += len(chunk)
                if have > remote.size:
                    raise ConnectionError(f"it sends more than the {remote.size:,} bytes it stated")
                file.write(chunk)
                bar.update(len(chunk))


class Redirections(urllib.request.HTTPRedirectHandler):
    """Follows them, and keeps what the hub says of a file before it sends one elsewhere for it."""

    def __init__(self) -> None:
        self.linked: dict[str, str] = {}

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        for name in ("X-Linked-Size", "X-Linked-Etag"):
            if headers.get(name):
                self.linked.setdefault(name, headers[name])
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            request.method = req.get_method()  # before Python 3.13, HEAD became GET
        return request


@contextmanager
def opened(request: urllib.request.Request) -> Iterator[tuple[Any, dict[str, str]]]:
    """The answer to a request, and what redirections on the way to it said."""
    request.add_header("User-Agent", "tinytensor-gpt")
    redirections = Redirections()
    opener = urllib.request.build_opener(redirections)
    with opener.open(request, timeout=DOWNLOAD_TIMEOUT) as response:
        yield response, redirections.linked


# ---- The disk ----


def length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def git_sha1(path: Path) -> str:
    """The name that git gives to a file's content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def is_the_disk(error: Exception) -> bool:
    """Whether an error is the disk's, and not the network's, which is worth another try."""
    full_or_closed = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EISDIR)
    return isinstance(error, OSError) and error.errno in (*full_or_closed, errno.EIO)


def check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has room for {free / 1e9:.1f} GB, and {needed / 1e9:.1f} GB are to come"
        )
