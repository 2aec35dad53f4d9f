"""Is a gradient right? Compare it with finite differences.

For an output y = f(x), a random cotangent u and a random direction v, two numbers must agree:

    what the backward pass says     (Jᵀu) · v
    what the function itself does   d/dt  u · f(x + t·v)  at t = 0

A cotangent of ones would be blind (softmax(x).sum() is constant, so any backward passes), and one
direction sees every element of the gradient at once, so the cost does not grow with the size.
Around that, the rest of an operation's contract is checked: nobody writes into the inputs or into
`dy`, the same call gives the same result, a gradient that was handed over is left alone.
`full=True` compares the Jacobian element by element, and is what a failed check falls back on to
point at the error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import autograd, func
from ..autograd import FREED, Node, no_grad
from ..backend import Array, array_module, is_floating, to_numpy
from ..tensor import Tensor, as_tensor
from .finite_differences import EPSILON, STEP, Line, Slope

Vector = np.ndarray[Any, Any]

# An analytic gradient and an extrapolated difference both keep at least half of the digits ...
RTOL = math.sqrt(EPSILON)
# ... and a difference that keeps less than a quarter of them decides nothing.
WORST_RTOL = EPSILON**0.25
# What the order of operations alone may change.
ROUNDING = EPSILON**0.75
# A Jacobian up to this many entries is computed to show where an error is.
SMALL = 4096


class GradcheckError(AssertionError):
    """The gradient is wrong, or the operation breaks its contract; the message says where."""


class KinkError(GradcheckError):
    """The function has a kink or a jump at this very point: no gradient there is right or wrong."""


def gradcheck(
    function: Callable[..., Any],
    inputs: Any,
    *,
    eps: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    directions: int = 3,
    full: bool = False,
    seed: int = 0,
    raise_exception: bool = True,
) -> bool:
    """Whether the gradients of `function(*inputs)` agree with finite differences, in float64.

    `inputs` is a tensor or a sequence of arguments. Tensors with `requires_grad=True` (also inside
    lists, tuples and dicts) are varied, one at a time, in float64 whatever their own dtype;
    everything else is held fixed. The function returns a tensor or a tuple of them; outputs that
    are not floating are passed over.

    `eps` is the first step, relative to the size of each input (default: the cube root of the
    rounding unit; it is refined where the function needs it). `rtol` and `atol` are what the two
    numbers may differ by, beyond the estimated error of the difference itself. `directions` random
    directions are tried per input, or with `full=True` every element of the Jacobian.

    Raises GradcheckError, or KinkError at a point that has no gradient; with
    `raise_exception=False` returns False instead. Raises ValueError when no input requires a
    gradient.
    """
    rtol, atol = RTOL if rtol is None else rtol, atol or 0.0
    try:
        check = _Check(function, inputs, eps or STEP, rtol, atol, seed)
        check.contract()
        if full:
            check.every_element()
        else:
            for _ in range(directions):
                check.random_direction()
    except GradcheckError:
        if raise_exception:
            raise
        return False
    return True


def gradgradcheck(
    function: Callable[..., Any],
    inputs: Any,
    grad_outputs: Any = None,
    *,
    eps: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    directions: int = 3,
    full: bool = False,
    seed: int = 0,
    raise_exception: bool = True,
) -> bool:
    """Whether the second derivatives of `function` agree with finite differences.

    Applies `gradcheck` to the pullback (x, u) -> Jᵀu, as `tt.func.vjp` gives it, in x and in the
    cotangents u (`grad_outputs`, random by default). Arguments and errors are those of
    `gradcheck`.
    """
    arguments = _Arguments(inputs)
    with no_grad():
        found = _floating_outputs(_name(function), function(*arguments.filled(arguments.arrays)))
    rng = np.random.default_rng(seed)
    if grad_outputs is None:
        given = [as_tensor(rng.standard_normal(tuple(y.shape))) for _, y in found]
    else:
        given = [grad_outputs] if isinstance(grad_outputs, Tensor) else list(grad_outputs)
    cotangents = [as_tensor(u.array).requires_grad_() for u in given]
    count = len(arguments.arrays)

    def pullback(*values: Any) -> Any:
        def floating_outputs(*xs: Any) -> tuple[Tensor, ...]:
            return tuple(
                y for _, y in _floating_outputs(_name(function), function(*arguments.filled(xs)))
            )

        return func.vjp(floating_outputs, *values[:count])[1](tuple(values[count:]))

    pullback.__name__ = f"the gradient of {_name(function)}"
    variables = [as_tensor(x).requires_grad_() for x in arguments.arrays]
    return gradcheck(
        pullback,
        [*variables, *cotangents],
        eps=eps,
        rtol=rtol,
        atol=atol,
        directions=directions,
        full=full,
        seed=seed + 1,
        raise_exception=raise_exception,
    )


class _Arguments:
    """The arguments of a call, and which of the tensors among them are varied."""

    def __init__(self, inputs: Any) -> None:
        if isinstance(inputs, Tensor) or not isinstance(inputs, list | tuple):
            inputs = (inputs,)
        self.tree = tuple(inputs)
        leaves = func.tree_leaves(self.tree)
        chosen = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.requires_grad]
        if not chosen:
            raise ValueError(
                "gradcheck: no input requires a gradient; make one with requires_grad=True"
            )
        self.places = dict(zip(chosen, range(len(chosen)), strict=True))
        # A float64 array keeps its layout, which may be what is being checked.
        self.arrays = [leaves[i].array for i in chosen]
        self.arrays = [x if x.dtype == np.float64 else x.astype(np.float64) for x in self.arrays]

    def filled(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments with `values` (arrays or tensors) in the place of those that are varied."""
        numbers = iter(range(1 << 62))

        def choose(leaf: Any) -> Any:
            place = self.places.get(next(numbers))
            if place is not None:
                return as_tensor(values[place])
            return leaf.detach() if isinstance(leaf, Tensor) else leaf

        return func.tree_map(choose, self.tree)  # type: ignore[no-any-return]


class _Check:
    """One run of `gradcheck`."""

    def __init__(
        self,
        function: Callable[..., Any],
        inputs: Any,
        step: float,
        rtol: float,
        atol: float,
        seed: int,
    ) -> None:
        self.function = function
        self.name = _name(function)
        self.arguments = _Arguments(inputs)
        self.arrays = self.arguments.arrays
        self.module = array_module(*self.arrays)
        self.step, self.rtol, self.atol = step, rtol, atol
        self.rng = np.random.default_rng(seed)
        # Gradients that VJPs returned: which node's, the array, and a copy of it.
        self.handed_over: list[tuple[Node, Array, Array]] = []
        self.varied = [as_tensor(x).requires_grad_() for x in (x.view() for x in self.arrays)]
        with _unchanged(f"the forward pass of {self.name}", self.arrays), np.errstate(all="ignore"):
            self.outputs = _floating_outputs(
                self.name, function(*self.arguments.filled(self.varied))
            )
        for place, y in self.outputs:
            if y.dtype != np.float64:
                raise GradcheckError(
                    f"gradcheck: output {place} of {self.name} is {y.dtype} though every varied "
                    "input is float64; finite differences need float64 throughout"
                )
            if not np.isfinite(to_numpy(y.array)).all():
                raise GradcheckError(
                    f"gradcheck: output {place} of {self.name} is not finite at this point"
                )
            self._guard(y.node)

    # --- what the backward pass says ---

    def gradients(self, place: int, cotangent: Vector) -> list[Vector]:
        """The gradients of u · y with respect to every varied input, as NumPy arrays."""
        y = dict(self.outputs)[place]
        if y.node is None:
            return [np.zeros(x.shape) for x in self.arrays]
        wanted: dict[Node, Any] = {x.node: None for x in self.varied if x.node is not None}
        seed = self.module.asarray(cotangent)
        try:
            with (
                _unchanged(f"the backward pass of {self.name}", self.arrays),
                np.errstate(all="ignore"),
            ):
                autograd.backward(y.node, seed, retain_graph=True, wanted=wanted)
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            raise GradcheckError(
                f"gradcheck: the backward pass of {self.name} failed: {error}"
            ) from error
        found = [
            np.zeros(x.shape) if g is None else to_numpy(g).copy()
            for g, x in zip(wanted.values(), self.arrays, strict=True)
        ]
        for i, g in enumerate(found):
            if not np.isfinite(g).all():
                raise GradcheckError(
                    f"gradcheck: the gradient of output {place} of {self.name} with respect to "
                    f"input {i} is not finite at this point"
                )
        return found

    def _guard(self, root: Node | None) -> None:
        """Wrap every VJP behind `root` so that it tells when one writes where it must not."""
        if root is None:
            return
        for node in autograd.count_consumers(root):
            if node.vjp is FREED or not node.parents:
                continue
            if isinstance(node.vjp, tuple):
                node.vjp = tuple(vjp and _Guarded(vjp, node, self) for vjp in node.vjp)
            elif not isinstance(node.vjp, _Guarded):
                node.vjp = _Guarded(node.vjp, node, self)

    # --- the parts of the check ---

    def contract(self) -> None:
        """The same call gives the same numbers; no gradient that was handed over changes later."""
        again = dict(_floating_outputs(self.name, self._call(self.arrays)))
        for place, y in self.outputs:
            self._same(f"output {place}", y.array, again[place].array)
            first = self.rng.standard_normal(y.shape)
            before = self.gradients(place, first)
            self.gradients(place, self.rng.standard_normal(y.shape))
            for i, (one, two) in enumerate(zip(before, self.gradients(place, first), strict=True)):
                self._same(f"the gradient of output {place} with respect to input {i}", one, two)
        for node, given, copy in self.handed_over:
            if not np.array_equal(to_numpy(given), to_numpy(copy), equal_nan=True):
                raise GradcheckError(
                    f"gradcheck: a gradient that the VJP of {node.operation} {node.shape} returned "
                    "was overwritten by a later call; it must be an array of its own (or dy "
                    "itself), not a buffer that is used again"
                )
        self.handed_over.clear()

    def _same(self, what: str, one: Array, two: Array) -> None:
        one, two = to_numpy(one), to_numpy(two)
        # Recording or not may choose another fast path, which rounds in another order.
        if one.shape != two.shape or not np.allclose(
            one, two, rtol=0, atol=ROUNDING * np.abs(one).max(initial=0)
        ):
            difference = (
                f"by up to {np.abs(one - two).max():.2g}"
                if one.shape == two.shape
                else f"in shape, {one.shape} and {two.shape}"
            )
            raise GradcheckError(
                f"gradcheck: {self.name} is not deterministic: {what} differs between two equal "
                f"calls, {difference}; fix its seed inside the function"
            )

    def random_direction(self) -> None:
        """Compare along one random direction per input, with one random cotangent per output."""
        cotangents = {place: self.rng.standard_normal(y.shape) for place, y in self.outputs}
        analytic = {place: self.gradients(place, u) for place, u in cotangents.items()}
        for i, x in enumerate(self.arrays):
            direction = self.rng.standard_normal(x.shape) * _scale_of(x)
            if not direction.size:
                continue
            values: dict[float, dict[int, Vector]] = {}
            for place in cotangents:
                line = self._line(i, direction, place, cotangents[place], values)
                terms = analytic[place][i] * direction
                verdict = self._compare(
                    line, float(terms.sum()), float(np.sqrt((terms * terms).sum()))
                )
                if verdict is not None:
                    where = (
                        f"output {place} {self._shape(place)} with respect to input {i} {x.shape}"
                    )
                    self._fail(f"{where}, along a random direction: {verdict}", line, i, place)

    def every_element(self) -> None:
        """Compare the Jacobian element by element."""
        for place, _ in self.outputs:
            for i in range(len(self.arrays)):
                worst = self._worst_element(i, place)
                if worst is not None:
                    self._fail(worst, None, i, place)

    def _compare(self, line: Line, analytic: float, scale: float) -> str | None:
        """None if the function's slope along `line` is `analytic`; else a sentence.

        `scale` is the size that the slope would have if its terms did not cancel.
        """
        tried: list[Slope] = []
        with np.errstate(all="ignore"):
            first = line.slope(line.step)
            scale = max(scale, abs(analytic), abs(first.value) if math.isfinite(first.value) else 0)
            floor = self.atol + 64 * line.noise(line.step)

            def reliable(slope: Slope) -> bool:
                return bool(slope.error <= WORST_RTOL * max(scale, abs(slope.value)) + floor)

            def agrees(slope: Slope) -> bool:
                allowed = self.rtol * max(scale, abs(slope.value)) + self.atol + slope.error
                return reliable(slope) and bool(abs(analytic - slope.value) <= allowed)

            broken = line.break_at_zero(scale)
            if broken is not None:
                raise KinkError(
                    f"gradcheck: {self.name} has a {broken.kind} at this point: along a random "
                    f"direction its slope is {broken.left:.6g} from the left and "
                    f"{broken.right:.6g} from the right (the backward pass says {analytic:.6g}). "
                    "There is no gradient to compare with; check at another point"
                )
            for slope in line.slopes():
                if agrees(slope):
                    return None
                tried.append(slope)
        if not math.isfinite(first.value):
            return (
                f"it is not finite within {line.step:.1g} of this point: at the end of its domain"
            )
        best = min(tried, key=lambda slope: slope.error if math.isfinite(slope.error) else math.inf)
        claims = [slope.value for slope in tried if reliable(slope)]
        said = f"the backward pass says {analytic:.9g}, finite differences say "
        if not claims or np.ptp(claims) > WORST_RTOL * scale + 2 * floor:
            return (
                f"{said}{best.value:.9g} ± {best.error:.1g}, but different numbers with different "
                "steps: this cannot be decided. The function is not smooth around this point, or "
                "it "
                "computes in low precision"
            )
        return f"{said}{best.value:.9g} ± {best.error:.1g}"

    def _fail(self, what: str, line: Line | None, i: int, place: int) -> None:
        """Raise, with the worst element of the Jacobian where that is cheap to find."""
        if line is not None and self.arrays[i].size * dict(self.outputs)[place].array.size <= SMALL:
            try:
                worst = self._worst_element(i, place)
            except GradcheckError:
                worst = None
            if worst is not None:
                what = f"{what}. Worst element: {worst}"
        raise GradcheckError(f"gradcheck: the gradient of {self.name} is wrong: {what}")

    def _worst_element(self, i: int, place: int) -> str | None:
        """A sentence about the element of the Jacobian that is most wrong, or None if none is."""
        x = self.arrays[i]
        size = dict(self.outputs)[place].array.size
        analytic = np.zeros((size, x.size))
        for row in range(size):
            unit = np.zeros(size)
            unit[row] = 1.0
            analytic[row] = self.gradients(place, unit.reshape(self._shape(place)))[i].reshape(-1)
        numeric = np.zeros_like(analytic)
        wrong: list[tuple[float, int, int, str]] = []
        for column in range(x.size):
            direction = np.zeros(x.size)
            direction[column] = _scale_of(x)
            values: dict[float, dict[int, Vector]] = {}
            for row in range(size):
                unit = np.zeros(size)
                unit[row] = 1.0
                line = self._line(
                    i, direction.reshape(x.shape), place, unit.reshape(self._shape(place)), values
                )
                claimed = analytic[row, column] * direction[column]
                verdict = self._compare(line, claimed, 0.0)
                numeric[row, column] = line.slope(line.step).value / direction[column]
                if verdict is not None:
                    difference = abs(claimed / direction[column] - numeric[row, column])
                    wrong.append((difference, row, column, verdict))
        if not wrong:
            return None
        _, row, column, _ = max(wrong)
        output = _subscript("output", place, row, self._shape(place))
        variable = _subscript("input", i, column, x.shape)
        return (
            f"d {output} / d {variable} is {analytic[row, column]:.9g} by the backward pass and "
            f"{numeric[row, column]:.9g} by finite differences ({len(wrong)} of {analytic.size} "
            f"elements are wrong{_hint(analytic, numeric, self._shape(place), x.shape)})"
        )

    # --- evaluating ---

    def _line(
        self,
        i: int,
        direction: Vector,
        place: int,
        cotangent: Vector,
        values: dict[float, dict[int, Vector]],
    ) -> Line:
        """u · y along x + t·v; `values` remembers what is known for every output at each t."""

        def evaluate(t: float) -> Vector:
            if t not in values:
                moved = list(self.arrays)
                moved[i] = self.module.asarray(to_numpy(moved[i]) + t * direction)
                found = _floating_outputs(self.name, self._call(moved))
                values[t] = {n: to_numpy(y.array) for n, y in found}
            if values[t][place].shape != cotangent.shape:
                raise GradcheckError(
                    f"gradcheck: the shape of output {place} of {self.name} changes with the "
                    f"input's values, from {cotangent.shape} to {values[t][place].shape}"
                )
            return (values[t][place] * cotangent).reshape(-1)

        return Line(evaluate, self.step)

    def _call(self, arrays: Sequence[Array]) -> Any:
        with no_grad(), np.errstate(all="ignore"):
            return self.function(*self.arguments.filled(arrays))

    def _shape(self, place: int) -> tuple[int, ...]:
        return tuple(dict(self.outputs)[place].shape)


class _Guarded:
    """A VJP that checks on each call that `dy` and the saved arrays are as they were."""

    def __init__(self, vjp: Callable[[Array], Any], node: Node, check: _Check) -> None:
        self.vjp, self.node, self.check = vjp, node, check

    def __call__(self, dy: Array) -> Any:
        node = self.node
        given = [dy] if not isinstance(dy, tuple) else [d for d in dy if d is not None]
        with _unchanged(f"the VJP of {node.operation} {node.shape}", given, "dy"):
            gradients = self.vjp(dy)
        for gradient in gradients if isinstance(gradients, tuple) else (gradients,):
            if gradient is not None and not hasattr(gradient, "dense"):
                self.check.handed_over.append((node, gradient, gradient.copy()))
        return gradients


class _unchanged:
    """Raises if one of `arrays` has other contents at the end of the block than before."""

    def __init__(self, who: str, arrays: Sequence[Array], what: str = "input") -> None:
        self.who, self.what = who, what
        self.arrays = arrays
        self.copies = [x.copy() for x in arrays]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        for i, (x, copy) in enumerate(zip(self.arrays, self.copies, strict=True)):
            if not np.array_equal(to_numpy(x), to_numpy(copy), equal_nan=True):
                what = self.what if self.what == "dy" else f"{self.what} {i}"
                x[...] = copy
                raise GradcheckError(
                    f"gradcheck: {self.who} writes into {what} {tuple(x.shape)}; inputs and "
                    "incoming gradients belong to others, write into an array of your own"
                )


# --- small things ---------------------------------------------------------------------------------


def _name(function: Callable[..., Any]) -> str:
    function = getattr(function, "func", function)  # of a functools.partial
    return str(getattr(function, "__name__", None) or type(function).__name__)


def _floating_outputs(name: str, outputs: Any) -> list[tuple[int, Tensor]]:
    """The floating tensors among the outputs, each with its position."""
    several = outputs if isinstance(outputs, list | tuple) else (outputs,)
    for y in several:
        if not isinstance(y, Tensor):
            raise TypeError(f"gradcheck: {name} must return tensors, not {type(y).__name__}")
    found = [(place, y) for place, y in enumerate(several) if is_floating(y.dtype)]
    if not found:
        raise GradcheckError(
            f"gradcheck: {name} returns no floating-point tensor "
            f"({', '.join(str(y.dtype) for y in several)}), so there is nothing to differentiate"
        )
    return found


def _scale_of(x: Array) -> float:
    """The size of a typical element: steps are relative to it. 1 where there is none."""
    values = to_numpy(x)
    rms = math.sqrt(float((values * values).mean())) if values.size else 0.0
    return max(rms, math.sqrt(EPSILON)) if rms else 1.0


def _subscript(kind: str, number: int, flat: int, shape: tuple[int, ...]) -> str:
    index = ", ".join(str(int(k)) for k in np.unravel_index(flat, shape)) if shape else ""
    return f"{kind} {number}[{index}]" if shape else f"{kind} {number}"


def _hint(
    analytic: Vector, numeric: Vector, output: tuple[int, ...], given: tuple[int, ...]
) -> str:
    """What kind of mistake this looks like, if it looks like a common one."""
    if not analytic.any():
        return "; the backward pass gives zero everywhere"
    large = np.abs(numeric) > 1e-3 * np.abs(numeric).max()
    if large.any():
        ratios = analytic[large] / numeric[large]
        if np.ptp(ratios) < 1e-4 * abs(ratios[0]):
            return f"; every one is too large by the factor {ratios[0]:.6g}"
    for shape, axes, who in (
        (given, 1, "the gradient is transposed"),
        (output, 0, "dy is transposed"),
    ):
        if len(shape) == 2 and shape[0] == shape[1] > 1:
            other = analytic if axes else analytic.T
            turned = other.reshape(-1, *shape).swapaxes(1, 2).reshape(other.shape)
            if np.allclose(turned if axes else turned.T, numeric, rtol=1e-5, atol=1e-8):
                return f"; it looks as if {who}"
    return ""
