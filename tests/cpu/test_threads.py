"""Our threads: every piece is done once, errors come back, BLAS finds its setting again."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import threadpoolctl

import tinytensor as tt
from tinytensor.cpu import linear, threads
from tinytensor.nn import functional as F


@pytest.fixture(autouse=True)
def two_threads():
    before = tt.get_num_threads()
    tt.set_num_threads(2)
    yield
    tt.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
@pytest.mark.parametrize("wanted", [1, 2, 5])
def test_split_covers_everything_once(count, wanted):
    tt.set_num_threads(wanted)
    hits, names = np.zeros(count, int), set()

    def work(start, stop):
        hits[start:stop] += 1
        names.add(threading.current_thread().name)

    threads.split(count, 3, work)
    assert (hits == 1).all()
    assert (len(names) > 1) == (min(wanted, count // 3) > 1)


def test_an_error_in_another_thread_comes_back():
    def work(start, stop):
        if start:
            raise ValueError("in the second piece")

    with pytest.raises(ValueError, match="in the second piece"):
        threads.split(10, 1, work)


@pytest.mark.parametrize("failing", [{0}, {1}, {0, 1}])
def test_after_an_error_no_piece_is_still_at_work(failing):
    """Who catches it may write to the arrays again, and BLAS has its threads back."""
    tt.set_num_threads(3)
    begun = threading.Barrier(3, timeout=10)
    done = []

    def work(start, stop):
        begun.wait()
        if start // 10 in failing:
            raise ValueError(f"piece {start // 10}")
        time.sleep(0.05)
        done.append(start // 10)

    before = threads.threads_in_use()
    with pytest.raises(ValueError, match=f"piece {min(failing)}"):
        threads.split(30, 10, work)
    assert set(done) == {0, 1, 2} - failing
    assert threads.threads_in_use() == before


@pytest.mark.parametrize("wanted", [2, 3])
@pytest.mark.parametrize("blocked", [False, True])
def test_pieces_are_shared_while_the_worker_has_a_queue(wanted, blocked):
    """By whoever is free: where the worker is busy throughout, the caller does them all."""
    tt.set_num_threads(wanted)
    gate, names, hits = threading.Event(), set(), np.zeros(1000, int)

    def work(start, stop):
        hits[start:stop] += 1
        names.add(threading.current_thread().name)
        if start == 500:
            raise ValueError("in a piece")

    threads._walk.begin()
    try:
        threads.later(gate.wait)
        if not blocked:
            gate.set()
        if wanted == 2:
            with pytest.raises(ValueError, match="in a piece"):
                threads.split(1000, 10, work)
        else:
            threads.split(1000, 10, work)
        assert (hits == 1).all()
        if blocked and wanted == 2:
            assert names == {threading.current_thread().name}
    finally:
        gate.set()
        threads.finish()
        threads._walk.end()


def test_what_a_walk_queues_is_done_when_it_returns_and_its_errors_are_raised(monkeypatch):
    monkeypatch.setattr(linear, "WORTH_A_THREAD", 1)
    used = []
    multiply = linear.ProductGradient._multiply

    def recorded(self, out):
        used.append(threading.current_thread().name)
        return multiply(self, out)

    monkeypatch.setattr(linear.ProductGradient, "_multiply", recorded)
    x, weight = tt.randn(50, 40), tt.randn(30, 40, requires_grad=True)
    weight.node.buffer = np.empty((30, 40), np.float32)  # as an optimizer sets it
    (F.linear(x, weight) ** 2).sum().backward()
    assert used == ["tinytensor-worker"]
    with tt.reference_ops():
        (expected,) = tt.autograd.grad((F.linear(x, weight) ** 2).sum(), weight)
    np.testing.assert_allclose(weight.grad.numpy(), expected.numpy(), rtol=1e-4, atol=1e-3)

    def broken(self, out):
        raise MemoryError("no room for the product")

    monkeypatch.setattr(linear.ProductGradient, "_multiply", broken)
    with pytest.raises(MemoryError, match="no room"):
        F.linear(x, weight).sum().backward()


def test_what_is_added_to_a_queued_gradient_waits_for_it(monkeypatch):
    """A tied table: the head's gradient is queued, the embedding's is added to it."""
    monkeypatch.setattr(linear, "WORTH_A_THREAD", 1)
    multiply = linear.ProductGradient._multiply

    def slowly(self, out):
        time.sleep(0.05)
        return multiply(self, out)

    monkeypatch.setattr(linear.ProductGradient, "_multiply", slowly)
    table, ids = tt.randn(30, 8, requires_grad=True), tt.randint(0, 30, (20,))

    def loss():
        return (F.linear(F.embedding(ids, table), table) ** 2).sum()

    done = []
    table.register_post_accumulate_grad_hook(lambda t: done.append(t.grad.numpy().copy()))
    loss().backward()
    with tt.reference_ops():
        (expected,) = tt.autograd.grad(loss(), table)
    for found in (table.grad.numpy(), *done):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-3)
    assert len(done) == 1


@pytest.mark.parametrize("of_a_leaf", [False, True])
def test_a_sum_of_queued_gradients_is_whole_when_the_walk_reads_it(of_a_leaf, monkeypatch):
    """Of a computed weight that is used twice, or of a leaf that has a gradient already."""
    monkeypatch.setattr(linear, "WORTH_A_THREAD", 1)
    multiply = linear.ProductGradient._multiply

    def slowly(self, out):
        time.sleep(0.05)
        return multiply(self, out)

    monkeypatch.setattr(linear.ProductGradient, "_multiply", slowly)
    x, other = tt.randn(50, 40), tt.randn(50, 40)

    def gradient():
        leaf = tt.ones(30, 40, requires_grad=True)
        if of_a_leaf:
            (leaf * 3).sum().backward()
        weight = leaf if of_a_leaf else leaf * 2
        (F.linear(x, weight) + F.linear(other, weight)).sum().backward()
        return leaf.grad.numpy()

    found = gradient()
    with tt.reference_ops():
        expected = gradient()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_gradients_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(linear, "WORTH_A_THREAD", 1)
    found = []
    for wanted in (1, 2, 3):
        tt.set_num_threads(wanted)
        tt.manual_seed(0)
        layers = tt.nn.Sequential(
            tt.nn.Linear(20, 70), tt.nn.GELU(approximate="tanh"), tt.nn.Linear(70, 20)
        )
        x = tt.randn(150, 20)
        (layers(x) ** 2).mean().backward()
        found.append([p.grad.numpy().copy() for p in layers.parameters()])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


@pytest.fixture
def blas_on_two_threads():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        yield


def test_blas_finds_its_threads_again_also_after_an_error(blas_on_two_threads):
    before = threads.single_threaded_blas.threads()
    with threads.single_threaded_blas:
        assert threads.single_threaded_blas.threads() == 1
        with threads.single_threaded_blas:
            pass
        assert threads.single_threaded_blas.threads() == 1
    assert threads.single_threaded_blas.threads() == before
    x = tt.ones(3, requires_grad=True)

    @tt.op
    def failing(x):
        def vjp(dy):
            raise ZeroDivisionError("in a VJP")

        return x * 1, vjp

    try:
        with pytest.raises(ZeroDivisionError):
            failing(x).sum().backward()
    finally:
        from tinytensor.tensor import OPERATIONS

        del OPERATIONS["failing"]
    assert threads.single_threaded_blas.threads() == before


def test_small_products_are_for_blas_while_our_threads_rest(blas_on_two_threads, monkeypatch):
    monkeypatch.setattr(threads, "workers", threads._Workers())
    monkeypatch.setattr(linear, "workers", threads.workers)
    monkeypatch.setattr(threads, "_blas_threads", 2)
    monkeypatch.setattr(threads, "LATE", 1e9)  # whatever else this machine does
    workers, a, used = threads.workers, np.ones((300, 40), np.float32), []

    @tt.op
    def watched(x):
        def vjp(dy):
            used.append(threads.single_threaded_blas.threads())
            return dy

        return x * 1, vjp

    try:
        x = tt.ones(3, requires_grad=True)
        watched(x).sum().backward()
        for _ in range(threads.CALM + 1):
            assert not workers.resting
            linear.product(a, a.T)
        assert workers.resting
        watched(x).sum().backward()  # in a walk too
        tt.set_num_threads(1)
        assert not workers.resting  # one thread is one thread
        tt.set_num_threads(2)
        threads.split(4, 1, lambda start, stop: None)
        assert not workers.resting  # ours were needed
        watched(x).sum().backward()
        assert used == [1, 2, 1]
    finally:
        from tinytensor.tensor import OPERATIONS

        del OPERATIONS["watched"]


def test_where_others_need_the_cores_blas_pauses_the_longer_the_more_often(
    blas_on_two_threads, monkeypatch
):
    monkeypatch.setattr(threads, "_blas_threads", 2)
    workers = threads._Workers()

    def products_until_resting() -> int:
        count = 0
        while not workers.resting:
            workers.note_product(0.0)
            count += 1
        return count

    def pause_after(products: int) -> int:
        for _ in range(products):
            workers.note_product(0.0)
        workers.note_product(2 * threads.LATE)
        return products_until_resting() - 1

    assert products_until_resting() == threads.CALM + 1
    assert pause_after(threads.STEADY) == threads.PAUSE
    assert pause_after(10) == 2 * threads.PAUSE
    assert pause_after(10) == 4 * threads.PAUSE
    assert pause_after(threads.STEADY) == threads.PAUSE  # it had gone well for long
    for _ in range(20):
        longest = pause_after(10)
    assert longest == threads.LONGEST


@pytest.mark.parametrize("shape", [(1000, 131), (4000, 131), (33, 64, 1)])
def test_norms_give_the_same_bits_by_however_many_threads_of_blas(
    blas_on_two_threads, monkeypatch, shape
):
    x, residual, dy = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)

    def sums_and_gradients(resting: bool) -> list[np.ndarray]:
        monkeypatch.setattr(threads._Workers, "resting", resting)
        rows = x.reshape(-1, shape[-1])  # two of them are weight and bias
        inputs = [tt.tensor(a, requires_grad=True) for a in (x, residual, rows[0], rows[1])]
        total, y = tt.nn.functional.add_layer_norm(*inputs)
        (y * tt.tensor(dy)).sum().backward()
        return [total.numpy(force=True), y.numpy(force=True), *(i.grad.numpy() for i in inputs)]

    for one, all_of_them in zip(sums_and_gradients(False), sums_and_gradients(True), strict=True):
        np.testing.assert_array_equal(one, all_of_them)


def test_column_sums_give_the_same_bits_by_however_many_threads_of_blas(blas_on_two_threads):
    x = np.random.default_rng(0).standard_normal((3000, 700)).astype(np.float32)
    found = linear.column_sums(x)
    with threads.single_threaded_blas:
        np.testing.assert_array_equal(found, linear.column_sums(x))


def test_set_num_threads_refuses_none():
    with pytest.raises(ValueError, match="at least 1"):
        tt.set_num_threads(0)
