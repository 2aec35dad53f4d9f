"""How a tensor looks: `repr` in PyTorch's layout, `format` of one number, a table in a notebook.

Four digits, a column width common to all numbers, and the middle left out of what has more than
1,000 elements. `repr` never fails and never changes anything; it is called by debuggers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import backend
from .autograd import Leaf
from .backend import default_dtype, is_floating

if TYPE_CHECKING:
    from .tensor import Tensor


@dataclass
class _Options:
    precision: int = 4  # digits
    threshold: int = 1000  # more elements than this are summarised
    edgeitems: int = 3  # elements shown at each end of a summarised axis
    linewidth: int = 80


options = _Options()
_TABLE = 32  # rows and columns that _repr_html_ shows at most

_GAP = "..."  # stands for the elements that are left out

Strings = Any  # a string, or nested lists of strings


def set_printoptions(
    precision: int | None = None,
    threshold: int | None = None,
    edgeitems: int | None = None,
    linewidth: int | None = None,
) -> None:
    """How tensors are printed from now on: digits (4), the number of elements above which the
    middle is left out (1,000), how many are then shown at each end (3), the width of a line (80).
    """
    given = {
        "precision": precision,
        "threshold": threshold,
        "edgeitems": edgeitems,
        "linewidth": linewidth,
    }
    for name, value in given.items():
        if value is not None and value < 0:
            raise ValueError(f"set_printoptions: {name} must not be negative, got {value}")
    for name, value in given.items():
        if value is not None:
            setattr(options, name, value)


def tensor_repr(x: Tensor) -> str:
    """`tensor([[1., 2.]], dtype=float64, requires_grad=True)`; a result has `grad_fn=<exp>`."""
    name = "tensor" if type(x).__name__ == "Tensor" else type(x).__name__.lower()
    array = backend.to_numpy(x.array)
    indent = len(name) + 1
    body = _layout(_strings(array), indent) if array.size else "[]"
    notes = []
    if array.size == 0 and array.ndim != 1:
        notes.append(f"size={array.shape}")
    if x.device.type != "cpu":
        notes.append(f"device='{x.device}'")
    if array.dtype not in (default_dtype, np.int64, np.bool_):
        notes.append(f"dtype={array.dtype}")
    if isinstance(x.node, Leaf):
        notes.append("requires_grad=True")
    elif x.node is not None:
        notes.append(f"grad_fn=<{x.node.operation}>")
    return _with_notes(f"{name}({body}", notes, indent)


def _with_notes(text: str, notes: list[str], indent: int) -> str:
    length = len(text) - text.rfind("\n") - 1
    for note in notes:
        if length + len(note) + 2 > options.linewidth:
            text += ",\n" + " " * indent + note
            length = indent + len(note)
        else:
            text += ", " + note
            length += len(note) + 2
    return text + ")"


def _strings(array: np.ndarray[Any, Any]) -> Strings:
    """The numbers as text of one width, nested like the array, _GAP where elements are left out."""
    summarise = array.size > options.threshold
    shown = _edges(array) if summarise else array
    write, width = _writer(shown.reshape(-1))

    def nest(part: np.ndarray[Any, Any]) -> Strings:
        if part.ndim == 0:
            return write(part.item()).rjust(width)
        if summarise and len(part) > 2 * options.edgeitems:
            ends = [*part[: options.edgeitems], None, *part[-options.edgeitems :]]
        else:
            ends = list(part)
        return [_GAP if item is None else nest(np.asarray(item)) for item in ends]

    return nest(array)


def _edges(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    edge = options.edgeitems
    for axis, size in enumerate(array.shape):
        if size > 2 * edge:
            array = np.take(array, [*range(edge), *range(size - edge, size)], axis)
    return array


def _writer(values: np.ndarray[Any, Any]) -> tuple[Callable[[Any], str], int]:
    """A function from number to text, and the width of the column."""
    if not is_floating(values.dtype):
        return str, max(len(str(v)) for v in values.tolist())
    # Zeros, infinities and nans decide neither the notation nor the width: PyTorch's layout.
    numbers = values.astype(np.float64)
    numbers = numbers[np.isfinite(numbers) & (numbers != 0)]
    size = np.abs(numbers)
    smallest, largest = float(size.min(initial=math.inf)), float(size.max(initial=0.0))
    whole = bool((size == np.ceil(size)).all())
    digits = f".{options.precision}f"
    if largest > 1e8 or largest > 1000 * smallest or (not whole and smallest < 1e-4):
        digits = f".{options.precision}e"
    elif whole:
        digits = ".0f"

    def write(value: float) -> str:
        text = format(value, digits)
        return text + "." if digits == ".0f" and math.isfinite(value) else text

    return write, max((len(write(v)) for v in numbers.tolist()), default=0)


def _layout(strings: Strings, indent: int) -> str:
    if isinstance(strings, str):
        return strings
    if isinstance(strings[0], str):
        per_line = max(1, (options.linewidth - indent) // (len(strings[0]) + 2))
        strings = [" ..." if s == _GAP else s for s in strings]
        lines = [strings[i : i + per_line] for i in range(0, len(strings), per_line)]
        return "[" + (",\n" + " " * (indent + 1)).join(", ".join(line) for line in lines) + "]"
    depth = _depth(strings)
    between = "," + "\n" * (depth - 1) + " " * (indent + 1)
    return "[" + between.join(_layout(part, indent + 1) for part in strings) + "]"


def _depth(strings: Strings) -> int:
    return 0 if isinstance(strings, str) else 1 + _depth(strings[0])


def tensor_format(x: Tensor, spec: str) -> str:
    """`f"{loss:.3f}"`: a tensor without axes is formatted as the number it holds."""
    if x.ndim == 0:
        return format(x.array.item(), spec)
    if spec:
        raise TypeError(
            f"format: {spec!r} formats one number, but the tensor has shape {x.shape}; use .item()"
        )
    return tensor_repr(x)


def tensor_html(x: Tensor) -> str | None:
    """A small vector or matrix as a table, blue below zero, red above; None for other tensors."""
    array = backend.to_numpy(x.array)
    if not 1 <= array.ndim <= 2 or array.size == 0 or max(array.shape) > _TABLE:
        return None
    rows = np.atleast_2d(array)
    numbers = rows.astype(np.float64)
    largest = np.abs(numbers[np.isfinite(numbers)]).max(initial=0.0) or 1.0
    write, _ = _writer(rows.reshape(-1))
    body = "".join(
        "<tr>"
        + "".join(_cell(write(v), n / largest) for v, n in zip(row.tolist(), line, strict=True))
        + "</tr>"
        for row, line in zip(rows, numbers, strict=True)
    )
    caption = f"{array.dtype} {array.shape}"
    if isinstance(x.node, Leaf):
        caption += ", requires_grad"
    elif x.node is not None:
        caption += f", grad_fn={x.node.operation}"
    return (
        '<table style="border-collapse:collapse;font-family:monospace;font-size:12px">'
        f'<caption style="text-align:left">{caption}</caption>{body}</table>'
    )


def _cell(text: str, share: float) -> str:
    """One number; the depth of its colour is its share of the largest."""
    color = "" if not math.isfinite(share) else "215,48,39" if share > 0 else "69,117,180"
    shade = f"background:rgba({color},{0.75 * abs(share):.3f});" if color else ""
    return f'<td style="{shade}padding:2px 5px;text-align:right">{text}</td>'
