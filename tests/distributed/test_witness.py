"""The witness alone: sockets instead of ranks, and the sentence that it comes to."""

from __future__ import annotations

import itertools
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tinytensor.distributed import witness
from tinytensor.distributed.witness import Rank, Witness, listed, others_stand


class Line:
    """What a rank is to the witness."""

    def __init__(self, address: tuple[str, int], rank: int) -> None:
        self.socket = socket.create_connection(address)
        self.send(rank=rank)
        self.send(entered=3, name="barrier", inside=False)

    def send(self, **message: object) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def sentence(self) -> str:
        self.socket.settimeout(10)
        received = self.socket.recv(1 << 16)
        return json.loads(received)["stop"] if received else ""


@contextmanager
def witnessed(size: int, timeout: float = 0.5) -> Iterator[tuple[Witness, list[Line]]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = Witness(listener, size, timeout)
        thread = threading.Thread(target=one.serve)
        thread.start()
        lines = [Line(listener.getsockname(), rank) for rank in range(size)]
        deadline = time.monotonic() + 10
        while len(one.ranks) < size or any(r.entered < 3 for r in one.ranks.values()):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        yield one, lines
        for line in lines:
            line.socket.close()
        thread.join(10)
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
        sentence = lines[3].sentence()
        assert "ranks 1 and 2 have not come to collective 4 (all_reduce) in 0.5 secon" in sentence
        assert "no sign of life from" not in sentence


def test_silence_is_mentioned():
    with witnessed(2, timeout=0.1) as (_, lines):
        time.sleep(0.1)
        lines[0].send(entered=4, name="barrier", inside=True)
        lines[0].send(waited=4)
        assert "; no sign of life from rank 1 for 0." in lines[0].sentence()


def test_a_complaint_that_is_out_of_date_is_dropped():
    with witnessed(2, timeout=0.1) as (one, lines):
        lines[0].send(entered=4, name="barrier", inside=True)
        lines[0].send(waited=4)
        lines[0].send(entered=4, name="barrier", inside=False)
        time.sleep(0.2)
        assert one.verdict is None
        for line in lines:
            line.send(goodbye=True)


def test_different_collectives_under_one_number():
    with witnessed(2, timeout=0.1) as (_, lines):
        lines[0].send(entered=4, name="barrier", inside=True)
        lines[1].send(entered=4, name="all_reduce", inside=True)
        lines[1].send(waited=4)
        assert lines[0].sentence() == (
            "the ranks are in different collectives as their number 4; rank 0 is in collective 4 "
            "(barrier); rank 1 is in collective 4 (all_reduce)"
        )


def test_all_present_and_yet_no_end():
    with witnessed(2, timeout=0.1) as (_, lines):
        for line in lines:
            line.send(entered=4, name="barrier", inside=True)
        lines[0].send(waited=4)
        assert "all ranks have been in collective 4 (barrier) for more" in lines[0].sentence()


def test_leaving_early():
    with witnessed(2) as (_, lines):
        lines[0].send(goodbye=True)
        lines[1].send(entered=4, name="barrier", inside=True)
        expected = "rank 0 ended its program after collective 3 (barrier); rank 1 is in collective"
        assert lines[1].sentence().startswith(expected)


def test_an_orderly_end_is_silent(capfd: pytest.CaptureFixture[str]):
    with witnessed(3) as (one, lines):
        for line in lines:
            line.send(goodbye=True)
            line.socket.close()
    assert one.verdict is None
    assert capfd.readouterr().err == ""


def test_words():
    ranks = [Rank(0), Rank(1, entered=2, name="barrier"), Rank(5), Rank(7, finished=True)]
    assert listed(ranks[:1]) == "rank 0"
    assert listed(ranks) == "ranks 0, 1, 5 and 7"
    assert others_stand(ranks) == (
        "ranks 0 and 5 are before its first collective; rank 1 is after collective 2 (barrier)"
    )
    assert others_stand(ranks[3:]) == "no other rank is left"
