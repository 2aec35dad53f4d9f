"""What runs in a process of `benchmark_cpu.py`: our training step, PyTorch's, JAX's; our profile.

Each class is one library at one workload: `step` trains on a batch, `logits` is its answer to one.
All start from the same weights, which are made here from the names of the parameters. Ours and
PyTorch's run the very same lines, those of `gpt/model.py`: for PyTorch its source is executed a
second time with the import lines changed. JAX has no modules, so its model is written out below, in
the way that suits `jit`. Each library gets what it documents as its fastest: PyTorch its fused
AdamW, JAX donated buffers, one compiled function for the whole step and its own attention.

No library is imported before its class is made, so that each process holds one only.

The profile puts clocks around the implementations in the registry (`tinytensor.tensor.OPERATIONS`)
and around the VJPs that they return, for as long as the process lives. A clock that is started
inside another one stops the outer one, so that the times of a step add up to the step. What is left
to the forward and the backward pass itself is Python: the model's lines, the wrapper, the walk.

Shapes: B batch, T time, C channels, H heads, D = C / H head size, V vocabulary.
"""

from __future__ import annotations

import math
import os
import sys
import time
import types
import zlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LR, BETAS, EPS, WEIGHT_DECAY, CLIP = 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0


@dataclass(frozen=True)
class Workload:
    """A model and the shape of its batches."""

    V: int
    C: int
    H: int
    layers: int
    B: int
    T: int
    block_size: int
    activation: str = "gelu_tanh"
    bias: bool = True
    tied: bool = True
    head_bias: bool = False
    fused_heads: bool = True  # False for the article's model, which computes head after head

    def flops(self) -> float:
        """Multiplications and additions of a step's matrix products, forward and backward.

        Of the attention only the pairs that the causal mask lets through are counted.
        """
        products = self.B * self.T * (12 * self.layers * self.C**2 + self.V * self.C)
        pairs = self.layers * self.B * self.T * (self.T + 1) // 2
        return 3.0 * (2 * products + 4 * self.C * pairs)


# The names of issue trackers: W1 is the article's model with its heads in one product, W1H the same
# with its heads one by one, as the article writes them (and so without biases in q, k, v). W2 is
# the preset `char`, W3 a larger model of characters, W4 and W4L are GPT-2. `tiny` is for the tests.
_ARTICLE: dict[str, Any] = {
    "V": 65, "C": 64, "H": 4, "layers": 4, "B": 32, "T": 8, "block_size": 8,
    "activation": "relu", "tied": False, "head_bias": True,
}  # fmt: skip
WORKLOADS = {
    "W1": Workload(**_ARTICLE),
    "W1H": Workload(**_ARTICLE, fused_heads=False),
    "W2": Workload(65, 128, 4, 4, B=12, T=64, block_size=64, bias=False),
    "W3": Workload(65, 384, 6, 6, B=64, T=256, block_size=256, bias=False),
    "W4": Workload(50_304, 768, 12, 12, B=4, T=64, block_size=1024),
    "W4L": Workload(50_304, 768, 12, 12, B=1, T=1024, block_size=1024),
    "tiny": Workload(11, 16, 2, 1, B=2, T=8, block_size=8),
}


def initial_weight(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The numbers that the parameter called `name` starts from, in every library.

    Biases and the gains of norms are not the customary 0 and 1, which would hide an error in them.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    weight = rng.standard_normal(shape, np.float32) * np.float32(0.02)
    return weight + 1 if len(shape) == 1 and name.endswith("weight") else weight


def token_ids(workload: Workload, steps: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """(steps, B, T + 1) token numbers: low ones often, high ones seldom, as in a text."""
    shape = (steps, workload.B, workload.T + 1)
    return (workload.V * rng.random(shape) ** 3).astype(np.int64)


class Ours:
    """This engine. PyTorch's class below differs in names only."""

    def __init__(self, workload: Workload) -> None:
        import tinytensor
        from gpt import model

        self.prepare(tinytensor, model, workload)
        self.forward = self.model.loss
        self.optimizer = tinytensor.optim.AdamW(self.groups, lr=LR, betas=BETAS, eps=EPS)

    def prepare(self, library: Any, source: Any, workload: Workload) -> None:
        """The model of `source`, whose tensors are the library's, with the initial weights."""
        self.library = library
        self.model = build_model(source, workload)
        self.forward = self.model
        with library.no_grad():
            for name, parameter in self.model.named_parameters():
                weight = initial_weight(name, tuple(parameter.shape))
                parameter.copy_(library.from_numpy(weight))
        self.groups = source.parameter_groups(self.model, WEIGHT_DECAY)
        self.clip = library.nn.utils.clip_grad_norm_

    def batch(self, ids: np.ndarray[Any, Any]) -> tuple[Any, Any]:
        """Windows (B, T) and their targets, as the library's tensors."""
        tensor = self.library.from_numpy
        return tensor(ids[:, :-1].copy()), tensor(ids[:, 1:].copy())

    def step(self, x: Any, y: Any) -> tuple[float, float]:
        """Trains on one batch; returns the loss, and the norm of the gradients before clipping."""
        loss = self.loss(x, y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = self.clip(self.model.parameters(), CLIP)
        self.optimizer.step()
        return loss.item(), norm.item()

    def loss(self, x: Any, y: Any) -> Any:
        """Without the logits of all positions, where that is possible."""
        return self.forward(x, y)

    def logits(self, x: Any) -> np.ndarray[Any, Any]:
        """The scores (B, V) of the token after each window."""
        with self.library.no_grad():
            return self.model(x)[0][:, -1, :].numpy()

    def generate(self, x: Any, tokens: int) -> None:
        self.model.generate(x, tokens)


def build_model(source: Any, workload: Workload) -> Any:
    W = workload
    if not W.fused_heads:
        return source.BigramLanguageModel(W.V, W.block_size, W.C, W.H, W.layers)
    config = source.GPTConfig(
        W.V, W.block_size, W.layers, W.H, W.C,
        bias=W.bias, tied=W.tied, activation=W.activation, head_bias=W.head_bias,
    )  # fmt: skip
    return source.GPT(config)


class Torch(Ours):
    """PyTorch as most people run it."""

    def loss(self, x: Any, y: Any) -> Any:
        return self.forward(x, y)[1]

    def __init__(self, workload: Workload) -> None:
        import torch

        self.prepare(torch, model_source_for_torch(), workload)
        self.optimizer = torch.optim.AdamW(self.groups, lr=LR, betas=BETAS, eps=EPS, fused=True)


class Compiled(Torch):
    """PyTorch with `torch.compile` for the model, forward and backward."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self.forward = self.library.compile(self.model)


TORCH_IMPORTS = {
    "import tinytensor as tt\n": "import torch as tt\n",
    "from tinytensor import Tensor, nn\n": "from torch import Tensor, nn\n",
    "from tinytensor.nn import functional as F\n": "from torch.nn import functional as F\n",
}


def model_source_for_torch() -> types.ModuleType:
    """`gpt/model.py` as a PyTorch program."""
    path = Path(__file__).parent.parent / "gpt" / "model.py"
    source = path.read_text(encoding="utf-8")
    for ours, theirs in TORCH_IMPORTS.items():
        if ours not in source:
            raise RuntimeError(f"{path} has no line {ours!r} to replace")
        source = source.replace(ours, theirs)
    module = types.ModuleType("gpt_model_in_torch")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


class Jax:
    """JAX: the whole step is one compiled function."""

    def __init__(self, workload: Workload) -> None:
        if not workload.fused_heads:
            raise ValueError("the article's model, head by head, is not written for JAX")
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax

        self.workload = workload
        self.weights = {
            name: jax.numpy.asarray(initial_weight(name, shape))
            for name, shape in parameter_shapes(workload).items()
        }
        self.first = {name: jax.numpy.zeros_like(w) for name, w in self.weights.items()}
        self.second = {name: jax.numpy.zeros_like(w) for name, w in self.weights.items()}
        self.count = 0
        self.compiled_logits = jax.jit(lambda weights, x: jax_logits(weights, x, workload))
        self.compiled_step = jax.jit(self._step, donate_argnums=(0, 1, 2))

    def _step(self, weights: Any, first: Any, second: Any, count: Any, x: Any, y: Any) -> Any:
        import jax
        import jax.numpy as jnp

        def loss(weights: Any) -> Any:
            scores = jax_logits(weights, x, self.workload)
            chosen = jnp.take_along_axis(scores, y[..., None], axis=-1)[..., 0]
            return jnp.mean(jax.nn.logsumexp(scores, axis=-1) - chosen)

        value, gradients = jax.value_and_grad(loss)(weights)
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in gradients.values()))
        scale = jnp.minimum(1.0, CLIP / (norm + 1e-6))
        beta1, beta2 = BETAS
        new: tuple[dict[str, Any], ...] = ({}, {}, {})
        for name, gradient in gradients.items():
            g = gradient * scale
            m = beta1 * first[name] + (1 - beta1) * g
            v = beta2 * second[name] + (1 - beta2) * g * g
            decay = WEIGHT_DECAY if g.ndim == 2 else 0.0
            direction = (m / (1 - beta1**count)) / (jnp.sqrt(v / (1 - beta2**count)) + EPS)
            weight = weights[name] * (1 - LR * decay) - LR * direction
            new[0][name], new[1][name], new[2][name] = weight, m, v
        return new, value, norm

    def batch(self, ids: np.ndarray[Any, Any]) -> tuple[Any, Any]:
        import jax.numpy as jnp

        return jnp.asarray(ids[:, :-1], jnp.int32), jnp.asarray(ids[:, 1:], jnp.int32)

    def step(self, x: Any, y: Any) -> tuple[float, float]:
        import jax

        self.count += 1
        state = (self.weights, self.first, self.second)
        state, loss, norm = self.compiled_step(*state, float(self.count), x, y)
        self.weights, self.first, self.second = jax.block_until_ready(state)
        return float(loss), float(norm)

    def logits(self, x: Any) -> np.ndarray[Any, Any]:
        return np.asarray(self.compiled_logits(self.weights, x)[:, -1, :])


def parameter_shapes(workload: Workload) -> dict[str, tuple[int, ...]]:
    """GPT-2's parameters under GPT-2's names."""
    W, C = workload, workload.C
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (W.V, C), "transformer.wpe.weight": (W.block_size, C),
    }  # fmt: skip
    linears = {
        "attn.c_attn": (3 * C, C), "attn.c_proj": (C, C),
        "mlp.c_fc": (4 * C, C), "mlp.c_proj": (C, 4 * C),
    }  # fmt: skip
    for i in range(W.layers):
        layers = {"ln_1": (C,), "ln_2": (C,), **linears}
        shapes |= {f"transformer.h.{i}.{name}.weight": shape for name, shape in layers.items()}
        if W.bias:
            shapes |= {f"transformer.h.{i}.{name}.bias": s[:1] for name, s in layers.items()}
    shapes["transformer.ln_f.weight"] = (C,)
    if W.bias:
        shapes["transformer.ln_f.bias"] = (C,)
    if not W.tied:
        shapes["lm_head.weight"] = (W.V, C)
    if W.head_bias:
        shapes["lm_head.bias"] = (W.V,)
    return shapes


def jax_logits(weights: dict[str, Any], x: Any, workload: Workload) -> Any:
    """Scores (B, T, V): the mathematics of `gpt/model.py`."""
    import jax
    import jax.numpy as jnp

    def linear(name: str, x: Any) -> Any:
        y = x @ weights[f"{name}.weight"].T
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    def norm(name: str, x: Any) -> Any:
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + 1e-5) * weights[f"{name}.weight"]
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    activation = {"relu": jax.nn.relu, "gelu_tanh": jax.nn.gelu}[workload.activation]
    B, T = x.shape
    C, H = workload.C, workload.H
    h = weights["transformer.wte.weight"][x] + weights["transformer.wpe.weight"][:T]
    for i in range(workload.layers):
        block = f"transformer.h.{i}"
        qkv = linear(f"{block}.attn.c_attn", norm(f"{block}.ln_1", h))
        q, k, v = (part.reshape(B, T, H, C // H) for part in jnp.split(qkv, 3, axis=-1))
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(B, T, C)
        h = h + linear(f"{block}.attn.c_proj", mixed)
        wide = activation(linear(f"{block}.mlp.c_fc", norm(f"{block}.ln_2", h)))
        h = h + linear(f"{block}.mlp.c_proj", wide)
    h = norm("transformer.ln_f", h)
    if workload.tied:
        return h @ weights["transformer.wte.weight"].T
    return linear("lm_head", h)


PEERS = {"torch": "torch", "compile": "torch", "jax": "jax"}  # engine -> module that it needs
ENGINES: dict[str, type] = {"ours": Ours, "torch": Torch, "compile": Compiled, "jax": Jax}


def matmul_peak(engine: str, size: int = 2048, repeats: int = 12) -> float:
    """FLOP/s of the library's product of two square matrices: the best of several."""
    a = np.random.default_rng(0).standard_normal((size, size), np.float32)
    if engine in ("torch", "compile"):
        import torch

        t = torch.from_numpy(a)
        product = lambda: t @ t  # noqa: E731
    elif engine == "jax":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax

        j, times = jax.numpy.asarray(a), jax.jit(lambda a: a @ a)
        product = lambda: times(j).block_until_ready()  # noqa: E731
    else:
        out = np.empty_like(a)
        product = lambda: np.matmul(a, a, out=out)  # noqa: E731
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


# ---- Where our time in a step goes ----

FORWARD, BACKWARD = 0, 1


class Row:
    """One line of the profile: seconds forward and backward, calls, floating-point operations."""

    def __init__(self) -> None:
        self.seconds = [0.0, 0.0]
        self.calls = 0
        self.flops = 0.0


class Profile:
    """Clocks by name; `inner` holds, for each one running, the time of those inside it."""

    def __init__(self) -> None:
        self.rows: defaultdict[str, Row] = defaultdict(Row)
        self.inner: list[float] = []

    def clocked(self, name: str, phase: int, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            seconds, inner = self.rows[name].seconds, self.inner
            inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                elapsed = time.perf_counter() - start
                seconds[phase] += elapsed - inner.pop()
                if inner:
                    inner[-1] += elapsed

        return call

    def watch_operation(self, operation: Any) -> None:
        for kind, implementation in list(operation.implementations.items()):
            operation.implementations[kind] = self.body(operation.__name__, implementation)
        slow = f"{operation.__name__} (reference)" if operation.implementations else None
        operation.reference = self.body(slow or operation.__name__, operation.reference)

    def body(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, which returns an output and a VJP, with clocks for both."""

        def run(*values: Any, **options: Any) -> Any:
            row, flops = what_it_computes(name, values)
            result = self.clocked(row, FORWARD, function)(*values, **options)
            if result is NotImplemented:
                return result
            self.rows[row].calls += 1
            self.rows[row].flops += flops
            y, vjp = result
            if isinstance(vjp, tuple):
                return y, tuple([f and self.vjp(row, f) for f in vjp])
            return y, vjp and self.vjp(row, vjp)

        return run

    def vjp(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        clocked = self.clocked(name, BACKWARD, function)

        def call(dy: Any) -> Any:
            gradient = clocked(dy)
            if isinstance(gradient, tuple):
                return tuple([self.late(name, g) for g in gradient])
            return self.late(name, gradient)

        return call

    def late(self, name: str, gradient: Any) -> Any:
        return LateGradient(self, name, gradient) if hasattr(gradient, "write_to") else gradient


class LateGradient:
    """A gradient that is computed when it is wanted, on the clock of its operation."""

    def __init__(self, profile: Profile, name: str, gradient: Any) -> None:
        self.shape, self.dtype = gradient.shape, gradient.dtype
        self.write_to = profile.clocked(name, BACKWARD, gradient.write_to)
        self.add_to = profile.clocked(name, BACKWARD, gradient.add_to)
        self.dense = profile.clocked(name, BACKWARD, gradient.dense)
        if hasattr(gradient, "joined"):
            self.joined = lambda other: self._joined(profile, name, gradient, other)
        self.gradient = gradient

    def _joined(self, profile: Profile, name: str, gradient: Any, other: Any) -> Any:
        joined = gradient.joined(getattr(other, "gradient", other))
        return joined and LateGradient(profile, name, joined)


def what_it_computes(name: str, values: tuple[Any, ...]) -> tuple[str, float]:
    """The row of a call, and the operations in its matrix products, backward included."""
    if name == "linear":
        out, features = values[1].shape
        return f"linear {features} to {out}", 6.0 * math.prod(values[0].shape) * out
    if name == "scaled_dot_product_attention":
        B, H, T, D = values[0].shape
        return "attention", 12.0 * B * H * D * (T * (T + 1) // 2)
    if name == "linear_cross_entropy":
        return name, 6.0 * math.prod(values[0].shape) * values[1].shape[0]
    return name, 0.0


def profile_steps(engine: Any, batches: list[Any]) -> dict[str, Any]:
    """Runs the steps twice, without clocks and with them; the process is of no use afterwards."""
    from tinytensor import autograd
    from tinytensor.tensor import OPERATIONS

    def seconds_of_steps() -> float:
        start = time.perf_counter()
        for x, y in batches:
            engine.step(x, y)
        return (time.perf_counter() - start) / len(batches)

    unwatched = seconds_of_steps()
    profile = Profile()
    for operation in OPERATIONS.values():
        profile.watch_operation(operation)
    engine.forward = profile.clocked("model and wrappers", FORWARD, engine.forward)
    engine.clip = profile.clocked("clip_grad_norm_", BACKWARD, engine.clip)
    engine.optimizer.step = profile.clocked("AdamW", BACKWARD, engine.optimizer.step)
    engine.optimizer.zero_grad = profile.clocked("zero_grad", BACKWARD, engine.optimizer.zero_grad)
    # The walk's own work on arrays: sums where paths meet, and copies into the gradient buffer.
    for name, row in (
        ("backward", "walk of the graph"),
        ("fit", "walk: gradients fitted to shapes"),
        ("_add_pending", "walk: gradients of paths added"),
        ("accumulate", "walk: gradients stored"),
    ):
        setattr(autograd, name, profile.clocked(row, BACKWARD, getattr(autograd, name)))
    watched = seconds_of_steps()
    steps = len(batches)
    rows = {
        name: {
            "forward": row.seconds[FORWARD] / steps,
            "backward": row.seconds[BACKWARD] / steps,
            "calls": row.calls / steps,
            "flops": row.flops / steps,
        }
        for name, row in profile.rows.items()
    }
    return {"unwatched": unwatched, "watched": watched, "steps": steps, "rows": rows}
