"""The registered operations on "cuda-sim": the kernels run, and agree with the references."""

from __future__ import annotations

import numpy as np
import pytest

import tinytensor as tt
from tests.cuda.kernel_cases import close, normal, wide
from tinytensor import ops
from tinytensor.cuda import layers  # registers them
from tinytensor.cuda.device import SimArray, host_copies, sim
from tinytensor.optim.adamw import adamw_update
from tinytensor.random import Draw

pytestmark = pytest.mark.compiler

X, W, B = normal(0, 6, 20), normal(1, 20), normal(2, 20)
TABLE, IDS = normal(3, 9, 20), np.array([[0, 8, 3], [3, 3, 1]])
TARGET = np.array([0, 4, 19, -100, 7, 7])
DRAW = Draw(5, 6)

# Operation, inputs, options; and how many of the inputs have a gradient.
CASES = [
    (ops.softmax, (X,), {}, 1),
    (ops.log_softmax, (X,), {}, 1),
    (ops.layer_norm, (X, W, B), {"eps": 1e-3}, 3),
    (ops.layer_norm, (X, None, None), {}, 1),
    (ops.gelu, (X,), {}, 1),
    (ops.gelu, (X,), {"approximate": "tanh"}, 1),
    (ops.dropout, (X,), {"p": 0.3, "draw": DRAW}, 1),
    (ops.embedding, (TABLE, IDS), {}, 1),
    (ops.embedding, (TABLE, IDS), {"padding_idx": 3}, 1),
    *[
        (
            ops.cross_entropy,
            (X, TARGET, None),
            {"reduction": reduction, "label_smoothing": smoothing},
            1,
        )
        for reduction in ("mean", "sum", "none")
        for smoothing in (0.0, 0.2)
    ],
    (ops.cross_entropy, (X, TARGET, np.abs(W)), {}, 1),
    (
        ops.linear_cross_entropy,
        (X, normal(4, 30, 20), normal(5, 30), TARGET, None),
        {"block": 4},
        3,
    ),
    (
        ops.linear_cross_entropy,
        (X, normal(4, 30, 20), None, TARGET, None),
        {"reduction": "none"},
        2,
    ),
]


def on_sim(x):
    return sim.asarray(x) if isinstance(x, np.ndarray) else x


def dense(gradient):
    return gradient.dense() if hasattr(gradient, "dense") else gradient


def gradients(vjp, dy, number):
    if isinstance(vjp, tuple):
        return [dense(vjp[i](dy)) for i in range(number)]
    found = vjp(dy)
    return [dense(g) for g in (found if isinstance(found, tuple) else (found,))[:number]]


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), tt.bfloat16], ids=["float", "bf16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__} {case[2]}")
def test_kernels_agree_with_the_reference(case, dtype):
    operation, inputs, options, number = case
    inputs = [
        x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in inputs
    ]
    exact = [wide(x) if isinstance(x, np.ndarray) and x.dtype == dtype else x for x in inputs]
    expected, reference_vjp = operation.reference(*exact, **options)
    before = host_copies()
    y, vjp = operation.implementations[SimArray](*map(on_sim, inputs), **options)
    dy = normal(9, *y.shape, dtype=dtype)
    ours = gradients(vjp, on_sim(dy), number)
    assert host_copies() == before
    assert y.dtype == dtype
    # bfloat16: what backward passes read (softmax's y, dlogits) was rounded to 2⁻⁸ of itself.
    slack = 4.0 if dtype == np.float32 else 4.0 * 2**-8 / 2**-18
    close(y.host, expected, 16)
    for got, wanted in zip(ours, gradients(reference_vjp, wide(dy), number), strict=True):
        wanted = wanted.sum(tuple(range(wanted.ndim - got.ndim)))  # as the engine un-broadcasts
        close(got.host, wanted, 16, scale=slack)


@pytest.mark.parametrize(
    ("operation", "inputs", "options"),
    [
        (ops.softmax, (X,), {"axis": 0}),
        (ops.layer_norm, (X, W, B), {"ndim": 2}),
        (ops.layer_norm, (X, W[:3], None), {}),
        (ops.dropout, (X,), {"p": 1.0}),
        (ops.embedding, (TABLE, IDS.astype(np.int32)), {}),
        (ops.cross_entropy, (X, TARGET, W), {"label_smoothing": 0.1}),
        (ops.softmax, (X.astype(np.float64),), {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_no_kernel_takes_is_declined(operation, inputs, options):
    found = operation.implementations[SimArray](*map(on_sim, inputs), **options)
    assert found is NotImplemented


def test_the_gradient_of_a_table_adds_itself():
    dy = normal(0, 2, 3, 20)
    gradient = layers.EmbeddingGradient(on_sim(dy), on_sim(IDS), TABLE.shape, None)
    buffer = sim.asarray(TABLE)
    gradient.add_to(buffer)
    close(buffer.host, wide(TABLE) + wide(gradient.dense().host), 4)
    gradient.write_to(buffer)
    np.testing.assert_array_equal(buffer.host, gradient.dense().host)


def test_adamw_on_the_device_is_the_cpus_bit_for_bit():
    options = {"step": 3, "lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    arrays = [normal(0, 50), normal(1, 50), normal(2, 50), np.abs(normal(3, 50))]
    moved = [sim.asarray(a) for a in arrays]
    before = host_copies()
    adamw_update(*moved, sim.empty(50, np.float32), **options)
    assert host_copies() == before
    adamw_update(*arrays, np.empty(50, np.float32), **options)
    for ours, theirs in zip(moved, arrays, strict=True):
        np.testing.assert_array_equal(ours.host, theirs)
