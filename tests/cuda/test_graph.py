"""`tt.cuda.graph` on "cuda-sim": replays are the steps that would have run, and what cannot be
captured is refused.

While a step is captured there, kernels are noted and not run; a replay runs them, on whatever lies
at the addresses by then.
"""

from __future__ import annotations

import itertools
import types

import numpy as np
import pytest

import tinytensor as tt
from tinytensor.backend import device
from tinytensor.cuda import capture, graph
from tinytensor.cuda.device import host_copies, sim
from tinytensor.utils.checkpoint import checkpoint

SIM = "cuda-sim"


class Streams:
    """Streams of "cuda-sim" that say in which order they wait, begin, end and launch."""

    def __init__(self):
        self.events = []
        events, outer = self.events, capture

        class Stream(outer.Stream):
            current = None

            def __init__(self, non_blocking=False):
                super().__init__(non_blocking)
                self.name = "side" if non_blocking else "main"

            def __enter__(self):
                self.before, Stream.current = Stream.current, self
                return self

            def __exit__(self, *error):
                Stream.current = self.before

            def wait_event(self, event):
                events.append(f"{self.name} waits for {event.name}")

            def begin_capture(self):
                events.append("begin")
                super().begin_capture()

            def end_capture(self):
                events.append("end")
                found = super().end_capture()
                launch = found.launch
                found.launch = lambda stream: (
                    events.append(f"launch on {stream.name}"), launch(stream),
                )  # fmt: skip
                return found

        Stream.current = Stream()
        self.Stream = Stream


@pytest.fixture
def streams(monkeypatch):
    streams = Streams()
    monkeypatch.setattr(sim.cuda, "Stream", streams.Stream)
    monkeypatch.setattr(
        sim.cuda, "get_current_stream", staticmethod(lambda: streams.Stream.current)
    )
    return streams


def problem(kind=tt.optim.AdamW, **options):
    """Two parameters in two groups, and the optimizer."""
    w = tt.tensor(np.arange(5, dtype=np.float32), device=SIM, requires_grad=True)
    v = tt.tensor(np.ones((2, 3), np.float32), device=SIM, requires_grad=True)
    groups = [{"params": [w], "weight_decay": 0.1}, {"params": [v], "lr": 0.02}]
    return w, v, kind(groups, lr=0.01, **options)


def stepping(w, v, optimizer):
    """A step whose gradients are its inputs."""

    def step(dw, dv):
        optimizer.zero_grad()
        ((w * dw).sum() + (v * dv).sum()).backward()
        optimizer.step()
        return dw * 2

    return step


def gradients(seed):
    rng = np.random.default_rng(seed)
    return [tt.tensor(rng.standard_normal(s).astype(np.float32), device=SIM) for s in (5, (2, 3))]


@pytest.mark.compiler
def test_replays_are_steps_with_their_own_learning_rate_and_number():
    w, v, optimizer = problem()
    captured = graph(stepping(w, v, optimizer), optimizer)
    twin_w, twin_v, twin = problem()
    plain = stepping(twin_w, twin_v, twin)
    for number in range(6):
        for group, twin_group in zip(optimizer.param_groups, twin.param_groups, strict=True):
            group["lr"] = twin_group["lr"] = 0.01 * (1 + number)
        result = captured(*gradients(number))
        plain(*gradients(number))
        assert captured.captured == (number >= 2)
        assert result.tolist() == (gradients(number)[0] * 2).tolist()
        assert w.tolist() == twin_w.tolist()
        assert v.tolist() == twin_v.tolist()
    first, second = (o.state_dict()["state"] for o in (optimizer, twin))
    assert [s["step"] for s in first.values()] == [6, 6]
    for one, other in zip(first.values(), second.values(), strict=True):
        assert one["exp_avg_sq"].tolist() == other["exp_avg_sq"].tolist()


def gpt_steps(captured, autocast=False, dtype=None, steps=5, checkpointing=False, **options):
    """Losses and norms of a small GPT with dropout, what it ends with, and copies to the host."""
    from gpt.model import GPT, GPTConfig

    tt.manual_seed(0)
    config = GPTConfig(vocab_size=17, block_size=12, n_layer=2, n_head=2, n_embd=16, dropout=0.2)
    model = GPT(config).to(SIM)
    model.to(dtype) if dtype is not None else None
    optimizer = tt.optim.AdamW(model.parameters(), **options)

    def step(x, y):
        with tt.autocast(SIM, enabled=autocast):
            loss = checkpoint(model, x, y)[1] if checkpointing else model(x, y)[1]
        optimizer.zero_grad()
        loss.backward()
        norm = tt.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss, norm

    run = graph(step, optimizer) if captured else step
    rng = np.random.default_rng(0)
    told, copies = [], 0
    for number in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (1 + number)
        ids = rng.integers(0, 17, (3, 13))
        x, y = (tt.from_numpy(part.copy()).to(SIM) for part in (ids[:, :-1], ids[:, 1:]))
        before = host_copies()
        found = run(x, y)
        copies += host_copies() - before
        told.append([number.item() for number in found])
    weights = [p.detach().float().cpu().numpy() for p in model.parameters()]
    return told, weights, tt.get_rng_state(), copies


@pytest.mark.compiler
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"autocast": True},
        {"dtype": tt.bfloat16},
        {"dtype": tt.bfloat16, "stochastic_rounding": True},
        {"checkpointing": True},
    ],
    ids=["float32", "autocast", "bfloat16", "rounded at random", "checkpointing"],
)
def test_a_captured_training_step_is_the_plain_one_bit_for_bit(how):
    ours, theirs = gpt_steps(True, **how), gpt_steps(False, **how)
    assert ours[0] == theirs[0]  # with their own masks, rates and numbers of steps
    for one, other in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert ours[2] == theirs[2]
    assert (ours[3], theirs[3]) == (0, 0)


@pytest.mark.compiler
@pytest.mark.parametrize("name", ["dropout", "attention", "rand", "randn", "randint"])
def test_random_numbers_differ_from_replay_to_replay_as_uncaptured_ones_do(name):
    x = tt.ones(1, 2, 40, 16, device=SIM)
    step = {
        "dropout": lambda x: tt.nn.functional.dropout(x, 0.5),
        "attention": lambda x: tt.nn.functional.scaled_dot_product_attention(
            x, x, x, dropout_p=0.5
        ),
        "rand": lambda x: x[0, 0, 0] + tt.rand(16, device=SIM),
        "randn": lambda x: x[0, 0, 0] + tt.randn(16, device=SIM),
        "randint": lambda x: tt.randint(0, 1000, (16,), device=SIM),
    }[name]
    found = []
    for run in (graph(step, warmup=1), step):
        tt.manual_seed(7)
        found.append([run(x).tolist() for _ in range(4)])
        tt.manual_seed(8)  # between calls it may be seeded
        found[-1].append(run(x).tolist())
    assert found[0] == found[1]
    assert all(a != b for a, b in itertools.combinations(found[0], 2))


def test_a_generator_of_one_s_own():
    generators = [tt.Generator(3) for _ in range(2)]
    steps = [
        lambda x, g=g: x + tt.rand(4, generator=g, device=SIM) + tt.rand(4, device=SIM)
        for g in generators
    ]
    found = []
    for run in (graph(steps[0], warmup=1), steps[1]):
        tt.manual_seed(1)
        found.append([run(tt.zeros(4, device=SIM)).tolist() for _ in range(4)])
    assert found[0] == found[1]
    assert generators[0].get_state() == generators[1].get_state()


def test_seeding_inside_a_captured_step_is_refused():
    def step(x):
        tt.manual_seed(1)
        return tt.nn.functional.dropout(x, 0.5)

    run = after_warmup(step, None, tt.ones(3, device=SIM))
    with pytest.raises(RuntimeError, match=r"^manual_seed: a captured step draws from"):
        run(tt.ones(3, device=SIM))
    tt.manual_seed(1)  # allowed again


def test_numbers_drawn_on_the_cpu_are_refused():
    run = after_warmup(lambda x: x + tt.rand(3).to(SIM), None, tt.ones(3, device=SIM))
    before = tt.get_rng_state()
    with pytest.raises(RuntimeError, match="random numbers on the CPU cannot be drawn in a capt"):
        run(tt.ones(3, device=SIM))
    assert tt.get_rng_state() == before


@pytest.mark.compiler
def test_in_which_order_streams_wait(streams):
    w, v, optimizer = problem()
    captured = graph(stepping(w, v, optimizer), optimizer, warmup=1)
    for number in range(3):
        captured(*gradients(number))
    assert streams.events == [
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


@pytest.mark.parametrize(
    "reading",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x[0] > 0),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
    ],
    ids=["item", "bool", "mask", "nonzero", "cpu"],
)
def test_reading_a_number_is_refused_with_its_line(streams, reading):
    def step(x):
        reading(x)
        return x

    captured = after_warmup(step, None, tt.ones(3, device=SIM))
    with pytest.raises(RuntimeError, match=r"reads from the device.*test_graph\.py:\d+ \("):
        captured(tt.ones(3, device=SIM))
    assert streams.events[-2:] == ["begin", "end"]  # the capture was ended
    assert not capture.is_capturing()


def test_an_error_of_the_step_itself_stays_what_it_is():
    calls = []

    def step(x):
        calls.append(x)
        if len(calls) > 1:
            raise ZeroDivisionError("mine")
        return x

    captured = after_warmup(step, None, tt.ones(3, device=SIM))
    with pytest.raises(ZeroDivisionError, match="mine"):
        captured(tt.ones(3, device=SIM))
    assert not capture.is_capturing()


def test_numbers_of_the_host_in_the_step_are_refused():
    captured = after_warmup(
        lambda x: x + tt.tensor([1.0, 2.0, 3.0], device=SIM), None, tt.ones(3, device=SIM)
    )
    with pytest.raises(RuntimeError, match=r"copies from the host .* outside of the step"):
        captured(tt.ones(3, device=SIM))


def test_copies_to_the_host_in_the_graph_are_refused(monkeypatch):
    captured = after_warmup(lambda x: x, None, tt.ones(3, device=SIM))
    monkeypatch.setattr(capture.Graph, "debug_dot_str", lambda graph: "MEMCPY\n(DtoH,28)")
    with pytest.raises(RuntimeError, match="to it"):
        captured(tt.ones(3, device=SIM))


@pytest.mark.compiler
def test_an_optimizer_that_the_graph_does_not_know_is_refused():
    w, v, optimizer = problem()
    captured = after_warmup(stepping(w, v, optimizer), None, *gradients(0))
    with pytest.raises(RuntimeError, match=r"not told of.*graph\(step, optimizer\)"):
        captured(*gradients(1))


@pytest.mark.compiler
def test_a_failed_capture_counts_no_update():
    w, v, optimizer = problem()
    inner = stepping(w, v, optimizer)

    def step(*given):
        inner(*given)
        if capture.is_capturing():
            given[0].sum().item()

    captured = after_warmup(step, optimizer, *gradients(0))
    with pytest.raises(RuntimeError, match="cannot be captured"):
        captured(*gradients(1))
    assert [b.steps for b in optimizer.flat_buffers()] == [[1], [1]]


def test_what_a_graph_cannot_follow_is_refused():
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


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (tt.optim.Adam, {"weight_decay": 0.2}),
        (tt.optim.SGD, {}),
        (tt.optim.SGD, {"momentum": 0.9, "dampening": 0.1}),
        (tt.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    ],
    ids=str,
)
def test_other_optimizers_follow_their_groups(kind, options):
    (w, v, optimizer), (twin_w, twin_v, twin) = (problem(kind, **options) for _ in range(2))
    captured, plain = (
        graph(stepping(w, v, optimizer), optimizer), stepping(twin_w, twin_v, twin),
    )  # fmt: skip
    for number in range(5):
        for group in (*optimizer.param_groups, *twin.param_groups):
            group["lr"] = 0.01 * (1 + number)
        captured(*gradients(number))
        plain(*gradients(number))
        assert w.tolist() == twin_w.tolist()
        assert v.tolist() == twin_v.tolist()
    assert captured.captured


@pytest.mark.compiler
def test_momentum_stays_what_it_was_kept_for():
    w, v, optimizer = problem(tt.optim.SGD)
    captured = after_warmup(stepping(w, v, optimizer), optimizer, *gradients(0))
    captured(*gradients(1))
    optimizer.param_groups[0]["momentum"] = 0.5  # there is no running sum in the graph
    with pytest.raises(RuntimeError, match=r"momentum was 0\.0 when .* is 0\.5 now, which the"):
        captured(*gradients(2))
    w, v, optimizer = problem(tt.optim.SGD, momentum=0.5)
    captured = after_warmup(stepping(w, v, optimizer), optimizer, *gradients(0))
    captured(*gradients(1))
    optimizer.param_groups[0]["momentum"] = 0.0
    with pytest.raises(ValueError, match="captured with momentum keeps some; make a new graph"):
        captured(*gradients(2))


def test_tensors_of_the_host_are_moved():
    w, _, optimizer = problem(tt.optim.SGD)
    captured = graph(lambda x: x + w, optimizer, warmup=1)
    for value in (1.0, 2.0):
        assert captured(tt.full((5,), value)).device == device(SIM)
    assert captured._captured.inputs[0][0].tolist() == [2.0] * 5


def test_memory_that_does_not_suffice(monkeypatch):
    class OutOfMemoryError(MemoryError):
        pass

    class Pool(capture.MemoryPool):
        def malloc(self, size):
            raise OutOfMemoryError

    allocators = []

    def using_allocator(allocator):
        allocators.append(allocator)
        return capture.using_allocator(allocator)

    memory = types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
    monkeypatch.setattr(sim.cuda, "MemoryPool", Pool)
    monkeypatch.setattr(sim.cuda, "memory", memory)
    monkeypatch.setattr(sim.cuda, "using_allocator", using_allocator)
    monkeypatch.setattr(
        sim.cuda, "runtime", types.SimpleNamespace(getDevice=lambda: 0), raising=False
    )
    captured = after_warmup(lambda x: x, None, tt.ones(3, device=SIM))
    with pytest.raises(
        tt.cuda.OutOfMemoryError, match=r"2\.00 GiB, beside 0\.0 GiB.*lower the batch"
    ):
        allocators[-1](2 << 30)
    assert captured(tt.ones(3, device=SIM)).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.compiler
def test_the_picture_names_the_kernels(tmp_path):
    w, v, optimizer = problem()
    step = stepping(w, v, optimizer)
    captured = after_warmup(step, optimizer, *gradients(0), dot=tmp_path / "step.dot")
    captured(*gradients(1))
    text = (tmp_path / "step.dot").read_text()
    assert text == captured.debug_dot_str()
    assert text.count('label="adamw"') == 2


def test_float64_parameters_cannot_be_captured():
    w = tt.ones(3, dtype=tt.float64, device=SIM, requires_grad=True)
    optimizer = tt.optim.AdamW([w])

    def step(x):
        optimizer.zero_grad()
        (w * x).sum().backward()
        optimizer.step()

    captured = after_warmup(step, optimizer, tt.ones(3, dtype=tt.float64, device=SIM))
    with pytest.raises(RuntimeError, match=r"float32 and bfloat16 .* not those of float64"):
        captured(tt.ones(3, dtype=tt.float64, device=SIM))


@pytest.mark.compiler
def test_parameters_that_were_moved_are_noticed():
    w, v, optimizer = problem()
    captured = after_warmup(stepping(w, v, optimizer), optimizer, *gradients(0))
    captured(*gradients(1))
    w.data = tt.ones(5, dtype=tt.float64, device=SIM)
    with pytest.raises(RuntimeError, match="have been moved or replaced since the step was capt"):
        captured(*gradients(2))
