"""The methods and operators of Tensor: a table that binds functions of other files to the class.

Nothing is computed here. An operator calls its operation in `ops/` directly (`a + b` is `ops.add`),
a method is the function of the same name in `functions.py`, `x.add_(y)` and `x += y` are in
`inplace.py`, `repr` is in `printing.py`. What is written out below are the methods that have no
function beside them: conversions, questions and Python's protocols.
"""

# An operation returns Any, for it answers arrays with arrays and tensors with tensors.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import backend, creation, functions, inplace, ops, printing, rearranging
from .backend import DType, bfloat16, is_array
from .tensor import Tensor

# --- operators -----------------------------------------------------------------------------------

_OPERANDS = {
    Tensor,
    float,
    int,
    bool,
    np.ndarray,
}  # the usual types; others are asked for one by one


def is_operand(other: Any) -> bool:
    """Whether Tensor's operators compute with `other`. TypeError for a list: a likely mistake."""
    if isinstance(other, Tensor | int | float | np.generic) or is_array(other):
        return True
    if isinstance(other, list | tuple):
        raise TypeError(
            f"a tensor and a {type(other).__name__} do not combine; "
            f"wrap it: tt.tensor({str(other)[:40]})"
        )
    return False


def _binary(operation: Any) -> Callable[[Tensor, Any], Any]:
    def method(self: Tensor, other: Any) -> Any:
        if type(other) in _OPERANDS or is_operand(other):
            return operation(self, other)
        return NotImplemented

    return method


def _reflected(operation: Any) -> Callable[[Tensor, Any], Any]:
    def method(self: Tensor, other: Any) -> Any:
        if type(other) in _OPERANDS or is_operand(other):
            return operation(other, self)
        return NotImplemented

    return method


_ARITHMETIC = {
    "add": ("+=", ops.add),
    "sub": ("-=", ops.subtract),
    "mul": ("*=", ops.multiply),
    "truediv": ("/=", ops.divide),
    "floordiv": ("//=", ops.floor_divide),
    "mod": ("%=", ops.remainder),
    "pow": ("**=", ops.power),
    "matmul": ("@=", ops.matmul),
    "and": ("&=", ops.bitwise_and),
    "or": ("|=", ops.bitwise_or),
    "xor": ("^=", ops.bitwise_xor),
}
_COMPARISONS = {
    "__eq__": ops.equal,
    "__ne__": ops.not_equal,
    "__lt__": ops.less,
    "__le__": ops.less_equal,
    "__gt__": ops.greater,
    "__ge__": ops.greater_equal,
}


def _invert(self: Tensor) -> Tensor:
    """~x: not, for booleans; all bits turned, for integers."""
    if self.dtype == np.bool_:
        return ops.logical_not(self)
    if self.dtype.kind not in "iu":
        raise TypeError(f"~x: expected booleans or integers, got {self.dtype}")
    return ops.bitwise_xor(self, -1 if self.dtype.kind == "i" else np.iinfo(self.dtype).max)


def _getitem(self: Tensor, index: Any) -> Any:
    return ops.getitem(self, index)


_UNARY: dict[str, Callable[..., Any]] = {
    "__neg__": lambda self: ops.negative(self),
    "__pos__": lambda self: self,
    "__abs__": lambda self: ops.absolute(self),
    "__invert__": _invert,
    "__getitem__": _getitem,
}

# --- Python's protocols --------------------------------------------------------------------------


def _only_element(name: str, x: Tensor) -> Any:
    array = x.array
    if array.size != 1:
        raise ValueError(
            f"{name}: the tensor has shape {x.shape} and {array.size} elements, not one"
        )
    return array.item()


def _bool(self: Tensor) -> bool:
    if self.array.size != 1:
        raise ValueError(
            f"bool: a tensor of shape {self.shape} is neither true nor false; "
            "use .any(), .all() or `is None`"
        )
    return bool(self.array.item())


def _index(self: Tensor) -> int:
    if self.dtype.kind not in "iub":
        raise TypeError(f"index: only integer tensors can be an index, not {self.dtype}")
    return int(_only_element("index", self))


def _len(self: Tensor) -> int:
    if self.ndim == 0:
        raise TypeError("len: a tensor without dimensions has no length")
    return self.shape[0]


def _iter(self: Tensor) -> Iterator[Tensor]:
    if self.ndim == 0:
        raise TypeError("iter: a tensor without dimensions cannot be iterated over")
    return (ops.getitem(self, i) for i in range(self.shape[0]))


def _contains(self: Tensor, item: Any) -> bool:
    return bool(ops.equal(self, item).array.any())


def _array(self: Tensor, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
    return np.array(numpy(self), dtype=dtype, copy=copy)


def _dlpack(self: Tensor, **options: Any) -> Any:
    if self.requires_grad:
        raise BufferError("dlpack: this tensor requires a gradient; export x.detach()")
    if self.dtype == bfloat16:
        raise BufferError("dlpack: bfloat16 arrays cannot be exported; export x.float()")
    return self.array.__dlpack__(**options)


def _dlpack_device(self: Tensor) -> Any:
    return self.array.__dlpack_device__()


def _cuda_array_interface(self: Tensor) -> Any:
    return (
        self.array.__cuda_array_interface__
    )  # AttributeError for a NumPy array, as the protocol wants


_PROTOCOLS: dict[str, Any] = {
    "__bool__": _bool,
    "__int__": lambda self: int(_only_element("int", self)),
    "__float__": lambda self: float(_only_element("float", self)),
    "__index__": _index,
    "__len__": _len,
    "__iter__": _iter,
    "__contains__": _contains,
    "__hash__": object.__hash__,  # by identity, though == compares elements
    "__array__": _array,
    "__dlpack__": _dlpack,
    "__dlpack_device__": _dlpack_device,
    "__cuda_array_interface__": property(_cuda_array_interface),
    "__repr__": printing.tensor_repr,
    "__format__": printing.tensor_format,
    "_repr_html_": printing.tensor_html,
}

# --- conversions ---------------------------------------------------------------------------------


def item(self: Tensor) -> Any:
    """The Python number in a tensor of one element."""
    return _only_element("item", self)


def tolist(self: Tensor) -> Any:
    """The elements as Python numbers in nested lists."""
    array = self.array
    return (array.astype(np.float32) if array.dtype == bfloat16 else array).tolist()


def numpy(self: Tensor, *, force: bool = False) -> np.ndarray[Any, Any]:
    """The NumPy array inside, not a copy; `force=True` also detaches, and copies from a GPU."""
    if force:
        return backend.to_numpy(self.array)
    if self.requires_grad:
        raise RuntimeError("numpy: this tensor requires a gradient; call .detach() first")
    if not isinstance(self.array, np.ndarray):
        raise TypeError(f"numpy: this tensor is on device '{self.device}'; call .cpu() first")
    return self.array


def to(
    self: Tensor,
    *args: Any,
    dtype: Any = None,
    device: Any = None,
    non_blocking: bool = False,
    copy: bool = False,
) -> Tensor:
    """This tensor with another dtype, on another device, or both as another tensor has them.

    `x.to(tt.float64)`, `x.to("cuda")`, `x.to(device, dtype)`, `x.to(other)`. Returns x itself where
    nothing changes.
    """
    for arg in args:
        if isinstance(arg, Tensor):
            dtype, device = arg.dtype, arg.device
        elif isinstance(arg, str | backend.device):
            device = arg
        elif arg is not None and not isinstance(arg, bool):
            dtype = arg
    result = self
    if device is not None and self.device != device:
        result = ops.to_device(result, device)
    if dtype is not None and result.dtype != dtype:
        result = ops.astype(result, np.dtype(dtype))
    return ops.copy(result) if copy and result is self else result


def astype(self: Tensor, dtype: Any, copy: bool = True) -> Tensor:
    """NumPy's name for `to(dtype)`, so that one body serves arrays and tensors."""
    return ops.astype(self, dtype)


def _caster(name: str, dtype: DType) -> Callable[[Tensor], Tensor]:
    def method(self: Tensor) -> Tensor:
        return self if self.value.dtype == dtype else ops.astype(self, dtype)

    method.__name__ = method.__qualname__ = name
    method.__doc__ = f"This tensor as {dtype}."
    return method


def type_(self: Tensor, dtype: Any = None) -> Any:
    """The tensor as `dtype`; without one, the name of its dtype."""
    return str(self.dtype) if dtype is None else to(self, dtype=dtype)


def contiguous(self: Tensor) -> Tensor:
    """This tensor in row-major order in memory: itself, or a copy."""
    return self if is_contiguous(self) else ops.ascontiguousarray(self)


def is_contiguous(self: Tensor) -> bool:
    """Whether the elements lie in row-major order in memory."""
    return bool(self.array.flags.c_contiguous)


_CONVERSIONS: dict[str, Any] = {
    "item": item,
    "tolist": tolist,
    "numpy": numpy,
    "to": to,
    "astype": astype,
    "type": type_,
    "type_as": lambda self, other: to(self, dtype=other.dtype),
    "cpu": lambda self: to(self, "cpu"),
    "cuda": lambda self, device=None: to(self, backend.device("cuda", device)),
    "pin_memory": lambda self: (
        self
    ),  # page-locked memory matters to GPU transfers only; CuPy does its own
    "contiguous": contiguous,
    "is_contiguous": is_contiguous,
    "float": _caster("float", np.dtype(np.float32)),
    "double": _caster("double", np.dtype(np.float64)),
    "half": _caster("half", np.dtype(np.float16)),
    "bfloat16": _caster("bfloat16", bfloat16),
    "long": _caster("long", np.dtype(np.int64)),
    "int": _caster("int", np.dtype(np.int32)),
    "short": _caster("short", np.dtype(np.int16)),
    "byte": _caster("byte", np.dtype(np.uint8)),
    "bool": _caster("bool", np.dtype(np.bool_)),
}

# --- questions -----------------------------------------------------------------------------------


def size(self: Tensor, dim: int | None = None) -> Any:
    """The shape, or the size of one dim."""
    if dim is None:
        return self.shape
    return self.shape[rearranging.dim_from_front("size", dim, self.ndim)]


def stride(self: Tensor, dim: int | None = None) -> Any:
    """How many elements apart the neighbours along each dim (or one) lie in memory."""
    strides = tuple(step // self.array.itemsize for step in self.array.strides)
    return strides if dim is None else strides[dim]


def data_ptr(self: Tensor) -> int:
    """The address of the first element."""
    array = self.array
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


_QUESTIONS: dict[str, Any] = {
    "size": size,
    "stride": stride,
    "data_ptr": data_ptr,
    "dim": lambda self: self.ndim,
    "ndimension": lambda self: self.ndim,
    "numel": functions.numel,
    "nelement": functions.numel,
    "element_size": lambda self: self.array.itemsize,
    "is_floating_point": functions.is_floating_point,
    "itemsize": property(lambda self: self.array.itemsize),
    "nbytes": property(lambda self: self.array.nbytes),
    "is_cuda": property(lambda self: self.device.type == "cuda"),
}

# --- shape, with the sizes as arguments ----------------------------------------------------------


def _given(sizes: tuple[Any, ...]) -> Any:
    """The sizes in `x.view(2, 3)` or `x.view((2, 3))`."""
    return sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes


def reshape(self: Tensor, *shape: Any) -> Tensor:
    """The elements, in order, in another shape; one size may be -1. A view where possible."""
    if len(shape) == 1:
        shape = shape[0]
        if isinstance(shape, np.dtype | type):
            raise TypeError(
                "view: reinterpreting memory as another dtype is not offered; x.to(dtype) converts"
            )
    return ops.reshape(self, shape)


def _matrix_transpose(self: Tensor) -> Tensor:
    if self.ndim < 2:
        raise ValueError(f"mT: expected at least 2 dimensions, got shape {self.shape}")
    return ops.swapaxes(self, -2, -1)


_SHAPES: dict[str, Any] = {
    "view": reshape,
    "reshape": reshape,
    "view_as": lambda self, other: ops.reshape(self, other.shape),
    "reshape_as": lambda self, other: ops.reshape(self, other.shape),
    "expand_as": lambda self, other: functions.broadcast_to(self, other.shape),
    "permute": lambda self, *dims: ops.transpose(self, _given(dims)),
    "flip": lambda self, *dims: ops.flip(self, tuple(_given(dims))),
    "tile": lambda self, *dims: ops.tile(self, tuple(_given(dims))),
    "T": property(lambda self: ops.transpose(self)),
    "mT": property(_matrix_transpose),
}

# --- new tensors like this one -------------------------------------------------------------------


def _like(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def method(
        self: Tensor, *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False
    ) -> Tensor:
        return make(
            *size,
            dtype=self.dtype if dtype is None else dtype,
            device=self.device if device is None else device,
            requires_grad=requires_grad,
        )

    return method


_NEW: dict[str, Any] = {
    "new_zeros": _like(creation.zeros),
    "new_ones": _like(creation.ones),
    "new_empty": _like(creation.empty),
    "new_full": _like(creation.full),
    "new_tensor": _like(creation.tensor),
}

# --- functions that are methods too --------------------------------------------------------------

# Every function of functions.py takes its tensor first and so is a method, except these; and a
# method written out in this file goes before a function of the same name.
_ONLY_FUNCTIONS = {
    "broadcast_tensors", "bucketize", "cat", "cdist", "concat", "concatenate", "einsum", "hstack",
    "is_tensor", "isin", "meshgrid", "searchsorted", "stack", "tensordot", "tril_indices",
    "triu_indices", "vstack",
}  # fmt: skip


def where(self: Tensor, condition: Any, other: Any) -> Tensor:
    """This tensor where the condition holds, `other` elsewhere."""
    return ops.where(condition, self, other)


def _bind() -> None:
    names = set(functions.__all__) - _ONLY_FUNCTIONS
    table: dict[str, Any] = {name: getattr(functions, name) for name in names}
    for name, (symbol, operation) in _ARITHMETIC.items():
        table[f"__{name}__"] = _binary(operation)
        table[f"__r{name}__"] = _reflected(operation)
        table[f"__i{name}__"] = inplace.augmented(f"__i{name}__", symbol, operation, is_operand)
    for name, operation in _COMPARISONS.items():
        table[name] = _binary(operation)
    for more in (_UNARY, _PROTOCOLS, _CONVERSIONS, _QUESTIONS, _SHAPES, _NEW, inplace.METHODS):
        table |= more
    table["where"] = where
    for name, value in table.items():
        setattr(Tensor, name, value)


_bind()
