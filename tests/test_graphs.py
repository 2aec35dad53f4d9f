"""Random expression graphs: whatever operations are combined and shared, derivatives hold.

Hypothesis draws a program: a list of steps, each an operation and the numbers of the values that
it takes, out of all that came before. A value may be used many times or never. Steps whose shapes
do not fit become a tanh. The sum of everything that nobody used is differentiated by every road
there is.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor import func, ops
from tinytensor.testing import gradcheck, gradgradcheck, strategies

MASK = np.arange(60).reshape(3, 4, 5) % 3 != 0
WANTED_INDICES = np.array([1, 0, 1, 1, 0])


def mask_for(x):
    return tt.from_numpy(np.resize(MASK, x.shape))


# Smooth functions of one value. Those with a condition apply to some shapes only.
UNARY = {
    "tanh": lambda x: ops.tanh(x),
    "sine": lambda x: ops.sin(x),
    "exp": lambda x: ops.exp(x * 0.5),
    "log": lambda x: ops.log(x * x + 1.0),
    "root": lambda x: ops.sqrt(x * x + 0.5),
    "sigmoid": lambda x: ops.sigmoid(x),
    "gelu": lambda x: ops.gelu(x),
    "gelu tanh": lambda x: ops.gelu(x, approximate="tanh"),
    "silu": lambda x: ops.silu(x),
    "erf": lambda x: ops.erf(x),
    "halve": lambda x: x / 2.0,
    "cube": lambda x: x**3 * 0.3,
    "negative": lambda x: 1.0 - x,
    "mask": lambda x: ops.where(mask_for(x), x, 0.25),
    "mask fill": lambda x: ops.masked_fill(x, mask_for(x), -1.0),
    "sum": lambda x: ops.sum(x) * 0.1,
    "mean kept": lambda x: ops.mean(x, axis=0 if x.ndim else None, keepdims=True),
    "variance": lambda x: ops.var(x, axis=-1, keepdims=True),
    "logsumexp": lambda x: ops.logsumexp(x, axis=-1 if x.ndim else None, keepdims=True),
    "softmax": lambda x: ops.softmax(x),
    "log_softmax": lambda x: ops.log_softmax(x, 0),
    "layer_norm": lambda x: ops.layer_norm(x, None, None, eps=0.1),
    "cumsum": lambda x: ops.cumsum(x, 0) * 0.5,
    "transpose": lambda x: ops.transpose(x),
    "flatten": lambda x: x.reshape(-1),
    "flip": lambda x: ops.flip(x, -1),
    "roll": lambda x: ops.roll(x, 1),
    "tril": lambda x: ops.tril(x),
    "slice": lambda x: x[..., ::2],
    "first": lambda x: x[0],
    "new axis": lambda x: x[None],
    "take": lambda x: x[WANTED_INDICES % x.shape[0]],
    "dropout": lambda x: ops.dropout(x, 0.3, tt.random.Draw(1, 2)),
    "expand": lambda x: ops.broadcast_to(x, (2, *x.shape)),
    "repeat": lambda x: ops.repeat(x, 2, 0),
}
BINARY = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / (b * b + 1.0),
    "power": lambda a, b: (a * a + 1.0) ** (b * 0.3),
    "matmul": lambda a, b: a @ b,
    "matmul transposed": lambda a, b: a @ ops.swapaxes(b, -1, -2),
    "linear": lambda a, b: ops.linear(a, b, None),
    "outer": lambda a, b: ops.outer(a, b),
    "concatenate": lambda a, b: ops.concatenate([a, b, a], -1),
    "stack": lambda a, b: ops.stack([a, b], 1),
    "einsum": lambda a, b: ops.einsum("...i,...i->...", a, b),
    "attention": lambda a, b: ops.scaled_dot_product_attention(a, b, a, None, is_causal=True),
}
OPERATIONS = [(1, f) for f in UNARY.values()] + [(2, f) for f in BINARY.values()]
LEAVES = [(3, 4), (4,), (2, 1, 4), (), (3, 3)]
MOST_ELEMENTS = 200

steps = st.lists(
    st.tuples(st.integers(0, len(OPERATIONS) - 1), st.integers(0, 40), st.integers(0, 40)),
    min_size=1,
    max_size=16,
)


class Program:
    """A function of as many tensors as LEAVES has shapes, made of the drawn steps."""

    def __init__(self, drawn, seed):
        rng = np.random.default_rng(seed)
        self.leaves = [rng.normal(size=shape) for shape in LEAVES]
        self.steps = []
        values = [tt.from_numpy(x) for x in self.leaves]
        used = set()
        for number, *operands in drawn:
            arity, function = OPERATIONS[number]
            # Counted from the end: recent values are used more, and programs get deep.
            chosen = [(len(values) - 1 - k) % len(values) for k in operands[:arity]]
            try:
                value = function(*(values[i] for i in chosen))
            except (ValueError, IndexError):
                value = None
            if value is None or not 0 < value.numel() <= MOST_ELEMENTS or value.ndim > 4:
                function, chosen = ops.tanh, chosen[:1]
                value = function(values[chosen[0]])
            # Values stay of the size of 1, so that no program grows out of all bounds.
            scale = 1 / max(1.0, float(np.abs(value.numpy()).max()) / 2)
            self.steps.append((function, chosen, scale))
            values.append(value * scale)
            used.update(chosen)
        self.results = [i for i in range(len(values)) if i not in used]
        self.weights = [tt.from_numpy(rng.normal(size=values[i].shape)) for i in self.results]
        self.__name__ = "program"

    def __call__(self, *leaves):
        values = list(leaves)
        for function, chosen, scale in self.steps:
            values.append(function(*(values[i] for i in chosen)) * scale)
        total = 0.0
        for i, weights in zip(self.results, self.weights, strict=True):
            total = total + (values[i] * weights).sum()
        return total

    def tensors(self):
        return [tt.tensor(x, requires_grad=True) for x in self.leaves]

    def constants(self):
        return tuple(tt.tensor(x) for x in self.leaves)


programs = st.builds(Program, steps, strategies.seeds())


def close(got, expected):
    scale = max((np.abs(e.numpy()).max(initial=0) for e in expected), default=0)
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g.detach().numpy(), e.numpy(), rtol=1e-9, atol=1e-11 * scale)


@settings(max_examples=150)
@given(programs)
def test_gradients_of_random_graphs(program):
    assert gradcheck(program, program.tensors(), directions=1, rtol=1e-6)


@settings(max_examples=60)
@given(programs)
def test_every_road_gives_the_same_gradient(program):
    leaves = program.tensors()
    y = program(*leaves)
    by_grad = tt.autograd.grad(y, leaves, retain_graph=True, allow_unused=True)
    by_grad = [tt.zeros_like(x) if g is None else g for x, g in zip(leaves, by_grad, strict=True)]
    y.backward()
    close([tt.zeros_like(x) if x.grad is None else x.grad for x in leaves], by_grad)
    everything = tuple(range(len(leaves)))
    value, by_transform = func.value_and_grad(program, everything)(*program.constants())
    assert value.item() == pytest.approx(y.item(), rel=1e-12, abs=1e-12)
    close(by_transform, by_grad)
    with tt.reference_ops():
        plain = [x.detach().requires_grad_() for x in leaves]
        program(*plain).backward()
        close([tt.zeros_like(x) if x.grad is None else x.grad for x in plain], by_grad)
        close(func.grad(program, everything)(*program.constants()), by_grad)


@settings(max_examples=40)
@given(programs)
def test_second_derivatives_of_random_graphs(program):
    assert gradgradcheck(program, program.tensors(), directions=1, rtol=1e-6)


@settings(max_examples=30)
@given(programs, strategies.seeds())
def test_products_of_random_graphs(program, seed):
    """J·v is gradient · v; v·(H·w) = w·(H·v); H·v by hvp is H·v by jvp of the gradient."""
    rng = np.random.default_rng(seed)
    x = program.constants()
    v, w = (tuple(tt.from_numpy(rng.normal(size=a.shape)) for a in x) for _ in range(2))
    everything = tuple(range(len(x)))
    gradient = func.grad(program, everything)(*x)
    _, slope = func.jvp(program, x, v)
    size = sum(np.abs((g * d).numpy()).sum() for g, d in zip(gradient, v, strict=True))
    assert slope.item() == pytest.approx(dot(gradient, v), rel=1e-9, abs=1e-11 * size + 1e-12)
    one, two = func.hvp(program, x, v)[1], func.hvp(program, x, w)[1]
    size = sum(np.abs((g * d).numpy()).sum() for g, d in zip(one, w, strict=True))
    assert dot(one, w) == pytest.approx(dot(two, v), rel=1e-9, abs=1e-11 * size + 1e-12)
    _, pushed = func.jvp(lambda *x: func.grad(program, everything)(*x), x, v)
    close(pushed, one)


def dot(xs, ys):
    return sum((x * y).sum().item() for x, y in zip(xs, ys, strict=True))


@settings(max_examples=30)
@given(programs)
def test_random_graphs_in_narrow_dtypes(program):
    """float32 in, float32 all the way; nothing fails that float64 does not."""
    exact = func.grad(program, 0)(*program.constants())
    for dtype, tolerance in ((tt.float32, 1e-3), (tt.bfloat16, None)):
        leaves = [x.detach().to(dtype).requires_grad_() for x in program.tensors()]
        narrow = Program.__new__(Program)
        narrow.steps, narrow.results = program.steps, program.results
        narrow.weights = [w.to(dtype) for w in program.weights]
        y = narrow(*leaves)
        assert y.dtype == dtype
        y.backward()
        for x in leaves:
            assert x.grad is None or (x.grad.dtype, x.grad.shape) == (dtype, x.shape)
        if tolerance and leaves[0].grad is not None:
            scale = max(1.0, np.abs(exact.numpy()).max())
            np.testing.assert_allclose(
                leaves[0].grad.numpy(), exact.numpy(), atol=tolerance * scale
            )
