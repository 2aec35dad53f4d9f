"""The same training step in JAX, written in the way that suits `jit`: one function for all of it.

JAX has no modules, so the mathematics of `gpt/model.py` stand here once more. The weights are a
dict under GPT-2's names and donated with both moments, so that a step writes them in place. On a
CPU, products of matrices (not of batches) and attention in plain sight are what XLA does fastest:
`jax.nn.dot_product_attention` takes longer here.

Shapes: B batch, T time, C channels, H heads, D = C / H head size, V vocabulary.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from .workloads import (
    BETAS,
    CLIP,
    EPS,
    LR,
    WEIGHT_DECAY,
    Workload,
    initial_weight,
    parameter_shapes,
)


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


def jax_logits(weights: dict[str, Any], x: Any, workload: Workload) -> Any:
    """Scores (B, T, V): the mathematics of `gpt/model.py`."""
    import jax
    import jax.numpy as jnp

    def linear(name: str, x: Any) -> Any:
        rows = x.reshape(-1, x.shape[-1])  # XLA has a fast product of matrices only
        y = (rows @ weights[f"{name}.weight"].T).reshape(*x.shape[:-1], -1)
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    def norm(name: str, x: Any) -> Any:
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + 1e-5) * weights[f"{name}.weight"]
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    activation = {"relu": jax.nn.relu, "gelu_tanh": jax.nn.gelu}[workload.activation]
    B, T = x.shape
    C, H = workload.C, workload.H
    causal = jnp.tril(jnp.ones((T, T), bool))
    h = weights["transformer.wte.weight"][x] + weights["transformer.wpe.weight"][:T]
    for i in range(workload.layers):
        block = f"transformer.h.{i}"
        qkv = linear(f"{block}.attn.c_attn", norm(f"{block}.ln_1", h))
        heads = [part.reshape(B, T, H, C // H) for part in jnp.split(qkv, 3, axis=-1)]
        q, k, v = (part.swapaxes(1, 2) for part in heads)  # (B, H, T, D)
        scores = jnp.where(causal, q @ k.swapaxes(2, 3) / math.sqrt(C // H), -jnp.inf)
        mixed = (jax.nn.softmax(scores, axis=-1) @ v).swapaxes(1, 2).reshape(B, T, C)
        h = h + linear(f"{block}.attn.c_proj", mixed)
        wide = activation(linear(f"{block}.mlp.c_fc", norm(f"{block}.ln_2", h)))
        h = h + linear(f"{block}.mlp.c_proj", wide)
    head = "transformer.wte" if workload.tied else "lm_head"
    return linear(head, norm("transformer.ln_f", h))
