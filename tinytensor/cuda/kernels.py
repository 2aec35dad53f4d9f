"""Where the CUDA sources are, what their kernels take, and `launch`: one call, two back ends.

On NumPy arrays (and those of the device "cuda-sim") a kernel runs in the simulator (`simulator.py`,
needs a C++ compiler); on CuPy arrays it is compiled by NVRTC and runs on the GPU. Arguments follow
the kernel's signature: `arrays` fill its pointers (outputs, then inputs; None is a null pointer),
`scalars` the rest, each in order. A source has variants: `defines` are macros, such as ("real",
"bf16"), that it is compiled with; it says what it is without them by `#ifndef real` / `#define real
float`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, DType, bfloat16, cupy
from .device import SimArray

# C++ type -> dtype of the arrays that a pointer to it takes, and of the scalars passed by value.
TYPES: dict[str, DType] = {
    "bool": np.dtype(np.bool_),
    "char": np.dtype(np.int8),
    "signed char": np.dtype(np.int8),
    "unsigned char": np.dtype(np.uint8),
    "short": np.dtype(np.int16),
    "unsigned short": np.dtype(np.uint16),
    "int": np.dtype(np.int32),
    "unsigned": np.dtype(np.uint32),
    "unsigned int": np.dtype(np.uint32),
    "long long": np.dtype(np.int64),
    "unsigned long long": np.dtype(np.uint64),
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "bf16": bfloat16,
}

Defines = tuple[tuple[str, Any], ...]


class Parameter(NamedTuple):
    """One parameter of a kernel: its C++ type without const, whether a pointer, whether const."""

    name: str
    type: str
    pointer: bool
    const: bool


Signature = tuple[Parameter, ...]


def folder() -> Path:
    """The folder of the CUDA sources: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    for candidate in (package / "kernels", package.parent / "kernels"):
        if (candidate / "sim.h").is_file():
            return candidate
    raise RuntimeError(f"the CUDA sources are missing: no kernels folder in or beside {package}")


# --- signatures ----------------------------------------------------------------------------------

_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+(?:void\s+)?(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?'
    r"(?:void\s+)?(\w+)\s*\(([^)]*)\)"
)
_DEFAULT = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)[ \t]+([\w ]+?)[ \t]*(?://.*)?$", re.M)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([\w./]+)"', re.M)


def signatures(source: str, defines: Defines = ()) -> dict[str, Signature]:
    """Name -> parameters of every `extern "C" __global__` kernel in a source text.

    Types may be macros: of `defines`, or with a default in the source or in a header that it
    includes.
    """
    kinds = {**_defaults(source), **{key: str(value) for key, value in defines}}
    return {
        name: tuple(_parameter(p, kinds) for p in text.split(",") if p.strip())
        for name, text in _KERNEL.findall(_without_comments(source))
    }


def _without_comments(source: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", " ", source, flags=re.S)


def _defaults(source: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for header in _INCLUDE.findall(source):
        path = folder() / header
        if path.is_file():
            found |= _defaults(path.read_text(encoding="utf-8"))
    return found | dict(_DEFAULT.findall(source))


def _parameter(text: str, kinds: dict[str, str]) -> Parameter:
    words = text.replace("*", " * ").replace("__restrict__", "").split()
    kind = " ".join(word for word in words[:-1] if word not in ("const", "*"))
    for _ in range(8):  # a macro may stand for another
        if kind in TYPES or kind not in kinds:
            break
        kind = kinds[kind]
    return Parameter(words[-1], kind, "*" in words, "const" in words)


@cache
def source_of() -> dict[str, Path]:
    """Kernel name -> the file that defines it."""
    return {
        name: path
        for path in sorted(folder().glob("*.cu"))
        for name in signatures(path.read_text(encoding="utf-8"))
    }


@cache
def signature(name: str, defines: Defines = ()) -> Signature:
    """What kernel `name` takes, in the variant of `defines`."""
    if name not in source_of():
        raise ValueError(f"there is no kernel {name!r}; there are {', '.join(sorted(source_of()))}")
    return signatures(source_of()[name].read_text(encoding="utf-8"), defines)[name]


def bind(
    name: str,
    parameters: Sequence[Parameter],
    arrays: Sequence[Array],
    scalars: Sequence[float],
) -> list[Any]:
    """Arrays and scalars in the order of the signature, checked: count, dtype, contiguity."""
    pointers = sum(p.pointer for p in parameters)
    if (pointers, len(parameters)) != (len(arrays), len(arrays) + len(scalars)):
        raise ValueError(
            f"{name} takes {pointers} arrays and {len(parameters) - pointers} scalars, "
            f"but got {len(arrays)} and {len(scalars)}"
        )
    array_queue, scalar_queue = iter(arrays), iter(scalars)
    values: list[Any] = []
    for p in parameters:
        kind = TYPES.get(p.type)
        if kind is None:
            raise TypeError(
                f"{name}: nothing is known of the type {p.type!r} of {p.name}; it is no macro that "
                "was defined, nor one of " + ", ".join(TYPES)
            )
        if not p.pointer:
            values.append(kind.type(next(scalar_queue)))
            continue
        array = next(array_queue)
        if array is not None:
            flags = kind == np.uint8 and array.dtype == np.bool_
            if array.dtype != kind and not flags:
                raise TypeError(f"{name}: {p.name} must be {kind}, not {array.dtype}")
            if not array.flags.c_contiguous:
                raise ValueError(
                    f"{name}: {p.name} {array.shape} must be contiguous; its strides are "
                    f"{array.strides} bytes"
                )
        values.append(array)
    return values


# --- launching -----------------------------------------------------------------------------------


def launch(
    name: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arrays: Sequence[Array],
    scalars: Sequence[Any] = (),
    seed: int | None = None,
    *,
    defines: Defines = (),
    shared_bytes: int = 0,
) -> None:
    """Run kernel `name` over `grid` blocks of `block` threads; outputs are written in place.

    A grid with no block does nothing. `defines` choose the variant, `shared_bytes` is the dynamic
    shared memory of a block. `seed` orders blocks and threads in the simulator (left out:
    `simulator.seed`). On a GPU the kernel runs on CuPy's current stream.

    Raises ValueError and TypeError for arguments that do not fit the signature, SimulationError for
    what the simulator catches.
    """
    defines = tuple((str(key), value) for key, value in defines)
    parameters = signature(name, defines)
    if 0 in grid:
        return
    arrays = [array.host if isinstance(array, SimArray) else array for array in arrays]
    if all(array is None or isinstance(array, np.ndarray) for array in arrays):
        from . import simulator

        simulator.launch(
            source_of()[name].read_text(encoding="utf-8"),
            name,
            grid,
            block,
            arrays,
            scalars,
            defines=defines,
            shared_bytes=shared_bytes,
            seed=seed,
            file=source_of()[name].name,
        )
        return
    values = bind(name, parameters, arrays, scalars)
    function = _function(source_of()[name], name, defines, int(cupy().cuda.Device().id))
    if shared_bytes > 48 * 1024 and function.max_dynamic_shared_size_bytes < shared_bytes:
        function.max_dynamic_shared_size_bytes = shared_bytes
    null = np.uintp(0)
    function(grid, block, tuple(null if v is None else v for v in values), shared_mem=shared_bytes)


def options(defines: Defines) -> tuple[str, ...]:
    """What NVRTC is told, beside the architecture."""
    variant = [f"-D{key}={value}" for key, value in defines]
    return ("--std=c++17", f"-I{folder()}", f"--pre-include={folder() / 'gpu.h'}", *variant)


@cache
def _function(path: Path, name: str, defines: Defines, device: int) -> Any:
    """The compiled kernel on one device: CuPy keeps the module for each device it is used on."""
    return _module(path, defines, device).get_function(name)


@cache
def _module(path: Path, defines: Defines, device: int) -> Any:
    return cupy().RawModule(code=path.read_text(encoding="utf-8"), options=options(defines))
