"""`python -m tinytensor.cuda.bench --out FOLDER`: how fast the kernels are on this GPU.

Each beside cuBLAS (by CuPy), PyTorch where it is installed, and the bandwidth of a copy measured in
the same run: matrix products, attention, softmax, layer norm, cross-entropy, AdamW, a whole GPT-2
124M training step, and 100 losses in bfloat16 beside float32's. Times are medians by CUDA events,
after a warm-up, on random data, with the L2 cache overwritten before each repetition (which also
gives Python the time to ask for the kernels before they are timed). Compiling takes longer than all
the rest, so it comes first, in a rehearsal by many processes at once; then the groups are timed,
one after the other. One table with what is required, one with all figures; bench.md and bench.json
in FOLDER, written anew after each group. A group that exceeds its share of the time is ended, and a
peer that fails costs its own figure only. `bench_cases.py` has what is timed;
`examples/shakespeare_gpu.py` measures the whole recipe.

`--dry-run` prints the cases and an estimate of the time; `--table` writes the tables of a FOLDER
anew, for `kernels/results/`, and measures nothing. `--device cuda-sim` runs the same lines in tiny
shapes, to see that they run; its times say nothing.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import bench_plan, matmul
from .bench_cases import GROUPS
from .bench_lab import Bench
from .bench_table import required_table
from .groups import (
    ABSENT,
    FAILED,
    GOOD,
    WRONG,
    Journal,
    Row,
    read_journal,
    run_for,
    run_group,
    run_groups,
    table,
    this_program,
    write_tables,
)
from .verify import environment

MODULE = "tinytensor.cuda.bench"
# What each group may take (most of it is compiling, PyTorch's above all); what one leaves over goes
# to those after it.
BUDGETS = {
    "matmul": 60.0, "attention": 30.0, "rows": 150.0, "optimizer": 20.0, "training": 210.0,
    "losses": 50.0,
}  # fmt: skip
SECONDS = sum(BUDGETS.values())
# A rehearsal: how many processes share the cases of a group, and what it may take in all.
SHARES = {"matmul": 2, "attention": 1, "rows": 4, "optimizer": 1, "training": 3, "losses": 1}
REHEARSAL = 160.0


def report(
    rows: Sequence[Row], facts: dict[str, Any], markdown: bool = False, folder: Path | None = None
) -> str:
    """What is required, and one line for each case: our time, the peers', the ratio, the target."""
    lines = []
    for row in rows:
        numbers = row.numbers
        ratio, target = numbers.get("ratio"), numbers.get("target")
        verdict = "" if ratio is None or target is None else "yes" if ratio >= target else "NO"
        lines.append(
            (
                row.group,
                row.case,
                row.text if row.state in (GOOD, WRONG) else f"{row.state}: {row.text}",
                "" if ratio is None else f"{ratio:.2f}",
                "" if target is None else f"≥ {target:.2f}",
                verdict,
            )
        )
    header = ("group", "case", "measured", "ratio", "target", "reached")
    name = facts.get("name", facts["device"])
    missed = sum(line[-1] == "NO" for line in lines)
    failed = sum(row.state == FAILED for row in rows)
    end = f"{name}: {missed} targets missed, {failed} cases failed"
    parts = [required_table(rows, folder, markdown), table(header, lines, markdown), end]
    return "\n\n".join(parts)


def child(
    group: str, where: str, journal: Path, tiny: bool, skip: int, share: tuple[int, int] | None
) -> int:
    """One group, or a share of its rehearsal, in this process."""
    if share is not None:  # PyTorch would start a process a core, in each of a dozen processes
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    GROUPS[group](Bench(Journal(journal, group, skip), where, tiny, share))
    return 0


def rehearse(
    command: Sequence[str], folder: Path, only: Sequence[str], seconds: float
) -> list[Row]:
    """Every case once, which fills the caches of compiled kernels, as many at a time as there are
    processes; nothing is timed. A row for each process that did not get through.
    """

    def job(group: str, i: int, left: float) -> list[Row]:
        name = f"rehearsal-{group}-{i}"
        journal, log = folder / f"{name}.jsonl", folder / f"{name}.log"
        journal.unlink(missing_ok=True)
        words = [*command, "--group", group, "--journal", str(journal)]
        code = run_for([*words, "--share", f"{i}/{SHARES[group]}"], left, log)
        rows, _, unfinished = read_journal(journal)
        lost = [row.case for row in rows if row.state == FAILED] + [unfinished] * (code != 0)
        text = ", ".join(str(case) for case in lost)
        return [Row("rehearsal", f"{group} {i}", ABSENT, f"not through: {text}")] if lost else []

    jobs = [
        (f"rehearsal of {group} {i}", functools.partial(job, group, i))
        for group in only
        for i in range(SHARES[group])
    ]
    start = time.monotonic()
    found = run_groups(jobs, seconds, len(jobs), lambda text: None)
    rows = [row for part in found for row in part]
    took = time.monotonic() - start
    print(f"rehearsal: {len(jobs)} processes, {len(rows)} not through, {took:.0f} s", flush=True)
    return rows


def bench(
    folder: Path,
    where: str,
    only: Sequence[str],
    seconds: float,
    without: Sequence[str] = (),
    rehearsal: bool = False,
) -> tuple[list[Row], dict[str, Any]]:
    """The rows of all groups, one group at a time, and the facts of the machine; the tables in
    `folder` grow with each group.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found, facts = environment(where)
    facts["date"] = datetime.date.today().isoformat()
    facts["environment"] = {row.case: row.text for row in found}
    tiny = ["--tiny"] if where == "cuda-sim" else []
    command = [*this_program(MODULE), "--device", where, *tiny]
    command += ["--without", *without] if without else []
    start = time.monotonic()
    rows: list[Row] = []
    if rehearsal:
        rows = rehearse(command, folder, only, min(REHEARSAL, 0.4 * seconds))
        seconds -= time.monotonic() - start
        start = time.monotonic()
    ends = deadlines(only, seconds)

    def job(name: str) -> Callable[[float], list[Row]]:
        journal = folder / f"{name}.jsonl"
        return lambda _: run_group(command, name, journal, start + ends[name] - time.monotonic())

    jobs = [(name, job(name)) for name in only]
    for more in run_groups(jobs, seconds, 1, lambda text: print(text, flush=True)):
        rows += more
        write(folder, rows, facts)
    return rows, facts


def deadlines(only: Sequence[str], seconds: float) -> dict[str, float]:
    """When each group has to be done: the budgets in their order, scaled to `seconds` in all."""
    share = seconds / sum(BUDGETS[name] for name in only)
    return dict(
        zip(only, itertools.accumulate(share * BUDGETS[name] for name in only), strict=True)
    )


def write(folder: Path, rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """bench.md and bench.json, with what is known so far."""
    title = f"# bench, {facts.get('name', facts['device'])}, {facts['date']}"
    content = {"facts": facts, "rows": [row._asdict() for row in rows]}
    write_tables(folder / "bench", f"{title}\n\n{report(rows, facts, True, folder)}\n", content)


def written(folder: Path) -> tuple[list[Row], dict[str, Any]]:
    """The rows and facts that an earlier run left in a folder."""
    path = folder / "bench.json"
    if not path.is_file():
        raise FileNotFoundError(f"bench: there is no {path}; --out names the folder of a run")
    content = json.loads(path.read_text(encoding="utf-8"))
    return [Row(**row) for row in content["rows"]], content["facts"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the groups; 1 if a case failed, 2 if there is nothing to measure on."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, help="folder for bench.md, bench.json and the logs")
    add("--device", default="cuda", choices=("cuda", "cuda-sim"))
    add("--only", nargs="+", choices=list(GROUPS), default=list(GROUPS), metavar="GROUP")
    add("--seconds", type=float, default=SECONDS, help=f"for all ({SECONDS:.0f})")
    add("--without", nargs="+", choices=matmul.KERNELS[:-1], default=[], metavar="KERNEL",
        help="matrix products by other kernels, where not asked for by name")  # fmt: skip
    add("--no-rehearsal", action="store_true", help="compile each kernel when it is timed")
    add("--dry-run", action="store_true", help="print the cases and about how long they take")
    add("--table", action="store_true", help="write the tables of the run in --out anew")
    add("--share", help=argparse.SUPPRESS)
    add("--group", choices=list(GROUPS), help=argparse.SUPPRESS)
    add("--journal", type=Path, help=argparse.SUPPRESS)
    add("--skip", type=int, default=0, help=argparse.SUPPRESS)
    add("--tiny", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.group:
        matmul.avoid(*given.without)
        i, n = map(int, (given.share or "0/0").split("/"))
        share = (i, n) if n else None
        return child(given.group, given.device, given.journal, given.tiny, given.skip, share)
    if given.dry_run:
        print(bench_plan.report(bench_plan.plan(GROUPS, given.only), BUDGETS))
        return 0
    if given.out is None:
        parser.error("--out FOLDER says where the tables go")
    if given.table:
        try:
            rows, facts = written(given.out)
        except FileNotFoundError as error:
            parser.error(str(error))
        write(given.out, rows, facts)
        print(report(rows, facts, folder=given.out))
        return 0
    from ..backend import cuda_device_count

    if given.device == "cuda" and not cuda_device_count():
        print("bench: CuPy sees no GPU here; --device cuda-sim shows that the lines run")
        return 2
    rehearsal = given.device == "cuda" and not given.no_rehearsal
    rows, facts = bench(
        given.out, given.device, given.only, given.seconds, given.without, rehearsal
    )
    print(report(rows, facts, folder=given.out))
    return int(any(row.state == FAILED for row in rows))


if __name__ == "__main__":
    sys.exit(main())
