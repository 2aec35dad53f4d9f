"""What needs no second process: one rank, wrong arguments, and what happens in a walk."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import tinytensor as tt
import tinytensor.distributed as dist
from tinytensor import nn
from tinytensor.distributed import ReduceOp, group, mpi, parallel
from tinytensor.distributed.agreement import disagreements
from tinytensor.distributed.group import Group, Place
from tinytensor.distributed.lane import ThreadLane


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch):
    for name in mpi.SIZE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield
    dist.destroy_process_group()


def test_one_process_needs_no_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mpi, "connect", lambda: pytest.fail("MPI was asked for"))
    assert dist.init_process_group() == (0, 1, 0, tt.device("cpu"))
    assert dist.is_initialized()
    x = tt.tensor([1.0, 2.0])
    dist.all_reduce(x, ReduceOp.AVG)
    dist.broadcast(x, 0)
    rows, part = tt.zeros(1, 2), tt.zeros(2)
    dist.all_gather_into_tensor(rows, x)
    dist.reduce_scatter_tensor(part, rows)
    dist.barrier()
    wide = tt.from_numpy(np.zeros((2, 2), np.float32)[:, :1])  # not contiguous
    dist.all_gather_into_tensor(wide, x)
    assert wide.tolist() == [[1.0], [2.0]]
    found: list[Any] = [None]
    dist.all_gather_object(found, "me")
    assert (rows.tolist(), part.tolist(), found) == ([[1.0, 2.0]], [1.0, 2.0], ["me"])
    with pytest.raises(RuntimeError, match="joined already"):
        dist.init_process_group()


def test_many_processes_without_mpi4py_say_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PMI_SIZE", "4")
    monkeypatch.setitem(__import__("sys").modules, "mpi4py", None)
    monkeypatch.setitem(__import__("sys").modules, "mpi4py.MPI", None)
    with pytest.raises(RuntimeError, match=r"4 processes were started, but mpi4py .*\[mpi\]"):
        dist.init_process_group()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="backend 'gloo' is unknown"):
        dist.init_process_group(backend="gloo")
    with pytest.raises(ValueError, match="timeout must be positive, got 0"):
        dist.init_process_group(timeout=0)
    x = tt.tensor([1, 2])
    with pytest.raises(TypeError, match="average of int64 tensors"):
        dist.all_reduce(x, ReduceOp.AVG)
    with pytest.raises(TypeError, match="one of ReduceOp's, not 'sum'"):
        dist.all_reduce(x, "sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no rank 1 among 1"):
        dist.broadcast(x, 1)
    with pytest.raises(ValueError, match=r"1 parts like int64 \(2,\) do not make int64 \(3,\)"):
        dist.all_gather_into_tensor(tt.zeros(3, dtype=tt.long), x)
    with pytest.raises(ValueError, match="2 tensors for 1 ranks"):
        dist.all_gather([x, x], x)
    with pytest.raises(ValueError, match="a list of 2 for 1 ranks"):
        dist.all_gather_object([None, None], 1)
    with pytest.raises(ValueError, match="bucket_cap_mb is -1"):
        dist.DistributedDataParallel(nn.Linear(1, 1), bucket_cap_mb=-1)
    with pytest.raises(ValueError, match="no parameter of the module requires a gradient"):
        dist.DistributedDataParallel(nn.ReLU())
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        dist.seed_micro_batch(-1)


@pytest.mark.parametrize("length", [0, 1, 5, 12])
@pytest.mark.parametrize("parts", [1, 3, 4])
def test_slices_cover_everything_once(length: int, parts: int):
    found = [i for part in mpi.slices(length, parts) for i in range(part.start, part.stop)]
    assert found == list(range(length))


@pytest.mark.parametrize("count", range(1, 9))
def test_the_tree_adds_neighbours_first(count: int):
    """Names instead of numbers show the order."""
    names = [np.array(str(i), object) for i in range(count)]
    join = lambda a, b, out: np.array(f"({a}+{b})", object)  # noqa: E731
    expected = {1: "0", 2: "(0+1)", 3: "((0+1)+2)", 4: "((0+1)+(2+3))"}
    expected |= {6: "(((0+1)+(2+3))+(4+5))", 8: "(((0+1)+(2+3))+((4+5)+(6+7)))"}
    assert str(mpi.tree(names, join)) == expected.get(count, str(mpi.tree(names, join)))


# ---- random numbers ----


def test_micro_batches_have_stretches_of_their_own():
    generator = tt.Generator(5)
    dist.seed_micro_batch(3, generator)
    first = tt.rand(4, generator=generator)
    tt.rand(1000, generator=generator)
    dist.seed_micro_batch(3, generator)
    assert tt.rand(4, generator=generator).tolist() == first.tolist()
    dist.seed_micro_batch(4, generator)
    assert tt.rand(4, generator=generator).tolist() != first.tolist()
    assert generator.initial_seed() == 5


# ---- gradients ----


def model() -> nn.Sequential:
    tt.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def batch(number: int) -> tt.Tensor:
    return tt.randn(5, 4, generator=tt.Generator(number))


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_micro_batches_add_up(count: int, ordered: bool):
    plain, wrapped = model(), model()
    parallel = dist.DistributedDataParallel(wrapped, bucket_cap_mb=1e-4, ordered=ordered)
    optimizer = tt.optim.SGD(wrapped.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        plain.zero_grad()
        for number in range(count):
            (plain(batch(number)) ** 2).sum().backward()
            if number < count - 1:
                with parallel.no_sync():
                    (parallel(batch(number)) ** 2).sum().backward()
                    assert (next(wrapped.parameters()).grad is None) is ordered
            else:
                (parallel(batch(number)) ** 2).sum().backward()
        for a, b in zip(plain.parameters(), wrapped.parameters(), strict=True):
            assert a.grad is not None and b.grad is not None
            np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-5, atol=1e-5)


def test_an_abandoned_accumulation_is_forgotten():
    wrapped = model()
    parallel = dist.DistributedDataParallel(wrapped)
    with parallel.no_sync():
        parallel(batch(0)).sum().backward()
    parallel.zero_grad()
    parallel(batch(1)).sum().backward()
    found = [p.grad.numpy().copy() for p in wrapped.parameters()]  # type: ignore[union-attr]
    parallel.zero_grad()
    parallel(batch(1)).sum().backward()
    for a, p in zip(found, wrapped.parameters(), strict=True):
        assert np.array_equal(a, p.grad.numpy())  # type: ignore[union-attr]


class TwoWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: tt.Tensor, left: bool) -> tt.Tensor:
        return self.left(x) if left else self.right(x)


def test_parameters_that_the_loss_does_not_see(pretender: Pretender):
    ways = TwoWays()
    parallel = dist.DistributedDataParallel(ways)
    with pytest.raises(RuntimeError, match=r"does not depend on right\.bias, right\.weight; leave"):
        parallel(tt.ones(1, 2), left=True).sum().backward()
    ways = TwoWays()
    parallel = dist.DistributedDataParallel(ways, find_unused_parameters=True)
    parallel(tt.ones(1, 2), left=True).sum().backward()
    assert ways.right.weight.grad is None and ways.left.weight.grad is not None
    # Seen by one micro-batch of the step is seen.
    parallel.zero_grad()
    with parallel.no_sync():
        parallel(tt.ones(1, 2), left=False).sum().backward()
    parallel(tt.ones(1, 2), left=True).sum().backward()
    assert ways.right.bias.grad.tolist() == [1.0, 1.0]  # type: ignore[union-attr]


def test_models_side_by_side_in_one_process():
    """A walk over one changes nothing in the other, whatever state that is in."""
    ways, other = TwoWays(), dist.DistributedDataParallel(model())
    parallel = dist.DistributedDataParallel(ways)
    with parallel.no_sync():
        parallel(tt.ones(1, 2), left=True).sum().backward()
        other(batch(0)).sum().backward()
    parallel(tt.ones(1, 2), left=False).sum().backward()
    before = [p.grad.tolist() for p in ways.parameters()]  # type: ignore[union-attr]
    other(batch(1)).sum().backward()
    assert [p.grad.tolist() for p in ways.parameters()] == before  # type: ignore[union-attr]


def test_frozen_parameters_stay_out():
    ways = TwoWays()
    for p in ways.right.parameters():
        p.requires_grad_(False)
    parallel = dist.DistributedDataParallel(ways)
    assert sum(len(bucket) for bucket in parallel.buckets()) == 2
    parallel(tt.ones(1, 2), left=True).sum().backward()


def test_buckets_go_from_the_last_layer_to_the_first():
    wrapped = model()
    names = {id(p): name for name, p in wrapped.named_parameters()}
    buckets = dist.DistributedDataParallel(wrapped, bucket_cap_mb=300 / 2**20).buckets()
    found = [[names[id(p)] for p in bucket] for bucket in buckets]
    expected = [["4.bias", "4.weight", "2.bias"], ["2.weight", "0.bias"], ["0.weight"]]
    assert found == expected


def test_the_wrapper_is_a_module_with_one_child():
    parallel = dist.DistributedDataParallel(wrapped := model())
    assert next(name for name, _ in parallel.named_parameters()) == "module.0.weight"
    assert len(list(parallel.parameters())) == len(list(wrapped.parameters()))
    held = weakref.ref(parallel)
    del parallel
    gc.collect()
    assert held() is None
    wrapped(batch(0)).sum().backward()  # the hooks are still there, and do nothing


# ---- when what is sent ----


class Pretender:
    """A communicator of rank 0 of 2 whose other rank has the same numbers."""

    size, rank = 2, 0

    def __init__(self) -> None:
        self.sent: list[int] = []

    def all_reduce(self, arrays: list[Any], op: ReduceOp) -> None:
        self.sent.append(sum(array.size for array in arrays))
        for array in arrays:
            array *= 1 if op is ReduceOp.AVG else 2

    def broadcast(self, arrays: list[Any], source: int) -> None: ...
    def barrier(self) -> None: ...
    def gather_objects(self, value: Any) -> list[Any]:
        return [value, value]

    def close(self) -> None: ...


@pytest.fixture
def pretender(monkeypatch: pytest.MonkeyPatch):
    pretending = Group(Place(0, 2, 0, tt.device("cpu")))
    pretending.cpu, pretending.cpu_lane = Pretender(), ThreadLane()
    monkeypatch.setattr(group, "_group", pretending)
    return pretending.cpu


def test_a_bucket_is_sent_while_the_walk_goes_on(pretender: Pretender):
    wrapped = model()
    parallel = dist.DistributedDataParallel(wrapped, bucket_cap_mb=300 / 2**20)
    seen: dict[str, int] = {}

    def look(_: tt.Tensor) -> None:
        # The lane's thread has been given the buckets above; it may need a moment.
        seen["sent"] = sum(bucket.work is not None for bucket in parallel._buckets)

    wrapped[0].weight.register_hook(look)
    parallel(batch(0)).sum().backward()
    assert seen["sent"] == 2
    assert len(pretender.sent) == 3


def test_micro_steps_send_nothing(pretender: Pretender):
    parallel = dist.DistributedDataParallel(model())
    with parallel.no_sync():
        parallel(batch(0)).sum().backward()
        parallel(batch(1)).sum().backward()
    assert pretender.sent == []
    parallel(batch(2)).sum().backward()
    assert len(pretender.sent) == 1


def test_an_error_in_the_walk_comes_through(pretender: Pretender):
    wrapped = model()
    parallel = dist.DistributedDataParallel(wrapped, bucket_cap_mb=0)

    def fail(_: tt.Tensor) -> None:
        raise ZeroDivisionError("planted")

    handle = wrapped[0].weight.register_hook(fail)
    with pytest.raises(ZeroDivisionError, match="planted"):
        parallel(batch(0)).sum().backward()
    handle.remove()
    parallel.zero_grad()
    try:
        raise KeyError("a backward pass inside an except clause has not failed")
    except KeyError:
        parallel(batch(0)).sum().backward()
    assert all(p.grad is not None for p in wrapped.parameters())


def test_an_error_in_the_lane_comes_out_of_backward(pretender: Pretender):
    def fail(arrays: list[Any], op: ReduceOp) -> None:
        raise OSError("planted")

    parallel = dist.DistributedDataParallel(model())
    pretender.all_reduce = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="planted"):
        parallel(batch(0)).sum().backward()


def test_after_the_ranks_have_parted_nothing_waits_for_them(pretender: Pretender):
    parallel = dist.DistributedDataParallel(model())
    dist.destroy_process_group()
    with pytest.raises(RuntimeError, match=r"gradient bucket 1 of 1, .* the ranks have parted"):
        parallel(batch(0)).sum().backward()


def test_derivatives_that_touch_no_leaf_send_nothing(pretender: Pretender):
    wrapped = model()
    parallel = dist.DistributedDataParallel(wrapped)
    tt.autograd.grad(parallel(batch(0)).sum(), list(wrapped.parameters()))
    assert pretender.sent == []


def test_an_array_on_a_gpu_needs_the_gpu_group(pretender: Pretender):
    class Elsewhere:
        pass

    tt.backend.register_array_type(Elsewhere, type("cupy", (), {"__name__": "cupy"}))
    with pytest.raises(RuntimeError, match="joined on the CPU"):
        group.current().launch("all_reduce", [Elsewhere()], lambda comm: None)


# ---- the sharded optimizer, alone ----


@pytest.mark.parametrize("kind", [tt.optim.AdamW, tt.optim.SGD])
def test_sharded_optimizer_of_one_rank(kind: Any):
    """State dicts go from one to the other, both ways."""
    options: dict[str, Any] = {"lr": 0.01} | ({"momentum": 0.9} if kind is tt.optim.SGD else {})
    plain, sharded = model(), model()
    groups = lambda m: [  # noqa: E731
        {"params": [p for p in m.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in m.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    one = kind(groups(plain), **options)
    two = dist.ZeroRedundancyOptimizer(groups(sharded), kind, **options)
    for step in range(4):
        for m, optimizer in ((plain, one), (sharded, two)):
            optimizer.zero_grad()
            (m(batch(step)) ** 2).mean().backward()
            optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
            optimizer.step()
        if step == 1:
            saved_one, saved_two = one.state_dict(), two.state_dict()
            assert saved_one["param_groups"] == saved_two["param_groups"]
            assert saved_one["state"].keys() == saved_two["state"].keys()
            one.load_state_dict(saved_two)
            two.load_state_dict(saved_one)
    for a, b in zip(plain.parameters(), sharded.parameters(), strict=True):
        assert np.array_equal(a.detach().numpy(), b.detach().numpy())
    for window in two._windows:  # no second copy of numbers and gradients
        assert np.shares_memory(window.values, window.whole.values)
        assert np.shares_memory(window.gradients, window.whole.gradients)
    with pytest.raises(RuntimeError, match="make a new optimizer"):
        two.add_param_group({"params": [tt.zeros(1, requires_grad=True)]})


def test_sharded_optimizer_of_other_parameters():
    with pytest.raises(ValueError, match="not those of `model`"):
        dist.ZeroRedundancyOptimizer(
            model().parameters(),
            tt.optim.AdamW,
            model=dist.DistributedDataParallel(model()),
        )


def test_sharded_clipping():
    wrapped = model()
    optimizer = dist.ZeroRedundancyOptimizer(wrapped.parameters(), tt.optim.AdamW)
    (wrapped(batch(0)) ** 2).sum().backward()
    expected = np.sqrt(sum(float((p.grad.numpy() ** 2).sum()) for p in wrapped.parameters()))  # type: ignore[union-attr]
    assert float(optimizer.clip_grad_norm_(0.1)) == pytest.approx(expected, rel=1e-5)
    assert float(optimizer.clip_grad_norm_(1.0)) == pytest.approx(0.1, rel=1e-4)


# ---- agreement ----


def test_agreement_of_many_things():
    same = {"code": "x", "lr": "0.1"}
    assert disagreements([same] * 3) == []
    found = disagreements([same, same | {"lr": "0.2"}, same, same | {"lr": "0.3"}, {"code": "y"}])
    assert found == [
        "rank 4 differs in code (y there, x on rank 0)",
        "ranks 1, 3, 4 differ in lr (0.2 there, 0.1 on rank 0)",
    ]
    assert disagreements([same, same | {"lr": "0.2"}]) == [
        "rank 1 differs in lr (0.2 there, 0.1 on rank 0)"
    ]


def test_alone_one_agrees_with_oneself():
    dist.check_agreement(model().parameters(), {"lr": 0.1})


def test_one_changed_bit_changes_the_hash():
    from tinytensor.distributed.agreement import parameters_hash

    one, two = model(), model()
    assert parameters_hash(one.parameters()) == parameters_hash(two.parameters())
    two[4].bias.data += 1e-7
    assert parameters_hash(one.parameters()) != parameters_hash(two.parameters())


def test_stretches_are_long_enough_for_a_large_model():
    """Attention dropout of GPT-2 XL: 48 layers, 25 heads, 1024 x 1024, a batch of 8."""
    words = 48 * 25 * 1024 * 1024 * 8 // 2
    assert 10 * words < 4 * parallel.STRETCH
