"""Which dtype comes out, for every pair of dtypes, and how bfloat16 is rounded."""

from __future__ import annotations

import numpy as np
import pytest

import tinytensor as tt
from tests.parity.compare import DTYPES, leaves, name_of, numbers, torch

pytestmark = pytest.mark.parity

WIDE_OPERATIONS = {
    "add": lambda L, a, b: a + b,
    "mul": lambda L, a, b: a * b,
    "div": lambda L, a, b: a / b,
    "maximum": lambda L, a, b: L.maximum(a, b) if isinstance(b, L.Tensor) else a,
    "where": lambda L, a, b: L.where(a == 1, a, b),
    "eq": lambda L, a, b: a == b,
    "pow": lambda L, a, b: a**b,
    "floor_divide": lambda L, a, b: a // b,
    "remainder": lambda L, a, b: a % b,
}


@pytest.mark.parametrize("left", DTYPES)
def test_promotion_of_every_pair(left):
    """Tensors with axes, without, and Python numbers, of every dtype, in every order."""
    seconds = [(d, shape) for d in DTYPES for shape in ((2,), ())] + [True, 2, 2.5]
    for shape in ((2,), ()):
        for second in seconds:
            both = {}
            for library in (tt, torch):
                a = library.ones(shape, dtype=getattr(library, left))
                if isinstance(second, tuple):
                    b = library.ones(second[1], dtype=getattr(library, second[0]))
                else:
                    b = second
                results = [name_of(library.result_type(a, b))]
                for function in WIDE_OPERATIONS.values():
                    for pair in ((a, b), (b, a)):
                        try:
                            results.append(name_of(function(library, *pair).dtype))
                        except (
                            RuntimeError,
                            TypeError,
                            AttributeError,
                            ZeroDivisionError,
                        ) as error:
                            results.append(type(error))
                both[library] = results
            if left == "bool" and second is True:  # a power has a dtype in PyTorch, and no numbers
                continue
            for mine, theirs in zip(both[tt], both[torch], strict=True):
                # What PyTorch refuses (remainders of booleans) may be answered here.
                assert mine == theirs or isinstance(theirs, type), (left, shape, second, both)


@pytest.mark.parametrize("name", ["exp", "sqrt", "sin", "sigmoid", "tanh", "erf", "log", "rsqrt"])
def test_functions_of_integers(name):
    for dtype in DTYPES:
        mine = getattr(tt, name)(tt.ones(3, dtype=getattr(tt, dtype)))
        theirs = getattr(torch, name)(torch.ones(3, dtype=getattr(torch, dtype)))
        assert name_of(mine.dtype) == name_of(theirs.dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int32", "uint8", "bool"])
@pytest.mark.parametrize(
    "name",
    [
        "sum",
        "mean",
        "prod",
        "cumsum",
        "amax",
        "argmax",
        "abs",
        "neg",
        "relu",
        "softmax",
        "sort",
        "max",
        "sign",
    ],
)
def test_dtypes_of_results(name, dtype):
    both = []
    for library in (tt, torch):
        x = library.ones(2, 3).to(getattr(library, dtype))
        needs_dim = name in ("cumsum", "softmax")
        try:
            y = leaves(getattr(library, name)(x, *([1] if needs_dim else [])))
            both.append([name_of(part.dtype) for part in y])
        except (RuntimeError, TypeError) as error:
            both.append(type(error))
    mine, theirs = both
    assert mine == theirs or isinstance(theirs, type)


# --- bfloat16 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "exp",
        "tanh",
        "sigmoid",
        "gelu",
        "softmax",
        "sum",
        "mean",
        "layer_norm",
        "matmul",
        "add",
        "mul",
        "div",
        "relu",
    ],
)
def test_bfloat16_rounds_as_pytorch_does(name):
    """Computed in float32 inside and rounded once, so at most one unit in the last place apart."""
    rng = np.random.default_rng(0)
    a, b = (
        rng.normal(size=(16, 32)).astype(tt.bfloat16),
        rng.normal(size=(16, 32)).astype(tt.bfloat16),
    )

    def call(L, a, b):
        F = L.nn.functional
        if name in ("gelu", "layer_norm"):
            return F.gelu(a) if name == "gelu" else F.layer_norm(a, (32,))
        if name == "matmul":
            return a @ b.t()
        if name in ("add", "mul", "div"):
            return getattr(L, name)(a, b)
        return (
            getattr(L, name)(a, dim=-1)
            if name in ("softmax", "sum", "mean")
            else getattr(L, name)(a)
        )

    mine = call(tt, tt.tensor(a), tt.tensor(b))
    theirs = call(torch, *(torch.tensor(x.astype(np.float32)).bfloat16() for x in (a, b)))
    assert mine.dtype == tt.bfloat16
    np.testing.assert_allclose(
        numbers(mine), numbers(theirs), rtol=2**-7, atol=2**-8 if name == "matmul" else 1e-30
    )
