"""What `bench` times, group by group: ours and the peers', on the same random numbers.

A peer is given what it documents as its fastest: flash attention, compiled softmax, layer norm and
cross-entropy, fused AdamW, the compiled model. `bench_lab.py` has the clock, `bench_training.py`
the groups that train.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend import Array, DType, bfloat16
from ..random import Draw
from . import attention, elementwise, entropy, matmul, network, optimizer, sampling
from .bench_lab import FLOAT32, LEARNING, Bench, Peers, Timing, against
from .bench_training import losses_group, training_group
from .tiles import TURNS, WIDE, limits

# --- matmul --------------------------------------------------------------------------------------


def matmul_group(bench: Bench) -> None:
    """bfloat16 products of GPT-2's layers, x Wᵀ, beside cuBLAS by CuPy and by PyTorch; then the
    largest of them by each kernel and tile, which is what `tiles.plan_wgmma` is to be judged by.
    """
    rows = [64] if bench.tiny else [16_384, 65_536]
    pairs = [(48, 32)] if bench.tiny else [
        (2304, 768), (768, 768), (3072, 768), (768, 3072), (50_304, 768),
    ]  # fmt: skip
    for m in rows:
        for n, k in pairs:
            bench.case(f"{m}×{n}×{k} x Wᵀ", lambda m=m, n=n, k=k: _matmul(bench, m, n, k, "nt"))  # type: ignore[misc]
    m, n, k = (64, 48, 32) if bench.tiny else (16_384, 3072, 768)
    bench.case(f"{m}×{k}×{n} dy W", lambda: _matmul(bench, m, k, n, "nn"))
    bench.case(f"{n}×{k}×{m} dyᵀ x", lambda: _matmul(bench, n, k, m, "tn"))
    hopper = limits(bench.xp).hopper
    for n, k in pairs:
        bench.case(
            f"{m}×{n}×{k} x Wᵀ by matmul_mma",
            lambda n=n, k=k: _matmul(bench, m, n, k, "nt", kernel="matmul_mma"),  # type: ignore[misc]
        )
        for tile in (WIDE, TURNS) if hopper else ():
            bench.case(
                f"{m}×{n}×{k} x Wᵀ by matmul_wgmma, 128 × {tile.n}",
                lambda n=n, k=k, tile=tile: _matmul(  # type: ignore[misc]
                    bench, m, n, k, "nt", kernel="matmul_wgmma", tile=tile, parts=1
                ),
            )


def _matmul(bench: Bench, m: int, n: int, k: int, form: str, **how: Any) -> dict[str, Any]:
    a = bench.array(*((m, k) if form[0] == "n" else (k, m)))
    b = bench.array(*((k, n) if form[1] == "n" else (n, k)))
    a, b = (x if f == "n" else x.swapaxes(0, 1) for x, f in zip((a, b), form, strict=True))
    out = bench.xp.empty((m, n), bfloat16)
    ours = bench.time(lambda: matmul.product(a, b, out=out, **how))
    peers = Peers()

    def theirs() -> Timing:
        x, y = (
            bench.peer(z if f == "n" else z.swapaxes(0, 1))
            for z, f in zip((a, b), form, strict=True)
        )
        x, y = (z if f == "n" else z.t() for z, f in zip((x, y), form, strict=True))
        other = bench.torch.empty((m, n), dtype=x.dtype, device=x.device)
        return bench.time(lambda: bench.torch.mm(x, y, out=other))

    # CuPy's may not multiply bfloat16; PyTorch's is the same library.
    peers.time("cuBLAS by CuPy", lambda: bench.time(lambda: bench.xp.matmul(a, b)))
    if bench.torch is not None:
        peers.time("cuBLAS by PyTorch", theirs)
    rate = 2e-9 * m * n * k / ours.median
    slow = how.get("kernel") == "matmul_mma" or not limits(bench.xp).hopper
    target = 0.6 if slow else 0.9
    return against(ours, peers, target, teraflops=rate)  # type: ignore[no-any-return]


# --- attention -----------------------------------------------------------------------------------


def attention_group(bench: Bench) -> None:
    """Causal attention beside PyTorch's flash attention: forward, and forward + backward."""
    sizes = (1, 2, 20, 16) if bench.tiny else (16, 12, 1024, 64)
    for backward in (False, True):
        name = f"{sizes} {'forward + backward' if backward else 'forward'}"
        bench.case(name, lambda b=backward: _attention(bench, sizes, b))  # type: ignore[misc]


def _attention(bench: Bench, sizes: tuple[int, ...], backward: bool) -> dict[str, Any]:
    B, H, T, D = sizes
    how = attention.Attention(is_causal=True)
    raw = [bench.array(B, T, H, D) for _ in range(4)]  # as a joint projection leaves them
    q, k, v, dy = (x.swapaxes(1, 2) for x in raw)

    def run() -> None:
        y, totals = attention.forward(q, k, v, how)
        if backward:
            attention.backward(dy, q, k, v, y, totals, how)

    def theirs() -> Timing:
        torch = bench.torch
        given = [bench.peer(x).transpose(1, 2).requires_grad_(backward) for x in raw[:3]]
        cotangent = bench.peer(raw[3]).transpose(1, 2)
        kernels = importlib.import_module(f"{torch.__name__}.nn.attention")
        allowed = [kernels.SDPBackend.FLASH_ATTENTION]
        if bench.where == "cuda-sim":
            allowed.append(kernels.SDPBackend.MATH)

        def other() -> None:
            with kernels.sdpa_kernel(allowed):
                y = torch.nn.functional.scaled_dot_product_attention(*given, is_causal=True)
            if backward:
                torch.autograd.grad(y, given, cotangent)

        return bench.time(other)

    ours, peers = bench.time(run), Peers()
    if bench.torch is not None:
        peers.time("flash attention", theirs)
    flops = B * H * T * T * D * 2 * (3.5 if backward else 1)
    return against(ours, peers, 0.8, teraflops=flops / ours.median / 1e9)  # type: ignore[no-any-return]


# --- rows, and the optimizer: what moves bytes ---------------------------------------------------


def moved(
    bench: Bench, ours: Timing, peers: Peers, size: float, target: float | None = 0.85
) -> Any:
    """The line of a case that is bound by memory: its share of the bandwidth of a copy."""
    copy = bench.bandwidth()
    rate = size / (ours.median / 1e3)
    numbers = against(ours, peers, target, copy=copy, bytes_per_second=rate)
    numbers["to_peers"] = numbers.pop("ratio", None)
    numbers["ratio"] = rate / copy
    numbers["text"] += f"; {rate / 1e12:.2f} of {copy / 1e12:.2f} TB/s"
    return numbers


def rows_group(bench: Bench) -> None:
    """Softmax, layer norm and cross-entropy, forward and backward; dropout, and tokens drawn."""
    bench.case("copy", lambda: _copy(bench))
    for dtype in (bfloat16, FLOAT32):
        label = "bfloat16" if dtype == bfloat16 else "float32"
        for rows, width in [(6, 40)] if bench.tiny else [(196_608, 1024), (16_384, 50_304)]:
            for back in (False, True):
                bench.case(
                    f"softmax{' backward' if back else ''} {label} {rows}×{width}",
                    lambda r=rows, w=width, d=dtype, b=back: _softmax(bench, r, w, d, b),  # type: ignore[misc]
                )
        rows, width = (6, 40) if bench.tiny else (65_536, 768)
        for back in (False, True):
            bench.case(
                f"layer norm{' backward' if back else ''} {label} {rows}×{width}",
                lambda r=rows, w=width, d=dtype, b=back: _layer_norm(bench, r, w, d, b),  # type: ignore[misc]
            )
        rows, width = (6, 40) if bench.tiny else (16_384, 50_304)
        for back in (False, True):
            bench.case(
                f"cross-entropy{' gradient' if back else ''} {label} {rows}×{width}",
                lambda r=rows, w=width, d=dtype, b=back: _cross_entropy(bench, r, w, d, b),  # type: ignore[misc]
            )
    rows, width = (6, 40) if bench.tiny else (65_536, 768)
    bench.case(f"dropout bfloat16 {rows}×{width}", lambda: _dropout(bench, rows, width))
    rows, width, top_k = (6, 40, 5) if bench.tiny else (64, 50_257, 50)
    bench.case(
        f"tokens of the top {top_k} {rows}×{width}", lambda: _tokens(bench, rows, width, top_k)
    )


def _copy(bench: Bench) -> dict[str, Any]:
    rate = bench.bandwidth()
    return {"text": f"{rate / 1e12:.2f} TB/s, read and written", "bytes_per_second": rate}


def _softmax(bench: Bench, rows: int, width: int, dtype: DType, back: bool) -> dict[str, Any]:
    x, peers = bench.array(rows, width, dtype=dtype), Peers()
    dy = bench.array(rows, width, dtype=dtype) if back else None
    if back:
        y = network.softmax(x)
        ours = bench.time(lambda: network.softmax_backward(dy, y))
    else:
        ours = bench.time(lambda: network.softmax(x))
    if bench.torch is not None:
        F = bench.torch.nn.functional
        peers.time("PyTorch", lambda: _torch(bench, lambda z: F.softmax(z, -1), [x], dy))
    return moved(bench, ours, peers, x.nbytes * (3 if back else 2))  # type: ignore[no-any-return]


def _torch(
    bench: Bench, function: Callable[..., Any], inputs: list[Array], dy: Array = None
) -> Timing:
    """PyTorch's compiled forward pass, or with `dy` its compiled backward pass alone."""
    given = [bench.peer(x, gradient=dy is not None) for x in inputs]
    other = bench.compiled(function)
    if dy is None:
        return bench.time(lambda: other(*given))
    y, cotangent = other(*given), bench.peer(dy)
    grad = bench.torch.autograd.grad
    return bench.time(lambda: grad(y, given, cotangent, retain_graph=True))


def _layer_norm(bench: Bench, rows: int, width: int, dtype: DType, back: bool) -> dict[str, Any]:
    x, weight, bias = (bench.array(*s, dtype=dtype) for s in ((rows, width), (width,), (width,)))
    dy, peers = bench.array(rows, width, dtype=dtype) if back else None, Peers()
    if back:
        saved = network.layer_norm(x, weight, bias)
        ours = bench.time(lambda: network.layer_norm_backward(dy, saved, weight))
    else:
        ours = bench.time(lambda: network.layer_norm(x, weight, bias))
    if bench.torch is not None:
        F = bench.torch.nn.functional

        def norm(z: Any, w: Any, b: Any) -> Any:
            return F.layer_norm(z, (width,), w, b)

        peers.time("PyTorch", lambda: _torch(bench, norm, [x, weight, bias], dy))
    return moved(bench, ours, peers, x.nbytes * (3 if back else 2))  # type: ignore[no-any-return]


def _cross_entropy(bench: Bench, rows: int, V: int, dtype: DType, back: bool) -> dict[str, Any]:
    x, target = bench.array(rows, V, dtype=dtype), bench.integers(V, rows)
    peers = Peers()

    def theirs() -> Timing:
        F, z, t = bench.torch.nn.functional, bench.peer(x, gradient=back), bench.peer(target)
        other = bench.compiled(lambda z, t: F.cross_entropy(z.float(), t))
        if not back:
            return bench.time(lambda: other(z, t))
        y, grad = other(z, t), bench.torch.autograd.grad
        return bench.time(lambda: grad(y, z, retain_graph=True))

    if back:
        _, totals = entropy.cross_entropy(x, target)
        scale, out = bench.xp.ones(1, np.float32), bench.xp.empty_like(x)
        ours = bench.time(
            lambda: entropy.cross_entropy_gradient(x, totals, target, scale=scale, out=out)
        )
    else:
        ours = bench.time(lambda: entropy.cross_entropy(x, target))
    if bench.torch is not None:
        peers.time("PyTorch", theirs)
    return moved(bench, ours, peers, x.nbytes * (2 if back else 1))  # type: ignore[no-any-return]


def _dropout(bench: Bench, rows: int, width: int) -> dict[str, Any]:
    x, peers = bench.array(rows, width), Peers()
    ours = bench.time(lambda: elementwise.dropout(x, 0.1, Draw(1, 0)))
    if bench.torch is not None:
        F = bench.torch.nn.functional
        peers.time("PyTorch", lambda: _torch(bench, lambda z: F.dropout(z, 0.1), [x]))
    return moved(bench, ours, peers, x.nbytes * 2, target=None)  # type: ignore[no-any-return]


def _tokens(bench: Bench, rows: int, V: int, top_k: int) -> dict[str, Any]:
    """One launch, beside PyTorch's topk, softmax and multinomial; no target."""
    logits, peers = bench.array(rows, V, dtype=FLOAT32), Peers()
    draws = [Draw(row, 0) for row in range(rows)]
    ours = bench.time(lambda: sampling.cuda_sample_logits(logits, 1.0, top_k, draws))

    def theirs() -> Timing:
        torch, z = bench.torch, bench.peer(logits)

        def sample() -> Any:
            largest, ids = torch.topk(z, top_k)
            return ids.gather(1, torch.multinomial(torch.softmax(largest, -1), 1))

        return bench.time(sample)

    if bench.torch is not None:
        peers.time("PyTorch", theirs)
    return against(ours, peers, None)  # type: ignore[no-any-return]


def optimizer_group(bench: Bench) -> None:
    """AdamW over GPT-2's 124M parameters in one flat buffer, the joint norm, clipping."""
    count = 3000 if bench.tiny else 124_475_904
    bench.case(f"AdamW float32 {count:,}", lambda: _adamw(bench, count))
    bench.case(f"norm float32 {count:,}", lambda: _norm(bench, count))


def _adamw(bench: Bench, count: int) -> dict[str, Any]:
    value, gradient, m = (bench.array(count, dtype=FLOAT32, scale=0.02) for _ in range(3))
    v = m * m
    options: dict[str, Any] = {"step": 10, "weight_decay": 0.1, **LEARNING}
    factors = optimizer.factors_for(value, options)
    ours, peers = bench.time(lambda: optimizer.adamw(value, gradient, m, v, factors)), Peers()

    def theirs() -> Timing:
        p = bench.peer(value, gradient=True)
        p.grad = bench.peer(gradient)
        fused = bench.where != "cuda-sim"
        other = bench.torch.optim.AdamW([p], weight_decay=0.1, fused=fused, **LEARNING)
        return bench.time(other.step)

    if bench.torch is not None:
        peers.time("PyTorch fused", theirs)
    return moved(bench, ours, peers, 4.0 * count * 7)  # type: ignore[no-any-return]


def _norm(bench: Bench, count: int) -> dict[str, Any]:
    gradient = bench.array(count, dtype=FLOAT32)
    ours = bench.time(lambda: optimizer.global_norm([gradient], 1.0))
    return moved(bench, ours, Peers(), 4.0 * count)  # type: ignore[no-any-return]


GROUPS: dict[str, Callable[[Bench], None]] = {
    "matmul": matmul_group,
    "attention": attention_group,
    "rows": rows_group,
    "optimizer": optimizer_group,
    "training": training_group,
    "losses": losses_group,
}
