"""`tt.*` where PyTorch's meaning differs from NumPy's: arguments, results, defaults, and small
numbers by hand.

That the same calls give PyTorch's numbers on generated shapes is the parity tests' business.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor import functions
from tinytensor.testing import gradcheck, gradgradcheck

X = tt.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
N = tt.tensor([[3, 1, 2], [0, 5, 4]])
V = tt.tensor([1.0, -2.0, 3.0])
CUBE = tt.arange(24).view(2, 3, 4)


def plain(result):
    """The result as nested lists, tuples (of any kind) as tuples."""
    if isinstance(result, tuple):
        return tuple(plain(part) for part in result)
    return result.tolist() if isinstance(result, tt.Tensor) else result


VALUES = {
    "max of all": (lambda: tt.max(X), 5.0),
    "max along a dim": (lambda: tt.max(X, 1), ([3, 5], [0, 1])),
    "max along a dim that stays": (lambda: X.max(dim=0, keepdim=True), ([[3, 5, 4]], [[0, 1, 1]])),
    "max along NumPy's axis": (lambda: X.max(axis=0, keepdims=True), ([[3, 5, 4]], [[0, 1, 1]])),
    "max of two": (lambda: tt.max(V, tt.zeros(3)), [1, 0, 3]),
    "max of one number": (lambda: tt.max(tt.tensor(2.0), 0), (2, 0)),
    "min along a dim": (lambda: tt.min(X, -1), ([1, 0], [1, 0])),
    "min of two": (lambda: V.min(tt.zeros(3)), [0, -2, 0]),
    "amax": (lambda: X.amax(dim=(0, 1)), 5),
    "argmax": (lambda: tt.argmax(X), 4),
    "argmax along a dim": (lambda: X.argmax(dim=1, keepdim=True), [[0], [1]]),
    "sum over a list of dims": (lambda: tt.sum(X, [0, 1]), 15),
    "sum in another dtype": (lambda: tt.sum(N, dtype=tt.float32), 15.0),
    "mean in another dtype": (lambda: tt.mean(N, dtype=tt.float64), 2.5),
    "prod": (lambda: tt.prod(X, 1), [6, 0]),
    "cumsum": (lambda: X.cumsum(dim=1), [[3, 4, 6], [0, 5, 9]]),
    "var divides by n - 1": (lambda: tt.var(X, 1), [1, 7]),
    "var, biased": (lambda: tt.var(tt.tensor([1.0, 3.0]), unbiased=False), 1),
    "var, biased, the old way": (lambda: tt.var(tt.tensor([1.0, 3.0]), False), 1),
    "var, corrected": (lambda: tt.tensor([1.0, 3.0]).var(dim=0, correction=0, keepdim=True), [1]),
    "std": (lambda: tt.std(tt.tensor([0.0, 6.0, 3.0, 3.0]) / math.sqrt(6)), 1),
    "var_mean": (lambda: tt.var_mean(X, 1), ([1, 7], [2, 3])),
    "std_mean": (lambda: tt.std_mean(tt.tensor([1.0, 3.0, 5.0])), (2, 3)),
    "norm": (lambda: tt.norm(tt.tensor([3.0, 4.0])), 5),
    "norm of other orders": (lambda: (V.norm(1), V.norm(math.inf), V.norm("fro") ** 2), (6, 3, 14)),
    "count_nonzero": (lambda: tt.count_nonzero(X, dim=0), [1, 2, 2]),
    "any and all": (lambda: ((X > 4).any(dim=1), (X >= 0).all()), ([False, True], True)),
    "sort": (lambda: tt.sort(V), ([-2, 1, 3], [1, 0, 2])),
    "sort, descending along dim 0": (
        lambda: X.sort(dim=0, descending=True),
        ([[3, 5, 4], [0, 1, 2]], [[0, 1, 1], [1, 0, 0]]),
    ),
    "argsort": (lambda: tt.argsort(V, descending=True), [2, 0, 1]),
    "topk": (lambda: tt.topk(X, 2), ([[3, 2], [5, 4]], [[0, 2], [1, 2]])),
    "topk, smallest, along dim 0": (
        lambda: X.topk(1, dim=0, largest=False),
        ([[0, 1, 2]], [[1, 0, 0]]),
    ),
    "topk of none": (lambda: tt.topk(V, 0), ([], [])),
    "unique": (lambda: tt.unique(tt.tensor([3, 1, 3])), [1, 3]),
    "unique with more": (
        lambda: tt.unique(tt.tensor([3, 1, 3]), return_inverse=True, return_counts=True),
        ([1, 3], [1, 0, 1], [1, 2]),
    ),
    "bincount": (lambda: tt.bincount(tt.tensor([0, 2, 2]), minlength=4), [1, 0, 2, 0]),
    "median": (lambda: (tt.median(X), V.median(), X.median(dim=1)), (2, 1, ([2, 4], [2, 2]))),
    "tan, sinh, cosh": (
        lambda: tuple(f(tt.tensor(0.0)) for f in (tt.tan, tt.sinh, tt.cosh)),
        (0, 0, 1),
    ),
    "sinh of little": (lambda: tt.sinh(tt.tensor(1e-12)) / 1e-12, 1),
    "trunc and frac": (
        lambda: (tt.tensor([1.5, -1.5]).trunc(), tt.tensor([1.5, -1.5]).frac()),
        ([1, -1], [0.5, -0.5]),
    ),
    "fmod": (lambda: tt.fmod(tt.tensor([7, -7]), 3), [1, -1]),
    "logaddexp": (lambda: tt.logaddexp(tt.tensor(1000.0), tt.tensor(1000.0)) - math.log(2), 1000),
    "nan_to_num": (
        lambda: tt.tensor([math.nan, math.inf, -math.inf, 1.0]).nan_to_num(posinf=9, neginf=-9),
        [0, 9, -9, 1],
    ),
    "nan_to_num, largest": (
        lambda: tt.tensor([math.inf], dtype=tt.bfloat16).nan_to_num() == tt.finfo(tt.bfloat16).max,
        [True],
    ),
    "addcmul and addcdiv": (
        lambda: (tt.addcmul(V, V, V, value=2), tt.addcdiv(V, V, V)),
        ([3, 6, 21], [2, -1, 4]),
    ),
    "cumprod": (lambda: tt.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).cumprod(dim=0), [1, 2, 6, 24, 120]),
    "diff": (lambda: (tt.diff(V), V.diff(n=2)), ([-3, 5], [8])),
    "broadcast_tensors": (
        lambda: tuple(x.shape for x in tt.broadcast_tensors(V, X)),
        ((2, 3),) * 2,
    ),
    "meshgrid": (
        lambda: tt.meshgrid(tt.arange(2), tt.arange(3)),
        ([[0, 0, 0], [1, 1, 1]], [[0, 1, 2], [0, 1, 2]]),
    ),
    "meshgrid, xy": (
        lambda: tt.meshgrid([tt.arange(2), tt.arange(3)], indexing="xy"),
        ([[0, 1]] * 3, [[0, 0], [1, 1], [2, 2]]),
    ),
    "tensordot": (
        lambda: (tt.tensordot(N, N), tt.tensordot(N, N, dims=([1], [1]))),
        (55, [[14, 13], [13, 41]]),
    ),
    "kron": (lambda: tt.kron(tt.tensor([1, 2]), tt.tensor([[1, 3]])), [[1, 3, 2, 6]]),
    "cdist": (lambda: tt.cdist(tt.zeros(1, 2), tt.tensor([[3.0, 4.0]])), [[5]]),
    "ravel and take": (
        lambda: (N.ravel(), N.take(tt.tensor([-1, 0]))),
        ([3, 1, 2, 0, 5, 4], [4, 3]),
    ),
    "diag_embed": (lambda: tt.diag_embed(tt.tensor([[1, 2]])), [[[1, 0], [0, 2]]]),
    "index_fill": (lambda: tt.index_fill(N, 1, tt.tensor([0]), 7), [[7, 1, 2], [7, 5, 4]]),
    "index_fill_": (lambda: tt.zeros(3).index_fill_(0, tt.tensor([2, 0]), 1.5), [1.5, 0, 1.5]),
    "tril_indices": (lambda: tt.tril_indices(2, 2), [[0, 1, 1], [0, 0, 1]]),
    "triu_indices": (lambda: tt.triu_indices(2, 3, 1), [[0, 0, 1], [1, 2, 2]]),
    "isin": (lambda: tt.isin(N, tt.tensor([0, 3])), [[True, False, False], [True, False, False]]),
    "searchsorted": (
        lambda: (
            tt.searchsorted(tt.tensor([1, 2, 2]), tt.tensor([2, 9])),
            tt.bucketize(tt.tensor([2]), tt.tensor([1, 2, 2]), right=True),
        ),
        ([1, 3], [3]),
    ),
    "add with alpha": (lambda: tt.add(V, V, alpha=2), [3, -6, 9]),
    "sub with alpha": (lambda: V.sub(V, alpha=2), [-1, 2, -3]),
    "div": (lambda: tt.div(tt.tensor([7, -7]), 2), [3.5, -3.5]),
    "div, floor": (lambda: tt.div(tt.tensor([7, -7]), 2, rounding_mode="floor"), [3, -4]),
    "div, trunc": (lambda: tt.div(tt.tensor([7, -7]), 2, rounding_mode="trunc"), [3, -3]),
    "clamp": (lambda: V.clamp(-1, 1), [1, -1, 1]),
    "clamp below": (lambda: V.clamp(min=0), [1, 0, 3]),
    "clamp by tensors": (lambda: tt.clamp(V, tt.tensor([2.0, 2.0, 2.0]), 2.5), [2, 2, 2.5]),
    "round": (lambda: tt.round(tt.tensor([0.5, 1.5, -1.2])), [0, 2, -1]),
    "round to decimals": (lambda: tt.round(tt.tensor([1.25, -0.5]), decimals=1), [1.2, -0.5]),
    "log2 and log10": (lambda: (tt.log2(tt.tensor(8.0)), tt.log10(tt.tensor(1.0))), (3, 0)),
    "lerp": (lambda: tt.lerp(tt.zeros(2), tt.ones(2), 0.25), [0.25, 0.25]),
    "where": (lambda: tt.where(V > 0, V, 0.0), [1, 0, 3]),
    "where, as a method": (lambda: V.where(V > 0, tt.zeros(3)), [1, 0, 3]),
    "where it holds": (lambda: tt.where(V > 0), ([0, 2],)),
    "nonzero": (lambda: tt.nonzero(X > 2), [[0, 0], [1, 1], [1, 2]]),
    "nonzero as a tuple": (lambda: (X > 2).nonzero(as_tuple=True), ([0, 1, 1], [0, 1, 2])),
    "nonzero of a number": (
        lambda: tuple(tt.nonzero(tt.tensor(n)).shape for n in (0, 1)),
        ((0, 0), (1, 0)),
    ),
    "softmax": (lambda: tt.softmax(tt.zeros(2, 4), dim=1), [[0.25] * 4] * 2),
    "softmax in another dtype": (lambda: V.softmax(0, dtype=tt.float64).sum(), 1),
    "transpose": (lambda: tt.transpose(N, 0, 1), [[3, 0], [1, 5], [2, 4]]),
    "t": (lambda: (tt.t(N), tt.t(V)), ([[3, 0], [1, 5], [2, 4]], [1, -2, 3])),
    "permute": (
        lambda: (tt.permute(CUBE, (2, 0, 1)).shape, CUBE.permute(-1, 0, 1).shape),
        ((4, 2, 3),) * 2,
    ),
    "movedim": (
        lambda: (CUBE.movedim(0, -1).shape, tt.movedim(CUBE, (0, 1), (2, 0)).shape),
        ((3, 4, 2), (3, 4, 2)),
    ),
    "squeeze what is not of size 1": (lambda: X.view(1, 2, 3).squeeze(1).shape, (1, 2, 3)),
    "squeeze": (
        lambda: (X.view(1, 2, 3).squeeze(0).shape, X[None].squeeze().shape),
        ((2, 3), (2, 3)),
    ),
    "unsqueeze": (lambda: (V.unsqueeze(0).shape, V.unsqueeze(-1).shape), ((1, 3), (3, 1))),
    "flatten": (lambda: (CUBE.flatten(1).shape, tt.flatten(CUBE, 0, 1).shape), ((2, 12), (6, 4))),
    "flatten a number": (lambda: tt.tensor(3).flatten(), [3]),
    "unflatten": (lambda: CUBE.unflatten(2, (2, -1)).shape, (2, 3, 2, 2)),
    "expand": (lambda: V.view(3, 1).expand(-1, 2), [[1, 1], [-2, -2], [3, 3]]),
    "expand along a new dim": (lambda: V.expand(2, -1).shape, (2, 3)),
    "expand_as": (lambda: tt.tensor([7]).expand_as(V), [7, 7, 7]),
    "repeat is NumPy's tile": (lambda: tt.tensor([1, 2]).repeat(2, 2), [[1, 2, 1, 2]] * 2),
    "tile": (lambda: (tt.tile(tt.tensor([1, 2]), (2,)), N.tile(2).shape), ([1, 2, 1, 2], (2, 6))),
    "repeat_interleave": (lambda: tt.tensor([1, 2]).repeat_interleave(2), [1, 1, 2, 2]),
    "repeat_interleave by a tensor": (
        lambda: tt.repeat_interleave(N, tt.tensor([0, 2]), dim=0),
        [[0, 5, 4], [0, 5, 4]],
    ),
    "cat passes over (0,)": (lambda: tt.cat([tt.tensor([]), X], dim=0), plain(X)),
    "cat of nothing but (0,)": (lambda: tt.cat([tt.tensor([]), tt.tensor([])]), []),
    "cat along NumPy's axis": (lambda: tt.cat([N, N], axis=1)[0], [3, 1, 2, 3, 1, 2]),
    "stack": (lambda: tt.stack([V, V], dim=1).shape, (3, 2)),
    "vstack and hstack": (
        lambda: (tt.vstack([V, X]).shape, tt.hstack([X, X]).shape, tt.hstack([V, V]).shape),
        ((3, 3), (2, 6), (6,)),
    ),
    "split by size": (
        lambda: tuple(part.shape for part in CUBE.split(3, dim=2)),
        ((2, 3, 3), (2, 3, 1)),
    ),
    "split by sections": (lambda: tt.split(V, [1, 2]), ([1], [-2, 3])),
    "chunk": (lambda: tt.chunk(tt.arange(5), 3), ([0, 1], [2, 3], [4])),
    "chunk into fewer": (lambda: tt.chunk(tt.arange(5), 4), ([0, 1], [2, 3], [4])),
    "unbind": (lambda: tt.unbind(N, 1), ([3, 0], [1, 5], [2, 4])),
    "narrow": (lambda: N.narrow(1, -2, 2), [[1, 2], [5, 4]]),
    "select": (lambda: N.select(1, -1), [2, 4]),
    "flip": (lambda: (V.flip(0), tt.flip(N, [0, 1])), ([3, -2, 1], [[4, 5, 0], [2, 1, 3]])),
    "roll": (
        lambda: (V.roll(1), tt.roll(N, shifts=1, dims=1)),
        ([3, 1, -2], [[2, 3, 1], [4, 0, 5]]),
    ),
    "tril": (lambda: tt.tril(N, diagonal=-1), [[0, 0, 0], [0, 0, 0]]),
    "triu": (lambda: N.triu(1), [[0, 1, 2], [0, 0, 4]]),
    "diagonal": (lambda: (tt.diagonal(N), CUBE.diagonal().shape), ([3, 5], (4, 2))),
    "diag": (lambda: (tt.diag(tt.tensor([1, 2])), N.diag()), ([[1, 0], [0, 2]], [3, 5])),
    "trace": (lambda: tt.trace(N), 8),
    "gather": (lambda: tt.gather(N, 1, tt.tensor([[0, 0], [2, 1]])), [[3, 3], [4, 5]]),
    "gather from a part": (lambda: N.gather(1, tt.tensor([[2]])), [[2]]),
    "scatter": (
        lambda: tt.zeros(2, 3).scatter(1, tt.tensor([[1], [2]]), 7.0),
        [[0, 7, 0], [0, 0, 7]],
    ),
    "scatter from a larger one": (lambda: tt.zeros(2).scatter(0, tt.tensor([1]), V[:2]), [0, 1]),
    "scatter of booleans": (
        lambda: (V > 9).scatter(0, tt.tensor([2, 0, 1]), V > 0),
        [False, True, True],
    ),
    "scatter_add": (
        lambda: tt.zeros(1, 3).scatter_add(1, tt.tensor([[0, 0]]), tt.tensor([[1.0, 2.0, 9.0]])),
        [[3, 0, 0]],
    ),
    "index_select": (
        lambda: (tt.index_select(N, 1, tt.tensor([2, 2])), N.index_select(0, tt.tensor(1))),
        ([[2, 2], [4, 4]], [[0, 5, 4]]),
    ),
    "index_add": (
        lambda: tt.zeros(3).index_add(0, tt.tensor([1, 1]), tt.ones(2), alpha=2),
        [0, 4, 0],
    ),
    "masked_select": (lambda: tt.masked_select(N, tt.tensor([True, False, True])), [3, 2, 0, 4]),
    "take_along_dim": (lambda: tt.take_along_dim(N, tt.tensor([[0], [1]]), dim=1), [[3], [5]]),
    "mm, mv, dot": (
        lambda: (tt.mm(N, N.T), tt.mv(X, V), V.dot(V)),
        ([[14, 13], [13, 41]], [7, 2], 14),
    ),
    "bmm": (lambda: tt.bmm(CUBE, CUBE.mT).shape, (2, 3, 3)),
    "addmm": (lambda: tt.addmm(tt.ones(2), N, N.T, beta=2, alpha=10), [[142, 132], [132, 412]]),
    "baddbmm": (lambda: tt.baddbmm(tt.tensor(1), CUBE, CUBE.mT).shape, (2, 3, 3)),
    "einsum of a list": (lambda: tt.einsum("i,i", [V, V]), 14),
    "allclose": (
        lambda: (
            tt.allclose(V, V + 1e-9),
            tt.allclose(V, V + 1),
            tt.allclose(V.bfloat16(), V.bfloat16()),
        ),
        (True, False, True),
    ),
    "isclose": (lambda: tt.isclose(V, tt.tensor([1.0, math.nan, 4.0])), [True, False, False]),
    "equal": (lambda: (tt.equal(V, V.clone()), tt.equal(V, V[:2])), (True, False)),
    "numel": (lambda: (tt.numel(CUBE), CUBE.numel(), tt.numel(tt.tensor(1))), (24, 24, 1)),
    "questions": (
        lambda: (tt.is_tensor(V), tt.is_tensor(1), tt.is_floating_point(N)),
        (True, False, False),
    ),
}


@pytest.mark.parametrize("case", VALUES)
def test_values(case):
    call, expected = VALUES[case]
    found = plain(call())
    compare(found, plain(expected))


def compare(found, expected):
    if isinstance(expected, tuple):
        assert isinstance(found, tuple) and len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            compare(one, other)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert np.shape(found) == np.shape(expected)


def test_results_along_a_dim_have_names():
    assert tt.max(X, 1).indices.tolist() == [0, 1]
    assert X.sort().values.tolist() == [[1, 2, 3], [0, 4, 5]]
    values, indices = tt.topk(V, 1)
    assert (values.item(), indices.item()) == (3, 2)
    assert indices.dtype == tt.int64


def test_every_public_function_is_exported_once():
    assert len(functions.__all__) == len(set(functions.__all__))
    for name in functions.__all__:
        assert getattr(tt, name) is getattr(functions, name)


# --- gradients: what is composed here and not an operation of its own
# --------------------------------

A = tt.tensor(np.random.default_rng(0).permutation(12).reshape(3, 4) / 4 - 1.3, requires_grad=True)
B = tt.tensor(np.random.default_rng(1).normal(size=(3, 4)), requires_grad=True)
INDEX = tt.tensor([[0, 3], [1, 1], [2, 0]])
COMPOSED = {
    "max": lambda a, b: tt.max(a, 1).values,
    "min": lambda a, b: a.min(dim=0, keepdim=True).values,
    "sort": lambda a, b: a.sort(descending=True).values,
    "topk": lambda a, b: a.topk(2, dim=0).values,
    "var": lambda a, b: a.var(dim=1),
    "std": lambda a, b: a.std(),
    "norm": lambda a, b: a.norm(dim=0),
    "clamp": lambda a, b: a.clamp(b, b + 1),
    "lerp": lambda a, b: tt.lerp(a, b, 0.3),
    "gather": lambda a, b: a.gather(1, INDEX),
    "gather from a part": lambda a, b: a.gather(1, INDEX[:2]),
    "scatter": lambda a, b: a.scatter(1, INDEX[:1], b),
    "scatter_add": lambda a, b: a.scatter_add(1, INDEX, b),
    "scatter_add at one row": lambda a, b: a.scatter_add(1, INDEX[:1], b),
    "index_select": lambda a, b: a.index_select(1, tt.tensor([3, 3, 0])),
    "index_fill": lambda a, b: a.index_fill(1, tt.tensor([2, 0]), 3.0) * b,
    "index_add": lambda a, b: a.index_add(0, tt.tensor([2, 2, 0]), b, alpha=3),
    "masked_select": lambda a, b: a.masked_select(b > 0),
    "split": lambda a, b: a.split([1, 3], dim=1)[1] * b[:, 1:],
    "unbind": lambda a, b: tt.stack(a.unbind(1)) @ b,
    "expand": lambda a, b: a[:, None].expand(-1, 2, -1) * b[0],
    "repeat_interleave": lambda a, b: a.repeat_interleave(tt.tensor([0, 1, 2]), dim=0),
    "movedim": lambda a, b: tt.movedim(tt.stack([a, b]), 0, 2),
    "diag": lambda a, b: tt.diag(a[0]) @ b.T,
    "diagonal": lambda a, b: tt.diagonal(a) + tt.trace(b),
    "addmm": lambda a, b: tt.addmm(a[:, 0], a, b.T, beta=2, alpha=3),
    "iteration": lambda a, b: sum(row * row for row in a),
}


@pytest.mark.parametrize("case", COMPOSED)
def test_gradients(case):
    gradcheck(COMPOSED[case], [A, B])
    gradgradcheck(lambda a, b: COMPOSED[case](a * a, b * a), [A, B], directions=1)


def test_max_sends_its_gradient_to_one_of_several_equals_and_amax_to_all():
    x = tt.ones(3, requires_grad=True)
    tt.max(x, 0).values.backward()
    assert sorted(x.grad.tolist()) == [0, 0, 1]
    x.grad = None
    x.amax(0).backward()
    np.testing.assert_allclose(x.grad.numpy(), 1 / 3, rtol=1e-6)


@given(st.integers(1, 200), st.integers(0, 2**32 - 1), st.booleans(), st.data())
def test_topk_is_the_beginning_of_sort(size, seed, largest, data):
    x = tt.tensor(np.random.default_rng(seed).normal(size=(2, size)))
    k = data.draw(st.integers(0, size))
    values, indices = tt.topk(x, k, largest=largest)
    ordered = x.sort(descending=largest)
    assert tt.equal(values, ordered.values[:, :k])
    assert tt.equal(indices, ordered.indices[:, :k])
    across = x.T.topk(k, dim=0, largest=largest)
    assert tt.equal(across.values.T, values)


@given(st.integers(0, 9), st.integers(1, 9))
def test_split_and_chunk_lose_nothing_and_copy_nothing(size, pieces):
    x = tt.arange(size)
    for parts in (x.split(pieces), x.chunk(pieces)):
        assert tt.cat(parts).tolist() == x.tolist()
        assert all(np.shares_memory(part.numpy(), x.numpy()) for part in parts if part.numel())
    assert len(x.chunk(pieces)) <= pieces


ERRORS = {
    "topk: k is 4 but dim 0 has 3 elements": lambda: tt.topk(V, 4),
    "split: the sections [1, 1] do not add up to dim 0 of size 3": lambda: V.split([1, 1]),
    "split: the size of a piece must be positive, got 0": lambda: V.split(0),
    "chunk: the number of chunks must be positive, got 0": lambda: V.chunk(0),
    "mean: the mean of int64 is not int64; use x.float().mean()": lambda: N.mean(),
    "median: there is no middle of nothing, in shape (0,)": lambda: tt.tensor([]).median(),
    'meshgrid: indexing must be "ij" or "xy", got \'up\'': lambda: tt.meshgrid(V, indexing="up"),
    "meshgrid: expected vectors, got [(2, 3)]": lambda: tt.meshgrid(X),
    "searchsorted: expected one ascending vector, got shape (2, 3)": lambda: tt.searchsorted(X, V),
    "tensordot: axes [1] of (2, 3) and [0] of (2, 3) are summed over together, but their sizes "
    "differ": lambda: tt.tensordot(X, X, 1),
    "index_fill: the index is a vector of integers, not float32 of shape (3,)": (
        lambda: X.index_fill(0, V, 1.0)
    ),
    "clamp: give min, max or both": lambda: V.clamp(),
    'div: rounding_mode must be None, "floor" or "trunc", got \'up\'': lambda: tt.div(
        V, 2, rounding_mode="up"
    ),
    "t: expected at most 2 dimensions, got shape (2, 3, 4); use transpose(dim0, dim1)": CUBE.t,
    "expand: (2, 2) does not give a size to each dim of (2, 3, 4)": lambda: CUBE.expand(2, 2),
    "broadcast_to: (2, 3) does not broadcast to (4, 3)": lambda: X.expand(4, 3),
    "repeat: 1 sizes for the 2 dimensions of (2, 3)": lambda: X.repeat(2),
    "flatten: start_dim 1 comes after end_dim 0": lambda: X.flatten(1, 0),
    "narrow: 3 elements from 1 on do not lie in dim 1 of size 3": lambda: X.narrow(1, 1, 3),
    "select: dim 2 does not exist in a tensor of 2 dimensions": lambda: X.select(2, 0),
    "gather: index (1,) must have as many dims as input (2, 3)": lambda: X.gather(
        1, tt.tensor([1])
    ),
    "gather: index (3, 1) exceeds input (2, 3) in dim 0; only dim 1 may differ": lambda: X.gather(
        1, tt.tensor([[0]] * 3)
    ),
    "scatter_add: index (2, 2) is larger than src (2, 1)": lambda: X.scatter_add(
        1, tt.tensor([[0, 0]] * 2), tt.ones(2, 1)
    ),
    "index_select: the index must be a vector, got shape (1, 1)": lambda: X.index_select(
        0, tt.tensor([[1]])
    ),
    "mm: expected tensors of 2 and 2 dimensions, got (2, 3) and (3,)": lambda: tt.mm(X, V),
    "bmm: 2 matrices in (2, 3, 4), 1 in (1, 4, 3)": lambda: tt.bmm(CUBE, CUBE[:1].mT),
    "dot: expected tensors of 1 and 1 dimensions, got (2, 3) and (3,)": lambda: tt.dot(X, V),
    "diag: expected a vector or a matrix, got shape (2, 3, 4)": CUBE.diag,
}


@pytest.mark.parametrize("sentence", ERRORS)
def test_errors_name_the_numbers(sentence):
    with pytest.raises((ValueError, IndexError, TypeError)) as caught:
        ERRORS[sentence]()
    assert str(caught.value) == sentence


def test_hyperbolic_functions_up_to_where_they_overflow():
    x = np.array([-89.4, -1.0, -1e-6, 0.0, 1e-6, 1.0, 89.4], np.float32)  # e^89.4 is beyond float32
    for ours, numpys in ((tt.sinh, np.sinh), (tt.cosh, np.cosh)):
        expected = numpys(x.astype(np.float64))
        assert (expected < np.finfo(np.float32).max).all()
        np.testing.assert_allclose(ours(tt.tensor(x)).numpy(), expected, rtol=1e-5)


def test_diff_of_booleans_is_where_they_change():
    x = np.array([True, False, False, True])
    assert (tt.diff(tt.tensor(x)).numpy() == np.diff(x)).all()
