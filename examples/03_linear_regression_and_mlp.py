"""Two fits: a line, and a small network that tells two spirals apart.

Both are the same five lines: predict, measure the loss, clear the old gradients, go backward, let
the optimizer take a step. The line has two parameters and a known answer. The spirals cannot be
told apart by any line; the network bends one until it fits, and the picture shows which side of it
each point of the plane lies on.

Runs for a second. The last line is the share of points on the right side, as in
"400 of 400 points are on the right side".
"""

from __future__ import annotations

import argparse
import math

from arguments import at_least

import tinytensor as tt
from tinytensor import nn
from tinytensor.nn import functional as F


def fit_line(steps: int) -> None:
    """Finds slope and offset of y = 3x - 2 from noisy points."""
    x = tt.rand(200, 1) * 4 - 2
    y = 3 * x - 2 + 0.1 * tt.randn(200, 1)
    model = nn.Linear(1, 1)
    optimizer = tt.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        loss = F.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(
        f"the line: y = {model.weight.item():.2f} x {model.bias.item():+.2f}, "
        f"mean squared error {loss.item():.4f} (the noise alone has 0.01)"
    )


def spirals(count: int) -> tuple[tt.Tensor, tt.Tensor]:
    """Points (2·count, 2) on two arms, each a turn and a quarter long, and their arm, 0 or 1."""
    angle = tt.linspace(0.5, 2.5 * math.pi, count)
    arm = tt.stack([angle * tt.cos(angle), angle * tt.sin(angle)], dim=1) / (2.5 * math.pi)
    points = tt.cat([arm, -arm]) + 0.01 * tt.randn(2 * count, 2)
    return points, tt.arange(2 * count) // count


def picture(model: nn.Module, points: tt.Tensor, arms: tt.Tensor, rows: int = 25) -> str:
    """The plane as text: '.' and '+' where the model sees one arm or the other, 'o' and '#' points.

    A character is about twice as high as wide, so there are twice as many columns as rows.
    """
    columns = 2 * rows
    xs = tt.linspace(-1.1, 1.1, columns).expand(rows, columns)
    ys = tt.linspace(1.1, -1.1, rows).unsqueeze(1).expand(rows, columns)
    with tt.no_grad():
        seen = model(tt.stack([xs, ys], dim=-1)).argmax(dim=-1)  # (rows, columns)
    canvas = [[".+"[arm] for arm in row] for row in seen.tolist()]
    for (x, y), arm in zip(points.tolist(), arms.tolist(), strict=True):
        row = round((1.1 - y) / 2.2 * (rows - 1))
        column = round((x + 1.1) / 2.2 * (columns - 1))
        canvas[row][column] = "o#"[arm]
    return "\n".join("".join(row) for row in canvas)


def fit_spirals(steps: int) -> None:
    points, arms = spirals(200)
    model = nn.Sequential(
        nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)
    )
    optimizer = tt.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(1, steps + 1):
        loss = F.cross_entropy(model(points), arms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, steps // 5) == 0:
            print(f"step {step:5d}: loss {loss.item():.4f}")
    print(picture(model, points, arms))
    right = (model(points).argmax(dim=1) == arms).sum().item()
    print(f"{right} of {len(points)} points are on the right side")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=at_least(0), default=1000, help="of the network; the line takes 100"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tt.manual_seed(arguments.seed)
    fit_line(100)
    fit_spirals(arguments.steps)


if __name__ == "__main__":
    main()
