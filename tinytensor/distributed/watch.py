"""A rank's line to the witness: it reports where the rank is, and stops the rank when told to.

`Watch.enter` numbers a collective and returns a ticket, which is given back when it is done. A
thread reports this to the witness (`witness.py`) and looks for tickets that are out too long. When
the witness finds that the run cannot go on, the sentence is printed, `abort` is called (NCCL would
wait for ever) and the process ends: there is nobody left to compute with, and a checkpoint is
written aside and renamed, so that the last one stays whole. A rank that cannot reach the witness
any more, because a machine or the network between them is gone, ends as well.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from . import machine, witness

# A rank that hurries from collective to collective reports the end of one this often, if it has not
# begun another meanwhile. Of many ranks, the witness does not hear each beginning either.
REPORT_GAP = 0.02  # seconds
MANY = 16  # ranks
# For each of the addresses at which the witness may be found.
CONNECTING = 10.0  # seconds
# A witness that has been told of a collective that takes too long, and says nothing, is gone.
NO_ANSWER = 10.0  # seconds, and as many intervals between two reports
# For the last output, and for NCCL's end: neither may keep the process from ending.
PARTING = 10.0  # seconds
# The other ranks' sentences should come out before the launcher notices the first one that ends.
LAST_WORDS = 0.3  # seconds
EXIT_CODE = 1


class Ticket:
    """One collective under way. `done`, where given, says whether a GPU has finished it."""

    __slots__ = ("done", "name", "number", "since")

    def __init__(self, number: int, name: str, done: Callable[[], bool] | None) -> None:
        self.number = number
        self.name = name
        self.since = time.monotonic()
        self.done = done


class Meeting(NamedTuple):
    """Where the witness listens, and the word by which ranks and witness know one another."""

    addresses: list[str]
    port: int
    token: str


def start_witness(size: int, timeout: float) -> Meeting:
    """Starts the witness on this machine."""
    token = secrets.token_hex(8)
    with socket.create_server(("", 0), backlog=max(128, size)) as listener:
        descriptor = listener.fileno()
        # A session of its own: the launcher kills the ranks' process groups.
        process = subprocess.Popen(
            [
                sys.executable,
                "-S",
                "-E",
                witness.__file__,
                str(descriptor),
                str(size),
                str(timeout),
                token,
                str(Path.cwd()),
            ],
            pass_fds=[descriptor],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=Path(witness.__file__).parent,
        )
        process.returncode = 0  # it outlives this process; nobody waits for it
        return Meeting(machine.addresses(), int(listener.getsockname()[1]), token)


def reach(meeting: Meeting, rank: int, timeout: float) -> socket.socket:
    """A connection to the witness, at the first of its addresses where it answers.

    It breaks after `timeout` seconds in which nothing gets through (on Linux; elsewhere the system
    decides). Raises ConnectionError, and says what happened at each address.
    """
    failures = []
    for address in meeting.addresses:
        try:
            connection = socket.create_connection((address, meeting.port), timeout=CONNECTING)
        except OSError as error:
            failures.append(f"{address} ({error.strerror or error})")
            continue
        if _introduced(connection, meeting.token, rank):
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if sys.platform.startswith("linux"):
                unheard = max(1, round(1000 * timeout))  # milliseconds
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unheard)
            return connection
        connection.close()
        failures.append(f"{address} (somebody else answers there)")
    raise ConnectionError(
        f"{socket.gethostname()} does not reach the process on rank 0's machine that watches the "
        f"ranks: port {meeting.port} of {', '.join(failures)}; machines must accept connections "
        "from one another"
    )


def _introduced(connection: socket.socket, token: str, rank: int) -> bool:
    """Whether it is the witness that answers."""
    try:
        connection.sendall(message(rank=rank, host=socket.gethostname(), token=token))
        return bool(json.loads(_first_line(connection))["token"] == token)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def message(**content: object) -> bytes:
    """What ranks and witness send each other: a line of JSON."""
    return json.dumps(content).encode() + b"\n"


def _first_line(connection: socket.socket) -> bytes:
    """What comes before the first end of line; nothing if the connection ends before that."""
    received = b""
    while b"\n" not in received:
        more = connection.recv(1 << 16)
        if not more:
            return b""
        received += more
    return received.split(b"\n")[0]


class Watch:
    """The line of rank `rank` of `size` to the witness, over a `connection` that `reach` found."""

    def __init__(
        self,
        rank: int,
        size: int,
        connection: socket.socket,
        timeout: float,
        abort: Callable[[], None],
        check: Callable[[], None],
    ) -> None:
        self.rank = rank
        self.timeout = timeout
        self.entered = 0
        self.abort = abort
        self.check = check
        self._interval = witness.report_interval(timeout)
        self._prompt = size <= MANY
        self._gap = max(REPORT_GAP, size * 1e-4)
        self._complaint = 0, 0.0  # of which collective, and when
        self._tickets: list[Ticket] = []
        self._last_name = ""
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._closing = False
        self._leaving = False
        self._parted = threading.Event()
        self._news = threading.Event()
        self._stopped = threading.Event()
        self._connection = connection
        for work in (self._listen, self._report):
            threading.Thread(target=work, name="tinytensor-watch", daemon=True).start()
        self._excepthook = sys.excepthook
        sys.excepthook = self._raised
        atexit.register(self._leave)

    # --- what the collectives call ----------------------------------------------------------------

    def enter(self, name: str, done: Callable[[], bool] | None = None) -> Ticket:
        """This rank begins its next collective."""
        with self._lock:
            self.entered += 1
            ticket = Ticket(self.entered, name, done)
            self._tickets.append(ticket)
            self._last_name = name
        if self._prompt:
            self._tell_place()
        else:
            self._news.set()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """The collective of `ticket` is done."""
        with self._lock:
            if ticket in self._tickets:
                self._tickets.remove(ticket)
        self._news.set()

    def close(self) -> None:
        """This rank ends its part in good order."""
        if self._closing:
            return
        self._forget_finished()
        self._closing = True
        atexit.unregister(self._leave)
        sys.excepthook = self._excepthook
        self._tell_place()
        self._send(goodbye=True)
        self._stopped.set()
        self._news.set()

    def _leave(self) -> None:
        """The program ends here. If others need this rank, it ends with their verdict.

        In MPI_Finalize, where it would wait for them anyway, nothing could tell it.
        """
        self._leaving = True
        self.close()
        self._parted.wait(self.timeout)

    # --- the threads ------------------------------------------------------------------------------

    def _report(self) -> None:
        while not self._stopped.is_set():
            if self._news.wait(self._interval):
                self._stopped.wait(self._gap)
                self._news.clear()
            try:
                self.check()
                self._forget_finished()
            except Exception as error:  # the other ranks would wait for this one for ever
                self._tell_place()
                self._send(raised=in_one_line(error))
                return
            self._tell_place()
            with self._lock:
                oldest = self._tickets[0] if self._tickets else None
            if oldest is not None:
                self._complain_of(oldest)

    def _forget_finished(self) -> None:
        """Gives back the tickets of collectives that a GPU has done; raises what it raises."""
        with self._lock:
            self._tickets = [t for t in self._tickets if t.done is None or not t.done()]

    def _complain_of(self, oldest: Ticket) -> None:
        """Tells the witness that a collective takes too long; without an answer, ends."""
        now = time.monotonic()
        if now - oldest.since <= self.timeout:
            return
        number, since = self._complaint
        if number != oldest.number:
            self._complaint = oldest.number, now
            self._send(waited=oldest.number)
        elif now - since > NO_ANSWER * (1 + self._interval):
            self.stop(
                f"it has been in collective {oldest.number} ({oldest.name}) for more than "
                f"{self.timeout:g} seconds, and nothing is heard from rank 0's machine, where the "
                "ranks are watched"
            )

    def _listen(self) -> None:
        try:
            received = _first_line(self._connection)
        except OSError:
            received = b""
        if self._closing and not (self._leaving and received):
            self._connection.close()
            self._parted.set()
        elif received:
            self.stop(str(json.loads(received)["stop"]))
        else:
            self.stop("the connection to rank 0's machine, where the ranks are watched, is lost")

    def stop(self, sentence: str) -> None:
        """Print why, and end this process: the other ranks are told, or gone."""
        self._closing = True

        def part() -> None:
            witness.say(f"tinytensor.distributed: rank {self.rank} stops: {sentence}")
            self._connection.close()
            self._part()

        in_limited_time(part)
        time.sleep(LAST_WORDS)
        os._exit(EXIT_CODE)

    def _part(self) -> None:
        """What this process has written goes out, and what it has on a GPU comes to an end."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                continue
        self.abort()

    # --- messages ---------------------------------------------------------------------------------

    def _tell_place(self) -> None:
        with self._lock:
            oldest = self._tickets[0] if self._tickets else None
            number = oldest.number if oldest else self.entered
            name = oldest.name if oldest else self._last_name
        self._send(entered=number, name=name, inside=oldest is not None)

    def _send(self, **content: object) -> None:
        try:
            with self._sending:
                self._connection.sendall(message(**content))
        except OSError:
            return  # the listening thread has seen it, or will

    def _raised(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """An exception that nobody caught ends this rank, and so all of them.

        The interpreter would now wait in MPI_Finalize for ranks that wait for this one.
        """
        if not self._closing:  # else it is only what comes of being stopped
            self._excepthook(kind, error, trace)
            self._tell_place()
            self._send(raised=in_one_line(error))
            self._closing = True
        in_limited_time(self._part)
        # The witness hangs up after its sentence, or the launcher is quicker.
        time.sleep(witness.REST + witness.SETTLE + LAST_WORDS)
        os._exit(EXIT_CODE)


def in_one_line(error: BaseException) -> str:
    """ValueError: no; or KeyboardInterrupt, of one without words."""
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")


def in_limited_time(task: Callable[[], None]) -> None:
    """`task`, or as much of it as is done after a while."""
    worker = threading.Thread(target=task, name="tinytensor-parting", daemon=True)
    worker.start()
    worker.join(PARTING)
