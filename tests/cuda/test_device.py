"""The device "cuda-sim", and what CuPy's arrays share with it: every operation, no hidden
copies.
"""

from __future__ import annotations

import contextlib
import copy
import types

import numpy as np
import pytest

import tests.table as table
import tinytensor as tt
from tinytensor import backend, func, ops
from tinytensor.cuda import network, operations
from tinytensor.cuda.device import SimArray, host_copies, sim
from tinytensor.tensor import OPERATIONS, op

SIM = "cuda-sim"


def on(device, array):
    """A tensor of a table's input, on a device."""
    if array is None:
        return None
    tensor = tt.from_numpy(array) if isinstance(array, np.ndarray) else tt.tensor(array)
    tensor = tensor.to(device)
    return tensor.requires_grad_() if tensor.dtype.kind not in "biu" else tensor


# --- every operation -----------------------------------------------------------------------------

READS = {"to_device"}  # which moves them
# Cases whose functions hold NumPy arrays beside their inputs, which would be refused here.
HOLDS_ARRAYS = ("weighted", "of zero", "each")


@pytest.mark.parametrize(
    "case",
    [case for case in table.CASES if not case.label.endswith(HOLDS_ARRAYS)],
    ids=lambda case: case.id,
)
def test_every_operation_gives_the_cpu_s_numbers_and_copies_nothing_to_the_host(case):
    arrays = case.arrays(np.float32)
    results = []
    for device in ("cpu", SIM):
        inputs = [on(device, array) for array in arrays]
        before = host_copies()
        with tt.reference_ops():
            y = case.function(*inputs)
            if y.node is not None:
                dy = np.random.default_rng(0).standard_normal(y.shape).astype(y.dtype)
                y.backward(tt.from_numpy(dy).to(device))
        copies = host_copies() - before
        assert copies == 0 or case.name in READS
        assert str(y.device) == (device if case.name != "to_device" else str(y.device))
        gradients = [x.grad for x in inputs if x is not None and x.grad is not None]
        assert all(str(g.device) == device for g in gradients)
        results.append([y.detach().cpu().numpy(), *(g.cpu().numpy() for g in gradients)])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-5)


def test_integers_are_divided_without_looking_at_them():
    ten, divisor = (tt.tensor(x, device=SIM) for x in ([7, -7, 8], [2, 2, 0]))
    before = host_copies()
    quotients, rests = ten // divisor, ten % divisor
    powers = ten ** (divisor * divisor)
    assert host_copies() == before
    assert quotients.tolist()[:2] == [3, -4] and rests.tolist()[:2] == [1, 1]
    assert powers.tolist() == [2401, 2401, 1]
    for none in (lambda: ten // 0, lambda: ten % 0):  # a number is looked at
        with pytest.raises(ZeroDivisionError, match="integer division by zero"):
            none()


@pytest.mark.compiler
@pytest.mark.parametrize("plain", [True, False], ids=["references", "kernels"])
@pytest.mark.parametrize(
    "case",
    [
        case
        for case in table.differentiable()
        if not case.label.endswith(HOLDS_ARRAYS) and case.name != "to_device"
    ],
    ids=lambda case: case.id,
)
def test_derivatives_of_derivatives_are_the_cpu_s(case, plain):
    """Gradient, Hessian times a vector and Jacobian times a vector, with nothing read back."""
    results = []
    for device in ("cpu", SIM):
        inputs = [None if a is None else on(device, a).detach() for a in case.arrays(np.float32)]
        real = [i for i, x in enumerate(inputs) if x is not None and x.dtype.kind == "f"]
        rng = np.random.default_rng(0)

        def random(like, rng=rng, device=device):
            numbers = np.asarray(rng.standard_normal(like.shape), np.float32)
            return tt.from_numpy(numbers).to(device)

        weights = random(case.function(*inputs))
        points = tuple(inputs[i] for i in real)
        directions = tuple(map(random, points))

        def weighted(*given, inputs=inputs, real=real, weights=weights):
            full = list(inputs)
            for i, x in zip(real, given, strict=True):
                full[i] = x
            return (case.function(*full) * weights).sum()

        before = host_copies()
        with tt.reference_ops() if plain else contextlib.nullcontext():
            gradients = func.grad(weighted, tuple(range(len(points))))(*points)
            bent = func.hvp(weighted, points, directions)[1]
            slope = func.jvp(weighted, points, directions)[1]
        assert host_copies() == before
        assert all(str(x.device) == device for x in (*gradients, *bent, slope))
        results.append([x.cpu().numpy() for x in (*gradients, *bent, slope)])
    for theirs, ours in zip(*results, strict=True):
        scale = max(1.0, float(np.abs(theirs).max(initial=0)))
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-4 * scale)


def test_cross_entropy_with_weights_of_the_classes():
    x, weight = (
        np.random.default_rng(0).standard_normal((6, 5), np.float32),
        np.arange(1, 6, dtype=np.float32),
    )
    target = np.array([0, 4, 3, 4, 1, 2])
    losses = [
        ops.cross_entropy(*(tt.tensor(a).to(device) for a in (x, target, weight))).item()
        for device in ("cpu", SIM)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


# --- the device ----------------------------------------------------------------------------------


def test_making_moving_and_printing():
    x = tt.zeros(2, 3, device=SIM)
    assert str(x.device) == SIM
    assert x.device == tt.device(SIM)
    assert repr(x).startswith("tensor([[0., 0., 0.]")
    assert x.sum().item() == 0
    assert isinstance(x.sum().array, SimArray)
    y = tt.tensor([1.0, 2.0], device=SIM, requires_grad=True)
    (y * y).sum().backward()
    assert str(y.grad.device) == SIM
    assert y.grad.tolist() == [2.0, 4.0]
    assert y.to("cpu").tolist() == y.cpu().tolist() == [1.0, 2.0]
    assert y.to(SIM) is y or y.to(SIM).array is y.array
    for made in (tt.ones(3, device=SIM), tt.arange(3, device=SIM), tt.randn(3, device=SIM)):
        assert str(made.device) == SIM
    assert str(tt.zeros_like(y).device) == SIM


def test_moving_copies():
    host = np.ones(3, np.float32)
    moved = tt.from_numpy(host).to(SIM)
    moved += 1
    assert host.tolist() == [1, 1, 1]
    back = moved.cpu().numpy()
    back[0] = 7
    assert moved.tolist() == [2, 2, 2]


def test_devices_are_not_mixed():
    a, b = tt.ones(3), tt.ones(3, device=SIM)
    for mixed in (lambda: a + b, lambda: ops.maximum(b, a), lambda: tt.cat([a, b]), lambda: b @ a):
        with pytest.raises(RuntimeError, match=r"on cpu and cuda-sim cannot be mixed.*\.to"):
            mixed()
    assert (b + 1.5).tolist() == [2.5] * 3


def test_nothing_becomes_a_numpy_array_by_itself():
    x = sim.ones(3)
    with pytest.raises(TypeError, match="does not become a NumPy array by itself"):
        np.asarray(x)
    with pytest.raises(TypeError, match="cannot be used on 'cuda-sim'"):
        x + np.ones(3)
    with pytest.raises(TypeError, match="cannot be used on 'cuda-sim'"):
        x[0] = np.ones(1)


def test_reading_a_number_is_counted():
    x = sim.ones(())
    before = host_copies()
    assert (float(x), int(x), bool(x), x.item(), x.tolist()) == (1, 1, True, 1, 1)
    assert sim.asnumpy(x) == 1
    assert host_copies() == before + 6


def test_arrays_behave_as_cupy_s():
    x = sim.arange(6).reshape(2, 3)
    assert isinstance(x.sum(), SimArray)
    assert x.sum().shape == ()
    assert isinstance(x[1, 2], SimArray)
    view = x[0]
    view += 10
    assert x.tolist() == [[10, 11, 12], [3, 4, 5]]
    x[sim.asarray([1])] = 0
    assert x.tolist() == [[10, 11, 12], [0, 0, 0]]
    assert x.astype(np.int64, copy=False) is x
    sim.add.at(x, (sim.asarray([0, 0]), sim.asarray([1, 1])), 1)
    assert x[0, 1].item() == 13
    assert [row.tolist() for row in x] == [[10, 13, 12], [0, 0, 0]]
    assert copy.deepcopy(x).data.ptr != x.data.ptr
    assert backend.memory_range(x[:, ::-1]) == (x.data.ptr, x.data.ptr + x.nbytes)


def test_modules_move():
    model = tt.nn.Sequential(tt.nn.LayerNorm(3), tt.nn.GELU(), tt.nn.LayerNorm(3)).to(SIM)
    assert {str(p.device) for p in model.parameters()} == {SIM}
    model(tt.ones(2, 3, device=SIM)).sum().backward()
    assert all(str(p.grad.device) == SIM for p in model.parameters())


# --- kernels -------------------------------------------------------------------------------------


def test_one_registration_serves_both_kinds_of_array(monkeypatch):
    @op
    def doubled(x):
        return x + x, lambda dy: dy + dy

    OPERATIONS.pop("doubled")
    watchers = []
    monkeypatch.setattr(operations, "when_cupy_arrives", watchers.append)
    seen = []

    @operations.kernel_for(doubled)
    def kernel(x):
        seen.append(type(x))
        return NotImplemented if x.ndim > 1 else (x * 2, lambda dy: dy * 2)

    x = tt.ones(3, device=SIM, requires_grad=True)
    doubled(x).sum().backward()
    assert x.grad.tolist() == [2, 2, 2]
    doubled(tt.ones(2, 2, device=SIM))
    doubled(tt.ones(3))
    assert seen == [SimArray, SimArray]
    (watcher,) = watchers
    watcher(complex)  # any type will do for CuPy's
    assert doubled.implementations[complex] is kernel


def gpt_losses(device, steps=10):
    """Losses of a GPT of two blocks, its parameters after the last step, and copies to the host."""
    from gpt.model import GPT, GPTConfig

    tt.manual_seed(0)
    config = GPTConfig(vocab_size=17, block_size=12, n_layer=2, n_head=2, n_embd=16, dropout=0.1)
    model = GPT(config).to(device)
    optimizer = tt.optim.AdamW(model.parameters(), lr=1e-2)
    ids = np.random.default_rng(0).integers(0, 17, (3, 13))
    x, y = (tt.from_numpy(part.copy()).to(device) for part in (ids[:, :-1], ids[:, 1:]))
    losses = []
    before = host_copies()
    for _ in range(steps):
        _, loss = model(x, y)
        optimizer.zero_grad()
        loss.backward()
        tt.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    copies = host_copies() - before
    return losses, [p.detach().cpu().numpy() for p in model.parameters()], copies


@pytest.mark.compiler
def test_a_small_gpt_trains_ten_steps_and_matches_the_cpu():
    ours, weights, copies = gpt_losses(SIM)
    theirs, other_weights, _ = gpt_losses("cpu")
    assert copies == 10  # loss.item(), once a step, and nothing that nobody asked for
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert ours[-1] < 0.7 * ours[0]
    for a, b in zip(weights, other_weights, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)


@pytest.mark.compiler
@pytest.mark.parametrize("read", [float, bool, lambda x: x.get()])
def test_a_hidden_copy_would_be_counted(read, monkeypatch):
    """In one kernel's launcher of the forward pass, each of the ways to wait for a GPU."""
    gather, met = network.embedding, []

    def reading(weight, ids, *rest):
        y = gather(weight, ids, *rest)
        read(y.reshape(-1)[0])
        met.append(1)
        return y

    monkeypatch.setattr(network, "embedding", reading)
    _, _, copies = gpt_losses(SIM, steps=1)
    assert met
    assert copies == 1 + len(met)


# --- what goes wrong with CuPy, with a stand-in for it --------------------------------------------


def stand_in(driver=13000, runtime=13000, count=0):
    """As much of CuPy as `backend` asks before there is an array."""

    found = types.SimpleNamespace(
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: runtime,
        getDeviceCount=lambda: count,
    )
    return types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=found))


def test_a_driver_that_is_too_old(monkeypatch):
    monkeypatch.setattr(backend, "cupy", lambda: stand_in(12040, 13000))
    monkeypatch.setattr(backend, "cuda_device_count", lambda: 0)
    with pytest.raises(RuntimeError, match=r"too old: it is for CUDA 12\.4.*CUDA 13.*cuda12"):
        tt.zeros(1, device="cuda")


def test_no_device(monkeypatch):
    monkeypatch.setattr(backend, "cupy", stand_in)
    monkeypatch.setattr(backend, "cuda_device_count", lambda: 1)
    with pytest.raises(RuntimeError, match="'cuda:3' was asked for, but CuPy sees 1 CUDA devices"):
        tt.zeros(1, device="cuda:3")


def test_two_wheels(monkeypatch):
    monkeypatch.setattr(backend, "cupy_wheels", lambda: ["cupy-cuda12x", "cupy-cuda13x"])
    with pytest.raises(RuntimeError, match=r"2 CuPy wheels.*pip uninstall cupy-cuda12x"):
        backend.cupy.__wrapped__()


def test_a_cupy_that_cannot_be_imported(monkeypatch):
    def refuse(name):
        raise ImportError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(backend, "cupy_wheels", lambda: ["cupy-cuda13x"])
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(backend.importlib, "import_module", refuse)
    with pytest.raises(RuntimeError, match=r"cannot be imported .libcudart.*doctor"):
        backend.cupy.__wrapped__()


@pytest.mark.parametrize(
    ("cupy", "sentence"),
    [
        (lambda: stand_in(12040, 13000), r"the NVIDIA driver is too old: it is for CUDA 12\.4"),
        (backend.cupy.__wrapped__, "2 CuPy wheels .*: pip uninstall cupy-cuda12x cupy-cuda13x"),
    ],
)
def test_auto_says_what_hides_a_gpu(monkeypatch, cupy, sentence):
    monkeypatch.setattr(backend, "cupy_wheels", lambda: ["cupy-cuda12x", "cupy-cuda13x"])
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(backend, "cupy", cupy)
    with pytest.warns(RuntimeWarning, match=f"device 'auto' is the CPU: {sentence}"):
        assert tt.device("auto").type == "cpu"


def test_auto_is_silent_where_no_gpu_is_to_be_expected(monkeypatch):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert tt.device("auto").type == "cpu"  # no CuPy
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(backend, "cupy", lambda: stand_in(0, 13000))
    assert tt.device("auto").type == "cpu"  # CuPy, and no driver
