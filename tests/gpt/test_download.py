"""`python -m gpt download` against a server of our own that breaks off, lies and repeats itself."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gpt import UserError, cli, download
from gpt.download import DownloadConfig, Published, fetch
from gpt.files import checksums
from gpt.weights import load_gpt2
from tests.gpt import gpt2_files

CONTENT = bytes(range(256)) * 40  # 10,240 bytes
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Files by path, and a list of what to do to the requests for content, one after another."""

    def __init__(self):
        self.files, self.faults, self.seen = {"/file": CONTENT}, [], []
        self.etag, self.ranges, self.lengths, self.linked = True, True, True, False
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_HEAD(self):
                server.answer(self, body=False)

            def do_GET(self):
                server.answer(self, body=True)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()
        self.address = f"http://127.0.0.1:{self.http.server_port}"

    def close(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def answer(self, request, body):
        given = request.headers.get("Range")
        self.seen.append((request.command, request.path, given))
        here = not self.linked or request.path.startswith("/elsewhere")  # where content is sent
        fault = self.faults.pop(0) if body and here and self.faults else ""
        content = self.files.get(request.path.removeprefix("/elsewhere"))
        if isinstance(fault, int) or content is None:
            request.send_error(fault or 404)
            return
        checksum = f'"{hashlib.sha256(content).hexdigest()}"'
        if not here:
            request.send_response(302)
            request.send_header("Location", f"/elsewhere{request.path}")
            request.send_header("X-Linked-Size", str(len(content)))
            request.send_header("X-Linked-Etag", checksum)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = 0
        if given and self.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", given)[1])
            if start >= len(content):
                request.send_error(416)
                return
            request.send_response(206)
            place = start + 1 if fault == "another part" else start
            request.send_header("Content-Range", f"bytes {place}-{len(content) - 1}/{len(content)}")
        else:
            request.send_response(200)
        sent = content[start:]
        if self.lengths:
            request.send_header("Content-Length", str(len(sent)))
        request.send_header("ETag", '"of the store"' if self.linked or not self.etag else checksum)
        request.end_headers()
        if not body:
            return
        if fault == "damage":
            sent = sent[:-1] + bytes([sent[-1] ^ 1])
        if fault == "break off":
            sent = sent[: len(sent) // 2]
        if fault == "nothing":
            sent = b""
        request.wfile.write(sent)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.001)
    monkeypatch.setattr(download, "CHUNK", 1000)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = Server()
    yield running
    running.close()


def ranges(server):
    return [given for command, _, given in server.seen if command == "GET"]


# ---- One file ----


@pytest.mark.parametrize("known", ["", SHA256])
@pytest.mark.parametrize(
    "switch",
    [{}, {"etag": False}, {"ranges": False}, {"linked": True}, {"lengths": False}],
    ids=str,
)
@pytest.mark.parametrize(
    "faults",
    [[], ["break off"], ["break off", "break off", 503], [503, "break off", 429], ["damage"],
     ["nothing", "break off"], ["break off", "another part"], ["break off", "damage"]],
    ids=str,
)  # fmt: skip
def test_a_file_arrives_whole_or_not_at_all(server, tmp_path, known, switch, faults):
    vars(server).update(switch, faults=list(faults))
    path = tmp_path / "file"
    can_notice = known or server.etag or server.linked
    try:
        fetch(server.address + "/file", path, known)
    except ConnectionError as error:
        assert "it does not state the length of file" in str(error) and not server.lengths
        return
    if "damage" in faults and not can_notice:
        return  # nothing says what the bytes should be
    assert path.read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("linked", [False, True])
def test_it_goes_on_where_it_stopped(server, tmp_path, linked):
    """Also where the hub sends one elsewhere for large files, as it does."""
    server.linked = linked
    server.faults = ["break off"] + [503] * download.TRIES
    with pytest.raises(ConnectionError, match=r"^127.0.0.1:\d+: 503 Service Unavailable for file$"):
        fetch(server.address + "/file", tmp_path / "file")
    (left,) = tmp_path.iterdir()
    assert left.name == f"file.{SHA256[:12]}.partial" and left.read_bytes() == CONTENT[:5120]
    server.seen.clear()
    fetch(server.address + "/file", tmp_path / "file")
    assert ranges(server) == ["bytes=5120-"] * (1 + linked)
    assert (tmp_path / "file").read_bytes() == CONTENT
    server.seen.clear()
    fetch(server.address + "/file", tmp_path / "file")
    assert ranges(server) == []


@pytest.mark.parametrize("left", [CONTENT[:100] + b"x", CONTENT + b"more", bytes(10_240), b""])
def test_a_damaged_beginning_is_found_out(server, tmp_path, left):
    (tmp_path / f"file.{SHA256[:12]}.partial").write_bytes(left)
    fetch(server.address + "/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT and os.listdir(tmp_path) == ["file"]


def test_what_stands_there_is_replaced_only_by_a_whole_file(server, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    server.faults = ["damage", "damage"]
    with pytest.raises(ConnectionError, match="what it sends as file does not have its checksum"):
        fetch(server.address + "/file", path)
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["file"]
    fetch(server.address + "/file", path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("faults", "sentence"),
    [
        (["nothing"] * 9, "it broke off"),
        ([403], "403 Forbidden for file"),
        ([404], "404 Not Found for file"),
        ([500] * 9, "500 Internal Server Error for file"),
    ],
)
def test_a_server_that_does_not_want(server, tmp_path, faults, sentence):
    server.faults = faults
    with pytest.raises(ConnectionError, match=sentence):
        fetch(server.address + "/file", tmp_path / "file", known=SHA256)
    assert not (tmp_path / "file").exists()


def test_a_file_that_grows_while_it_is_sent(server, tmp_path, monkeypatch):
    remote = download.Remote(len(CONTENT) - 1, "")
    monkeypatch.setattr(download, "ask", lambda url, known: remote)
    with pytest.raises(ConnectionError, match="it sends "):
        fetch(server.address + "/file", tmp_path / "file")


def test_another_file_than_the_one_published(server, tmp_path):
    with pytest.raises(ConnectionError, match="it has another file than the one published"):
        fetch(server.address + "/file", tmp_path / "file", known="0" * 64)
    assert ranges(server) == [] and not os.listdir(tmp_path)


def test_git_checksum(server, tmp_path, monkeypatch):
    """Small files are named by git: of "hello\\n" everyone knows the number."""
    (tmp_path / "hello").write_text("hello\n")
    assert download.git_sha1(tmp_path / "hello") == "ce013625030ba8dba906f756967f9e9ca394464a"
    monkeypatch.setattr(download, "ask", lambda url, known: download.Remote(10_240, "0" * 40))
    with pytest.raises(ConnectionError, match="does not have its checksum"):
        fetch(server.address + "/file", tmp_path / "file")


def test_a_server_that_falls_silent(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr(download, "TRIES", 2)
    quiet = threading.Event()
    monkeypatch.setattr(server, "answer", lambda request, body: quiet.wait(10))
    with pytest.raises(ConnectionError, match="timed out"):
        fetch(server.address + "/file", tmp_path / "file")
    quiet.set()


def test_a_full_disk(server, tmp_path, monkeypatch):
    monkeypatch.setattr(
        download.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 5})
    )
    with pytest.raises(UserError, match=r"has room for 0\.0 GB, and 0\.0 GB are to come"):
        fetch(server.address + "/file", tmp_path / "file")
    monkeypatch.undo()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "receive", full)
    with pytest.raises(UserError, match="file cannot be written: No space left on device"):
        fetch(server.address + "/file", tmp_path / "file")


# ---- All of them ----


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """A hub with a small GPT-2 under the name of the smallest."""
    monkeypatch.setattr(download, "cache_folder", lambda name: tmp_path / "cache" / name)
    source = gpt2_files.write(tmp_path / "source")
    for name in ("vocab.json", "merges.txt"):
        (source / name).write_text(f"{name}\n")
    known = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in source.iterdir()}
    monkeypatch.setattr(download, "GPT2_FILES", {"vocab.bpe": known["merges.txt"],
                                                 "encoder.json": known["vocab.json"]})  # fmt: skip
    monkeypatch.setitem(download.PUBLISHED, "gpt2", Published("abc", known["model.safetensors"]))
    for path in source.iterdir():
        server.files[f"/openai-community/gpt2/resolve/abc/{path.name}"] = path.read_bytes()
    return server


def test_download_command(hub, tmp_path, capsys):
    hub.faults = ["", "break off", 503, "damage", "break off"]
    assert cli.main(["download", "gpt2", "--hub", hub.address]) == 0
    folder = tmp_path / "cache/gpt2"
    assert capsys.readouterr().out == f"gpt2 is whole in {folder}\n"
    assert sorted(checksums(folder)) == ["config.json", "merges.txt", "model.safetensors",
                                         "vocab.json"]  # fmt: skip
    assert sorted(os.listdir(folder)) == ["SHA256SUMS", *sorted(checksums(folder))]
    assert load_gpt2(folder).config.n_embd == 24
    hub.seen.clear()
    assert cli.main(["download", "gpt2", "--hub", hub.address]) == 0
    assert hub.seen == []
    (folder / "config.json").write_text("{}")
    assert cli.main(["download", "gpt2", "--hub", hub.address]) == 0
    assert ranges(hub) == [None] and load_gpt2(folder).config.n_embd == 24


def test_without_a_network_it_says_what_to_do(tmp_path, server, capsys, monkeypatch):
    monkeypatch.setattr(download, "cache_folder", lambda name: tmp_path / "cache" / name)
    server.close()
    assert cli.main(["download", "gpt2-large", "--hub", server.address]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(
        r"error: gpt2-large could not be fetched \(127.0.0.1:\d+: Connection refused\); the same "
        r"command goes on from here, or put config.json, vocab.json, merges.txt, model.safetensors "
        r"from \S+/openai-community/gpt2-large/tree/32b71b12\S+ into \S+/cache/gpt2-large\n",
        error,
    ), error
    server.close = lambda: None


def test_refusals(hub, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.main(["download", "--folder", str(tmp_path / "file/x"), "--hub", hub.address]) == 2
    assert "cannot be made: Not a directory" in capsys.readouterr().err
    with pytest.raises(UserError, match="--hub must begin with https://"):
        DownloadConfig(hub="huggingface.co")
    del hub.files["/openai-community/gpt2/resolve/abc/merges.txt"]
    assert cli.main(["download", "--hub", hub.address]) == 2
    assert "404 Not Found for merges.txt); the same command" in capsys.readouterr().err
