"""What is trained: the models, the shapes of the batches, the optimizer's settings, the targets.

Shapes: B batch, T time, C channels, H heads, D = C / H head size, V vocabulary.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

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

    @property
    def tokens(self) -> int:
        """In a batch."""
        return self.B * self.T

    @property
    def pairs(self) -> int:
        """Of a query and a key that the causal mask lets through, in all heads of all layers."""
        return self.layers * self.H * self.B * self.T * (self.T + 1) // 2

    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of each linear layer of a block; there are `layers` blocks."""
        C = self.C
        return [(C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)]

    def flops(self) -> float:
        """Multiplications and additions of a step's matrix products, forward and backward.

        Each product has two more in the backward pass. Of the attention only the pairs that the
        mask lets through are counted.
        """
        weights = self.layers * sum(a * b for a, b in self.linears()) + self.V * self.C
        return 3.0 * 2 * (self.tokens * weights + 2 * self.C // self.H * self.pairs)


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
ALL = ("W1", "W2", "W3", "W4", "W4L")

TITLES = {
    "W1": "the article's, 32 x 8",
    "W1H": "the article's, heads one by one",
    "W2": "`char`, 12 x 64",
    "W3": "width 384, 6 layers, 64 x 256",
    "W4": "GPT-2 124M, 4 x 64",
    "W4L": "GPT-2 124M, 1 x 1,024",
    "tiny": "width 16, 2 x 8",
}


class Turns(NamedTuple):
    """How often each engine is called up, and for how many timed steps."""

    rounds: int
    steps: int


TURNS = {
    "W1": Turns(15, 40),
    "W1H": Turns(10, 20),
    "W2": Turns(15, 12),
    "W3": Turns(4, 1),
    "W4": Turns(6, 2),
    "W4L": Turns(4, 1),
    "tiny": Turns(3, 3),
}
QUICK = {"W1": Turns(5, 20), "W2": Turns(5, 8), "W3": Turns(1, 1), "W4": Turns(2, 2)}
QUICK["W4L"] = QUICK["W3"]


class Target(NamedTuple):
    """Our median over the best peer's that is aimed at, without and with the variable."""

    unset: float
    variable_set: float


TARGETS = {
    "W1": Target(0.60, 0.70),
    "W2": Target(0.85, 1.05),
    "W3": Target(0.50, 0.80),
    "W4": Target(0.55, 0.85),
    "W4L": Target(0.50, 0.80),
}
MEMORY_TARGETS = {"W3": 0.7, "W4L": 0.7}  # our peak over PyTorch's

# Peaks of resident memory that were measured, in GB: what must be free for all to run at once.
NEEDS = {
    "W3": {"ours": 2.4, "torch": 3.9, "compile": 3.6, "jax": 6.9, "numpy": 3.6},
    "W4": {"ours": 2.6, "torch": 3.1, "compile": 3.1, "jax": 2.8, "numpy": 2.3},
    "W4L": {"ours": 2.9, "torch": 3.8, "compile": 3.7, "jax": 5.6, "numpy": 3.6},
}


def initial_weight(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The numbers that the parameter called `name` starts from, in every library.

    Biases and the gains of norms are not the customary 0 and 1, which would hide an error in them.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    weight = rng.standard_normal(shape, np.float32) * np.float32(0.02)
    return weight + 1 if len(shape) == 1 and name.endswith("weight") else weight


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


def token_ids(workload: Workload, steps: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """(steps, B, T + 1) token numbers: low ones often, high ones seldom, as in a text."""
    shape = (steps, workload.B, workload.T + 1)
    return (workload.V * rng.random(shape) ** 3).astype(np.int64)
