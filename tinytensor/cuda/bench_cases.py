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
from .bench_lab import FLOAT32, LEARNING, Bench, Peers, Timing, Work, against
from .bench_training import losses_group, training_group
from .tiles import TURNS, WIDE

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
            bench.case(
                f"{m}×{n}×{k} x Wᵀ",
                lambda m=m, n=n, k=k: _matmul(bench, m, n, k, "nt"),  # type: ignore[misc]
                _product(m, n, k, "nt"),
            )
    m, n, k = (64, 48, 32) if bench.tiny else (16_384, 3072, 768)
    bench.case(f"{m}×{k}×{n} dy W", lambda: _matmul(bench, m, k, n, "nn"), _product(m, n, k, "nn"))
    bench.case(f"{n}×{k}×{m} dyᵀ x", lambda: _matmul(bench, n, k, m, "tn"), _product(m, n, k, "tn"))
    for n, k in pairs:
        bench.case(
            f"{m}×{n}×{k} x Wᵀ by matmul_mma",
            lambda n=n, k=k: _matmul(bench, m, n, k, "nt", kernel="matmul_mma"),  # type: ignore[misc]
            _product(m, n, k, "matmul_mma nt"),
        )
        for tile in (WIDE, TURNS) if bench.hopper else ():
            bench.case(
                f"{m}×{n}×{k} x Wᵀ by matmul_wgmma, 128 × {tile.n}",
                lambda n=n, k=k, tile=tile: _matmul(  # type: ignore[misc]
                    bench, m, n, k, "nt", kernel="matmul_wgmma", tile=tile, parts=1
                ),
                _product(m, n, k, f"128 × {tile.n} nt"),
            )


def _product(m: int, n: int, k: int, kernel: str) -> Work:
    moved = 2.0 * (m * n + m * k + n * k)
    return Work(moved, 2.0 * m * n * k, peers=2, kernels=((kernel, 1),))


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
    slow = how.get("kernel") == "matmul_mma" or not bench.hopper
    target = 0.6 if slow else 0.9
    return against(ours, peers, target, teraflops=rate)  # type: ignore[no-any-return]


# --- attention -----------------------------------------------------------------------------------


def attention_group(bench: Bench) -> None:
    """Causal attention beside PyTorch's flash attention: forward, and forward + backward."""
    sizes = (1, 2, 20, 16) if bench.tiny else (16, 12, 1024, 64)
    for backward in (False, True):
        name = f"{sizes} {'forward + backward' if backward else 'forward'}"
        kernels = (("forward", 1), ("backward", 3)) if backward else (("forward", 1),)
        work = Work(flops=_flops(sizes, backward), kernels=kernels)
        bench.case(name, lambda b=backward: _attention(bench, sizes, b), work)  # type: ignore[misc]


def _flops(sizes: tuple[int, ...], backward: bool) -> float:
    B, H, T, D = sizes
    return B * H * T * T * D * 2 * (3.5 if backward else 1)


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

    ours, peers, held = bench.time(run), Peers(), bench.memory(run)
    if bench.torch is not None:
        peers.time("flash attention", theirs)
    rate, weights = _flops(sizes, backward) / ours.median / 1e9, 2.0 * B * H * T * T
    numbers = against(ours, peers, 0.8, teraflops=rate)
    if held is not None:
        numbers |= {"held": held, "weights": weights}
        numbers["text"] += f"; holds {held / 1e6:.0f} MB, of T × T would be {weights / 1e6:.0f}"
    return numbers  # type: ignore[no-any-return]


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
    bench.case("copy", lambda: _copy(bench), Work(2.0**31, peers=0))
    for dtype in (bfloat16, FLOAT32):
        label = "bfloat16" if dtype == bfloat16 else "float32"
        for rows, width in [(6, 40)] if bench.tiny else [(196_608, 1024), (16_384, 50_304)]:
            for back in (False, True):
                bench.case(
                    f"softmax{' backward' if back else ''} {label} {rows}×{width}",
                    lambda r=rows, w=width, d=dtype, b=back: _softmax(bench, r, w, d, b),  # type: ignore[misc]
                    _passes(3 if back else 2, rows, width, dtype),
                )
        rows, width = (6, 40) if bench.tiny else (65_536, 768)
        for back in (False, True):
            bench.case(
                f"layer norm{' backward' if back else ''} {label} {rows}×{width}",
                lambda r=rows, w=width, d=dtype, b=back: _layer_norm(bench, r, w, d, b),  # type: ignore[misc]
                _passes(3 if back else 2, rows, width, dtype),
            )
            if dtype == bfloat16:
                bench.case(
                    f"layer norm of a sum{' backward' if back else ''}, {label} in a float32 "
                    f"stream {rows}×{width}",
                    lambda r=rows, w=width, b=back: _add_layer_norm(bench, r, w, b),  # type: ignore[misc]
                    _passes(4 if back else 3, rows, width, FLOAT32),
                )
        rows, width = (6, 40) if bench.tiny else (16_384, 50_304)
        for back in (False, True):
            bench.case(
                f"cross-entropy{' gradient' if back else ''} {label} {rows}×{width}",
                lambda r=rows, w=width, d=dtype, b=back: _cross_entropy(bench, r, w, d, b),  # type: ignore[misc]
                _passes(2 if back else 1, rows, width, dtype),
            )
    rows, width = (6, 40) if bench.tiny else (65_536, 768)
    bench.case(
        f"dropout bfloat16 {rows}×{width}",
        lambda: _dropout(bench, rows, width),
        _passes(2, rows, width, bfloat16),
    )
    rows, width, top_k = (6, 40, 5) if bench.tiny else (64, 50_257, 50)
    bench.case(
        f"tokens of the top {top_k} {rows}×{width}",
        lambda: _tokens(bench, rows, width, top_k),
        _passes(1, rows, width, FLOAT32)._replace(graphs=0),
    )


def _passes(number: int, rows: int, width: int, dtype: DType) -> Work:
    """A case that reads and writes its array so often, beside a function that PyTorch compiles."""
    size = float(number * rows * width * dtype.itemsize)
    return Work(size, graphs=1, kernels=((f"{number} {width} {dtype}", 1),))


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


def _add_layer_norm(bench: Bench, rows: int, width: int, back: bool) -> dict[str, Any]:
    """What stands between two layers under autocast: it reads and writes each array once."""
    x, dy = (bench.array(rows, width, dtype=bfloat16) for _ in range(2))
    residual, dsum = (bench.array(rows, width, dtype=FLOAT32) for _ in range(2))
    weight, bias = (bench.array(width, dtype=FLOAT32) for _ in range(2))
    peers = Peers()
    if back:
        saved = network.layer_norm(x, weight, bias, residual=residual)
        ours = bench.time(lambda: network.layer_norm_backward(dy, saved, weight, dtotal=dsum))
    else:
        ours = bench.time(lambda: network.layer_norm(x, weight, bias, residual=residual))
    if bench.torch is not None and not back:
        F = bench.torch.nn.functional

        def norm(z: Any, r: Any, w: Any, b: Any) -> Any:
            total = z + r
            return total, F.layer_norm(total, (width,), w, b).to(z.dtype)

        peers.time("PyTorch", lambda: _torch(bench, norm, [x, residual, weight, bias]))
    size = x.nbytes * 2 + residual.nbytes * (3 if back else 2)
    return moved(bench, ours, peers, size)  # type: ignore[no-any-return]


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
    bench.case(f"AdamW float32 {count:,}", lambda: _adamw(bench, count), Work(28.0 * count))
    work = Work(4.0 * count, peers=0, kernels=(("norm", 2),))
    bench.case(f"norm float32 {count:,}", lambda: _norm(bench, count), work)


def _adamw(bench: Bench, count: int) -> dict[str, Any]:
    value, gradient, m = (bench.array(count, dtype=FLOAT32, scale=0.02) for _ in range(3))
    v = m * m
    options: dict[str, Any] = {"step": 10, "weight_decay": 0.1, **LEARNING}
    factors = optimizer.factors_for(value, optimizer.adamw_factors, options)
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
