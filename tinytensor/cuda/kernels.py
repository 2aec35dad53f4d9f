"""Where the CUDA sources are, what their kernels take, and `launch`: one call, two back ends.

On NumPy arrays (and those of the device "cuda-sim") a kernel runs in the simulator (`simulator.py`,
needs a C++ compiler); on CuPy arrays it is compiled by NVRTC and runs on the GPU. Arguments follow
the kernel's signature: `arrays` fill its pointers and tensor maps (outputs, then inputs; None is a
null pointer), `scalars` the rest, each in order. A source has variants: `defines` are macros, such
as ("real", "bf16"), that it is compiled with; it says what it is without them by `#ifndef real` /
`#define real float`.

Subnormal numbers (below 1.2e-38 in float32) are numbers like others in all three places: the CPU,
the simulator and our kernels on a GPU, which are compiled with `--ftz=false` and not through CuPy.
CuPy compiles its own functions with `-ftz=true`: an operation without a kernel of ours takes such
numbers for zero on a GPU.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, DType, bfloat16, cupy
from . import capture
from .device import SimArray
from .tensor_map import TensorMap

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
    "TensorMap": bfloat16,  # by value: of an array, and counted among them
}

# Sources that one architecture alone has the instructions for; the others run on all from sm_75 on.
ONLY = {"matmul_wgmma.cu": "sm_90a"}
OLDEST = 75  # compute capability, times ten

Defines = tuple[tuple[str, Any], ...]


class Parameter(NamedTuple):
    """One parameter of a kernel: its C++ type without const, whether a pointer, whether const."""

    name: str
    type: str
    pointer: bool
    const: bool

    @property
    def of_array(self) -> bool:
        """Whether an array stands behind it: a pointer to its elements, or a tensor map."""
        return self.pointer or self.type == "TensorMap"


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
    words = re.sub("__restrict__|__grid_constant__", "", text.replace("*", " * ")).split()
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
    pointers = sum(p.of_array for p in parameters)
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
        if not p.of_array:
            values.append(kind.type(next(scalar_queue)))
            continue
        array = value = next(array_queue)
        if isinstance(value, TensorMap) != (not p.pointer):
            raise TypeError(
                f"{name}: {p.name} takes {'an array' if p.pointer else 'a TensorMap'}, not "
                f"{type(value).__name__}"
            )
        if isinstance(value, TensorMap):
            array = value.array
        if array is not None:
            flags = kind == np.uint8 and array.dtype == np.bool_
            if array.dtype != kind and not flags:
                raise TypeError(f"{name}: {p.name} must be {kind}, not {array.dtype}")
            if not array.flags.c_contiguous:
                raise ValueError(
                    f"{name}: {p.name} {array.shape} must be contiguous; its strides are "
                    f"{array.strides} bytes"
                )
        values.append(value)
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
    arrays = [_on_host(array) for array in arrays]
    behind = [array.array if isinstance(array, TensorMap) else array for array in arrays]
    if all(array is None or isinstance(array, np.ndarray) for array in behind):
        from . import simulator

        run = partial(
            simulator.launch,
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
        capture.noted(name, run)
        return
    values = bind(name, parameters, arrays, scalars)
    function = _function(source_of()[name], name, defines, int(cupy().cuda.Device().id))
    # 48 KB need no asking, but what the kernel itself declares is part of them.
    if shared_bytes > 40 * 1024 and function.max_dynamic_shared_size_bytes < shared_bytes:
        function.max_dynamic_shared_size_bytes = shared_bytes
    function(grid, block, tuple(_passed(value) for value in values), shared_mem=shared_bytes)


def _on_host(array: Any) -> Any:
    """The NumPy array inside one of "cuda-sim", a tensor map of it, or what was given."""
    if isinstance(array, TensorMap):
        return array._replace(array=_on_host(array.array))
    return array.host if isinstance(array, SimArray) else array


def _passed(value: Any) -> Any:
    """An argument as CuPy passes it on: by value, but for arrays of its own."""
    if value is None:
        return np.uintp(0)
    if isinstance(value, TensorMap):
        return cupy().cuda.function.CNumpyArray(value.encoded())
    return value


def options(defines: Defines) -> tuple[str, ...]:
    """What NVRTC is told, beside the architecture."""
    variant = [f"-D{key}={value}" for key, value in defines]
    include = (f"-I{folder()}", f"--pre-include={folder() / 'gpu.h'}")
    return ("--std=c++17", "--ftz=false", *include, *variant)


@cache
def _function(path: Path, name: str, defines: Defines, device: int) -> Any:
    """The compiled kernel on one device: CuPy keeps the module for each device it is used on."""
    return _module(path, defines, device).get_function(name)


@cache
def _module(path: Path, defines: Defines, device: int) -> Any:
    return cupy().RawModule(path=str(_compiled(path, _architecture(path), defines)))


def _architecture(path: Path) -> str:
    """What a source is compiled for on the current GPU."""
    capability = int(cupy().cuda.Device().compute_capability)
    found = architecture(capability, _nvrtc().getSupportedArchs())
    if ONLY.get(path.name, found) != found:
        raise RuntimeError(
            f"{path.name} is made for {ONLY[path.name]} alone, and this GPU is {found}"
        )
    return found


def architecture(capability: int, known: Sequence[int]) -> str:
    """NVRTC's name for a compute capability (90 is 9.0), or for the nearest of its generation that
    NVRTC knows; those compile to machine code that the GPU runs.

    Raises RuntimeError for a GPU that is too old for the kernels, or too new for NVRTC.
    """
    number = f"{capability // 10}.{capability % 10}"
    if capability < OLDEST:
        raise RuntimeError(
            f"the kernels are made for GPUs of compute capability {OLDEST / 10} and later, and this"
            f" one has {number}; use device='cpu'"
        )
    near = [k for k in known if k // 10 == capability // 10 and k <= capability]
    if not near:
        raise RuntimeError(
            f"NVRTC cannot compile for this GPU, whose compute capability is {number}: it knows "
            f"{', '.join(map(str, known))}; install CuPy's wheel for another version of CUDA "
            "(`python -m tinytensor doctor` names it)"
        )
    return f"sm_{max(near)}" + ("a" if max(near) == 90 else "")


def _compiled(path: Path, architecture: str, defines: Defines) -> Path:
    """The file with the machine code of `path`, kept where CuPy keeps what it compiles."""
    parts = (path.read_text(encoding="utf-8"), _headers(), architecture, *options(defines))
    digest = _digest(*parts, str(_nvrtc().getVersion()))
    target = _cache_folder() / f"tinytensor-{digest}.cubin"
    if not target.is_file():
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            built = Path(work) / "kernel.cubin"
            built.write_bytes(compile_for(path, architecture, defines)[0])
            built.replace(target)  # at once: another process may be building the same
    return target


@cache
def _cache_folder() -> Path:
    """CuPy's folder of compiled kernels; one for this process where that cannot be written."""
    found = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    try:
        found.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=found).close()
    except OSError:
        found = Path(tempfile.mkdtemp(prefix="tinytensor-"))
        atexit.register(shutil.rmtree, found, ignore_errors=True)
    return found


@cache
def _headers() -> str:
    """What becomes another number when a header changes."""
    return _digest(*(p.read_text(encoding="utf-8") for p in sorted(folder().glob("*.*h"))))


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


def _nvrtc() -> Any:
    """CuPy's binding of the compiler, which is a library of its own."""
    compiler = cupy().cuda.nvrtc
    try:
        compiler.getVersion()
    except (ImportError, OSError, RuntimeError) as error:
        raise RuntimeError(
            "the kernels cannot be compiled: NVRTC, CUDA's compiler, is not found; install it with "
            "CuPy's wheel (`python -m tinytensor doctor` has the line)"
        ) from error
    return compiler


def compile_for(path: Path, architecture: str, defines: Defines = ()) -> tuple[bytes, str]:
    """The machine code (CUBIN) of one source file in one variant, and the compiler's log.

    Needs NVRTC, no GPU and no driver. Raises RuntimeError with the log if it does not compile.
    """
    nvrtc = _nvrtc()
    program = nvrtc.createProgram(path.read_text(encoding="utf-8"), path.name, [], [])
    try:
        target = (f"--gpu-architecture={architecture}", "--ptxas-options=-v")
        nvrtc.compileProgram(program, [*target, *options(defines)])
        # CuPy takes the last byte for the end of a string and leaves it out; it is the ELF file's.
        return bytes(nvrtc.getCUBIN(program)) + b"\0", str(nvrtc.getProgramLog(program))
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program)
        raise RuntimeError(
            f"{path.name} {dict(defines)} does not compile for {architecture}:\n{log}"
        ) from error
    finally:
        nvrtc.destroyProgram(program)
