"""Compiles every kernel for every architecture with NVRTC: needs CuPy, no GPU, no driver."""

from __future__ import annotations

from pathlib import Path

from ..backend import cupy
from .kernels import folder

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")


def compile_offline(path: Path, architecture: str) -> bytes:
    """The machine code (CUBIN) of one source file; raises with the compiler's log if it fails."""
    nvrtc = cupy().cuda.nvrtc
    program = nvrtc.createProgram(path.read_text(encoding="utf-8"), path.name, [], [])
    try:
        options = [f"--gpu-architecture={architecture}", "--std=c++17", f"-I{folder()}"]
        nvrtc.compileProgram(program, options)
        return bytes(nvrtc.getCUBIN(program))
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program)
        raise RuntimeError(f"{path.name} does not compile for {architecture}:\n{log}") from error
    finally:
        nvrtc.destroyProgram(program)


if __name__ == "__main__":
    for source in sorted(folder().glob("*.cu")):
        sizes = (f"{a} {len(compile_offline(source, a)):,}" for a in ARCHITECTURES)
        print(f"{source.name}: bytes of CUBIN: {', '.join(sizes)}")
