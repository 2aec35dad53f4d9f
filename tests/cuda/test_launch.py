"""The launch on a GPU, as far as it goes without one: what is compiled, loaded and passed.

A stand-in has the functions of CuPy that are called, with the names and arguments of CuPy 14.
"""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import pytest

from tinytensor.cuda import kernels

MACHINE_CODE = b"machine code 1\0"  # CuPy hands it over without the last byte
KNOWN = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)


class CupyArray:
    """What the launcher asks of a CuPy array."""

    def __init__(self, shape, dtype):
        host = np.empty(shape, dtype)
        self.shape, self.dtype, self.flags, self.strides = shape, dtype, host.flags, host.strides


class Cupy:
    """CuPy with an H200, as far as `launch` uses it: it notes what it is asked."""

    def __init__(self, capability="90"):
        self.compiled, self.loaded, self.launched = [], [], []
        self.function = self.Function(self.launched)
        self.capability = capability
        self.cuda = types.SimpleNamespace(Device=self.device, nvrtc=self)

    class Function:
        max_dynamic_shared_size_bytes = 48 * 1024

        def __init__(self, launched):
            self.launched = launched

        def __call__(self, grid, block, arguments, shared_mem):
            self.launched.append((grid, block, arguments, shared_mem))

    NVRTCError = type("NVRTCError", (Exception,), {})

    def device(self):
        return types.SimpleNamespace(id=0, compute_capability=self.capability)

    def RawModule(self, path):
        self.loaded.append(Path(path).read_bytes())
        return types.SimpleNamespace(get_function=lambda name: self.function)

    def getVersion(self):
        return 13, 0

    def getSupportedArchs(self):
        return KNOWN

    def createProgram(self, source, name, headers, include_names):
        return source

    def compileProgram(self, program, options):
        self.compiled.append((program, options))

    def getCUBIN(self, program):
        return f"machine code {len(self.compiled)}".encode()

    def getProgramLog(self, program):
        return ""

    def destroyProgram(self, program): ...


CACHED = (kernels._module, kernels._function, kernels._cache_folder)


@pytest.fixture
def cupy(monkeypatch, tmp_path):
    stand = Cupy()
    monkeypatch.setattr(kernels, "cupy", lambda: stand)
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    forget()
    yield stand
    forget()


def forget():
    for cached in CACHED:
        cached.cache_clear()


def launch(**options):
    c, a, b = (CupyArray((4, 4), np.dtype(np.float32)) for _ in range(3))
    kernels.launch("matmul_naive", (1, 1), (4, 4), [c, None, b], [4, 4, 4], **options)
    return c, a, b


def test_a_kernel_is_compiled_once_and_launched_with_what_it_takes(cupy):
    launch(shared_bytes=99_000)
    c, *_ = launch(shared_bytes=99_000)
    ((code, options),) = cupy.compiled
    assert "matmul_naive" in code
    assert {"--std=c++17", "--ftz=false", "--gpu-architecture=sm_90a"} <= set(options)
    assert any("gpu.h" in option for option in options)
    assert cupy.loaded == [MACHINE_CODE]
    _, (grid, block, arguments, shared) = cupy.launched
    assert (grid, block, shared) == ((1, 1), (4, 4), 99_000)
    assert arguments[0] is c
    assert (arguments[1], type(arguments[1])) == (0, np.uintp)  # a null pointer
    assert [type(x) for x in arguments[3:]] == [np.int32] * 3
    assert cupy.function.max_dynamic_shared_size_bytes == 99_000
    cupy.function.max_dynamic_shared_size_bytes = 47 * 1024  # of one that declares 1 KB
    launch(shared_bytes=48 * 1024)
    assert cupy.function.max_dynamic_shared_size_bytes == 48 * 1024
    launch(defines=(("SIDE", 8),))
    assert "-DSIDE=8" in cupy.compiled[1][1]
    kernels.launch("matmul_naive", (0, 1), (4, 4), [c, c, c], [4, 4, 4])  # no block, no launch
    assert len(cupy.launched) == 4


def test_another_process_finds_what_was_compiled(cupy, monkeypatch):
    launch()
    forget()
    launch()
    assert len(cupy.compiled) == 1
    assert cupy.loaded == [MACHINE_CODE] * 2
    forget()
    monkeypatch.setattr(kernels, "_headers", lambda: "another")  # a header has changed
    launch()
    assert len(cupy.compiled) == 2


def test_a_cache_that_cannot_be_written_is_replaced(cupy, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "file" / "cache"))
    launch()
    assert cupy.loaded == [MACHINE_CODE]


@pytest.mark.parametrize(
    ("capability", "name"),
    [(75, "sm_75"), (80, "sm_80"), (89, "sm_89"), (90, "sm_90a"), (100, "sm_100"), (101, "sm_100"),
     (121, "sm_121"), (122, "sm_121")],
)  # fmt: skip
def test_the_architecture_of_a_gpu(capability, name):
    assert kernels.architecture(capability, KNOWN) == name


def test_gpus_that_cannot_be_compiled_for():
    with pytest.raises(RuntimeError, match=r"7\.5 and later, and this one has 7\.0"):
        kernels.architecture(70, (70, 75))
    with pytest.raises(RuntimeError, match=r"compute capability is 13\.0: it knows 75, 80, .*121"):
        kernels.architecture(130, KNOWN)


def test_hopper_s_product_is_refused_elsewhere(cupy):
    cupy.capability = "80"
    launch()
    with pytest.raises(RuntimeError, match="made for sm_90a alone, and this GPU is sm_80"):
        kernels._module(kernels.source_of()["matmul_wgmma"], (), 0)


@pytest.mark.cuda
def test_nvrtc_knows_the_architectures_of_the_offline_tests():
    from tinytensor.backend import cupy
    from tinytensor.cuda.offline import ARCHITECTURES

    known = cupy().cuda.nvrtc.getSupportedArchs()
    numbers = [int(name.removeprefix("sm_").removesuffix("a")) for name in ARCHITECTURES]
    assert [kernels.architecture(number, known) for number in numbers] == list(ARCHITECTURES)
