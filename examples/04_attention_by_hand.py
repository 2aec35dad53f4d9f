"""Attention by hand, then as one operation: the same numbers.

First the example of the article that this project began with: three positions with made-up queries
and keys, so small that each step can be read. Row t of the result says how much position t takes
from each position; what lies in its future gets -inf, of which the softmax makes an exact zero.
Then several heads at once, written out and as `F.scaled_dot_product_attention`, which never keeps
the (T, T) weights: outputs and gradients are equal.

Runs for a second. The last line says how equal, as in
"largest difference: output 0.0e+00, gradients 2.4e-07".

Shapes: B batch, H heads, T time, D head size.
"""

from __future__ import annotations

import argparse
import math

from arguments import at_least

import tinytensor as tt
from tinytensor.nn import functional as F


def causal_weights(q: tt.Tensor, k: tt.Tensor, show: bool = False) -> tt.Tensor:
    """softmax(mask(q kᵀ / √D)): each row sums to one and ends at its own position."""
    T, D = q.shape[-2:]
    scores = q @ k.transpose(-2, -1) / math.sqrt(D)  # (…, T, T)
    allowed = tt.tril(tt.ones(T, T))
    masked = scores.masked_fill(allowed == 0, float("-inf"))
    weights = F.softmax(masked, dim=-1)
    if show:
        print("scores, q @ k.T / sqrt(D):\n", scores)
        print("the future masked:\n", masked)
        print("softmax, where e^-inf = 0:\n", weights)
    return weights


def article() -> None:
    q = tt.tensor([[[2, 8, 8], [4, 2, 4], [1, 2, 9]]])
    k = tt.tensor([[[9, 5, 7], [3, 1, 4], [6, 2, 9]]])
    causal_weights(q, k, show=True)


def compare(B: int, H: int, T: int, D: int) -> tuple[float, float]:
    """The largest difference between both ways, in the output and in the gradients of q, k, v."""
    q, k, v = (tt.randn(B, H, T, D, requires_grad=True) for _ in range(3))
    dy = tt.randn(B, H, T, D)

    by_hand = causal_weights(q, k) @ v
    gradients_by_hand = tt.autograd.grad(by_hand, (q, k, v), dy)
    fused = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    gradients_fused = tt.autograd.grad(fused, (q, k, v), dy)

    in_output = (by_hand - fused).abs().max().item()
    in_gradients = max(
        (a - b).abs().max().item() for a, b in zip(gradients_by_hand, gradients_fused, strict=True)
    )
    return in_output, in_gradients


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--time", type=at_least(1), default=64, help="how many positions to compare"
    )
    arguments = parser.parse_args()
    tt.manual_seed(0)
    article()
    output, gradients = compare(B=2, H=4, T=arguments.time, D=16)
    print(f"largest difference: output {output:.1e}, gradients {gradients:.1e}")


if __name__ == "__main__":
    main()
