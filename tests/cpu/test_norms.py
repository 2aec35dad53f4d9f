"""The CPU's layer norms: with a sum they give the bits that a sum and a norm give."""

from __future__ import annotations

import numpy as np
import pytest

import tinytensor as tt
from tinytensor import ops
from tinytensor.testing import check_implementations

SHAPES = [(1, 64), (1, 1, 3), (5, 7), (3, 4, 8), (700, 384)]  # the last in several pieces


def given(shape, dtype=np.float32):
    rng = np.random.default_rng(shape)
    sizes = (shape, shape, shape[-1:], shape[-1:])
    return [tt.tensor(rng.normal(size=s).astype(dtype), requires_grad=True) for s in sizes]


def apart(x, residual, weight, bias):
    total = x + residual
    return total, ops.layer_norm(total, weight, bias)


@pytest.mark.parametrize("used", ["both", "the sum", "its norm"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bit_for_bit(shape, affine, used):
    results = []
    for function in (ops.add_layer_norm, apart):
        x, residual, weight, bias = given(shape)
        scale = (weight, bias) if affine else (None, None)
        with tt.no_grad():
            results.append([y.numpy() for y in function(x, residual, *scale)])
        total, normed = function(x, residual, *scale)
        results[-1] += [total.detach().numpy(), normed.detach().numpy()]
        rng = np.random.default_rng(1)
        dsum, dnormed = (tt.from_numpy(rng.normal(size=shape).astype(np.float32)) for _ in "ab")
        loss = {
            "both": lambda: (total * dsum).sum() + (normed * dnormed).sum(),  # noqa: B023
            "the sum": lambda: (total * dsum).sum(),  # noqa: B023
            "its norm": lambda: (normed * dnormed).sum(),  # noqa: B023
        }[used]()
        loss.backward()
        leaves = (x, residual, weight, bias)
        results[-1] += [leaf.grad.numpy() for leaf in leaves if leaf.grad is not None]
    assert len(results[0]) == 4 + (4 if affine and used != "the sum" else 2)
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, r, w, b: (x, r[0], w, b),
        lambda x, r, w, b: (x, r.double(), w, b),
        lambda x, r, w, b: (x.transpose(0, 1), r.transpose(0, 1), w, b),
    ],
    ids=["broadcast", "of another dtype", "transposed"],
)
def test_other_inputs_agree_with_the_reference(change):
    assert check_implementations(ops.add_layer_norm, list(change(*given((3, 4, 8)))))
