"""Every collective, on every rank, against NumPy.

mpiexec -n 3 python -m tests.distributed.collectives [messages | tiny-chunks]
"""

from __future__ import annotations

import sys

import numpy as np

import tinytensor as tt
import tinytensor.distributed as dist
from tinytensor.distributed import ReduceOp, mpi, shared

# One element, fewer than ranks, no multiple of anything, and more than goes in one message.
SHAPES = [(), (1,), (2,), (3, 5), (7, 1001)]
DTYPES = [tt.float32, tt.float64, tt.bfloat16, tt.float16, tt.int64, tt.int32, tt.uint8]


def of_rank(rank: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    numbers = np.random.default_rng(rank).integers(0, 20, shape) / (1 if dtype.kind in "iu" else 8)
    return np.asarray(numbers).astype(dtype)


def main() -> None:
    if "tiny-chunks" in sys.argv:
        shared.CHUNK = 128  # bytes: everything takes many stages
    place = dist.init_process_group(timeout=60)
    group = dist.group.current()
    assert isinstance(group.cpu, shared.SharedMemoryCommunicator)  # one machine
    if "messages" in sys.argv:  # as between machines
        group.cpu = mpi.MpiCommunicator(mpi.connect())
    rank, size = place.rank, place.world_size
    assert dist.is_initialized() and dist.is_available()
    assert (dist.get_rank(), dist.get_world_size()) == (rank, size)
    assert dist.get_node_local_rank() == place.local_rank == rank  # one machine
    for dtype in DTYPES:
        for shape in SHAPES:
            check_reductions(rank, size, shape, dtype)
            check_movements(rank, size, shape, dtype)
    # A sum in which the order shows: every rank must have the tree's bits.
    awkward = [of_rank(r, (5001,), tt.float32) / np.float32(3) * 10**r for r in range(size)]
    tensor = tt.from_numpy(awkward[rank].copy())
    dist.all_reduce(tensor)
    while len(awkward) > 1:
        awkward = [sum(awkward[i : i + 2]) for i in range(0, len(awkward), 2)]
    assert np.array_equal(tensor.numpy(), awkward[0])
    # Views that are not contiguous are written through.
    wide = tt.zeros(4, 6)
    dist.all_reduce(column_view(wide), ReduceOp.MAX)
    assert wide.numpy()[:, 0].tolist() == [size - 1.0] * 4 and not wide.numpy()[:, 1:].any()
    # Several on their way at once, waited for in another order.
    several = [tt.full((1000,), float(rank + i)) for i in range(5)]
    works = [dist.all_reduce(x, async_op=True) for x in several]
    for i, work in reversed(list(enumerate(works))):
        work.wait()
        assert work.is_completed()
        assert several[i].numpy()[0] == sum(r + i for r in range(size))
    found: list = [None] * size
    dist.all_gather_object(found, {"rank": rank})
    assert found == [{"rank": r} for r in range(size)]
    dist.barrier()
    dist.destroy_process_group()
    assert not dist.is_initialized()
    if rank == 0:
        print("all collectives are right")


def column_view(tensor: tt.Tensor) -> tt.Tensor:
    tensor.numpy()[:, 0] = dist.get_rank()
    return tt.from_numpy(tensor.numpy()[:, 0])


def check_reductions(rank: int, size: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
    # Sixteen-bit numbers are added in thirty-two bits, and rounded once. The sums here are exact.
    precision = np.float64 if dtype.itemsize == 8 else np.float32
    everyone = np.stack([of_rank(r, shape, dtype).astype(precision) for r in range(size)])
    expected = {
        ReduceOp.SUM: everyone.sum(0),
        ReduceOp.MAX: everyone.max(0),
        ReduceOp.MIN: everyone.min(0),
        ReduceOp.AVG: everyone.sum(0) / precision(size),
    }
    for op, result in expected.items():
        tensor = tt.from_numpy(of_rank(rank, shape, dtype))
        if op is ReduceOp.AVG and dtype.kind in "iu":
            try:
                dist.all_reduce(tensor, op)
            except TypeError as error:
                assert "average" in str(error)
            else:
                raise AssertionError("an average of integers")
            continue
        dist.all_reduce(tensor, op)
        assert np.array_equal(tensor.numpy(), result.astype(dtype)), (op, dtype)


def check_movements(rank: int, size: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
    everyone = np.stack([of_rank(r, shape, dtype) for r in range(size)])
    for source in range(size):
        tensor = tt.from_numpy(of_rank(rank, shape, dtype))
        dist.broadcast(tensor, source)
        assert np.array_equal(tensor.numpy(), everyone[source])
    own = tt.from_numpy(of_rank(rank, shape, dtype))
    rows = tt.from_numpy(np.zeros_like(everyone))
    dist.all_gather_into_tensor(rows, own)
    assert np.array_equal(rows.numpy(), everyone)
    apart = tt.from_numpy(np.zeros((*everyone.shape, 2), dtype)[..., 0])
    dist.all_gather_into_tensor(apart, own)
    assert np.array_equal(apart.numpy(), everyone)
    tensors = [tt.from_numpy(np.zeros(shape, dtype)) for _ in range(size)]
    dist.all_gather(tensors, own)
    assert all(np.array_equal(t.numpy(), e) for t, e in zip(tensors, everyone, strict=True))
    part = tt.from_numpy(np.zeros(shape, dtype))
    dist.reduce_scatter_tensor(part, rows, ReduceOp.MAX)  # all ranks have the same rows
    assert np.array_equal(part.numpy(), everyone[rank])


if __name__ == "__main__":
    main()
