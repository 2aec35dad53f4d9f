"""`python -m tinytensor.cuda.bench --out FOLDER`: how fast the kernels are on this GPU.

Each beside cuBLAS (by CuPy), PyTorch where it is installed, and the bandwidth of a copy measured in
the same run: matrix products, attention, softmax, layer norm, cross-entropy, AdamW, a whole GPT-2
124M training step, and 100 losses in bfloat16 beside float32's. Times are medians by CUDA events,
after a warm-up, on random data, with the L2 cache overwritten before each repetition (which also
gives Python the time to ask for the kernels before they are timed). One table with the targets
beside the figures; bench.md and bench.json in FOLDER, written anew after each group. A group that
exceeds its share of the time is ended, and a peer that fails costs its own figure only.
`bench_cases.py` has what is timed; `examples/shakespeare_gpu.py` measures the whole recipe.

`--device cuda-sim` runs the same lines in tiny shapes, to see that they run; its times say nothing.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import matmul
from .bench_cases import GROUPS
from .bench_lab import Bench
from .groups import (
    FAILED,
    GOOD,
    WRONG,
    Journal,
    Row,
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
    "matmul": 100.0, "attention": 35.0, "rows": 105.0, "optimizer": 20.0, "training": 190.0,
    "losses": 70.0,
}  # fmt: skip
SECONDS = sum(BUDGETS.values())


def report(rows: Sequence[Row], facts: dict[str, Any], markdown: bool = False) -> str:
    """One line for each case: our time, the peers', the ratio, and the target."""
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
    return f"{table(header, lines, markdown)}\n\n{end}"


def child(group: str, where: str, journal: Path, tiny: bool, skip: int) -> int:
    """One group, in this process."""
    GROUPS[group](Bench(Journal(journal, group, skip), where, tiny))
    return 0


def bench(
    folder: Path, where: str, only: Sequence[str], seconds: float, without: Sequence[str] = ()
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
    ends = deadlines(only, seconds)
    start = time.monotonic()

    def job(name: str) -> Callable[[float], list[Row]]:
        journal = folder / f"{name}.jsonl"
        return lambda _: run_group(command, name, journal, start + ends[name] - time.monotonic())

    rows: list[Row] = []
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
    write_tables(folder / "bench", f"{title}\n\n{report(rows, facts, markdown=True)}\n", content)


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
    add("--group", choices=list(GROUPS), help=argparse.SUPPRESS)
    add("--journal", type=Path, help=argparse.SUPPRESS)
    add("--skip", type=int, default=0, help=argparse.SUPPRESS)
    add("--tiny", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.group:
        matmul.avoid(*given.without)
        return child(given.group, given.device, given.journal, given.tiny, given.skip)
    if given.out is None:
        parser.error("--out FOLDER says where the tables go")
    from ..backend import cuda_device_count

    if given.device == "cuda" and not cuda_device_count():
        print("bench: CuPy sees no GPU here; --device cuda-sim shows that the lines run")
        return 2
    rows, facts = bench(given.out, given.device, given.only, given.seconds, given.without)
    print(report(rows, facts))
    return int(any(row.state == FAILED for row in rows))


if __name__ == "__main__":
    sys.exit(main())
