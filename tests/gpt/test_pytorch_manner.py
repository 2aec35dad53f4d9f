"""Code written for PyTorch runs with its import lines changed and nothing else.

The script is `pytorch_manner.py`. Its source is executed as it stands (under PyTorch) and with
`torch` replaced in the three import lines (under tinytensor), from the same weights and batches.
"""

from __future__ import annotations

import math
import pathlib
import types

import numpy as np
import pytest

SOURCE = pathlib.Path(__file__).with_name("pytorch_manner.py").read_text(encoding="utf-8")

IMPORTS = {
    "import torch\n": "import tinytensor as torch\n",
    "import torch.nn as nn\n": "import tinytensor.nn as nn\n",
    "from torch.nn import functional as F\n": "from tinytensor.nn import functional as F\n",
}

STEPS = 20


def load(source: str) -> types.ModuleType:
    module = types.ModuleType("pytorch_manner")
    exec(compile(source, "pytorch_manner.py", "exec"), module.__dict__)
    return module


def with_imports_changed() -> str:
    source = SOURCE
    for line, replacement in IMPORTS.items():
        assert source.count(line) == 1
        source = source.replace(line, replacement)
    return source


@pytest.fixture(scope="module")
def script() -> types.ModuleType:
    return load(with_imports_changed())


@pytest.fixture(scope="module")
def starts(script: types.ModuleType) -> list[list[int]]:
    last = len(script.train_data) - script.context
    rng = np.random.default_rng(0)
    return rng.integers(last, size=(STEPS, script.batch_size)).tolist()


VAL_STARTS = [[0, 5, 10], [3, 9, 20]]


@pytest.fixture(scope="module")
def ours(script: types.ModuleType, starts: list[list[int]]):
    return script.run(None, starts, VAL_STARTS)


def test_the_script_trains_with_its_imports_changed(ours, script):
    losses, val_loss, trained, sample = ours
    assert abs(losses[0] - math.log(len(script.chars))) < 0.1
    assert losses[-1] < losses[0] - 0.5
    assert 0.0 < val_loss < losses[0]
    assert len(sample) == 41 and set(sample) <= set(script.chars)
    assert all(isinstance(w, np.ndarray) for w in trained.values())


@pytest.mark.parity
def test_both_libraries_take_the_same_steps(script, starts):
    pytest.importorskip("torch")
    theirs = load(SOURCE)
    rng = np.random.default_rng(1)
    weights = {}
    for name, w in script.TinyGPT(len(script.chars)).state_dict().items():
        is_buffer = name.endswith(("tril", "mask"))
        noise = rng.normal(0.0, 0.02, tuple(w.shape)).astype(np.float32)
        weights[name] = w.numpy() if is_buffer else w.numpy() + noise

    our_losses, our_val, our_trained, _ = script.run(weights, starts, VAL_STARTS)
    their_losses, their_val, their_trained, _ = theirs.run(weights, starts, VAL_STARTS)

    # float32 through 20 steps: a rounding of 1e-7 grows, but stays far below what a step changes.
    np.testing.assert_allclose(our_losses, their_losses, rtol=2e-5)
    np.testing.assert_allclose(our_val, their_val, rtol=2e-5)
    assert list(our_trained) == list(their_trained)
    for name, w in our_trained.items():
        np.testing.assert_allclose(w, their_trained[name], atol=2e-4, err_msg=name)
