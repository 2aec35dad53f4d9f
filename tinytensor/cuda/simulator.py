"""Runs kernels on the CPU: compiles a CUDA source against `kernels/sim.h`, and calls it by ctypes.

The header says what is simulated and what is caught. Compiled libraries are kept in the user's
cache folder under a hash of everything that went into them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .kernels import SCALAR_TYPES, bind, folder, signatures

FLAGS = ("-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-ffp-contract=off", "-w")


class SimulationError(RuntimeError):
    """A kernel broke a rule: an access out of bounds, or a barrier that not all threads reach."""


def compiler() -> str:
    """The C++ compiler: the one that CXX names, else g++; a sentence where there is none."""
    for name in (os.environ.get("CXX", ""), "g++", "c++"):
        if name and (path := shutil.which(name)):
            return path
    raise RuntimeError("the CUDA simulator needs a C++ compiler: install g++, or set CXX")


@cache
def library(source: str) -> ctypes.CDLL:
    """`source` compiled against the simulator header, from the cache if it was compiled before."""
    glue = []
    for name, parameters in signatures(source).items():
        values = ", ".join(
            f"*({p.type}{'*' if p.pointer else ''}*)slots[{i}]" for i, p in enumerate(parameters)
        )
        pointers = ", ".join(f"slots[{i}]" for i, p in enumerate(parameters) if p.pointer)
        glue.append(
            f"static void call_{name}(void** slots) {{ {name}({values}); }}\n"
            f'extern "C" int launch_{name}(const unsigned* shape, unsigned seed, int count, '
            "void** arrays, const long long* sizes, void** slots, char* message, size_t room) {\n"
            f"void* pointers[] = {{{pointers}}};\n"
            f"return sim::launch(call_{name}, shape, seed, count, arrays, sizes, slots, pointers, "
            "message, room); }\n"
        )
    text = f'#include "sim.h"\n#line 1 "kernel.cu"\n{source}\n' + "".join(glue)
    digest = hashlib.sha256(" ".join((compiler(), *FLAGS, text)).encode())
    for header in sorted([*folder().glob("*.h"), *folder().glob("*.cuh")]):
        digest.update(header.read_bytes())
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    target = Path(root) / "tinytensor" / "simulator" / f"{digest.hexdigest()[:32]}.so"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            path, built = Path(work) / "kernel.cpp", Path(work) / "kernel.so"
            path.write_text(text, encoding="utf-8")
            command = [compiler(), *FLAGS, f"-I{folder()}", str(path), "-o", str(built)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"the simulator could not compile a kernel:\n{done.stderr}")
            built.replace(target)  # at once: another process may be building the same
    return ctypes.CDLL(str(target))


def launch(
    source: str,
    name: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arrays: Sequence[np.ndarray[Any, Any]],
    scalars: Sequence[float] = (),
    seed: int = 0,
) -> None:
    """Run kernel `name` of `source`; raises SimulationError with the kernel, block and thread."""
    parameters = signatures(source)[name]
    values = bind(name, parameters, arrays, scalars)
    pointers = [p for p in parameters if p.pointer]
    # Each slot holds one argument; the simulator fills the pointers with its guarded copies.
    slots = [
        ctypes.create_string_buffer(
            bytes(8) if p.pointer else SCALAR_TYPES[p.type](value).tobytes().ljust(8, b"\0"), 8
        )
        for p, value in zip(parameters, values, strict=True)
    ]
    # One more than the bytes, so that an empty array too has a sign: negative is read-only.
    sizes = [
        -(a.nbytes + 1) if p.const else a.nbytes + 1 for p, a in zip(pointers, arrays, strict=True)
    ]
    shape = [*grid, *(1,) * (3 - len(grid)), *block, *(1,) * (3 - len(block))]
    message = ctypes.create_string_buffer(400)
    count = len(arrays)
    status = getattr(library(source), f"launch_{name}")(
        (ctypes.c_uint * 6)(*shape),
        ctypes.c_uint(seed),
        ctypes.c_int(count),
        (ctypes.c_void_p * count)(*(a.ctypes.data for a in arrays)),
        (ctypes.c_longlong * count)(*sizes),
        (ctypes.c_void_p * len(slots))(*(ctypes.addressof(s) for s in slots)),
        message,
        ctypes.c_size_t(len(message)),
    )
    if status:
        raise SimulationError(f"{name}: {message.value.decode()} (seed {seed})")
