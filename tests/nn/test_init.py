"""`nn.init`: distributions, their scale by the width of a layer, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tinytensor as tt
from tinytensor import nn
from tinytensor.nn import init

IN, OUT = 200, 300


def weight():
    return nn.Parameter(tt.zeros(OUT, IN))


RANDOM = [
    # filler, standard deviation, largest absolute value
    ("normal_", lambda w, **k: init.normal_(w, std=0.02, **k), 0.02, math.inf),
    ("uniform_", lambda w, **k: init.uniform_(w, -0.5, 0.5, **k), 1 / math.sqrt(12), 0.5),
    (
        "xavier_uniform_",
        lambda w, **k: init.xavier_uniform_(w, gain=2.0, **k),
        2 * math.sqrt(2 / (IN + OUT)),
        2 * math.sqrt(6 / (IN + OUT)),
    ),
    ("xavier_normal_", init.xavier_normal_, math.sqrt(2 / (IN + OUT)), math.inf),
    ("kaiming_uniform_", init.kaiming_uniform_, math.sqrt(2 / IN), math.sqrt(6 / IN)),
    (
        "kaiming_uniform_, as Linear",
        lambda w, **k: init.kaiming_uniform_(w, a=math.sqrt(5), **k),
        1 / math.sqrt(3 * IN),
        1 / math.sqrt(IN),
    ),
    (
        "kaiming_normal_, fan_out",
        lambda w, **k: init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu", **k),
        math.sqrt(2 / OUT),
        math.inf,
    ),
    # The variance of a normal number cut off at ±2: 1 - 4·φ(2) / (Φ(2) - Φ(-2)).
    ("trunc_normal_", init.trunc_normal_, 0.8796256610342398, 2.0),
]


@pytest.mark.parametrize(("name", "fill", "std", "largest"), RANDOM, ids=[r[0] for r in RANDOM])
def test_random_values_have_their_distribution(name, fill, std, largest):
    tt.manual_seed(4)
    tensor = weight()
    memory = tensor.data_ptr()
    assert fill(tensor) is tensor
    assert tensor.data_ptr() == memory and tensor.is_leaf and tensor.requires_grad
    values = tensor.detach().numpy()
    assert abs(values.mean()) < 5 * std / math.sqrt(values.size)
    assert abs(values.std() / std - 1) < 0.02
    assert abs(values).max() <= largest
    assert abs(values).max() > 0.98 * largest or math.isinf(largest)

    state = tt.get_rng_state()
    first, second = (
        fill(weight(), generator=tt.Generator(7)),
        fill(weight(), generator=tt.Generator(7)),
    )
    np.testing.assert_array_equal(first.detach().numpy(), second.detach().numpy())
    assert tt.get_rng_state() == state  # a generator of one's own leaves the default one alone


def test_constants():
    tensor = weight()
    for fill, value in [
        (init.ones_, 1),
        (init.zeros_, 0),
        (lambda t: init.constant_(t, 2.5), 2.5),
    ]:
        assert fill(tensor) is tensor
        np.testing.assert_array_equal(tensor.detach().numpy(), np.full((OUT, IN), value))
    assert init.eye_(tt.ones(2, 3)).tolist() == [[1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (2, 3, 4)])
def test_orthogonal_rows_or_columns(shape):
    tt.manual_seed(4)
    matrix = init.orthogonal_(tt.zeros(shape, dtype=tt.float64), gain=2.0).numpy()
    matrix = matrix.reshape(shape[0], -1)
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    np.testing.assert_allclose(matrix @ matrix.T, 4 * np.eye(len(matrix)), atol=1e-12)


@pytest.mark.parametrize("dtype", [tt.float64, tt.bfloat16], ids=str)
def test_values_are_written_in_the_tensors_dtype(dtype):
    tensor = init.trunc_normal_(init.normal_(tt.zeros(10, 10, dtype=dtype)), std=0.5)
    assert tensor.dtype == dtype and abs(tensor.double()).max().item() > 0.5


def test_gains():
    assert init.calculate_gain("relu") == math.sqrt(2)
    assert init.calculate_gain("tanh") == 5 / 3
    assert init.calculate_gain("linear") == init.calculate_gain("sigmoid") == 1
    assert init.calculate_gain("leaky_relu", 2.0) == math.sqrt(2 / 5)
    assert init.calculate_gain("leaky_relu") == math.sqrt(2 / (1 + 1e-4))


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: init.calculate_gain("gelu"), ValueError, "'gelu' is unknown; known are linear"),
        (lambda: init.normal_(tt.zeros(2), std=-1), ValueError, "std must not be negative, got -1"),
        (lambda: init.uniform_(tt.zeros(2), 1, 0), ValueError, "from 1 to 0 is empty"),
        (lambda: init.normal_(tt.zeros(2, dtype=tt.long)), TypeError, "floating, not int64"),
        (lambda: init.xavier_normal_(tt.zeros(3)), ValueError, r"two or more axes.*\(3,\)"),
        (lambda: init.kaiming_normal_(tt.zeros(3, 3), mode="fan"), ValueError, "mode is 'fan'"),
        (lambda: init.trunc_normal_(tt.zeros(3), a=8, b=9), ValueError, "lies between 8 and 9"),
        (lambda: init.trunc_normal_(tt.zeros(3), a=2, b=1), ValueError, "needs std > 0 and a < b"),
        (lambda: init.orthogonal_(tt.zeros(3)), ValueError, "two or more axes"),
        (lambda: init.eye_(tt.zeros(3)), ValueError, "expected a matrix"),
    ],
)
def test_what_is_refused(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


def test_a_write_after_use_is_noticed_by_the_backward_pass():
    tensor = weight()
    loss = (tensor * tensor).sum()
    init.ones_(tensor)
    with pytest.raises(RuntimeError, match="written in place"):
        loss.backward()
