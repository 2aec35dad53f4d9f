"""Starts ranks with mpiexec, more of them than there are cores."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def mpiexec() -> str:
    """The launcher beside the interpreter (the mpich wheel puts it there), or one on the PATH."""
    found = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    found = found or shutil.which("mpiexec")
    assert found is not None
    return found


def run_ranks(count: int, module: str, *arguments: object, limit: float = 120) -> str:
    """What the ranks print, both streams together; raises CalledProcessError if they fail."""
    done = try_ranks(count, module, *arguments, limit=limit)
    assert done.returncode == 0, done.stdout
    return done.stdout


def try_ranks(
    count: int, module: str, *arguments: object, limit: float = 120
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    command = [mpiexec(), "-n", str(count), sys.executable, "-W", "error", "-m", module]
    return subprocess.run(
        [*command, *map(str, arguments)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=limit,
    )
