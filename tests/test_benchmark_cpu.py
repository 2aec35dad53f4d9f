"""The CPU benchmark in a reduced run: who runs, what is compared and printed; no time is judged."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
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


@pytest.fixture(scope="module")
def parts() -> Iterator[dict[str, ModuleType]]:
    """The modules of `examples/cpu_benchmark`, which the program finds beside itself."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import benchmark_cpu
        from cpu_benchmark import breakdown, by_hand, engines, floor, race, tables, trainer
        from cpu_benchmark import workloads as shapes

        modules = (
            benchmark_cpu, breakdown, by_hand, engines, floor, race, tables, trainer, shapes,
        )  # fmt: skip
        yield {module.__name__.rpartition(".")[2]: module for module in modules}
    finally:
        sys.path.remove(str(EXAMPLES))


def start(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "benchmark_cpu.py"), *arguments],
        env=environment | variables,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


def run(*arguments: str, **variables: str) -> str:
    done = start(*arguments, **variables)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


# ---- The program ----


def test_ours_alone_with_everything_that_can_be_asked_for(tmp_path: Path):
    """The table, the second column, generation, the profile, the breakdown and the files."""
    file, page = tmp_path / "times.json", tmp_path / "times.md"
    rows = ["--variable-set", "--processes", "--by-hand"]
    more = [*rows, "--generate", "2", "--profile", "--breakdown"]
    files = ["--json", str(file), "--markdown", str(page)]
    output = run(*ONE_ROUND, "--engines", "ours", *more, *files, OPENBLAS_CORETYPE="Nehalem")
    lines = output.splitlines()
    assert "OPENBLAS_CORETYPE=Nehalem" in output
    assert any(line.startswith("tiny: 4 engines agree in 3 steps") for line in lines)
    for engine in ("ours", "ours, variable set", "ours, processes", "NumPy by hand"):
        row = (
            rf"tiny {engine} +{NUMBER} +{NUMBER} to {NUMBER} +- +{NUMBER} +\d+% +{NUMBER} +\d+ "
            r"+[\d,]+"
        )
        assert any(re.fullmatch(row, line) for line in lines), output
    assert output.count("tokens a second, generated") == 3
    parts = re.findall(r"ms \( *(\d+)%\) in ([^:]+):", output)
    assert len(parts) == 12 and 192 <= sum(int(share) for share, _ in parts) <= 208
    assert output.count("no peer was timed that a target could be compared with") == 2
    by_hand = rf"tiny: written by hand in NumPy, .*, the same step takes {NUMBER} of ours"
    assert sum(bool(re.fullmatch(by_hand, line)) for line in lines) == 1
    assert re.fullmatch(
        rf"medians: tiny ours {NUMBER} ms, tiny ours, variable set {NUMBER} ms, "
        rf"tiny ours, processes {NUMBER} ms, tiny numpy {NUMBER} ms",
        lines[-1],
    )

    measured = json.loads(file.read_text(encoding="utf-8"))
    engines = measured["workloads"]["tiny"]["engines"]
    assert engines.keys() == {"ours", "ours, variable set", "ours, processes", "numpy"}
    assert all(np.shape(engine["seconds"]) == (2, 2) for engine in engines.values())
    profile = measured["profiles"]["tiny"]["ours"]
    clocks = sum(row["forward"] + row["backward"] for row in profile["rows"].values())
    assert 0.5 * profile["watched"] < clocks <= profile["watched"]
    assert {"attention", "gelu", "AdamW", "linear 16 to 48"} <= profile["rows"].keys()
    backward = {name for name, row in profile["rows"].items() if row["backward"] > 0}
    assert {"linear 16 to 48", "linear 64 to 16", "embedding", "attention"} <= backward
    alone = measured["parts"]["tiny"]["ours"]
    assert sum(part["flops"] for part in alone.values()) == measured["workloads"]["tiny"]["flops"]
    assert all(alone["linear layers"][column] > 0 for column in ("products", "passes", "calls"))
    operations = profile["alone"]
    assert profile["rows"].keys() >= operations.keys() >= {"gelu", "AdamW", "linear 16 to 48"}
    assert all(seconds > 0 for seconds in operations.values())
    assert alone["attention"]["functions"] > 0 and alone["clipping and AdamW"]["passes"] > 0
    head, _, row = page.read_text(encoding="utf-8").splitlines()[:3]
    assert head.count("|") == row.count("|") == 10
    assert row.startswith("| width 16, 2 x 8 | ")


@pytest.mark.parity
def test_beside_pytorch_it_ends_with_the_ratio():
    output = run(*ONE_ROUND, "--engines", "ours", "torch")
    lines = output.splitlines()
    assert any(line.startswith("tiny: 2 engines agree in 3 steps") for line in lines)
    assert any(line.startswith("tiny torch ") and " 1.00 " in line for line in lines)
    assert re.search(rf"ours takes {NUMBER} of the time of torch .*of the memory of torch", output)
    assert re.fullmatch(rf"ours over the best peer: tiny {NUMBER}", lines[-1])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--workloads", "W9"], r"invalid choice: 'W9' \(choose from .*W4L.*\)"),
        (["--engines", "torch", "--profile"], r"--profile is about ours: add it to --engines"),
        (["--rounds", "0"], r"argument --rounds: must be at least 1, not 0"),
        (["--rounds", "few"], r"argument --rounds: must be a whole number, not 'few'"),
        (
            ["--json", "no-such-folder/times.json"],
            r"--json: there is no folder no-such-folder to write to",
        ),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(arguments: list[str], sentence: str):
    done = start(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert re.search(sentence + r"\Z", done.stderr.strip()), done.stderr


# ---- Its parts ----


def test_numbers_that_are_too_far_apart_stop_it(parts: dict[str, ModuleType]):
    logits = np.ones((2, 3), np.float32)
    answer = {"logits": logits, "steps": [(4.0, 1.0), (3.9, 1.1)]}
    near = {"logits": logits * (1 + 1e-6), "steps": [(4.0001, 1.0), (3.9, 1.1)]}
    agreement = parts["race"].agreement
    assert "agree" in agreement({"a": answer, "b": near})
    for what, wrong in (
        ("logits", {**answer, "logits": logits * 1.001}),
        ("gradient norms", {**answer, "steps": [(4.0, 1.0), (3.9, 1.2)]}),
        ("losses", {**answer, "steps": [(4.0, 1.0), (float("nan"), 1.1)]}),
    ):
        with pytest.raises(SystemExit, match=f"a and b do not compute the same: their {what}"):
            agreement({"a": answer, "b": wrong})


def test_a_workload_without_room_is_left_out_with_its_figures(
    parts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
):
    race = parts["race"]
    monkeypatch.setattr(race.Path, "read_text", lambda path: "MemAvailable:   4000000 kB\n")
    assert race.too_little_memory("W2", ["ours", "torch"]) == ""
    assert race.too_little_memory("W4", ["ours"]) == ""
    assert race.too_little_memory("W3", ["ours", "torch"]) == (
        "W3: 2 engines together need about 6 GB of memory and 4 GB are free"
    )


def test_where_memory_is_short_the_extra_rows_go_first(
    parts: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    with_room = parts["benchmark_cpu"].with_room
    monkeypatch.setattr(parts["race"].Path, "read_text", lambda path: "MemAvailable: 7000000 kB\n")
    engines = ["ours", "ours, variable set", "ours, processes", "torch", "numpy"]
    fitting = with_room(["W1", "W3"], engines)
    assert fitting == {"W1": engines, "W3": ["ours", "torch"]}
    assert capsys.readouterr().out.splitlines() == [
        "W3: 5 engines together need about 15 GB of memory and 7 GB are free, so that ours, "
        "processes is left out",
        "W3: 4 engines together need about 12 GB of memory and 7 GB are free, so that numpy is "
        "left out",
        "W3: 3 engines together need about 9 GB of memory and 7 GB are free, so that ours, "
        "variable set is left out",
    ]
    assert with_room(["W2", "W3"], ["ours", "torch", "jax"]).keys() == {"W2"}
    with pytest.raises(SystemExit, match="no workload left"):
        with_room(["W3"], ["jax", "torch"])


def test_an_engine_that_dies_or_fails_is_named(parts: dict[str, ModuleType]):
    client = parts["trainer"].engine_process("ours", "tiny")
    with client, pytest.raises(SystemExit, match=r"(?s)ours failed at 'turn': .*AttributeError"):
        client("turn", np.zeros((1, 2, 9), np.int64), 0)  # before there is a model
    with parts["trainer"].engine_process("ours", "tiny") as client:
        client.process.kill()
        client.process.join()
        with pytest.raises(SystemExit, match=r"ours: the process ended with code -9 during 'peak'"):
            client("peak")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux counts for others")
def test_what_children_use_is_counted(parts: dict[str, ModuleType]):
    trainer = parts["trainer"]

    def faults_of_children() -> int:
        return sum(int(row[trainer.MINOR_FAULTS]) for row in trainer.statistics_of_children())

    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    child.start()
    try:
        assert child.pid in trainer.children()
        deadline = time.monotonic() + 30
        while faults_of_children() < 500 and time.monotonic() < deadline:
            time.sleep(0.01)  # until it has loaded Python
        own = trainer.resource.getrusage(trainer.resource.RUSAGE_SELF).ru_minflt
        assert trainer.page_faults() >= own + 500
    finally:
        child.terminate()
        child.join()
    assert child.pid not in trainer.children()


def test_what_stands_in_the_way_is_said_by_the_bounds(parts: dict[str, ModuleType]):
    """One sentence for each case; the peer takes 1 s, and the products 2e11 operations."""
    breakdown = parts["breakdown"]

    def sentence(**changes: float | str | None) -> str:
        bounds = {
            "ours": 0.9, "flops": 1e11, "peak": 1e12, "products": 0.2, "least": 0.3, "alone": 0.4,
            "peer": "jax", "best": 1.0, "target": 0.5, **changes,
        }  # fmt: skip
        return breakdown.verdict(breakdown.Bounds(**bounds))

    assert sentence(ours=0.45) == "the target of 0.50 is met: ours takes 0.45 of jax"
    assert sentence(target=None) == "ours takes 0.90 of the time of jax, and no target is set"
    assert "no peer was timed" in sentence(peer="", best=0.0)
    assert sentence(alone=0.7).endswith(
        "what stands in the way is how NumPy computes: if each operation were one pass, the parts "
        "would take 0.30 of the time of jax; as they are written, each by itself, they take 0.70"
    )
    assert sentence().endswith(
        "nothing that was measured stands in the way: our operations, each by itself, take 0.40 of "
        "the time of jax"
    )
    assert "what stands in the way is the sum: the products take 0.20" in sentence(least=0.6)
    assert re.search(
        r"cannot be met with this BLAS: .* take 0.60 .*; 0.50 would need them at 200 GFLOP/s, and "
        r"they run at 167",
        sentence(products=0.6, least=0.7),
    )
    assert re.search(
        r"cannot be met on this machine: at its peak of 125 GFLOP/s the products alone take 0.80 "
        r".*at 80% of that peak .*; 0.50 would need them at 200 GFLOP/s",
        sentence(peak=1.25e11, products=0.85, least=0.9),
    )


def test_the_step_by_hand_is_said_beside_the_peer_and_ours(parts: dict[str, ModuleType]):
    breakdown = parts["breakdown"]
    bounds = breakdown.Bounds(
        ours=0.9, flops=1, peak=1, products=0, least=0, alone=0, peer="jax", best=1.0, by_hand=0.6
    )
    assert breakdown.without_engine(bounds) == [
        "written by hand in NumPy, without an engine, the same step takes 0.60 of the time of jax, "
        "and 0.67 of ours"
    ]
    assert breakdown.without_engine(replace(bounds, by_hand=None)) == []


def test_the_loss_of_time_is_found_in_the_part_where_it_is(parts: dict[str, ModuleType]):
    names = parts["breakdown"].PARTS
    nothing = {"flops": 0.0, "products": 0.0, "functions": 0.0, "passes": 0.0, "calls": 0.0}
    alone = {name: nothing | {"passes": 0.1} for name in names}
    rows = {"gelu": {"forward": 1.0, "backward": 1.0}, "attention": {"forward": 0.2, "backward": 0}}
    operations = {"gelu": 0.5, "attention": 0.1}
    profile = {"watched": 2.4, "rows": rows, "alone": operations}  # and 0.2 s of Python
    bounds = parts["breakdown"].Bounds(2.4, flops=1, peak=1, products=0, least=0.6, alone=0.7)
    table, sentences = parts["breakdown"].breakdown_lines("W2", alone, profile, bounds)
    assert sentences[1:] == [
        "W2: ours takes 4.00 times the sum and 3.43 times its operations alone; in the step the "
        "most is lost in activations, sums: 1500.00 of 1700.00 ms"
    ]
    assert [line.split()[-1] for line in table[1:]] == [
        "100.00", "200.00", "100.00", "2000.00", "100.00", "200.00", "2400.00",
    ]  # fmt: skip


def test_the_passes_of_a_step_are_counted_from_its_shapes(parts: dict[str, ModuleType]):
    shape = parts["workloads"].WORKLOADS["tiny"]
    moved = parts["floor"].floats_moved(shape)
    model = parts["engines"].build_model(gpt.model, shape)
    parameters = sum(p.numel() for p in model.parameters())
    assert moved["clipping and AdamW"] == (8 * parameters, parameters)
    stream = 2 * 8 * 16
    assert moved["linear layers"] == (3 * 9 * stream, stream)
    assert moved["activations, sums"] == ((5 * 3 + 12 + 20 + 5) * stream, stream)


def test_pieces_cover_the_whole_once(parts: dict[str, ModuleType]):
    for length, pieces in ((7, 3), (2, 4), (1, 1), (10, 5)):
        edges = parts["floor"].edges(length, pieces)
        assert [i for start, stop in edges for i in range(start, stop)] == list(range(length))
        assert len(edges) == min(length, pieces)


def test_times_are_short_and_the_best_is_bold(parts: dict[str, ModuleType]):
    tables = parts["tables"]
    assert [tables.short_time(t) for t in (8.814, 41.7, 365.2, 7004.0)] == [
        "8.81 ms", "41.7 ms", "365 ms", "7.00 s",
    ]  # fmt: skip

    def engine(seconds: float, memory: int) -> dict[str, object]:
        return {"seconds": [[seconds, seconds]], "memory": memory}

    engines = {"ours": engine(0.03, 10), "torch": engine(0.05, 40), "jax": engine(0.06, 50)}
    engines["numpy"] = engine(0.02, 10)  # no peer, whose time is neither best nor bold
    page = tables.markdown({"W2": {"engines": engines}}, ["a machine"])
    assert page.splitlines()[2] == (
        "| `char`, 12 x 64 | **30.0 ms** | 0.60 | 50.0 ms | 60.0 ms | 20.0 ms | 0.25 |"
    )
    assert tables.best_peer({"engines": engines}) == "torch"
    assert page.endswith("- a machine\n")
    both = {"W2": {"engines": {**engines, "ours, processes": engine(0.04, 10)}}}
    page = tables.markdown({**both, "W3": {"engines": engines}}, [])  # no memory for it in W3
    assert "| **30.0 ms** | 0.60 | 40.0 ms | 0.80 |" in page.splitlines()[2]
    assert "| **30.0 ms** | 0.60 | - | - |" in page.splitlines()[3]
    line = tables.comparison("W2", {"engines": engines}, "ours", "torch")
    assert line == (
        "W2: ours takes 0.60 of the time of torch (turn by turn: quartiles 0.60 and 0.60), aimed "
        "at 0.85; 0.25 of the memory of torch"
    )


def test_w2_is_the_preset_char(parts: dict[str, ModuleType]):
    preset, shape = TrainConfig(), parts["workloads"].WORKLOADS["W2"]
    assert (preset.n_embd, preset.n_head, preset.n_layer) == (shape.C, shape.H, shape.layers)
    assert (preset.batch_size, preset.block_size) == (shape.B, shape.T)
    assert (preset.bias, preset.tied, preset.activation) == (shape.bias, shape.tied, "gelu_tanh")


def test_w1_head_by_head_has_the_article_s_sizes(parts: dict[str, ModuleType]):
    article = gpt.model.BigramLanguageModel(65)
    ours = parts["engines"].build_model(gpt.model, parts["workloads"].WORKLOADS["W1H"])
    assert {n: p.shape for n, p in ours.named_parameters()} == {
        n: p.shape for n, p in article.named_parameters()
    }


@pytest.mark.parametrize("name", ["W1", "W2", "tiny"])
def test_the_shapes_that_jax_starts_from_are_the_model_s(name: str, parts: dict[str, ModuleType]):
    shape = parts["workloads"].WORKLOADS[name]
    model = parts["engines"].build_model(gpt.model, shape)
    ours = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert parts["workloads"].parameter_shapes(shape) == ours


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "relu", "tied": False, "head_bias": True},
        {"bias": False, "block_size": 10, "layers": 2},
        {"T": 150, "block_size": 150, "C": 18, "H": 6, "B": 3},  # several blocks, uneven groups
    ],
    ids=["tiny", "relu", "no bias", "long"],
)
def test_the_step_by_hand_is_ours(
    changes: dict[str, object], parts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
):
    """Every gradient of the first step; loss, norm and the next token's scores of several."""
    monkeypatch.setattr(parts["by_hand"], "PIECE", 100)  # several pieces, the last one shorter
    monkeypatch.setattr(parts["by_hand"], "COLUMNS", 4)
    shape = replace(parts["workloads"].WORKLOADS["tiny"], **changes)
    ours, by_hand = parts["engines"].Ours(shape), parts["by_hand"].ByHand(shape)
    batches = parts["workloads"].token_ids(shape, 4, np.random.default_rng(0))
    near = shape.tokens * np.finfo(np.float32).eps  # the longest sum of a gradient

    x, y = ours.batch(batches[0])
    ours.loss(x, y).backward()
    by_hand.forward(x.numpy())
    by_hand.backward(x.numpy(), y.numpy())
    assert by_hand.gradient_of.keys() == {name for name, _ in ours.model.named_parameters()}
    for name, parameter in ours.model.named_parameters():
        gradient, size = parameter.grad.numpy(), np.abs(parameter.grad.numpy()).max()
        np.testing.assert_allclose(
            by_hand.gradient_of[name], gradient, rtol=0, atol=near * size, err_msg=name
        )

    for ids in batches:
        mine, others = by_hand.batch(ids), ours.batch(ids)
        np.testing.assert_allclose(by_hand.step(*mine), ours.step(*others), rtol=near)
        logits = ours.logits(others[0][:, :5])
        atol = near * np.abs(logits).max()
        np.testing.assert_allclose(by_hand.logits(mine[0][:, :5]), logits, rtol=0, atol=atol)


def test_by_hand_a_score_that_is_too_large_raises(parts: dict[str, ModuleType]):
    shape = parts["workloads"].WORKLOADS["tiny"]
    by_hand = parts["by_hand"].ByHand(shape)
    (batch,) = parts["workloads"].token_ids(shape, 1, np.random.default_rng(0))
    ids, targets = by_hand.batch(batch)
    by_hand.weight_of["transformer.ln_f.weight"] *= 1e4
    with pytest.raises(FloatingPointError, match="overflow encountered in exp"):
        by_hand.step(ids, targets)
    with pytest.raises(ValueError, match="head by head"):
        parts["by_hand"].ByHand(replace(shape, fused_heads=False))


def test_operations_of_a_step_are_those_of_its_matrix_products(parts: dict[str, ModuleType]):
    """Counted from the products of the model's own weights, and the pairs that the mask passes."""
    shape = parts["workloads"].WORKLOADS["W2"]
    model = parts["engines"].build_model(gpt.model, shape)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    matrices -= shape.block_size * shape.C  # positions are looked up, and the tied table is a head
    pairs = tt.tril(tt.ones(shape.T, shape.T)).sum().item() * shape.B * shape.layers
    products = shape.B * shape.T * matrices + pairs * 2 * shape.C  # q·k and weight·v, of all heads
    assert shape.flops() == 3 * 2 * products  # twice as much backward; to multiply and to add
