"""Long chains of elementwise passes, cut into pieces that stay in cache from one pass to the next.

Two threads that call NumPy take turns with the interpreter's lock, at every call. Short calls then
cost more than they compute: with pieces of 2^16 numbers, two threads are no faster than one. So
one thread works in pieces that fit its cache, and several in pieces long enough for the lock not
to matter.
"""

from __future__ import annotations

from collections.abc import Callable

from .threads import split

PIECE = 1 << 17  # numbers in a piece of one thread: 512 KB of float32
WIDE = 1 << 18  # numbers in a piece where several threads work
LONG = 1 << 19  # numbers that are worth another thread, for a few passes


def in_pieces(count: int, width: int, work: Callable[[int, int], None], worth: int = LONG) -> None:
    """work(start, stop) for pieces of range(count), rows of `width` numbers; in any order.

    `worth` is how many numbers are worth another thread.
    """
    if count * width <= min(PIECE, worth):
        work(0, count)
        return

    def part(start: int, stop: int) -> None:
        numbers = PIECE if stop - start == count else WIDE
        step = max(1, numbers // width)
        for i in range(start, stop, step):
            work(i, min(i + step, stop))

    split(count, -(-worth // width), part)
