"""Checkpointing changes what is kept, and nothing else: same values, same graph, same gradients."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import tinytensor as tt
from tinytensor import nn
from tinytensor.autograd import Leaf, Node
from tinytensor.nn import functional as F
from tinytensor.utils.checkpoint import checkpoint


class Layer(nn.Module):
    """A residual block of a few different operations, with a parameter that is used twice."""

    def __init__(self, size: int = 8, dropout: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.wide = nn.Linear(size, 3 * size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: tt.Tensor) -> tt.Tensor:
        wide = F.gelu(self.wide(self.norm(x)))
        return x + self.dropout(wide @ self.wide.weight)


def random_input(*shape: int) -> tt.Tensor:
    return tt.randn(*shape).requires_grad_()


def nodes_behind(x: tt.Tensor) -> list[Node]:
    found: set[Node] = set()
    stack = [x.node]
    while stack:
        node = stack.pop()
        if node is not None and node not in found:
            found.add(node)
            stack.extend(node.parents)
    return sorted(found, key=lambda node: node.number)


def saved_bytes(x: tt.Tensor) -> int:
    """The memory that the graph of x keeps for its backward pass, views of one array once."""
    arrays: dict[int, Any] = {}
    for node in nodes_behind(x):
        for array in node.saved():
            start = array.__array_interface__["data"][0]
            if start not in arrays or arrays[start].nbytes < array.nbytes:
                arrays[start] = array
    return sum(array.nbytes for array in arrays.values())


# ---- Equal to the plain call ----

layer, dropping = Layer(), Layer(dropout=0.4)


def several(x: tt.Tensor, y: tt.Tensor) -> tuple[tt.Tensor, dict[str, Any], tt.Tensor]:
    product = x * y
    return product.sum(dim=0), {"tanh": product.tanh(), "number": 3, "list": [x.exp()]}, x


def inside(x: tt.Tensor, y: tt.Tensor) -> tt.Tensor:
    return layer(checkpoint(lambda a: layer(checkpoint(layer, a).tanh()), x * y) + dropping(y))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "one operation": lambda x, y: x * y,
    "an argument used twice": lambda x, y: x * x + y,
    "an argument not used": lambda x, y: x.exp(),
    "parameters": lambda x, y: layer(x) * y,
    "parameters used again": lambda x, y: layer(layer(x) + y),
    "dropout": lambda x, y: dropping(dropping(x) + y),
    "random numbers": lambda x, y: x * tt.rand(4, 8) + y * tt.randn(8),
    "several outputs": several,
    "an output that is an input": lambda x, y: (x, x * y),
    "no operation": lambda x, y: x,
    "nothing to differentiate": lambda x, y: x.detach() * y.detach(),
    "integers": lambda x, y: F.embedding(x.detach().argmax(-1), layer.wide.weight) * y,
    "checkpoints in checkpoints": inside,
}


def outputs_of(result: Any) -> list[tt.Tensor]:
    return [leaf for leaf in tt.func.tree_leaves(result) if isinstance(leaf, tt.Tensor)]


def run(call: Callable[..., Any], x: tt.Tensor, y: tt.Tensor) -> list[np.ndarray]:
    """Values, gradients of inputs and parameters, and where the random numbers stand at the end."""
    tt.manual_seed(3)
    leaves = [x, y, *layer.parameters(), *dropping.parameters()]
    for leaf in leaves:
        leaf.grad = None
    outputs = outputs_of(call(x, y))
    total = sum((tt.randn(*out.shape) * out).sum() for out in outputs)
    if total.requires_grad:
        total.backward()
    found = [out.detach().numpy() for out in outputs]
    found += [np.zeros(0) if p.grad is None else p.grad.numpy().copy() for p in leaves]
    return [*found, np.array(tt.get_rng_state()["counter"])]


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_values_and_gradients_are_those_of_the_plain_call(function):
    x, y = random_input(4, 8), random_input(4, 8)
    plain = run(function, x, y)
    again = run(lambda x, y: checkpoint(function, x, y), x, y)
    assert len(plain) == len(again)
    for a, b in zip(plain, again, strict=True):
        np.testing.assert_array_equal(a, b)


@hypothesis.given(st.lists(st.integers(0, 7), min_size=1, max_size=12), st.randoms())
def test_any_cut_of_any_chain(steps, random):
    """A random program, cut into checkpoints at random places, each a stretch of it."""
    operations = [
        lambda a, b: ((a * b).tanh(), a),
        lambda a, b: ((a + b) * 0.5, b.tanh()),
        lambda a, b: (b, a),
        lambda a, b: (layer(a).tanh(), b),
        lambda a, b: (F.softmax(a, -1), b - a),
        lambda a, b: (dropping(a).tanh(), b),
        lambda a, b: ((a @ (b.transpose(0, 1) @ b)).tanh(), a),
        lambda a, b: (a.sigmoid(), b.detach()),
    ]
    cuts = [random.random() < 0.4 for _ in steps]

    def stretch(chosen: list[int]) -> Callable[..., Any]:
        def compute(a: tt.Tensor, b: tt.Tensor) -> Any:
            for step in chosen:
                a, b = operations[step](a, b)
            return a, b

        return compute

    def plain(a: tt.Tensor, b: tt.Tensor) -> Any:
        return stretch(steps)(a, b)

    def cut(a: tt.Tensor, b: tt.Tensor) -> Any:
        chosen: list[int] = []
        for step, here in zip(steps, cuts, strict=True):
            chosen.append(step)
            if here:
                a, b = checkpoint(stretch(chosen), a, b)
                chosen = []
        return checkpoint(stretch(chosen), a, b)

    tt.manual_seed(1)
    x, y = random_input(4, 8), random_input(4, 8)
    for a, b in zip(run(plain, x, y), run(cut, x, y), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_function_may_rebind_its_own_names():
    def function(x: tt.Tensor) -> tt.Tensor:
        x += 1
        x *= x
        return x

    x = tt.tensor([1.0, 2.0]).requires_grad_()
    given = x * 1
    checkpoint(function, given).sum().backward()
    assert x.grad.tolist() == [4.0, 6.0]  # d(x + 1)²/dx


def test_keyword_arguments_and_nested_ones():
    def function(pair: dict[str, Any], *, scale: float, shift: tt.Tensor) -> tt.Tensor:
        return pair["a"] * scale + pair["b"][0] * shift

    a, b, shift = (random_input(3) for _ in range(3))
    checkpoint(function, {"a": a, "b": [b]}, scale=2.0, shift=shift).sum().backward()
    assert a.grad.tolist() == [2.0] * 3
    assert (b.grad == shift.detach()).all() and (shift.grad == b.detach()).all()


def test_the_graph_is_the_same_graph():
    x = random_input(4, 8)
    plain = [repr(node) for node in nodes_behind(layer(x))]
    assert [repr(node) for node in nodes_behind(checkpoint(layer, x))] == plain


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = tt.get_num_threads()
    tt.set_num_threads(2)
    yield
    tt.set_num_threads(threads)


def test_on_several_threads(two_threads):
    """Products large enough to be divided, while gradients of weights are queued beside them."""
    tt.manual_seed(0)
    wide = nn.Sequential(*[nn.Linear(512, 512) for _ in range(6)])
    x = random_input(256, 512)

    def gradients(call: Callable[..., tt.Tensor]) -> list[np.ndarray]:
        wide.zero_grad()
        y = x
        for first, second in zip(wide[::2], wide[1::2], strict=True):
            y = call(lambda a, f=first, s=second: s(f(a).tanh()), y)
        y.square().sum().backward()
        return [p.grad.numpy().copy() for p in wide.parameters()]

    plain = gradients(lambda function, y: function(y))
    for a, b in zip(plain, gradients(checkpoint), strict=True):
        np.testing.assert_array_equal(b, a)


# ---- What looks at the graph works ----


def test_autograd_grad_reaches_parameters_and_leaves_the_leaves_alone():
    x = random_input(4, 8)
    parameters = list(layer.parameters())
    layer.zero_grad()
    plain = tt.autograd.grad(layer(x).sum(), [x, *parameters])
    again = tt.autograd.grad(checkpoint(layer, x).sum(), [x, *parameters])
    for a, b in zip(plain, again, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert x.grad is None and all(p.grad is None for p in parameters)


def test_a_retained_graph_can_be_walked_again():
    x = random_input(4, 8)
    loss = checkpoint(dropping, x).sum()
    loss.backward(retain_graph=True)
    first = x.grad.numpy().copy()
    loss.backward()
    np.testing.assert_array_equal(x.grad.numpy(), first + first)
    with pytest.raises(RuntimeError, match="already used and freed"):
        loss.backward()


def test_each_parameter_is_ready_once_and_complete():
    """What sends gradients away while the walk goes on must not send a part of one."""
    x = random_input(4, 8)
    seen: dict[str, list[np.ndarray]] = {name: [] for name, _ in layer.named_parameters()}
    handles = [
        p.register_post_accumulate_grad_hook(lambda p, n=n: seen[n].append(p.grad.numpy().copy()))
        for n, p in layer.named_parameters()
    ]
    layer.zero_grad()
    for _ in range(3):
        x = checkpoint(layer, x)  # the same parameters three times
    x.sum().backward()
    for handle in handles:
        handle.remove()
    for name, parameter in layer.named_parameters():
        (complete,) = seen[name]
        np.testing.assert_array_equal(complete, parameter.grad.numpy())


def test_hooks_and_kept_gradients_inside():
    kept: list[tt.Tensor] = []
    seen: list[tt.Tensor] = []

    def function(x: tt.Tensor) -> tt.Tensor:
        middle = x * 3
        middle.register_hook(seen.append)
        if not kept:
            middle.retain_grad()
            kept.append(middle)
        return middle.exp()

    x = random_input(5)
    y = checkpoint(function, x)
    y.sum().backward()
    assert len(seen) == 1  # not a second time by the second run
    np.testing.assert_array_equal(seen[0].numpy(), y.detach().numpy())
    np.testing.assert_array_equal(kept[0].grad.numpy(), y.detach().numpy())


def test_under_transforms():
    w = tt.randn(8, 8, dtype=tt.float64)
    v = tt.randn(4, 8, dtype=tt.float64)
    x = tt.randn(4, 8, dtype=tt.float64)

    def plain(x: tt.Tensor) -> tt.Tensor:
        return ((x @ w).tanh() @ w).softmax(-1).square().sum()

    def again(x: tt.Tensor) -> tt.Tensor:
        middle = checkpoint(lambda a: (a @ w).tanh(), x)
        return checkpoint(lambda a: (a @ w).softmax(-1).square().sum(), middle)

    def both(transform: Callable[..., Any]) -> None:
        ours, theirs = (tt.func.tree_leaves(transform(f)) for f in (again, plain))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-12, atol=1e-14)

    both(lambda f: tt.func.grad(f)(x))
    both(lambda f: tt.func.jvp(f, (x,), (v,)))
    both(lambda f: tt.func.hvp(f, x, v))
    both(lambda f: tt.func.grad(lambda a: checkpoint(tt.func.grad(f), a).square().sum())(x))


# ---- Memory and time ----


def test_only_inputs_are_kept():
    size, depth = 64, 12
    blocks = [Layer(size) for _ in range(depth)]

    def through(call: Callable[..., tt.Tensor]) -> int:
        x = random_input(16, size)
        for block in blocks:
            x = call(block, x)
        return saved_bytes(x)

    one_input = 16 * size * 4
    parameters = sum(p.detach().numpy().nbytes for block in blocks for p in block.parameters())
    assert through(checkpoint) == depth * one_input
    assert through(lambda block, x: block(x)) > parameters + 7 * depth * one_input


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    peak: list[int] = []
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    try:
        yield peak
        peak.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()


def test_peak_of_a_step():
    """L blocks keep L inputs and what one block saves, in place of what L blocks save."""
    size, depth, rows = 32, 16, 512
    blocks = [Layer(size) for _ in range(depth)]
    for block in blocks:
        block.requires_grad_(False)  # so that gradients of parameters do not stand in the way

    def step(call: Callable[..., tt.Tensor], blocks: list[Layer]) -> int:
        # The references take their memory from NumPy and give it back at once.
        with tt.reference_ops(), peak_memory() as peak:
            x = tt.zeros(rows, size).requires_grad_()
            y = x
            for block in blocks:
                y = call(block, y)
            y.sum().backward()
        return peak[0]

    plain = step(lambda block, x: block(x), blocks)
    one_block = step(lambda block, x: block(x), blocks[:1])
    checkpointed = step(checkpoint, blocks)
    inputs = depth * rows * size * 4
    assert checkpointed < inputs + 1.5 * one_block
    assert checkpointed < plain / 3


def test_the_function_runs_twice_and_its_memory_is_freed_without_the_collector():
    runs: list[weakref.ref[Any]] = []

    def function(x: tt.Tensor) -> tt.Tensor:
        y = x.exp()
        runs.append(weakref.ref(y.value))
        return y * y

    gc.disable()
    try:
        x = tt.ones(4).requires_grad_()
        y = checkpoint(function, x * 1)
        assert len(runs) == 1 and runs[0]() is None
        y.sum().backward()
        assert len(runs) == 2 and runs[1]() is None
        z = checkpoint(function, x * 1)
        graph = weakref.ref(z.node)
        del z
        assert graph() is None  # dropped unused: no cycle holds it
    finally:
        gc.enable()


def test_nothing_is_repeated_where_nothing_is_recorded():
    calls = []

    def function(x: tt.Tensor) -> tt.Tensor:
        calls.append(1)
        return x * 2

    x = random_input(3)
    with tt.no_grad():
        assert not checkpoint(function, x).requires_grad
    checkpoint(function, x.detach())
    assert len(calls) == 2


def test_a_node_names_the_inputs_as_what_it_saved():
    x = random_input(4, 8)
    y = checkpoint(layer, x)
    for node in nodes_behind(y):
        if not isinstance(node, Leaf):
            assert [id(array) for array in node.saved()] == [id(x.value)]


# ---- Random numbers ----


def test_masks_are_the_same_and_the_generator_goes_on_undisturbed():
    x = random_input(50)
    y = checkpoint(lambda a: F.dropout(a, 0.5), x)
    after_forward = tt.get_rng_state()
    tt.rand(10)
    moved = tt.get_rng_state()
    y.sum().backward()
    assert tt.get_rng_state() == moved != after_forward
    np.testing.assert_array_equal(x.grad.numpy() != 0, y.detach().numpy() != 0)


def test_without_preserving_the_masks_differ():
    x = random_input(50)
    y = checkpoint(lambda a: F.dropout(a, 0.5), x, preserve_rng_state=False)
    y.sum().backward()
    assert ((x.grad.numpy() != 0) != (y.detach().numpy() != 0)).any()


# ---- What is refused ----


def test_a_function_that_changed_its_mind_is_refused():
    block = Layer(dropout=0.5)
    y = checkpoint(block, random_input(4, 8))
    block.eval()
    with pytest.raises(RuntimeError, match=r"not compute the same the second time: operation \d+"):
        y.sum().backward()
    lengths = iter([1, 2])
    x = random_input(2)
    y = checkpoint(lambda a: sum((a * 2 for _ in range(next(lengths))), tt.zeros(2)), x)
    with pytest.raises(RuntimeError, match=r"operations became|and is now"):
        y.sum().backward()


def test_inputs_and_parameters_written_in_between_are_noticed():
    block = Layer()
    given = tt.randn(4, 8)
    optimizer = tt.optim.SGD(block.parameters(), lr=0.1)
    y = checkpoint(block, given)
    given.add_(1)
    with pytest.raises(RuntimeError, match="written in place"):
        y.sum().backward()
    y = checkpoint(block, given)
    block(given).sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="written in place"):
        y.sum().backward()


def test_writing_what_the_function_does_not_use_is_no_harm():
    block, other = Layer(), Layer()
    optimizer = tt.optim.AdamW(other.parameters(), lr=0.1)
    x = random_input(4, 8)
    y = checkpoint(block, x)
    other(x).sum().backward()
    optimizer.step()
    y.detach().mul_(0)  # nobody's gradient needs the output
    y.sum().backward()


def test_an_error_in_the_second_run_leaves_no_trace():
    calls = []

    def function(x: tt.Tensor) -> tt.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("planted")
        return F.dropout(x, 0.5)

    y = checkpoint(function, random_input(4))
    before = tt.get_rng_state()
    with pytest.raises(KeyError, match="planted"):
        y.sum().backward()
    assert tt.get_rng_state() == before and tt.is_grad_enabled()


def test_the_old_way_is_not_offered():
    with pytest.raises(ValueError, match="use_reentrant=True is not offered"):
        checkpoint(layer, random_input(4, 8), use_reentrant=True)
    assert checkpoint(layer, random_input(4, 8), use_reentrant=False).shape == (4, 8)


@pytest.mark.parity
def test_same_gradients_as_pytorch():
    torch = pytest.importorskip("torch")
    from torch.utils.checkpoint import checkpoint as theirs

    numbers = np.random.default_rng(0).normal(size=(5, 5))
    x, w = (tt.tensor(numbers * s).requires_grad_() for s in (1.0, 0.5))
    a, b = (torch.tensor(numbers * s, requires_grad=True) for s in (1.0, 0.5))
    checkpoint(lambda x: (x @ w).tanh() @ w, x).square().sum().backward()
    theirs(lambda x: (x @ b).tanh() @ b, a, use_reentrant=False).square().sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), a.grad.numpy(), rtol=1e-12)
    np.testing.assert_allclose(w.grad.numpy(), b.grad.numpy(), rtol=1e-12)
