"""Many arrays joined on a device: NumPy's result, by copies that a captured step can repeat."""

from __future__ import annotations

import numpy as np
import pytest

import tinytensor as tt
from tinytensor.cuda import graph
from tinytensor.cuda.joining import MOST

SIM = "cuda-sim"
MANY = MOST + 1


def given(device, shapes, dtype=tt.float32):
    rng = np.random.default_rng(0)
    return [
        tt.tensor(rng.standard_normal(shape), dtype=dtype).to(device).requires_grad_()
        for shape in shapes
    ]


@pytest.mark.parametrize("dtype", [tt.float32, tt.bfloat16, tt.float64], ids=str)
@pytest.mark.parametrize(
    ("join", "shapes"),
    [
        (lambda xs: tt.cat(xs), [(2, 3)] * MANY),
        (lambda xs: tt.cat(xs, dim=1), [(2, 1 + i % 3) for i in range(MANY)]),
        (lambda xs: tt.cat(xs, dim=-1), [(2, i % 2) for i in range(MANY)]),
        (lambda xs: tt.cat(xs), [(2, 3)] * MOST),
        (lambda xs: tt.stack(xs), [(2, 3)] * MANY),
        (lambda xs: tt.stack(xs, dim=-1), [(2, 3)] * MANY),
        (lambda xs: tt.stack(xs, dim=1), [(4,)] * MANY),
        (lambda xs: tt.stack(xs), [()] * MANY),
    ],
)
def test_values_and_gradients(join, shapes, dtype):
    results = []
    for device in ("cpu", SIM):
        inputs = given(device, shapes, dtype)
        y = join(inputs)
        (y * y).sum().backward()
        results.append([x.detach().cpu().float().numpy() for x in (y, *(x.grad for x in inputs))])
    for theirs, ours in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("join", [tt.cat, tt.stack])
def test_a_captured_step_only_copies(join):
    inputs = [x.detach() for x in given(SIM, [(2, 3)] * MANY)]
    captured = graph(lambda *xs: join(xs), warmup=1)
    for scale in (1.0, 2.0):
        found = captured(*(x * scale for x in inputs))
        expected = join([x.cpu() * scale for x in inputs])
        np.testing.assert_array_equal(found.cpu().numpy(), expected.numpy())
    text = captured.debug_dot_str()
    assert "concatenate" not in text and text.count('label="setitem"') == MANY


def test_the_gradient_of_many_pieces_only_copies():
    x = tt.arange(2.0 * MANY).to(SIM).requires_grad_()

    def dx(scale):
        y = tt.stack([piece.sum() * scale * i for i, piece in enumerate(x.split(2))])
        return tt.autograd.grad(y.sum(), x)[0]

    captured = graph(dx, warmup=1)
    for scale in (1.0, 2.0):
        found = captured(tt.tensor(scale).to(SIM))
        np.testing.assert_array_equal(found.cpu().numpy(), scale * (np.arange(2 * MANY) // 2))
    assert "concatenate" not in captured.debug_dot_str()


def test_bad_use_is_explained_as_everywhere():
    xs = [x.detach() for x in given(SIM, [(2, 3)] * MANY)]
    with pytest.raises(ValueError, match="may differ in axis 0 only"):
        tt.cat([*xs, tt.ones(2, 4, device=SIM)])
    with pytest.raises(IndexError):
        tt.cat(xs, dim=2)
    with pytest.raises(ValueError, match="stack"):
        tt.stack([*xs, tt.ones(2, 4, device=SIM)])
