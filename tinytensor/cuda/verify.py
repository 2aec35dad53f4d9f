"""`python -m tinytensor.cuda.verify --out FOLDER`: is everything right on this GPU?

In under nine minutes: what the machine has; every kernel and every operation against float64 on
the CPU, in GPT-2's shapes and odd ones, float32 and bfloat16 (`verify_cases.py`); copies to the
host that nobody asked for; ten training steps of a small GPT against the CPU, plainly, under
autocast and as a captured graph; compute-sanitizer over the same cases in tiny shapes, where it is
installed. Prints one table, writes it as verify.md and verify.json into FOLDER (anew after each
group, so that what was found is there whenever it is ended), and exits with 1 if anything is wrong.
`--only wgmma` looks at Hopper's product alone, which all others of bfloat16 are made by; if it is
wrong there, `--without matmul_wgmma` verifies the rest with `mma.sync`.
`--device cuda-sim` runs the same list in tiny shapes in the simulator; `--dry-run` prints the list.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import cupy, device
from ..tensor import Tensor, as_tensor
from . import layers as layers  # (registers its kernels)
from . import matmul
from .bench_plan import START, VARIANT
from .device import host_copies
from .graph import _no_waiting, graph
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
    sentence,
    table,
    this_program,
    write_tables,
)
from .small_gpt import TINY, Sizes, model_class, parameter_groups
from .verify_cases import GROUPS
from .verify_lab import Lab

MODULE = "tinytensor.cuda.verify"
SECONDS = 500.0  # for all
OF_A_GROUP, OF_A_CASE = 300.0, 100.0
STEPS = 10
TOOLS = {"memcheck": 150.0, "racecheck": 200.0}
SANITIZED = ("matmul", "attention", "rows", "elementwise", "optimizer", "wgmma")
SMALL = Sizes(V=512, T=64, layers=3, H=4, C=128)
# For the plan, as counted in November 2026: seconds that the exact results of a group take on a
# core of a Zen 4, and the variants of kernels that it compiles.
HOST = {"matmul": 34, "attention": 2, "rows": 39, "elementwise": 17, "optimizer": 4,
        "operations": 43, "training": 2}  # fmt: skip
COMPILED = {"matmul": 23, "attention": 17, "rows": 106, "elementwise": 55, "optimizer": 11,
            "operations": 83, "training": 30}  # fmt: skip


# --- training ------------------------------------------------------------------------------------


def trained(
    where: str,
    sizes: Sizes,
    steps: int = STEPS,
    autocast: bool = False,
    captured: bool = False,
    dropout: float = 0.0,
) -> tuple[list[float], list[Any]]:
    """The losses of `steps` steps from the same beginning on the same data, and the parameters."""
    import tinytensor as tt

    tt.manual_seed(1)
    sizes = sizes._replace(dropout=dropout)
    model = model_class(tt.nn, tt.nn.functional, tt.arange)(sizes).to(where)
    optimizer = tt.optim.AdamW(parameter_groups(model), lr=1e-2, betas=(0.9, 0.95))

    def step(x: Tensor, y: Tensor) -> Tensor:
        with tt.autocast(device(where).type, enabled=autocast):
            loss = model(x, y)
        optimizer.zero_grad()
        loss.backward()
        tt.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss  # type: ignore[no-any-return]

    run: Callable[..., Any] = graph(step, optimizer) if captured else step
    rng = np.random.default_rng(2)
    losses = []
    for number in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - number / steps / 2)
        # Runs of neighbouring tokens, so that there is something to learn.
        start = rng.integers(0, sizes.V, (4, 1))
        ids = (start + np.arange(sizes.T + 1)) % sizes.V
        x, y = (as_tensor(np.ascontiguousarray(part)) for part in (ids[:, :-1], ids[:, 1:]))
        losses.append(run(x.to(where), y.to(where)).item())
    return losses, [p.detach().cpu().numpy() for p in model.parameters()]


def training_group(lab: Lab) -> None:
    """A small GPT: losses against those of the CPU, and no copy to the host within a step."""
    sizes = TINY if lab.tiny else SMALL
    exact = functools.cache(lambda dropout: trained("cpu", sizes, dropout=dropout)[0])

    def compared(options: dict[str, Any], most: float) -> Any:
        return lambda: _same_losses(lab, sizes, exact(options.get("dropout", 0)), options, most)

    cases: tuple[tuple[str, dict[str, Any], float], ...] = (
        ("float32", {}, 1e-4),
        ("autocast to bfloat16", {"autocast": True}, 2e-2),
        ("captured as a graph", {"captured": True}, 1e-4),
        ("captured, autocast", {"captured": True, "autocast": True}, 2e-2),
        ("dropout", {"dropout": 0.2}, 1e-4),
        ("dropout, captured: each step its own masks", {"captured": True, "dropout": 0.2}, 1e-4),
    )
    for name, options, limit in cases:
        lab.case(f"{STEPS} steps, {name}", compared(options, limit))
    lab.case("copies to the host in a step", lambda: _copies(lab, sizes))


def _same_losses(
    lab: Lab, sizes: Sizes, exact: list[float], options: dict[str, Any], most: float
) -> tuple[str, str, dict[str, Any]]:
    losses, _ = trained(lab.where, sizes, **options)
    apart = [abs(a - b) / abs(b) for a, b in zip(losses, exact, strict=True)]
    falls = losses[-1] < losses[0]
    worst = max(apart) if np.isfinite(losses).all() else float("inf")
    text = (
        f"losses {losses[0]:.4f} … {losses[-1]:.4f}, on the CPU … {exact[-1]:.4f}; "
        f"furthest apart {worst:.1e} of {most:.0e}"
    )
    numbers = {"losses": losses, "cpu": exact, "error": worst, "limit": most}
    return GOOD if worst <= most and falls else WRONG, text, numbers


def _copies(lab: Lab, sizes: Sizes) -> tuple[str, str, dict[str, Any]]:
    import tinytensor as tt

    model = model_class(tt.nn, tt.nn.functional, tt.arange)(sizes).to(lab.where)
    optimizer = tt.optim.AdamW(parameter_groups(model))
    ids = as_tensor(np.zeros((2, sizes.T), np.int64)).to(lab.where)
    before = host_copies()
    for number in range(3):
        with _quiet(lab, number):
            with tt.autocast(device(lab.where).type, enabled=number == 2):
                loss = model(ids, ids)
            optimizer.zero_grad()
            loss.backward()
            tt.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    copies = host_copies() - before
    return GOOD if copies == 0 else WRONG, f"{copies} copies in three steps", {"copies": copies}


def _quiet(lab: Lab, number: int) -> Any:
    """On a GPU CuPy itself raises where it would wait; the first step may (to compile)."""
    from contextlib import nullcontext

    return _no_waiting(lab.xp) if number and lab.where != "cuda-sim" else nullcontext()


def _nccl_group(lab: Lab) -> None:
    from ..distributed import verify_nccl  # which builds on what is verified here

    verify_nccl.nccl_group(lab)


ALL: dict[str, Callable[[Lab], None]] = {
    **GROUPS,
    "training": training_group,
    "nccl": _nccl_group,
}


# --- the whole -----------------------------------------------------------------------------------


class _Planner(Lab):
    """A `Lab` that notes its cases and runs none."""

    def __init__(self, group: str) -> None:
        super().__init__(Journal(Path(), group), "cuda-sim", False)
        self.cases: list[str] = []

    def check(self, name: str, run: Callable[..., Any], *args: Any) -> None:
        self.cases.append(name)

    def case(self, name: str, run: Callable[[], Any]) -> None:
        self.cases.append(name)


def plan(only: Sequence[str]) -> list[tuple[str, str]]:
    """(group, case) of everything that would be verified on an H200."""
    found = []
    for group in only:
        if group == "nccl":  # asks the library for its cases
            found.append((group, "every collective, plain and captured"))
            continue
        planner = _Planner(group)
        ALL[group](planner)
        found += [(group, case) for case in planner.cases]
    return found


def planned(only: Sequence[str]) -> str:
    """The cases, and for each group how many there are and about how long they take."""
    cases = plan(only)
    lines = []
    for group in only:
        host, variants = HOST.get(group), COMPILED.get(group)
        told = ("?", "?", "?")
        if host is not None and variants is not None:
            told = (str(host), str(variants), f"{START + host + VARIANT * variants:.0f}")
        lines.append((group, sum(of == group for of, _ in cases), *told))
    header = ("group", "cases", "s on the CPU", "variants", "s in all")
    end = (
        f"{len(cases)} cases in {len(only)} groups, several at a time; at most {OF_A_CASE:.0f} s a "
        f"case, {OF_A_GROUP:.0f} s a group, {SECONDS:.0f} s in all; compute-sanitizer's "
        + " and ".join(f"{tool} at most {limit:.0f} s" for tool, limit in TOOLS.items())
    )
    return "\n\n".join((table(("group", "case"), cases), table(header, lines), end))


def environment(where: str) -> tuple[list[Row], dict[str, Any]]:
    """What `doctor` finds, and the GPU's own facts."""
    from .. import doctor

    try:
        rows = [
            Row("environment", subject, WRONG if state == doctor.BROKEN else GOOD, text)
            for subject, state, text, _ in doctor.examine()
        ]
    except Exception as error:  # the kernels can be verified all the same
        rows = [Row("environment", "doctor", FAILED, sentence(error))]
    facts: dict[str, Any] = {"device": where}
    if where != "cuda-sim":
        runtime = cupy().cuda.runtime
        found = runtime.getDeviceProperties(0)
        free, total = runtime.memGetInfo()
        facts |= {
            "name": _word(found["name"]),
            "multiprocessors": found["multiProcessorCount"],
            "l2_bytes": found["l2CacheSize"],
            "memory_bytes": total,
            "free_bytes": free,
            "driver": runtime.driverGetVersion(),
            "runtime": runtime.runtimeGetVersion(),
            "capability": f"{found['major']}.{found['minor']}",
        }
        text = ", ".join(f"{key} {value}" for key, value in facts.items())
        rows.append(Row("environment", "GPU", GOOD, text))
    return rows, facts


def _word(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def sanitize(tool: str, folder: Path, seconds: float) -> list[Row]:
    """One tool of compute-sanitizer over the cases in tiny shapes."""
    group, program = f"compute-sanitizer {tool}", sanitizer()
    if program is None:
        return [Row(group, "(all)", ABSENT, "compute-sanitizer is not installed")]
    limit = min(seconds, TOOLS[tool])
    ends = time.monotonic() + limit
    rows: list[Row] = []
    for name in SANITIZED:
        journal, log = folder / f"{tool}-{name}.jsonl", folder / f"{tool}-{name}.log"
        journal.unlink(missing_ok=True)
        words = [
            program, "--tool", tool, "--error-exitcode", "86", "--print-limit", "20",
            *this_program(MODULE), "--group", name, "--journal", str(journal), "--tiny",
            "--plain-memory",
        ]  # fmt: skip
        code = run_for(words, ends - time.monotonic(), log)
        output = log.read_text(encoding="utf-8", errors="replace")
        found, _, unfinished = read_journal(journal)
        bad = [row for row in found if row.state in (WRONG, FAILED)]
        if "Device not supported" in output:
            return [Row(group, "(all)", ABSENT, "it says: Device not supported")]
        lines = [line.strip("= ") for line in output.splitlines() if line.startswith("=====")]
        told = " / ".join(line for line in lines if line)[:400]
        if code is None:
            text = f"not finished after {limit:.0f} s in all, in the middle of {unfinished}"
            rows.append(Row(group, name, ABSENT, text))
            break
        good = code == 0 and not bad and found
        rows.append(Row(group, name, GOOD if good else WRONG, f"{len(found)} cases; {told}"))
    return rows


def sanitizer() -> str | None:
    """Where compute-sanitizer is: on the PATH, or where CUDA is installed."""
    places = [os.environ.get("CUDA_PATH", ""), os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    return shutil.which("compute-sanitizer") or next(
        (
            found
            for place in places
            if place and (found := shutil.which("compute-sanitizer", path=f"{place}/bin"))
        ),
        None,
    )


def child(group: str, where: str, journal: Path, tiny: bool, skip: int, plain: bool) -> int:
    """One group, in this process."""
    lab = Lab(Journal(journal, group, skip), where, tiny)
    if plain:  # the sanitizer sees the bounds of allocations, not those of pieces of a pool
        lab.xp.cuda.set_allocator(None)
    ALL[group](lab)
    return 0


def verify(
    folder: Path,
    where: str,
    only: Sequence[str],
    workers: int,
    seconds: float,
    without: Sequence[str] = (),
) -> tuple[list[Row], dict[str, Any]]:
    """All rows, and the facts of the machine; the tables in `folder` grow with each group."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, facts = environment(where)
    facts["date"] = datetime.date.today().isoformat()
    on_sim = where == "cuda-sim"
    command = [*this_program(MODULE), "--device", where, *(["--tiny"] if on_sim else [])]
    command += ["--without", *without] if without else []

    def job(name: str) -> Callable[[float], list[Row]]:
        journal = folder / f"{name}.jsonl"
        return lambda left: run_group(command, name, journal, min(left, OF_A_GROUP), OF_A_CASE)

    jobs = [(name, job(name)) for name in only]
    if not on_sim and set(only) == set(ALL):
        for tool in TOOLS:
            run = functools.partial(sanitize, tool, folder)
            jobs.append((f"compute-sanitizer {tool}", run))
    elif on_sim:
        text = "the simulator looks at bounds and races itself"
        rows.append(Row("compute-sanitizer", "(all)", ABSENT, text))
    write(folder, rows, facts)
    for found in run_groups(jobs, seconds, workers, lambda text: print(text, flush=True)):
        rows += found
        write(folder, rows, facts)
    return rows, facts


def write(folder: Path, rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """verify.md and verify.json, with what is known so far."""
    title = f"# verify, {facts.get('name', facts['device'])}, {facts['date']}"
    content = {"facts": facts, "rows": [row._asdict() for row in rows]}
    write_tables(folder / "verify", f"{title}\n\n{report(rows, facts, markdown=True)}\n", content)


def report(rows: Sequence[Row], facts: dict[str, Any], markdown: bool = False) -> str:
    """What is wrong first, then a line for each group."""
    bad = [row for row in rows if row.state in (WRONG, FAILED)]
    parts = []
    if bad:
        lines = [(r.group, r.case, r.state, r.text) for r in bad]
        parts.append(table(("group", "case", "", "what was found"), lines, markdown))
    summary = []
    for group in dict.fromkeys(row.group for row in rows):
        mine = [row for row in rows if row.group == group]
        shares = [
            (row.numbers["error"] / row.numbers["limit"], row.case)
            for row in mine
            if row.numbers.get("limit")
        ]
        worst = "{:.2f} of its limit: {}".format(*max(shares)) if shares else ""
        counts = [sum(r.state in s for r in mine) for s in ((GOOD,), (WRONG, FAILED), (ABSENT,))]
        summary.append((group, len(mine), *counts, worst))
    header = ("group", "cases", "good", "wrong", "not run", "furthest from the exact result")
    parts.append(table(header, summary, markdown))
    name = facts.get("name", facts["device"])
    parts.append(
        f"{name}: " + (f"{len(bad)} of {len(rows)} are wrong" if bad else "everything is right")
    )
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the groups; 1 if something is wrong, 2 if there is nothing to verify on."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, help="folder for verify.md, verify.json and the logs")
    add("--device", default="cuda", choices=("cuda", "cuda-sim"))
    add("--only", nargs="+", choices=list(ALL), default=list(ALL), metavar="GROUP")
    workers = max(4, (os.cpu_count() or 4) // 2)
    add("--workers", type=int, default=workers, help="groups at a time: most of it is compiling")
    add("--without", nargs="+", choices=matmul.KERNELS[:-1], default=[], metavar="KERNEL",
        help="matrix products by other kernels, where not asked for by name")  # fmt: skip
    add("--seconds", type=float, default=SECONDS, help=f"for all ({SECONDS:.0f})")
    add("--dry-run", action="store_true", help="print what would be verified")
    add("--group", choices=list(ALL), help=argparse.SUPPRESS)
    add("--journal", type=Path, help=argparse.SUPPRESS)
    add("--skip", type=int, default=0, help=argparse.SUPPRESS)
    add("--tiny", action="store_true", help=argparse.SUPPRESS)
    add("--plain-memory", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.group:
        tiny, plain = given.tiny, given.plain_memory
        matmul.avoid(*given.without)
        return child(given.group, given.device, given.journal, tiny, given.skip, plain)
    if given.dry_run:
        print(planned(given.only))
        return 0
    if given.out is None:
        parser.error("--out FOLDER says where the tables go")
    if given.device == "cuda" and not (count := _devices()):
        print(f"verify: CuPy sees {count} GPUs here; --device cuda-sim runs in the simulator")
        return 2
    rows, facts = verify(
        given.out, given.device, given.only, given.workers, given.seconds, given.without
    )
    print(report(rows, facts))
    return int(any(row.state in (WRONG, FAILED) for row in rows))


def _devices() -> int:
    from ..backend import cuda_device_count

    return cuda_device_count()


if __name__ == "__main__":
    sys.exit(main())
