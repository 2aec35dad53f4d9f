"""Flat buffers: parameters and gradients are views, and right whatever is put in their place."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor.optim import SGD, AdamW, flat_gradients
from tinytensor.optim.flat import ALIGNMENT


def weights(*shapes: tuple[int, ...]) -> list[tt.Tensor]:
    rng = np.random.default_rng(0)
    return [
        tt.tensor(rng.standard_normal(s).astype(np.float32), requires_grad=True) for s in shapes
    ]


def backward(parameters: list[tt.Tensor], scale: float = 1.0) -> None:
    total = sum((p * p).sum() for p in parameters)
    (total * scale).backward()


def within(inner: Any, outer: Any) -> bool:
    return np.may_share_memory(inner, outer)


# --- layout ------------------------------------------------------------------------------------


def test_numbers_and_gradients_live_in_one_array_each() -> None:
    parameters = weights((3, 4), (), (5,), (0, 2), (2, 1, 2))
    before = [p.data.numpy().copy() for p in parameters]
    (buffer,) = AdamW(parameters).flat_buffers()
    backward(parameters)
    for p, span, numbers in zip(parameters, buffer.spans, before, strict=True):
        np.testing.assert_array_equal(p.data.numpy(), numbers)
        np.testing.assert_array_equal(buffer.values[span], numbers.reshape(-1))
        np.testing.assert_array_equal(buffer.gradients[span], p.grad.numpy().reshape(-1))
        assert p.value.flags.c_contiguous and p.grad.numpy().flags.c_contiguous
        if numbers.size:
            assert within(p.value, buffer.values) and within(p.grad.numpy(), buffer.gradients)
        assert p.value.ctypes.data % ALIGNMENT == 0
        assert p.grad.numpy().ctypes.data % ALIGNMENT == 0


def test_padding_stays_zero() -> None:
    parameters = weights((3,), (1,), (17,))
    optimizer = AdamW(parameters, weight_decay=0.3)
    for _ in range(3):
        optimizer.zero_grad()
        backward(parameters)
        optimizer.step()
    (buffer,) = optimizer.flat_buffers()
    padding = np.ones(buffer.size, bool)
    for span in buffer.spans:
        padding[span] = False
    assert padding.sum() > 16
    for array in (buffer.values, buffer.gradients, *buffer.state.values()):
        assert not array[padding].any()


def test_one_buffer_for_each_group_and_dtype() -> None:
    a, b, c = weights((2,), (3,), (4,))
    b = b.detach().to(tt.bfloat16).requires_grad_()
    buffers = SGD([{"params": [a, b]}, {"params": [c]}]).flat_buffers()
    assert [(str(x.dtype), len(x.parameters)) for x in buffers] == [
        ("float32", 1),
        ("bfloat16", 1),
        ("float32", 1),
    ]


def test_memory_goes_with_the_last_user() -> None:
    parameters = weights((3,))
    gc.disable()
    try:
        optimizer = AdamW(parameters)
        backward(parameters)
        optimizer.step()
        buffer = weakref.ref(optimizer.flat_buffers()[0])
        values = weakref.ref(buffer().values)
        del optimizer
        assert buffer() is None
        parameters.clear()
        assert values() is None
    finally:
        gc.enable()


# --- gradients ---------------------------------------------------------------------------------


def test_gradients_add_up_until_zero_grad_and_then_start_anew() -> None:
    (w,) = weights((3,))
    optimizer = SGD([w], lr=0.0)
    memory = optimizer.flat_buffers()[0].gradients
    for times in (1, 2):
        backward([w])
        np.testing.assert_allclose(w.grad.numpy(), 2 * times * w.data.numpy(), rtol=1e-6)
    optimizer.zero_grad()
    assert w.grad is None
    backward([w])
    np.testing.assert_allclose(w.grad.numpy(), 2 * w.data.numpy(), rtol=1e-6)
    optimizer.zero_grad(set_to_none=False)
    np.testing.assert_array_equal(w.grad.numpy(), np.zeros(3))
    assert within(w.grad.numpy(), memory)  # nobody held anything: the memory served throughout


HOLDERS: dict[str, Callable[[tt.Tensor], Any]] = {
    "the tensor": lambda w: w.grad,
    "its array": lambda w: w.grad.numpy(),
    "detached": lambda w: w.grad.detach(),
    "a row": lambda w: w.grad[0],
    "a reshaped view of a view": lambda w: w.grad.numpy().T.reshape(-1, 1)[1:],
}


@pytest.mark.parametrize("kind", HOLDERS)
@pytest.mark.parametrize("index", [0, 1])
def test_a_gradient_that_somebody_holds_keeps_its_numbers(kind: str, index: int) -> None:
    """`g = p.grad; optimizer.zero_grad(); loss.backward()`: g is the old one, as in PyTorch."""
    parameters = weights((2, 3), (4, 3))
    optimizer = SGD(parameters)
    for _ in range(2):
        backward(parameters)
        held = HOLDERS[kind](parameters[index])
        numbers = np.array(held)
        optimizer.zero_grad()
        backward(parameters, scale=5.0)
        np.testing.assert_array_equal(np.array(held), numbers)
        optimizer.zero_grad()


def test_model_zero_grad_leaves_held_gradients_alone_too() -> None:
    model = tt.nn.Linear(3, 2)
    optimizer = SGD(model.parameters(), lr=0.1)
    model(tt.ones(1, 3)).sum().backward()
    held = model.weight.grad
    model.zero_grad()
    (model(tt.ones(1, 3)) * 5.0).sum().backward()
    np.testing.assert_array_equal(held.numpy(), np.ones((2, 3)))
    before = model.weight.data.numpy().copy()
    optimizer.step()
    np.testing.assert_allclose(model.weight.data.numpy(), before - 0.5, rtol=1e-5, atol=1e-6)


def test_flat_gradients_are_as_few_arrays_as_hold_them() -> None:
    a, b, c, d, alone = weights((3,), (20,), (5,), (6,), (7,))
    optimizer = AdamW([{"params": [a, b, c]}, {"params": [d]}])
    backward([a, b, c, d, alone])
    everything = [a, b, c, d, alone]

    def squares(arrays: list[Any]) -> float:
        return float(sum((array.astype(np.float64) ** 2).sum() for array in arrays))

    arrays = flat_gradients(everything)
    assert [x.ndim for x in arrays] == [1, 1, 1]
    np.testing.assert_allclose(
        squares(arrays), squares([p.grad.numpy() for p in everything]), rtol=1e-12
    )
    assert len(flat_gradients([b, a])) == 1 and len(flat_gradients([a, c])) == 2
    np.testing.assert_allclose(
        squares(flat_gradients([a, c])), squares([a.grad.numpy(), c.grad.numpy()])
    )
    assert len(optimizer.flat_gradients()) == 2
    b.grad = None
    assert len(optimizer.flat_gradients()) == 3
    for array in optimizer.flat_gradients():
        array *= 0
    assert not a.grad.numpy().any() and not d.grad.numpy().any()


def test_clipping_reaches_a_gradient_that_was_assigned() -> None:
    a, b = weights((3,), (4,))
    optimizer = SGD([a, b], lr=1.0)
    before = a.data.numpy().copy()
    a.grad, b.grad = tt.ones(3) * 30.0, tt.zeros(4)
    tt.nn.utils.clip_grad_norm_([a, b], 1.0)
    np.testing.assert_allclose(a.grad.numpy(), np.full(3, 1 / np.sqrt(3)), rtol=1e-4)
    optimizer.step()
    np.testing.assert_allclose(a.data.numpy(), before - 1 / np.sqrt(3), rtol=1e-4)


# --- what users may do between steps -----------------------------------------------------------

EVENTS = [
    "step", "step", "backward", "backward", "zero_grad", "drop one", "assign data", "write data",
    "assign gradient", "freeze or thaw", "other optimizer", "other zero_grad", "move group",
]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 2)), max_size=25))
def test_any_sequence_of_events_gives_what_plain_arrays_give(events: list[tuple[str, int]]) -> None:
    """Two optimizers share two of three parameters; beside them, three arrays and a rule."""
    parameters = weights((2, 3), (5,), (2, 2))
    values = [p.data.numpy().astype(np.float64) for p in parameters]
    gradients: list[Any] = [None] * 3
    momenta: list[Any] = [None] * 3
    main = SGD(parameters, lr=0.1, momentum=0.9)
    other = SGD(parameters[1:], lr=0.05)
    for number, (event, i) in enumerate(events):
        p = parameters[i]
        fresh = np.random.default_rng(number).standard_normal(p.shape).astype(np.float32)
        if event == "step":
            main.step()
            for j, gradient in enumerate(gradients):
                if gradient is not None:
                    begun = momenta[j] is not None
                    momenta[j] = 0.9 * momenta[j] + gradient if begun else gradient
                    values[j] = values[j] - 0.1 * momenta[j]
        elif event == "other optimizer":
            other.step()
            for j in (1, 2):
                if gradients[j] is not None:
                    values[j] = values[j] - 0.05 * gradients[j]
        elif event == "backward":
            if p.requires_grad:
                (p * tt.tensor(fresh)).sum().backward()
                gradients[i] = fresh + (0 if gradients[i] is None else gradients[i])
        elif event == "zero_grad":
            main.zero_grad()
            gradients = [None] * 3
        elif event == "other zero_grad":
            other.zero_grad()
            gradients[1] = gradients[2] = None
        elif event == "drop one":
            p.grad = None
            gradients[i] = None
        elif event == "assign data":
            p.data = tt.tensor(fresh)
            values[i] = fresh.astype(np.float64)
        elif event == "write data":
            p.data.value[...] = fresh
            values[i] = fresh.astype(np.float64)
        elif event == "assign gradient":
            if p.requires_grad:
                p.grad = tt.tensor(fresh)
                gradients[i] = fresh
        elif event == "freeze or thaw":
            p.requires_grad_(not p.requires_grad)
            gradients[i] = None
        else:
            main.param_groups[0]["params"].reverse()
        for j, q in enumerate(parameters):
            np.testing.assert_allclose(q.data.numpy(), values[j], rtol=1e-4, atol=1e-4)
            assert (q.grad is None) == (gradients[j] is None)
            if gradients[j] is not None:
                np.testing.assert_allclose(q.grad.numpy(), gradients[j], rtol=1e-4, atol=1e-4)


def test_conversion_of_the_model_keeps_the_moments() -> None:
    model = tt.nn.Linear(3, 2)
    optimizer = AdamW(model.parameters(), lr=0.1)
    model(tt.ones(1, 3)).sum().backward()
    optimizer.step()
    model.to(tt.float64)
    state = optimizer.state_dict()["state"][0]
    assert state["exp_avg"].dtype == tt.float64 and state["step"] == 1
    np.testing.assert_allclose(state["exp_avg"].numpy(), np.full((2, 3), 0.1), rtol=1e-6)
    optimizer.zero_grad()
    model(tt.ones(1, 3, dtype=tt.float64)).sum().backward()
    optimizer.step()
    assert model.weight.dtype == tt.float64 and optimizer.state_dict()["state"][0]["step"] == 2


def test_parameter_of_another_shape_is_refused() -> None:
    (w,) = weights((3,))
    optimizer = AdamW([w])
    backward([w])
    optimizer.step()
    w.data = tt.zeros(4)
    with pytest.raises(ValueError, match=r"moments have shape \(3,\) now has shape \(4,\)"):
        optimizer.step()


def test_gradient_left_from_another_shape_is_refused() -> None:
    (w,) = weights((1,))
    optimizer = AdamW([w])
    backward([w])
    w.data = tt.zeros(4)
    with pytest.raises(ValueError, match=r"shape \(4,\) has a gradient of shape \(1,\)"):
        optimizer.step()


def test_shared_parameter_is_updated_once() -> None:
    embedding, head = tt.nn.Embedding(5, 3), tt.nn.Linear(3, 5, bias=False)
    head.weight = embedding.weight
    model = tt.nn.Sequential(embedding, head)
    optimizer = SGD(model.parameters(), lr=1.0)
    before = embedding.weight.data.numpy().copy()
    model(tt.tensor([1, 2])).sum().backward()
    gradient = embedding.weight.grad.numpy().copy()
    optimizer.step()
    assert head.weight is embedding.weight
    np.testing.assert_allclose(head.weight.data.numpy(), before - gradient, rtol=1e-5, atol=1e-6)


def test_backward_through_weights_that_were_updated_is_refused() -> None:
    (w,) = weights((3,))
    optimizer = SGD([w], lr=0.1)
    backward([w])
    late = (w * w).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="written in place"):
        late.backward()


def test_weights_without_a_gradient_are_not_written() -> None:
    a, b, c = weights((3,), (4,), (5,))
    optimizer = SGD([a, b, c], lr=0.1)
    backward([a, c])
    late = (b * b).sum()
    optimizer.step()
    late.backward()
    np.testing.assert_allclose(b.grad.numpy(), 2 * b.data.numpy(), rtol=1e-6)
