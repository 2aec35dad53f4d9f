"""The cases of `verify` for matrix products and attention.

Large results are compared where they were sampled: whole rows, whole columns, whole heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..backend import DType, bfloat16
from ..random import keep_mask
from . import attention, matmul
from .groups import ABSENT
from .tiles import TURNS, WIDE, Tile, limits
from .verify_lab import DRAW, DTYPES, FLOAT32, Compared, Host, Lab, name_of, wide

TF32 = 2.0**-10

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
    if not lab.tiny:
        lab.check("mma 16384×2304×768", _product, 16384, 2304, 768, bfloat16, "nt", "matmul_mma")
    lab.check("TF32", _tf32)
    lab.check("without tensor cores", _product, 40, 50, 60, bfloat16, "nn", "matmul_plain")
    for rung in matmul.LADDER:
        lab.check(f"ladder: {rung}", _ladder, rung)


def wgmma_group(lab: Lab) -> None:
    """The product of Hopper, in a group of its own: if it is wrong, it may wait for ever."""
    if not limits(lab.xp).hopper:
        needs = "it needs a GPU of compute capability 9.0 (H100, H200)"
        lab.case("(all)", lambda: (ABSENT, needs, {}))
        return
    # The smallest first: one tile of one step, whole tiles, then edges.
    shapes = [(65, 136, 72)] if lab.tiny else [
        (128, 256, 64), (512, 512, 512), (16384, 2304, 768), (1000, 776, 4096),
    ]  # fmt: skip
    for m, n, k in shapes:
        for tile in (WIDE, TURNS):
            name = f"{'turns' if tile.turns else 'halves'}, {m}×{n}×{k}"
            for form in ("nt", "nn", "tn", "tt"):
                how = (m - m % 8, n, k, bfloat16, form, "matmul_wgmma", tile)
                lab.check(f"{name} {form}", _product, *how)
            lab.check(f"{name}: epilogue, batch, parts", _wgmma, min(m, 1000), n, k, tile)
    lab.check("heads of one projection", _heads)


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


def _heads(lab: Lab) -> Iterator[Compared]:
    """Rows are further apart than the matrices that they belong to."""
    x = lab.normal(2, 40 if lab.tiny else 300, 3, 4, 64, dtype=bfloat16)
    q, k = (lab.put(x)[:, :, i].swapaxes(1, 2) for i in (0, 1))
    exact = np.einsum("bthd,bshd->bhts", wide(x[:, :, 0]), wide(x[:, :, 1]))
    scores = matmul.product(q, k.swapaxes(-1, -2), kernel="matmul_wgmma")
    yield Compared("scores", scores, exact, 64)


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
