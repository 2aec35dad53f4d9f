"""Methods of tensors that are no functions: operators, views, casts, writes, questions."""

from __future__ import annotations

import numpy as np
import pytest

from tests.parity.compare import same
from tests.table import real

pytestmark = pytest.mark.parity

METHODS = {
    "operators": lambda L, x: (
        x + 1,
        1 - x,
        2 * x,
        x / 3,
        3 / (x * x + 1),
        x**2,
        2**x,
        -x,
        abs(x),
        +x,
    ),
    "integer operators": lambda L, x: (
        (x.detach() * 9).long() // 2,
        (x.detach() * 9).long() % 4,
        ~(x > 0),
        (x > 0) & (x < 1),
        (x > 0) | (x < -1),
        (x > 0) ^ (x < 1),
        ~(x.detach() * 9).long(),
    ),
    "in place": lambda L, x: [
        getattr(x.detach().clone(), name)(*arguments)
        for name, *arguments in (
            ("add_", 1.5),
            ("sub_", 1.5),
            ("mul_", 2.0),
            ("div_", 3.0),
            ("zero_",),
            ("fill_", 2.5),
            ("clamp_", -0.5, 0.5),
            ("exp_",),
            ("tanh_",),
            ("relu_",),
            ("sigmoid_",),
            ("neg_",),
            ("floor_",),
            ("ceil_",),
            ("round_",),
            ("abs_",),
            ("tril_",),
            ("triu_", 1),
            ("pow_", 2),
            ("copy_", x.detach()[0]),
            ("masked_fill_", x > 0, 1.0),
        )
    ],
    "augmented": lambda L, x: augmented(L, x),
    "setitem": lambda L, x: setitem(L, x),
    "view": lambda L, x: (
        x.view(4, 3),
        x.view(-1),
        x.view(2, -1, 3),
        x.reshape(6, 2),
        x.view_as(x),
    ),
    "expand": lambda L, x: (
        x[:, :1].expand(3, 5),
        x.expand(2, -1, -1),
        x[None].expand_as(L.zeros(2, 3, 4)),
    ),
    "repeat": lambda L, x: (x.repeat(2, 1), x.repeat(2, 1, 2)),
    "casts": lambda L, x: (
        x.float(),
        x.double(),
        x.long(),
        x.int(),
        x.short(),
        x.bool(),
        x.to(L.float32),
        x.type_as(L.zeros(1)),
        x.to(x.float()),
        x.bfloat16().float(),
        x.type(L.float32),
    ),
    "questions": lambda L, x: (
        x.dim(),
        x.ndim,
        x.ndimension(),
        x.numel(),
        x.nelement(),
        tuple(x.size()),
        x.size(1),
        x.size(-1),
        tuple(x.shape),
        len(x),
        x.is_floating_point(),
        x.is_contiguous(),
        x.t().is_contiguous(),
        x.stride(),
        x.requires_grad,
        x.element_size(),
        x.is_cuda,
        x.detach()[0, 0].item(),
        x.detach().tolist(),
        (x > 0).tolist(),
        x.long().tolist(),
        float(x.detach()[0, 0]),
        int(x.detach()[0, 0]),
        bool(x[0, 0] > 0),
        0.5 in x.detach().round(),
        x.itemsize,
        x.nbytes,
    ),
    "new": lambda L, x: (
        x.new_zeros(2, 3),
        x.new_ones((2,)),
        x.new_full((2,), 7.0),
        x.new_tensor([1.0, 2.0]),
        x.new_empty(2, 3).shape[0],
    ),
    "transposes": lambda L, x: (
        x.T,
        x.t(),
        x.mT,
        x.permute(1, 0),
        x.permute((1, 0)),
        x.transpose(-1, -2),
    ),
    "iteration": lambda L, x: [row * 2 for row in x],
    "unpacking": lambda L, x: [a - b for a, b in (x[:, :2],)[0]],
    "detach and data": lambda L, x: (x.detach() * x, x.data * x),
    "split with backward": lambda L, x: [p * i for i, p in enumerate(x.split(2, dim=1))],
    "matmul operator": lambda L, x: (x @ x.T, x[0] @ x[1], x @ x[0]),
    "comparison with None": lambda L, x: (x is None, (x == 1).sum()),
    "contiguous": lambda L, x: (x.t().contiguous().view(-1), x.clone()),
    "scatter_": lambda L, x: (
        L.zeros(3, 4, dtype=x.dtype).scatter_(1, L.tensor([[1], [0], [3]]), 1.0),
        L.zeros(3, 4, dtype=x.dtype).scatter_add_(1, L.tensor([[1], [0], [3]]), x.detach()[:, :1]),
        L.zeros(3, 4, dtype=x.dtype).index_add_(0, L.tensor([1, 1]), x.detach()[:2]),
    ),
    "functional": lambda L, x: (
        L.nn.functional.pad(x, (1, 2)),
        L.nn.functional.pad(x, (1, 0, 0, 2), value=3.0),
    ),
}


def augmented(L, x):
    y = x * 2
    y += x
    y *= 3
    y -= 1
    y /= 2
    z = x.detach().clone()
    z += 1
    z **= 2
    n = L.tensor([7, 8])
    n //= 2
    n %= 3
    return y, z, n


def setitem(L, x):
    y = x.detach().clone()
    y[0] = 1.0
    y[:, 1] = L.tensor([5.0, 6.0, 7.0], dtype=y.dtype)
    y[y > 1] = -1.0
    y[L.tensor([0, 2]), L.tensor([3, 3])] = 9.0
    y[1, ...] += 1
    y[..., -1] *= 2
    return y


@pytest.mark.parametrize("name", METHODS)
def test_methods(name):
    dtypes = (np.float64,) if name == "questions" else (np.float64, np.float32)
    same(METHODS[name], real(3, 4), dtypes=dtypes)
