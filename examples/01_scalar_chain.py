"""A chain of scalars, drawn as the graph that it leaves behind.

Every operation on a tensor leaves a node: which operation it was, and which nodes it was computed
from. `backward` walks these nodes from the loss to the leaves, and each operation multiplies the
gradient by its own derivative: the chain rule. Here the chain is one neuron with one input. It is
drawn with the value and the gradient of every step, and then each leaf's gradient is checked by
moving the leaf a little and looking at the loss.

Runs for a second. The last line says how far gradients and differences are apart, as in
"largest difference: 5.4e-11".
"""

from __future__ import annotations

import argparse

import tinytensor as tt


def neuron(x: float, weight: float, bias: float, target: float) -> dict[str, tt.Tensor]:
    """loss = (tanh(weight·x + bias) - target)², with a name for every step."""
    steps = {}

    def step(name: str, tensor: tt.Tensor) -> tt.Tensor:
        steps[name] = tensor
        return tensor

    def leaf(name: str, value: float) -> tt.Tensor:
        return step(name, tt.tensor(value, dtype=tt.float64, requires_grad=True))

    product = step("product", leaf("weight", weight) * leaf("x", x))
    total = step("sum", product + leaf("bias", bias))
    output = step("output", tt.tanh(total))
    error = step("error", output - leaf("target", target))
    step("loss", error * error)  # the same node twice: its gradient is the sum of two
    return steps


def draw(steps: dict[str, tt.Tensor]) -> None:
    """The graph as a tree that grows from the loss, one line a node, parents below children."""
    names = {tensor.node: name for name, tensor in steps.items()}
    drawn = set()

    # Recursion reads well for a picture; the engine's own walk is a loop, for graphs of any depth.
    def line(node, indent: str, branch: str) -> None:
        tensor = steps[names[node]]
        label = f"{indent}{branch}{names[node]}"
        if node in drawn:
            print(f"{label:<26} (the same node as above)")
            return
        drawn.add(node)
        print(
            f"{label:<26} {node.operation:<9} value {tensor.item():8.4f}   "
            f"gradient {tensor.grad.item():8.4f}"
        )
        below = indent + {"": "", "|- ": "|  ", "`- ": "   "}[branch]
        for i, parent in enumerate(node.parents):
            line(parent, below, "`- " if i == len(node.parents) - 1 else "|- ")

    line(steps["loss"].node, "", "")


def difference(name: str, leaves: dict[str, float], step: float = 1e-6) -> float:
    """The slope of the loss along one leaf, from two runs on either side."""
    above, below = (neuron(**{**leaves, name: leaves[name] + s}) for s in (step, -step))
    return (above["loss"].item() - below["loss"].item()) / (2 * step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--x", type=float, default=1.5)
    parser.add_argument("--weight", type=float, default=0.8)
    parser.add_argument("--bias", type=float, default=-0.4)
    parser.add_argument("--target", type=float, default=1.0)
    leaves = vars(parser.parse_args())

    steps = neuron(**leaves)
    for tensor in steps.values():
        tensor.retain_grad()  # a backward pass keeps the gradients of leaves only, unless asked
    steps["loss"].backward(retain_graph=True)  # and frees the graph behind it, unless asked
    draw(steps)

    print()
    differences = []
    for name in leaves:
        gradient, slope = steps[name].grad.item(), difference(name, leaves)
        differences.append(abs(gradient - slope))
        print(f"d loss / d {name:<7} gradient {gradient:11.8f}   finite difference {slope:11.8f}")
    print(f"largest difference: {max(differences):.1e}")


if __name__ == "__main__":
    main()
