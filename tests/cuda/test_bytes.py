"""What the kernels that are bound by memory move, counted in the simulator, is what their headers
say: each array once, in whole sectors.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda.kernel_cases import FLOAT32, normal
from tinytensor.backend import bfloat16
from tinytensor.cuda import elementwise, entropy, network, optimizer
from tinytensor.cuda.attention import Attention, forward
from tinytensor.cuda.counters import SECTOR, counting
from tinytensor.cuda.matmul import product
from tinytensor.cuda.tiles import TURNS, WIDE
from tinytensor.random import Draw

pytestmark = pytest.mark.compiler

C, V = 1024, 16_384  # columns of a row that is held in registers, and of one that is not


def moved(run, kernel):
    """Bytes that one launch of `kernel` in `run()` moves, as whole sectors."""
    with counting(blocks=8, room=12_000_000) as launches:
        run()
    (found,) = [launch for launch in launches if launch.name == kernel]
    return found.per_launch(found.sectors) * SECTOR


def rows(dtype, count=16, columns=C, seed=0):
    return normal(seed, count, columns, dtype=dtype)


def softmax(dtype):
    x = rows(dtype)
    return lambda: network.softmax(x), "softmax_forward", 2 * x.nbytes


def softmax_backward(dtype):
    x, dy = rows(dtype), rows(dtype, seed=1)
    return lambda: network.softmax_backward(dy, x), "softmax_backward", 3 * x.nbytes


def softmax_of_wide_rows(dtype):  # which shared memory holds
    x = rows(dtype, 2, V)
    return lambda: network.softmax(x), "softmax_forward", 2 * x.nbytes


def softmax_of_wide_rows_backward(dtype):
    x, dy = rows(dtype, 2, V), rows(dtype, 2, V, seed=1)
    return lambda: network.softmax_backward(dy, x), "softmax_backward", 3 * x.nbytes


def softmax_of_rows_too_wide(dtype):  # for shared memory: read once more, from the L2 cache
    x = rows(dtype, 1, 2**18 // dtype.itemsize)
    return lambda: network.softmax(x), "softmax_forward", 3 * x.nbytes


def layer_norm(dtype):  # every row reads weight and bias, from the L1 cache
    x, weight, bias = rows(dtype), *(normal(i, C, dtype=dtype) for i in (1, 2))
    return lambda: network.layer_norm(x, weight, bias), "layer_norm_forward", 4 * x.nbytes


def layer_norm_with_residual(dtype):
    x, residual = rows(dtype), rows(dtype, seed=1)
    weight, bias = (normal(i, C, dtype=dtype) for i in (2, 3))
    run = lambda: network.layer_norm(x, weight, bias, residual=residual)  # noqa: E731
    return run, "layer_norm_forward", 6 * x.nbytes


def layer_norm_backward(dtype):  # of a norm without weight, whose shares of gradients are not kept
    x, dy = rows(dtype), rows(dtype, seed=1)
    saved = network.layer_norm(x)
    run = lambda: network.layer_norm_backward(dy, saved, dweight=False, dbias=False)  # noqa: E731
    return run, "layer_norm_backward", 3 * x.nbytes


def targets(count):
    return np.arange(count, dtype=np.int64) * 7


def cross_entropy(dtype):
    x = rows(dtype, 4, V)
    return lambda: entropy.cross_entropy(x, targets(4)), "cross_entropy", x.nbytes


def cross_entropy_and_gradient(dtype):
    x = rows(dtype, 4, V)
    run = lambda: entropy.cross_entropy(x, targets(4), gradient=x)  # noqa: E731
    return run, "cross_entropy", 2 * x.nbytes


def cross_entropy_gradient(dtype):
    x = rows(dtype, 4, V)
    _, totals = entropy.cross_entropy(x, targets(4))
    scale, out = np.ones(1, np.float32), np.empty_like(x)
    run = lambda: entropy.cross_entropy_gradient(  # noqa: E731
        x, totals, targets(4), scale=scale, out=out
    )
    return run, "cross_entropy_gradient", 2 * x.nbytes


def linear_cross_entropy_part(dtype):
    x = rows(dtype, 4, V)
    state = tuple(np.zeros(4, np.float32) for _ in range(3))
    run = lambda: entropy.linear_cross_entropy_part(state, x, targets(4), 0)  # noqa: E731
    return run, "linear_cross_entropy_part", x.nbytes


def gelu(dtype):
    x = rows(dtype)
    return lambda: elementwise.gelu(x, approximate="tanh"), "gelu_forward", 2 * x.nbytes


def gelu_backward(dtype):
    x, dy = rows(dtype), rows(dtype, seed=1)
    return lambda: elementwise.gelu_backward(dy, x, None, "tanh"), "gelu_backward", 3 * x.nbytes


def dropout(dtype):
    x = rows(bfloat16)  # of float32 a thread has 32 bytes, for the sake of the random numbers
    return lambda: elementwise.dropout(x, 0.1, Draw(1, 0)), "dropout", 2 * x.nbytes


def bias_gradient(dtype):
    x = rows(dtype, 64)
    return lambda: network.column_sum(x), "column_sum", x.nbytes


def embedding(dtype):
    weight, ids = rows(dtype, 50), targets(64) % 50
    return lambda: network.embedding(weight, ids), "embedding_forward", 2 * 64 * C * dtype.itemsize


def embedding_backward(dtype):  # of ids that differ: dweight is as large as dy
    dy, ids = rows(dtype, 64), targets(64)[::-1].copy()
    run = lambda: network.embedding_backward(dy, ids, 450)  # noqa: E731
    warps = (
        C * dtype.itemsize // 512
    )  # of a row; each reads two ids, but for the last, and a position
    return run, "embedding_backward", 2 * dy.nbytes + (64 * 3 - 1) * warps * SECTOR


def norm(dtype):
    x = rows(dtype, 64)
    return lambda: optimizer.global_norm([x]), "sum_of_squares", x.nbytes


CASES = [
    *(softmax, softmax_backward, softmax_of_wide_rows, softmax_of_wide_rows_backward),
    softmax_of_rows_too_wide,
    *(layer_norm, layer_norm_with_residual, layer_norm_backward),
    *(cross_entropy, cross_entropy_and_gradient, cross_entropy_gradient),
    *(linear_cross_entropy_part, gelu, gelu_backward, dropout, bias_gradient),
    *(embedding, embedding_backward, norm),
]


@pytest.mark.parametrize("dtype", [FLOAT32, bfloat16], ids=["float", "bf16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_each_array_moves_once(case, dtype):
    run, kernel, ideal = case(dtype)
    assert ideal <= moved(run, kernel) <= 1.06 * ideal


@pytest.mark.parametrize(
    ("real", "gradient", "master", "bytes_of_element"),
    [
        (FLOAT32, FLOAT32, False, 28),
        (bfloat16, bfloat16, True, 30),
        (bfloat16, FLOAT32, True, 32),
    ],
)
def test_adamw_moves_each_array_once(real, gradient, master, bytes_of_element):
    count = 4096
    value, grad = normal(0, count, dtype=real), normal(1, count, dtype=gradient)
    m, v = normal(2, count), normal(3, count) ** 2
    kept = value.astype(np.float32) if master else None
    options = {"step": 1, "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
    factors = optimizer.factors_for(value, optimizer.adamw_factors, options)
    run = lambda: optimizer.adamw(value, grad, m, v, factors, master=kept)  # noqa: E731
    ideal = count * bytes_of_element
    assert ideal <= moved(run, "adamw") <= 1.06 * ideal + 16 * 9 * SECTOR


@pytest.mark.parametrize("dtype", [FLOAT32, bfloat16], ids=["float", "bf16"])
@pytest.mark.parametrize("tile", [WIDE, TURNS], ids=["halves", "turns"])
def test_the_product_on_hopper_writes_whole_lines(tile, dtype):
    a, b = normal(0, 128, 64, dtype=bfloat16), normal(1, 256, 64, dtype=bfloat16)
    bias = np.zeros(256, bfloat16)
    how = {"kernel": "matmul_wgmma", "tile": tile, "parts": 1, "dtype": dtype}
    read = 2 * 64 * (128 * (256 // tile.n) + 256)
    written = 128 * 256 * dtype.itemsize
    with counting() as launches:
        product(a, b.swapaxes(0, 1), **how)
    (plain,) = launches
    assert plain.per_launch(plain.sectors) * SECTOR == read + written
    assert plain.shared and not plain.conflicts
    before = np.empty((128, 256), dtype)
    run = lambda: product(  # noqa: E731
        a, b.swapaxes(0, 1), bias=bias, gelu=True, before=before, **how
    )
    biases = 128 // 16 * 256 // 8 * 4 * SECTOR  # of eight columns in 16 rows: at most four loads
    assert read + 2 * written < moved(run, "matmul_wgmma") <= read + 2 * written + biases


def test_attention_writes_whole_lines():
    q, k, v = (normal(i, 1, 1, 128, 16, dtype=bfloat16) for i in range(3))
    with counting() as launches:
        forward(q, k, v, Attention())
    lines = q.nbytes // 512  # of a store by a warp, 16 bytes a lane
    assert launches[0].stores == lines + 128 // 8  # and the log-sum-exps
