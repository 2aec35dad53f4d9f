"""Filling tensors with starting values: `nn.init.normal_(linear.weight, std=0.02)`.

Every function writes into the tensor's own memory, records nothing, and returns the tensor. Random
ones take `generator=`; without it they draw from the default one, which `tt.manual_seed` seeds.
A weight is (out, in, …): fan_in is the number of inputs that one output sums, fan_out the reverse.
"""

from __future__ import annotations

import math

import numpy as np

from .. import random
from ..autograd import note_write
from ..backend import Array, DType, array_module, device_of, to_device
from ..random import Generator
from ..tensor import Tensor, check_tensors

__all__ = [
    "calculate_gain",
    "constant_",
    "eye_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]


def _fill(tensor: Tensor, values: Array | float) -> Tensor:
    array = tensor.array
    array[...] = values
    note_write(array)
    return tensor


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Every element is `val`."""
    return _fill(tensor, val)


def zeros_(tensor: Tensor) -> Tensor:
    """Every element is 0."""
    return _fill(tensor, 0)


def ones_(tensor: Tensor) -> Tensor:
    """Every element is 1."""
    return _fill(tensor, 1)


def eye_(tensor: Tensor) -> Tensor:
    """A matrix of zeros with ones on its diagonal."""
    if tensor.ndim != 2:
        raise ValueError(f"eye_: expected a matrix, got shape {tuple(tensor.shape)}")
    return _fill(tensor, array_module(tensor.array).eye(*tensor.shape))


def uniform_(
    tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Uniform on [a, b)."""
    if a > b:
        raise ValueError(f"uniform_: the range from {a} to {b} is empty")
    dtype = _real("uniform_", tensor)
    xp = array_module(tensor.array)
    return _fill(tensor, random.uniform(tensor.shape, a, b, dtype, generator, xp))


def normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Normal, with this mean and standard deviation."""
    if std < 0:
        raise ValueError(f"normal_: std must not be negative, got {std}")
    dtype = _real("normal_", tensor)
    xp = array_module(tensor.array)
    return _fill(tensor, random.normal(tensor.shape, mean, std, dtype, generator, xp))


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
) -> Tensor:
    """Normal, with this mean and standard deviation, given that it lies in [a, b].

    Draws outside are drawn again. Raises ValueError if less than one draw in a thousand would lie
    inside.
    """
    if std <= 0 or a >= b:
        raise ValueError(f"trunc_normal_: needs std > 0 and a < b, got std={std}, a={a}, b={b}")
    dtype = _real("trunc_normal_", tensor)
    inside = 0.5 * (_erf_at(b, mean, std) - _erf_at(a, mean, std))
    if inside < 1e-3:
        raise ValueError(
            f"trunc_normal_: only {inside:.1e} of a normal distribution with mean {mean} and std "
            f"{std} lies between {a} and {b}; widen the interval or move the mean into it"
        )
    xp = array_module(tensor.array)
    count = math.prod(tensor.shape)
    kept = xp.empty(0, dtype)
    while kept.size < count:
        missing = count - kept.size
        # Enough for what is missing in nearly every case: the mean number of draws, and some.
        draws = random.normal(
            (math.ceil(1.1 * missing / inside) + 16,), mean, std, dtype, generator, xp
        )
        kept = xp.concatenate([kept, draws[(draws >= a) & (draws <= b)]])
    return _fill(tensor, kept[:count].reshape(tensor.shape))


def _erf_at(x: float, mean: float, std: float) -> float:
    return math.erf((x - mean) / (std * math.sqrt(2)))


def orthogonal_(tensor: Tensor, gain: float = 1, generator: Generator | None = None) -> Tensor:
    """`gain` times a random matrix with orthonormal rows, or columns if those are fewer.

    Axes after the first are taken as one. A. Saxe, J. McClelland and S. Ganguli, 2013; the signs of
    R's diagonal make the distribution uniform (F. Mezzadri, 2007).
    """
    if tensor.ndim < 2:
        raise ValueError(f"orthogonal_: expected two or more axes, got {tuple(tensor.shape)}")
    _real("orthogonal_", tensor)
    rows = tensor.shape[0]
    columns = math.prod(tensor.shape[1:])
    shape = (max(rows, columns), min(rows, columns))
    q, r = np.linalg.qr(random.normal(shape, dtype=np.dtype(np.float64), generator=generator))
    q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
    q = gain * (q.T if rows < columns else q).reshape(tensor.shape)
    return _fill(tensor, to_device(q, device_of(tensor.array)))


# --- by the width of a layer ----------------------------------------------------------------------

_GAINS = {
    "linear": 1.0,
    "sigmoid": 1.0,
    "tanh": 5.0 / 3,
    "relu": math.sqrt(2.0),
    "selu": 0.75,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps a signal's variance through a nonlinearity, as PyTorch tabulates it.

    For "leaky_relu", `param` is the negative slope (0.01).
    """
    if nonlinearity == "leaky_relu":
        return math.sqrt(2 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in _GAINS:
        known = ", ".join([*_GAINS, "leaky_relu"])
        raise ValueError(f"calculate_gain: {nonlinearity!r} is unknown; known are {known}")
    return _GAINS[nonlinearity]


def xavier_uniform_(
    tensor: Tensor, gain: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Uniform, with standard deviation gain · √(2 / (fan_in + fan_out)) (Glorot, Bengio, 2010)."""
    bound = gain * math.sqrt(6 / sum(fans("xavier_uniform_", tensor)))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Normal, with standard deviation gain · √(2 / (fan_in + fan_out))."""
    std = gain * math.sqrt(2 / sum(fans("xavier_normal_", tensor)))
    return normal_(tensor, 0.0, std, generator)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Uniform, with standard deviation gain / √fan (He et al., 2015); `a` is leaky_relu's slope."""
    bound = math.sqrt(3) * _kaiming_std("kaiming_uniform_", tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Normal, with standard deviation gain / √fan; `a` is leaky_relu's slope."""
    std = _kaiming_std("kaiming_normal_", tensor, a, mode, nonlinearity)
    return normal_(tensor, 0.0, std, generator)


def _kaiming_std(name: str, tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"{name}: mode is {mode!r}; it is 'fan_in' or 'fan_out'")
    fan = fans(name, tensor)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(max(1, fan))


def fans(name: str, tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (out, in, …)."""
    if tensor.ndim < 2:
        raise ValueError(
            f"{name}: needs a weight of two or more axes, (out, in, …), to count the inputs of an "
            f"output; this tensor is {tuple(tensor.shape)}"
        )
    inside = math.prod(tensor.shape[2:])
    return tensor.shape[1] * inside, tensor.shape[0] * inside


def _real(name: str, tensor: Tensor) -> DType:
    check_tensors(name, tensor=tensor)
    random.check_floating(name, tensor.dtype)
    return tensor.dtype
