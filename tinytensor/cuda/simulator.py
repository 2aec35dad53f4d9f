"""Runs kernels on the CPU: compiles a CUDA source against `kernels/sim.h`, and calls it by ctypes.

`kernels/sim.cpp` says what is simulated and what is caught. Compiled libraries are kept in the
user's cache folder under a hash of everything that went into them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .kernels import TYPES, Defines, bind, folder, signatures
from .tensor_map import TensorMap

BASE = ("-std=c++17", "-g", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-w")
RUNTIME_FLAGS = (*BASE, "-O2")
# Loads and stores call the runtime's hooks; an index beyond a declared array is an illegal
# instruction.
KERNEL_FLAGS = (
    *BASE,
    "-O1",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-tree-sra",  # a float4 is loaded whole, as on the GPU
    "-fsanitize=thread",
    "--param=tsan-instrument-func-entry-exit=0",
    "-fsanitize=bounds",
    "-fsanitize-undefined-trap-on-error",
)

# What orders blocks and threads where a launch does not say.
seed = 0


class SimulationError(RuntimeError):
    """A kernel broke a rule: an access out of bounds, a race, a barrier that not all threads
    reach.
    """


def compiler() -> str:
    """The C++ compiler: the one that CXX names, else g++; a sentence where there is none."""
    for name in (os.environ.get("CXX", ""), "g++", "c++"):
        if name and (path := shutil.which(name)):
            return path
    raise RuntimeError("the CUDA simulator needs a C++ compiler: install g++, or set CXX")


# --- compiling -----------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "tinytensor" / "simulator"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the simulator could not compile a kernel:\n{done.stderr}")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join((compiler(), *parts)).encode()).hexdigest()[:32]


@cache
def _headers(place: Path, *patterns: str) -> str:
    found = sorted(path for pattern in patterns for path in place.glob(pattern))
    return "".join(path.read_text(encoding="utf-8") for path in found)


@cache
def _precompiled(flags: tuple[str, ...]) -> Path:
    """A folder with sim.h, compiled once for `flags`: half the time of compiling a kernel.

    A compiler that does not look for precompiled headers takes the plain one.
    """
    place = cache_folder() / _digest(*flags, _headers(folder(), "*.h"))
    target = place / "sim.h.gch"
    if not target.is_file():
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as work:
            built = Path(work) / "sim.h.gch"
            header = str(folder() / "sim.h")
            _run([compiler(), *flags, "-x", "c++-header", header, "-o", str(built)])
            built.replace(target)  # at once: another process may be building the same
    return place


@cache
def _runtime() -> list[str]:
    """sim.cpp compiled twice: what is linked before a kernel, and what after."""
    source = folder() / "sim.cpp"
    found = []
    for part in ((), ("-DSIM_END",)):
        digest = _digest(_headers(folder(), "*.cpp", "*.h"), *RUNTIME_FLAGS, *part)
        target = cache_folder() / f"{digest}.o"
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as work:
                built = Path(work) / "sim.o"
                command = [compiler(), *RUNTIME_FLAGS, *part, "-c", str(source), "-o", str(built)]
                _run(command)
                built.replace(target)  # at once: another process may be building the same
        found.append(str(target))
    return found


@cache
def library(
    source: str, defines: Defines = (), file: str = "kernel.cu", traced: bool = False
) -> ctypes.CDLL:
    """`source` compiled against the simulator header, from the cache if it was compiled before.

    `traced`: each step of a thread, from one branch to the next, is seen by the runtime too.
    """
    flags = (*KERNEL_FLAGS, *(("-fsanitize-coverage=trace-pc",) if traced else ()))
    glue = []
    for name, parameters in signatures(source, defines).items():
        values = ", ".join(
            f"*({p.type}{'*' if p.pointer else ''}*)slots[{i}]" for i, p in enumerate(parameters)
        )
        glue.append(
            f"static void call_{name}(void** slots) {{ {name}({values}); }}\n"
            f'extern "C" __attribute__((visibility("default"))) void launch_{name}(void* what) {{ '
            f"sim::launch(call_{name}, (sim::Launch*)what); }}\n"
        )
    macros = "".join(f"#define {key} {value}\n" for key, value in defines)
    text = (
        f'#include "sim.h"\n{macros}#line 1 "{file}"\n{source}\n#line 1 "glue"\n'
        "namespace sim { struct Launch; void launch(void (*)(void**), Launch*); }\n"
        '#pragma GCC diagnostic ignored "-Wall"\n' + "".join(glue)
    )
    before, after = _runtime()
    digest = _digest(*flags, text, _headers(folder(), "*.h", "*.cuh"), before, after)
    target = cache_folder() / f"{digest}.so"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            path, compiled, built = (Path(work) / f"kernel.{end}" for end in ("cpp", "o", "so"))
            path.write_text(text, encoding="utf-8")
            include = (f"-I{_precompiled(flags)}", f"-I{folder()}")
            _run([compiler(), *flags, *include, "-c", str(path), "-o", str(compiled)])
            # Without -fsanitize here: the hooks are sim.cpp's, not the sanitizer's own library.
            _run([compiler(), "-shared", before, str(compiled), after, "-o", str(built)])
            built.replace(target)
    return ctypes.CDLL(str(target))


# --- launching: the structures of sim.cpp ---------------------------------------------------------


class _Region(ctypes.Structure):
    _fields_ = (
        ("memory", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("writable", ctypes.c_uint64),
    )


class _Pointer(ctypes.Structure):
    _fields_ = (
        ("region", ctypes.c_int64),
        ("offset", ctypes.c_uint64),
        ("slot", ctypes.c_void_p),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("seed", ctypes.c_uint32),
        ("shared_bytes", ctypes.c_uint32),
        ("region_count", ctypes.c_uint32),
        ("pointer_count", ctypes.c_uint32),
        ("counted_blocks", ctypes.c_uint32),
        ("failed", ctypes.c_uint32),
        ("regions", ctypes.c_void_p),
        ("pointers", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("message", ctypes.c_char_p),
        ("room", ctypes.c_uint64),
        ("log", ctypes.c_void_p),
        ("log_size", ctypes.c_uint64),
        ("log_used", ctypes.c_uint64),
        ("fault_pc", ctypes.c_uint64),
        ("other_pc", ctypes.c_uint64),
        ("switches", ctypes.c_uint64),
        ("stacks", ctypes.c_void_p),
    )


# An access to memory as sim.cpp logs it; kind: 1 a write, 2 shared memory.
ACCESS = np.dtype(
    [
        ("address", np.uint64),
        ("pc", np.uint32),
        ("block", np.uint32),
        ("thread", np.uint16),
        ("bytes", np.uint8),
        ("kind", np.uint8),
        ("padding", np.uint32),
    ]
)

switches = 0  # of fibers, in the last launch
_stacks: int | None = None  # of the fibers: made by the first launch of the process


class Observer(NamedTuple):
    """Sees what the first `blocks` of every launch access: `see(name, log, needed, blocks,
    threads)`.

    `log` has room for `room` accesses, and `needed` is how many there were.
    """

    see: Callable[[str, np.ndarray[Any, Any], int, int, int], None]
    blocks: int
    room: int


observer: Observer | None = None


def launch(
    source: str,
    name: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arrays: Sequence[np.ndarray[Any, Any] | TensorMap | None],
    scalars: Sequence[float] = (),
    seed: int | None = None,
    *,
    defines: Defines = (),
    shared_bytes: int = 0,
    file: str = "kernel.cu",
) -> None:
    """Run kernel `name` of `source`; raises SimulationError with the kernel, block, thread and
    line.
    """
    global switches, _stacks
    parameters = signatures(source, defines)[name]
    values = bind(name, parameters, arrays, scalars)
    # Each slot holds one argument; the simulator fills the pointers with its guarded copies.
    words = (ctypes.c_uint64 * max(1, len(parameters)))()
    slots = (ctypes.c_void_p * max(1, len(parameters)))()
    maps = {}
    for i, (p, value) in enumerate(zip(parameters, values, strict=True)):
        slots[i] = ctypes.addressof(words) + 8 * i
        if isinstance(value, TensorMap):
            maps[i] = value.simulated()
            slots[i] = ctypes.addressof(maps[i])
        elif not p.pointer:
            words[i] = int.from_bytes(np.asarray(value, TYPES[p.type]).tobytes(), "little")
    slot_of = [slots[i] for i, p in enumerate(parameters) if p.of_array]
    writable = [not p.const for p in parameters if p.of_array]
    behind = [array.array if isinstance(array, TensorMap) else array for array in arrays]
    regions, pointers = _regions(behind, writable, slot_of)
    message = ctypes.create_string_buffer(500)
    which = globals()["seed"] if seed is None else seed
    log = np.empty(observer.room if observer else 0, ACCESS)
    job = _Launch(
        (*grid, *(1,) * (3 - len(grid))),
        (*block, *(1,) * (3 - len(block))),
        which % 2**32,
        shared_bytes,
        len(regions),
        len(pointers),
        observer.blocks if observer else 0,
        0,
        ctypes.addressof(regions),
        ctypes.addressof(pointers),
        ctypes.addressof(slots),
        ctypes.cast(message, ctypes.c_char_p),
        len(message),
        log.ctypes.data,
        len(log),
        0,
        0,
        0,
        0,
        _stacks,
    )
    loaded = library(source, defines, file, observer is not None)
    getattr(loaded, f"launch_{name}")(ctypes.byref(job))
    switches, _stacks = int(job.switches), job.stacks
    if job.failed:
        text = message.value.decode()
        if job.fault_pc:
            text += f"; at {line_of(loaded, job.fault_pc)}"
        if job.other_pc:
            text += f", the other at {line_of(loaded, job.other_pc)}"
        raise SimulationError(f"{name}: {text} (seed {which})")
    if observer:
        blocks, threads = int(np.prod(grid)), int(np.prod(block))
        observer.see(name, log, int(job.log_used), blocks, threads)


def _regions(
    arrays: Sequence[np.ndarray[Any, Any] | None], writable: Sequence[bool], slots: Sequence[Any]
) -> tuple[Any, Any]:
    """The memory to copy, arrays that overlap (a kernel in place, parts of one array) together."""
    spans = sorted(
        (array.ctypes.data, array.ctypes.data + array.nbytes, i)
        for i, array in enumerate(arrays)
        if array is not None
    )
    merged: list[list[int]] = []
    region_of: dict[int, int] = {}
    for begin, end, i in spans:
        if not merged or begin >= merged[-1][1]:
            merged.append([begin, end, 0])
        merged[-1][1] = max(merged[-1][1], end)
        merged[-1][2] |= writable[i]
        region_of[i] = len(merged) - 1
    regions = (_Region * max(1, len(merged)))(
        *(_Region(begin, end - begin, write) for begin, end, write in merged)
    )
    pointers = (_Pointer * len(arrays))()
    for i, array in enumerate(arrays):
        pointers[i].region = region_of.get(i, -1)
        pointers[i].slot = slots[i]
        if array is not None:
            pointers[i].offset = array.ctypes.data - merged[region_of[i]][0]
    return regions, pointers


def line_of(loaded: ctypes.CDLL, pc: int) -> str:
    """File and line of an instruction, where binutils are installed; else its offset.

    Of a function that was put into a kernel, the line in the kernel's own file is told.
    """
    tool = shutil.which("addr2line")
    if tool is None:
        return f"instruction {pc:#x}"
    command = [tool, "-i", "-e", loaded._name, hex(pc - 1)]
    found = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    places = [Path(line.split(" ")[0]).name for line in found if not line.startswith("?")]
    own = [place for place in places if not place.split(":")[0].endswith((".cuh", ".h"))]
    return (own or places or [f"instruction {pc:#x}"])[0]
