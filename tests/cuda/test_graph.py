"""`tt.cuda.graph` with a stand-in for CuPy's streams and graphs: what was captured can be replayed.

The arrays are those of "cuda-sim". While the stand-in captures, kernels are noted and not run; a
replay runs them, on whatever lies at the addresses by then.
"""

from __future__ import annotations

import types
from contextlib import contextmanager

import numpy as np
import pytest

import tinytensor as tt
from tinytensor.backend import device
from tinytensor.cuda import graph as _function  # noqa: F401 (a function, once the front page has it)
from tinytensor.cuda.device import SimArray, sim

graphs = __import__("sys").modules["tinytensor.cuda.graph"]
graph = graphs.graph

SIM = "cuda-sim"


class Stand:
    """As much of CuPy as the capture uses; `events` says in which order."""

    def __init__(self, dot="digraph { KERNEL }"):
        self.events, self.dot = [], dot
        self.capturing: list | None = None
        self.zeros = sim.zeros
        stand = self

        class OutOfMemoryError(MemoryError):
            pass

        class Stream:
            def __init__(self, non_blocking=False):
                self.name = "side" if non_blocking else "main"

            def __enter__(self):
                stand.stream, self.outer = self, stand.stream

            def __exit__(self, *error):
                stand.stream = self.outer

            def record(self):
                return self.name

            def wait_event(self, event):
                stand.events.append(f"{self.name} waits for {event}")

            def synchronize(self):
                if stand.capturing is not None:
                    raise RuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted")

            def begin_capture(self):
                stand.events.append("begin")
                stand.capturing = []

            def end_capture(self):
                stand.events.append("end")
                calls, stand.capturing = stand.capturing, None
                return Captured(calls)

        class Captured:
            def __init__(self, calls):
                self.calls = calls

            def launch(self, stream):
                stand.events.append(f"launch on {stream.name}")
                for call in self.calls:
                    call()

            def debug_dot_str(self):
                return stand.dot

        class MemoryPool:
            def total_bytes(self):
                return 0

            def malloc(self, size):
                raise OutOfMemoryError

        @contextmanager
        def using_allocator(allocator):
            stand.allocator = allocator
            yield

        self.stream = Stream()
        self.cuda = types.SimpleNamespace(
            Stream=Stream,
            MemoryPool=MemoryPool,
            using_allocator=using_allocator,
            get_current_stream=lambda: stand.stream,
            memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        )
        self.__name__ = "a stand-in "

    def later(self, call):
        if self.capturing is None:
            call()
        else:
            self.capturing.append(call)


@pytest.fixture
def stand(monkeypatch):
    from tinytensor.cuda import layers, optimizer  # noqa: F401 (registers AdamW's kernel)

    stand = Stand()
    monkeypatch.setattr(
        graphs, "_capturing_module", lambda where: stand if where.type == SIM else None
    )
    monkeypatch.setattr(
        SimArray, "set", lambda x, host: x.__setitem__(..., sim.asarray(host)), raising=False
    )
    launch = optimizer.launch
    monkeypatch.setattr(optimizer, "launch", lambda *a, **o: stand.later(lambda: launch(*a, **o)))
    return stand


def problem(kind=tt.optim.AdamW, **options):
    """Two parameters in two groups, and the optimizer."""
    w = tt.tensor(np.arange(5, dtype=np.float32), device=SIM, requires_grad=True)
    v = tt.tensor(np.ones((2, 3), np.float32), device=SIM, requires_grad=True)
    groups = [{"params": [w], "weight_decay": 0.1}, {"params": [v], "lr": 0.02}]
    return w, v, kind(groups, lr=0.01, **options)


def stepping(stand, w, v, optimizer):
    """A step whose gradients are its inputs: written by "kernels" that the stand-in notes."""

    def step(dw, dv):
        for p, dp in ((w, dw), (v, dv)):
            if p.grad is None:
                p.grad = tt.zeros(*p.shape, device=SIM)
                optimizer.flat_gradients()
            target, source = p.grad.array, dp.array
            stand.later(lambda target=target, source=source: target.__setitem__(..., source))
        optimizer.step()
        return dw

    return step


def gradients(seed):
    rng = np.random.default_rng(seed)
    return [tt.tensor(rng.standard_normal(s).astype(np.float32), device=SIM) for s in (5, (2, 3))]


@pytest.mark.compiler
def test_replays_are_steps_with_their_own_learning_rate_and_number(stand):
    w, v, optimizer = problem()
    captured = graph(stepping(stand, w, v, optimizer), optimizer)
    twin_w, twin_v, twin = problem()
    plain = stepping(Stand(), twin_w, twin_v, twin)
    for number in range(6):
        for group, twin_group in zip(optimizer.param_groups, twin.param_groups, strict=True):
            group["lr"] = twin_group["lr"] = 0.01 * (1 + number)
        result = captured(*gradients(number))
        plain(*gradients(number))
        assert captured.captured == (number >= 2)
        assert result.tolist() == gradients(number)[0].tolist()
        assert w.tolist() == twin_w.tolist()
        assert v.tolist() == twin_v.tolist()
    first, second = (o.state_dict()["state"] for o in (optimizer, twin))
    assert [s["step"] for s in first.values()] == [6, 6]
    for one, other in zip(first.values(), second.values(), strict=True):
        assert one["exp_avg_sq"].tolist() == other["exp_avg_sq"].tolist()


@pytest.mark.compiler
def test_in_which_order_streams_wait(stand):
    w, v, optimizer = problem()
    captured = graph(stepping(stand, w, v, optimizer), optimizer, warmup=1)
    for number in range(3):
        captured(*gradients(number))
    assert stand.events == [
        "side waits for main", "main waits for side",
        "begin", "end", "launch on main", "launch on main",
    ]  # fmt: skip


def test_elsewhere_the_step_runs_plainly(tmp_path):
    x = tt.tensor([1.0, 2.0], requires_grad=True)
    optimizer = tt.optim.SGD([x], lr=0.1)

    def step(y, scale):
        optimizer.zero_grad()
        loss = (x * y * scale).sum()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    captured = graph(step, optimizer, dot=tmp_path / "step.dot")
    values = [captured(tt.ones(2), scale)["loss"] for scale in (1.0, 2.0, 3.0, 4.0)]
    assert not captured.captured
    assert not values[0].requires_grad
    assert x.tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    with pytest.raises(RuntimeError, match="nothing has been captured after 4 calls"):
        captured.debug_dot_str()


def after_warmup(step, optimizer=None, *args, **options):
    captured = graph(step, optimizer, warmup=1, **options)
    captured(*args)
    return captured


def test_reading_a_number_is_refused_with_its_line(stand):
    def step(x):
        loss = x.sum()
        stand.stream.synchronize()  # what .item() comes to
        return loss

    captured = after_warmup(step, None, tt.ones(3, device=SIM))
    with pytest.raises(RuntimeError, match=r"reads from the device.*test_graph\.py:\d+ \("):
        captured(tt.ones(3, device=SIM))
    assert stand.events[-2:] == ["begin", "end"]  # the capture was ended
    assert stand.capturing is None


def test_an_error_of_the_step_itself_stays_what_it_is(stand):
    calls = []

    def step(x):
        calls.append(x)
        if len(calls) > 1:
            raise ZeroDivisionError("mine")
        return x

    captured = after_warmup(step, None, tt.ones(3, device=SIM))
    with pytest.raises(ZeroDivisionError, match="mine"):
        captured(tt.ones(3, device=SIM))
    assert stand.capturing is None


def test_random_numbers_are_refused(stand):
    def step(x):
        return tt.nn.functional.dropout(x, 0.5)

    captured = after_warmup(step, None, tt.ones(3, device=SIM))
    before = tt.get_rng_state()
    with pytest.raises(RuntimeError, match="draws random numbers"):
        captured(tt.ones(3, device=SIM))
    assert tt.get_rng_state() == before


@pytest.mark.parametrize(("kind", "words"), [("HtoD", "from the host"), ("DtoH", "to it")])
def test_copies_in_the_graph_are_refused(stand, kind, words):
    captured = after_warmup(lambda x: x, None, tt.ones(3, device=SIM))
    stand.dot = f'label="0\nMEMCPY\n({kind},28)"'
    with pytest.raises(RuntimeError, match=words):
        captured(tt.ones(3, device=SIM))


@pytest.mark.compiler
def test_an_optimizer_that_the_graph_does_not_know_is_refused(stand):
    w, v, optimizer = problem()
    captured = after_warmup(stepping(stand, w, v, optimizer), None, *gradients(0))
    with pytest.raises(RuntimeError, match=r"not told of.*graph\(step, optimizer\)"):
        captured(*gradients(1))


@pytest.mark.compiler
def test_a_failed_capture_counts_no_update(stand):
    w, v, optimizer = problem()
    inner = stepping(stand, w, v, optimizer)

    def step(*given):
        inner(*given)
        if stand.capturing is not None:
            stand.stream.synchronize()

    captured = after_warmup(step, optimizer, *gradients(0))
    with pytest.raises(RuntimeError, match="cannot be captured"):
        captured(*gradients(1))
    assert [b.steps for b in optimizer.flat_buffers()] == [[1], [1]]


def test_what_a_graph_cannot_follow_is_refused(stand):
    captured = after_warmup(lambda x, scale: x, None, tt.ones(3, device=SIM), 2.0)
    captured(tt.ones(3, device=SIM), 2.0)
    with pytest.raises(ValueError, match=r"argument 1 was 2\.0 when .* is 3\.0 now"):
        captured(tt.ones(3, device=SIM), 3.0)
    with pytest.raises(
        ValueError, match=r"float32 \(3,\) when .* float32 \(4,\) now; make a graph"
    ):
        captured(tt.ones(4, device=SIM), 2.0)
    with pytest.raises(ValueError, match="with 2 arguments, not 1"):
        captured(tt.ones(3, device=SIM))
    with pytest.raises(ValueError, match="at least 1 call"):
        graph(lambda: None, warmup=0)


def test_the_learning_rate_of_another_optimizer_is_a_constant(stand):
    w, _, optimizer = problem(tt.optim.SGD)
    w.grad = tt.ones(5, device=SIM)
    captured = after_warmup(lambda x: optimizer.step(), optimizer, tt.ones(3, device=SIM))
    captured(tt.ones(3, device=SIM))
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.raises(RuntimeError, match=r"lr was 0\.01 when .* is 0\.5 now; only AdamW"):
        captured(tt.ones(3, device=SIM))


def test_tensors_of_the_host_are_moved(stand):
    w, _, optimizer = problem(tt.optim.SGD)
    captured = graph(lambda x: x + w, optimizer, warmup=1)
    for value in (1.0, 2.0):
        assert captured(tt.full((5,), value)).device == device(SIM)
    assert captured._captured.inputs[0][0].tolist() == [2.0] * 5


def test_memory_that_does_not_suffice(stand):
    captured = after_warmup(lambda x: x, None, tt.ones(3, device=SIM))
    with pytest.raises(
        tt.cuda.OutOfMemoryError, match=r"2\.00 GiB, beside 0\.0 GiB.*lower the batch"
    ):
        stand.allocator(2 << 30)
    captured(tt.ones(3, device=SIM))
    assert captured.debug_dot_str() == stand.dot
