"""Large arrays that are used again: `empty(shape, dtype)` without page faults.

A fresh large array is fresh memory from the operating system, and touching it for the first time
costs about as much as the arithmetic that fills it. A training step asks for the same sizes over
and over, so this pool keeps its blocks: a block is free again when nothing but the pool refers to
it. NumPy makes every view refer to the block itself, so that is one look at a reference count; no
finalizer is needed.
"""

from __future__ import annotations

import functools
import math
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

# Smaller arrays come from the C heap, which keeps its memory by itself.
SMALLEST = 64 * 1024
# Beyond this many bytes, blocks that nobody uses are given back, least recently used size first.
IDLE_LIMIT = 4 << 30
# References to a block that nobody uses, as sys.getrefcount sees it inside a method: the list, the
# loop variable, and the argument itself.
_IDLE_REFERENCES = 3


class Pool(threading.local):
    """Blocks by size, one pool for each thread."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, list[np.ndarray[Any, Any]]] = OrderedDict()
        self._bytes = 0
        self._trim_above = IDLE_LIMIT

    def empty(self, shape: Sequence[int], dtype: Any = np.float32) -> np.ndarray[Any, Any]:
        """An uninitialised C-contiguous array."""
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < SMALLEST:
            return np.empty(shape, dtype)
        size = _size_class(nbytes)
        blocks = self._blocks.get(size)
        if blocks is None:
            blocks = self._blocks[size] = []
        self._blocks.move_to_end(size)
        for block in blocks:
            if sys.getrefcount(block) == _IDLE_REFERENCES:
                return np.ndarray(shape, dtype, block)
        return np.ndarray(shape, dtype, self._new_block(size, blocks))

    def _new_block(self, size: int, blocks: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        if self._bytes + size > self._trim_above:
            self.trim(IDLE_LIMIT // 2)
        block = np.empty(size, np.uint8)
        blocks.append(block)
        self._bytes += size
        return block

    def trim(self, idle_bytes: int = 0) -> None:
        """Give idle blocks back to the system until at most `idle_bytes` of them are left."""
        idle = self.idle_bytes()
        for size, blocks in self._blocks.items():
            kept = []
            for block in blocks:
                if sys.getrefcount(block) == _IDLE_REFERENCES and idle > idle_bytes:
                    idle -= size
                    self._bytes -= size
                else:
                    kept.append(block)
            blocks[:] = kept
        # Blocks in use do not count against the limit.
        self._trim_above = self._bytes - idle + IDLE_LIMIT

    def idle_bytes(self) -> int:
        """Bytes in blocks that nobody uses at the moment."""
        idle = 0
        for size, blocks in self._blocks.items():
            for block in blocks:
                if sys.getrefcount(block) == _IDLE_REFERENCES:
                    idle += size
        return idle

    def total_bytes(self) -> int:
        """Bytes in all blocks, in use or not."""
        return self._bytes


@functools.lru_cache(maxsize=1024)
def _size_class(nbytes: int) -> int:
    """`nbytes` rounded up to one of eight steps between powers of two, so that near sizes share
    blocks.
    """
    step = 1 << max(12, nbytes.bit_length() - 4)
    return -(-nbytes // step) * step


pool = Pool()
empty = pool.empty
