"""`bench`: its lines run in tiny shapes, with and without PyTorch; its table."""

from __future__ import annotations

import itertools
import json
import types

import numpy as np
import pytest

from tinytensor.cuda import bench, bench_cases, bench_lab, bench_training
from tinytensor.cuda.bench_lab import Bench, Peers, Timing, against
from tinytensor.cuda.groups import FAILED, GOOD, Journal, Row, read_journal

SIM = "cuda-sim"


def rows_of(tmp_path, group, torch):
    journal = Journal(tmp_path / "journal.jsonl", group)
    lab = Bench(journal, SIM, True)
    if not torch:
        lab.torch = None
    bench_cases.GROUPS[group](lab)
    return read_journal(journal.path)[0]


@pytest.mark.compiler
@pytest.mark.parametrize("group", bench_cases.GROUPS)
def test_groups_run_without_pytorch(tmp_path, group):
    rows = rows_of(tmp_path, group, torch=False)
    assert rows
    assert all(row.state == GOOD for row in rows)
    assert all("PyTorch" not in row.text for row in rows)


@pytest.mark.compiler
@pytest.mark.parity
@pytest.mark.parametrize("group", ["matmul", "attention", "rows", "optimizer", "training"])
def test_groups_run_beside_pytorch(tmp_path, group):
    rows = rows_of(tmp_path, group, torch=True)
    assert all(row.state == GOOD for row in rows)
    assert "PyTorch" in str([row.text for row in rows]) or group == "attention"
    assert all(row.numbers["ratio"] > 0 for row in rows if row.case != "copy")
    assert not any("failed" in row.text.replace("cuBLAS by CuPy failed", "") for row in rows)


@pytest.mark.parity
def test_the_model_is_the_same_in_pytorch():
    import torch

    import tinytensor as tt
    from tinytensor.cuda.small_gpt import TINY, model_class

    ours = model_class(tt.nn, tt.nn.functional, tt.arange)(TINY)
    theirs = model_class(torch.nn, torch.nn.functional, torch.arange)(TINY)
    theirs.load_state_dict(
        {name: torch.from_numpy(x.numpy().copy()) for name, x in ours.state_dict().items()}
    )
    (ids,) = bench_training.batches(TINY, 2, 1)
    x, y = np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])
    one = ours(tt.from_numpy(x), tt.from_numpy(y)).item()
    other = theirs(torch.from_numpy(x), torch.from_numpy(y)).item()
    assert one == pytest.approx(other, rel=1e-5)


def test_the_ratio_is_to_the_fastest_peer():
    times = Peers()
    times |= {"a": Timing(2.0, 2.0, 2.0, 0.1), "b": Timing(1.0, 1.0, 1.0, 0.1)}
    numbers = against(Timing(4.0, 3.0, 5.0, 0.1), times, 0.6)
    assert numbers["ratio"] == 0.25
    assert numbers["target"] == 0.6
    assert "ours 4.000 ms (3.000–5.000)" in numbers["text"]


def test_a_peer_that_fails_costs_its_own_figure_only():
    def broken():
        raise RuntimeError("no\nTriton")

    times = Peers()
    times.time("a", lambda: Timing(2.0, 2.0, 2.0, 0.1))
    times.time("b", broken)
    numbers = against(Timing(4.0, 3.0, 5.0, 0.1), times, 0.6)
    assert numbers["ratio"] == 0.5
    assert numbers["text"].endswith("; b failed: RuntimeError: no Triton")


def test_what_a_group_leaves_over_goes_to_the_next():
    assert bench.SECONDS <= 540
    ends = bench.deadlines(list(bench.BUDGETS), bench.SECONDS)
    assert list(ends) == list(bench_cases.GROUPS)
    assert list(ends.values()) == sorted(ends.values())
    assert ends["losses"] == pytest.approx(bench.SECONDS)
    assert bench.deadlines(["optimizer", "losses"], 45) == pytest.approx(
        {"optimizer": 10, "losses": 45}
    )


def test_the_table_says_what_was_missed():
    rows = [
        Row("matmul", "one", GOOD, "t", {"ratio": 0.7, "target": 0.6}),
        Row("matmul", "two", GOOD, "t", {"ratio": 0.5, "target": 0.6}),
        Row("rows", "three", FAILED, "it broke"),
    ]
    text = bench.report(rows, {"device": "cuda"})
    assert [line.split()[-1] for line in text.splitlines()[2:4]] == ["yes", "NO"]
    assert "failed: it broke" in text
    assert text.endswith("cuda: 1 targets missed, 1 cases failed")


def test_events_time_what_is_between_them(tmp_path, monkeypatch):
    now = [0.0]

    class Event:
        def record(self):
            self.at = now[0]

    cuda = types.SimpleNamespace(
        Event=Event,
        get_elapsed_time=lambda a, b: b.at - a.at,
        runtime=types.SimpleNamespace(deviceSynchronize=lambda: None),
    )
    lab = Bench(Journal(tmp_path / "j", "g"), SIM, True)
    lab.tiny, flushed = False, []
    lab.xp = types.SimpleNamespace(cuda=cuda)

    class Flush:
        def __setitem__(self, index, value):
            flushed.append(value)
            now[0] += 100.0

    lab.flush = Flush()
    durations = iter([50.0, 50.0, 50.0, *range(1, 31)])

    def run():
        now[0] += next(durations)

    found = lab.time(run)
    assert found.median == pytest.approx(15.5)
    assert len(flushed) == 30
    durations, flushed[:] = itertools.repeat(1.0), []
    monkeypatch.setattr(bench_lab, "LONGEST", 0.0)  # a run that takes long is timed less often
    lab.time(run)
    assert len(flushed) == 3


@pytest.mark.compiler
def test_the_command_writes_its_tables(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--device", SIM, "--only", "optimizer"]
    assert bench.main(arguments) == 0
    assert "AdamW float32" in capsys.readouterr().out
    content = json.loads((tmp_path / "bench.json").read_text())
    assert all(row["state"] == GOOD for row in content["rows"])
    assert (tmp_path / "bench.md").read_text().startswith("# bench, cuda-sim, 20")
