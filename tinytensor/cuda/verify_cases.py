"""The cases of `verify`: every kernel and every operation that has one, against float64 (CPU).

A group is a function that is given a `Lab`: where arrays are made, whether the shapes are GPT-2's
or tiny, and how a result is judged. Large products and attention are compared where they were
sampled: whole rows, whole columns, whole heads. `verify.py` runs the groups.

The measure is the largest error over the largest exact number, in units of the dtype's rounding
(the distance from 1 to the next number). A sum of n terms may be off by 4 + √n units in float32.
Sums are float32 for bfloat16 too, so there a result may be off by 1 unit, and by 1 more for each
rounding to bfloat16 on the way to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import autograd
from ..backend import Array, DType, bfloat16, cupy
from ..ops import elementwise as elementwise_ops
from ..ops import linalg as linalg_ops
from ..ops import network as network_ops
from ..ops.attention import scaled_dot_product_attention
from ..ops.choosing import sample_logits
from ..random import Draw, keep_mask, normal, uniform, words
from ..random import Generator as RandomGenerator
from ..tensor import OPERATIONS, Operation, as_tensor, reference_ops
from . import attention, elementwise, matmul, network, optimizer, pointwise
from .device import SimArray, sim
from .groups import FAILED, GOOD, LOST, WRONG, Journal
from .kernels import launch
from .tiles import TURNS, WIDE, Tile, limits

Host = np.ndarray[Any, Any]
FLOAT32: DType = np.dtype(np.float32)
DTYPES = (FLOAT32, bfloat16)
TF32 = 2.0**-10
DRAW = Draw(5, 6)

# Group -> the kernels that its cases run. A test asks for every kernel, and counts the launches.
KERNELS = {
    "matmul": (
        "matmul_naive", "matmul_tiled", "matmul_register_tiled", "matmul_vectorised",
        "matmul_plain", "matmul_mma", "matmul_wgmma", "matmul_add_parts",
    ),
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
        "set_origin", "random_uniform", "random_normal", "sample_top_k", "embedding_forward",
        "embedding_backward", "embedding_join",
    ),
    "optimizer": ("adamw", "set_factors", "sum_of_squares", "norm_and_scale", "scale_in_place"),
}  # fmt: skip


class Compared(NamedTuple):
    """A result beside the exact one. `length`: terms of its sums; `roundings`: to its dtype on the
    way; `unit`: its rounding, if not that of its dtype.
    """

    what: str
    ours: Array
    exact: Host
    length: int = 1
    roundings: int = 0
    unit: float = 0.0


def rounding(dtype: DType) -> float:
    return 2.0**-7 if dtype == bfloat16 else 2.0**-23


def judge(ours: Host, exact: Host, length: int, roundings: int, unit: float) -> tuple[float, float]:
    """(error, limit) in units of rounding; an infinite error where the two are not finite alike."""
    wide, exact = ours.astype(np.float64), np.asarray(exact, np.float64)
    if wide.shape != exact.shape:
        return math.inf, 0.0
    finite = np.isfinite(exact)
    strange = np.array_equal(wide[~finite], exact[~finite], equal_nan=True)
    if not strange or not np.isfinite(wide[finite]).all():
        return math.inf, 0.0
    if unit or ours.dtype != bfloat16:
        limit = 4 + roundings + math.sqrt(length)
    else:
        limit = 1 + roundings + math.sqrt(length) / 1024
    size = float(np.abs(exact[finite]).max(initial=0.0)) or 1.0
    error = float(np.abs(wide[finite] - exact[finite]).max(initial=0.0))
    return error / (size * (unit or rounding(ours.dtype))), limit


class Lab:
    """Where a group works: the module `xp` of the device's arrays, tiny shapes or GPT-2's."""

    def __init__(self, journal: Journal, where: str, tiny: bool) -> None:
        self.journal, self.where, self.tiny = journal, where, tiny
        self.xp: Any = sim if where == "cuda-sim" else cupy()
        self.rng = np.random.default_rng(0)

    def check(self, name: str, run: Callable[..., Iterator[Compared]], *args: Any) -> None:
        """One case: every result that `run(self, *args)` yields must be within its limit."""

        def judged() -> tuple[str, str, dict[str, Any]]:
            worst, text, state, found = -1.0, "nothing compared", WRONG, 0
            for what, ours, exact, length, roundings, unit in run(self, *args):
                error, limit = judge(self.host(ours), exact, length, roundings, unit)
                found += 1
                if error / max(limit, 1e-9) > worst:
                    worst = error / max(limit, 1e-9)
                    state = GOOD if error <= limit else WRONG
                    text = f"{what}: {error:.2f} of {limit:.2f} units"
                    numbers = {"error": min(error, 1e30), "limit": limit}
            self.wait()
            return state, text, numbers if found else {}

        row = self.journal.case(name, judged)
        if row is not None and row.state == FAILED:
            try:
                self.wait()
            except Exception:  # the process has lost the GPU; the parent starts another one
                raise SystemExit(LOST) from None

    def wait(self) -> None:
        """Errors of kernels that are still running belong to this case."""
        if self.where != "cuda-sim":
            self.xp.cuda.runtime.deviceSynchronize()

    def host(self, x: Array) -> Host:
        return x if isinstance(x, np.ndarray) else self.xp.asnumpy(x)

    def put(self, x: Any) -> Any:
        """A NumPy array on the device; anything else as it is."""
        return self.xp.asarray(x) if isinstance(x, np.ndarray) else x

    def normal(self, *shape: int, dtype: DType = FLOAT32, scale: float = 1.0) -> Host:
        x = self.rng.standard_normal(shape, np.float32)
        return (x * np.float32(scale) if scale != 1 else x).astype(dtype, copy=False)

    def poisoned(self, shape: tuple[int, ...], dtype: DType) -> Array:
        """An output in which every element that is not written is seen."""
        return self.put(np.full(shape, np.nan, np.float32).astype(dtype))

    def pick(self, n: int, most: int) -> Host:
        """Some of 0, …, n - 1: the first, the last, and others between."""
        if n <= most:
            return np.arange(n)
        inner = np.sort(self.rng.choice(n - 2, most - 2, replace=False) + 1)
        return np.concatenate([[0], inner, [n - 1]])


def wide(x: Any) -> Any:
    return x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype in DTYPES else x


def name_of(dtype: DType) -> str:
    return "bfloat16" if dtype == bfloat16 else "float32"


# --- matmul --------------------------------------------------------------------------------------


def gelu_tanh(x: Host) -> Host:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def matmul_group(lab: Lab) -> None:
    """Products in every form: shapes, transposes, epilogues, batches, TF32, parts, the ladder."""
    shapes = [(1, 1, 1), (17, 33, 5), (65, 63, 130)] if lab.tiny else [
        (16384, 2304, 768), (16384, 768, 768), (16384, 3072, 768), (16384, 768, 3072),
        (16384, 50304, 768), (65536, 50304, 768), (768, 2304, 16384), (1, 50304, 768),
        (1, 1, 1), (129, 127, 65), (1000, 777, 333), (257, 4099, 31),
    ]  # fmt: skip
    for dtype in DTYPES:
        for m, n, k in shapes:
            if m * n > 2**31 and dtype == FLOAT32:
                continue  # the point is the index, and 13 GB show no more than 6.6
            for form in ("nn", "nt", "tn", "tt") if m * n * k < 2**31 else ("nt",):
                lab.check(
                    f"product {name_of(dtype)} {form} {m}×{n}×{k}",
                    _product,
                    m,
                    n,
                    k,
                    dtype,
                    form,
                )
    for dtype in DTYPES:
        m, n, k = (9, 35, 20) if lab.tiny else (1000, 3072, 768)
        lab.check(f"bias and GELU {name_of(dtype)}", _epilogue, m, n, k, dtype)
        lab.check(f"added to what is there {name_of(dtype)}", _added, dtype)
        lab.check(f"batch that broadcasts {name_of(dtype)}", _batched, dtype)
        lab.check(f"sum in parts {name_of(dtype)}", _parts, dtype)
    if limits(lab.xp).hopper:
        shapes = [(65, 136, 72)] if lab.tiny else [(16384, 2304, 768), (1000, 776, 4096)]
        for m, n, k in shapes:
            for tile in (WIDE, TURNS):
                name = f"wgmma, {'turns' if tile.turns else 'halves'}, {m}×{n}×{k}"
                for form in ("nn", "nt", "tn", "tt"):
                    lab.check(
                        f"{name} {form}",
                        _product,
                        m - m % 8,
                        n,
                        k,
                        bfloat16,
                        form,
                        "matmul_wgmma",
                        tile,
                    )
                lab.check(f"{name}: epilogue, batch, parts", _wgmma, min(m, 1000), n, k, tile)
        if not lab.tiny:
            lab.check(
                "mma 16384×2304×768", _product, 16384, 2304, 768, bfloat16, "nt", "matmul_mma"
            )
    lab.check("TF32", _tf32)
    lab.check("without tensor cores", _product, 40, 50, 60, bfloat16, "nn", "matmul_plain")
    for rung in matmul.LADDER:
        lab.check(f"ladder: {rung}", _ladder, rung)


def _factors(
    lab: Lab, m: int, n: int, k: int, dtype: DType, form: str
) -> tuple[Any, Any, Any, Any]:
    a = lab.normal(*((m, k) if form[0] == "n" else (k, m)), dtype=dtype)
    b = lab.normal(*((k, n) if form[1] == "n" else (n, k)), dtype=dtype)
    on = [lab.put(a), lab.put(b)]
    host = [a, b]
    for i in (0, 1):
        if form[i] == "t":
            on[i], host[i] = on[i].swapaxes(0, 1), host[i].swapaxes(0, 1)
    return on[0], on[1], host[0], host[1]


def _product(
    lab: Lab,
    m: int,
    n: int,
    k: int,
    dtype: DType,
    form: str,
    kernel: str | None = None,
    tile: Tile | None = None,
) -> Iterator[Compared]:
    a, b, host_a, host_b = _factors(lab, m, n, k, dtype, form)
    out = lab.xp.empty((m, n), dtype)
    bits = out.view(np.uint16 if dtype == bfloat16 else np.uint32)
    infinity = 0x7F80 if dtype == bfloat16 else 0x7F800000
    bits[...] = infinity + 1  # a nan in each element
    matmul.product(a, b, out=out, kernel=kernel, tile=tile)
    rows, columns = lab.pick(m, max(8, -(-m // 128))), lab.pick(n, 24)
    most = max(1, 2**27 // n)  # of the float64 reference
    rows = rows[:: max(1, -(-len(rows) // most))]
    found = lab.host(bits[lab.put(rows)]).view(dtype)
    yield Compared("rows", found, wide(host_a[rows]) @ wide(host_b), k)
    if m * len(columns) <= 2**24:
        found = lab.host(bits[:, lab.put(columns)]).view(dtype)
        yield Compared("columns", found, wide(host_a) @ wide(host_b[:, columns]), k)
    missing = lab.host((bits == infinity + 1).sum())
    yield Compared("elements not written", missing, np.zeros(()))


def _epilogue(lab: Lab, m: int, n: int, k: int, dtype: DType) -> Iterator[Compared]:
    a, b, bias = (lab.normal(*s, dtype=dtype) for s in ((m, k), (k, n), (n,)))
    before, out = lab.poisoned((m, n), dtype), lab.poisoned((m, n), dtype)
    matmul.product(lab.put(a), lab.put(b), bias=lab.put(bias), gelu=True, before=before, out=out)
    exact = wide(a) @ wide(b) + wide(bias)
    yield Compared("before GELU", before, exact, k)
    yield Compared("after GELU", out, gelu_tanh(exact), k)


def _wgmma(lab: Lab, m: int, n: int, k: int, tile: Tile) -> Iterator[Compared]:
    a, b, bias = (lab.normal(*s, dtype=bfloat16) for s in ((2, m, k), (k, n), (n,)))
    exact = wide(a) @ wide(b) + wide(bias)
    for parts in (1, 2):
        before, out = lab.poisoned((2, m, n), FLOAT32), lab.poisoned((2, m, n), FLOAT32)
        matmul.product(
            lab.put(a), lab.put(b), bias=lab.put(bias), gelu=True, before=before, out=out,
            kernel="matmul_wgmma", tile=tile, parts=parts,
        )  # fmt: skip
        yield Compared(f"before GELU, {parts} parts", before, exact, k)
        yield Compared(f"after GELU, {parts} parts", out, gelu_tanh(exact), k)


def _added(lab: Lab, dtype: DType) -> Iterator[Compared]:
    m, n, k = (12, 20, 33) if lab.tiny else (768, 2304, 4096)
    a, b, c = lab.normal(k, m, dtype=dtype), lab.normal(k, n, dtype=dtype), lab.normal(m, n)
    out = lab.put(c)
    matmul.product(lab.put(a).swapaxes(0, 1), lab.put(b), out=out, accumulate=True)
    yield Compared("float32 result", out, wide(c) + wide(a).T @ wide(b), k)


def _batched(lab: Lab, dtype: DType) -> Iterator[Compared]:
    a, b = lab.normal(3, 1, 17, 24, dtype=dtype), lab.normal(2, 24, 19, dtype=dtype)
    yield Compared("result", matmul.product(lab.put(a), lab.put(b)), wide(a) @ wide(b), 24)


def _parts(lab: Lab, dtype: DType) -> Iterator[Compared]:
    k = 300 if lab.tiny else 20_000
    a, b = lab.normal(30, k, dtype=dtype), lab.normal(k, 40, dtype=dtype)
    exact = wide(a) @ wide(b)
    for parts in (1, 3):
        ours = matmul.product(lab.put(a), lab.put(b), parts=parts)
        yield Compared(f"{parts} parts", ours, exact, k)


def _tf32(lab: Lab) -> Iterator[Compared]:
    m, n, k = (20, 30, 40) if lab.tiny else (1000, 2304, 768)
    a, b = lab.normal(m, k), lab.normal(k, n)
    ours = matmul.product(lab.put(a), lab.put(b), kernel="matmul_mma")
    yield Compared("result", ours, wide(a) @ wide(b), 1, unit=TF32)


def _ladder(lab: Lab, rung: str) -> Iterator[Compared]:
    m, n, k = (20, 36, 17) if lab.tiny else (1000, 777, 333)
    if rung == "matmul_vectorised":
        m, n, k = (-(-x // 4) * 4 for x in (m, n, k))
    a, b = lab.normal(m, k), lab.normal(k, n)
    yield Compared("result", matmul.ladder(rung, lab.put(a), lab.put(b)), wide(a) @ wide(b), k)


# --- attention -----------------------------------------------------------------------------------


def attention_group(lab: Lab) -> None:
    """Heads of several sizes, causal or not, other key lengths, dropout; decoding."""
    shapes = [(1, 2, 20, 20, 16), (1, 1, 9, 35, 24)] if lab.tiny else [
        (16, 12, 1024, 1024, 64), (2, 3, 1, 1, 64), (2, 3, 129, 129, 16), (1, 2, 100, 333, 80),
        (1, 2, 333, 100, 128), (2, 2, 500, 500, 33),
    ]  # fmt: skip
    for dtype in DTYPES:
        for B, H, L, S, D in shapes:
            for causal in (True, False) if lab.tiny or L * S < 2**18 else (True,):
                how = attention.Attention(causal)
                name = f"{name_of(dtype)} {(B, H, L, S, D)}{' causal' if causal else ''}"
                lab.check(
                    name,
                    _attention,
                    (B, H, L, S, D),
                    dtype,
                    how,
                )
        dropped = attention.Attention(True, dropout_p=0.25, draw=DRAW)
        shape = (1, 2, 20, 20, 16) if lab.tiny else (2, 2, 200, 200, 64)
        lab.check(f"{name_of(dtype)} dropout", _attention, shape, dtype, dropped)
        lab.check(f"{name_of(dtype)} decode", _decode, dtype)
    plain = attention.Attention(True, tensor_cores=False)
    shape = (1, 2, 20, 20, 16) if lab.tiny else (2, 2, 200, 200, 64)
    lab.check("bfloat16 without tensor cores", _attention, shape, bfloat16, plain)


def _attention(lab: Lab, sizes: Any, dtype: DType, how: attention.Attention) -> Iterator[Compared]:
    B, H, L, S, D = sizes
    q, dy = (lab.normal(B, L, H, D, dtype=dtype).swapaxes(1, 2) for _ in range(2))
    k, v = (lab.normal(B, S, H, D, dtype=dtype).swapaxes(1, 2) for _ in range(2))
    to = [lab.put(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v, dy)]
    y, log_sum_exp = attention.forward(to[0], to[1], to[2], how)
    grads = attention.backward(to[3], to[0], to[1], to[2], y, log_sum_exp, how)
    heads = [(int(i) // H, int(i) % H) for i in lab.pick(B * H, 6)]
    mask: Any = None
    if how.dropout_p:  # the mask depends on the place in (B, H, L, S)
        mask = keep_mask(how.draw, (B, H, L, S), how.dropout_p) / (1 - how.dropout_p)
    rough = dtype == bfloat16  # weights and their gradients are rounded for the tensor cores
    for b, h in heads:
        one = [wide(x[b, h]) for x in (q, k, v, dy)]
        keep = None if mask is None else mask[b, h]
        exact = _exact_attention(one[0], one[1], one[2], one[3], how.is_causal, keep)
        found = (y[b, h], *(g[b, h] for g in grads))
        for what, ours, right in zip(("y", "dq", "dk", "dv"), found, exact, strict=True):
            yield Compared(f"{what} of head {(b, h)}", ours, right, S + L + D, 4 if rough else 0)


def _exact_attention(
    q: Host, k: Host, v: Host, dy: Host, causal: bool, keep: Host | None
) -> tuple[Host, Host, Host, Host]:
    scale = 1 / math.sqrt(q.shape[1])
    scores = q @ k.T * scale
    if causal:
        scores = np.where(np.tri(*scores.shape, dtype=np.bool_), scores, -np.inf)
    w = np.exp(scores - scores.max(axis=1, keepdims=True))
    w /= w.sum(axis=1, keepdims=True)
    dropped = w if keep is None else w * keep
    dw = dy @ v.T if keep is None else dy @ v.T * keep
    ds = w * (dw - (dw * w).sum(axis=1, keepdims=True)) * scale
    return dropped @ v, ds @ k, ds.T @ q, dropped.T @ dy


def _decode(lab: Lab, dtype: DType) -> Iterator[Compared]:
    B, H, S, D = (1, 2, 50, 16) if lab.tiny else (8, 12, 1000, 64)
    q, k, v = (lab.normal(B, H, n, D, dtype=dtype) for n in (1, S, S))
    y, _ = attention.decode(*map(lab.put, (q, k, v)))
    exact = [
        _exact_attention(*[wide(x[b, h]) for x in (q, k, v, q)], False, None)[0]  # type: ignore[call-arg]
        for b in range(B)
        for h in range(H)
    ]
    yield Compared("y", y, np.stack(exact).reshape(B, H, 1, D), S + D, 1)


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
                for residual in (False, True):
                    lab.check(
                        f"layer norm{' of a sum' if residual else ''} {label}",
                        _layer_norm,
                        rows,
                        width,
                        dtype,
                        residual,
                    )
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
    lab: Lab, rows: int, width: int, dtype: DType, residual: bool
) -> Iterator[Compared]:
    x, branch, dy, dtotal = (lab.normal(rows, width, dtype=dtype) for _ in range(4))
    weight, bias = lab.normal(width, dtype=dtype), lab.normal(width, dtype=dtype)
    saved = network.layer_norm(
        lab.put(x), lab.put(weight), lab.put(bias), branch=lab.put(branch) if residual else None
    )
    total = wide(x) + wide(branch) if residual else wide(x)
    if residual:
        yield Compared("the sum", saved.total, total)
        total = wide(lab.host(saved.total)) if width > 1 else total
    centered = total - total.mean(axis=1, keepdims=True)
    rstd = 1 / np.sqrt((centered**2).mean(axis=1, keepdims=True) + 1e-5)
    n = centered * rstd
    more = 1 if residual else 0  # y is made of the sum before it was rounded
    yield Compared("y", saved.y, n * wide(weight) + wide(bias), width, more)
    found = network.layer_norm_backward(
        lab.put(dy), saved, lab.put(weight), dtotal=lab.put(dtotal) if residual else None
    )
    dn = wide(dy) * wide(weight)
    dx = rstd * (dn - dn.mean(axis=1, keepdims=True) - n * (dn * n).mean(axis=1, keepdims=True))
    if residual:
        dx = dx + wide(dtotal)
    if width > 1:  # the derivative of a row of one number is 0, and all that is left is rounding
        yield Compared("dx", found[0], dx, width, 1)
        yield Compared("dweight", found[1], (wide(dy) * n).sum(axis=0), rows, 1)
    yield Compared("dbias", found[2], wide(dy).sum(axis=0), rows)


def _column_sum(lab: Lab, dtype: DType) -> Iterator[Compared]:
    rows, C = (70, 20) if lab.tiny else (16_384, 3072)
    x = lab.normal(rows, C, dtype=dtype)
    yield Compared("sums", network.column_sum(lab.put(x)), wide(x).sum(axis=0), rows)


def _cross_entropy(lab: Lab, rows: int, V: int, dtype: DType) -> Iterator[Compared]:
    x, scale = lab.normal(rows, V, dtype=dtype, scale=3), lab.normal(rows)
    target = lab.rng.integers(0, V, rows)
    target[::5] = -100
    losses, totals = network.cross_entropy(lab.put(x), lab.put(target), label_smoothing=0.1)
    valid, at = target != -100, np.where(target == -100, 0, target)
    log_p = wide(x) - wide(x).max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    q = np.full((rows, V), 0.1 / V)
    q[np.arange(rows), at] += 0.9
    yield Compared("losses", losses, valid * -(q * log_p).sum(axis=1), V, 2)
    dx = network.cross_entropy_gradient(
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
        network.linear_cross_entropy_part(state, part, targets, first)
    losses, totals = network.linear_cross_entropy_loss(state, targets)
    log_p = wide(x) - np.log(np.exp(wide(x)).sum(axis=1, keepdims=True))
    yield Compared("losses", losses, -log_p[np.arange(rows), target], V)
    one = lab.put(np.ones(1, np.float32))
    hot = np.zeros((rows, V))
    hot[np.arange(rows), target] = 1
    for first, part in zip(edges, parts, strict=False):
        network.linear_cross_entropy_gradient(part, totals, targets, first, scale=one)
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


# --- the optimizer -------------------------------------------------------------------------------


def optimizer_group(lab: Lab) -> None:
    """AdamW in its three forms, the joint norm, clipping."""
    for dtype, keep in ((FLOAT32, "plain"), (bfloat16, "master"), (bfloat16, "stochastic")):
        lab.check(f"AdamW {keep}", _adamw, dtype, keep)
    for dtype in DTYPES:
        lab.check(f"norm and clipping {name_of(dtype)}", _norm, dtype)


def _adamw(lab: Lab, dtype: DType, keep: str) -> Iterator[Compared]:
    from ..optim.adamw import adamw_reference

    count = 75 if lab.tiny else 5_000_011
    options: dict[str, Any] = {
        "step": 3, "lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1,
    }  # fmt: skip
    value, gradient = lab.normal(count, dtype=dtype), lab.normal(count, dtype=dtype)
    m, v = lab.normal(count), np.abs(lab.normal(count)) + np.float32(0.1)
    master = value.astype(np.float32) if keep == "master" else None
    on = [lab.put(x) for x in (value, gradient, m, v)]
    held = lab.put(master)
    factors = optimizer.factors_for(on[0], options)
    rounded_by = DRAW if keep == "stochastic" else None
    optimizer.adamw(on[0], on[1], on[2], on[3], factors, master=held, draw=rounded_by)
    exact = adamw_reference(*map(wide, (value, gradient, m, v)), **options)
    if keep == "master":
        yield Compared("master weights", held, exact[0], 16)
    # Rounding at random goes up or down: a whole unit.
    yield Compared("weights", on[0], exact[0], 16, 1 if keep == "stochastic" else 0)
    yield Compared("mean", on[2], exact[1], 16)
    yield Compared("mean square", on[3], exact[2], 16)


def _norm(lab: Lab, dtype: DType) -> Iterator[Compared]:
    arrays = [lab.normal(n, dtype=dtype) for n in ((50, 7) if lab.tiny else (3_000_001, 77))]
    on = [lab.put(x) for x in arrays]
    total = math.sqrt(sum((wide(x) ** 2).sum() for x in arrays))
    norm, scale = optimizer.global_norm(on, 1.0)
    yield Compared("norm", norm, np.array([total]))
    yield Compared("scale", scale, np.array([min(1.0, 1.0 / (total + 1e-6))]))
    optimizer.scale_in_place(on[0], scale)
    yield Compared("clipped", on[0], wide(arrays[0]) / (total + 1e-6), 1)


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
        Call(elementwise_ops.gelu, ((B, T, C),), {"approximate": "tanh"}, 1),
        *(Call(curve, ((B, T, C),), {}, 1, 4) for curve in pointwise.CURVES),
        *(Call(both, ((B, T, C), (B, T, C)), {}, 1) for both in pointwise.ARITHMETIC),
        Call(network_ops.dropout, ((B, T, C),), {"p": 0.2, "draw": DRAW}, 1),
        Call(network_ops.embedding, ((V, C), ids), {}, n),
        Call(network_ops.cross_entropy, ((n, V), target, None), {}, V, 4),
        Call(
            network_ops.linear_cross_entropy,
            ((n, C), (V, C), None, target, None), {"block": max(3, n // 3)}, V, 6, True,
        ),
    ]  # fmt: skip


WITHOUT_GRADIENT = {"sample_logits"}  # the elementwise group has its case


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
    dy: Any = None
    for exact in (False, True):
        tensors = [_tensor(wide(x) if exact else lab.put(x)) for x in given]
        varied = [t for t in tensors if t is not None and t.requires_grad]
        if exact:
            with reference_ops():
                y = call.operation(*tensors, **call.options)
        else:
            y = call.operation(*tensors, **call.options)
        if dy is None:
            dy = seeds.standard_normal(y.shape).astype(np.float32).astype(dtype)
        cotangent = as_tensor(wide(dy) if exact else lab.put(dy))
        with reference_ops() if exact else autograd.enable_grad():
            grads = autograd.grad(y, varied, cotangent)
        outputs.append([y, *grads])
    for i, (ours, right) in enumerate(zip(*outputs, strict=True)):
        what = "y" if not i else f"gradient {i}"
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
    "matmul": matmul_group,
    "attention": attention_group,
    "rows": rows_group,
    "elementwise": elementwise_group,
    "optimizer": optimizer_group,
    "operations": operations_group,
}
