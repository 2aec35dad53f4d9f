"""Cross-entropy on CUDA arrays, and that of a linear layer whose logits come in parts.

Logits are contiguous, float32 or bfloat16; losses and log-sum-exps are float32.
`kernels/cross_entropy.cu` and `kernels/linear_cross_entropy.cu` say what is computed. `plan`
(threads a row) is chosen by width unless given; `seed` orders the simulator.
"""

from __future__ import annotations

from ..backend import Array, array_module
from .kernels import launch
from .rows import FLOAT32, Plan, choose, contiguous, count_of, staged, variant

__all__ = [
    "cross_entropy",
    "cross_entropy_gradient",
    "linear_cross_entropy_gradient",
    "linear_cross_entropy_loss",
    "linear_cross_entropy_part",
]


def cross_entropy(
    logits: Array,
    targets: Array,
    weight: Array = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    gradient: Array = None,
    scale: Array = None,
    out: tuple[Array, Array] | None = None,
    plan: Plan | None = None,
    seed: int = 0,
) -> tuple[Array, Array]:
    """(losses, log-sum-exps) of logits (rows, V) for targets (rows,), float32, in `out` if given.

    With `gradient` (rows, V), which may be `logits` itself, also dlogits times `scale`, an array of
    one number or of one a row, in the same launch.
    """
    xp = array_module(logits)
    rows, V = logits.shape
    losses, totals = out or (xp.empty(rows, FLOAT32), xp.empty(rows, FLOAT32))
    if weight is not None:
        weight = contiguous(weight.astype(logits.dtype, copy=False))
    if gradient is not None and scale is None:
        scale = xp.ones(1, FLOAT32)
    plan = plan or choose(V, logits.dtype)
    stage, shared_bytes = staged(plan, V, logits) if gradient is not None else ((), 0)
    launch(
        "cross_entropy",
        (plan.blocks(rows),),
        (plan.threads,),
        [losses, totals, gradient, logits, targets, weight, scale],
        [_step(scale, rows), rows, V, ignore_index, label_smoothing],
        seed,
        defines=(*variant(plan, V, logits, gradient), *stage),
        shared_bytes=shared_bytes,
    )
    return losses, totals


def _step(scale: Array, rows: int) -> int:
    """How far apart the scales of neighbouring rows are: 0 if there is one for all."""
    if scale is not None and count_of(scale) not in (1, rows):
        raise ValueError(f"cross_entropy: {count_of(scale)} scales for {rows} rows; 1 or one a row")
    return 0 if scale is None or count_of(scale) == 1 else 1


def cross_entropy_gradient(
    logits: Array,
    log_sum_exps: Array,
    targets: Array,
    weight: Array = None,
    *,
    scale: Array,
    weights: float | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    out: Array = None,
    plan: Plan | None = None,
    seed: int = 0,
) -> Array:
    """dlogits times `scale`, from what `cross_entropy` returned; `weights` is Σ weight, or V."""
    rows, V = logits.shape
    if out is None:
        out = array_module(logits).empty(logits.shape, logits.dtype)
    if weight is not None:
        weight = contiguous(weight.astype(logits.dtype, copy=False))
    plan = plan or choose(V, logits.dtype)
    launch(
        "cross_entropy_gradient",
        (plan.blocks(rows),),
        (plan.threads,),
        [out, logits, log_sum_exps, targets, weight, scale],
        [
            _step(scale, rows),
            rows,
            V,
            ignore_index,
            label_smoothing,
            V if weights is None else weights,
        ],
        seed,
        defines=variant(plan, V, logits, out),
    )
    return out


def linear_cross_entropy_part(
    state: tuple[Array, Array, Array],
    logits: Array,
    targets: Array,
    first: int,
    *,
    plan: Plan | None = None,
    seed: int = 0,
) -> None:
    """Bring (largest, total, at_target), each (rows,) float32, up to date with the logits of
    classes first, first + 1, …; part 0 begins them, and `at_target` is to hold nan before.
    """
    rows, columns = logits.shape
    plan = plan or choose(columns, logits.dtype)
    launch(
        "linear_cross_entropy_part",
        (plan.blocks(rows),),
        (plan.threads,),
        [*state, logits, targets],
        [rows, columns, first],
        seed,
        defines=variant(plan, columns, logits),
    )


def linear_cross_entropy_loss(
    state: tuple[Array, Array, Array], targets: Array, ignore_index: int = -100, seed: int = 0
) -> tuple[Array, Array]:
    """(losses, log-sum-exps) after the last part."""
    xp, rows = array_module(targets), targets.shape[0]
    losses, totals = xp.empty(rows, FLOAT32), xp.empty(rows, FLOAT32)
    arrays = [losses, totals, *state, targets]
    grid, block = (-(-rows // 128),), (128,)
    launch("linear_cross_entropy_loss", grid, block, arrays, [rows, ignore_index], seed)
    return losses, totals


def linear_cross_entropy_gradient(
    logits: Array,
    log_sum_exps: Array,
    targets: Array,
    first: int,
    *,
    scale: Array,
    ignore_index: int = -100,
    plan: Plan | None = None,
    seed: int = 0,
) -> None:
    """Turn a part's logits, in place, into scale · (p - [class is the target])."""
    rows, columns = logits.shape
    plan = plan or choose(columns, logits.dtype)
    launch(
        "linear_cross_entropy_gradient",
        (plan.blocks(rows),),
        (plan.threads,),
        [logits, log_sum_exps, targets, scale],
        [_step(scale, rows), rows, columns, first, ignore_index],
        seed,
        defines=variant(plan, columns, logits),
    )
