"""Compiles kernels for every architecture with NVRTC: needs CuPy, no GPU, no driver.

`python -m tinytensor.cuda.offline [FILE …]` prints what each kernel takes of a multiprocessor,
variant by variant: registers a thread, bytes of declared shared memory, bytes of registers spilled
to memory. The figures are from the assembler's log, which NVRTC gives with `--ptxas-options=-v`.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..backend import cupy
from . import attention, matmul
from .kernels import ONLY, Defines, compile_for, folder
from .rows import DTYPES, choose, element

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")

REALS = ("float", "bf16")
# Widths of rows, from those that a warp holds to those that no block can: what cuda/rows.py chooses
# for them is what kernels over rows are compiled with.
WIDTHS = (100, 768, 1024, 1600, 3072, 12288, 50304)
ROWS = tuple(
    {"real": element(dtype), "TEAM": team, "EACH": each}
    for dtype in DTYPES
    for team, each in sorted({(p.team, p.each) for p in (choose(w, dtype) for w in WIDTHS)})
)
STAGED = tuple({**row, "ALIGNED": 1, "STAGED": 1} for row in ROWS if not row["EACH"])
# File -> sets of macros, of which every combination is a variant; a macro is a tuple of values, and
# a tuple of dicts stands for macros that go together. Matrix products and attention keep their own
# lists;
# a file that is in none has its defaults only.
VARIANTS: dict[str, tuple[dict[str, Sequence[Any]], ...]] = {
    "adamw.cu": (
        {"real": ("float",), "gradient_type": REALS, "KEEP": ("PLAIN",), "ALIGNED": (0, 1)},
        {"real": ("bf16",), "gradient_type": REALS, "KEEP": ("MASTER", "STOCHASTIC"),
         "ALIGNED": (0, 1)},
    ),
    "bias.cu": ({"real": REALS, "into": REALS, "ALIGNED": (0, 1)},),
    "cross_entropy.cu": ({"": ROWS, "ALIGNED": (0, 1)}, {"": STAGED}),
    "dropout.cu": ({"real": REALS, "ALIGNED": (0, 1)},),
    "elementwise.cu": (
        {"real": REALS, "ALIGNED": (0, 1)},
        {"real": REALS, "INPUTS": (3,), "EXPRESSION": ("fmaf(a, b, tanhf(c))",), "ALIGNED": (0, 1)},
    ),
    "embedding.cu": ({"real": REALS, "into": REALS, "ALIGNED": (0, 1)},),
    "gelu.cu": ({"real": REALS, "FORM": ("TANH", "ERF"), "ALIGNED": (0, 1)},),
    "layer_norm.cu": (
        {"": ROWS, "RESIDUAL": (0, 1), "ALIGNED": (0, 1)},
        {"": tuple(row | {"real": "bf16"} for row in ROWS if row["real"] == "float"),
         "stream_type": ("float",), "RESIDUAL": (1,), "ALIGNED": (0, 1)},
    ),
    "linear_cross_entropy.cu": ({"": ROWS, "ALIGNED": (0, 1)},),
    "norm.cu": ({"real": REALS, "ALIGNED": (0, 1)},),
    "sgd.cu": (
        {"real": ("float",), "MOMENTUM": (0, 1), "ALIGNED": (0, 1)},
        {"real": ("bf16",), "gradient_type": REALS, "KEEP": ("MASTER",), "MOMENTUM": (0, 1),
         "ALIGNED": (0, 1)},
    ),
    "softmax.cu": (
        {"": ROWS, "LOG": (0, 1), "MASK": (0,), "ALIGNED": (0, 1)},
        {"": ROWS[:1] + ROWS[-1:], "MASK": (1, 2, 3), "ALIGNED": (1,)},
        {"": STAGED},
    ),
    "top_k.cu": ({"real": REALS, "SMALLEST": (0, 1), "THREADS": (128, 1024)},),
}  # fmt: skip


class Spill(NamedTuple):
    """A kernel that may spill up to `most` bytes, in variants that have `macros`, and why."""

    kernel: str
    macros: dict[str, Any]
    architectures: tuple[str, ...]
    most: int
    reason: str


ACCEPTED_SPILLS = (
    Spill(
        "attention_dkdv",
        {},
        ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"),
        80,
        "the sums of dk and dv take all 255 registers a thread may have; a few words more go to L1",
    ),
    Spill(
        "attention_dq",
        {"HEAD": 128, "DROPOUT": 1},
        ("sm_100",),
        16,
        "the sums and the random numbers take all 255 registers a thread may have",
    ),
    Spill(
        "attention_forward",
        {"HEAD": 16, "DROPOUT": 1},
        ("sm_90a",),
        16,
        "168 registers let three blocks share a multiprocessor, which is worth a few words in L1",
    ),
    Spill(
        "matmul_mma",
        {"TILE_M": 128, "TILE_N": 128, "TRANSPOSE_A": 1},
        ("sm_86", "sm_89", "sm_120"),
        16,
        "128 registers let two blocks share a multiprocessor, which is worth a few words in L1",
    ),
    Spill(
        "softmax_backward",
        {"LOG": 1, "EACH": 4},
        ("sm_80", "sm_86", "sm_89"),
        40,
        "the compiler stops at 72 registers, though a thread may have 255; 10 words go to L1",
    ),
)


class Usage(NamedTuple):
    """What one kernel of one variant takes on one architecture."""

    kernel: str
    registers: int
    shared: int
    stack: int
    spilled: int  # bytes stored and loaded again


def variants(path: Path) -> list[Defines]:
    """The variants of a source file, the one without macros first."""
    found: list[Defines] = [()]
    for table in VARIANTS.get(path.name, ()):
        for values in itertools.product(*table.values()):
            macros: dict[str, Any] = {}
            for key, value in zip(table, values, strict=True):
                macros |= value if isinstance(value, dict) else {key: value}
            found.append(tuple(macros.items()))
    return [*found, *matmul.VARIANTS.get(path.name, ()), *attention.VARIANTS.get(path.name, ())]


def usage(log: str) -> list[Usage]:
    """What the assembler's log says of each kernel."""
    found = []
    for part in re.split(r"Compiling entry function ", log)[1:]:
        name = re.match(r"'(\w+)'", part)
        registers, shared, stack, stores, loads = (
            int(match[1]) if (match := re.search(pattern, part)) else 0
            for pattern in (
                r"Used (\d+) registers",
                r"(\d+) bytes smem",
                r"(\d+) bytes stack frame",
                r"(\d+) bytes spill stores",
                r"(\d+) bytes spill loads",
            )
        )
        if name:
            found.append(Usage(name[1], registers, shared, stack, stores + loads))
    return found


def accepted(use: Usage, defines: Defines, architecture: str) -> str | None:
    """Why this kernel may spill so much in this variant, or None: it may not."""
    given = dict(defines)
    for spill in ACCEPTED_SPILLS:
        if (
            spill.kernel == use.kernel
            and architecture in spill.architectures
            and use.spilled <= spill.most
            and all(given.get(key) == value for key, value in spill.macros.items())
        ):
            return spill.reason
    return None


def jobs(thin: bool = False) -> Iterator[tuple[Path, Defines, tuple[str, ...]]]:
    """Every source, every variant, and the architectures to compile it for.

    `thin`: the variants of a file take turns on the architectures, so that every variant is
    compiled and, of a file with seven or more, every architecture; its defaults for the oldest, the
    newest and that of the H200. A seventh of the time.
    """
    few = (ARCHITECTURES[0], "sm_90a", ARCHITECTURES[-1])
    for path in sorted(folder().glob("*.cu")):
        for i, defines in enumerate(variants(path)):
            if path.name in ONLY:
                yield path, defines, (ONLY[path.name],)
                continue
            one = (ARCHITECTURES[i % len(ARCHITECTURES)],)
            yield path, defines, ARCHITECTURES if not thin else one if defines else few


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tinytensor.cuda.offline", description=__doc__)
    parser.add_argument("files", nargs="*", help="names of sources (all)")
    parser.add_argument("--architecture", choices=ARCHITECTURES, help="only this one (all seven)")
    given = parser.parse_args(arguments)
    sources = {path.name for path, _, _ in jobs()}
    if unknown := set(given.files) - sources:
        parser.error(f"no source is called {min(unknown)}; there are {', '.join(sorted(sources))}")
    try:
        cupy()
    except RuntimeError as error:
        parser.error(str(error))
    spills = 0
    for path, defines, architectures in jobs():
        if given.files and path.name not in given.files:
            continue
        for architecture in architectures:
            if given.architecture not in (None, architecture):
                continue
            _, log = compile_for(path, architecture, defines)
            variant = " ".join(f"{key}={value}" for key, value in defines) or "as it stands"
            for use in usage(log):
                reason = accepted(use, defines, architecture) if use.spilled else None
                spills += bool(use.spilled and reason is None)
                print(
                    f"{use.kernel:28} {architecture:7} {use.registers:4} registers {use.shared:6} "
                    f"shared {use.spilled:5} spilled  {variant}"
                    + (f"  ({reason})" if reason else "  SPILLS" if use.spilled else ""),
                    flush=True,
                )
    if spills:
        print(f"{spills} kernels spill without a reason in ACCEPTED_SPILLS")
    return 1 if spills else 0


if __name__ == "__main__":
    sys.exit(main())
