"""What was asked of the kernels beside what `bench` found: one line for each target.

A target that several cases stand for is met if the worst of them meets it. The Shakespeare recipe
is measured by `examples/shakespeare_gpu.py`; with `--out` the same folder its figures are read from
there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .groups import FAILED, Row, table

__all__ = ["MET", "MISSED", "UNKNOWN", "required", "required_table"]

MET, MISSED, UNKNOWN = "met", "MISSED", "not measured"

Line = tuple[str, str, str, str]  # what, measured, target, verdict


class Target(NamedTuple):
    """A ratio that the cases of a group must reach."""

    what: str
    group: str
    of: Callable[[str], bool]  # a case's name
    least: float


TARGETS = (
    Target("bfloat16 products by mma.sync / cuBLAS", "matmul", lambda c: "matmul_mma" in c, 0.6),
    Target("bfloat16 products by wgmma / cuBLAS", "matmul", lambda c: " by " not in c, 0.9),
    Target(
        "causal attention forward / PyTorch's flash attention", "attention",
        lambda c: "backward" not in c, 0.8,
    ),
    Target(
        "causal attention forward + backward / flash attention", "attention",
        lambda c: "backward" in c, 0.8,
    ),
    Target("softmax / copy bandwidth", "rows", lambda c: c.startswith("softmax"), 0.85),
    Target("layer norm / copy bandwidth", "rows", lambda c: "layer norm" in c, 0.85),
    Target("cross-entropy / copy bandwidth", "rows", lambda c: c.startswith("cross-"), 0.85),
    Target("AdamW / copy bandwidth", "optimizer", lambda c: c.startswith("AdamW"), 0.85),
    Target("GPT-2 124M, tokens a second / PyTorch compiled", "training", lambda c: True, 0.8),
)  # fmt: skip


def required(rows: Sequence[Row], recipe: dict[str, Any]) -> list[Line]:
    """A line for each target: what, the worst figure, the target, and whether it is met."""
    lines = [_worst(target, rows) for target in TARGETS]
    lines.insert(4, _held(rows))
    lines.append(_losses(rows))
    recipe_says = "examples/shakespeare_gpu.py"
    for what, key, most, unit in (
        ("Shakespeare recipe, best validation loss", "best", 1.48, ""),
        ("Shakespeare recipe, time", "seconds", 180.0, " s"),
        ("first 20 steps, GPU and CPU apart in float32", "apart", 1e-4, ""),
    ):
        value = recipe.get(key)
        found = f"{value:.4g}{unit}" if value is not None else recipe_says
        lines.append(
            (what, found, f"≤ {most:g}{unit}", _verdict(value, value is not None and value <= most))
        )
    return lines


def _verdict(value: Any, good: bool) -> str:
    return UNKNOWN if value is None else MET if good else MISSED


def _worst(target: Target, rows: Sequence[Row]) -> Line:
    mine = [row for row in rows if row.group == target.group and target.of(row.case)]
    ratios = [
        (row.numbers["ratio"], row.case)
        for row in mine
        if "target" in row.numbers and "ratio" in row.numbers
    ]
    failed = [row for row in mine if row.state == FAILED]
    least = f"≥ {target.least:.2f}"
    if failed:
        return target.what, f"failed: {failed[0].case}", least, MISSED
    if not ratios:
        return target.what, "", least, UNKNOWN
    ratio, case = min(ratios)
    return target.what, f"{ratio:.2f} ({case})", least, _verdict(ratio, ratio >= target.least)


def _held(rows: Sequence[Row]) -> Line:
    """Attention's memory: less than weights of T × T would take."""
    what, limit = "causal attention, memory beside its inputs", "< T × T"
    found = [r.numbers for r in rows if r.group == "attention" and "held" in r.numbers]
    if not found:
        return what, "", limit, UNKNOWN
    worst = max(found, key=lambda numbers: float(numbers["held"]))
    held, weights = float(worst["held"]), float(worst["weights"])
    text = f"{held / 1e6:.0f} MB, T × T {weights / 1e6:.0f} MB"
    return what, text, limit, _verdict(held, held < weights)


def _losses(rows: Sequence[Row]) -> Line:
    what, limit = "100 losses, bfloat16 and float32 apart", "≤ 1 %"
    mine = [row for row in rows if row.group == "losses" and "apart" in row.numbers]
    if not mine:
        return what, "", limit, UNKNOWN
    apart = float(mine[0].numbers["apart"])
    return what, f"{100 * apart:.2f} %", limit, _verdict(apart, apart <= 0.01)


def required_table(rows: Sequence[Row], folder: Path | None, markdown: bool) -> str:
    """The lines as a table; the recipe's figures from `folder`, if they are there."""
    path = folder / "measured.json" if folder is not None else None
    recipe = {}
    if path is not None and path.is_file():
        recipe = json.loads(path.read_text(encoding="utf-8"))
    return table(("required", "measured", "target", ""), required(rows, recipe), markdown)
