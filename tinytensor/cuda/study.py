"""Why the next rung of the matmul ladder is faster: `python -m tinytensor.cuda.study matmul_tiled
--m 64`.

Runs the rungs in the simulator, and prints what each asks of the memory for the same product. A GPU
does some 200 multiply-adds in the time that it takes to move one sector of 32 bytes: the fewer
sectors, and the fewer passes over shared memory, a multiply-add costs, the nearer a kernel comes to
the speed of arithmetic.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from ..backend import Array, array_module, bfloat16
from . import matmul
from .counters import Counts, counting
from .device import sim

# What a rung does better than the one before, in a line.
REASONS = {
    "matmul_naive": "each operand is read from global memory for each multiply-add",
    "matmul_tiled": "a tile of 16 × 16 is read once and used by 16 threads",
    "matmul_register_tiled": "a value read from shared memory is used 4 times from registers",
    "matmul_vectorised": "16 bytes a load: a quarter of the instructions, 8 × 8 a thread",
    "matmul_mma": "tensor cores: a warp instruction multiplies 16 × 8 × 8 or more",
    "matmul_wgmma": (
        "four warps multiply 64 × 256 × 16 straight from shared memory, which one thread has the "
        "copy engine fill; its factors are bfloat16, half the bytes"
    ),
}
# What rounding the factors costs: TF32 has 10 bits of fraction, bfloat16 7, the other rungs 23.
ROUNDED = {"matmul_mma": 2e-3, "matmul_wgmma": 1.6e-2}


def rungs() -> dict[str, Callable[[Array, Array], Array]]:
    """Name -> a function that multiplies two matrices by that kernel."""
    found: dict[str, Callable[[Array, Array], Array]] = {
        name: partial(matmul.ladder, name) for name in matmul.LADDER
    }
    found["matmul_mma"] = lambda a, b: matmul.product(a, b, kernel="matmul_mma", parts=1)
    found["matmul_wgmma"] = lambda a, b: matmul.product(
        a.astype(bfloat16), b.astype(bfloat16), kernel="matmul_wgmma", parts=1, dtype=a.dtype
    )
    return found


def takes(name: str, n: int, k: int) -> bool:
    """Whether that rung multiplies such matrices: the copy engine wants rows of 16 bytes."""
    return name != "matmul_wgmma" or (n % 8 == 0 and k % 8 == 0)


def study(
    m: int, n: int, k: int, names: Sequence[str] | None = None, blocks: int = 4
) -> dict[str, Counts]:
    """The counters of the product of an m × k and a k × n matrix, by each rung of the ladder."""
    rng = np.random.default_rng(0)
    a = sim.asarray(rng.standard_normal((m, k), np.float32))
    b = sim.asarray(rng.standard_normal((k, n), np.float32))
    found = {}
    for name, multiply in rungs().items():
        if (names is not None and name not in names) or not takes(name, n, k):
            continue
        with counting(blocks) as launches:
            c = multiply(a, b)
        error = array_module(c).abs(c - a @ b).max().item()
        limit = ROUNDED.get(name, 1e-6) * 8 * k**0.5
        if not error < limit:
            raise ArithmeticError(f"{name}: the product is wrong by {error:.3g}")
        found[name] = launches[0]
    return found


def table(found: dict[str, Counts], m: int, n: int, k: int, chosen: str = "") -> str:
    """The counters, a rung a line, per 1,000 multiply-adds."""
    thousands = m * n * k / 1000
    heads = (
        "", "sectors", "of them used", "global instr.", "shared passes", "conflicts", "lanes",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = [heads]
    for name, c in found.items():
        used = c.bytes / max(1, 32 * c.sectors)
        rows.append(
            (
                ("→ " if name == chosen else "  ") + name,
                f"{c.per_launch(c.sectors) / thousands:.1f}",
                "all" if used >= 0.995 else f"{used:.0%}",
                f"{c.per_launch(c.loads + c.stores) / thousands:.2f}",
                f"{c.per_launch(c.passes) / thousands:.2f}",
                f"{c.per_launch(c.conflicts) / thousands:.2f}",
                f"{c.active:.0%}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tinytensor.cuda.study", description=__doc__)
    parser.add_argument("kernel", nargs="?", default="", help=f"one of {', '.join(rungs())}")
    parser.add_argument("--m", type=int, default=64, help="rows of A and C")
    parser.add_argument("--n", type=int, help="columns of B and C (m)")
    parser.add_argument("--k", type=int, help="columns of A, rows of B (m)")
    parser.add_argument("--blocks", type=int, default=2, help="blocks to count of each kernel")
    given = parser.parse_args(arguments)
    m, n, k = given.m, given.n or given.m, given.k or given.m
    if given.kernel and given.kernel not in rungs():
        parser.error(f"there is no rung {given.kernel!r}; there are {', '.join(rungs())}")
    if min(m, n, k, given.blocks) < 1:
        parser.error("sizes must be at least 1")
    if given.kernel and not takes(given.kernel, n, k):
        parser.error(f"{given.kernel} takes n and k that are multiples of 8, not {n} and {k}")
    found = study(m, n, k, blocks=given.blocks)
    print(f"C = A B, {m} × {n} × {k}, per 1,000 multiply-adds:\n")
    print(table(found, m, n, k, given.kernel))
    print()
    names = list(found)
    for name in names if not given.kernel else names[names.index(given.kernel) :][:2]:
        print(f"{name}: {REASONS[name]}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
