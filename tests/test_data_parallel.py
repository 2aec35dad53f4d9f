"""A batch shared out among processes: the gradients of the whole, and no silence where not."""

from __future__ import annotations

import gc
import os
import signal
import time

import numpy as np
import pytest

import tinytensor as tt
from tinytensor import nn
from tinytensor.nn import functional as F
from tinytensor.utils import data_parallel
from tinytensor.utils.data_parallel import DataParallel

pytestmark = pytest.mark.skipif(
    not data_parallel.can_fork(), reason="here one process does everything"
)


class Net(nn.Module):
    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.first, self.second, self.drop = nn.Linear(6, 16), nn.Linear(16, 5), nn.Dropout(p)
        self.unused = nn.Parameter(tt.ones(3))

    def loss(self, x, y):
        return F.cross_entropy(self.second(self.drop(F.gelu(self.first(x)))), y)


def batch(rows=8, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 6)).astype(np.float32)
    return tt.from_numpy(x), tt.from_numpy(rng.integers(0, 5, rows))


def net(p=0.0):
    tt.manual_seed(0)
    model = Net(p)
    # Two groups, so that there are two buffers.
    decayed = [q for q in model.parameters() if q.ndim > 1]
    others = [q for q in model.parameters() if q.ndim == 1]
    return model, tt.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}])


def train(processes, steps=4, rows=8, p=0.0):
    model, optimizer = net(p)
    losses = []
    with DataParallel(model.loss, optimizer, processes) as gradients:
        for step in range(steps):
            optimizer.zero_grad()
            losses.append(gradients(*batch(rows, step)).item())
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    return (
        losses,
        [q.detach().numpy().copy() for q in model.parameters()],
        tt.random.get_rng_state(),
    )


@pytest.mark.parametrize("rows", [8, 7, 2])
@pytest.mark.parametrize("processes", [2, 3])
def test_training_is_that_of_one_process_up_to_rounding(processes, rows):
    losses, parameters, _ = train(1, rows=rows)
    theirs, others, _ = train(processes, rows=rows)
    np.testing.assert_allclose(theirs, losses, rtol=1e-5)
    for a, b in zip(parameters, others, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=2e-5)  # AdamW divides by small roots


@pytest.mark.parametrize("rows", [8, 7])
def test_the_gradients_are_those_of_the_whole_batch_and_are_added(rows):
    model, optimizer = net()
    x, y = batch(rows)
    model.loss(x, y).backward()
    wanted = {n: q.grad.numpy().copy() for n, q in model.named_parameters() if n != "unused"}
    optimizer.zero_grad()
    with DataParallel(model.loss, optimizer, 2) as gradients:
        for times in (1, 2):
            gradients(x, y)
            for name, q in model.named_parameters():
                if name == "unused":
                    assert q.grad is None
                else:
                    np.testing.assert_allclose(
                        q.grad.numpy(), times * wanted[name], rtol=1e-4, atol=1e-7
                    )


def test_a_parameter_that_only_another_process_needs_has_its_gradient():
    model, optimizer = net()
    x = tt.tensor([[1.0] * 6, [2.0] * 6])

    def loss(x):
        return (model.first if x.array[0, 0] == 1 else model.second)(
            x if x.array[0, 0] == 1 else tt.ones(1, 16)
        ).sum() * 1.0

    with DataParallel(loss, optimizer, 2) as gradients:
        gradients(x)
    np.testing.assert_allclose(model.second.bias.grad.numpy(), np.full(5, 0.5))
    np.testing.assert_allclose(model.first.bias.grad.numpy(), np.full(16, 0.5))


def test_masks_differ_between_processes_and_are_the_same_in_every_run():
    first, again = (train(2, p=0.5) for _ in range(2))
    assert first[0] == again[0]
    assert first[2] == again[2] != {"seed": 0, "counter": 0}
    for a, b in zip(first[1], again[1], strict=True):
        np.testing.assert_array_equal(a, b)

    scale = tt.ones(1, requires_grad=True)

    def loss(x):
        return (F.dropout(x, 0.5) * scale).mean()

    kept = []
    for rows in (slice(0, 1), slice(1, 2)):  # each process is given one row of ones
        tt.manual_seed(3)
        x = np.zeros((2, 64), np.float32)
        x[rows] = np.arange(64)
        with DataParallel(loss, tt.optim.SGD([scale], lr=0.1), 2) as gradients:
            kept.append(gradients(tt.from_numpy(x)).item())
    assert kept[0] != kept[1]


def test_an_error_in_any_process_is_raised_here_and_the_next_call_is_whole():
    model, optimizer = net()
    x, y = batch()
    with DataParallel(model.loss, optimizer, 2) as gradients:
        first = gradients(x, y).item()
        for place in (0, 7):  # in this process, in the other one
            wrong = y.numpy().copy()
            wrong[place] = 9
            with pytest.raises(IndexError, match="cross_entropy: target 9"):
                gradients(x, tt.from_numpy(wrong))
        assert gradients(x, y).item() == first


def test_random_numbers_of_rows_are_those_of_one_process():
    def masks(processes, rows):
        """Where the gradient of what is dropped vanishes, and where the generator stands then."""
        scale = tt.ones(7, 24, requires_grad=True)

        def loss(x):
            rows = scale[x.reshape(-1)]
            return F.dropout(F.dropout(rows, 0.3) * 2, 0.4).mean()

        tt.manual_seed(11)
        optimizer = tt.optim.SGD([scale], lr=0.1)
        with DataParallel(loss, optimizer, processes, random_by_row=True) as gradients:
            gradients(tt.arange(rows).reshape(rows, 1))
        return scale.grad.numpy() != 0, tt.random.get_rng_state()

    for rows in (7, 4, 1):
        expected, place = masks(1, rows)
        assert 0.2 < expected[:rows].mean() < 0.7
        for processes in (2, 3):
            found, there = masks(processes, rows)
            np.testing.assert_array_equal(found, expected)
            assert there == place


def test_random_numbers_that_cannot_be_cut_by_rows_are_refused():
    model, optimizer = net()

    def loss(x, y):
        return model.loss(x + tt.rand(6), y)

    with (
        DataParallel(loss, optimizer, 2, random_by_row=True) as gradients,
        pytest.raises(RuntimeError, match="a draw of 3 random words for 4 of 8 rows cannot be cut"),
    ):
        gradients(*batch())
    assert tt.rand(3).shape == (3,)  # outside, the generator is as before


def test_a_process_that_cannot_be_started_leaves_none(monkeypatch):
    model, optimizer = net()
    fork, calls = os.fork, []

    def second_fails():
        calls.append(0)
        if len(calls) == 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", second_fails)
    with (
        DataParallel(model.loss, optimizer, 3) as gradients,
        pytest.raises(RuntimeError, match="process 2 could not be started: Resource temporarily"),
    ):
        gradients(*batch())
    assert gradients.other_processes() == []
    with gradients:
        gradients(*batch())
        assert len(gradients.other_processes()) == 2


class OddError(Exception):
    def __init__(self, a, b):  # cannot be unpickled
        super().__init__(f"{a} and {b}")


def test_an_error_that_cannot_be_sent_is_told_in_words():
    model, optimizer = net()

    def loss(x):
        if x.array[0, 0]:
            raise OddError("one", "two")
        return model.first(x).mean()

    with (
        DataParallel(loss, optimizer, 2) as gradients,
        pytest.raises(RuntimeError, match="OddError: one and two"),
    ):
        gradients(tt.tensor([[0.0] * 6, [1.0] * 6]))


def test_a_process_that_dies_is_missed():
    model, optimizer = net()
    with DataParallel(model.loss, optimizer, 2) as gradients:
        gradients(*batch())
        os.kill(gradients.other_processes()[0], signal.SIGKILL)
        with pytest.raises(RuntimeError, match="process 1 ended with code -9"):
            gradients(*batch())


def test_nobody_stays_behind():
    model, optimizer = net()
    gradients = DataParallel(model.loss, optimizer, 3)
    gradients(*batch())
    processes = [helper._process for helper in gradients._helpers]
    assert len(processes) == 2 and all(p.is_alive() for p in processes)
    del gradients
    gc.collect()
    for process in processes:
        process.join(10)
        assert not process.is_alive()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model, optimizer: model.eval(), "in training mode at the first call"),
        (lambda model, optimizer: model.first.requires_grad_(False), "replaced, frozen or"),
        (
            lambda model, optimizer: optimizer.add_param_group({"params": [tt.ones(2)]}),
            "replaced, frozen or",
        ),
    ],
)
def test_what_the_others_would_not_know_of_is_refused_until_it_begins_anew(change, message):
    model, optimizer = net()
    with DataParallel(model.loss, optimizer, 2) as gradients:
        gradients(*batch())
        change(model, optimizer)
        with pytest.raises(RuntimeError, match=message):
            gradients(*batch())
        gradients.close()
        gradients(*batch())


def test_gradients_that_would_be_of_a_part_only_are_refused():
    model, optimizer = net()
    outside = tt.ones(6, requires_grad=True)
    with (
        DataParallel(lambda x: (model.first(x) * 1.0).mean() + outside.sum(), optimizer, 2) as g,
        pytest.raises(RuntimeError, match="is not one of the optimizer's parameters"),
    ):
        g(batch()[0])
    model.first.weight.register_hook(lambda gradient: None)
    with (
        DataParallel(model.loss, optimizer, 2) as gradients,
        pytest.raises(RuntimeError, match="a hook on a parameter of shape"),
    ):
        gradients(*batch())


@pytest.mark.parametrize(
    "inputs", [(), (tt.ones(3), tt.ones(4)), (tt.tensor(1.0),), (tt.ones(0, 6),), (3,)]
)
def test_inputs_that_cannot_be_cut_are_refused(inputs):
    model, optimizer = net()
    with pytest.raises(ValueError, match="cut along their first axis"):
        DataParallel(model.loss, optimizer, 2)(*inputs)


def test_there_is_at_least_one_process():
    model, optimizer = net()
    with pytest.raises(ValueError, match="at least 1 process"):
        DataParallel(model.loss, optimizer, 0)


@pytest.mark.parametrize("processes", [1, 2])
def test_only_processes_that_share_the_cores_are_left_one_thread(processes):
    model, optimizer = net()
    seen = []

    def loss(x, y):
        seen.append(tt.get_num_threads())
        return model.loss(x, y)

    before = tt.get_num_threads()
    tt.set_num_threads(3)
    try:
        with DataParallel(loss, optimizer, processes) as gradients:
            gradients(*batch())
        assert seen == [3 if processes == 1 else 1]
        assert tt.get_num_threads() == 3
    finally:
        tt.set_num_threads(before)


def test_an_interrupt_in_the_middle_leaves_nothing_stale():
    """The other process is at work on the old batch while this one was called away."""
    model, optimizer = net()
    x, y = batch()
    here = os.getpid()
    calls = []

    def loss(x, y):
        calls.append(0)
        if len(calls) == 2:
            if os.getpid() == here:
                raise KeyboardInterrupt
            time.sleep(0.1)
        return model.loss(x, y)

    with DataParallel(loss, optimizer, 2) as gradients:
        first = gradients(x, y).item()
        with pytest.raises(KeyboardInterrupt):
            gradients(*batch(seed=1))
        assert gradients(x, y).item() == first


@pytest.mark.parametrize("dtype", [tt.float64, tt.bfloat16])
def test_other_precisions(dtype):
    tt.manual_seed(0)
    layer = nn.Linear(6, 4).to(dtype)
    x = tt.from_numpy(np.arange(48.0).reshape(8, 6) / 48).to(dtype)

    def loss(x):
        return (layer(x) ** 2).mean()

    whole = loss(x)
    whole.backward()
    wanted = layer.weight.grad.float().numpy().copy()
    layer.zero_grad()
    with DataParallel(loss, tt.optim.SGD(layer.parameters(), lr=0.1), 2) as gradients:
        found = gradients(x)
    rounding = 1e-6 if dtype == tt.float64 else 2e-2
    assert found.dtype == (tt.float32 if dtype == tt.bfloat16 else dtype)
    np.testing.assert_allclose(float(found.item()), float(whole.item()), rtol=rounding)
    np.testing.assert_allclose(layer.weight.grad.float().numpy(), wanted, rtol=rounding, atol=1e-4)
