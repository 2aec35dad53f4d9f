"""How tensors look."""

from __future__ import annotations

import math

import pytest

import tinytensor as tt

INF, NAN = math.inf, math.nan

LOOKS = [
    (tt.tensor([[1.0, 2.0], [3.0, 4.0]]), "tensor([[1., 2.],\n        [3., 4.]])"),
    (tt.tensor(2.34567), "tensor(2.3457)"),
    (tt.tensor(3.0), "tensor(3.)"),
    (tt.tensor(5), "tensor(5)"),
    (tt.tensor([0.5, -10.25]), "tensor([  0.5000, -10.2500])"),
    (tt.tensor([1, -2, 300]), "tensor([  1,  -2, 300])"),
    (tt.tensor([1, 2], dtype=tt.int32), "tensor([1, 2], dtype=int32)"),
    (tt.tensor([1.5], dtype=tt.float64), "tensor([1.5000], dtype=float64)"),
    (tt.tensor([1.5, 2.0], dtype=tt.bfloat16), "tensor([1.5000, 2.0000], dtype=bfloat16)"),
    (tt.tensor([True, False]), "tensor([ True, False])"),
    (tt.tensor([]), "tensor([])"),
    (tt.zeros(0, 3), "tensor([], size=(0, 3))"),
    (tt.tensor([1e-5, 1.0]), "tensor([1.0000e-05, 1.0000e+00])"),
    (tt.tensor([1e10, 1.0]), "tensor([1.0000e+10, 1.0000e+00])"),
    (tt.tensor([NAN, -INF, 1.5]), "tensor([   nan,   -inf, 1.5000])"),
    (tt.tensor([[0.0, -INF], [0.0, 0.0]]), "tensor([[0., -inf],\n        [0., 0.]])"),
    (tt.zeros(2, 1, 2), "tensor([[[0., 0.]],\n\n        [[0., 0.]]])"),
    (tt.ones(2, requires_grad=True), "tensor([1., 1.], requires_grad=True)"),
    (tt.ones(2, requires_grad=True) * 2, "tensor([2., 2.], grad_fn=<multiply>)"),
    (tt.arange(1001), "tensor([   0,    1,    2,  ...,  998,  999, 1000])"),
    (
        tt.arange(20) * 1000,
        "tensor([    0,  1000,  2000,  3000,  4000,  5000,  6000,  7000,  8000,  9000,\n"
        "        10000, 11000, 12000, 13000, 14000, 15000, 16000, 17000, 18000, 19000])",
    ),
    (
        tt.zeros(100, 100),
        "tensor([[0., 0., 0.,  ..., 0., 0., 0.],\n"
        + "        [0., 0., 0.,  ..., 0., 0., 0.],\n" * 2
        + "        ...,\n"
        + "        [0., 0., 0.,  ..., 0., 0., 0.],\n" * 2
        + "        [0., 0., 0.,  ..., 0., 0., 0.]])",
    ),
    (
        tt.ones(16, dtype=tt.float64),
        "tensor([1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1.],\n"
        "       dtype=float64)",
    ),
]


@pytest.mark.parametrize(("x", "look"), LOOKS, ids=range(len(LOOKS)))
def test_repr_is_laid_out_as_pytorchs(x, look):
    assert repr(x) == str(x) == look


def test_repr_of_what_is_being_differentiated():
    seen = []
    tt.func.grad(lambda x: (seen.append(repr(x)), x.sum())[1])(tt.ones(2))
    assert seen == ["tensor([1., 1.], requires_grad=True)"]


def test_format():
    loss = tt.tensor(2.34567, requires_grad=True)
    assert f"{loss:.3f} {tt.tensor(7):03d} {tt.tensor(1.5)}" == "2.346 007 1.5"
    assert f"{tt.ones(2)}" == "tensor([1., 1.])"
    with pytest.raises(TypeError, match=r"the tensor has shape \(2,\); use .item\(\)"):
        f"{tt.ones(2):.3f}"


def test_html_is_a_table_for_what_is_small():
    table = tt.tensor([[1.0, -2.0], [0.0, NAN]], requires_grad=True)._repr_html_()
    assert table.count("<tr>") == 2 and table.count("<td") == 4
    assert "float32 (2, 2), requires_grad" in table
    assert "rgba(215,48,39,0.375)" in table and "rgba(69,117,180,0.750)" in table
    assert tt.arange(3)._repr_html_().count("<td") == 3
    for plain in (tt.tensor(1.0), tt.zeros(2, 2, 2), tt.zeros(40, 2), tt.zeros(0, 2)):
        assert plain._repr_html_() is None
