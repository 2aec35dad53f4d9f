"""What the figures depend on: the processor, NumPy's BLAS, versions, environment variables."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

VARIABLES = re.compile(r"BLAS|OMP_|MKL|KMP|XLA|JAX|TORCH|NPROC|MALLOC|GLIBC_TUNABLES|LD_PRELOAD")
BUSY = 0.5  # a load above this is said


def processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def loaded_openblas() -> dict[str, Any]:
    """The BLAS of this process's NumPy, with the kernels and threads that it chose if it tells."""
    found: dict[str, Any] = {
        "name": np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    }
    for library in threadpoolctl.threadpool_info():
        if library["user_api"] == "blas":
            found["kernels"] = library.get("architecture")
            found["threads"] = library["num_threads"]
    return found


def describe_machine(modules: set[str]) -> dict[str, Any]:
    """All that can be read without measuring; `modules` are those of the peers. A program may
    add "peaks": for each engine what `Trainer.peak` answers.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": processor(),
        "processors": usable,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name) for name in ["numpy", *sorted(modules)]
        },
        "variables": {k: v for k, v in os.environ.items() if VARIABLES.search(k)},
    }


def machine_lines(machine: dict[str, Any], variable: str) -> list[str]:
    """The machine as lines of text; `variable` is what the processes are started without."""
    names = {"Python": machine["python"], **machine["versions"]}
    versions = ", ".join(f"{name} {version}" for name, version in names.items())
    lines = [f"{machine['processor']}, {machine['processors']} processors; {versions}"]
    if machine["load"] and machine["load"] > BUSY:
        lines.append(
            f"the machine is not idle: its load was {machine['load']:.1f} before the start"
        )
    for engine, peak in machine.get("peaks", {}).items():
        blas = peak["blas"]
        kernels = f" ({blas.get('kernels')} kernels, {blas.get('threads')} threads)"
        name = f"{blas['name']}{kernels * ('threads' in blas)}"
        name = name if engine.startswith("ours") else "its own"
        lines.append(f"matmul of {engine}: {peak['flops'] / 1e9:.0f} GFLOP/s, {name}")
    variables = machine["variables"]
    said = ", ".join(f"{name}={value}" for name, value in variables.items())
    lines.append(f"variables that matter: {said or 'none is set'}")
    if variable in variables:
        lines.append(f"{variable} is set here and taken from the processes' environment")
    return lines
