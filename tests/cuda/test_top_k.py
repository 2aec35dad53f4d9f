"""The largest numbers of each row by one kernel: those that a stable sort puts first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from tests.cuda.kernel_cases import BOTH, FLOAT32, examples, launched, normal, seeds
from tinytensor.cuda import kernels, sampling, simulator
from tinytensor.cuda.device import host_copies
from tinytensor.cuda.sampling import cuda_argtopk

pytestmark = pytest.mark.compiler

SIM = "cuda-sim"


def sorted_ids(x, k, largest):
    """The first k of each row, nan the largest number there is."""
    wide = x.astype(np.float64)
    missing = np.isnan(wide)
    wide[missing] = 0.0
    keys = (-wide, ~missing) if largest else (wide, missing)
    return np.lexsort(keys, axis=1)[:, :k]


@BOTH
@pytest.mark.parametrize("largest", [True, False])
@examples
@given(
    V=st.sampled_from([1, 2, 31, 33, 64, 127, 257, 1025]),
    k=st.sampled_from([1, 2, 3, 31, 32, 33, 64, 1000]),
    steps=st.sampled_from([0, 1, 8]),  # of a coarse grid, with many equal numbers
    strange=st.booleans(),
    seed=seeds,
)
def test_the_first_of_a_stable_sort(dtype, largest, V, k, steps, strange, seed):
    k = min(k, V)
    x = normal(seed, 3, V)
    if steps:
        x = np.round(x * steps) / steps
    if strange:
        at = np.random.default_rng(seed).integers(0, V, (5, 3))
        x[range(3), at] = np.array([[np.nan], [np.inf], [-np.inf], [-0.0], [1e-41]], np.float32)
    x = x.astype(dtype)
    ids, _ = cuda_argtopk(x, k, largest=largest, threads=64, seed=seed)
    np.testing.assert_array_equal(ids, sorted_ids(x, k, largest))


@pytest.mark.parametrize("dim", [0, 1, 2, -2])
def test_along_any_axis_with_gradients_and_nothing_read_back(dim, monkeypatch):
    numbers = normal(1, 4, 5, 6)
    (theirs, expected), (x, found) = (
        (y, tt.topk(y, 3, dim=dim))
        for where in ("cpu", SIM)
        for y in [tt.tensor(numbers).to(where).requires_grad_()]
    )
    names, before = launched(monkeypatch), host_copies()
    again = tt.topk(x.detach(), 3, dim=dim, largest=False, sorted=False)
    assert names == ["top_k"] and host_copies() == before
    assert again.indices.tolist() == tt.topk(theirs, 3, dim, largest=False).indices.tolist()
    assert found.indices.tolist() == expected.indices.tolist()
    np.testing.assert_array_equal(
        found.values.detach().cpu().numpy(), expected.values.detach().numpy()
    )
    for result in (expected, found):
        (result.values * result.values).sum().backward()
    np.testing.assert_allclose(x.grad.cpu().numpy(), theirs.grad.numpy())


@pytest.mark.parametrize(
    "x", [np.arange(9.0), np.arange(9), np.arange(5000, dtype=np.float32)], ids=str
)
def test_what_the_kernel_does_not_take_is_found_all_the_same(x, monkeypatch):
    names, k = launched(monkeypatch), 2 if len(x) < 10 else sampling.MOST + 1
    found = tt.topk(tt.tensor(x).to(SIM), k)
    assert names == []
    assert found.indices.tolist() == list(range(len(x) - 1, len(x) - 1 - k, -1))
    for wrong, error in (((10_000, 0), ValueError), ((1, 1), IndexError)):
        with pytest.raises(error):
            tt.ops.argtopk(tt.tensor(x, dtype=FLOAT32).to(SIM), *wrong)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (">= lowest) places", "> lowest) places"),
        ("(low & run) == 0", "true"),
        ("    __syncthreads();\n    for (int id = threadIdx.x", "    for (int id = threadIdx.x"),
        ("        for (int step = run / 2; step > 0; step /= 2) {\n            __syncthreads();",
         "        for (int step = run / 2; step > 0; step /= 2) {"),
    ],
)  # fmt: skip
def test_planted_faults_are_caught(right, wrong):
    source = (kernels.folder() / "top_k.cu").read_text(encoding="utf-8")
    assert right in source
    x, ids = np.round(normal(0, 4, 130) * 4), np.empty((4, 9), np.int64)
    with pytest.raises((AssertionError, simulator.SimulationError)):
        simulator.launch(
            source.replace(right, wrong), "top_k", (4,), (64,), [ids, x], [130, 130, 9, 16], 1,
            defines=(("THREADS", 64),), shared_bytes=128,
        )  # fmt: skip
        np.testing.assert_array_equal(ids, sorted_ids(x, 9, True))
