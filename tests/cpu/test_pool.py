"""The pool hands a block out again when, and only when, nobody refers to it any more."""

from __future__ import annotations

import numpy as np

from tinytensor.cpu.pool import SMALLEST, Pool, _size_class

N = SMALLEST  # float32 numbers: four times the smallest pooled size


def address(array):
    return array.__array_interface__["data"][0]


def test_a_block_comes_back_when_its_last_view_dies():
    pool = Pool()
    a = pool.empty((N,))
    where = address(a)
    view = a[5:].reshape(-1, 1).T
    del a
    assert pool.idle_bytes() == 0
    b = pool.empty((N,))
    assert not np.shares_memory(view, b)
    del view
    assert pool.idle_bytes() == _size_class(4 * N)
    assert address(pool.empty((N,))) == where


def test_near_sizes_share_blocks_and_far_ones_do_not():
    pool = Pool()
    where = address(pool.empty((N,)))
    assert address(pool.empty((N - 100,))) == where
    pool.empty((10 * N,))
    assert pool.total_bytes() == _size_class(4 * N) + _size_class(40 * N)


def test_trim_gives_back_idle_blocks_only():
    pool = Pool()
    a, b = pool.empty((N,)), pool.empty((N,))
    del a
    pool.trim()
    assert pool.total_bytes() == _size_class(4 * N)
    b[:] = 1
    del b
    pool.trim()
    assert pool.total_bytes() == 0


def test_small_arrays_are_not_pooled():
    pool = Pool()
    pool.empty((3, 5), np.float64)
    assert pool.total_bytes() == 0


def test_a_size_class_wastes_at_most_an_eighth():
    for nbytes in [SMALLEST, SMALLEST + 1, 1_000_003, 123_456_789]:
        assert nbytes <= _size_class(nbytes) <= nbytes * 9 / 8 + 1
