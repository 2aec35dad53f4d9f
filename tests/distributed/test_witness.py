"""The witness alone: sockets instead of ranks, and the sentence that it comes to."""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tinytensor.distributed import witness
from tinytensor.distributed.witness import Rank, Witness, listed, others_stand

TOKEN = "a word"
PATIENCE = 60  # seconds, on a machine that has other things to do


class Line:
    """What a rank is to the witness."""

    def __init__(self, address: tuple[str, int], rank: int, host: str = "here") -> None:
        self.socket = socket.create_connection(address)
        self.send(rank=rank, host=host, token=TOKEN)
        assert json.loads(self.socket.recv(1 << 16)) == {"token": TOKEN}
        self.send(entered=3, name="barrier", inside=False)

    def send(self, **message: object) -> None:
        self.send_together(message)

    def send_together(self, *messages: dict[str, object]) -> None:
        self.socket.sendall(b"".join(json.dumps(one).encode() + b"\n" for one in messages))

    def sentence(self) -> str:
        self.socket.settimeout(PATIENCE)
        received = self.socket.recv(1 << 16)
        return json.loads(received)["stop"] if received else ""


@contextmanager
def witnessed(
    size: int, timeout: float = 0.5, hosts: Sequence[str] = ()
) -> Iterator[tuple[Witness, list[Line]]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = Witness(listener, size, timeout, TOKEN)
        thread = threading.Thread(target=one.serve)
        thread.start()
        names = [*hosts, *["here"] * size]
        lines = [Line(listener.getsockname(), rank, names[rank]) for rank in range(size)]
        deadline = time.monotonic() + PATIENCE
        while len(one.ranks) < size or any(r.entered < 3 for r in one.ranks.values()):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        yield one, lines
        for line in lines:
            line.socket.close()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_broken_connection_is_a_death(capfd: pytest.CaptureFixture[str]):
    with witnessed(3) as (_, lines):
        lines[0].send(entered=4, name="all_reduce", inside=True)
        lines[1].socket.close()
        expected = (
            "rank 1 died without a word (killed, or out of memory) after collective 3 (barrier); "
            "rank 0 is in collective 4 (all_reduce); rank 2 is after collective 3 (barrier)"
        )
        assert lines[0].sentence() == expected
        assert lines[2].sentence() == expected
    assert capfd.readouterr().err == f"tinytensor.distributed: {expected}\n"


def test_all_gone_at_once_still_names_the_first(capfd: pytest.CaptureFixture[str]):
    """A launcher kills the others within milliseconds, or less."""
    for order in itertools.permutations(range(3)):
        with witnessed(3) as (_, lines):
            for rank in order:
                lines[rank].socket.close()
        assert f"rank {order[0]} died" in capfd.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel is asked")
def test_whoever_died_first_is_named_however_late_the_witness_looks(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(witness, "REST", 0.3)
    with witnessed(3) as (_, lines):
        # It rests now; afterwards rank 0's report and end are read before those of rank 2.
        for rank in (0, 2):
            lines[rank].send(entered=4, name="all_reduce", inside=True)
        lines[2].socket.close()
        lines[0].socket.close()
        assert lines[1].sentence().startswith("rank 2 died")


def test_an_error_explains_the_deaths_that_follow_at_once():
    """The rank that raises may take the others with it, and they may be gone before it is."""
    with witnessed(3) as (_, lines):
        lines[1].send(raised="ValueError: no")
        lines[2].socket.close()
        lines[1].socket.close()
        assert lines[0].sentence().startswith("rank 1 stopped after collective 3 (barrier): Value")


def test_an_error_is_quoted():
    with witnessed(2) as (_, lines):
        lines[1].send(raised="ValueError: no")
        lines[1].socket.close()
        assert lines[0].sentence().startswith("rank 1 stopped after collective 3 (barrier): Value")


def test_who_waits_too_long_learns_who_is_missing():
    with witnessed(4) as (_, lines):
        for rank in (0, 3):
            lines[rank].send(entered=4, name="all_reduce", inside=True)
        lines[0].send(waited=4)
        expected = "ranks 1 and 2 have not come to collective 4 (all_reduce) in 0.5 seconds, last"
        assert lines[3].sentence().startswith(expected)


@contextmanager
def paused(ranks: list[Rank], seconds: float, timeout: float = 10) -> Iterator[Witness]:
    """A witness that has heard of these ranks; of all but rank 0, `seconds` ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.MonkeyPatch.context() as patch:
        one = Witness(listener, len(ranks), timeout)
        one.ranks = {rank.rank: rank for rank in ranks}
        now = ranks[0].heard + seconds
        for rank in ranks:
            rank.heard = now if rank is ranks[0] else now - seconds
        patch.setattr(time, "monotonic", lambda: now)
        yield one
        one.ends.close()
        one.selector.close()


@pytest.mark.parametrize(("seconds", "said"), [(0, ""), (2.9, ""), (3.1, "3.1"), (100, "100.0")])
def test_silence_is_mentioned(seconds: float, said: str):
    ranks = [Rank(0, entered=4, inside=True, name="barrier"), Rank(1, entered=3, name="barrier")]
    silence = f"; no sign of life from rank 1 for {said} seconds" if said else ""
    with paused(ranks, seconds) as one:
        assert one.missing(4) == (
            ranks[1:],
            "rank 1 has not come to collective 4 (barrier) in 10 seconds, last seen after "
            f"collective 3 (barrier){silence}",
        )


def test_all_present_and_some_of_them_silent():
    """A machine without power says no goodbye, and its connections do not end."""
    hosts = ["node1", "node2", "node2"]
    ranks = [Rank(r, host, 4, inside=True, name="barrier") for r, host in enumerate(hosts)]
    with paused(ranks, 7) as one:
        assert one.missing(4) == (
            ranks[1:],
            "no sign of life from ranks 1 and 2 on node2 for 7.0 seconds, last seen in collective "
            "4 (barrier), which takes more than 10 seconds",
        )


def test_all_present_and_yet_no_end():
    ranks = [Rank(r, entered=4, inside=True, name="barrier") for r in range(2)]
    with paused(ranks, 1) as one:
        expected = "all ranks have been in collective 4 (barrier) for more than 10 seconds"
        assert one.missing(4) == ([], expected)
        ranks[1].name = "all_reduce"
        expected = "the ranks are in different collectives as their number 4"
        assert one.missing(4) == ([], expected)


def test_a_complaint_that_is_out_of_date_is_dropped():
    with witnessed(2, timeout=0.1) as (one, lines):
        lines[0].send(entered=4, name="barrier", inside=True)
        lines[0].send_together({"waited": 4}, {"entered": 4, "name": "barrier", "inside": False})
        time.sleep(0.2)
        assert one.verdict is None
        for line in lines:
            line.send(goodbye=True)


def test_leaving_early():
    with witnessed(2) as (_, lines):
        lines[0].send(goodbye=True)
        lines[1].send(entered=4, name="barrier", inside=True)
        expected = "rank 0 ended its program after collective 3 (barrier); rank 1 is in collective"
        assert lines[1].sentence().startswith(expected)


@pytest.mark.parametrize("reader", ["gone", "going", "there"])
def test_where_nobody_takes_what_is_printed_it_is_written(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A launcher of several machines may be gone before the witness has judged, or just after."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as screen, os.fdopen(writing, "wb", buffering=0):
        if reader == "gone":
            screen.close()

        def write(_: int, text: bytes, write: Any = os.write) -> None:
            write(writing, text)
            if reader == "going":
                screen.close()

        asked = witness.has_reader
        monkeypatch.setattr(witness, "has_reader", lambda _, seconds: asked(writing, seconds))
        monkeypatch.setattr(witness.os, "write", write)
        monkeypatch.setattr(witness, "LAUNCHER_ENDS", 0.05)
        with witnessed(2, hosts=["node1", "node2"]) as (one, lines):
            one.folder = tmp_path
            lines[1].socket.close()
            sentence = lines[0].sentence()
            lines[0].socket.close()
    file = tmp_path / witness.LAST_RESORT
    assert file.exists() is (reader != "there")
    assert reader == "there" or file.read_text().endswith(f" {sentence}\n")
    assert sentence.startswith("rank 1 on node2 died")


def test_all_have_parted_and_are_let_go():
    """They wait for that at the end of their programs: a verdict could still concern them."""
    with witnessed(2) as (one, lines):
        for line in lines:
            assert one.verdict is None
            line.send(goodbye=True)
        assert [line.sentence() for line in lines] == ["", ""]


def test_whoever_comes_after_its_goodbye_has_not_left():
    """What it had launched is done beside the end of its program."""
    ranks = [Rank(0, entered=3, finished=True), Rank(1, entered=4, inside=True, name="barrier")]
    with paused(ranks, 0) as one:
        one.look_for_leavers()
        (suspicion,) = one.suspicions
        found = suspicion.question()
        assert found is not None and found[0] == ranks[:1]
        ranks[0].entered = 4
        assert suspicion.question() is None


def test_who_left_is_told_that_others_miss_it():
    with witnessed(2) as (_, lines):
        lines[0].send(goodbye=True)
        lines[1].send(entered=4, name="barrier", inside=True)
        assert lines[0].sentence().startswith("rank 0 ended its program after collective 3 (barri")


def test_an_orderly_end_is_silent(capfd: pytest.CaptureFixture[str]):
    with witnessed(3) as (one, lines):
        for line in lines:
            line.send(goodbye=True)
            line.socket.close()
    assert one.verdict is None
    assert capfd.readouterr().err == ""


def test_of_several_machines_it_is_said_which():
    with witnessed(3, hosts=["node1", "node2", "node2"]) as (_, lines):
        lines[2].socket.close()
        assert lines[0].sentence().startswith("rank 2 on node2 died without a word")


STRANGERS = [
    b"GET / HTTP/1.0\r\n\r\n",
    b"\xff\x00\n",
    b"[1]\n",
    b'{"rank": 0, "host": "here", "token": "a guess"}\n',
    b'{"entered": 9, "name": "barrier", "inside": true}\n',
    b"x" * 5000,
    b"",
]


@pytest.mark.parametrize("said", STRANGERS)
def test_a_stranger_is_turned_away(said: bytes, capfd: pytest.CaptureFixture[str]):
    """Ports are scanned; that is no reason for a run to end."""
    with witnessed(2) as (one, lines):
        with socket.create_connection(one.listener.getsockname()) as stranger:
            stranger.settimeout(PATIENCE)
            stranger.sendall(said)
            if not said:
                stranger.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):  # the witness had not read all of it
                assert stranger.recv(100) == b""
        for line in lines:
            line.send(goodbye=True)
    assert one.verdict is None
    assert [rank.entered for rank in one.ranks.values()] == [3, 3]
    assert capfd.readouterr().err == ""


def test_nobody_comes(monkeypatch: pytest.MonkeyPatch):
    """The rank that started it may die before it has said a word."""
    monkeypatch.setattr(witness, "NOBODY", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        Witness(listener, 2, 10, TOKEN).serve()  # returns


def test_words():
    ranks = [Rank(0), Rank(1, entered=2, name="barrier"), Rank(5), Rank(7, finished=True)]
    assert listed(ranks[:1]) == "rank 0"
    assert listed(ranks) == "ranks 0, 1, 5 and 7"
    assert others_stand(ranks) == (
        "ranks 0 and 5 are before its first collective; rank 1 is after collective 2 (barrier)"
    )
    assert others_stand(ranks[3:]) == "no other rank is left"
