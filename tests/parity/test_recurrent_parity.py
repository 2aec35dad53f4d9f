"""`nn.RNN`, `nn.GRU` and `nn.LSTM` against PyTorch's, over drawn shapes and options."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinytensor as tt
from tests.parity.compare import numbers, same, torch
from tests.parity.test_layers_parity import copied
from tinytensor.testing import strategies

pytestmark = pytest.mark.parity

random = strategies.random_array


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["RNN", "RNN relu", "GRU", "LSTM"]),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(["time first", "batch first", "alone"]),
    st.booleans(),
    st.integers(1, 4),
    st.booleans(),
    strategies.seeds(),
)
def test_recurrent(kind, layers, bias, order, both, length, given_state, seed):
    tt.manual_seed(seed)
    name, _, nonlinearity = kind.partition(" ")
    options = {"nonlinearity": nonlinearity} if nonlinearity else {}

    def make(nn):
        return getattr(nn, name)(
            3, 4, num_layers=layers, bias=bias, batch_first=order == "batch first",
            bidirectional=both, **options,
        )  # fmt: skip

    modules = copied(make)
    batch = {"time first": (length, 2), "batch first": (2, length), "alone": (length,)}[order]
    states = (layers * (1 + both), *([] if order == "alone" else [2]), 4)

    def call(L, x, h, c):
        if not given_state:
            return modules[L](x)
        return modules[L](x, (h, c) if name == "LSTM" else h)

    same(call, random(seed, (*batch, 3)), random(seed + 1, states), random(seed + 2, states),
         dtypes=(np.float64,))  # fmt: skip
    theirs = dict(modules[torch].named_parameters())
    for key, mine in modules[tt].named_parameters():
        np.testing.assert_allclose(
            numbers(mine.grad), numbers(theirs[key].grad), rtol=1e-9, atol=1e-11, err_msg=key
        )


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_they_start_and_look_the_same(name):
    made = {}
    for L in (tt, torch):
        L.manual_seed(0)
        made[L] = getattr(L.nn, name)(7, 25, num_layers=2, dropout=0.5, bidirectional=True)
    assert repr(made[tt]) == repr(made[torch])
    for key, mine in made[tt].named_parameters():
        assert np.abs(numbers(mine)).max() == pytest.approx(0.2, rel=0.2), key
        if mine.ndim == 2:
            theirs = made[torch].get_parameter(key)
            assert numbers(mine).std() == pytest.approx(numbers(theirs).std(), rel=0.2), key
