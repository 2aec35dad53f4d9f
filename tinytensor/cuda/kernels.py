"""Where the CUDA sources are, what their kernels take, and `launch`: one call, two back ends.

On NumPy arrays a kernel runs in the simulator (`simulator.py`, needs a C++ compiler); on CuPy
arrays it is compiled by NVRTC and runs on the GPU. Arguments follow the kernel's signature:
`arrays` fill its pointers (outputs, then inputs), `scalars` the rest, each in order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, cupy

SCALAR_TYPES: dict[str, type[np.generic]] = {
    "int": np.int32,
    "unsigned int": np.uint32,
    "long long": np.int64,
    "unsigned long long": np.uint64,
    "float": np.float32,
    "double": np.float64,
}


class Parameter(NamedTuple):
    """One parameter of a kernel: its C++ type without const, whether a pointer, whether const."""

    name: str
    type: str
    pointer: bool
    const: bool


def folder() -> Path:
    """The folder of the CUDA sources: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    for candidate in (package / "kernels", package.parent / "kernels"):
        if (candidate / "sim.h").is_file():
            return candidate
    raise RuntimeError(f"the CUDA sources are missing: no kernels folder in or beside {package}")


def signatures(source: str) -> dict[str, tuple[Parameter, ...]]:
    """Name -> parameters of every `extern "C" __global__` kernel in a source text."""
    found = re.findall(r'extern "C" __global__ void (\w+)\(([^)]*)\)', source)
    return {name: tuple(_parameter(p) for p in text.split(",")) for name, text in found}


def _parameter(text: str) -> Parameter:
    words = text.replace("*", " * ").replace("__restrict__", "").split()
    kind = " ".join(word for word in words[:-1] if word not in ("const", "*"))
    return Parameter(words[-1], kind, "*" in words, "const" in words)


@cache
def source_of() -> dict[str, Path]:
    """Kernel name -> the file that defines it."""
    return {
        name: path
        for path in sorted(folder().glob("*.cu"))
        for name in signatures(path.read_text(encoding="utf-8"))
    }


def bind(
    name: str,
    parameters: Sequence[Parameter],
    arrays: Sequence[Array],
    scalars: Sequence[float],
) -> list[Any]:
    """Arrays and scalars in the order of the signature, checked: count, dtype, contiguity."""
    pointers = [p for p in parameters if p.pointer]
    if (len(pointers), len(parameters)) != (len(arrays), len(arrays) + len(scalars)):
        raise ValueError(
            f"{name} takes {len(pointers)} arrays and {len(parameters) - len(pointers)} scalars, "
            f"but got {len(arrays)} and {len(scalars)}"
        )
    for p, array in zip(pointers, arrays, strict=True):
        if array.dtype != SCALAR_TYPES[p.type]:
            raise TypeError(f"{name}: {p.name} must be {p.type}, not {array.dtype}")
        if not array.flags.c_contiguous:
            raise ValueError(f"{name}: {p.name} {array.shape} must be contiguous")
    array_queue, scalar_queue = iter(arrays), iter(scalars)
    return [
        next(array_queue) if p.pointer else SCALAR_TYPES[p.type](next(scalar_queue))
        for p in parameters
    ]


def launch(
    name: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arrays: Sequence[Array],
    scalars: Sequence[float] = (),
    seed: int = 0,
) -> None:
    """Run kernel `name` over `grid` blocks of `block` threads; outputs are written in place.

    A grid with no block does nothing. `seed` orders blocks and threads in the simulator.
    """
    if name not in source_of():
        raise ValueError(f"there is no kernel {name!r}; there are {', '.join(sorted(source_of()))}")
    if 0 in grid:
        return
    path = source_of()[name]
    if all(isinstance(array, np.ndarray) for array in arrays):
        from . import simulator

        simulator.launch(path.read_text(encoding="utf-8"), name, grid, block, arrays, scalars, seed)
        return
    parameters = signatures(path.read_text(encoding="utf-8"))[name]
    values = bind(name, parameters, arrays, scalars)
    _module(path).get_function(name)(grid, block, tuple(values))


@cache
def _module(path: Path) -> Any:
    options = ("--std=c++17", f"-I{folder()}")
    return cupy().RawModule(code=path.read_text(encoding="utf-8"), options=options)
