"""Something that holds a library, in a process of its own: what answers, and the end that asks.

The processes are spawned and wait on a pipe between requests. NumPy's OpenBLAS reads
OPENBLAS_CORETYPE when it is loaded, so that the variable can be unset in one process and set in
another.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from typing import Any

# Only a program that uses NumPy reads this variable: it chooses among OpenBLAS's kernels.
VARIABLE, KERNELS = "OPENBLAS_CORETYPE", "Haswell"


def serve(connection: Any, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Calls methods of `make(*arguments)` as they are asked for, until the other end is closed."""
    server: Any = None
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            request, *values = connection.recv()
            try:
                server = server or make(*arguments)
                connection.send((True, getattr(server, request)(*values)))
            except MemoryError:
                connection.send((False, "memory ran out (--engines takes fewer at a time)"))
            except Exception:
                connection.send((False, traceback.format_exc()))


class Client:
    """The parent's end of a process; called with a method's name and values; `with` closes it."""

    def __init__(
        self,
        name: str,
        make: Callable[..., Any],
        *arguments: Any,
        kernels: str | None = None,
    ) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, make, arguments))
        with environment(kernels):
            self.process.start()
        theirs.close()

    def __call__(self, request: str, *arguments: Any) -> Any:
        try:
            self.connection.send((request, *arguments))
            good, answer = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            raise SystemExit(
                f"{self.name}: the process ended with code {self.process.exitcode} during "
                f"{request!r}; -9 is what the system does when memory runs out (--engines takes "
                "fewer at a time)"
            ) from None
        if not good:
            raise SystemExit(f"{self.name} failed at {request!r}: {answer}")
        return answer

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.connection.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.terminate()


@contextlib.contextmanager
def environment(kernels: str | None) -> Iterator[None]:
    """The environment that a process starts with: BLAS libraries read it once, when loaded."""
    before = os.environ.pop(VARIABLE, None)
    if kernels:
        os.environ[VARIABLE] = kernels
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def set_threads(threads: int | None) -> None:
    """For the processes that are started from now on."""
    if threads:
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"):
            os.environ[name] = str(threads)  # NPROC is what JAX's thread pool goes by
