"""The sharded optimizer's parameters on their way: nobody reads one before it has come."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tinytensor as tt
import tinytensor.distributed as dist
from tinytensor import nn
from tinytensor.distributed import ReduceOp, arriving, group
from tinytensor.distributed.agreement import parameters_hash
from tinytensor.distributed.group import Group, Place
from tinytensor.distributed.lane import ThreadLane
from tinytensor.distributed.zero import _spread

ARRIVED = 7.0  # what the other rank sends of its parts


class Courier:
    """A communicator of rank 0 of 2, whose all-gathers come when they are let through."""

    size, rank = 2, 0

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.failing = False
        self.gathered: list[int] = []

    def all_reduce(self, arrays: list[Any], op: ReduceOp) -> None: ...
    def reduce_scatter(self, array: Any, parts: list[slice], op: ReduceOp) -> None: ...
    def broadcast(self, arrays: list[Any], source: int) -> None: ...
    def barrier(self) -> None: ...
    def close(self) -> None: ...

    def gather_objects(self, value: Any) -> list[Any]:
        return [value, value]

    def all_gather(self, array: Any, parts: list[slice]) -> None:
        assert self.permits.acquire(timeout=30)
        if self.failing:
            raise OSError("the line is dead")
        self.gathered.append(array.size)
        array[parts[1]] = ARRIVED

    def let_through(self, count: int) -> None:
        for _ in range(count):
            self.permits.release()


@pytest.fixture
def courier(monkeypatch: pytest.MonkeyPatch) -> Iterator[Courier]:
    pretending = Group(Place(0, 2, 0, tt.device("cpu")))
    pretending.cpu, pretending.cpu_lane = Courier(), ThreadLane()
    monkeypatch.setattr(group, "_group", pretending)
    yield pretending.cpu
    pretending.cpu.let_through(100)
    dist.destroy_process_group()


def model() -> nn.Sequential:
    tt.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6))


def trained(**options: Any) -> tuple[nn.Sequential, dist.ZeroRedundancyOptimizer]:
    """A model of four parameters, each a bucket of its own, whose gradients are there."""
    wrapped = model()
    parallel = dist.DistributedDataParallel(wrapped, bucket_cap_mb=0)
    optimizer = dist.ZeroRedundancyOptimizer(
        wrapped.parameters(), tt.optim.SGD, model=parallel, lr=0.1, **options
    )
    parallel(tt.ones(3, 4)).sum().backward()
    return wrapped, optimizer


def later(courier: Courier, count: int = 100) -> None:
    """Let gathers through when somebody has had the time to look too early."""
    threading.Timer(0.05, courier.let_through, [count]).start()


def of_the_other_rank(array: Any) -> float:
    """The last number: it is in the second half, which is the other rank's."""
    return float(np.asarray(array).reshape(-1)[-1])


def saved(weights: nn.Sequential, folder: Path) -> Any:
    tt.save_file(weights.state_dict(), folder / "weights.safetensors")
    return tt.load_file(folder / "weights.safetensors")["2.weight"].numpy()


LOOKS: dict[str, Callable[[nn.Sequential, Path], Any]] = {
    "value": lambda m, _: m[2].weight.value,
    "numpy": lambda m, _: m[2].weight.detach().numpy(),
    "data": lambda m, _: m[2].weight.data.numpy(),
    "item": lambda m, _: m[2].weight[-1, -1].item(),
    "tolist": lambda m, _: m[2].weight.tolist(),
    "asarray": lambda m, _: np.asarray(m[2].weight.detach()),
    "dlpack": lambda m, _: np.from_dlpack(m[2].weight.detach()),
    "state_dict": lambda m, _: m.state_dict()["2.weight"].numpy(),
    "saving": saved,
    "pickle": lambda m, _: pickle.loads(pickle.dumps(m[2].weight)).array,
    "copy of one": lambda m, _: copy.copy(m[2].weight).array,
    "copy": lambda m, _: copy.deepcopy(m)[2].weight.array,
    "arithmetic": lambda m, _: (m[2].weight * 1).detach().numpy(),
    "half": lambda m, _: m.half()[2].weight.array,
    "vector": lambda m, _: nn.utils.parameters_to_vector([m[2].weight]).detach().numpy(),
    "a second optimizer": lambda m, _: (
        tt.optim.SGD(m.parameters(), lr=1).flat_buffers()[0] and m[2].weight.array
    ),
}


@pytest.mark.parametrize("look", LOOKS)
def test_whoever_looks_waits(look: str, courier: Courier, tmp_path: Path):
    weights, optimizer = trained()
    optimizer.step()
    later(courier)
    assert of_the_other_rank(LOOKS[look](weights, tmp_path)) == ARRIVED


def test_the_forward_pass_waits_and_the_gradient_is_of_what_came(courier: Courier):
    weights, optimizer = trained()
    optimizer.step()
    optimizer.zero_grad()
    later(courier)
    x = tt.ones(3, 8, requires_grad=True)
    weights[2](x).sum().backward()
    expected = np.broadcast_to(weights[2].weight.array.sum(0), (3, 8))
    assert np.array_equal(x.grad.numpy(), expected)  # type: ignore[union-attr]
    assert weights[2].bias.array[-1] == ARRIVED


def test_hashes_and_flat_buffers_are_of_what_came(courier: Courier):
    weights, optimizer = trained()
    optimizer.step()
    later(courier)
    found = parameters_hash(weights.parameters())
    assert found == parameters_hash([tt.from_numpy(p.array.copy()) for p in weights.parameters()])
    optimizer.step()
    later(courier)
    for buffer in optimizer.flat_buffers():
        assert all(buffer.values[span][-1] == ARRIVED for span in buffer.spans)


def test_a_step_returns_at_once_and_the_first_layer_waits_for_itself_alone(courier: Courier):
    weights, optimizer = trained()
    optimizer.step()
    assert courier.gathered == []
    assert [type(p).__name__ for p in weights.parameters()] == ["Parameter"] * 4
    assert all(isinstance(p, nn.Parameter) for p in weights.parameters())
    courier.let_through(2)
    assert of_the_other_rank(weights[0].weight.array) == ARRIVED
    assert of_the_other_rank(weights[0].bias.array) == ARRIVED
    assert courier.gathered == [32, 8]  # the first layer's, in the order of a forward pass
    courier.let_through(2)
    assert of_the_other_rank(weights[2].bias.array) == ARRIVED
    assert of_the_other_rank(weights[2].weight.array) == ARRIVED
    assert courier.gathered == [32, 8, 48, 6]
    assert all(type(p) is nn.Parameter for p in weights.parameters())


def test_the_next_step_and_new_gradients_need_no_look(courier: Courier):
    weights, optimizer = trained()
    optimizer.step()
    optimizer.zero_grad()
    weights.zero_grad()
    assert all(p.grad is None for p in weights.parameters())
    assert courier.gathered == []
    later(courier)
    optimizer.step()
    assert len(courier.gathered) == 4


@pytest.mark.parametrize("hold", ["a view", "a tensor", "a graph", "the buffer", "its part"])
def test_a_step_waits_for_what_somebody_holds(hold: str, courier: Courier):
    weights, optimizer = trained()
    weight = weights[2].weight
    held: Any = {
        "a view": lambda: weight.array[-1:, 2:],
        "a tensor": lambda: weight.detach(),
        "a graph": lambda: weights[2](tt.ones(1, 8, requires_grad=True)),
        "the buffer": lambda: optimizer.flat_buffers()[0].values,
        "its part": lambda: optimizer.flat_buffers()[0].values[-1:],
    }[hold]()
    later(courier)
    optimizer.step()
    assert courier.gathered[:3] == [32, 8, 48]  # those before it come first
    if hold in ("a view", "a tensor"):
        assert of_the_other_rank(held) == ARRIVED


def test_without_overlap_a_step_returns_when_all_is_there(courier: Courier):
    _, optimizer = trained(overlap=False)
    began = time.perf_counter()
    later(courier)
    optimizer.step()
    assert len(courier.gathered) == 4 and time.perf_counter() - began > 0.04


def test_numbers_that_a_user_puts_in_the_place_stay(courier: Courier):
    weights, optimizer = trained()
    optimizer.step()
    later(courier)
    weights[0].bias.data = tt.zeros(8)
    with tt.no_grad():
        weights[2].bias.fill_(2.0)
    weights.load_state_dict({"0.weight": tt.full((8, 4), 3.0)}, strict=False)
    assert set(weights[0].bias.tolist()) == {0.0}
    assert set(weights[2].bias.tolist()) == {2.0}
    assert set(weights[0].weight.array.reshape(-1)) == {3.0}
    assert of_the_other_rank(weights[2].weight.array) == ARRIVED


def test_an_error_on_the_way_comes_out_of_each_look(courier: Courier):
    weights, optimizer = trained()
    courier.failing = True
    optimizer.step()
    courier.let_through(4)
    for _ in range(2):
        with pytest.raises(OSError, match="the line is dead"):
            weights[0](tt.ones(1, 4))
    with pytest.raises(OSError, match="the line is dead"):
        optimizer.step()


def test_two_threads_may_look(courier: Courier):
    weights, optimizer = trained()
    for _ in range(20):
        optimizer.step()
        found: list[float] = []

        def look(found: list[float] = found) -> None:
            found.extend(of_the_other_rank(p.value) for p in weights.parameters())

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        courier.let_through(4)
        for thread in threads:
            thread.join(30)
        assert found == [ARRIVED] * 16
        assert all(type(p) is nn.Parameter for p in weights.parameters())


def test_who_waited_for_an_earlier_delivery_waits_for_the_next_one(courier: Courier):
    """A thread may sleep between the end of its waiting and what it does about it."""
    weights, optimizer = trained(overlap=False)
    courier.let_through(4)
    weight, late, found = weights[2].weight, threading.Event(), []
    delivery = next(d for d in optimizer._deliveries if d._parameters[0] is weight)
    first = SimpleNamespace(wait=lambda: threading.current_thread() is reader and late.wait(30))
    second, arrived = SimpleNamespace(wait=lambda: arrived.wait(30)), threading.Event()
    reader = threading.Thread(target=lambda: found.append(weight.value))
    delivery.begin(first)
    reader.start()
    delivery.wait()
    delivery.begin(second)
    late.set()
    reader.join(0.05)
    assert reader.is_alive() and found == []
    arrived.set()
    reader.join(30)
    assert found[0] is weight.value and type(weight) is nn.Parameter


def test_a_copy_while_another_thread_takes_delivery(courier: Courier):
    """It has put the array in its place, and not yet the class."""
    weights, optimizer = trained()
    optimizer.step()
    weight = weights[2].weight
    arriving._slot.__set__(weight, arriving._slot.__get__(weight).array)
    assert type(weight) is not nn.Parameter
    assert type(copy.copy(weight)) is nn.Parameter


def test_what_is_not_divided_is_not_gathered(courier: Courier):
    _, optimizer = trained(undivided=1.0)
    assert optimizer.divided() == [False] * 4
    optimizer.step()
    assert all(isinstance(p.array, np.ndarray) for p in optimizer.param_groups[0]["params"])
    assert courier.gathered == []
    with pytest.raises(ValueError, match=r"undivided is 1\.5, and a share is from 0 to 1"):
        trained(undivided=1.5)


@pytest.mark.parametrize("share", [0.0, 0.25, 1 / 3, 0.5, 1.0])
def test_undivided_buckets_are_evenly_spread(share: float):
    divided = _spread([[tt.zeros(10)]] * 24, share)
    assert divided.count(False) == round(24 * share)
    for window in range(0, 24, 12):
        assert divided[window : window + 12].count(False) == round(12 * share)


def test_a_model_that_was_converted_needs_a_new_optimizer(courier: Courier):
    weights, optimizer = trained(overlap=False)
    courier.let_through(4)
    optimizer.step()
    weights.double()
    with pytest.raises(RuntimeError, match="make a new optimizer"):
        optimizer.step()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_each_gradient_counts_once_in_the_norm(share: float, monkeypatch: pytest.MonkeyPatch):
    """Between the ranks, whether a bucket is divided or not."""
    squares, expected = 0.0, 0.0
    for rank in range(2):
        pretending = Group(Place(rank, 2, 0, tt.device("cpu")))
        pretending.cpu, pretending.cpu_lane = Courier(), ThreadLane()
        monkeypatch.setattr(group, "_group", pretending)
        weights, optimizer = trained(undivided=share)
        gradients = [p.grad.array for p in weights.parameters()]  # type: ignore[union-attr]
        expected = sum(float(np.square(gradient, dtype=np.float64).sum()) for gradient in gradients)
        squares += float(optimizer.clip_grad_norm_(1e9)) ** 2
        dist.destroy_process_group()
    assert squares == pytest.approx(expected, rel=1e-5)
