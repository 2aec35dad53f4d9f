"""`axpby`: BLAS's function, and NumPy's passes where there is none, against the formula."""

from __future__ import annotations

import numpy as np
import pytest

from tinytensor.cpu import blas


@pytest.fixture(params=["by BLAS", "by NumPy"])
def either_way(request, monkeypatch):
    if request.param == "by NumPy":
        monkeypatch.setattr(blas, "_axpby", {})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 33, 20_000])
@pytest.mark.parametrize("step", [1, 2])  # from one number of an array to the next
def test_it_is_the_formula(either_way, dtype, size, step):
    x, y = np.random.default_rng(size).standard_normal((2, step * size)).astype(dtype)[:, ::step]
    kept, expected = x.copy(), 0.3 * x - 1.7 * y
    blas.axpby(0.3, x, -1.7, y)
    tolerance = 8 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(x, kept)


def test_pieces_give_the_bits_of_the_whole(either_way):
    """Wherever threads, or processes, divide an array."""
    rng = np.random.default_rng(0)
    x, whole = rng.standard_normal((2, 1003)).astype(np.float32)
    pieces = whole.copy()
    for start, stop in [(0, 5), (5, 22), (22, 500), (500, 501), (501, 1003)]:
        blas.axpby(0.1, x[start:stop], 0.9, pieces[start:stop])
    blas.axpby(0.1, x, 0.9, whole)
    np.testing.assert_array_equal(pieces, whole)


def test_a_read_only_array_is_refused_by_numpy_and_not_written(either_way):
    y = np.ones(3)
    y.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        blas.axpby(1.0, np.ones(3), 1.0, y)
    assert (y == 1).all()
