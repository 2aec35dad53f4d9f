"""The CPU benchmark in a reduced run: who runs, what is compared and printed; no time is judged."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import gpt.model
import tinytensor as tt
from gpt.config import TrainConfig

EXAMPLES = Path(__file__).parent.parent / "examples"
ONE_ROUND = ["--workloads", "tiny", "--rounds", "2", "--steps-per-round", "2"]
NUMBER = r"[-+\d.e]+"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


peers = load("benchmark_peers")
benchmark = load("benchmark_cpu")


def run(*arguments: str, **variables: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "benchmark_cpu.py"), *arguments],
        env=environment | variables,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


# ---- The program ----


def test_ours_alone_with_everything_that_can_be_asked_for(tmp_path: Path):
    """The table, the second column, generation, the profile and the file."""
    file = tmp_path / "times.json"
    more = ["--variable-set", "--generate", "2", "--profile", "--json", str(file)]
    output = run(*ONE_ROUND, "--engines", "ours", *more, OPENBLAS_CORETYPE="Nehalem")
    lines = output.splitlines()
    assert "OPENBLAS_CORETYPE=Nehalem" in output
    assert any(line.startswith("tiny: 2 engines agree in 3 steps") for line in lines)
    for engine in ("ours", "ours, variable set"):
        row = (
            rf"tiny {engine} +{NUMBER} +{NUMBER} to {NUMBER} +- +{NUMBER} +\d+% +{NUMBER} +\d+ "
            r"+[\d,]+"
        )
        assert any(re.fullmatch(row, line) for line in lines), output
    assert output.count("tokens a second, generated") == 2
    parts = re.findall(r"ms \( *(\d+)%\) in (products|passes|optimizer|Python):", output)
    assert len(parts) == 4 and 97 <= sum(int(share) for share, _ in parts) <= 103
    assert re.fullmatch(
        rf"medians: tiny ours {NUMBER} ms, tiny ours, variable set {NUMBER} ms", lines[-1]
    )

    measured = json.loads(file.read_text(encoding="utf-8"))
    engines = measured["workloads"]["tiny"]["engines"]
    assert engines.keys() == {"ours", "ours, variable set"}
    assert all(np.shape(engine["seconds"]) == (2, 2) for engine in engines.values())
    profile = measured["profiles"]["tiny"]
    clocks = sum(row["forward"] + row["backward"] for row in profile["rows"].values())
    assert 0.5 * profile["watched"] < clocks <= profile["watched"]
    assert {"attention", "gelu", "AdamW", "linear 16 to 48"} <= profile["rows"].keys()
    backward = {name for name, row in profile["rows"].items() if row["backward"] > 0}
    assert {"linear 16 to 48", "linear 64 to 16", "embedding", "attention"} <= backward


@pytest.mark.parity
def test_beside_pytorch_it_ends_with_the_ratio():
    output = run(*ONE_ROUND, "--engines", "ours", "torch")
    lines = output.splitlines()
    assert any(line.startswith("tiny: 2 engines agree in 3 steps") for line in lines)
    assert any(line.startswith("tiny torch ") and " 1.00 " in line for line in lines)
    assert re.search(rf"ours takes {NUMBER} of the time of torch .*of the memory of torch", output)
    assert re.fullmatch(rf"ours over the best peer: tiny {NUMBER}", lines[-1])


# ---- Its parts ----


def test_numbers_that_are_too_far_apart_stop_it():
    logits = np.ones((2, 3), np.float32)
    answer = {"logits": logits, "steps": [(4.0, 1.0), (3.9, 1.1)]}
    near = {"logits": logits * (1 + 1e-6), "steps": [(4.0001, 1.0), (3.9, 1.1)]}
    assert "agree" in benchmark.agreement({"a": answer, "b": near})
    for what, wrong in (
        ("logits", {**answer, "logits": logits * 1.001}),
        ("gradient norms", {**answer, "steps": [(4.0, 1.0), (3.9, 1.2)]}),
        ("losses", {**answer, "steps": [(4.0, 1.0), (float("nan"), 1.1)]}),
    ):
        with pytest.raises(SystemExit, match=f"a and b do not compute the same: their {what}"):
            benchmark.agreement({"a": answer, "b": wrong})


def test_w2_is_the_preset_char():
    preset, shape = TrainConfig(), peers.WORKLOADS["W2"]
    assert (preset.n_embd, preset.n_head, preset.n_layer) == (shape.C, shape.H, shape.layers)
    assert (preset.batch_size, preset.block_size) == (shape.B, shape.T)
    assert (preset.bias, preset.tied, preset.activation) == (shape.bias, shape.tied, "gelu_tanh")


def test_w1_head_by_head_has_the_article_s_sizes():
    article = gpt.model.BigramLanguageModel(65)
    ours = peers.build_model(gpt.model, peers.WORKLOADS["W1H"])
    assert {n: p.shape for n, p in ours.named_parameters()} == {
        n: p.shape for n, p in article.named_parameters()
    }


@pytest.mark.parametrize("name", ["W1", "W2", "tiny"])
def test_the_shapes_that_jax_starts_from_are_the_model_s(name: str):
    shape = peers.WORKLOADS[name]
    model = peers.build_model(gpt.model, shape)
    ours = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert peers.parameter_shapes(shape) == ours


def test_operations_of_a_step_are_those_of_its_matrix_products():
    """Counted from the products of the model's own weights, and the pairs that the mask passes."""
    shape = peers.WORKLOADS["W2"]
    model = peers.build_model(gpt.model, shape)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    matrices -= shape.block_size * shape.C  # positions are looked up, and the tied table is a head
    pairs = tt.tril(tt.ones(shape.T, shape.T)).sum().item() * shape.B * shape.layers
    products = shape.B * shape.T * matrices + pairs * 2 * shape.C  # q·k and weight·v, of all heads
    assert shape.flops() == 3 * 2 * products  # twice as much backward; to multiply and to add
