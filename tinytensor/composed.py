"""PyTorch's functions that are a few operations of ours one after the other.

None has a formula for its gradient: that follows from the parts. The third part of `tt.*`, beside
`functions.py` and `rearranging.py`.
"""

# An operation returns Any, for it answers arrays with arrays and tensors with tensors.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import ops
from .backend import array_module, finfo, is_floating
from .rearranging import array_of, dim_from_front, takes_axis
from .tensor import Tensor, as_tensor, check_tensors

__all__ = [
    "addcdiv", "addcmul", "broadcast_tensors", "bucketize", "cdist", "cosh", "cumprod",
    "diag_embed", "diff", "fmod", "frac", "index_fill", "isin", "kron", "logaddexp", "meshgrid",
    "nan_to_num", "ravel", "searchsorted", "sinh", "take", "tan", "tensordot", "tril_indices",
    "triu_indices", "trunc",
]  # fmt: skip

# --- element by element ---------------------------------------------------------------------------


def tan(input: Tensor) -> Tensor:
    """The tangent, sin(x) / cos(x)."""
    return ops.divide(ops.sin(input), ops.cos(input))


def sinh(input: Tensor) -> Tensor:
    """The hyperbolic sine (eˣ - e⁻ˣ) / 2 = 2 sinh(x/2) cosh(x/2), which is exact for small x too.

    The half does not overflow before the result does.
    """
    half = ops.divide(input, 2)
    grows, falls = ops.expm1(half), ops.expm1(ops.negative(half))
    return ops.multiply(ops.subtract(grows, falls) / 2, ops.add(ops.add(grows, falls), 2))


def cosh(input: Tensor) -> Tensor:
    """The hyperbolic cosine (eˣ + e⁻ˣ) / 2 = 1 + 2 sinh²(x/2)."""
    half = ops.divide(input, 2)
    twice = ops.subtract(ops.expm1(half), ops.expm1(ops.negative(half)))  # 2 sinh(x/2)
    return ops.add(ops.multiply(twice / 2, twice), 1)


def trunc(input: Tensor) -> Tensor:
    """The integer part, rounded towards zero; its gradient is 0 everywhere."""
    return ops.where(input < 0, ops.ceil(input), ops.floor(input))


def frac(input: Tensor) -> Tensor:
    """What `trunc` takes away: x - trunc(x), of the sign of x."""
    return ops.subtract(input, trunc(input))


def fmod(input: Tensor, other: Any) -> Tensor:
    """The remainder of input / other that has the sign of `input` (`remainder` has `other`'s)."""
    rest = ops.remainder(ops.absolute(input), ops.absolute(other))
    return ops.where(input < 0, ops.negative(rest), rest)


def logaddexp(input: Tensor, other: Tensor) -> Tensor:
    """log(eˣ + eʸ), which neither overflows nor underflows."""
    return ops.logsumexp(ops.stack(broadcast_tensors(input, other), 0), 0)


def nan_to_num(
    input: Tensor, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> Tensor:
    """NaN replaced by `nan`; ±inf by `posinf`, `neginf`, or the dtype's largest finite numbers."""
    if not is_floating(input.dtype):
        return ops.copy(input)
    limits = finfo(input.dtype)
    high = float(limits.max) if posinf is None else posinf
    low = float(limits.min) if neginf is None else neginf
    finite = ops.where(ops.isnan(input), nan, input)
    finite = ops.where(ops.equal(finite, math.inf), high, finite)
    return ops.where(ops.equal(finite, -math.inf), low, finite)


def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """input + value · tensor1 · tensor2."""
    return ops.add(input, ops.multiply(ops.multiply(tensor1, tensor2), value))


def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """input + value · tensor1 / tensor2."""
    return ops.add(input, ops.multiply(ops.divide(tensor1, tensor2), value))


# --- along a dim ----------------------------------------------------------------------------------


@takes_axis
def cumprod(input: Tensor, dim: int) -> Tensor:
    """y[i] = x[0] · … · x[i] along `dim`, in log₂ n rounds; the gradient is right at zeros too.

    In round k each element is multiplied by the one 2ᵏ before it: G. Hillis and G. Steele, "Data
    Parallel Algorithms", Communications of the ACM 29 (1986).
    """
    if input.dtype.kind in "biu":
        input = input.long()
    if input.ndim == 0:
        return ops.copy(input)
    dim = dim_from_front("cumprod", dim, input.ndim)
    before = (slice(None),) * dim
    shift = 1
    while shift < input.shape[dim]:
        late, early = input[(*before, slice(shift, None))], input[(*before, slice(None, -shift))]
        input = ops.concatenate([input[(*before, slice(None, shift))], late * early], dim)
        shift *= 2
    return input


@takes_axis
def diff(input: Tensor, n: int = 1, dim: int = -1) -> Tensor:
    """x[i + 1] - x[i] along `dim`, n times; of booleans, whether the two differ."""
    if n < 0:
        raise ValueError(f"diff: n is how many times, not negative, but it is {n}")
    before = (slice(None),) * dim_from_front("diff", dim, input.ndim)
    minus = ops.not_equal if input.dtype.kind == "b" else ops.subtract
    for _ in range(n):
        input = minus(input[(*before, slice(1, None))], input[(*before, slice(None, -1))])
    return input


# --- several tensors ------------------------------------------------------------------------------


def broadcast_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All of them in the shape that they broadcast to."""
    shapes = [tuple(x.shape) for x in tensors]
    try:
        shape = np.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(
            f"broadcast_tensors: shapes {', '.join(map(str, shapes))} do not broadcast together"
        ) from None
    return tuple(ops.broadcast_to(x, shape) for x in tensors)


def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Tensor, ...]:
    """The coordinates of a grid: n vectors -> n tensors with an axis for each vector.

    "ij": the i-th vector varies along axis i; "xy": the first two axes change places.
    """
    vectors = list(
        tensors[0] if len(tensors) == 1 and not isinstance(tensors[0], Tensor) else tensors
    )
    if indexing not in ("ij", "xy"):
        raise ValueError(f'meshgrid: indexing must be "ij" or "xy", got {indexing!r}')
    if not vectors or any(v.ndim > 1 for v in vectors):
        raise ValueError(f"meshgrid: expected vectors, got {[tuple(v.shape) for v in vectors]}")
    shape = tuple(v.numel() for v in vectors)
    grids = [
        ops.broadcast_to(v.reshape((1,) * i + (-1,) + (1,) * (len(vectors) - 1 - i)), shape)
        for i, v in enumerate(vectors)
    ]
    if indexing == "xy" and len(vectors) > 1:
        grids = [ops.swapaxes(grid, 0, 1) for grid in grids]
    return tuple(grids)


def tensordot(a: Tensor, b: Tensor, dims: Any = 2) -> Tensor:
    """Σ over the last `dims` axes of a and the first of b; or over pairs of (axes of a, of b)."""
    if isinstance(dims, int):
        if not 0 <= dims <= min(a.ndim, b.ndim):
            raise ValueError(
                f"tensordot: dims is a number of axes that {tuple(a.shape)} and {tuple(b.shape)} "
                f"both have, but it is {dims}"
            )
        of_a, of_b = list(range(a.ndim - dims, a.ndim)), list(range(dims))
    else:
        of_a = [dim_from_front("tensordot", i, a.ndim) for i in dims[0]]
        of_b = [dim_from_front("tensordot", i, b.ndim) for i in dims[1]]
    if [a.shape[i] for i in of_a] != [b.shape[i] for i in of_b]:
        raise ValueError(
            f"tensordot: axes {of_a} of {tuple(a.shape)} and {of_b} of {tuple(b.shape)} are summed "
            "over together, but their sizes differ"
        )
    rest_a = [i for i in range(a.ndim) if i not in of_a]
    rest_b = [i for i in range(b.ndim) if i not in of_b]
    inner = math.prod(a.shape[i] for i in of_a)
    left = ops.transpose(a, (*rest_a, *of_a)).reshape(-1 if inner else 0, inner)
    right = ops.transpose(b, (*of_b, *rest_b)).reshape(inner, -1 if inner else 0)
    return ops.matmul(left, right).reshape(
        [*(a.shape[i] for i in rest_a), *(b.shape[i] for i in rest_b)]
    )


def kron(input: Tensor, other: Tensor) -> Tensor:
    """The Kronecker product: every element of `input` times the whole of `other`, side by side."""
    ndim = max(input.ndim, other.ndim)
    a = (1,) * (ndim - input.ndim) + tuple(input.shape)
    b = (1,) * (ndim - other.ndim) + tuple(other.shape)
    left = input.reshape([size for n in a for size in (n, 1)])
    right = other.reshape([size for n in b for size in (1, n)])
    return (left * right).reshape([m * n for m, n in zip(a, b, strict=True)])


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0) -> Tensor:
    """The distances between rows: (…, P, M) and (…, R, M) -> (…, P, R), by the p-norm."""
    check_tensors("cdist", x1=x1, x2=x2)
    if x1.ndim < 2 or x2.ndim < 2 or x1.shape[-1] != x2.shape[-1]:
        raise ValueError(
            f"cdist: expected rows of one length, (…, P, M) and (…, R, M), got {tuple(x1.shape)} "
            f"and {tuple(x2.shape)}"
        )
    return ops.norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), ord=p, axis=-1)


# --- picking and placing --------------------------------------------------------------------------


def ravel(input: Tensor) -> Tensor:
    """All elements in one row, in order."""
    return input.reshape(-1)


def take(input: Tensor, index: Tensor) -> Tensor:
    """The elements at the numbers `index`, counted through the whole tensor in order."""
    if index.dtype.kind not in "iu":
        raise TypeError(f"take: index holds numbers of elements, but it is {index.dtype}")
    return ravel(input)[index]


def index_fill(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """`input` with `value`, a number, at the numbers `index` (a vector) of `dim`."""
    check_tensors("index_fill", input=input, index=index)
    if index.ndim > 1 or index.dtype.kind not in "iu":
        raise ValueError(
            f"index_fill: the index is a vector of integers, not {index.dtype} of shape "
            f"{tuple(index.shape)}"
        )
    dim = dim_from_front("index_fill", dim, input.ndim)
    xp = array_module(input.array)
    filled = xp.zeros(input.shape[dim], bool)
    filled[array_of(index)] = True
    shape = [size if i == dim else 1 for i, size in enumerate(input.shape)]
    return ops.masked_fill(input, as_tensor(filled.reshape(shape)), value)


def diag_embed(input: Tensor) -> Tensor:
    """(…, n) -> (…, n, n): the last axis as the diagonals of matrices that are 0 elsewhere."""
    if input.ndim == 0:
        raise ValueError("diag_embed: expected at least one axis, got a tensor without axes")
    n = input.shape[-1]
    identity = array_module(input.array).eye(n, dtype=bool)
    return ops.where(as_tensor(identity), input.unsqueeze(-1), 0)


def tril_indices(row: int, col: int, offset: int = 0) -> Tensor:
    """The places of a matrix's lower triangle, row by row: (2, number), int64."""
    return as_tensor(np.stack(np.tril_indices(row, offset, col)))


def triu_indices(row: int, col: int, offset: int = 0) -> Tensor:
    """The places of a matrix's upper triangle, row by row: (2, number), int64."""
    return as_tensor(np.stack(np.triu_indices(row, offset, col)))


def isin(elements: Tensor, test_elements: Any) -> Tensor:
    """Where an element is one of `test_elements`."""
    xp = array_module(elements.array)
    return as_tensor(xp.isin(elements.array, array_of(test_elements)))


def searchsorted(sorted_sequence: Tensor, input: Any, *, right: bool = False) -> Tensor:
    """Where each number belongs in an ascending vector: before its equals, or after with `right`.

    int64, in the shape of `input`.
    """
    if sorted_sequence.ndim != 1:
        raise ValueError(
            f"searchsorted: expected one ascending vector, got shape {tuple(sorted_sequence.shape)}"
        )
    boundaries, numbers = sorted_sequence.array, array_of(input)
    found = array_module(boundaries).searchsorted(
        boundaries, numbers, side="right" if right else "left"
    )
    return as_tensor(found)


def bucketize(input: Any, boundaries: Tensor, *, right: bool = False) -> Tensor:
    """The number of the interval between `boundaries` that each element lies in."""
    return searchsorted(boundaries, input, right=right)
