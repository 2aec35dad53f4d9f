"""An operation of your own: write it, have its gradient checked, and be told where it is wrong.

An operation is a function on arrays. It returns its result and, for each input, the function that
turns the gradient of the result, dy, into the gradient of that input (a vector-Jacobian product).
The engine does the rest: broadcasting, recording, derivatives of derivatives.

The operation is the smooth maximum, y = ln(eᵃ + eᵇ). With s = 1 / (1 + eᵇ⁻ᵃ), the share of a in
the sum, its derivatives are s for a and 1 - s for b.

Runs for a second. The last line is "the planted error was found".
"""

from __future__ import annotations

import argparse

import tinytensor as tt
from tinytensor.testing import GradcheckError, gradcheck, gradgradcheck


@tt.op
def smooth_maximum(a, b):
    """y = ln(eᵃ + eᵇ), computed as max + ln(1 + e^-|a - b|) so that no large number is raised."""
    y = tt.maximum(a, b) + tt.log(1 + tt.exp(-tt.abs(a - b)))
    share = tt.sigmoid(a - b)
    return y, (lambda dy: dy * share, lambda dy: dy * (1 - share))


@tt.op
def careless_maximum(a, b):
    """The same with an error that is easily made: the second gradient is that of ln(eᵃ - eᵇ)."""
    y = tt.maximum(a, b) + tt.log(1 + tt.exp(-tt.abs(a - b)))
    share = tt.sigmoid(a - b)
    return y, (lambda dy: dy * share, lambda dy: dy * (share - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    tt.manual_seed(parser.parse_args().seed)

    # Shapes that broadcast: the engine sums each gradient back to the shape of its input.
    a = tt.randn(3, 1, dtype=tt.float64, requires_grad=True)
    b = tt.randn(4, dtype=tt.float64, requires_grad=True)

    y = smooth_maximum(a, b)
    y.sum().backward()
    print(f"y {y.shape} from a {a.shape} and b {b.shape}; a.grad is {a.grad.shape}")

    # Finite differences along random directions, in float64, against the functions given above.
    print("gradcheck:", gradcheck(smooth_maximum, (a, b)))
    # The gradient functions are array mathematics too, so they have gradients, which are checked.
    print("gradgradcheck:", gradgradcheck(smooth_maximum, (a, b)))
    curvature = tt.func.hessian(lambda a: smooth_maximum(a, tt.tensor(0.0)))(tt.tensor(0.0))
    print(f"second derivative at a = b: {curvature.item()} (s (1 - s) = 1/4)")

    print("\nand the careless one:")
    try:
        gradcheck(careless_maximum, (a, b))
    except GradcheckError as error:
        print(error)
        print("the planted error was found")


if __name__ == "__main__":
    main()
