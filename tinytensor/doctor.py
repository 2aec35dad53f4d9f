"""`python -m tinytensor doctor`: what this machine has, what falls back and why, and what mends it.

Every probe answers with findings and never raises: a machine with nothing is examined like one with
everything. A finding is *broken* when something that is installed cannot work as it is (two CuPy
wheels, a driver older than the wheel); what is merely absent is *missing*, with what is used
instead.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import threadpoolctl

from . import backend
from .cuda import simulator

GOOD, MISSING, BROKEN = "good", "missing", "broken"
LEGEND = {
    MISSING: "-  is not there; the line says what is done without it",
    BROKEN: "!  cannot work as it is",
}
EXTRA = "pip install 'tinytensor-gpt[{}]'"

# OpenBLAS's kernel sets, by the vector instructions that they use: 1 for SSE, … 4 for AVX-512.
KERNEL_SETS = {
    "prescott": 1, "core2": 1, "nehalem": 1, "barcelona": 1, "bobcat": 1, "atom": 1,
    "sandybridge": 2, "bulldozer": 2, "piledriver": 2, "steamroller": 2, "excavator": 2,
    "haswell": 3, "zen": 3,
    "skylakex": 4, "cooperlake": 4, "sapphirerapids": 4,
}  # fmt: skip
BEST_SET = {1: "Nehalem", 2: "Sandybridge", 3: "Haswell", 4: "SkylakeX"}


class Finding(NamedTuple):
    """One line: a subject, how it stands, what was seen, and what mends it ("" if nothing need
    be).
    """

    subject: str
    state: str
    text: str
    remedy: str = ""


Probe = Callable[[], Iterator[Finding]]


def version_of(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


# --- the CPU -------------------------------------------------------------------------------------


def python() -> Iterator[Finding]:
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}"
    yield Finding("Python", GOOD, f"{versions}, {platform.system()} {platform.machine()}")


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_flags() -> set[str]:
    """The CPU's features by Linux's names; empty where that cannot be read."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    lines = [line for line in text.splitlines() if line.lower().startswith(("flags", "features"))]
    return set(lines[0].partition(":")[2].split()) if lines else set()


def vector_level(flags: set[str]) -> int:
    """Which of KERNEL_SETS' levels the CPU can run; 0 if unknown."""
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
        return 4
    if {"avx2", "fma"} <= flags:
        return 3
    if "avx" in flags:
        return 2
    return 1 if "sse2" in flags else 0


def blas() -> Iterator[Finding]:
    libraries = [lib for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]
    if not libraries:
        yield Finding("BLAS", GOOD, "not one that can be asked (Accelerate, perhaps)")
    level = vector_level(cpu_flags())
    for lib in libraries:
        kernels = str(lib.get("architecture") or "")
        text = f"{lib['internal_api']} {lib['version']}, on {lib['num_threads']} of {cores()} cores"
        text += f", kernels for {kernels}" if kernels else ""
        used = KERNEL_SETS.get(kernels.lower(), 0)
        chosen = os.environ.get("OPENBLAS_CORETYPE")
        remedy = ""
        if used and used < level:
            text += f", though this CPU can run those for {BEST_SET[level]}"
            remedy = (
                f"OPENBLAS_CORETYPE={chosen} is less than the CPU offers: unset OPENBLAS_CORETYPE"
                if chosen
                else f"a newer NumPy may know this CPU; or try OPENBLAS_CORETYPE={BEST_SET[level]}"
            )
        yield Finding("BLAS", GOOD, text, remedy)


def threads() -> Iterator[Finding]:
    from .cpu import get_num_threads

    text, remedy = f"the engine computes on {get_num_threads()} of {cores()} cores", ""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        value = os.environ.get(name)
        if value:
            text += f"; {name}={value}"
            if value.isdigit() and int(value) < cores():
                remedy = f"unset {name}, or set it to {cores()}, for BLAS to use every core"
    yield Finding("threads", GOOD, text, remedy)


def cpp_compiler() -> Iterator[Finding]:
    try:
        path = simulator.compiler()
    except RuntimeError as error:
        yield Finding(
            "C++ compiler",
            MISSING,
            f"{error}; without one the kernels cannot be run on a CPU, and nothing else is lost",
            "apt install g++ (Debian, Ubuntu), or xcode-select --install (macOS)",
        )
        return
    version = first_line([path, "--version"]) or path
    yield Finding("C++ compiler", GOOD, f"{version}; device 'cuda-sim' runs the CUDA kernels")


def first_line(command: list[str]) -> str:
    """The first line that a program prints; "" where it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else ""


# --- the GPU -------------------------------------------------------------------------------------


def driver_version() -> int | None:
    """The CUDA version of the NVIDIA driver (12040 is 12.4), or None without one."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        library = ctypes.CDLL(name)
        number = ctypes.c_int(0)
        return number.value if library.cuDriverGetVersion(ctypes.byref(number)) == 0 else None
    except (OSError, AttributeError):
        return None


def dotted(version: int) -> str:
    """12040 -> "12.4"."""
    return f"{version // 1000}.{version % 1000 // 10}"


def wheel_for(driver: int | None) -> str:
    """The extra to install for a driver of this version."""
    return "cuda13" if driver is not None and driver >= 13000 else "cuda12"


def driver() -> Iterator[Finding]:
    version = driver_version()
    if version is None:
        yield Finding(
            "NVIDIA driver",
            MISSING,
            "none (no libcuda): there is no NVIDIA GPU, or its driver is not installed",
            "",
        )
    else:
        yield Finding("NVIDIA driver", GOOD, f"for CUDA {dotted(version)} and older")


def cupy_wheel() -> Iterator[Finding]:
    wheels, version = backend.cupy_wheels(), driver_version()
    if len(wheels) > 1:
        yield Finding(
            "CuPy",
            BROKEN,
            f"{len(wheels)} wheels are installed and shadow one another: {', '.join(wheels)}",
            f"pip uninstall -y {' '.join(wheels)} && {EXTRA.format(wheel_for(version))}",
        )
        return
    if importlib.util.find_spec("cupy") is None:
        remedy = EXTRA.format(wheel_for(version)) if version is not None else ""
        text = "not installed: without it there is no device 'cuda'"
        yield Finding("CuPy", MISSING, text, remedy)
        return
    try:
        cupy: Any = backend.cupy()
    except RuntimeError as error:
        yield Finding(
            "CuPy",
            BROKEN,
            f"installed, but it cannot be imported: {error.__cause__ or error}",
            f"pip uninstall -y {' '.join(wheels)} && {EXTRA.format(wheel_for(version))}",
        )
        return
    if int(cupy.__version__.split(".")[0]) < 14:
        yield Finding(
            "CuPy",
            BROKEN,
            f"{cupy.__version__} has no bfloat16; 14 or later is needed",
            f"pip install --upgrade '{wheels[0] if wheels else 'cupy'}>=14'",
        )
    else:
        yield Finding("CuPy", GOOD, f"{cupy.__version__} ({wheels[0] if wheels else 'own build'})")
    yield from runtime(cupy, version)
    yield from nvrtc(cupy)
    yield from nccl()
    yield from devices(cupy, version)
    yield from compiler_cache()


def runtime(cupy: Any, version: int | None) -> Iterator[Finding]:
    try:
        built = int(cupy.cuda.runtime.runtimeGetVersion())
    except Exception as error:
        text = f"CuPy cannot load CUDA's own libraries: {error}"
        yield Finding("CUDA", BROKEN, text, EXTRA.format(wheel_for(version)))
        return
    if version is not None and version // 1000 < built // 1000:
        yield Finding(
            "CUDA",
            BROKEN,
            f"the driver is too old: it is for CUDA {dotted(version)}, "
            f"and the wheel for {dotted(built)}",
            f"update the driver, or pip uninstall the wheel and {EXTRA.format(wheel_for(version))}",
        )
    else:
        yield Finding("CUDA", GOOD, dotted(built))
    headers = [place for place in header_folders() if (place / "cuda_fp16.h").is_file()]
    if headers:
        yield Finding("CUDA headers", GOOD, str(headers[0]))
    else:
        yield Finding(
            "CUDA headers",
            MISSING,
            "not found: our kernels need none, but CuPy's own elementwise functions do",
            EXTRA.format(wheel_for(version)),
        )


def header_folders() -> list[Path]:
    """Where CUDA's headers may be: a toolkit, or NVIDIA's wheels."""
    found = [Path(os.environ[n]) / "include" for n in ("CUDA_PATH", "CUDA_HOME") if n in os.environ]
    found.append(Path("/usr/local/cuda/include"))
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or []) if spec else []:
        found += sorted(Path(place).glob("*/include"))
    return found


def nvrtc(cupy: Any) -> Iterator[Finding]:
    try:
        major, minor = cupy.cuda.nvrtc.getVersion()
    except Exception as error:
        yield Finding(
            "NVRTC",
            BROKEN,
            f"the kernels cannot be compiled: {' '.join(str(error).split())}",
            EXTRA.format("cuda13" if "cupy-cuda13x" in backend.cupy_wheels() else "cuda12")
            + " (its [ctk] brings NVRTC)",
        )
        return
    yield Finding("NVRTC", GOOD, f"{major}.{minor}")


def nccl() -> Iterator[Finding]:
    try:
        module: Any = backend.nccl()
        if not getattr(module, "available", True):
            raise ImportError("its library, libnccl, is not found")
        number = int(module.get_version())
    except Exception as error:
        newer = "cupy-cuda13x" in backend.cupy_wheels()
        yield Finding(
            "NCCL",
            MISSING,
            f"{error}: several GPUs cannot train one model",
            f"pip install nvidia-nccl-cu{13 if newer else 12}",
        )
        return
    yield Finding("NCCL", GOOD, f"{number // 10000}.{number // 100 % 100}.{number % 100}")


def devices(cupy: Any, version: int | None) -> Iterator[Finding]:
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except Exception as error:
        if version is None:
            yield Finding("GPU", MISSING, "none without a driver")
        else:
            yield Finding("GPU", BROKEN, f"the driver is there, but: {error}", "try nvidia-smi")
        return
    for number in range(count):
        gpu = cupy.cuda.Device(number)
        properties = cupy.cuda.runtime.getDeviceProperties(number)
        with gpu:
            free, total = cupy.cuda.runtime.memGetInfo()
        name = properties["name"]
        name = name.decode() if isinstance(name, bytes) else name
        capability = int(gpu.compute_capability)
        major, minor = divmod(capability, 10)
        yield Finding(
            f"GPU {number}",
            GOOD if capability >= 75 else BROKEN,
            f"{name}, compute capability {major}.{minor}, {free / 2**30:.1f} of "
            f"{total / 2**30:.1f} GiB free; {abilities(capability)}",
            "" if capability >= 75 else "the kernels are made for compute capability 7.5 and later",
        )


def abilities(capability: int) -> str:
    """What the kernels use of a GPU."""
    if capability >= 80:
        return "bfloat16 and TF32 on tensor cores"
    return "no bfloat16 or TF32 tensor cores: matrix products run in float32 without them"


def compiler_cache() -> Iterator[Finding]:
    place = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    existing = next((p for p in (place, *place.parents) if p.exists()), Path("/"))
    if os.access(existing, os.W_OK):
        yield Finding("kernel cache", GOOD, str(place))
    else:
        yield Finding(
            "kernel cache",
            MISSING,
            f"{place} cannot be written: every run compiles its kernels again",
            "set CUPY_CACHE_DIR to a folder of your own",
        )


# --- many processes ------------------------------------------------------------------------------


def mpi() -> Iterator[Finding]:
    version = version_of("mpi4py")
    beside = Path(sys.executable).parent / "mpiexec"
    launcher = shutil.which("mpiexec") or (str(beside) if beside.is_file() else None)
    if version is None:
        text = "mpi4py is not installed: one process only"
        yield Finding("MPI", MISSING, text, EXTRA.format("mpi"))
    elif launcher is None:
        text = f"mpi4py {version}, but there is no mpiexec to start the ranks"
        yield Finding("MPI", MISSING, text, EXTRA.format("mpi"))
    else:
        yield Finding("MPI", GOOD, f"mpi4py {version}, {launcher}")


def choice() -> Iterator[Finding]:
    try:
        count = backend.cuda_device_count()
    except Exception:
        count = 0
    text = "'cuda'" if count else "'cpu': no GPU that can be used"
    yield Finding("device", GOOD, f"'auto' is {text}")


PROBES: tuple[Probe, ...] = (python, blas, threads, cpp_compiler, driver, cupy_wheel, mpi, choice)


def examine() -> list[Finding]:
    """What all probes found; a probe that fails itself is a finding too."""
    findings: list[Finding] = []
    for probe in PROBES:
        try:
            with warnings.catch_warnings():  # what CuPy warns of is found here, in a line
                warnings.simplefilter("ignore")
                findings += probe()
        except Exception as error:
            text = f"could not be examined: {type(error).__name__}: {error}"
            findings.append(Finding(probe.__name__, BROKEN, text))
    return findings


def report(findings: list[Finding]) -> str:
    """The findings as lines, each remedy below what it mends."""
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for subject, state, text, remedy in findings:
        mark = {GOOD: " ", MISSING: "-", BROKEN: "!"}[state]
        lines.append(f"{mark} {subject.ljust(width)}  {text}")
        if remedy:
            lines.append(f"  {' ' * width}  → {remedy}")
    states = {finding.state for finding in findings}
    lines += ["", *(text for state, text in LEGEND.items() if state in states)]
    return "\n".join(lines).rstrip()


def main() -> int:
    """Print the report; 1 if something is broken, else 0."""
    findings = examine()
    try:
        print(report(findings), flush=True)
    except BrokenPipeError:  # `doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if any(finding.state == BROKEN for finding in findings) else 0
