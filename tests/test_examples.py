"""Every example runs by itself, in a reduced setting, and ends with the line that it promises."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"

NUMBER = r"[-+\d.e]+"

# Arguments that make it quick, and the last line.
CASES: dict[str, tuple[list[str], str]] = {
    "01_scalar_chain.py": ([], r"largest difference: \d\.\de-(09|1\d)"),
    "02_own_operation.py": ([], r"the planted error was found"),
    "03_linear_regression_and_mlp.py": (
        ["--steps", "300"],
        r"(39\d|400) of 400 points are on the right side",
    ),
    "04_attention_by_hand.py": (
        ["--time", "16"],
        r"largest difference: output (0\.0e\+00|\d\.\de-0[678]), gradients \d\.\de-0[678]",
    ),
    "05_bigram_language_model.py": (
        ["--iterations", "30", "--eval-batches", "2", "--characters", "20", "--data", "python"],
        rf"validation loss {NUMBER} after 30 iterations \(uniform {NUMBER}, bigram {NUMBER}\)",
    ),
    "06_curvature.py": (
        ["--steps", "2", "--every", "2"],
        rf"curvature {NUMBER} where 2/lr is 6\.67",
    ),
    "07_dates.py": (
        ["--steps", "5", "--test", "20"],
        r"\d+ of \d+ spellings of unseen days read without an error",
    ),
    "08_many_processes.py": (
        ["--iterations", "4", "--eval-batches", "4", "--data", "python"],
        rf"validation loss {NUMBER} on (1, 2 and 4 processes, with the same bits|1 process: .*)",
    ),
    "benchmark_growth.py": (
        ["--batches", "1", "2", "--lengths", "16", "32", "--context", "128", "--steps", "1"],
        rf"a token takes {NUMBER} times its best time at batch \d+; attention \d+% of a step at "
        rf"T = \d+ and \d+% at \d+; \d+ tokens in {NUMBER} of the memory of their weights",
    ),
    "benchmark_bigram.py": (
        ["--rounds", "1", "--steps", "2"],
        rf"tinytensor {NUMBER} ms(, PyTorch {NUMBER} ms: {NUMBER} times as fast)?"
        rf"; wrapper {NUMBER} us an operation",
    ),
}


def run_example(name: str, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("name", CASES)
def test_example_ends_with_its_last_line(name: str, tmp_path: Path):
    arguments, last_line = CASES[name]
    output = run_example(name, *arguments)
    assert re.fullmatch(last_line, output.splitlines()[-1]), output


def test_every_lesson_has_a_case():
    assert {path.name for path in EXAMPLES.glob("[0-9]*.py")} <= set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_opening_paragraph_names_running_time_and_a_last_line_like_the_real_one(name: str):
    source = (EXAMPLES / name).read_text(encoding="utf-8")
    opening = source.split('"""')[1]
    assert re.search(r"\bRuns for (a|about|\d)", opening)
    promised = re.findall(r'"([^"]+)"', opening.split("The last line", 1)[1])[0]
    _, last_line = CASES[name]
    generalised = last_line.replace(" after 30 ", " after 5000 ")
    assert re.fullmatch(generalised, " ".join(promised.split())), promised


# What cannot be done is refused at once, in one sentence.
REFUSED = {
    "04_attention_by_hand.py": (["--time", "0"], "--time: must be at least 1, not 0"),
    "05_bigram_language_model.py": (
        ["--data", "nowhere.txt"],
        "--data: there is no file or folder nowhere.txt; give a path, or one of shakespeare and "
        "python",
    ),
    "06_curvature.py": (["--lr", "-1"], "--lr: must be above 0, not -1.0"),
    "07_dates.py": (["--batch-size", "many"], "--batch-size: must be a whole number, not 'many'"),
    "08_many_processes.py": (["--eval-batches", "0"], "--eval-batches: must be at least 1, not 0"),
    "compare_bigram.py": (
        ["--data", ""],
        "--data: there is no file or folder ''; give a path, or one of shakespeare and python",
    ),
    "benchmark_growth.py": (
        ["--plot", "no/where.png"],
        "--plot: there is no folder no to write to",
    ),
    "benchmark_generate.py": (["--tokens", "1"], "--tokens: must be at least 2, not 1"),
    "benchmark_bigram.py": (["--steps", "1"], "--steps: must be at least 2, not 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused_in_a_sentence(name: str):
    arguments, sentence = REFUSED[name]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1] == f"{name}: error: argument {sentence}"


def test_the_planted_error_is_named_and_placed():
    output = run_example("02_own_operation.py")
    assert "careless_maximum" in output
    assert "input 1" in output


def test_the_graph_is_drawn():
    """Each step stands below the one it goes into, with its value and its gradient."""
    lines = run_example("01_scalar_chain.py", "--x", "2", "--weight", "0.5").splitlines()
    operations = [line.split(" value")[0].split()[-1] for line in lines if " value " in line]
    expected = "multiply subtract tanh add multiply leaf leaf leaf leaf"
    assert operations == expected.split()
    weight = next(line for line in lines if "weight" in line)
    assert re.search(r"leaf +value +0\.5000 +gradient", weight)
    assert sum("the same node as above" in line for line in lines) == 1


@pytest.mark.parity
def test_both_libraries_end_at_the_same_loss():
    quick = ["--iterations", "20", "--eval-batches", "2", "--seeds", "1", "2"]
    last = run_example("compare_bigram.py", *quick, "--data", "python").splitlines()[-1]
    found = re.fullmatch(r"validation losses differ by at most (\d\.\d+) over 2 seeds", last)
    assert found and float(found[1]) < 0.001


@pytest.mark.compiler
def test_the_recipe_for_a_gpu_runs_in_the_simulator(tmp_path: Path):
    quick = ["--device", "cuda-sim", "--tiny", "--iterations", "4", "--steps", "3"]
    places = ["--data", "python", "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(EXAMPLES / "shakespeare_gpu.py"), *quick, *places]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    last = rf"furthest apart ({NUMBER}) in 3 steps, best validation loss ({NUMBER}), \d+ seconds"
    found = re.fullmatch(last, done.stdout.splitlines()[-1])
    assert found and float(found[1]) < 1e-4
    measured = json.loads((tmp_path / "measured.json").read_text())
    assert measured["apart"] < 1e-4
    assert len(measured["first"]["cpu"]) == len(measured["first"]["cuda-sim"]) == 3
    assert measured["best"] == min(loss for _, loss in measured["validation_losses"])
    assert measured["config"]["capture"] and measured["config"]["precision"] == "bfloat16"
