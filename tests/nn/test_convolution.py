"""Convolution and pooling: by hand, against loops, derivatives, and what they refuse."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import tinytensor as tt
from tests.ops.derivatives import check_derivatives, real
from tinytensor import nn
from tinytensor.nn import functional as F


def by_loops(x, w, stride):
    """The sum over a window, for every output in turn."""
    _, O, (kH, kW) = x.shape[0], w.shape[0], w.shape[2:]  # noqa: E741
    H, W = ((x.shape[i] - w.shape[i]) // stride + 1 for i in (2, 3))
    y = np.zeros((len(x), O, H, W))
    for n, o, i, j in np.ndindex(y.shape):
        part = x[n, :, i * stride : i * stride + kH, j * stride : j * stride + kW]
        y[n, o, i, j] = (part * w[o]).sum()
    return y


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_is_a_sum_over_windows(stride):
    x, w = real(2, 3, 5, 6).detach(), real(4, 3, 3, 2).detach()
    y = F.conv2d(x, w, stride=stride)
    np.testing.assert_allclose(y.numpy(), by_loops(x.numpy(), w.numpy(), stride), rtol=1e-12)


def test_by_hand():
    x = tt.tensor([[[1.0, 2.0, 4.0, 8.0]]])
    difference = tt.tensor([[[-1.0, 1.0]]])
    assert F.conv1d(x, difference).tolist() == [[[1, 2, 4]]]
    assert F.conv1d(x, difference, tt.tensor([10.0]), stride=2).tolist() == [[[11, 14]]]
    assert F.conv1d(x, difference, padding=1).tolist() == [[[1, 1, 2, 4, -8]]]
    assert F.conv1d(x, difference, padding="same").tolist() == [[[1, 2, 4, -8]]]
    assert F.conv1d(x, difference, dilation=2).tolist() == [[[3, 6]]]
    assert F.max_pool1d(x, 2).tolist() == [[[2, 8]]]
    assert F.max_pool1d(-x, 3, stride=1, padding=1).tolist() == [[[-1, -1, -2, -4]]]
    assert F.avg_pool1d(x, 2, stride=1).tolist() == [[[1.5, 3, 6]]]
    image = tt.arange(6.0).reshape(1, 1, 2, 3)
    assert F.unfold(image, 2).tolist() == [[[0, 1], [1, 2], [3, 4], [4, 5]]]
    assert F.max_pool2d(image, (2, 1)).tolist() == [[[[3, 4, 5]]]]
    assert F.avg_pool2d(image, 2).tolist() == [[[[2]]]]


DERIVATIVES = {
    "conv1d": (lambda x, w, b: F.conv1d(x, w, b, 2, 1), (real(2, 4, 6), real(3, 4, 3), real(3))),
    "conv2d": (
        lambda x, w: F.conv2d(x, w, stride=(1, 2), padding="valid", dilation=(2, 1)),
        (real(2, 2, 5, 4), real(3, 2, 2, 3)),
    ),
    "conv2d in groups": (
        lambda x, w: F.conv2d(x, w, padding=1, groups=2),
        (real(1, 4, 3, 3), real(2, 2, 2, 2)),
    ),
    "max_pool1d": (lambda x: F.max_pool1d(x, 3, 1, 1), (real(2, 2, 5),)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2, 1) ** 2, (real(2, 2, 3, 4),)),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 2), (real(2, 2, 5),)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, (2, 1), 1, (1, 0)) ** 2, (real(2, 2, 3, 4),)),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, (2, 3)), (real(2, 2, 3, 4),)),
    "unfold": (lambda x: F.unfold(x, 2, 1, 1, 2), (real(2, 2, 3, 4),)),
}


@pytest.mark.parametrize("case", DERIVATIVES)
def test_derivatives(case):
    check_derivatives(*DERIVATIVES[case])


# What PyTorch's functions take, in order, without what is not offered (see the docstrings).
SIGNATURES = {
    "conv1d": "input weight bias stride padding dilation groups",
    "conv2d": "input weight bias stride padding dilation groups",
    "unfold": "input kernel_size dilation padding stride",
    "max_pool1d": "input kernel_size stride padding dilation",
    "max_pool2d": "input kernel_size stride padding dilation",
    "avg_pool1d": "input kernel_size stride padding",
    "avg_pool2d": "input kernel_size stride padding",
    "adaptive_avg_pool2d": "input output_size",
    "dropout2d": "input p training",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_are_pytorchs(name):
    assert list(inspect.signature(getattr(F, name)).parameters) == SIGNATURES[name].split()


@pytest.mark.compiler
def test_on_a_device():
    """The same numbers as on the CPU, forward and backward."""
    tt.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2),
        nn.AvgPool2d(2),
    )  # fmt: skip
    x = tt.randn(2, 2, 6, 6)
    results = []
    for device in ("cpu", "cuda-sim"):
        layers.to(device).zero_grad()
        y = layers(x.to(device))
        y.square().sum().backward()
        grads = [p.grad.cpu().numpy() for p in layers.parameters()]
        results.append([y.detach().cpu().numpy(), *grads])
    for there, here in zip(*results, strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5)


def test_equals_share_no_gradient():
    x = tt.zeros(1, 1, 4).requires_grad_()
    F.max_pool1d(x, 2).sum().backward()
    assert x.grad.tolist() == [[[1, 0, 1, 0]]]


def test_half_precision():
    for dtype in (tt.float32, tt.bfloat16):
        x = tt.ones(2, 3, 6, 6, dtype=dtype).requires_grad_()
        layer = nn.Conv2d(3, 4, 3, padding=1).to(dtype)
        y = F.avg_pool2d(F.max_pool2d(layer(x), 2), 3)
        y.backward(tt.ones_like(y))
        assert y.dtype == x.grad.dtype == layer.weight.grad.dtype == dtype


def test_autocast():
    """The product in bfloat16, whatever comes in; the gradients as the parameters are."""
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3))
    with tt.autocast("cpu"):
        y = layers(tt.ones(2, 3, 6, 6))
    y.sum().backward()
    assert y.dtype == tt.bfloat16
    assert {p.grad.dtype for p in layers.parameters()} == {tt.float32}


def test_an_input_in_any_memory_layout():
    x, w = real(2, 5, 6, 3).detach(), real(4, 3, 3, 2).detach()
    turned = x.permute(0, 3, 1, 2)
    expected = F.conv2d(turned.contiguous(), w).numpy()
    np.testing.assert_array_equal(F.conv2d(turned, w).numpy(), expected)
    assert F.conv2d(tt.zeros(0, 3, 5, 5), w.float()).shape == (0, 4, 3, 4)


def test_layers_are_their_functions():
    tt.manual_seed(0)
    x = tt.randn(2, 4, 6, 6)
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    assert layer.weight.shape == (6, 2, 3, 3) and layer.bias.shape == (6,)
    assert tt.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, 2, 1, 1, 2))
    assert layer.weight.abs().max().item() <= 1 / np.sqrt(18)
    assert str(layer) == "Conv2d(4, 6, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), groups=2)"
    assert nn.Conv1d(4, 6, 3, bias=False).bias is None
    assert tt.equal(nn.MaxPool2d(3, 2, 1)(x), F.max_pool2d(x, 3, 2, 1))
    assert str(nn.MaxPool2d(2)) == "MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1)"
    assert tt.equal(nn.AvgPool2d(3)(x), F.avg_pool2d(x, 3))
    assert tt.equal(nn.Unfold(2)(x), F.unfold(x, 2))


def test_dropout_of_channels():
    tt.manual_seed(0)
    layer, x = nn.Dropout2d(0.25), tt.ones(40, 50, 3, 4)
    y = layer(x)
    planes = y.flatten(2)
    assert tt.equal(planes.amin(2), planes.amax(2))  # whole, or not at all
    assert set(np.unique(y.numpy())) == {0.0, np.float32(1 / 0.75)}
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert layer.eval()(x) is x
    assert F.dropout2d(x, 0.0) is x
    assert F.dropout2d(x, 1.0).sum().item() == 0


X, W = tt.zeros(2, 3, 5, 5), tt.zeros(4, 3, 3, 3)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: F.conv2d(X[0, 0], W), ValueError, r"\(batch, channels, height, width\) or .*5, 5"),
        (lambda: F.conv1d(X[0], W), ValueError, "conv1d: .*a weight of 3 axes"),
        (lambda: F.conv2d(X, W[:, :2]), ValueError, "groups=1 does not fit 3 input channels"),
        (lambda: F.conv2d(X, W, groups=3), ValueError, "groups=3 does not fit 3 input channels"),
        (lambda: F.conv2d(X, W, tt.zeros(3)), ValueError, r"bias is \(3,\) .* has 4 outputs"),
        (lambda: F.conv2d([1.0], W), TypeError, "conv2d: the input is a tensor, not a list"),
        (lambda: F.max_pool2d("x", 2), TypeError, "max_pool2d: the input is a tensor, not a str"),
        (lambda: F.unfold("x", 2), TypeError, "unfold: the input is a tensor, not a str"),
        (lambda: F.dropout2d("x"), TypeError, "dropout2d: the input is a tensor, not a str"),
        (lambda: F.adaptive_avg_pool2d("x", 2), TypeError, "pool2d: the input is a tensor, not a"),
        (lambda: F.conv2d(X.double(), W), TypeError, "one dtype, got float64, float32"),
        (lambda: F.conv2d(X, W, stride=0), ValueError, "stride is an integer from 1 on, or 2 of"),
        (lambda: F.conv2d(X, W, padding=(1, 2, 3)), ValueError, r"padding is .*, not \(1, 2, 3\)"),
        (lambda: F.conv2d(X, W, padding="full"), ValueError, '"same" or "valid", not \'full\''),
        (lambda: F.conv2d(X, W, None, 2, "same"), ValueError, r"needs a stride of 1, not \(2, 2\)"),
        (lambda: F.conv2d(X, W, dilation=3), ValueError, r"window over \(7, 7\) does not fit"),
        (lambda: F.max_pool2d(X, 2, padding=2), ValueError, r"is more than half of the window"),
        (lambda: F.max_pool2d(X, 0), ValueError, "kernel_size is an integer from 1 on"),
        (lambda: F.avg_pool1d(X, 2), ValueError, r"avg_pool1d: expected 3 axes, .* \(2, 3, 5, 5\)"),
        (lambda: F.adaptive_avg_pool2d(X[0, 0], 2), ValueError, "adaptive_avg_pool2d: expected"),
        (lambda: F.adaptive_avg_pool2d(X, 0), ValueError, "output_size is an integer from 1 on"),
        (lambda: F.unfold(X[0, 0], 2), ValueError, r"unfold: expected .*, got \(5, 5\)"),
        (lambda: F.dropout2d(X[0, 0]), ValueError, "dropout2d: expected"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "3 input and 4 output channels cannot"),
        (lambda: nn.Conv2d(3, 4, "3"), ValueError, "nn.Conv2d: kernel_size is an integer"),
        (lambda: nn.Conv1d(3, 4, 3, 2, "same"), ValueError, "nn.Conv1d: .*needs a stride of 1"),
        (lambda: nn.BatchNorm2d(3)(X[0]), ValueError, r"expected \(N, 3, H, W\), got \(3, 5, 5\)"),
        (lambda: nn.BatchNorm1d(3)(X), ValueError, r"expected \(N, 3\) or \(N, 3, L\), got"),
        (lambda: nn.Dropout2d(2.0), ValueError, "Dropout2d: p is a probability"),
    ],
)  # fmt: skip
def test_what_is_refused(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
