"""Numbers that are too large become inf, and what has no value nan: without a word, as in PyTorch.

NumPy would warn, of some operations and on some paths. Warnings are errors in these tests. Who
wants to know where the first such number came from asks `tinytensor.inspect`.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import tinytensor as tt
from tests.table import CASES, tensor_of
from tinytensor import nn, optim
from tinytensor.nn import functional as F

HUGE = 3e38


def extremes(dtype):
    """Ways to make an array's numbers extreme, by name."""
    largest, smallest = np.finfo(dtype).max * 0.9, np.finfo(dtype).tiny
    return {
        "huge": lambda x: np.copysign(largest, x),
        "tiny": lambda x: np.copysign(smallest, x),
        "some inf": lambda x: np.where(x > 0, np.inf, x),
        "some -inf": lambda x: np.where(x > 0, -np.inf, x),
        "inf": lambda x: np.full_like(x, np.inf),
        "some nan": lambda x: np.where(x > 0, np.nan, x),
        "zero": np.zeros_like,
    }


@pytest.mark.parametrize("path", ["fast", "reference"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_no_operation_warns(case, dtype, path):
    for change in extremes(dtype).values():
        inputs = [
            tensor_of(change(x).astype(dtype) if x is not None and x.dtype == dtype else x)
            for x in case.arrays(dtype)
        ]
        with tt.reference_ops() if path == "reference" else contextlib.nullcontext():
            y = case.function(*inputs)
            if y.requires_grad:
                y.backward(tt.ones_like(y))


def huge(*shape):
    return tt.full(shape, HUGE, requires_grad=True)


def step(optimizer, **options):
    weight = huge(4)
    weight.grad = -weight.detach()
    taken = optimizer([weight], weight_decay=2.0, **options)
    taken.step()
    taken.step()
    return weight.detach()


def clipped():
    weight = huge(4)
    weight.grad = weight.detach()
    return nn.utils.clip_grad_norm_([weight], 1.0)


def on_two_threads():
    """Pieces large enough for the workers, forward and backward."""
    threads = tt.get_num_threads()
    tt.set_num_threads(2)
    try:
        x, weight = huge(2000, 300), huge(400, 300)
        F.gelu(F.linear(x, weight), approximate="tanh").sum().backward()
        return weight.grad
    finally:
        tt.set_num_threads(threads)


# What is no operation; each makes numbers none of which is finite.
OTHERS = {
    "tensor of a list": lambda: tt.tensor([1e300]),
    "Tensor of a list": lambda: tt.Tensor([1e300]),
    "full": lambda: tt.full((2,), 1e300),
    "full of half": lambda: tt.full((2,), 1e30, dtype=tt.float16),
    "a narrower dtype": lambda: tt.tensor([1e300], dtype=tt.float64).float(),
    "arange": lambda: tt.arange(9e299, 1e300, 1e299),
    "normal": lambda: tt.normal(HUGE, HUGE, (1000,)).max(),
    "uniform": lambda: tt.empty(10).uniform_(1e300, 2e300),
    "fill_": lambda: tt.zeros(2).fill_(1e300),
    "copy_": lambda: tt.zeros(1).copy_(tt.tensor([1e300], dtype=tt.float64)),
    "mul_": lambda: huge(2).detach().mul_(HUGE),
    "clip_grad_norm_": clipped,
    "SGD": lambda: step(optim.SGD, lr=10.0, momentum=0.9, nesterov=True),
    "Adam": lambda: step(optim.Adam, lr=1e30),
    "AdamW": lambda: step(optim.AdamW, lr=1e30),
    "workers": on_two_threads,
}


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_else_warns(name):
    assert not tt.isfinite(OTHERS[name]()).any()


def test_comparing_does_not_warn():
    assert not tt.allclose(huge(2), -huge(2))


def test_numpy_outside_of_the_engine_warns_as_before():
    x = np.full(3, HUGE, np.float32)
    for use in (lambda: tt.from_numpy(x) * 10, lambda: tt.tensor([1e300]), clipped):
        use()
        with pytest.warns(RuntimeWarning, match="overflow"):
            x * x
    with pytest.raises(ValueError, match="broadcast"):
        tt.from_numpy(x) + tt.ones(2)
    with pytest.warns(RuntimeWarning, match="overflow"):
        x * x
