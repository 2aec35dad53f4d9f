"""A rank's line to the witness: it reports where the rank is, and stops the rank when told to.

`Watch.enter` numbers a collective and returns a ticket, which is given back when it is done. A
thread reports this to the witness (`witness.py`) and looks for tickets that are out too long. When
the witness finds that the run cannot go on, the sentence is printed, `abort` is called (NCCL would
wait for ever) and the process ends: there is nobody left to compute with, and a checkpoint is
written aside and renamed, so that the last one stays whole.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from . import witness

# A rank that hurries from collective to collective reports the end of one this often, if it has not
# begun another meanwhile. Of many ranks, the witness does not hear each beginning either.
REPORT_GAP = 0.02  # seconds
MANY = 16  # ranks
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


def start_witness(size: int, timeout: float) -> int:
    """Starts the witness on this machine; answers the port that it listens at."""
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
            ],
            pass_fds=[descriptor],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=Path(witness.__file__).parent,
        )
        process.returncode = 0  # it outlives this process; nobody waits for it
        return int(listener.getsockname()[1])


class Watch:
    """The connection of rank `rank` of `size` to the witness at `address`."""

    def __init__(
        self,
        rank: int,
        size: int,
        address: tuple[str, int],
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
        self._complained = 0
        self._tickets: list[Ticket] = []
        self._last_name = ""
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._closing = False
        self._news = threading.Event()
        self._stopped = threading.Event()
        self._connection = socket.create_connection(address, timeout=30)
        self._connection.settimeout(None)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._send(rank=rank)
        for work in (self._listen, self._report):
            threading.Thread(target=work, name="tinytensor-watch", daemon=True).start()
        self._excepthook = sys.excepthook
        sys.excepthook = self._raised
        atexit.register(self.close)

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
        self._closing = True
        atexit.unregister(self.close)
        sys.excepthook = self._excepthook
        self._tell_place()
        self._send(goodbye=True)
        self._stopped.set()
        self._news.set()
        try:
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:
            return

    # --- the threads ------------------------------------------------------------------------------

    def _report(self) -> None:
        while not self._stopped.is_set():
            if self._news.wait(self._interval):
                self._stopped.wait(self._gap)
                self._news.clear()
            with self._lock:
                self._tickets = [t for t in self._tickets if t.done is None or not t.done()]
                oldest = self._tickets[0] if self._tickets else None
            self._tell_place()
            try:
                self.check()
            except Exception as error:  # the other ranks would wait for this one for ever
                self._send(raised=f"{type(error).__name__}: {error}".splitlines()[0])
                return
            late = oldest is not None and time.monotonic() - oldest.since > self.timeout
            if oldest is not None and late and oldest.number != self._complained:
                self._complained = oldest.number
                self._send(waited=oldest.number)

    def _listen(self) -> None:
        received = b""
        while b"\n" not in received:
            try:
                more = self._connection.recv(1 << 16)
            except OSError:
                more = b""
            if not more:
                break
            received += more
        if self._closing:
            return
        if b"\n" in received:
            self.stop(str(json.loads(received.split(b"\n")[0])["stop"]))
        else:
            self.stop("the connection to rank 0's machine, where the ranks are watched, is lost")

    def stop(self, sentence: str) -> None:
        """Print why, and end this process: the other ranks are told, or gone."""
        witness.say(f"tinytensor.distributed: rank {self.rank} stops: {sentence}")
        self._connection.close()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                continue
        try:
            self.abort()
        finally:
            time.sleep(LAST_WORDS)
            os._exit(EXIT_CODE)

    # --- messages ---------------------------------------------------------------------------------

    def _tell_place(self) -> None:
        with self._lock:
            oldest = self._tickets[0] if self._tickets else None
            number = oldest.number if oldest else self.entered
            name = oldest.name if oldest else self._last_name
        self._send(entered=number, name=name, inside=oldest is not None)

    def _send(self, **message: object) -> None:
        try:
            with self._sending:
                self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return  # the listening thread has seen it, or will

    def _raised(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """An exception that nobody caught ends this rank, and so all of them.

        The interpreter would now wait in MPI_Finalize for ranks that wait for this one.
        """
        self._excepthook(kind, error, trace)
        text = f"{kind.__name__}: {error}".splitlines()[0]
        self._tell_place()
        self._send(raised=text)
        self._closing = True
        try:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            self.abort()
            # The witness hangs up after its sentence, or the launcher is quicker.
            self._stopped.wait(witness.REST + witness.SETTLE + LAST_WORDS)
        finally:
            os._exit(EXIT_CODE)
