"""Optimizers and clipping on "cuda-sim": the CPU's numbers, by kernels, with nothing read back."""

from __future__ import annotations

import numpy as np
import pytest

import tinytensor as tt
from tests.cuda.kernel_cases import launched
from tinytensor.cpu import blas
from tinytensor.cuda.device import host_copies
from tinytensor.optim.rounding import follow, round_at_random
from tinytensor.random import Draw, words32

pytestmark = pytest.mark.compiler

SIM = "cuda-sim"
SHAPES = ((5, 3), (7,), (40, 33))


def trained(where, dtype, kind=tt.optim.AdamW, steps=4, **options):
    """The parameters, the optimizer, and copies to the host, after steps with given gradients."""
    tt.manual_seed(3)
    rng = np.random.default_rng(0)
    parameters = [
        tt.tensor(rng.standard_normal(s), dtype=dtype).to(where).requires_grad_() for s in SHAPES
    ]
    optimizer = kind(parameters, lr=1e-2, **options)
    copies = 0
    for _ in range(steps):
        for p in parameters:
            p.grad = tt.tensor(rng.standard_normal(p.shape), dtype=dtype).to(where)
        before = host_copies()
        tt.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        copies += host_copies() - before
    return [p.detach().cpu().float().numpy() for p in parameters], optimizer, copies


@pytest.mark.parametrize("dtype", [tt.float32, tt.bfloat16], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_on_the_device_is_the_cpu_s(dtype, decay):
    ours, optimizer, copies = trained(SIM, dtype, weight_decay=decay)
    theirs, other, _ = trained("cpu", dtype, weight_decay=decay)
    assert copies == 0
    # The two norms round differently, so gradients differ by a unit before they are used.
    tolerance = 1e-6 if dtype == tt.float32 else 2.0**-7
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, two, rtol=tolerance, atol=tolerance)
    names = {"step", "exp_avg", "exp_avg_sq"} | ({"master"} if dtype == tt.bfloat16 else set())
    for found in (optimizer, other):
        assert set(found.state_dict()["state"][0]) == names


KINDS = [
    (tt.optim.AdamW, {"weight_decay": 0.1}),
    (tt.optim.Adam, {}),
    (tt.optim.Adam, {"weight_decay": 0.1}),
    (tt.optim.SGD, {}),
    (tt.optim.SGD, {"weight_decay": 0.1, "momentum": 0.9}),
    (tt.optim.SGD, {"weight_decay": 0.1, "momentum": 0.9, "nesterov": True}),
    (tt.optim.SGD, {"momentum": 0.5, "dampening": 0.25}),
]


@pytest.mark.parametrize("dtype", [tt.float32, tt.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=str)
def test_one_kernel_gives_the_cpu_s_bits(kind, options, dtype, monkeypatch):
    """Every optimizer, from given gradients that are not clipped."""
    monkeypatch.setattr(blas, "_axpby", {})  # which may round a product and its sum as one
    names = launched(monkeypatch)
    results = []
    for where in ("cpu", SIM):
        rng = np.random.default_rng(0)
        p = tt.tensor(rng.standard_normal(77), dtype=dtype).to(where).requires_grad_()
        optimizer = kind([p], lr=0.03, **options)
        for number in range(4):
            p.grad = tt.tensor(rng.standard_normal(77), dtype=dtype).to(where)
            before = host_copies()
            optimizer.step()
            assert host_copies() == before
            if number == 1:
                optimizer.param_groups[0]["lr"] = 0.01
        state = optimizer.state_dict()["state"].get(0, {})
        arrays = [x.cpu().float().numpy() for x in state.values() if isinstance(x, tt.Tensor)]
        results.append([p.detach().cpu().float().numpy(), *arrays])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    update = "sgd" if kind is tt.optim.SGD else "adamw"
    assert names == ["set_factors", update] * 4


@pytest.mark.parametrize("dtype", [tt.float16, tt.float64], ids=str)
def test_what_has_no_kernel_is_updated_all_the_same(dtype):
    ours, _, copies = trained(SIM, dtype)
    theirs, _, _ = trained("cpu", dtype)
    assert copies == 0
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [tt.optim.Adam, tt.optim.SGD])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}], ids=str)
def test_other_optimizers_in_float64(kind, options):
    ours, _, copies = trained(SIM, tt.float64, kind, **options)
    theirs, _, _ = trained("cpu", tt.float64, kind, **options)
    assert copies == 0
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("where", ["cpu", SIM])
@pytest.mark.parametrize("kind", [tt.optim.Adam, tt.optim.SGD])
def test_other_optimizers_keep_a_master_too(where, kind):
    found, optimizer, copies = trained(where, tt.bfloat16, kind)
    exact, _, _ = trained("cpu", tt.float32, kind)
    assert copies == 0
    assert "master" in optimizer.state_dict()["state"][0]
    for one, two in zip(found, exact, strict=True):
        np.testing.assert_allclose(one, two, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("where", ["cpu", SIM])
def test_rounding_at_random_needs_no_master_and_moves_on_average(where):
    value = tt.ones(20_000, dtype=tt.bfloat16, device=where, requires_grad=True)
    nearest = tt.ones(1, dtype=tt.bfloat16, device=where, requires_grad=True)
    # An update is a sixteenth of the gap below 1, so rounded to the nearest it would be lost.
    optimizer = tt.optim.AdamW([value], lr=2.0**-12, weight_decay=0.0, stochastic_rounding=True)
    for _ in range(8):
        value.grad = tt.ones_like(value)
        optimizer.step()
    assert set(optimizer.state_dict()["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    moved = 1 - value.detach().float().mean().item()
    assert moved == pytest.approx(8 * 2.0**-12, rel=0.1)
    assert (nearest.detach().float() - 2.0**-12).bfloat16().item() == 1


def test_rounding_at_random_is_the_same_on_both_devices():
    results = []
    for where in ("cpu", SIM):
        tt.manual_seed(3)
        rng = np.random.default_rng(0)
        p = tt.tensor(rng.standard_normal(300_001), dtype=tt.bfloat16).to(where).requires_grad_()
        optimizer = tt.optim.AdamW([p], lr=1e-2, stochastic_rounding=True)
        for _ in range(2):  # more than one piece of the CPU's, of several threads
            p.grad = tt.tensor(rng.standard_normal(p.shape), dtype=tt.bfloat16).to(where)
            optimizer.step()
        results.append(p.detach().cpu().float().numpy())
    np.testing.assert_array_equal(*results)


def test_rounding_at_random_keeps_what_is_not_finite():
    exact = np.array([np.inf, -np.inf, np.nan, 3e38, 1.0, -0.0], np.float32)
    value = np.zeros(6, tt.bfloat16)
    round_at_random(value, exact, Draw(1, 2), 5)
    assert np.isposinf(value[0]) and np.isneginf(value[1]) and np.isnan(value[2])
    assert value[4:].tolist() == [1.0, 0.0]
    whole = exact.view(np.uint32) + (words32(Draw(1, 2), 11)[5:] >> np.uint32(16))
    assert value[3].view(np.uint16) == whole[3] >> 16


def test_a_master_follows_what_somebody_wrote():
    master = np.array([1.001, 2.0, 3.0], np.float32)
    value = master.astype(tt.bfloat16)
    value[1] = 5
    follow(master, value)
    assert master.tolist() == [np.float32(1.001), 5.0, 3.0]


def gradients(where, values, dtype=tt.float32):
    parameters = [tt.zeros(*v.shape, dtype=dtype, device=where).requires_grad_() for v in values]
    for p, v in zip(parameters, values, strict=True):
        p.grad = tt.tensor(v, dtype=dtype).to(where)
    return parameters


@pytest.mark.parametrize("dtype", [tt.float32, tt.bfloat16, tt.float64], ids=str)
@pytest.mark.parametrize("largest", [0.5, 1e9])
def test_clipping_reads_nothing_back(dtype, largest):
    values = [np.random.default_rng(i).standard_normal(s) for i, s in enumerate(SHAPES)]
    ours, theirs = (gradients(where, values, dtype) for where in (SIM, "cpu"))
    before = host_copies()
    norm = tt.nn.utils.clip_grad_norm_(ours, largest)
    assert host_copies() == before
    other = tt.nn.utils.clip_grad_norm_(theirs, largest)
    assert norm.item() == pytest.approx(other.item(), rel=1e-6)
    assert norm.shape == ()
    rounding = {tt.float32: 1e-6, tt.bfloat16: 2.0**-7, tt.float64: 1e-12}[dtype]
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(
            one.grad.cpu().double().numpy(), two.grad.double().numpy(), rtol=rounding
        )


def test_a_norm_that_is_not_finite_is_an_error_on_request():
    (p,) = gradients(SIM, [np.array([1.0, np.nan])])
    with pytest.raises(RuntimeError, match="the norm of the gradients is nan"):
        tt.nn.utils.clip_grad_norm_([p], 1.0, error_if_nonfinite=True)
    assert p.grad.tolist()[0] == 1.0  # nothing has changed
    assert np.isnan(tt.nn.utils.clip_grad_norm_([p], 1.0).item())
