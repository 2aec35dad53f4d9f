"""The gradient of a table's rows: each of the ways to add up equal ids, against np.add.at."""

from __future__ import annotations

import numpy as np
import pytest

from tinytensor.cpu import linear


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({"FEW_ROWS": 1 << 16}, id="every row by a product"),
        pytest.param({"FEW_ROWS": 0, "FEW_EQUAL": 1 << 21}, id="the distinct ones by a product"),
        pytest.param({"FEW_ROWS": 0, "FEW_EQUAL": 0}, id="by sorting"),
    ],
)
@pytest.mark.parametrize("count", [1, 40, 900])
def test_rows_of_equal_ids_are_added_up(limits, count, monkeypatch):
    for name, value in limits.items():
        monkeypatch.setattr(linear, name, value)
    rng = np.random.default_rng(count)
    ids, dy = rng.integers(0, 20, count), rng.standard_normal((count, 6)).astype(np.float32)
    before = rng.standard_normal((30, 6)).astype(np.float32)
    expected, written, added = (
        np.zeros((30, 6)),
        np.full((30, 6), np.nan, np.float32),
        before.copy(),
    )
    np.add.at(expected, ids, dy)
    gradient = linear.RowsGradient(ids, dy, (30, 6))
    gradient.write_to(written)
    gradient.add_to(added)
    tolerance = count * float(np.finfo(np.float32).eps)
    np.testing.assert_allclose(written, expected, rtol=tolerance, atol=8 * tolerance)
    np.testing.assert_allclose(added, before + expected, rtol=tolerance, atol=8 * tolerance)
