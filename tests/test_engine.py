"""The graph and the walk: what is recorded, what is kept, what `backward` does and frees."""

from __future__ import annotations

import gc
import re
import threading
import weakref

import numpy as np
import pytest

import tinytensor as tt
from tinytensor import backend, ops
from tinytensor.autograd import note_write
from tinytensor.tensor import as_tensor, op
from tinytensor.testing import gradcheck, gradgradcheck


def leaf(*values):
    return tt.tensor(np.array(values), requires_grad=True)


def real(*shape, seed=0):
    return tt.tensor(np.random.default_rng(seed).normal(size=shape), requires_grad=True)


def same(x, expected):
    assert np.array_equal(x.detach().numpy(), np.asarray(expected)), (x, expected)


# --- backward and .grad --------------------------------------------------------------------------


def test_backward_gives_the_gradient_of_every_leaf():
    x, w, constant = leaf(1.0, 2.0), leaf(3.0, 4.0), tt.tensor([5.0, 6.0])
    ((x * w + constant) * w).sum().backward()
    same(x.grad, [9.0, 16.0])
    same(w.grad, [2 * 3 + 5, 2 * 2 * 4 + 6])
    assert constant.grad is None
    assert isinstance(x.grad, tt.Tensor)
    assert not x.grad.requires_grad


def test_gradients_accumulate_until_they_are_dropped():
    x = leaf(1.0, 2.0)
    for n in (1, 2, 3):
        (x * x).sum().backward()
        same(x.grad, n * 2 * np.array([1.0, 2.0]))
    x.grad = None
    (x * 3).sum().backward()
    same(x.grad, [3.0, 3.0])
    x.grad.zero_()
    (x * 3).sum().backward()
    same(x.grad, [3.0, 3.0])


def test_backward_takes_the_gradient_of_its_tensor():
    x = leaf(1.0, 2.0)
    (x * x).backward(tt.tensor([1.0, 10.0]))
    same(x.grad, [2.0, 40.0])
    y = x * 2
    y.backward(gradient=tt.ones(2), retain_graph=True)  # float32 for float64: cast
    assert x.grad.dtype == tt.float64
    same(x.grad, [4.0, 42.0])


def test_a_tensor_used_many_times_collects_every_gradient():
    x = leaf(2.0)
    y = x * x * x + x
    (y * y + y + x).sum().backward()
    same(x.grad, [(2 * 10 + 1) * 13 + 1])


def test_a_shared_subgraph_is_walked_once():
    calls = []

    @op
    def counted(a):
        return a * 2, lambda dy: calls.append(1) or dy * 2

    x = leaf(1.0)
    y = counted(x)
    for _ in range(30):  # as a tree this would be 2³⁰ walks
        y = y + y
    y.sum().backward()
    assert len(calls) == 1
    same(x.grad, [2.0 * 2**30])


def test_leaves_without_a_path_keep_no_gradient():
    x, unused = leaf(1.0), leaf(1.0)
    (x * 2).sum().backward()
    assert unused.grad is None


def test_backward_from_a_leaf_itself():
    x = tt.tensor(3.0, requires_grad=True)
    x.backward()
    assert x.grad.item() == 1.0
    y = leaf(1.0, 2.0)
    y.backward(tt.tensor([3.0, 4.0]))
    same(y.grad, [3.0, 4.0])


def test_gradients_have_the_dtype_and_shape_of_their_tensor():
    x = tt.randn(3, 1, dtype=tt.float32, requires_grad=True)
    w = tt.randn(4, dtype=tt.float64, requires_grad=True)
    (x * w).sum().backward()
    assert (x.grad.dtype, x.grad.shape) == (tt.float32, (3, 1))
    assert (w.grad.dtype, w.grad.shape) == (tt.float64, (4,))
    scalar = tt.tensor(2.0, dtype=tt.bfloat16, requires_grad=True)
    (scalar * tt.ones(5, 3)).sum().backward()
    assert (scalar.grad.dtype, scalar.grad.shape) == (tt.bfloat16, ())
    assert scalar.grad.item() == 15


def test_the_graph_is_freed_by_backward():
    x = leaf(1.0)
    y = (x * x).exp()
    y.sum().backward()
    with pytest.raises(RuntimeError, match=r"used and freed by an earlier backward.*retain_graph"):
        y.sum().backward()
    z = (x * x).exp().sum()
    z.backward(retain_graph=True)
    z.backward()
    with pytest.raises(RuntimeError, match="used and freed"):
        z.backward()


def test_half_a_graph_may_be_freed():
    x = leaf(3.0)
    shared = x * x
    one, two = shared * 2, shared * 5
    one.sum().backward()
    with pytest.raises(RuntimeError, match="multiply was already used and freed"):
        two.sum().backward()


def test_retained_graphs_give_the_same_gradient_again():
    x, w = real(3, 4), real(4, 5, seed=1)
    y = ops.softmax(x @ w).exp().sum()
    y.backward(retain_graph=True)
    first = x.grad.clone(), w.grad.clone()
    y.backward()
    same(x.grad, 2 * first[0].numpy())
    same(w.grad, 2 * first[1].numpy())


# --- autograd.grad -------------------------------------------------------------------------------


def test_grad_touches_nobodys_grad():
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    y = (x * w).sum()
    dx, dw = tt.autograd.grad(y, (x, w), retain_graph=True)
    same(dx, [3.0, 4.0])
    same(dw, [1.0, 2.0])
    assert x.grad is None
    assert w.grad is None
    (again,) = tt.autograd.grad(y, x)
    same(again, [3.0, 4.0])


def test_grad_with_respect_to_what_was_computed():
    x = leaf(1.0, 2.0)
    y = x * 3
    z = (y * y).sum()
    dy, dx = tt.autograd.grad(z, [y, x])
    same(dy, [6.0, 12.0])
    same(dx, [18.0, 36.0])
    y = x * 3
    (of_itself,) = tt.autograd.grad(y, y, tt.tensor([5.0, 6.0]))
    same(of_itself, [5.0, 6.0])


def test_grad_of_several_outputs_is_their_sum():
    x = leaf(1.0, 2.0)
    y = x * x
    a, b = y.sum(), y * 3
    (dx,) = tt.autograd.grad([a, b], x, [None, tt.tensor([1.0, 10.0])])
    same(dx, [2 + 6, 4 + 120])
    (dx,) = tt.autograd.grad(x * 2, x, grad_outputs=tt.tensor([1.0, 10.0]))
    same(dx, [2, 20])


def test_grad_with_respect_to_one_input_twice():
    x = leaf(1.0, 2.0)
    one, two = tt.autograd.grad((x * x).sum(), (x, x))
    same(one, [2.0, 4.0])
    same(two, [2.0, 4.0])


def test_grad_and_unused_inputs():
    x, unused = leaf(1.0), leaf(1.0)
    with pytest.raises(RuntimeError, match=r"no path leads .* input 1 .*allow_unused=True"):
        tt.autograd.grad((x * 2).sum(), (x, unused))
    dx, nothing = tt.autograd.grad((x * 2).sum(), (x, unused), allow_unused=True)
    same(dx, [2.0])
    assert nothing is None


def test_grad_of_freed_graph_raises():
    x = leaf(1.0)
    y = x * x
    tt.autograd.grad(y.sum(), x)
    with pytest.raises(RuntimeError, match="used and freed"):
        tt.autograd.grad(y.sum(), x)
    z = y * 3  # new, but over the freed part
    with pytest.raises(RuntimeError, match="used and freed"):
        tt.autograd.grad(z.sum(), x, allow_unused=True)


def test_grad_visits_only_paths_to_its_inputs():
    x, w = leaf(1.0), leaf(1.0)

    @op
    def not_to_be_visited(a):
        def vjp(dy):
            raise AssertionError("this gradient was not asked for")

        return a * 2, vjp

    (dx,) = tt.autograd.grad((x * 2 + not_to_be_visited(w)).sum(), x)
    same(dx, [2.0])


# --- what is recorded ----------------------------------------------------------------------------


def test_constants_record_nothing():
    x = tt.ones(3)
    y = x * 2 + x
    assert not y.requires_grad
    assert y.grad_fn is None
    assert y.is_leaf


def test_recorded_tensors_say_so():
    x = leaf(1.0)
    y = x * 2
    assert y.requires_grad
    assert not y.is_leaf
    assert x.is_leaf
    assert x.grad_fn is None
    assert "multiply" in repr(y.grad_fn)


def test_no_grad_is_a_context_and_a_decorator():
    x = leaf(1.0)
    with tt.no_grad():
        assert not tt.is_grad_enabled()
        assert not (x * 2).requires_grad
        with tt.enable_grad():
            assert (x * 2).requires_grad
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad

    @tt.no_grad()
    def called(a):
        """What it does."""
        return a * 2

    @tt.no_grad
    def bare(a):
        return a * 2

    @tt.enable_grad()
    def recorded(a):
        return a * 2

    assert not called(x).requires_grad
    assert not bare(x).requires_grad
    assert called.__name__ == "called"
    assert called.__doc__ == "What it does."
    with tt.no_grad():
        assert recorded(x).requires_grad
    with tt.set_grad_enabled(False):
        assert not (x * 2).requires_grad
    with tt.inference_mode():
        assert not (x * 2).requires_grad


def test_backward_works_under_no_grad():
    x = leaf(2.0)
    y = (x * x * x).sum()
    with tt.no_grad():
        y.backward()
    same(x.grad, [12.0])


def test_no_grad_ends_with_an_error_inside():
    x = leaf(1.0)
    with pytest.raises(ZeroDivisionError), tt.no_grad():
        _ = 1 / 0
    assert (x * 2).requires_grad


def test_one_no_grad_object_may_be_entered_again_inside_itself():
    x, context = leaf(1.0), tt.no_grad()
    with context:
        with context:
            pass
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def test_no_grad_of_a_generator_holds_in_its_own_lines_only():
    x = leaf(1.0)

    @tt.no_grad()
    def numbers():
        yield (x * 2).requires_grad
        received = yield (x * 3).requires_grad
        return received

    generator = numbers()
    assert next(generator) is False
    assert (x * 2).requires_grad
    assert next(generator) is False
    with pytest.raises(StopIteration):
        next(generator)
    assert (x * 2).requires_grad


def test_no_grad_holds_on_its_own_thread_only():
    x, seen = leaf(1.0), []
    with tt.no_grad():
        thread = threading.Thread(target=lambda: seen.append((x * 2).requires_grad))
        thread.start()
        thread.join()
    assert seen == [True]


def test_threads_may_differentiate_side_by_side():
    results, failures = [], []

    def work(n):
        try:
            x = leaf(float(n))
            for _ in range(50):
                x.grad = None
                ops.softmax(x * tt.arange(3.0)).log().sum().backward()
            results.append((n, x.grad.item()))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for n, got in results:
        x = leaf(float(n))
        ops.softmax(x * tt.arange(3.0)).log().sum().backward()
        assert got == x.grad.item()


def test_detach_shares_memory_and_takes_no_part():
    x = leaf(1.0, 2.0)
    d = x.detach()
    assert not d.requires_grad
    assert np.shares_memory(d.numpy(), x.detach().numpy())
    (x * d).sum().backward()
    same(x.grad, [1.0, 2.0])
    y = x * 3
    assert not y.detach().requires_grad
    same(y.data, [3.0, 6.0])


def test_requires_grad_can_be_switched():
    x = tt.ones(2)
    assert x.requires_grad_() is x
    assert x.requires_grad
    assert not (x.requires_grad_(False) * 2).requires_grad
    x.requires_grad = True
    assert (x * 2).requires_grad
    with pytest.raises(RuntimeError, match=r"only leaf tensors.*detach"):
        (x * 2).requires_grad_(False)
    y = x * 2
    assert y.requires_grad_() is y


# --- hooks ---------------------------------------------------------------------------------------


def test_hooks_see_and_replace_gradients():
    x, seen = leaf(1.0, 2.0), []
    y = x * 3
    y.register_hook(lambda g: seen.append(("y", g.numpy().copy())))
    handle = y.register_hook(lambda g: g * 10)
    x.register_hook(lambda g: seen.append(("x", g.numpy().copy())))
    (y * y).sum().backward()
    assert [name for name, _ in seen] == ["y", "x"]
    assert np.array_equal(seen[0][1], [6.0, 12.0])
    assert np.array_equal(seen[1][1], [180.0, 360.0])
    same(x.grad, [180.0, 360.0])
    handle.remove()
    handle.remove()


def test_removed_hooks_do_not_run():
    x, calls = leaf(1.0), []
    handle = x.register_hook(lambda g: calls.append(1))
    (x * 2).sum().backward()
    handle.remove()
    (x * 2).sum().backward()
    assert calls == [1]


def test_a_leafs_hook_sees_the_whole_gradient_once():
    x, seen = leaf(1.0), []
    x.register_hook(lambda g: seen.append(g.item()))
    (x * 2 + x * 3 + x).sum().backward()
    assert seen == [6.0]


def test_retain_grad_keeps_the_gradient_of_what_was_computed():
    x = leaf(1.0, 2.0)
    y = x * 3
    y.retain_grad()
    z = y * y
    z.sum().backward()
    same(y.grad, [6.0, 12.0])
    assert z.grad is None
    x.retain_grad()  # a leaf keeps its own anyway
    with pytest.raises(RuntimeError, match="does not require a gradient"):
        tt.ones(2).retain_grad()


def test_post_accumulate_hooks_run_when_the_gradient_is_complete():
    x, w, order = leaf(1.0), leaf(2.0), []
    x.register_post_accumulate_grad_hook(lambda p: order.append(("x", p.grad.item())))
    handle = w.register_post_accumulate_grad_hook(lambda p: order.append(("w", p.grad.item())))

    @op
    def last_of_all(a):
        return a * 1, lambda dy: order.append("rest of the walk") or dy

    y = last_of_all(x)
    ((y * 2 + y * 3) * w * w).sum().backward()
    # w is ready while the walk towards x goes on: its gradient can travel already.
    assert order[0] == ("w", 2 * 5 * 2.0)
    assert order[1:] == ["rest of the walk", ("x", 20.0)]
    handle.remove()
    (w * 1).sum().backward()
    assert len(order) == 3
    with pytest.raises(RuntimeError, match="only a leaf"):
        (x * 2).register_post_accumulate_grad_hook(print)


def test_post_accumulate_hooks_do_not_run_without_a_gradient():
    @op
    def of_the_first_only(a, b):
        return a * b, (lambda dy: dy * b, None)

    x, w, calls = leaf(1.0), leaf(2.0), []
    w.register_post_accumulate_grad_hook(lambda p: calls.append(p.grad))
    of_the_first_only(x, w).sum().backward()
    assert calls == []
    (w * 3).sum().backward()
    assert [g.item() for g in calls] == [3.0]


def test_a_hook_does_not_keep_its_tensor_alive():
    x = leaf(1.0)
    x.register_post_accumulate_grad_hook(lambda p: None)
    dead = weakref.ref(x)
    gc.disable()
    try:
        del x
        assert dead() is None
    finally:
        gc.enable()


# --- memory --------------------------------------------------------------------------------------


@pytest.fixture
def collector_off():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def network(x, w):
    hidden = ops.gelu(ops.layer_norm(ops.linear(x, w, None), None, None))
    return ops.cross_entropy(hidden * 2 + hidden, tt.arange(4), None)


def test_a_dropped_graph_is_freed_without_the_collector(collector_off):
    x, w = real(4, 5), real(6, 5, seed=1)
    y = network(x, w)
    nodes, stack = [], [y.node]
    while stack:
        node = stack.pop()
        nodes.append(weakref.ref(node))
        stack += [p for p in node.parents if p is not None]
    leaves = {id(x.node), id(w.node)}
    kept = {id(x.value), id(w.value)}
    saved = [a for node in nodes for a in node().saved() if a.base is None and id(a) not in kept]
    arrays = list(map(weakref.ref, saved))
    assert len(nodes) > 5
    assert arrays
    del y, node, saved
    alive = [ref() for ref in nodes if ref() is not None]
    assert {id(node) for node in alive} == leaves
    del alive
    assert all(ref() is None for ref in arrays)


def test_backward_frees_what_was_saved_as_it_goes(collector_off):
    x, freed_before = real(1000), []

    @op
    def first(a):
        return a * 1, lambda dy: freed_before.append(saved() is None) or dy

    y = first(x)
    product = y * y.detach()  # keeps an array
    (array,) = {id(a): a for a in product.node.saved()}.values()
    saved = weakref.ref(array)
    z = product.sum()
    del array, product, y
    z.backward()
    # y.detach() shared its memory with nothing else: gone before the walk reached `first`.
    assert saved() is None


def test_tensors_do_not_outlive_their_last_user(collector_off):
    x = real(3)
    y = x.exp()
    z = y.sum()
    dead, number = weakref.ref(y), weakref.ref(y.node)
    del y
    assert dead() is None  # the graph holds nodes and arrays, no tensors
    assert number() is not None
    z.backward()
    assert x.grad is not None


def test_transforms_leave_no_cycles(collector_off):
    x = real(4)
    f = lambda x: (ops.softmax(x) * x).sum()  # noqa: E731
    for transform in (tt.func.grad(f), tt.func.hessian(f), lambda x: tt.func.hvp(f, x, x)[1]):
        result = transform(x.detach())
        dead = weakref.ref(result)
        del result
        assert dead() is None
    gc.collect()  # once, for what pytest and the interpreter themselves left
    for _ in range(3):
        tt.func.hessian(f)(x.detach())
        network(real(4, 5), real(6, 5)).backward()
    assert gc.collect() == 0


def saved_sizes(y):
    return sorted(a.size for a in y.node.saved())


def test_only_what_a_gradient_needs_is_saved():
    x, w = real(10), real(10, seed=1)
    constant = w.detach()
    assert saved_sizes(x + w) == []
    assert saved_sizes(x * w) == [10, 10]
    assert saved_sizes(x * constant) == [10]
    assert (x * constant).node.saved()[0] is constant.value
    assert saved_sizes(x * 2.0) == []
    assert saved_sizes(x.exp()) in ([10], [10, 10])
    assert saved_sizes(x.reshape(2, 5)) == []
    assert saved_sizes(x.sum()) == []


def test_a_constant_input_drops_what_only_its_gradient_needed():
    x, w = real(20, 3), real(4, 3, seed=1)
    big, small = 20 * 3, 4 * 3
    with tt.reference_ops():
        assert big in saved_sizes(ops.linear(x.detach(), w, None))
        assert small not in saved_sizes(ops.linear(x.detach(), w, None))
        assert saved_sizes(ops.linear(x, w.detach(), None)) == [small]
        assert saved_sizes(x.detach() @ w.detach().swapaxes(0, 1) * w[0, 0]) == [20 * 4]
    assert saved_sizes(ops.embedding(w, tt.tensor([1, 2]))) == [2]


def test_dropout_keeps_no_mask():
    x = real(1000)
    y = tt.nn.functional.dropout(x, 0.5, True)
    assert sum(a.size for a in y.node.saved()) < 1000


# --- depth ---------------------------------------------------------------------------------------


def test_a_chain_of_twenty_thousand_operations(collector_off):
    x = leaf(1.0)
    y = x
    for _ in range(20_000):
        y = y * 1.0001
    first = weakref.ref(y.node)
    y.sum().backward()
    assert abs(x.grad.item() - 1.0001**20_000) < 1e-9
    del y
    assert first() is None
    z = x
    for _ in range(20_000):  # freed without having been walked: 20,000 destructors deep
        z = (z + 1).exp().log()
    del z


def test_a_deep_chain_under_transforms():
    def f(x):
        for _ in range(2_000):
            x = x * 1.001
        return x.sum()

    x = tt.tensor([1.0, 2.0], dtype=tt.float64)
    expected = 1.001**2000
    np.testing.assert_allclose(tt.func.grad(f)(x).numpy(), expected)
    _, product = tt.func.hvp(lambda x: f(x) * f(x), x, tt.ones(2, dtype=tt.float64))
    np.testing.assert_allclose(product.numpy(), 4 * expected**2)


# --- in-place writes -----------------------------------------------------------------------------


def test_a_write_to_a_saved_array_is_noticed():
    x, constant = real(3), tt.ones(3, dtype=tt.float64)
    y = (x * constant).sum()
    constant.mul_(2)
    with pytest.raises(RuntimeError, match=r"multiply \(3,\) needs .* written in place.*clone"):
        y.backward()
    assert x.grad is None


WRITES = {
    "add_": lambda c: c.add_(1),
    "fill_": lambda c: c.fill_(1),
    "zero_": lambda c: c.zero_(),
    "copy_": lambda c: c.copy_(tt.zeros(3, 3)),
    "normal_": lambda c: c.normal_(),
    "setitem": lambda c: c.__setitem__((0, 0), 7.0),
    "+=": lambda c: c.__iadd__(1),
    "a view": lambda c: c[1].fill_(3),
    "a view of a view": lambda c: c.t()[:2][0].mul_(3),
    "data": lambda c: c.data.fill_(3),
    "note_write": lambda c: note_write(c.value),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
def test_every_kind_of_write_is_noticed(write):
    x, constant = real(3, 3), tt.ones(3, 3, dtype=tt.float64)
    y = ops.matmul(x, constant).sum()
    write(constant)
    with pytest.raises(RuntimeError, match="written in place"):
        y.backward()


def test_writes_that_no_gradient_needs_are_fine():
    x, constant, other = real(3), tt.ones(3, dtype=tt.float64), tt.ones(6, dtype=tt.float64)
    y = (x * constant + other[:3]).sum()
    other.zero_()  # an addition needs neither operand
    other[3:].add_(1)
    y.backward()
    same(x.grad, np.ones(3))
    constant.mul_(2)  # after the backward pass, and before the next forward pass
    (x * constant).sum().backward()
    same(x.grad, 3 * np.ones(3))


def test_a_write_beside_a_saved_view_is_fine():
    x, memory = real(3), tt.ones(9, dtype=tt.float64)
    y = (x * memory[3:6]).sum()
    memory[:3].zero_()
    memory[6:].zero_()
    y.backward()
    same(x.grad, np.ones(3))
    y = (x * memory[3:6]).sum()
    memory[5:].zero_()
    with pytest.raises(RuntimeError, match="written in place"):
        y.backward()


def test_parameters_written_by_no_grad_are_noticed():
    w = real(3)
    y = (w * w).sum()
    with tt.no_grad():
        w -= 0.1
    with pytest.raises(RuntimeError, match="written in place"):
        y.backward()
    (w * w).sum().backward()


def test_writes_are_noticed_by_autograd_grad_and_after_many_others():
    x, constant = real(3), tt.ones(3, dtype=tt.float64)
    y = (x * constant).sum()
    constant.zero_()
    scratch = tt.zeros(4)
    for _ in range(100):
        scratch.add_(1)
    with pytest.raises(RuntimeError, match="written in place"):
        tt.autograd.grad(y, x)


def test_a_gradient_that_another_graph_saved_is_not_overwritten_unnoticed():
    x, w = leaf(1.0, 2.0), leaf(1.0, 1.0)
    (x * x).sum().backward()
    y = (w * x.grad).sum()
    (x * x).sum().backward()  # adds into x.grad
    with pytest.raises(RuntimeError, match="written in place"):
        y.backward()


def test_a_write_is_noticed_after_thousands_of_others():
    x, constant = real(3), tt.ones(3, dtype=tt.float64)
    y = (x * constant).sum()
    constant.zero_()
    for other in [tt.zeros(3) for _ in range(5000)]:
        other.add_(1)
    with pytest.raises(RuntimeError, match="written in place"):
        y.backward()


def test_augmented_assignment_of_recorded_tensors_makes_new_ones():
    x = leaf(1.0, 2.0)
    y = x * x
    before = y
    y += x
    y *= 2
    y.sum().backward()
    same(x.grad, 2 * (2 * np.array([1.0, 2.0]) + 1))
    assert before is y


# --- aliasing ------------------------------------------------------------------------------------


def test_gradients_share_no_memory():
    x, z = real(4), real(4, seed=1)
    seed = tt.ones(4, dtype=tt.float64)
    (x + z).backward(seed)
    grads = [x.grad.numpy(), z.grad.numpy(), seed.numpy()]
    for i, a in enumerate(grads):
        for b in grads[i + 1 :]:
            assert not np.shares_memory(a, b)
    x.grad.add_(1)
    same(z.grad, np.ones(4))
    same(seed, np.ones(4))


def test_a_gradient_is_not_a_view_of_what_was_given():
    x = real(2, 3)
    seed = tt.ones(3, 2, dtype=tt.float64)
    x.t().backward(seed)
    assert not np.shares_memory(x.grad.numpy(), seed.numpy())
    (x.t() * 1).backward(seed)
    same(seed, np.ones((3, 2)))
    same(x.grad, 2 * np.ones((2, 3)))
    y = real(3)
    y.expand(4, 3).sum().backward()  # a broadcast gradient is read-only memory inside
    y.grad.add_(1)
    same(y.grad, [5.0, 5.0, 5.0])


def test_the_walk_adds_into_no_gradient_of_others():
    x = leaf(1.0)
    kept = []
    a, b = x * 1, x * 1
    a.register_hook(lambda g: kept.append(g))
    b.register_hook(lambda g: kept.append(g))
    (a + b + x * 5 + x * 7).sum().backward()
    assert [g.item() for g in kept] == [1.0, 1.0]
    same(x.grad, [14.0])


@pytest.mark.parametrize("turned", [False, True])
def test_a_leafs_gradient_may_be_what_backward_is_given(turned):
    """The walk adds to it, and the other leaf still gets what it was."""
    x, z = leaf(1.0, 2.0), leaf(3.0, 4.0)
    (x * tt.tensor([5.0, 7.0], dtype=tt.float64)).sum().backward()
    other = z * 1 * 1
    (other + x if turned else x + other).backward(gradient=x.grad)
    same(x.grad, [10.0, 14.0])
    same(z.grad, [5.0, 7.0])


def test_assigned_gradients_are_checked():
    x = leaf(1.0, 2.0)
    x.grad = tt.tensor([3.0, 4.0], dtype=tt.float64)
    x.sum().backward()
    same(x.grad, [4.0, 5.0])
    with pytest.raises(ValueError, match=r"expected shape \(2,\).* got \(3,\)"):
        x.grad = tt.zeros(3)
    with pytest.raises(RuntimeError, match="only a leaf's"):
        (x * 2).grad = tt.zeros(2)
    with pytest.raises(RuntimeError, match="does not require a gradient"):
        tt.zeros(2).grad = tt.zeros(2)


# --- buffers and lazy gradients ------------------------------------------------------------------


class Rows:
    """A gradient that is zero but for one row."""

    def __init__(self, row, values, shape, log):
        self.row, self.values, self.log = row, values, log
        self.shape, self.dtype = shape, values.dtype

    def write_to(self, buffer):
        self.log.append("write")
        buffer[...] = 0
        buffer[self.row] = self.values

    def add_to(self, buffer):
        self.log.append("add")
        buffer[self.row] += self.values

    def dense(self):
        self.log.append("dense")
        full = np.zeros(self.shape, self.dtype)
        full[self.row] = self.values
        return full


@pytest.fixture
def pick():
    @op
    def pick_row(x, row=0, log=None):
        return x[row] * 1, lambda dy: Rows(row, dy, x.shape, log)

    return pick_row


def test_a_lazy_gradient_writes_itself_then_adds_itself(pick):
    for buffer in (None, np.full((3, 2), 7.0)):  # without one the gradient makes its own array
        x, log = real(3, 2), []
        x.node.buffer = buffer
        pick(x, row=1, log=log).sum().backward()
        assert log == ["dense" if buffer is None else "write"]
        same(x.grad, [[0, 0], [1, 1], [0, 0]])
        pick(x, row=0, log=log).sum().backward()
        assert log[1:] == ["add"]
        same(x.grad, [[1, 1], [1, 1], [0, 0]])


def test_lazy_gradients_meet_others(pick):
    x, log = real(3, 2), []
    rows = [pick(x, row=r, log=log).sum() for r in (0, 2, 2)]
    (rows[0] + rows[1] + rows[2] + (x * 5).sum()).backward()
    same(x.grad, [[6, 6], [5, 5], [7, 7]])
    x.grad = None
    (pick(x * 3, row=1, log=log) * 2).sum().backward()  # needed as an array by x * 3
    same(x.grad, [[0, 0], [6, 6], [0, 0]])
    (dx,) = tt.autograd.grad(pick(x, row=2, log=log).sum(), x)
    same(dx, [[0, 0], [0, 0], [1, 1]])
    x.register_hook(lambda g: g * 2)
    x.grad = None
    pick(x, row=0, log=log).sum().backward()
    same(x.grad, [[2, 2], [0, 0], [0, 0]])


def test_gradients_are_written_into_a_leafs_buffer():
    x = real(2, 2)
    memory = np.full(10, 7.0)
    x.node.buffer = memory[3:7].reshape(2, 2)
    (x * 2).sum().backward()
    assert np.array_equal(memory, [7, 7, 7, 2, 2, 2, 2, 7, 7, 7])
    assert np.shares_memory(x.grad.numpy(), memory)
    (x * 2).sum().backward()
    assert memory[3] == 4
    x.node.grad = None  # as zero_grad() does: what was there is overwritten, not added to
    (x * 3).sum().backward()
    assert np.array_equal(memory[3:7], [3, 3, 3, 3])
    old, x.grad = x.grad, None  # but whoever holds the gradient of a user's x.grad = None keeps it
    (x * 5).sum().backward()
    same(old, np.full((2, 2), 3.0))
    same(x.grad, np.full((2, 2), 5.0))


def test_lazy_gradients_are_written_into_the_buffer(pick):
    x, log, memory = real(3, 2), [], np.full((3, 2), 7.0)
    x.node.buffer = memory
    pick(x, row=1, log=log).sum().backward()
    assert log == ["write"]
    assert np.array_equal(memory, [[0, 0], [1, 1], [0, 0]])


# --- operations of one's own ---------------------------------------------------------------------


def test_a_users_operation_is_an_operation():
    @op
    def my_softplus(x, beta=1.0):
        """ln(1 + e^(βx)) / β."""
        xp = backend.array_module(x)
        return xp.log1p(xp.exp(beta * x)) / beta, lambda dy: dy * ops.sigmoid(beta * x)

    x = real(3, 4)
    assert gradcheck(lambda x: my_softplus(x, beta=2.0), x)
    assert gradgradcheck(my_softplus, x)
    assert isinstance(my_softplus(np.zeros(3)), np.ndarray)
    assert my_softplus.__doc__.startswith("ln(1")
    assert "my_softplus" in repr(my_softplus)

    class Container:
        method = my_softplus

    assert Container.method is my_softplus


def test_inputs_may_be_named_and_options_translated():
    x = real(2, 3)
    same(ops.sum(x=x, dim=1, keepdim=True), x.detach().numpy().sum(1, keepdims=True))
    same(ops.subtract(x, b=x), np.zeros((2, 3)))
    y = ops.linear(x, bias=None, weight=tt.ones(4, 3, dtype=tt.float64))
    assert y.shape == (2, 4)
    with pytest.raises(TypeError, match="linear: missing bias"):
        ops.linear(x, x)


def test_a_vjp_with_the_wrong_number_of_gradients_is_named():
    @op
    def three_for_two(a, b):
        return a * b, lambda dy: (dy * b, dy * a, dy)

    with pytest.raises(
        ValueError, match="three_for_two: its VJP returned 3 gradients for 2 inputs"
    ):
        three_for_two(real(3), real(3)).sum().backward()


def test_a_tuple_of_the_wrong_length_is_named():
    @op
    def one_for_two(a, b):
        return a * b, (lambda dy: dy * b,)

    with pytest.raises(ValueError, match=r"one_for_two.*1.* 2|zip|shorter"):
        one_for_two(real(3), real(3))


@pytest.mark.parametrize("shape", [(2,), (3, 2), (5, 3, 4)])
def test_a_gradient_of_an_impossible_shape_is_named(shape):
    @op
    def misshapen(a):
        return a * 2, lambda dy: np.ones(shape)

    x = real(3, 4)
    y = misshapen(x).sum()
    if shape == (5, 3, 4):  # a broadcast axis, summed away
        y.backward()
        same(x.grad, np.full((3, 4), 5.0))
        return
    message = f"misshapen: its VJP returned a gradient of shape {shape} for an input of shape"
    with pytest.raises(ValueError, match=re.escape(message)):
        y.backward()


def test_gradients_may_be_smaller_than_their_input():
    @op
    def total(a):
        return a.sum(), lambda dy: dy

    x = real(3, 4)
    total(x).backward()
    same(x.grad, np.ones((3, 4)))


def test_none_is_no_gradient():
    @op
    def half_differentiable(a, b):
        return a * b, (lambda dy: dy * b, None)

    a, b = real(3), real(3)
    half_differentiable(a, b).sum().backward()
    same(a.grad, b.detach().numpy())
    assert b.grad is None

    @op
    def not_differentiable(a):
        return np.floor(a), None

    assert not not_differentiable(real(3)).requires_grad


def test_gradients_are_cast_to_the_dtype_of_their_input():
    @op
    def widening(a):
        return a * 2, lambda dy: dy.astype(np.float64) * 2

    x = tt.ones(3, requires_grad=True)
    widening(x).sum().backward()
    assert x.grad.dtype == tt.float32


# --- other array types ---------------------------------------------------------------------------


class Elsewhere:
    """An array on a device of its own: it computes with its like only."""

    __array_ufunc__ = None

    class device:
        id = 3

    def __init__(self, values):
        self.values = np.asarray(values)

    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: self.values.dtype)
    ndim = property(lambda self: self.values.ndim)

    def _combine(self, other, f):
        if isinstance(other, np.ndarray):
            raise TypeError(f"Unsupported type {type(other)}")
        other = other.values if isinstance(other, Elsewhere) else other
        return Elsewhere(f(self.values, other))

    def __add__(self, other):
        return self._combine(other, np.add)

    def __mul__(self, other):
        return self._combine(other, np.multiply)

    def __rmul__(self, other):
        return self._combine(other, np.multiply)


@pytest.fixture
def elsewhere():
    backend.register_array_type(Elsewhere, np, lambda array: backend.device("cuda", 3))
    yield
    del backend._modules[Elsewhere], backend._places[Elsewhere]


def test_another_array_type_computes_as_itself(elsewhere):
    x = _tensor_elsewhere([1.0, 2.0]).requires_grad_()
    y = x * x + x
    assert isinstance(y.value, Elsewhere)
    assert np.array_equal(y.value.values, [2.0, 6.0])


@pytest.mark.parametrize("operation", [ops.add, ops.multiply])
def test_devices_do_not_mix(elsewhere, operation):
    here, there = tt.ones(2, dtype=tt.float64), _tensor_elsewhere([1.0, 2.0])
    for pair in ((here, there), (there, here), (here.requires_grad_(), there)):
        with pytest.raises(
            RuntimeError, match=r"tensors on cpu and cuda:3 cannot be mixed; .*\.to"
        ):
            operation(*pair)


def _tensor_elsewhere(values):
    return as_tensor(Elsewhere(values))


# --- reference_ops -------------------------------------------------------------------------------


def test_reference_ops_runs_the_reference():
    @op
    def watched(a):
        return a * 2, lambda dy: dy * 2

    calls = []

    @watched.register(np.ndarray)
    def fast(a):
        calls.append(a.dtype)
        if a.dtype != np.float64:
            return NotImplemented
        return a + a, lambda dy: dy + dy

    watched(real(2))
    assert calls == [np.float64]
    with tt.reference_ops():
        watched(real(2))
        with tt.reference_ops():
            pass
        watched(real(2))
    assert len(calls) == 1
    same(watched(tt.ones(2)), [2.0, 2.0])  # declined
    assert len(calls) == 2
    with pytest.raises(KeyError), tt.reference_ops():
        raise KeyError
    watched(real(2))
    assert len(calls) == 3


# --- dtypes --------------------------------------------------------------------------------------

F64, F32, BF16 = tt.float64, tt.float32, tt.bfloat16
I64, I32, U8, BOOL = tt.int64, tt.int32, tt.uint8, np.dtype(np.bool_)

# left (with axes), right, what kind of thing the right is, their result
PROMOTION = [
    (F32, F64, "axes", F64),
    (F32, BF16, "axes", F32),
    (F32, tt.float16, "axes", F32),
    (BF16, tt.float16, "axes", F32),
    (F32, I64, "axes", F32),
    (BF16, I64, "axes", BF16),
    (I64, I32, "axes", I64),
    (U8, tt.int8, "axes", tt.int16),
    (U8, I32, "axes", I32),
    (I32, BOOL, "axes", I32),
    (F32, BOOL, "axes", F32),
    (BOOL, BOOL, "axes", BOOL),
    # a tensor without axes gives its category only
    (F32, F64, "no axes", F32),
    (BF16, F64, "no axes", BF16),
    (I32, I64, "no axes", I32),
    (U8, I64, "no axes", U8),
    (BOOL, U8, "no axes", U8),
    (I64, BF16, "no axes", BF16),
    (I64, F64, "no axes", F64),
    # and a Python number even less
    (F32, 2.5, "number", F32),
    (BF16, 2.5, "number", BF16),
    (F64, 2, "number", F64),
    (I64, 2.5, "number", F32),
    (I32, 2, "number", I32),
    (U8, 2, "number", U8),
    (BOOL, 2, "number", I64),
    (BOOL, True, "number", BOOL),
    (BOOL, 0.5, "number", F32),
    (F32, True, "number", F32),
]


@pytest.mark.parametrize(("left", "right", "kind", "expected"), PROMOTION, ids=str)
def test_promotion_is_pytorchs(left, right, kind, expected):
    a = tt.ones(2, 3).to(left)
    b = right if kind == "number" else tt.ones(3 if kind == "axes" else ()).to(right)
    assert tt.result_type(a, b) == expected
    for c, d in ((a, b), (b, a)):
        y = ops.multiply(c, d)
        assert y.dtype == expected
        assert y.shape == (2, 3)
        if expected != BOOL:
            assert (c + d).dtype == expected
        assert ops.maximum(c, d).dtype == expected
        assert ops.equal(c, d).dtype == np.bool_
        assert ops.where(tt.tensor([True, False, True]), c, d).dtype == expected


def test_division_and_functions_of_integers_are_float32():
    for x in (tt.tensor([1, 2]), tt.tensor([True, False]), tt.tensor([1, 2], dtype=tt.uint8)):
        for y in (
            x / 2,
            2 / x.long().clamp(min=1),
            x.exp(),
            x.sqrt(),
            ops.sigmoid(x),
            x / x.long(),
        ):
            assert y.dtype == tt.float32
    assert (tt.tensor([1, 2]) / tt.ones(2, dtype=tt.float64)).dtype == tt.float64


@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
def test_numbers_never_change_a_dtype(dtype):
    x = tt.ones(3).to(dtype).requires_grad_()
    expressions = [
        x + 1, 1 + x, x - 2.5, 2.5 - x, x * 3, 0.1 * x, x / 3, 3 / x, x**2, x**0.5, 2.0**x, -x,
        x.clamp(0.0, 1.0), x.masked_fill(x > 0, 3.0), x.masked_fill(x > 0, float("-inf")),
        tt.where(x > 0, x, 0.5), tt.maximum(x, tt.tensor(0.5)), x + np.float64(1.5), x % 2,
        x * tt.tensor(2.0, dtype=tt.float64), x + tt.tensor(3), x + tt.tensor([1, 2, 3]),
        x.mean(), x.sum(), x.std(), x.var(), x.softmax(-1), tt.sigmoid(x), x.tanh(), x.exp().log(),
        tt.nn.functional.gelu(x), tt.nn.functional.silu(x), tt.nn.functional.relu(x),
    ]  # fmt: skip
    for i, y in enumerate(expressions):
        assert y.dtype == dtype, i
        (dx,) = tt.autograd.grad(y.sum(), x, retain_graph=True)
        assert dx.dtype == dtype, i


def test_gradients_of_mixed_dtypes():
    a = tt.ones(3, requires_grad=True)
    b = tt.ones(3, dtype=tt.float64, requires_grad=True)
    c = tt.ones(()).to(tt.bfloat16).requires_grad_()
    (a * b * c + tt.arange(3)).sum().backward()
    assert (a.grad.dtype, b.grad.dtype, c.grad.dtype) == (tt.float32, tt.float64, tt.bfloat16)
    assert c.grad.item() == 3
