"""`verify`: its list is complete, it sees planted faults, and it goes on after what dies."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import tinytensor as tt
from tinytensor.cuda import groups, kernels, matmul, simulator, verify, verify_cases
from tinytensor.cuda.device import sim
from tinytensor.cuda.groups import ABSENT, FAILED, GOOD, WRONG, Journal, Row, read_journal
from tinytensor.cuda.tiles import limits
from tinytensor.cuda.verify_cases import KERNELS
from tinytensor.cuda.verify_lab import Compared, Lab, judge

SIM = "cuda-sim"
FLOAT32 = np.dtype(np.float32)


@pytest.fixture
def lab(tmp_path):
    return Lab(Journal(tmp_path / "journal.jsonl", "a group"), SIM, True)


def rows_of(lab):
    return read_journal(lab.journal.path)[0]


# --- the list ------------------------------------------------------------------------------------


def test_every_kernel_has_a_group():
    assert {name for names in KERNELS.values() for name in names} == set(kernels.source_of())


@pytest.mark.compiler
@pytest.mark.parametrize("group", KERNELS)
def test_a_group_runs_its_kernels_and_all_is_right(lab, group, monkeypatch):
    launched, launch = set(), simulator.launch

    def noted(source, name, *args, **options):
        launched.add(name)
        launch(source, name, *args, **options)

    monkeypatch.setattr(simulator, "launch", noted)
    verify_cases.GROUPS[group](lab)
    assert [row for row in rows_of(lab) if row.state != GOOD] == []
    assert launched >= set(KERNELS[group])


@pytest.mark.compiler
def test_every_operation_with_a_kernel_is_verified(lab):
    verify_cases.operations_group(lab)
    assert [row for row in rows_of(lab) if row.state != GOOD] == []
    covered = {call.operation.__name__ for call in verify_cases.calls(lab)}
    assert covered | verify_cases.WITHOUT_GRADIENT == verify_cases.with_kernels()


def test_an_operation_without_a_case_is_wrong(lab, monkeypatch):
    monkeypatch.setattr(verify_cases, "calls", lambda lab: [])
    monkeypatch.setattr(verify_cases, "with_kernels", lambda: {"forgotten"})
    verify_cases.operations_group(lab)
    assert [(row.case, row.state) for row in rows_of(lab)] == [("forgotten", WRONG)]


# --- judging -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FLOAT32, tt.bfloat16], ids=str)
def test_rounding_is_allowed_and_more_is_not(dtype):
    exact = np.random.default_rng(0).standard_normal(1000)
    rounded = exact.astype(dtype)
    error, limit = judge(rounded, exact, 1, 0, 0.0)
    assert error <= 0.5
    rounded[17] += np.array(0.1, dtype)
    error, limit = judge(rounded, exact, 1, 0, 0.0)
    assert error > limit


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_never_right(value):
    ours = np.ones(3, np.float32)
    ours[1] = value
    assert judge(ours, np.ones(3), 1, 0, 0.0)[0] == np.inf
    assert judge(np.ones(3, np.float32), ours.astype(np.float64), 1, 0, 0.0)[0] == np.inf
    assert judge(ours, ours.astype(np.float64), 1, 0, 0.0)[0] == 0
    assert judge(ours[:2], np.ones(3), 1, 0, 0.0)[0] == np.inf


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("module", "name", "group"),
    [("network", "softmax", "rows"), ("elementwise", "gelu_backward", "elementwise")],
)
def test_a_planted_fault_is_found(lab, monkeypatch, module, name, group):
    place = getattr(verify_cases, module)
    right = getattr(place, name)

    def wrong(*args, **options):
        y = right(*args, **options)
        y[..., -1] = y[..., -1] * 1.5
        return y

    monkeypatch.setattr(place, name, wrong)
    verify_cases.GROUPS[group](lab)
    bad = [row for row in rows_of(lab) if row.state == WRONG]
    assert bad
    assert all(name.split("_")[0].lower() in row.case.lower() for row in bad)


def test_a_case_that_raises_is_recorded_and_the_next_one_runs(lab):
    def broken(lab):
        raise ValueError("no such\nluck")
        yield

    lab.check("first", broken)
    lab.check("second", lambda lab: iter([Compared("y", np.ones(2, np.float32), np.ones(2))]))
    first, second = rows_of(lab)
    assert (first.state, first.text) == (FAILED, "ValueError: no such luck")
    assert second.state == GOOD


# --- children ------------------------------------------------------------------------------------

CHILD = """
import argparse, os, pathlib, time
from tinytensor.cuda.groups import Journal
parser = argparse.ArgumentParser()
for name in ("--group", "--journal", "--skip"):
    parser.add_argument(name)
given = parser.parse_args()
journal = Journal(pathlib.Path(given.journal), given.group, int(given.skip))
def fine(): return "good", "fine", {}
def dies(): os._exit(9)
def hangs(): time.sleep(60)
journal.case("one", fine)
journal.case("two", {"dies": dies, "works": fine}.get(given.group, hangs))
journal.case("three", fine)
"""


@pytest.mark.parametrize(
    ("group", "states"),
    [
        ("works", {"one": GOOD, "two": GOOD, "three": GOOD}),
        ("dies", {"one": GOOD, "two": FAILED, "three": GOOD}),
        ("hangs", {"one": GOOD, "two": FAILED, "three": GOOD}),
        ("is slow", {"one": GOOD, "two": FAILED}),
    ],
)
def test_a_child_that_dies_or_hangs_costs_one_case(tmp_path, group, states):
    program = tmp_path / "child.py"
    program.write_text(CHILD)
    command = [sys.executable, str(program)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(tt.__file__).parent.parent))
        seconds, of_a_case = {"is slow": (4.0, 60.0), "hangs": (60.0, 4.0)}.get(group, (60.0, 60.0))
        rows = groups.run_group(command, group, tmp_path / "j.jsonl", seconds, of_a_case)
    assert {row.case: row.state for row in rows} == states
    said = {
        "dies": "ended with code 9",
        "hangs": "after 4 s and ended",
        "is slow": "cases after it",
    }
    assert all(said[group] in row.text for row in rows if row.state == FAILED)


def test_a_group_that_raises_costs_itself_only():
    def broken(left):
        raise OSError("the disk is full")

    good = Row("good", "one", GOOD, "fine")
    found = groups.run_groups([("bad", broken), ("good", lambda left: [good])], 60.0, 1)
    rows = [row for rows in found for row in rows]
    assert {row.group: row.state for row in rows} == {"bad": FAILED, "good": GOOD}


def test_nothing_starts_when_the_time_is_over():
    ((row,),) = groups.run_groups([("late", lambda left: [])], 1.0, 1)
    assert row.state == FAILED
    assert "were over" in row.text


def test_tables_are_written_after_each_group(tmp_path, monkeypatch):
    written = []

    def run_groups(jobs, seconds, workers, say):
        for name, _ in jobs:
            yield [Row(name, "one", GOOD, "fine")]
            written.append(json.loads((tmp_path / "verify.json").read_text())["rows"][-1]["group"])

    monkeypatch.setattr(verify, "run_groups", run_groups)
    verify.verify(tmp_path, SIM, ["rows", "optimizer"], 1, 10.0)
    assert written == ["rows", "optimizer"]


# --- the whole -----------------------------------------------------------------------------------


@pytest.mark.compiler
def test_the_command_writes_its_tables(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--device", SIM, "--only", "optimizer"]
    assert verify.main(arguments) == 0
    told = capsys.readouterr().out
    assert "everything is right" in told
    assert "of its limit: " in told
    content = json.loads((tmp_path / "verify.json").read_text())
    assert {row["group"] for row in content["rows"]} == {
        "environment", "compute-sanitizer", "optimizer",
    }  # fmt: skip
    assert (tmp_path / "verify.md").read_text().startswith("# verify, cuda-sim, 20")


def test_every_group_has_cases_or_says_why_not(lab):
    assert set(verify.ALL) > set(verify_cases.GROUPS)
    verify.ALL["nccl"](lab)
    assert [(row.state, row.text) for row in rows_of(lab)] == [
        (ABSENT, "the simulator has no NCCL")
    ]


def test_kernels_can_be_left_out(monkeypatch):
    monkeypatch.setattr(matmul, "_avoided", set())
    a = sim.asarray(np.ones((128, 128), tt.bfloat16))

    def chosen():
        return matmul._choose_kernel(None, a, a, [], limits(sim))

    assert chosen() == "matmul_wgmma"
    matmul.avoid("matmul_wgmma")
    assert chosen() == "matmul_mma"
    matmul.avoid("matmul_mma")
    assert chosen() == "matmul_plain"
    assert matmul._choose_kernel("matmul_wgmma", a, a, [], limits(sim)) == "matmul_wgmma"


def test_the_kernels_below_are_told_what_to_leave_out(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(verify, "run_group", lambda words, *rest: commands.append(words) or [])
    arguments = ["--out", str(tmp_path), "--device", SIM, "--only", "optimizer"]
    verify.main([*arguments, "--without", "matmul_wgmma"])
    assert commands[0][-2:] == ["--without", "matmul_wgmma"]


def test_what_is_wrong_comes_first():
    rows = [
        Row("a", "one", GOOD, "fine", {"error": 1.0, "limit": 4.0}),
        Row("a", "two", WRONG, "far off"),
        Row("b", "three", ABSENT, "not here"),
    ]
    text = verify.report(rows, {"device": "a GPU"})
    assert text.index("far off") < text.index("0.25 of its limit: one")
    assert text.endswith("a GPU: 1 of 3 are wrong")


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(verify, "_devices", lambda: 0)
    assert verify.main(["--out", str(tmp_path)]) == 2
    assert "--device cuda-sim" in capsys.readouterr().out


def test_the_sanitizer_is_optional(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "sanitizer", lambda: None)
    (row,) = verify.sanitize("memcheck", tmp_path, 10.0)
    assert row.state == ABSENT


@pytest.mark.parametrize(("code", "state"), [(0, GOOD), (86, WRONG)])
def test_what_the_sanitizer_says_counts(tmp_path, monkeypatch, code, state):
    tool = tmp_path / "compute-sanitizer"
    journaled = json.dumps({"row": Row("g", "one", GOOD, "")._asdict()})
    tool.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "path = sys.argv[sys.argv.index('--journal') + 1]\n"
        f"open(path, 'w').write({journaled!r})\n"
        "print('========= Invalid __global__ write')\n"
        f"sys.exit({code})\n"
    )
    tool.chmod(0o755)
    monkeypatch.setattr(verify, "sanitizer", lambda: str(tool))
    rows = verify.sanitize("memcheck", tmp_path, 60.0)
    assert [row.state for row in rows] == [state] * len(verify.SANITIZED)
    assert "Invalid __global__ write" in rows[0].text


@pytest.mark.compiler
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_steps_match_the_cpu_captured_too(dropout):
    theirs, _ = verify.trained("cpu", verify.TINY, 5, dropout=dropout)
    for captured in (False, True):
        ours, _ = verify.trained(SIM, verify.TINY, 5, captured=captured, dropout=dropout)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert ours[-1] < ours[0]


def test_the_plan_needs_no_gpu_and_names_every_case(capsys):
    assert verify.main(["--dry-run"]) == 0
    printed = capsys.readouterr().out
    cases = verify.plan(list(verify.ALL))
    assert {group for group, _ in cases} == set(verify.ALL)
    assert all(f"{group} " in printed and case in printed for group, case in cases)
    assert ("rows", "softmax float32 8192×1024") in cases
    assert set(verify.HOST) == set(verify.COMPILED) <= set(verify.ALL)
