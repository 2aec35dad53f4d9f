"""`tt.cuda`'s figures of memory, and running out of it, on a stand-in for CuPy's pools."""

from __future__ import annotations

import types
import weakref

import pytest

import tinytensor as tt
from tinytensor.cuda import memory
from tinytensor.cuda.device import sim

MIB, GIB = 2**20, 2**30


class OutOfMemoryError(MemoryError):
    pass


class Pool:
    """As CuPy's: what is given back is kept, and given again where it is large enough."""

    def __init__(self, most=80 * GIB):
        self.used = self.kept = self.limit = 0
        self.most = most

    def malloc(self, size):
        if size > self.kept:
            if self.used + self.kept + size > self.most:
                raise OutOfMemoryError
        else:
            self.kept -= size
        self.used += size
        return size

    def give_back(self, size):
        self.used -= size
        self.kept += size

    def used_bytes(self):
        return self.used

    def total_bytes(self):
        return self.used + self.kept

    def free_bytes(self):
        return self.kept

    def free_all_blocks(self):
        self.kept = 0

    def get_limit(self):
        return self.limit


class Device:
    current = 0

    def __init__(self, number=0):
        self.id = number

    def __enter__(self):
        self.before, Device.current = Device.current, self.id

    def __exit__(self, *error):
        Device.current = self.before


@pytest.fixture
def cupy(monkeypatch):
    pool = Pool()
    runtime = types.SimpleNamespace(
        memGetInfo=lambda: (80 * GIB - pool.total_bytes(), 80 * GIB),
        getDevice=lambda: Device.current,
    )
    errors = types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
    cuda = types.SimpleNamespace(Device=Device, runtime=runtime, memory=errors, MemoryPool=Pool)
    module = types.SimpleNamespace(cuda=cuda, get_default_memory_pool=lambda: pool)
    monkeypatch.setattr(memory, "gpu", lambda: module)
    monkeypatch.setattr(memory, "_peaks", {})
    monkeypatch.setattr(memory, "_failures", {})
    monkeypatch.setattr(memory, "_of_steps", weakref.WeakSet())
    return module


def test_the_peak_is_the_most_that_was_held_at_once(cupy):
    allocate, pool = memory.watched(cupy), cupy.get_default_memory_pool()
    for size in (3 * MIB, 4 * MIB):
        allocate(size)
    pool.give_back(4 * MIB)
    allocate(2 * MIB)  # of what was given back
    assert tt.cuda.memory_allocated() == 5 * MIB
    assert tt.cuda.max_memory_allocated() == 7 * MIB
    assert tt.cuda.memory_reserved() == tt.cuda.max_memory_reserved() == 7 * MIB
    tt.cuda.empty_cache()
    assert tt.cuda.memory_reserved("cuda:0") == 5 * MIB
    assert tt.cuda.max_memory_reserved() == 7 * MIB
    tt.cuda.reset_peak_memory_stats()
    assert tt.cuda.max_memory_allocated() == tt.cuda.max_memory_reserved() == 5 * MIB
    allocate(MIB)
    assert tt.cuda.max_memory_allocated() == 6 * MIB


def test_the_memory_of_captured_steps_counts(cupy):
    memory.watched(cupy)(10 * MIB)
    own = memory.StepMemory(cupy)
    own.malloc(5 * MIB)
    assert tt.cuda.memory_allocated() == 15 * MIB
    own.pool.give_back(5 * MIB)
    assert tt.cuda.max_memory_allocated() == 15 * MIB
    del own
    assert tt.cuda.memory_reserved() == 10 * MIB
    simulated = memory.StepMemory(sim)
    assert tt.cuda.memory_reserved() == 10 * MIB
    del simulated


def test_each_device_has_its_own_peak(cupy):
    allocate = memory.watched(cupy)
    with Device(1):
        allocate(3 * MIB)
    cupy.get_default_memory_pool().give_back(3 * MIB)
    assert tt.cuda.max_memory_allocated(1) == 3 * MIB
    assert tt.cuda.max_memory_allocated(0) == 0


def test_free_memory_has_what_the_pool_keeps(cupy):
    memory.watched(cupy)(2 * MIB)
    cupy.get_default_memory_pool().give_back(MIB)
    assert tt.cuda.mem_get_info() == (80 * GIB - MIB, 80 * GIB)


def test_out_of_memory_says_how_much_and_what_to_lower(cupy):
    allocate = memory.watched(cupy)
    allocate(78 * GIB)
    said = (
        r"3\.00 GiB were asked for; of the GPU's 80\.0 GiB .* hold 78\.0 and 2\.0 are free; lower"
    )
    with pytest.raises(tt.cuda.OutOfMemoryError, match=said):
        allocate(3 * GIB)
    cupy.get_default_memory_pool().limit = 79 * GIB
    with pytest.raises(tt.cuda.OutOfMemoryError, match=r"free \(79\.0 GiB are allowed to CuPy\);"):
        allocate(3 * GIB)
    assert tt.cuda.memory_stats()["num_ooms"] == 2


def test_a_captured_step_without_memory(cupy):
    own = memory.StepMemory(cupy)
    own.malloc(GIB)
    with pytest.raises(tt.cuda.OutOfMemoryError, match=r"asked for 80\.00 GiB, beside 1\.0 GiB"):
        own.malloc(80 * GIB)
    own.pool.give_back(GIB)
    give_all = own.pool.malloc

    def malloc(size):  # as CuPy's pool does before it gives up
        own.pool.free_all_blocks()
        return give_all(size)

    own.pool.malloc = malloc
    own.malloc(MIB)  # a plain call may lose what was kept
    own.pool.give_back(MIB)
    own.pool.kept = GIB
    with pytest.raises(tt.cuda.OutOfMemoryError, match="beside"):
        own.malloc(MIB, capturing=True)


def test_the_summary(cupy):
    memory.watched(cupy)(3 * MIB)
    lines = tt.cuda.memory_summary().splitlines()
    assert lines[0] == "GPU 0: 81,920 MiB, 81,917 free"
    assert [line.split() for line in lines[3:5]] == [
        ["allocated", "3.0", "3.0"], ["reserved", "3.0", "3.0"],
    ]  # fmt: skip
    assert lines[-1] == "out of memory 0 times"


@pytest.mark.cuda
def test_cupy_has_what_is_asked_of_it():
    from tinytensor.backend import cupy

    module = cupy()
    for name in ("malloc", "used_bytes", "total_bytes", "free_bytes", "free_all_blocks"):
        assert callable(getattr(module.cuda.MemoryPool, name))
    assert callable(module.cuda.MemoryPool.get_limit)
    assert module.cuda.get_allocator().__qualname__ == "watched.<locals>.allocate"
