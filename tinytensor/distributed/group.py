"""The ranks as one group: how it is formed, and what its members do together.

`init_process_group` finds out which rank this process is and with whom it works; everything else
asks the group that it made. Arrays in main memory go over MPI (`mpi.py`), on one machine through
memory that the ranks share (`shared.py`), those on a GPU over NCCL (`nccl.py`), all through a lane
(`lane.py`) and under watch (`watch.py`). Names are PyTorch's.
"""

from __future__ import annotations

import atexit
import datetime
import importlib.util
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from ..autograd import note_write
from ..backend import Array, array_module, cupy, device, is_floating
from ..tensor import Tensor
from . import machine, mpi, nccl, shared
from .lane import Done, StreamLane, ThreadLane, Work
from .operations import ReduceOp
from .watch import Watch, reach, start_witness

T = TypeVar("T")

DEFAULT_TIMEOUT = 600.0  # seconds


class Place(NamedTuple):
    """Where this process stands: rank of world_size, local_rank on its machine, and its device."""

    rank: int
    world_size: int
    local_rank: int
    device: device


class Group:
    """What the ranks of one run share. A group of one computes nothing and needs no library."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.watch: Watch | None = None
        self.cpu: Any = None  # MpiCommunicator
        self.gpu: Any = None  # NcclCommunicator
        self.cpu_lane: Any = None
        self.gpu_lane: Any = None

    @property
    def size(self) -> int:
        return self.place.world_size

    def launch(self, name: str, arrays: Sequence[Array], task: Callable[[Any], Any]) -> Work:
        """Begin `task(communicator)` in the lane of the arrays' device."""
        if self.size == 1:
            return Done()
        if not arrays or array_module(*arrays).__name__ == "numpy":
            return self.cpu_lane.launch(name, lambda: task(self.cpu))  # type: ignore[no-any-return]
        if self.gpu is None:
            raise RuntimeError(
                f"distributed: {name} of an array on a GPU, but the processes were joined on the "
                "CPU; call init_process_group(device='cuda') on every rank"
            )
        return self.gpu_lane.launch(name, lambda: task(self.gpu))  # type: ignore[no-any-return]

    def gather_objects(self, value: object, name: str = "all_gather_object") -> list[Any]:
        if self.size == 1:
            return [value]
        return self.launch(name, (), lambda comm: comm.gather_objects(value)).wait()  # type: ignore[no-any-return]

    def abort(self) -> None:
        if self.gpu is not None:
            self._use_device()
            self.gpu.abort()

    def check(self) -> None:
        """Raise what went wrong in the background since the last look."""
        if self.gpu is not None:
            self._use_device()
            self.gpu.check()

    def _use_device(self) -> None:
        """Each thread has a current GPU of its own, the first one unless it is told otherwise."""
        cupy().cuda.Device(self.place.device.index).use()

    def finish(self) -> None:
        """Take part in what was begun, and begin nothing more.

        At the end of a program, too, before the watch says goodbye: the others may need this rank
        for what it has launched and not waited for.
        """
        for lane in (self.gpu_lane, self.cpu_lane):
            if lane is not None:
                lane.close()

    def close(self) -> None:
        if self.cpu_lane is not None:
            self.launch("destroy_process_group", (), lambda comm: comm.barrier()).wait()
        atexit.unregister(self.finish)
        self.finish()
        if self.gpu is not None:
            self.gpu.close()
        if self.cpu is not None:
            self.cpu.close()
        if self.watch is not None:
            self.watch.close()


_group: Group | None = None


def init_process_group(
    backend: str | None = None,
    timeout: float | datetime.timedelta = DEFAULT_TIMEOUT,
    device: device | str | None = None,
) -> Place:
    """Joins the processes that a launcher started; without a launcher, this one is all there is.

    `backend` is "mpi" (arrays in main memory), "nccl" (GPUs, and main memory too) or None, which
    follows `device`: "cpu" (the default), "cuda" (each rank of a machine takes a GPU of its own) or
    "auto". After `timeout` seconds without the others in a collective, every rank stops with a
    sentence that names the missing one. Raises RuntimeError where mpi4py, NCCL or GPUs are missing
    and says what to install.
    """
    global _group
    if _group is not None:
        raise RuntimeError(
            "init_process_group: the processes are joined already; call it once, or "
            "destroy_process_group() first"
        )
    if backend not in (None, "mpi", "nccl"):
        raise ValueError(f"init_process_group: backend {backend!r} is unknown; use 'mpi' or 'nccl'")
    seconds = timeout.total_seconds() if isinstance(timeout, datetime.timedelta) else timeout
    if not seconds > 0:
        raise ValueError(f"init_process_group: the timeout must be positive, got {timeout}")
    where = _asked(device if device is not None else ("cuda" if backend == "nccl" else "cpu"))
    if mpi.launched_size() == 1:
        _group = Group(Place(0, 1, 0, where if where.type != "cuda" else _own_gpu(where, 0, 1, 1)))
        return _group.place
    comm = mpi.connect()
    rank, size = comm.Get_rank(), comm.Get_size()
    kinds = comm.allgather(where.type)
    if len(set(kinds)) > 1:
        raise RuntimeError(f"init_process_group: the ranks chose different devices: {kinds}")
    machines = comm.allgather(machine.identity())
    local_rank = machines[:rank].count(machines[rank])
    if where.type == "cuda":
        where = _shared_out(comm, where, machines[rank])
    group = Group(Place(rank, size, local_rank, where))
    group.watch = _watched(comm, group, seconds)
    joining = group.watch.enter("joining")
    group.cpu = shared.communicator(comm)
    group.cpu_lane = ThreadLane(group.watch)
    if where.type == "cuda":
        cupy().cuda.Device(where.index).use()
        identity = comm.bcast(nccl.library().get_unique_id() if rank == 0 else None)
        group.gpu = nccl.NcclCommunicator.connect(rank, size, identity)
        group.gpu_lane = StreamLane(cupy().cuda, group.watch)
    group.watch.leave(joining)
    atexit.register(group.finish)
    _group = group
    return group.place


def _asked(name: device | str) -> device:
    return device(name)


def _agreed(comm: Any, task: Callable[[], T]) -> T:
    """What `task` answers. Where it fails on one rank, all raise RuntimeError.

    A rank that stopped alone would leave the others waiting.
    """
    answers, problem = [], ""
    try:
        answers.append(task())
    except (RuntimeError, ValueError, OSError) as error:
        problem = str(error)
    problems = comm.allgather(problem)
    if any(problems):
        first = next(r for r, text in enumerate(problems) if text)
        raise RuntimeError(problem or f"rank {first} cannot take part: {problems[first]}")
    return answers[0]


def _watched(comm: Any, group: Group, seconds: float) -> Watch:
    """Rank 0 starts the witness, and every rank finds its way there."""
    rank, size = comm.Get_rank(), comm.Get_size()
    own = _agreed(comm, lambda: start_witness(size, seconds) if rank == 0 else None)
    meeting = comm.bcast(own)
    watches: list[Watch] = []

    def watch() -> Watch:
        connection = reach(meeting, rank, seconds)
        watches.append(Watch(rank, size, connection, seconds, group.abort, group.check))
        return watches[0]

    try:
        return _agreed(comm, watch)
    except RuntimeError:
        for one in watches:
            one.close()
        raise


def _shared_out(comm: Any, where: device, own_machine: str) -> device:
    """This rank's GPU: ranks that see the same ones take one each.

    (SLURM may show each task of a machine a GPU of its own, which is number 0 to all of them.)
    """

    def visible() -> tuple[str, ...]:
        nccl.library()
        return machine.gpus()

    gpus = _agreed(comm, visible)
    seen, rank = comm.allgather((own_machine, gpus)), comm.Get_rank()
    earlier, sharers = seen[:rank].count(seen[rank]), seen.count(seen[rank])
    return _agreed(comm, lambda: _own_gpu(where, earlier, sharers, len(gpus)))


def _own_gpu(where: device, number: int, sharers: int, count: int) -> device:
    """The GPU of rank `number` of `sharers`, which all see `count` of them."""
    if where.index is None and sharers > max(count, 1):
        raise RuntimeError(
            f"init_process_group: {sharers} ranks on {socket.gethostname()}, where CuPy sees "
            f"{count} GPUs; NCCL needs one for each rank"
        )
    return device("cuda", number if where.index is None else where.index)


def destroy_process_group() -> None:
    """Waits for the others, and parts from them. Afterwards this process is alone again."""
    global _group
    if _group is not None:
        _group.close()
        _group = None


def is_available() -> bool:
    """Whether mpi4py is installed, so that several processes can work together here."""
    return importlib.util.find_spec("mpi4py") is not None


def is_initialized() -> bool:
    """Whether `init_process_group` was called."""
    return _group is not None


def current() -> Group:
    """The group of this process. A program that never called init_process_group is alone."""
    return _group if _group is not None else Group(Place(0, 1, 0, device("cpu")))


def get_rank() -> int:
    """This process's number, from 0; 0 where there is one only."""
    return current().place.rank


def get_world_size() -> int:
    """How many processes work together."""
    return current().size


def get_node_local_rank() -> int:
    """This process's number among those on its machine."""
    return current().place.local_rank


def get_device() -> device:
    """The device that this process computes on."""
    return current().place.device


# --- collectives ----------------------------------------------------------------------------------


def describe(name: str, array: Array) -> str:
    """all_reduce of float32 (3, 4): what a sentence about a missing rank says."""
    return f"{name} of {array.dtype.name} {tuple(array.shape)}"


def all_reduce(tensor: Tensor, op: ReduceOp = ReduceOp.SUM, async_op: bool = False) -> Work | None:
    """`tensor` becomes, on every rank, the sum (AVG, MAX, MIN) of the ranks' tensors.

    Shape and dtype are the same on all ranks. Every rank gets the same bits. On the CPU the order
    of the sum is that of a binary tree over the ranks. With `async_op=True` the answer is at once a
    `Work`, whose `wait()` comes before the tensor is used.
    """
    _check_op("all_reduce", op, tensor)
    return _in_place("all_reduce", tensor, lambda comm, x: comm.all_reduce([x], op), async_op)


def broadcast(tensor: Tensor, src: int, async_op: bool = False) -> Work | None:
    """`tensor` becomes what rank `src` holds. Shape and dtype are the same on all ranks."""
    if not 0 <= src < get_world_size():
        raise ValueError(f"broadcast: there is no rank {src} among {get_world_size()}")
    return _in_place("broadcast", tensor, lambda comm, x: comm.broadcast([x], src), async_op)


def all_gather_into_tensor(
    output_tensor: Tensor, input_tensor: Tensor, async_op: bool = False
) -> Work | None:
    """`output_tensor` (N·n elements) becomes the ranks' inputs (n each), one after the other."""
    size = get_world_size()
    _check_parts("all_gather_into_tensor", output_tensor, input_tensor, size)
    array = output_tensor.array
    parts = mpi.slices(array.size, size)
    note_write(array)
    rows = array.reshape(size, -1)  # a copy, of some that are not contiguous
    rows[get_rank()] = input_tensor.array.reshape(-1)
    if not array.flags.c_contiguous:
        array[...] = rows.reshape(array.shape)
    return _in_place(
        "all_gather", output_tensor, lambda comm, x: comm.all_gather(x.reshape(-1), parts), async_op
    )


def all_gather(tensor_list: list[Tensor], tensor: Tensor) -> None:
    """`tensor_list[r]` becomes rank r's `tensor`; all have its shape."""
    size = get_world_size()
    if len(tensor_list) != size:
        raise ValueError(f"all_gather: {len(tensor_list)} tensors for {size} ranks")
    xp = array_module(tensor.array)
    rows = Tensor(xp.empty((size, *tensor.shape), tensor.dtype))
    all_gather_into_tensor(rows, tensor)
    for target, row in zip(tensor_list, rows.array, strict=True):
        if target.shape != tensor.shape or target.dtype != tensor.dtype:
            raise ValueError(
                f"all_gather: the list has a {target.dtype} tensor {target.shape}, the ranks "
                f"{tensor.dtype} tensors {tensor.shape}"
            )
        note_write(target.array)
        target.array[...] = row


def reduce_scatter_tensor(output: Tensor, input: Tensor, op: ReduceOp = ReduceOp.SUM) -> None:
    """`output` (n elements) becomes part `rank` of the reduced `input` (N·n elements)."""
    size, rank = get_world_size(), get_rank()
    _check_parts("reduce_scatter_tensor", input, output, size)
    _check_op("reduce_scatter_tensor", op, input)
    whole = input.array.reshape(-1).copy()
    parts = mpi.slices(whole.size, size)
    name = describe("reduce_scatter", whole)
    work = current().launch(name, [whole], lambda comm: comm.reduce_scatter(whole, parts, op))
    work.wait()
    note_write(output.array)
    output.array[...] = whole[parts[rank]].reshape(output.shape)


def barrier() -> None:
    """Waits until all ranks are here."""
    current().launch("barrier", (), lambda comm: comm.barrier()).wait()


def all_gather_object(object_list: list[Any], obj: Any) -> None:
    """`object_list[r]` becomes rank r's `obj`, anything that can be pickled."""
    found = current().gather_objects(obj)
    if len(object_list) != len(found):
        raise ValueError(f"all_gather_object: a list of {len(object_list)} for {len(found)} ranks")
    object_list[:] = found


def _in_place(
    name: str, tensor: Tensor, task: Callable[[Any, Array], None], async_op: bool
) -> Work | None:
    array = tensor.array
    note_write(array)
    whole = array if array.flags.c_contiguous else array.copy()

    def work(comm: Any) -> None:
        task(comm, whole)
        if whole is not array:
            array[...] = whole

    launched = current().launch(describe(name, array), [array], work)
    if async_op:
        return launched
    launched.wait()
    return None


def _check_op(name: str, op: ReduceOp, tensor: Tensor) -> None:
    if not isinstance(op, ReduceOp):
        raise TypeError(f"{name}: op must be one of ReduceOp's, not {op!r}")
    if op is ReduceOp.AVG and not is_floating(tensor.dtype):
        raise TypeError(f"{name}: an average of {tensor.dtype} tensors is none; use SUM")


def _check_parts(name: str, whole: Tensor, part: Tensor, size: int) -> None:
    if whole.numel() != size * part.numel() or whole.dtype != part.dtype:
        raise ValueError(
            f"{name}: {size} parts like {part.dtype} {part.shape} do not make {whole.dtype} "
            f"{whole.shape}"
        )
