"""The cases of `verify`: every kernel and every operation that has one, against float64 (CPU).

A group is a function that is given a `Lab` (`verify_lab.py`): where arrays are made, whether the
shapes are GPT-2's or tiny, and how a result is judged. Products and attention are in
`verify_products.py`, optimizers in `verify_optimizer.py`; `verify.py` runs the groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import autograd
from ..backend import DType, bfloat16
from ..ops import elementwise as elementwise_ops
from ..ops import linalg as linalg_ops
from ..ops import network as network_ops
from ..ops.attention import scaled_dot_product_attention
from ..ops.choosing import sample_logits
from ..ops.shaping import concatenate_all, stack_all
from ..ops.sorting import argtopk
from ..random import Draw, keep_mask, normal, uniform, words
from ..random import Generator as RandomGenerator
from ..tensor import OPERATIONS, Operation, as_tensor, reference_ops
from . import elementwise, entropy, network, pointwise, sampling
from .device import SimArray
from .kernels import launch
from .verify_lab import DRAW, DTYPES, FLOAT32, Compared, Host, Lab, name_of, rounding, wide
from .verify_optimizer import optimizer_group
from .verify_products import attention_group, matmul_group, wgmma_group

# Group -> the kernels that its cases run. A test asks for every kernel, and counts the launches.
KERNELS = {
    "matmul": (
        "matmul_naive", "matmul_tiled", "matmul_register_tiled", "matmul_vectorised",
        "matmul_plain", "matmul_mma", "matmul_add_parts",
    ),
    "wgmma": ("matmul_wgmma", "matmul_add_parts"),
    "attention": (
        "attention_forward", "attention_dkdv", "attention_dq", "attention_delta",
        "attention_plain_forward", "attention_plain_dkdv", "attention_plain_dq",
        "attention_decode", "attention_join",
    ),
    "rows": (
        "softmax_forward", "softmax_backward", "layer_norm_forward", "layer_norm_backward",
        "column_sum", "cross_entropy", "cross_entropy_gradient", "linear_cross_entropy_part",
        "linear_cross_entropy_loss", "linear_cross_entropy_gradient",
    ),
    "elementwise": (
        "gelu_forward", "gelu_backward", "dropout", "elementwise", "random_words",
        "set_origin", "random_uniform", "random_normal", "sample_top_k", "top_k",
        "embedding_forward", "embedding_backward", "embedding_join",
    ),
    "optimizer": (
        "adamw", "sgd", "set_factors", "sum_of_squares", "norm_and_scale", "scale_in_place",
    ),
}  # fmt: skip


# --- rows ----------------------------------------------------------------------------------------


def rows_group(lab: Lab) -> None:
    """Softmax, layer norm and cross-entropy over rows that a warp, a block or nobody can hold."""
    widths = [1, 33, 600] if lab.tiny else [1, 31, 768, 1024, 3072, 50_257, 50_304, 100_003]
    for dtype in DTYPES:
        for width in widths:
            rows = 3 if lab.tiny else max(3, min(16_384, 2**23 // width))
            label = f"{name_of(dtype)} {rows}×{width}"
            for log in (False, True):
                lab.check(
                    f"{'log-' if log else ''}softmax {label}",
                    _softmax,
                    rows,
                    width,
                    dtype,
                    log,
                )
            lab.check(
                f"cross-entropy {label}",
                _cross_entropy,
                rows,
                width,
                dtype,
            )
            if width <= 4096:
                for stream in (None, *dict.fromkeys((dtype, FLOAT32))):
                    what = f" of a sum in {name_of(stream)}" if stream else ""
                    lab.check(f"layer norm{what} {label}", _layer_norm, rows, width, dtype, stream)
        lab.check(f"softmax with masks {name_of(dtype)}", _masked, dtype)
        lab.check(f"column sums {name_of(dtype)}", _column_sum, dtype)
        lab.check(f"cross-entropy in parts {name_of(dtype)}", _in_parts, dtype)


def _softmax(lab: Lab, rows: int, width: int, dtype: DType, log: bool) -> Iterator[Compared]:
    x, dy = lab.normal(rows, width, dtype=dtype, scale=3), lab.normal(rows, width, dtype=dtype)
    y = network.softmax(lab.put(x), log=log)
    exact = wide(x) - wide(x).max(axis=1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    exact = exact if log else np.exp(exact)
    yield Compared("y", y, exact, width)
    dx = network.softmax_backward(lab.put(dy), y, log=log)
    given, dy = wide(lab.host(y)), wide(dy)  # as rounded: backward has no better
    if log:
        right = dy - np.exp(given) * dy.sum(axis=1, keepdims=True)
    else:
        right = given * (dy - (dy * given).sum(axis=1, keepdims=True))
    yield Compared("dx", dx, right, width)


def _masked(lab: Lab, dtype: DType) -> Iterator[Compared]:
    T = 20 if lab.tiny else 300
    x, bias = lab.normal(2, T, T, dtype=dtype), lab.normal(T, T, dtype=dtype)
    visible = np.tri(T, dtype=np.bool_)

    def exact(scores: Host) -> Host:
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]

    lower = exact(np.where(visible, wide(x), -np.inf))
    yield Compared("causal", network.softmax(lab.put(x), causal=True), lower, T)
    seen = network.softmax(lab.put(x), visible=lab.put(visible))
    yield Compared("visible", seen, lower, T)
    added = network.softmax(lab.put(x), bias=lab.put(bias))
    yield Compared("bias", added, exact(wide(x) + wide(bias)), T, 1)


def _layer_norm(
    lab: Lab, rows: int, width: int, dtype: DType, stream: DType | None
) -> Iterator[Compared]:
    """Of x, or with `stream`, of x added to a residual stream of that dtype."""
    of_stream = stream or dtype
    x, dy = (lab.normal(rows, width, dtype=dtype) for _ in range(2))
    residual, dtotal = (lab.normal(rows, width, dtype=of_stream) for _ in range(2))
    weight, bias = (lab.normal(width, dtype=of_stream) for _ in range(2))
    saved = network.layer_norm(
        lab.put(x), lab.put(weight), lab.put(bias), residual=lab.put(residual) if stream else None
    )
    total = wide(x) + wide(residual) if stream else wide(x)
    if stream:
        yield Compared("the sum", saved.total, total)
        total = wide(lab.host(saved.total)) if width > 1 else total
    centered = total - total.mean(axis=1, keepdims=True)
    rstd = 1 / np.sqrt((centered**2).mean(axis=1, keepdims=True) + 1e-5)
    n = centered * rstd
    more = 1 if stream else 0  # y is made of the sum before it was rounded
    yield Compared("y", saved.y, n * wide(weight) + wide(bias), width, more)
    found = network.layer_norm_backward(
        lab.put(dy), saved, lab.put(weight), dtotal=lab.put(dtotal) if stream else None
    )
    dn = wide(dy) * wide(weight)
    dx = rstd * (dn - dn.mean(axis=1, keepdims=True) - n * (dn * n).mean(axis=1, keepdims=True))
    if stream:
        dx = dx + wide(dtotal)
    if width > 1:  # the derivative of a row of one number is 0, and all that is left is rounding
        yield Compared("dx", found.dx, dx, width, 1)
        yield Compared("dresidual", found.dresidual, dx, width, 1)
        yield Compared("dweight", found.dweight, (wide(dy) * n).sum(axis=0), rows, 1)
    yield Compared("dbias", found.dbias, wide(dy).sum(axis=0), rows)


def _column_sum(lab: Lab, dtype: DType) -> Iterator[Compared]:
    rows, C = (70, 20) if lab.tiny else (16_384, 3072)
    x = lab.normal(rows, C, dtype=dtype)
    yield Compared("sums", network.column_sum(lab.put(x)), wide(x).sum(axis=0), rows)


def _cross_entropy(lab: Lab, rows: int, V: int, dtype: DType) -> Iterator[Compared]:
    x, scale = lab.normal(rows, V, dtype=dtype, scale=3), lab.normal(rows)
    target = lab.rng.integers(0, V, rows)
    target[::5] = -100
    losses, totals = entropy.cross_entropy(lab.put(x), lab.put(target), label_smoothing=0.1)
    valid, at = target != -100, np.where(target == -100, 0, target)
    log_p = wide(x) - wide(x).max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    q = np.full((rows, V), 0.1 / V)
    q[np.arange(rows), at] += 0.9
    yield Compared("losses", losses, valid * -(q * log_p).sum(axis=1), V, 2)
    dx = entropy.cross_entropy_gradient(
        lab.put(x), totals, lab.put(target), scale=lab.put(scale), label_smoothing=0.1
    )
    exact = (np.exp(log_p) - q) * (valid * wide(scale))[:, None]
    yield Compared("dlogits", dx, exact, V, 4 if V > 1 else 2**10)


def _in_parts(lab: Lab, dtype: DType) -> Iterator[Compared]:
    """`linear_cross_entropy`'s loss, the classes of a row met in three parts."""
    rows, V = (7, 50) if lab.tiny else (512, 50_304)
    x, target = lab.normal(rows, V, dtype=dtype), lab.rng.integers(0, V, rows)
    state: Any = tuple(lab.put(np.full(rows, np.nan, np.float32)) for _ in range(3))
    targets, edges = lab.put(target), [0, V // 3, V // 2, V]
    parts = [lab.put(np.ascontiguousarray(x[:, a:b])) for a, b in zip(edges, edges[1:])]  # noqa: B905, RUF007
    for first, part in zip(edges, parts, strict=False):
        entropy.linear_cross_entropy_part(state, part, targets, first)
    losses, totals = entropy.linear_cross_entropy_loss(state, targets)
    log_p = wide(x) - np.log(np.exp(wide(x)).sum(axis=1, keepdims=True))
    yield Compared("losses", losses, -log_p[np.arange(rows), target], V)
    one = lab.put(np.ones(1, np.float32))
    hot = np.zeros((rows, V))
    hot[np.arange(rows), target] = 1
    for first, part in zip(edges, parts, strict=False):
        entropy.linear_cross_entropy_gradient(part, totals, targets, first, scale=one)
        right = (np.exp(log_p) - hot)[:, first : first + part.shape[1]]
        yield Compared(f"dlogits from {first}", part, right, V, 1)


# --- elementwise, random numbers, embedding ------------------------------------------------------

EXACT: dict[str, Callable[..., Host]] = {
    "add": lambda a, b, c: a + b,
    "subtract": lambda a, b, c: a - b,
    "multiply": lambda a, b, c: a * b,
    "divide": lambda a, b, c: a / b,
    "scale": lambda a, b, c: 1.5 * a,
    "axpy": lambda a, b, c: 1.5 * a + b,
    "multiply_add": lambda a, b, c: a * b + c,
    "divide_backward": lambda a, b, c: -a * b / c,
    "erf": lambda a, b, c: elementwise_ops.erf.reference(a)[0],
    "erf_backward": lambda a, b, c: a * 2 / math.sqrt(math.pi) * np.exp(-b * b),
    "relu": lambda a, b, c: np.maximum(a, 0),
    "relu_backward": lambda a, b, c: a * (b > 0),
    "exp": lambda a, b, c: np.exp(a),
    "tanh": lambda a, b, c: np.tanh(a),
    "tanh_backward": lambda a, b, c: a * (1 - b * b),
    "sigmoid": lambda a, b, c: 1 / (1 + np.exp(-a)),
    "sigmoid_backward": lambda a, b, c: a * b * (1 - b),
    "silu": lambda a, b, c: a / (1 + np.exp(-a)),
    "silu_backward": lambda a, b, c: a * (1 + b * (1 - 1 / (1 + np.exp(-b)))) / (1 + np.exp(-b)),
}


def elementwise_group(lab: Lab) -> None:
    """GELU, dropout, random numbers, embedding, and the family of elementwise expressions."""
    for dtype in DTYPES:
        for form in ("none", "tanh"):
            lab.check(f"GELU {form} {name_of(dtype)}", _gelu, dtype, form)
        lab.check(f"dropout {name_of(dtype)}", _dropout, dtype)
        lab.check(f"embedding {name_of(dtype)}", _embedding, dtype)
        for name in elementwise.FAMILY:
            lab.check(f"{name} {name_of(dtype)}", _family, name, dtype)
    lab.check("random numbers", _random)
    for dtype in DTYPES:
        lab.check(f"tokens {name_of(dtype)}", _tokens, dtype)
        lab.check(f"largest of a row {name_of(dtype)}", _top_k, dtype)


def _gelu(lab: Lab, dtype: DType, form: str) -> Iterator[Compared]:
    shape = (3, 21) if lab.tiny else (4096, 3072)
    x, dy, bias = (lab.normal(*s, dtype=dtype) for s in (shape, shape, shape[1:]))
    z = as_tensor(wide(x) + wide(bias)).requires_grad_()
    with reference_ops():
        y = elementwise_ops.gelu(z, form)
        (dz,) = autograd.grad(y, [z], as_tensor(wide(dy)))
    ours = elementwise.gelu(lab.put(x), lab.put(bias), form)
    yield Compared("y", ours, y.array, 1)
    dx = elementwise.gelu_backward(lab.put(dy), lab.put(x), lab.put(bias), form)
    yield Compared("dx", dx, dz.array, 1)


def _dropout(lab: Lab, dtype: DType) -> Iterator[Compared]:
    x = lab.normal(37 if lab.tiny else 1_000_003, dtype=dtype)
    keep = keep_mask(DRAW, x.shape, 0.3)
    ours = elementwise.dropout(lab.put(x), 0.3, DRAW)
    yield Compared("y", ours, wide(x) * keep / 0.7)
    yield Compared("mask", (lab.host(ours) == 0) * 1.0, ~keep | (x == 0))


def _random(lab: Lab) -> Iterator[Compared]:
    shape = (41,) if lab.tiny else (1_000_003,)
    draw = RandomGenerator(DRAW.key).reserve(1)
    whole = elementwise.random_words(draw, *shape, lab.xp)
    yield Compared("words", (lab.host(whole) == words(draw, *shape)) * 1.0, np.ones(shape))
    flat = elementwise.random_uniform(shape, draw, xp=lab.xp)
    yield Compared("uniform", flat, uniform(shape, generator=RandomGenerator(DRAW.key)))
    bell = elementwise.random_normal(shape, draw, xp=lab.xp)
    yield Compared("normal", bell, normal(shape, generator=RandomGenerator(DRAW.key)))
    origin = lab.xp.empty(2, np.uint64)  # as a captured step draws
    launch("set_origin", (1,), (32,), [origin], [DRAW.key, 3])
    captured = elementwise.random_uniform(shape, Draw(0, DRAW.counter - 3, origin), xp=lab.xp)
    same = elementwise.random_uniform(shape, DRAW, xp=lab.xp)
    yield Compared("uniform, from an origin", captured, lab.host(same))


def _tokens(lab: Lab, dtype: DType) -> Iterator[Compared]:
    """The CPU's tokens: of equal logits, of which bfloat16 has many, the same ones are kept."""
    rows, V = (3, 70) if lab.tiny else (64, 50_257)
    logits = lab.normal(rows, V, dtype=dtype, scale=3.0)
    draws = [RandomGenerator(row).reserve(1) for row in range(rows)]
    for top_k in (0, 1, 50):
        options: dict[str, Any] = {"temperature": 0.8, "top_k": top_k, "draws": draws}
        ours = sample_logits(as_tensor(lab.put(logits)), **options)
        yield Compared(f"top {top_k}", ours.array, sample_logits.reference(logits, **options)[0])


def _top_k(lab: Lab, dtype: DType) -> Iterator[Compared]:
    """The ids that a stable sort puts first: of equal numbers the ones that come first."""
    rows, V = (3, 70) if lab.tiny else (64, 50_257)
    x = lab.normal(rows, V, dtype=dtype)
    for k in (1, 50, min(V, sampling.MOST)):
        for largest in (True, False):
            order = np.argsort(wide(x) * (-1 if largest else 1), axis=1, kind="stable")
            ours = argtopk(as_tensor(lab.put(x)), k, largest=largest)
            wrong = lab.host(ours.array) != order[:, :k]
            yield Compared(f"{k} {'largest' if largest else 'smallest'}", wrong * 1.0, wrong * 0.0)


def _embedding(lab: Lab, dtype: DType) -> Iterator[Compared]:
    V, C, n = (11, 20, 90) if lab.tiny else (50_304, 768, 16_384)
    table, dy = lab.normal(V, C, dtype=dtype), lab.normal(n, C, dtype=dtype)
    ids = np.where(lab.rng.random(n) < 0.3, 3, lab.rng.integers(0, V, n))  # one is met often
    yield Compared("rows", network.embedding(lab.put(table), lab.put(ids)), wide(table)[ids])
    exact = np.zeros((V, C))
    np.add.at(exact, ids, wide(dy))
    ours = network.embedding_backward(lab.put(dy), lab.put(ids), V)
    yield Compared("dtable", ours, exact, n)


def _family(lab: Lab, name: str, dtype: DType) -> Iterator[Compared]:
    number, _ = elementwise.FAMILY[name]
    a, b, c = (lab.normal(45 if lab.tiny else 300_001, dtype=dtype) for _ in range(3))
    if name.startswith("divide"):
        b, c = ((np.abs(x.astype(np.float32)) + 0.5).astype(dtype) for x in (b, c))
    given = [lab.put(x) for x in (a, b, c)[:number]]
    ours = elementwise.apply(name, *given, s=1.5)
    yield Compared("y", ours, EXACT[name](*map(wide, (a, b, c))))


# --- operations ----------------------------------------------------------------------------------


class Call(NamedTuple):
    """An operation with inputs of the given shapes (a host array is taken as it is)."""

    operation: Operation
    inputs: tuple[Any, ...]
    options: dict[str, Any]
    length: int
    roundings: int = 2
    loss: bool = False  # the output is float32, whatever the inputs are


def calls(lab: Lab) -> list[Call]:
    """A case for each operation that has a kernel."""
    B, T, C, V, H = (2, 5, 12, 23, 2) if lab.tiny else (4, 256, 768, 50_304, 12)
    n = B * T
    heads = (B, H, T, C // H)
    ids, target = lab.rng.integers(0, V, (B, T)), lab.rng.integers(0, V, n)
    target[::7] = -100
    seen = lab.rng.random((B, 1, T, T)) < 0.7
    return [
        Call(linalg_ops.matmul, ((B, T, C), (C, 3 * C)), {}, n),
        Call(linalg_ops.matmul, (heads, (B, H, C // H, T)), {}, T),
        Call(linalg_ops.linear, ((B, T, C), (3 * C, C), (3 * C,)), {}, n),
        Call(linalg_ops.linear, ((B, T, C), (4 * C, C), None), {}, n),
        Call(scaled_dot_product_attention, (heads, heads, heads, None), {"is_causal": True}, C, 4),
        Call(scaled_dot_product_attention, (heads, heads, heads, seen), {}, C, 4),
        Call(network_ops.softmax, ((B, T, C),), {}, C, 3),
        Call(network_ops.log_softmax, ((B, T, C),), {}, C, 3),
        Call(network_ops.layer_norm, ((B, T, C), (C,), (C,)), {}, n),
        Call(network_ops.add_layer_norm, ((B, T, C), (B, T, C), (C,), (C,)), {}, n),
        Call(elementwise_ops.gelu, ((B, T, C),), {"approximate": "tanh"}, 1),
        *(Call(curve, ((B, T, C),), {}, 1, 4) for curve in pointwise.CURVES),
        *(Call(both, ((B, T, C), (B, T, C)), {}, 1) for both in pointwise.ARITHMETIC),
        *(Call(join, ((T, C),) * 9, {"axis": 1}, 1) for join in (concatenate_all, stack_all)),
        Call(network_ops.dropout, ((B, T, C),), {"p": 0.2, "draw": DRAW}, 1),
        Call(network_ops.embedding, ((V, C), ids), {}, n),
        Call(network_ops.cross_entropy, ((n, V), target, None), {}, V, 4),
        Call(
            network_ops.linear_cross_entropy,
            ((n, C), (V, C), None, target, None), {"block": max(3, n // 3)}, V, 6, True,
        ),
    ]  # fmt: skip


WITHOUT_GRADIENT = {"argtopk", "sample_logits"}  # the elementwise group has their cases


def operations_group(lab: Lab) -> None:
    """Every operation that has a kernel, as users call it: the output and all gradients."""
    cases = calls(lab)
    for call in cases:
        for dtype in DTYPES:
            shapes = " ".join(str(getattr(x, "shape", x)) for x in call.inputs)
            name = f"{call.operation.__name__} {name_of(dtype)} {shapes}"
            lab.check(name, _operation, call, dtype)
    covered = {call.operation.__name__ for call in cases} | WITHOUT_GRADIENT
    for name in sorted(with_kernels() - covered):
        lab.check(name, _nothing)  # nothing compared: wrong


def _nothing(lab: Lab) -> Iterator[Compared]:
    yield from ()


def with_kernels() -> set[str]:
    """The operations that have a kernel of their own."""
    return {name for name, found in OPERATIONS.items() if SimArray in found.implementations}


def _operation(lab: Lab, call: Call, dtype: DType) -> Iterator[Compared]:
    def made(x: Any) -> Any:
        if not isinstance(x, tuple):
            return x
        scale = 1.0 if len(x) != 2 or x[0] < 10_000 else 0.1
        return lab.normal(*x, dtype=dtype, scale=scale)

    given = [made(x) for x in call.inputs]
    outputs = []
    seeds = np.random.default_rng(1)
    dys: list[Any] = []
    for exact in (False, True):
        tensors = [_tensor(wide(x) if exact else lab.put(x)) for x in given]
        varied = [t for t in tensors if t is not None and t.requires_grad]
        if exact:
            with reference_ops():
                y = call.operation(*tensors, **call.options)
        else:
            y = call.operation(*tensors, **call.options)
        ys = y if isinstance(y, tuple) else (y,)
        dys = dys or [seeds.standard_normal(y.shape).astype(np.float32).astype(dtype) for y in ys]
        cotangents = [as_tensor(wide(dy) if exact else lab.put(dy)) for dy in dys]
        with reference_ops() if exact else autograd.enable_grad():
            grads = autograd.grad(ys, varied, cotangents)
        outputs.append([*ys, *grads])
    for i, (ours, right) in enumerate(zip(*outputs, strict=True)):
        what = f"output {i}" if i < len(dys) else f"gradient {i - len(dys)}"
        wanted = FLOAT32 if call.loss and not i else dtype
        if ours.dtype != wanted:
            raise TypeError(f"{what} of {call.operation.__name__} is {ours.dtype}, not {wanted}")
        if call.loss and not i:  # of logits that were rounded to the inputs' dtype
            yield Compared(what, ours.array, right.array, 1, 0, rounding(dtype))
            continue
        yield Compared(what, ours.array, right.array, call.length, call.roundings)


def _tensor(x: Any) -> Any:
    if x is None:
        return None
    tensor = as_tensor(x)
    return tensor.requires_grad_() if x.dtype.kind == "f" or x.dtype == bfloat16 else tensor


GROUPS: dict[str, Callable[[Lab], None]] = {
    "wgmma": wgmma_group,
    "matmul": matmul_group,
    "attention": attention_group,
    "rows": rows_group,
    "elementwise": elementwise_group,
    "optimizer": optimizer_group,
    "operations": operations_group,
}
