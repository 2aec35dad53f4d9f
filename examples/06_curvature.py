"""Derivatives of derivatives: a GPT that learns at the edge of stability.

The Hessian of a loss with N parameters has N² entries, yet its product with a vector costs about
two gradients (`tt.func.hvp`). Multiplying by it again and again turns any vector towards the
direction of largest curvature λ (power iteration).

A step of plain gradient descent with rate lr overshoots a valley of curvature λ, ever further, when
λ > 2/lr. One would think that training keeps away from such places. It does not: the curvature
climbs past 2/lr and then hovers at or above it, while the loss, with jumps, goes on falling.
(Cohen et al., "Gradient descent on neural networks typically occurs at the edge of stability",
2021.) Try --lr 0.1: steps a third as long lead to places about three times as curved.

Runs for about 15 seconds. The last line compares both at the end, as in
"curvature 6.59 where 2/lr is 6.67".
"""

from __future__ import annotations

import argparse

from arguments import above_zero, at_least

import tinytensor as tt
from gpt.model import GPT, GPTConfig
from gpt.tokenizer import CharTokenizer
from tinytensor.func import functional_call, hvp

TEXT = "the cat sat on the mat, the dog sat on the log, the bird ate the hat of the cat, "
BLOCK_SIZE = 16

Parameters = dict[str, tt.Tensor]


def windows(tokens: tt.Tensor) -> tuple[tt.Tensor, tt.Tensor]:
    """Every second window of the text and its targets: one batch, the same at every step."""
    starts = range(0, len(tokens) - BLOCK_SIZE, 2)
    x = tt.stack([tokens[i : i + BLOCK_SIZE] for i in starts])
    y = tt.stack([tokens[i + 1 : i + 1 + BLOCK_SIZE] for i in starts])
    return x, y


def dot(a: Parameters, b: Parameters) -> float:
    return sum((a[name] * b[name]).sum().item() for name in a)


def unit(v: Parameters) -> Parameters:
    length = dot(v, v) ** 0.5
    return {name: part / length for name, part in v.items()}


def largest_curvature(
    model: GPT, x: tt.Tensor, y: tt.Tensor, direction: Parameters, rounds: int
) -> tuple[float, Parameters]:
    """λ by power iteration from `direction`, and the direction that it belongs to.

    It finds the curvature that is largest in size; before training that is a negative one.
    """
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights: Parameters) -> tt.Tensor:
        return functional_call(model, weights, (x, y))[1]

    for _ in range(rounds):
        _, product = hvp(loss, weights, direction)
        curvature = dot(direction, product)  # vᵀHv, for v of length 1
        direction = unit(product)
    return curvature, direction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=at_least(0), default=500)
    parser.add_argument(
        "--every", type=at_least(1), default=50, help="steps between two measurements"
    )
    parser.add_argument("--lr", type=above_zero, default=0.3)
    arguments = parser.parse_args()
    tt.manual_seed(0)

    tokenizer = CharTokenizer.of(TEXT)
    x, y = windows(tt.tensor(tokenizer.encode(TEXT)))
    model = GPT(GPTConfig(tokenizer.vocab_size, BLOCK_SIZE, n_layer=2, n_head=2, n_embd=32))
    optimizer = tt.optim.SGD(model.parameters(), lr=arguments.lr)
    direction = unit({name: tt.randn(*p.shape) for name, p in model.named_parameters()})

    edge = 2 / arguments.lr
    for step in range(arguments.steps + 1):
        _, loss = model(x, y)
        if step % arguments.every == 0:
            # The first time from a random direction; then the last one is nearly right already.
            rounds = 20 if step else 40
            curvature, direction = largest_curvature(model, x, y, direction, rounds)
            bar = "#" * round(20 * max(0.0, curvature) / edge)
            print(f"step {step:4d}  loss {loss.item():.3f}  curvature {curvature:7.2f}  {bar}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{'':28}{'2/lr':>9} {edge:7.2f}  {20 * '-'}")
    print(f"curvature {curvature:.2f} where 2/lr is {edge:.2f}")


if __name__ == "__main__":
    main()
