"""What `bench` times, group by group: ours and the peers', on the same random numbers.

PyTorch runs on CUDA's default stream, as CuPy does, so that one pair of events times either. What
it is given is what it documents as its fastest: flash attention, compiled softmax, layer norm and
cross-entropy, fused AdamW, the compiled model.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import itertools
import math
import statistics
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, DType, bfloat16, cupy
from ..random import Draw
from ..tensor import as_tensor
from . import attention, elementwise, layers, matmul, network, optimizer
from .device import sim
from .graph import graph
from .groups import GOOD, Journal
from .small_gpt import GPT2, TINY, Sizes, model_class, parameter_groups
from .tiles import TURNS, WIDE, limits

FLOAT32: DType = np.dtype(np.float32)
FLUSH_BYTES = 1 << 30  # several times any L2; takes about as long as Python asking for a kernel
LEARNING = {"lr": 6e-4, "betas": (0.9, 0.95), "eps": 1e-8}
assert layers  # imported to register its kernels


class Timing(NamedTuple):
    """Milliseconds: the median, the quartiles, and how long asking took."""

    median: float
    low: float
    high: float
    asking: float


class Bench:
    """Where a group works: the device, the clock, PyTorch if there is one."""

    def __init__(self, journal: Journal, where: str, tiny: bool) -> None:
        self.journal, self.where, self.tiny = journal, where, tiny
        self.xp: Any = sim if where == "cuda-sim" else cupy()
        self.rng = np.random.default_rng(0)
        self.draws = 0

    @cached_property
    def torch(self) -> Any:
        """PyTorch, or None: a yardstick that need not be there."""
        name = "torch"
        if importlib.util.find_spec(name) is None:
            return None
        library = importlib.import_module(name)
        if self.where != "cuda-sim" and not library.cuda.is_available():
            return None
        return library

    @cached_property
    def flush(self) -> Any:
        return self.xp.empty(1 << 10 if self.tiny else FLUSH_BYTES, np.uint8)

    def time(self, run: Callable[[], Any], repeats: int = 30, warm: int = 3) -> Timing:
        """`run`, which asks for work on the current stream and does not wait for it."""
        if self.tiny:
            run()
            start = time.perf_counter()
            run()
            took = 1e3 * (time.perf_counter() - start)
            return Timing(took, took, took, took)
        cuda = self.xp.cuda
        for _ in range(warm):
            run()
        pairs, asking = [], []
        cuda.runtime.deviceSynchronize()
        for number in range(repeats):
            pair = cuda.Event(), cuda.Event()
            self.flush[...] = number % 256
            pair[0].record()
            start = time.perf_counter()
            run()
            asking.append(1e3 * (time.perf_counter() - start))
            pair[1].record()
            pairs.append(pair)
        cuda.runtime.deviceSynchronize()
        times = sorted(float(cuda.get_elapsed_time(a, b)) for a, b in pairs)
        quarter = len(times) // 4
        return Timing(
            statistics.median(times), times[quarter], times[-1 - quarter], statistics.median(asking)
        )

    def array(self, *shape: int, dtype: DType = bfloat16, scale: float = 1.0) -> Array:
        """Random numbers on the device; large arrays are made there."""
        if self.where != "cuda-sim":
            self.draws += 1
            x = elementwise.random_normal(shape, Draw(self.draws, 0), 0.0, scale, self.xp)
            return x.astype(dtype, copy=False)
        x = self.rng.standard_normal(shape, np.float32) * np.float32(scale)
        return self.xp.asarray(x.astype(dtype))

    def integers(self, high: int, *shape: int) -> Array:
        return self.xp.asarray(self.rng.integers(0, high, shape))

    def peer(self, x: Array, gradient: bool = False) -> Any:
        """The same numbers as a tensor of PyTorch's, in memory of its own."""
        plain = x.view(np.int16) if x.dtype == bfloat16 else x
        if self.where == "cuda-sim":
            tensor = self.torch.from_numpy(self.xp.asnumpy(plain))
        else:
            tensor = self.torch.from_dlpack(plain)
        tensor = tensor.view(self.torch.bfloat16) if x.dtype == bfloat16 else tensor
        tensor = tensor.clone()
        return tensor.requires_grad_() if gradient else tensor

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function if self.tiny else self.torch.compile(function, dynamic=False)

    def case(self, name: str, run: Callable[[], dict[str, Any]]) -> None:
        """`run` answers the numbers; 'text' is what the table says."""

        def told() -> tuple[str, str, dict[str, Any]]:
            numbers = run()
            return numbers.pop("state", GOOD), numbers.pop("text"), numbers

        self.journal.case(name, told)
        self.tidy()

    def tidy(self) -> None:
        """Give memory back: what one case held, the next may need, and PyTorch has its own pool."""
        gc.collect()
        if self.where != "cuda-sim":
            self.xp.get_default_memory_pool().free_all_blocks()
            if self.torch is not None:
                self.torch.cuda.empty_cache()

    def bandwidth(self) -> float:
        """Bytes a second of a large copy, read and written."""
        a = self.array(64, dtype=FLOAT32) if self.tiny else self.xp.ones(1 << 28, np.float32)
        b = self.xp.empty_like(a)
        return float(2 * a.nbytes / (self.time(lambda: self.xp.copyto(b, a)).median / 1e3))


class Peers(dict[str, Timing]):
    """The times of others; one that fails says why in its place, and ours is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: dict[str, str] = {}

    def time(self, name: str, measure: Callable[[], Timing]) -> None:
        """Set a peer up and time it."""
        try:
            self[name] = measure()
        except Exception as error:
            self.failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:200]


def against(ours: Timing, peers: Peers, target: float | None, **more: Any) -> Any:
    """The line of a case that has peers; the ratio is to the fastest that is compared."""
    text = f"ours {_ms(ours)}" + "".join(f", {name} {_ms(t)}" for name, t in peers.items())
    text += "".join(f"; {name} failed: {why}" for name, why in peers.failed.items())
    numbers: dict[str, Any] = {"ours": ours._asdict(), "text": text, **more}
    numbers |= {name: t._asdict() for name, t in peers.items()}
    if peers:
        numbers["ratio"] = min(t.median for t in peers.values()) / ours.median
    if target is not None:
        numbers["target"] = target
    return numbers


def _ms(t: Timing) -> str:
    return f"{t.median:.3f} ms ({t.low:.3f}–{t.high:.3f})"


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


def moved(bench: Bench, ours: Timing, peers: Peers, size: float) -> Any:
    """The line of a case that is bound by memory: its share of the bandwidth of a copy."""
    copy = bench.bandwidth()
    rate = size / (ours.median / 1e3)
    numbers = against(ours, peers, 0.85, copy=copy, bytes_per_second=rate)
    numbers["to_peers"] = numbers.pop("ratio", None)
    numbers["ratio"] = rate / copy
    numbers["text"] += f"; {rate / 1e12:.2f} of {copy / 1e12:.2f} TB/s"
    return numbers


def rows_group(bench: Bench) -> None:
    """Softmax, layer norm and cross-entropy, forward and backward, beside PyTorch compiled."""
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
        _, totals = network.cross_entropy(x, target)
        scale, out = bench.xp.ones(1, np.float32), bench.xp.empty_like(x)
        ours = bench.time(
            lambda: network.cross_entropy_gradient(x, totals, target, scale=scale, out=out)
        )
    else:
        ours = bench.time(lambda: network.cross_entropy(x, target))
    if bench.torch is not None:
        peers.time("PyTorch", theirs)
    return moved(bench, ours, peers, x.nbytes * (2 if back else 1))  # type: ignore[no-any-return]


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


# --- training ------------------------------------------------------------------------------------


def batches(sizes: Sizes, B: int, count: int, seed: int = 3) -> list[np.ndarray[Any, Any]]:
    """Token numbers (B, T + 1) that can be learned: runs of neighbours, a tenth of it noise."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        ids = (rng.integers(0, sizes.V, (B, 1)) + np.arange(sizes.T + 1)) % sizes.V
        noise = rng.integers(0, sizes.V, ids.shape)
        found.append(np.where(rng.random(ids.shape) < 0.1, noise, ids))
    return found


class Ours:
    """A training step of this engine: forward, backward, clipping, AdamW."""

    def __init__(self, bench: Bench, sizes: Sizes, autocast: bool, captured: bool) -> None:
        import tinytensor as tt

        tt.manual_seed(0)
        self.where = bench.where
        self.model = model_class(tt.nn, tt.nn.functional, tt.arange)(sizes).to(bench.where)
        groups = parameter_groups(self.model)
        self.optimizer: Any = tt.optim.AdamW(groups, **LEARNING)  # type: ignore[arg-type]
        kind = "cuda" if bench.where == "cuda" else "cuda-sim"

        def step(x: Any, y: Any) -> Any:
            with tt.autocast(kind, enabled=autocast):
                loss = self.model(x, y)
            self.optimizer.zero_grad()
            loss.backward()
            tt.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            return loss.detach()

        self.step: Callable[..., Any] = graph(step, self.optimizer) if captured else step

    def put(self, ids: np.ndarray[Any, Any]) -> Any:
        return as_tensor(np.ascontiguousarray(ids)).to(self.where)


class Theirs:
    """The same lines in PyTorch, compiled, with flash attention and fused AdamW."""

    def __init__(self, bench: Bench, sizes: Sizes) -> None:
        torch = bench.torch
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")
        self.torch, self.where = torch, "cpu" if bench.where == "cuda-sim" else "cuda"
        model = model_class(torch.nn, torch.nn.functional, torch.arange)(sizes).to(self.where)
        fused = self.where == "cuda"
        self.optimizer = torch.optim.AdamW(parameter_groups(model), fused=fused, **LEARNING)
        self.model, self.run = model, bench.compiled(model)

    def step(self, x: Any, y: Any) -> Any:
        with self.torch.autocast(self.where, dtype=self.torch.bfloat16):
            loss = self.run(x, y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()

    def put(self, ids: np.ndarray[Any, Any]) -> Any:
        return self.torch.from_numpy(np.ascontiguousarray(ids)).to(self.where)


def training_group(bench: Bench) -> None:
    """Tokens a second of a whole step, by micro-batch: plain, captured, and PyTorch compiled."""
    sizes = TINY if bench.tiny else GPT2
    for B in (2,) if bench.tiny else (16, 32, 64):
        bench.case(f"micro-batch {B}", lambda B=B: _training(bench, sizes, B))  # type: ignore[misc]


def _training(bench: Bench, sizes: Sizes, B: int) -> dict[str, Any]:
    steps, warm = (2, 2) if bench.tiny else (10, 5)  # a third call captures
    data = batches(sizes, B, 4)
    tokens = B * sizes.T
    rates: dict[str, float] = {}
    notes: dict[str, Any] = {}
    makers: dict[str, Callable[[], Any]] = {
        "ours": lambda: Ours(bench, sizes, True, False),
        "ours captured": lambda: Ours(bench, sizes, True, True),
    }
    if bench.torch is not None:
        makers["PyTorch compiled"] = lambda: Theirs(bench, sizes)
    for name, make in makers.items():
        try:
            timing, losses = _steps(bench, make(), data, steps, warm)
            rates[name] = 1e3 * tokens / timing.median
            notes[name] = {**timing._asdict(), "losses": losses}
        except Exception as error:
            notes[name] = {"failed": " ".join(str(error).split())[:500]}
        bench.tidy()
    mine = [rate for name, rate in rates.items() if name.startswith("ours")]
    text = ", ".join(f"{name} {rate:,.0f} tokens/s" for name, rate in rates.items())
    for name, note in notes.items():
        if "failed" in note:
            text += f"; {name} failed: {note['failed'][:160]}"
    numbers = {"text": text, "tokens_per_second": rates, "runs": notes, "target": 0.8}
    if mine and "PyTorch compiled" in rates:
        numbers["ratio"] = max(mine) / rates["PyTorch compiled"]
    if not mine:
        raise RuntimeError(text)
    return numbers


def _steps(
    bench: Bench, engine: Any, data: list[Any], steps: int, warm: int
) -> tuple[Timing, list[float]]:
    """The time of one step among others, nothing flushed: a step is many times the cache."""
    pairs = [(engine.put(ids[:, :-1]), engine.put(ids[:, 1:])) for ids in data]
    losses = [float(engine.step(*pairs[i % len(pairs)]).item()) for i in range(warm)]
    on_gpu = bench.where != "cuda-sim"
    wait = bench.xp.cuda.runtime.deviceSynchronize if on_gpu else lambda: None
    events = [bench.xp.cuda.Event() for _ in range(steps + 1)] if on_gpu else []
    wait()
    start = time.perf_counter()
    for i in range(steps):
        if on_gpu:
            events[i].record()
        loss = engine.step(*pairs[i % len(pairs)])
    if on_gpu:
        events[steps].record()
    asking = 1e3 * (time.perf_counter() - start) / steps
    wait()
    whole = 1e3 * (time.perf_counter() - start) / steps
    losses.append(float(loss.item()))
    each = [whole]
    if on_gpu:
        elapsed = bench.xp.cuda.get_elapsed_time
        each = sorted(float(elapsed(a, b)) for a, b in itertools.pairwise(events))
    return Timing(max(whole, statistics.median(each)), each[0], each[-1], asking), losses


def losses_group(bench: Bench) -> None:
    """100 steps in bfloat16 and in float32 on the same data."""
    sizes = TINY if bench.tiny else GPT2
    bench.case("bfloat16 beside float32", lambda: _losses(bench, sizes))


def _losses(bench: Bench, sizes: Sizes) -> dict[str, Any]:
    steps, B = (3, 2) if bench.tiny else (100, 4)
    data = batches(sizes, B, 8)
    found = []
    for autocast in (True, False):
        engine = Ours(bench, sizes, autocast, False)
        pairs = [(engine.put(ids[:, :-1]), engine.put(ids[:, 1:])) for ids in data]
        kept = [engine.step(*pairs[i % len(pairs)]) for i in range(steps)]
        found.append([float(loss.item()) for loss in kept])
        del engine, kept
        bench.tidy()
    apart = [abs(a - b) / abs(b) for a, b in zip(*found, strict=True)]
    text = (
        f"losses {found[1][0]:.3f} … {found[1][-1]:.3f}, furthest apart "
        f"{100 * max(apart):.2f} % at step {apart.index(max(apart))} (1 % is allowed)"
    )
    good = all(map(math.isfinite, apart)) and max(apart) <= 0.01
    ratio = min(1.0, 0.01 / max(max(apart), 1e-12))
    return {"text": text, "bfloat16": found[0], "float32": found[1], "ratio": ratio, "target": 1.0,
            "good": good}  # fmt: skip


GROUPS: dict[str, Callable[[Bench], None]] = {
    "matmul": matmul_group,
    "attention": attention_group,
    "rows": rows_group,
    "optimizer": optimizer_group,
    "training": training_group,
    "losses": losses_group,
}
