"""Convolution and pooling against PyTorch's, over drawn shapes and options."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinytensor as tt
from tests.parity.compare import numbers, same, torch
from tests.parity.test_layers_parity import copied
from tests.table import distinct, exactly, real
from tinytensor.testing import strategies

pytestmark = [
    pytest.mark.parity,
    # PyTorch may choose to copy for padding="same" with an even window, and says so.
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]

random = strategies.random_array


@st.composite
def convolutions(draw):
    """Shapes of x, weight and bias, and options, for one or two axes."""
    n = draw(st.integers(1, 2))
    groups, more, each = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    size = tuple(draw(st.integers(1, 3)) for _ in range(n))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(n))
    padding = draw(st.sampled_from(["same", "valid", 0, 1, 2]))
    stride = 1 if padding == "same" else tuple(draw(st.integers(1, 3)) for _ in range(n))
    sides = tuple(
        d * (k - 1) + draw(st.integers(1, 4)) for k, d in zip(size, dilation, strict=True)
    )
    batch = draw(st.sampled_from([(), (1,), (3,)]))
    shapes = [(*batch, groups * each, *sides), (groups * more, each, *size), (groups * more,)]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return n, shapes, options


@settings(max_examples=150)
@given(convolutions(), st.booleans(), strategies.seeds())
def test_convolution(drawn, biased, seed):
    n, shapes, options = drawn
    arrays = [random(seed + i, shape) for i, shape in enumerate(shapes)]

    def call(L, x, w, b):
        convolution = getattr(L.nn.functional, f"conv{n}d")
        return convolution(x, w, b if biased else None, **options)

    same(call, *arrays, dtypes=(np.float64,))


@settings(max_examples=150)
@given(
    st.sampled_from(["max", "avg"]),
    st.integers(1, 2),
    st.data(),
    st.booleans(),
    st.booleans(),
    strategies.seeds(),
)
def test_pooling(kind, n, data, batched, ties, seed):
    size = tuple(data.draw(st.integers(1, 4)) for _ in range(n))
    stride = data.draw(st.sampled_from([None, 1, 2]))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in size)
    dilation = data.draw(st.integers(1, 2)) if kind == "max" else 1
    shape = tuple(dilation * (k - 1) + data.draw(st.integers(1, 4)) for k in size)
    x = random(seed, ((2, 3) if batched else (3,)) + shape)
    if ties:  # as after a ReLU: the gradient goes to the first of several equals
        x = np.round(x)
    options = {"stride": stride, "padding": padding}
    if kind == "max":
        options["dilation"] = dilation
    same(
        lambda L, x: getattr(L.nn.functional, f"{kind}_pool{n}d")(x, size, **options),
        x,
        dtypes=(np.float64,),
    )


def test_unfold():
    same(
        lambda L, x: (
            L.nn.functional.unfold(x, 2),
            L.nn.functional.unfold(x, (2, 3), dilation=(2, 1), padding=1, stride=(1, 2)),
        ),
        real(2, 3, 4, 5),
    )


@pytest.mark.parametrize("size", [1, 3, (2, 5), (None, 1), (7, 6)])
def test_adaptive_pooling(size):
    same(lambda L, x: L.nn.functional.adaptive_avg_pool2d(x, size), real(2, 3, 5, 6))
    same(lambda L, x: L.nn.AdaptiveAvgPool2d(size)(x), real(3, 5, 6))


def test_special_numbers():
    x = np.array([[[1.0, np.nan, 2.0, -np.inf, -np.inf, 3.0, 4.0, 4.0]]])
    same(lambda L, x: L.nn.functional.max_pool1d(x, 2), exactly(x), dtypes=(np.float64,))


LAYERS = {
    "Conv1d": (lambda nn: nn.Conv1d(4, 6, 3), real(2, 4, 7)),
    "Conv1d causal": (lambda nn: nn.Conv1d(4, 6, 2, dilation=2, padding=2), real(2, 4, 7)),
    "Conv2d": (lambda nn: nn.Conv2d(4, 6, 3), real(2, 4, 5, 6)),
    "Conv2d patches": (lambda nn: nn.Conv2d(3, 8, 4, stride=4), real(2, 3, 8, 12)),
    "Conv2d same": (lambda nn: nn.Conv2d(4, 6, (3, 5), padding="same", bias=False), real(4, 5, 6)),
    "Conv2d groups": (lambda nn: nn.Conv2d(4, 8, 3, 2, 1, 1, 4), real(2, 4, 5, 6)),
    "MaxPool1d": (lambda nn: nn.MaxPool1d(3, 2), distinct(2, 4, 7)),
    "MaxPool2d": (lambda nn: nn.MaxPool2d(2), distinct(2, 4, 5, 6)),
    "MaxPool2d overlapping": (lambda nn: nn.MaxPool2d(3, 2, padding=1), distinct(2, 4, 5, 6)),
    "AvgPool1d": (lambda nn: nn.AvgPool1d(2), real(2, 4, 7)),
    "AvgPool2d": (lambda nn: nn.AvgPool2d((2, 3), padding=(0, 1)), real(2, 4, 5, 6)),
    "BatchNorm2d": (lambda nn: nn.BatchNorm2d(4), distinct(3, 4, 2, 5)),
    "BatchNorm2d in evaluation": (lambda nn: nn.BatchNorm2d(4).eval(), distinct(3, 4, 2, 5)),
    "Dropout2d in evaluation": (lambda nn: nn.Dropout2d(0.5).eval(), real(3, 4, 2, 5)),
    "Unfold": (lambda nn: nn.Unfold(2, stride=2), real(2, 4, 4, 6)),
    "LeNet": (
        lambda nn: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3),
            nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 10),
        ),
        real(2, 1, 14, 14),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "x"), LAYERS.values(), ids=list(LAYERS))
def test_layers(make, x):
    tt.manual_seed(0)
    layers = copied(make)
    same(lambda L, x: layers[L](x), x, dtypes=(np.float64,))
    for (name, mine), (_, theirs) in zip(
        layers[tt].named_parameters(), layers[torch].named_parameters(), strict=True
    ):
        np.testing.assert_allclose(
            numbers(mine.grad), numbers(theirs.grad), rtol=1e-9, atol=1e-11, err_msg=name
        )
    if repr(layers[tt]).startswith("Conv"):
        assert repr(layers[tt]) == repr(layers[torch])


@pytest.mark.parametrize(
    "make",
    [lambda nn: nn.Conv2d(12, 64, (3, 2)), lambda nn: nn.Conv1d(30, 60, 5, groups=3)],
    ids=["Conv2d", "Conv1d groups"],
)
def test_layers_start_with_the_same_distribution(make):
    tt.manual_seed(1)
    torch.manual_seed(1)
    theirs = make(torch.nn).state_dict()
    for name, x in make(tt.nn).state_dict().items():
        one, two = numbers(x), numbers(theirs[name])
        assert np.abs(one).max() == pytest.approx(np.abs(two).max(), rel=0.15), name
        assert one.std() == pytest.approx(two.std(), rel=0.2), name


@pytest.mark.parametrize("name", ["kaiming_normal_", "xavier_uniform_"])
def test_initial_values_count_the_whole_window(name):
    spreads = []
    for L in (tt, torch):
        L.manual_seed(0)
        spreads.append(numbers(getattr(L.nn.init, name)(L.zeros(64, 32, 3, 3))).std())
    assert spreads[0] == pytest.approx(spreads[1], rel=0.03)
