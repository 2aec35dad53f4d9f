"""The witness: a small process beside the ranks that says which of them is missing, and where.

An MPI launcher that sees one process die kills the others within milliseconds, before they can say
anything. So rank 0 starts this program outside the launcher's reach. Every rank keeps a connection
to it and reports each collective that it enters. When a connection breaks, a rank raises, or
somebody has waited too long, the witness prints one sentence and sends it to all who are still
there; they stop by themselves (`watch.py`). It knows the standard library and no tensors: it is
started as a file of its own, and costs a few megabytes and no processor time.

    python witness.py LISTENING-SOCKET WORLD-SIZE TIMEOUT TOKEN FOLDER

A connection that does not begin with the token is none of a rank's (ports are scanned), and is
dropped. Where the launcher no longer takes what is printed, the sentence is written into FOLDER.
"""

from __future__ import annotations

import json
import os
import select
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

# Between two looks at what has come: ranks that hurry do not wake this process with every message,
# on a core that computes. The end of a connection wakes it at once.
REST = 0.02  # seconds
# After the first sign of trouble: time for what the other ranks have sent to arrive.
SETTLE = 0.02  # seconds
# A rank whose process is stopped, or stuck inside one long call, sends nothing.
SILENCE = 3.0  # times the interval between two reports
# Without any rank after this time, the one that started this program is no more.
NOBODY = 120.0  # seconds
LONGEST_INTRODUCTION = 4096  # bytes
LAST_RESORT = "tinytensor-stopped.txt"
# A launcher of several machines may end at the first death, before it has passed on what was said.
LAUNCHER_ENDS = 0.5  # seconds


# Answers, when the time has come, who is guilty and of what; None if it went on after all.
Question = Callable[[], "tuple[list[Rank], str] | None"]


@dataclass
class Suspicion:
    """Something may be wrong; to be judged at `due`.

    Whoever died first is the cause: the launcher kills the others, within milliseconds. An error
    that was reported by the time a death was seen comes before it.
    """

    turn: int  # of the witness's loop
    death: bool
    due: float
    question: Question


class Ends:
    """The connections whose other end has closed or died, in the order in which they did.

    Linux keeps them in that order for an epoll that hears of ends only and not of data, however
    late this process looks. Elsewhere nothing is known here, and connections end as they are read.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll() if sys.platform.startswith("linux") else None
        self._watched: dict[int, socket.socket] = {}

    def watch(self, connection: socket.socket) -> None:
        if self._epoll is not None:
            self._watched[connection.fileno()] = connection
            self._epoll.register(connection, select.EPOLLRDHUP | select.EPOLLONESHOT)

    def wait(self, seconds: float) -> list[socket.socket]:
        """Those that have newly ended; as soon as there is one, or none after `seconds`."""
        if self._epoll is None:
            time.sleep(seconds)
            return []
        return [self._watched[number] for number, _ in self._epoll.poll(seconds)]

    def forget(self, connection: socket.socket) -> None:
        if self._epoll is not None:
            del self._watched[connection.fileno()]
            self._epoll.unregister(connection)

    def close(self) -> None:
        if self._epoll is not None:
            self._epoll.close()


@dataclass
class Rank:
    """What one rank has said last."""

    rank: int
    host: str = ""
    entered: int = 0  # collectives it has begun, from 1
    inside: bool = False  # whether the last of them is still running
    name: str = ""
    heard: float = field(default_factory=time.monotonic)
    connected: bool = True
    finished: bool = False  # it said goodbye

    def where(self) -> str:
        """What the rank was doing, for a sentence."""
        if not self.entered:
            return "before its first collective"
        place = f"collective {self.entered} ({self.name})"
        return f"in {place}" if self.inside else f"after {place}"


def listed(ranks: Iterable[Rank]) -> str:
    """rank 1; ranks 0, 2 and 3"""
    numbers = sorted(rank.rank for rank in ranks)
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    return f"ranks {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def others_stand(ranks: Iterable[Rank]) -> str:
    """Where the other ranks are: those at one place together, at most four places."""
    places: dict[str, list[Rank]] = {}
    for rank in ranks:
        if not rank.finished:
            places.setdefault(rank.where(), []).append(rank)
    parts = [
        f"{listed(group)} {'is' if len(group) == 1 else 'are'} {where}"
        for where, group in list(places.items())[:4]
    ]
    return "; ".join(parts) or "no other rank is left"


class Witness:
    """Listens to `size` ranks; `verdict` becomes a sentence when the run cannot go on."""

    def __init__(
        self,
        listener: socket.socket,
        size: int,
        timeout: float,
        token: str = "",
        folder: Path | None = None,
    ) -> None:
        self.listener = listener
        self.folder = folder
        self.size = size
        self.token = token
        self.timeout = timeout
        self.interval = report_interval(timeout)
        self.ranks: dict[int, Rank] = {}
        self.connections: dict[socket.socket, bytearray] = {}
        self.who: dict[socket.socket, Rank] = {}
        self.suspicions: list[Suspicion] = []
        self.verdict: str | None = None
        self.turn = 0
        self.began = time.monotonic()
        self.ends = Ends()
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)

    def serve(self) -> None:
        """Until every rank has gone, or a verdict has been sent."""
        while self.verdict is None:
            if self.deserted() and not self.suspicions:
                break
            wait = min((s.due for s in self.suspicions), default=time.monotonic() + NOBODY / 2)
            events = self.selector.select(max(0.0, wait - time.monotonic()))
            # On a busy machine much may have come meanwhile: all is heard before anything is said.
            while events:
                for key, _ in events:
                    if key.fileobj is self.listener:
                        self.accept()
                    else:
                        self.read(key.fileobj)  # type: ignore[arg-type]
                events = self.selector.select(0)
            self.judge()
            self.turn += 1
            for connection in self.ends.wait(REST):
                self.end(connection)
        if self.verdict:
            self.announce(self.verdict)
        for connection in self.connections:
            connection.close()
        self.ends.close()
        self.selector.close()

    def deserted(self) -> bool:
        """Whether the ranks have been here and parted, or none has ever come."""
        if not self.ranks:
            return time.monotonic() - self.began > NOBODY
        return not any(rank.connected and not rank.finished for rank in self.ranks.values())

    def accept(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except ConnectionError:  # it was given up before it was taken
            return
        self.connections[connection] = bytearray()
        self.selector.register(connection, selectors.EVENT_READ)
        self.ends.watch(connection)

    def read(self, connection: socket.socket) -> None:
        if connection in self.connections and not self.receive(connection):
            for ended in [*self.ends.wait(0), connection]:
                self.end(ended)

    def receive(self, connection: socket.socket) -> bool:
        """Hears what has come; false at the end of the connection, and for no rank's."""
        try:
            received = connection.recv(1 << 16)
        except OSError:
            received = b""
        buffer = self.connections[connection]
        buffer += received
        *lines, rest = bytes(buffer).split(b"\n")
        buffer[:] = rest
        for line in lines:
            if connection in self.who:
                self.hear(self.who[connection], json.loads(line))
            elif not self.welcome(connection, line):
                return self.turn_away(connection)
        if connection not in self.who and len(rest) > LONGEST_INTRODUCTION:
            return self.turn_away(connection)
        return bool(received)

    def welcome(self, connection: socket.socket, line: bytes) -> bool:
        """Whether the first line is a rank's, which is told that it has come to the right place."""
        try:
            message = json.loads(line)
            if message["token"] != self.token:
                return False
            rank = Rank(int(message["rank"]), str(message["host"]))
        except (ValueError, TypeError, KeyError):
            return False
        try:
            connection.sendall(json.dumps({"token": self.token}).encode() + b"\n")
        except OSError:
            return False
        self.who[connection] = self.ranks[rank.rank] = rank
        return True

    def turn_away(self, connection: socket.socket) -> bool:
        """Nothing more is read from a stranger."""
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RD)
        return False

    def end(self, connection: socket.socket) -> None:
        if connection not in self.connections:
            return
        while self.receive(connection):
            pass
        self.hang_up(connection)
        rank = self.who.pop(connection, None)
        if rank is not None:
            rank.connected = False
            self.suspect(partial(self.died, rank), death=True)

    def hang_up(self, connection: socket.socket) -> None:
        self.selector.unregister(connection)
        self.ends.forget(connection)
        connection.close()
        del self.connections[connection]

    def hear(self, rank: Rank, message: dict[str, Any]) -> None:
        rank.heard = time.monotonic()
        if "entered" in message:
            rank.entered, rank.name, rank.inside = (
                message["entered"],
                message["name"],
                message["inside"],
            )
        if "raised" in message:
            rank.finished = True
            self.suspect(partial(self.raised, rank, message["raised"]))
        if "goodbye" in message:
            rank.finished = True
        if "waited" in message:
            # Reports of the others may be on their way: every rank sends one per interval.
            self.suspect(partial(self.missing, message["waited"]), 2.5 * self.interval)
        self.look_for_leavers()

    def look_for_leavers(self) -> None:
        """A rank that ended its program is missing in every later collective."""
        for rank in self.ranks.values():
            if rank.finished and self.missed(rank):
                self.suspect(partial(self.left, rank))

    def missed(self, rank: Rank) -> bool:
        """Whether others are in a collective to which it has not come."""
        return any(r.inside and r.entered > rank.entered for r in self.ranks.values())

    def suspect(self, question: Question, delay: float = SETTLE, death: bool = False) -> None:
        due = time.monotonic() + delay
        self.suspicions.append(Suspicion(self.turn, death, due, question))

    def judge(self) -> None:
        """What came first, of all that has settled (or is about to) and still holds, is it."""
        now = time.monotonic()
        if not any(suspicion.due <= now for suspicion in self.suspicions):
            return
        ripe = [suspicion for suspicion in self.suspicions if suspicion.due <= now + SETTLE]
        for suspicion in sorted(ripe, key=lambda one: (one.turn, one.death)):
            self.suspicions.remove(suspicion)
            found = suspicion.question()
            if found and self.verdict is None:
                guilty, sentence = found
                others = (rank for rank in self.ranks.values() if rank not in guilty)
                self.verdict = f"{sentence}; {others_stand(others)}"

    # --- what can be wrong ----------------------------------------------------------------------

    def named(self, ranks: list[Rank]) -> str:
        """rank 3; ranks 3 and 4 on node2, where the ranks are on several machines"""
        hosts = sorted({rank.host for rank in ranks})
        several = len({rank.host for rank in self.ranks.values()}) > 1
        return f"{listed(ranks)} on {' and '.join(hosts)}" if several else listed(ranks)

    def raised(self, rank: Rank, text: str) -> tuple[list[Rank], str]:
        return [rank], f"{self.named([rank])} stopped {rank.where()}: {text}"

    def left(self, rank: Rank) -> tuple[list[Rank], str] | None:
        if not self.missed(rank):  # those who waited there have gone on
            return None
        return [rank], f"{self.named([rank])} ended its program {rank.where()}"

    def died(self, rank: Rank) -> tuple[list[Rank], str] | None:
        if rank.finished:
            return None
        how = "died without a word (killed, or out of memory)"
        return [rank], f"{self.named([rank])} {how} {rank.where()}"

    def missing(self, number: int) -> tuple[list[Rank], str] | None:
        """Which ranks did not come to collective `number` in time."""
        waiting = [r for r in self.ranks.values() if r.entered == number and r.inside]
        if not waiting:
            return None
        absent = [r for r in self.ranks.values() if r.entered < number]
        place = f"collective {number} ({waiting[0].name})"
        seconds = f"{self.timeout:g} seconds"
        now = time.monotonic()
        suspects = absent or self.ranks.values()
        silent = [r for r in suspects if now - r.heard > SILENCE * self.interval]
        sign = ""
        if silent:
            since = now - max(r.heard for r in silent)
            sign = f"no sign of life from {self.named(silent)} for {since:.1f} seconds"
        if absent:
            verb = "has" if len(absent) == 1 else "have"
            return absent, (
                f"{self.named(absent)} {verb} not come to {place} in {seconds}, last seen "
                f"{absent[0].where()}{'; ' if sign else ''}{sign}"
            )
        if silent:  # a machine that is gone, most likely: nobody ends its connections
            return silent, f"{sign}, last seen in {place}, which takes more than {seconds}"
        if len({r.name for r in waiting}) > 1:
            return [], f"the ranks are in different collectives as their number {number}"
        return [], f"all ranks have been in {place} for more than {seconds}"

    def announce(self, sentence: str) -> None:
        said = say(f"tinytensor.distributed: {sentence}")
        line = json.dumps({"stop": sentence}).encode() + b"\n"
        for connection in self.connections:
            try:
                connection.sendall(line)
            except OSError:
                continue
        # Closing at once could overtake the sentence; the ranks hang up when they have read it.
        deadline = time.monotonic() + 2
        while self.connections and (left := deadline - time.monotonic()) > 0:
            for key, _ in self.selector.select(left):
                if key.fileobj is not self.listener:
                    self.drain(key.fileobj)  # type: ignore[arg-type]
        several = len({rank.host for rank in self.ranks.values()}) > 1
        if said and several:
            said = has_reader(2, LAUNCHER_ENDS)
        if not said and self.folder is not None:
            with suppress(OSError), (self.folder / LAST_RESORT).open("a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {sentence}\n")

    def drain(self, connection: socket.socket) -> None:
        try:
            received = connection.recv(1 << 16)
        except OSError:
            received = b""
        if not received:
            self.hang_up(connection)


def report_interval(timeout: float) -> float:
    """Seconds between two reports of a rank that has nothing new to say."""
    return min(5.0, timeout / 10)


def say(sentence: str) -> bool:
    """One line on the standard error, whole, whatever the other processes write.

    False where nobody takes it: a launcher of several machines may be gone before the witness.
    """
    try:
        os.write(2, f"{sentence}\n".encode())
    except OSError:
        return False
    return True


def has_reader(descriptor: int, seconds: float) -> bool:
    """Whether a pipe still has one after `seconds`; of a file, or where it cannot be asked: yes."""
    if not hasattr(select, "poll"):
        return True
    ends = select.poll()
    ends.register(descriptor, 0)  # its end is told unasked
    return not ends.poll(1000 * seconds)


def main() -> None:
    descriptor, size, timeout, token, folder = sys.argv[1:]
    with socket.socket(fileno=int(descriptor)) as listener:
        Witness(listener, int(size), float(timeout), token, Path(folder)).serve()


if __name__ == "__main__":
    main()
