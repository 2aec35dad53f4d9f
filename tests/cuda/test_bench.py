"""`bench`: its lines run in tiny shapes, with and without PyTorch; its table."""

from __future__ import annotations

import itertools
import json
import types
from pathlib import Path

import numpy as np
import pytest

from tinytensor.cuda import bench, bench_cases, bench_lab, bench_plan, bench_table, bench_training
from tinytensor.cuda.bench_lab import Bench, Peers, Timing, Work, against
from tinytensor.cuda.bench_table import MET, MISSED, UNKNOWN
from tinytensor.cuda.groups import ABSENT, FAILED, GOOD, Journal, Row, read_journal

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
    assert bench.deadlines(["optimizer", "losses"], 35) == pytest.approx(
        {"optimizer": 10, "losses": 35}
    )


def test_the_table_says_what_was_missed():
    rows = [
        Row("matmul", "one", GOOD, "t", {"ratio": 0.7, "target": 0.6}),
        Row("matmul", "two", GOOD, "t", {"ratio": 0.5, "target": 0.6}),
        Row("rows", "three", FAILED, "it broke"),
    ]
    text = bench.report(rows, {"device": "cuda"})
    _, cases, end = text.split("\n\n")
    assert [line.split()[-1] for line in cases.splitlines()[2:4]] == ["yes", "NO"]
    assert "failed: it broke" in cases
    assert end == "cuda: 1 targets missed, 1 cases failed"


# --- what is required ----------------------------------------------------------------------------


def good_rows():
    """Rows that meet every target, in the words of the groups themselves."""
    rows = []
    for group, name, _ in bench_plan.plan(bench_cases.GROUPS, list(bench_cases.GROUPS)):
        numbers = {"ratio": 0.95, "target": 0.9}
        if name == "copy" or name.startswith(("dropout", "tokens", "norm")):
            numbers = {"ratio": 0.1}  # nothing is asked of them
        if group == "attention":
            numbers |= {"held": 1e8, "weights": 4e8}
        if group == "losses":
            numbers = {"ratio": 1.0, "target": 1.0, "apart": 0.004}
        rows.append(Row(group, name, GOOD, "t", numbers))
    return rows


RECIPE = {"best": 1.46, "seconds": 170.0, "apart": 5e-5}


def test_every_target_has_a_line_and_cases():
    lines = bench_table.required(good_rows(), RECIPE)
    assert {verdict for *_, verdict in lines} == {MET}
    assert len(lines) == 14
    assert {verdict for *_, verdict in bench_table.required([], {})} == {UNKNOWN}


@pytest.mark.parametrize(
    ("group", "word", "change", "line"),
    [
        ("matmul", "matmul_mma", {"ratio": 0.59}, "by mma.sync"),
        ("matmul", "x Wᵀ", {"ratio": 0.89}, "by wgmma"),
        ("attention", "64) forward", {"ratio": 0.7}, "attention forward /"),
        ("attention", "backward", {"ratio": 0.7}, "forward + backward /"),
        ("attention", "backward", {"held": 5e8}, "memory"),
        ("rows", "softmax backward", {"ratio": 0.8}, "softmax"),
        ("rows", "layer norm", {"ratio": 0.8}, "layer norm"),
        ("rows", "cross-entropy gradient", {"ratio": 0.8}, "cross-entropy"),
        ("optimizer", "AdamW", {"ratio": 0.8}, "AdamW"),
        ("training", "64", {"ratio": 0.7}, "tokens a second"),
        ("losses", "bfloat16", {"apart": 0.02}, "100 losses"),
    ],
)
def test_one_case_that_misses_its_target_shows(group, word, change, line):
    rows = good_rows()
    at = next(
        i for i, row in enumerate(rows)
        if row.group == group and word in row.case and (" by " in row.case) == ("mma" in word)
    )  # fmt: skip
    rows[at] = rows[at]._replace(numbers=rows[at].numbers | change)
    missed = [what for what, *_, verdict in bench_table.required(rows, RECIPE) if verdict != MET]
    assert len(missed) == 1 and line in missed[0]
    if "ratio" in change:
        rows[at] = Row(group, rows[at].case, FAILED, "it broke")
        (what,) = [w for w, found, *_ in bench_table.required(rows, RECIPE) if "failed: " in found]
        assert what == missed[0]


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [("best", 1.5, "best"), ("seconds", 200.0, "time"), ("apart", 1e-3, "first 20")],
)
def test_the_recipe_s_figures_are_read_from_the_folder(tmp_path, key, value, line):
    (tmp_path / "measured.json").write_text(json.dumps(RECIPE | {key: value}))
    lines = bench_table.required_table(good_rows(), tmp_path, False).splitlines()
    (missed,) = [text for text in lines if MISSED in text]
    assert line in missed and f"{value:.4g}" in missed
    assert UNKNOWN not in "".join(lines)


def test_the_tables_of_a_folder_are_written_anew(tmp_path, capsys):
    facts = {"device": "cuda", "name": "NVIDIA H200", "date": "2026-11-21"}
    bench.write(tmp_path, good_rows(), facts)
    (tmp_path / "bench.md").unlink()
    (tmp_path / "measured.json").write_text(json.dumps(RECIPE))
    assert bench.main(["--out", str(tmp_path), "--table"]) == 0
    text = (tmp_path / "bench.md").read_text()
    assert text.startswith("# bench, NVIDIA H200, 2026-11-21\n\n| required ")
    assert UNKNOWN not in text
    assert "Shakespeare recipe, time" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        bench.main(["--out", str(tmp_path / "elsewhere"), "--table"])
    assert "there is no" in capsys.readouterr().err


# --- the plan, and the rehearsal ------------------------------------------------------------------


def test_the_plan_needs_no_gpu_and_names_every_case(capsys):
    assert bench.main(["--dry-run"]) == 0
    printed = capsys.readouterr().out
    cases = bench_plan.plan(bench_cases.GROUPS, list(bench_cases.GROUPS))
    assert all(case.name in printed for case in cases)
    assert {case.group for case in cases} == set(bench.BUDGETS) == set(bench.SHARES)


def test_what_is_compiled_counts_once():
    work, compiled = Work(bytes=4e9, kernels=(("a", 2),)), set()
    first, again = bench_plan.seconds(work, compiled), bench_plan.seconds(work, compiled)
    assert first[0] == again[0] == pytest.approx(66 * (1e-3 + bench_plan.FLUSH))
    assert first[1] - again[1] == pytest.approx(2 * bench_plan.VARIANT)


def test_a_rehearsal_runs_its_share_of_the_cases_once(tmp_path):
    waits, ran = [], []
    runtime = types.SimpleNamespace(deviceSynchronize=lambda: waits.append(1))
    for i in range(3):
        lab = Bench(Journal(tmp_path / f"j{i}", "g"), SIM, False, (i, 3))
        lab.xp = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime))

        def timed(name, lab=lab):
            timing = lab.time(lambda: ran.append(name))
            return {"text": str(timing.median)}

        for name in "abcde":
            lab.case(name, lambda name=name, timed=timed: timed(name), Work())
    assert sorted(ran) == list("abcde") and len(waits) == 5


@pytest.mark.compiler
def test_processes_that_do_not_get_through_a_rehearsal_are_told(tmp_path, monkeypatch):
    command = [*bench.this_program(bench.MODULE), "--device", SIM, "--tiny"]
    monkeypatch.setattr(bench, "SHARES", {"optimizer": 2})
    monkeypatch.setenv("PYTHONPATH", str(Path(bench.__file__).parents[2]))
    assert bench.rehearse(command, tmp_path, ["optimizer"], 60.0) == []
    cases = [read_journal(tmp_path / f"rehearsal-optimizer-{i}.jsonl")[0] for i in range(2)]
    assert sorted(len(rows) for rows in cases) == [1, 1]
    monkeypatch.setattr(bench, "run_for", lambda words, left, log: None)
    lost = bench.rehearse(command, tmp_path, ["optimizer"], 60.0)
    assert [(row.group, row.state) for row in lost] == [("rehearsal", ABSENT)] * 2


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
