"""Function transforms: derivatives of any order, of functions of tensors.

Each transform runs its function on inputs lifted to a new level. Operations at that level record a
graph whose closures hold tensors of the level below, so walking the graph back is itself recorded
there. Nesting transforms therefore nests derivatives, with nothing added to any operation:

    grad(f)(x)              df/dx of a scalar function
    vjp(f, x), jvp(f, x, v) one product with the Jacobian, from the left or from the right
    hvp(f, x, v)            one product with the Hessian
    jacobian(f), hessian(f) the whole matrices

Names and signatures follow `torch.func` (and `torch.autograd.functional.hvp`). Inputs and outputs
may be nested dicts, lists and tuples of tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import autograd
from .autograd import Leaf, enable_grad, is_grad_enabled
from .backend import array_module, is_floating
from .tensor import Tensor, as_tensor

if TYPE_CHECKING:
    from .nn.module import Module

Tree = Any  # a tensor, or a dict, list or tuple of trees

_levels = itertools.count(2)  # level 1 is ordinary recording; every transform takes a new one


# --- trees ---------------------------------------------------------------------------------------


def tree_leaves(tree: Tree) -> list[Any]:
    """The tensors (and other leaves) of a nested dict, list or tuple, in order."""
    if isinstance(tree, dict):
        return [leaf for key in tree for leaf in tree_leaves(tree[key])]
    if isinstance(tree, list | tuple):
        return [leaf for branch in tree for leaf in tree_leaves(branch)]
    return [tree]


def tree_map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """`function` applied to the corresponding leaves of trees of the same structure."""
    if isinstance(tree, dict):
        return {
            key: tree_map(function, tree[key], *(other[key] for other in others)) for key in tree
        }
    if isinstance(tree, list | tuple):
        if any(len(other) != len(tree) for other in others):
            raise ValueError(
                f"trees differ: {len(tree)} branches against {[len(o) for o in others]}"
            )
        branches = [
            tree_map(function, branch, *(other[i] for other in others))
            for i, branch in enumerate(tree)
        ]
        if hasattr(tree, "_fields"):
            return type(tree)(*branches)
        return type(tree)(branches)
    return function(tree, *others)


# --- levels --------------------------------------------------------------------------------------


def _lift(x: Any, level: int) -> Tensor:
    """`x` as an input of the function being differentiated at `level`."""
    if not isinstance(x, Tensor):
        x = as_tensor(
            np.asarray(x, dtype=None if hasattr(x, "dtype") else np.result_type(x, np.float32))
        )
    if not is_floating(x.dtype):
        raise TypeError(
            f"tt.func: cannot differentiate with respect to a {x.dtype} tensor; use a floating "
            "dtype"
        )
    return as_tensor(x.value if x.node is None else x, Leaf(x.shape, x.dtype, level))


def _lower(x: Any, level: int) -> Any:
    """An output of the function, as its caller at the level below sees it."""
    if isinstance(x, Tensor) and x.node is not None and x.node.level == level:
        return as_tensor(x.value)
    return x


def _zeros_like(x: Tensor) -> Tensor:
    return as_tensor(array_module(x.array).zeros_like(x.array))


def _ones_like(x: Tensor) -> Tensor:
    return as_tensor(array_module(x.array).ones_like(x.array))


# --- transforms ----------------------------------------------------------------------------------


def vjp(function: Callable[..., Tree], *primals: Tree, has_aux: bool = False) -> tuple[Any, ...]:
    """`(output, pullback)` of `function` at `primals`, or `(output, pullback, aux)`.

    `pullback(cotangent)`, with a cotangent of the output's structure and shapes, returns one
    gradient per primal: cotangentᵀ · Jacobian. It may be called any number of times.
    """
    level = next(_levels)
    recording = is_grad_enabled()
    with enable_grad():
        lifted = tuple(tree_map(lambda x: _lift(x, level), primal) for primal in primals)
        # The function gets handles of its own: `x += y` in it rebinds them.
        output = function(*tree_map(lambda x: as_tensor(x.value, x.node), lifted))
        aux = None
        if has_aux:
            output, aux = output
    for leaf in tree_leaves(output):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"tt.func: the function must return tensors, not {type(leaf).__name__}")
        if leaf.node is not None and leaf.node.level > level:
            raise RuntimeError(
                "tt.func: the function returned a tensor of a transform that has ended; return it "
                "from that transform (has_aux=True) instead of keeping it"
            )
    inputs = [leaf.node for leaf in tree_leaves(lifted)]

    def settle(x: Any) -> Any:
        """What leaves the transform: recorded at lower levels only if the caller is recording."""
        x = _lower(x, level)
        return x if recording or not isinstance(x, Tensor) else x.detach()

    def pullback(cotangent: Tree) -> tuple[Tree, ...]:
        gradients: dict[Any, Any] = dict.fromkeys(inputs)

        def send(leaf: Tensor, given: Any) -> None:
            given = given if isinstance(given, Tensor) else as_tensor(np.asarray(given, leaf.dtype))
            if tuple(given.shape) != tuple(leaf.shape):
                raise ValueError(
                    f"pullback: the cotangent has shape {given.shape} but the output has shape "
                    f"{leaf.shape}"
                )
            if leaf.node is None or leaf.node.level != level:
                return  # this output does not depend on the primals
            wanted: dict[Any, Any] = dict.fromkeys(inputs)
            seed = given.value if given.node is None else given
            if isinstance(leaf.value, Tensor) and not isinstance(seed, Tensor):
                seed = given
            autograd.backward(leaf.node, seed, retain_graph=True, wanted=wanted)
            for node, gradient in wanted.items():
                if gradient is not None:
                    known = gradients[node]
                    gradients[node] = gradient if known is None else known + gradient

        tree_map(send, output, cotangent)

        def gradient_of(x: Tensor) -> Tensor:
            gradient = gradients[x.node]
            return _zeros_like(x) if gradient is None else as_tensor(gradient)

        return tuple(tree_map(gradient_of, tree) for tree in lifted)

    result = tree_map(settle, output), pullback
    return (*result, aux) if has_aux else result


def value_and_grad(
    function: Callable[..., Any], argnums: int | tuple[int, ...] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that returns `(function(...), gradient)`; `function` must return a scalar tensor.

    `argnums` says with respect to which positional arguments. With `has_aux=True` the function
    returns `(scalar, anything)` and the result is `((scalar, anything), gradient)`.
    """

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        numbers = (argnums,) if isinstance(argnums, int) else argnums
        if any(not -len(args) <= n < len(args) for n in numbers):
            raise ValueError(
                f"grad: argnums={argnums} but only {len(args)} positional arguments were given"
            )
        numbers = tuple(n % len(args) for n in numbers)

        def of_chosen(*chosen: Any) -> Any:
            everything = list(args)
            for n, x in zip(numbers, chosen, strict=True):
                everything[n] = x
            return function(*everything, **kwargs)

        output, pullback, *aux = vjp(of_chosen, *(args[n] for n in numbers), has_aux=has_aux)
        if not isinstance(output, Tensor) or output.array.size != 1:
            shape = output.shape if isinstance(output, Tensor) else type(output).__name__
            raise RuntimeError(
                f"grad: the function must return a tensor of one element, not {shape}"
            )
        gradients = pullback(_ones_like(output))
        gradient = gradients[0] if isinstance(argnums, int) else gradients
        return ((output, aux[0]) if has_aux else output), gradient

    return wrapped


def grad(
    function: Callable[..., Any], argnums: int | tuple[int, ...] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """The gradient of a scalar function with respect to its argument `argnums`, as a function."""
    transformed = value_and_grad(function, argnums, has_aux)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        output, gradient = transformed(*args, **kwargs)
        return (gradient, output[1]) if has_aux else gradient

    return wrapped


def jvp(
    function: Callable[..., Tree], primals: tuple[Tree, ...], tangents: tuple[Tree, ...]
) -> tuple[Tree, Tree]:
    """`(output, Jacobian · tangents)` of `function` at `primals`.

    The pullback is linear in its cotangent u: g(u) = Jᵀu. Its own pullback is therefore v -> Jv,
    which needs no forward-mode rule in any operation (J. Townsend, "A new trick for calculating
    Jacobian vector products", 2017).
    """
    _same_structure("jvp", primals, tangents)
    output, pullback = vjp(function, *primals)
    cotangent = tree_map(_zeros_like, output)
    _, push = vjp(lambda u: pullback(u), cotangent)
    return output, push(tuple(tangents))[0]


def hvp(function: Callable[..., Tensor], inputs: Tree, v: Tree) -> tuple[Tensor, Tree]:
    """`(output, Hessian · v)` of a scalar function at `inputs`: the gradient of (gradient · v).

    `inputs` and `v` are a tensor each, or tuples of as many as the function takes
    (`torch.autograd.functional`), each of which may be a tree. Costs about as much as two
    gradients.
    """
    single = not isinstance(inputs, tuple)
    primals, directions = ((inputs,), (v,)) if single else (inputs, v)
    _same_structure("hvp", primals, directions)
    outputs: list[Tensor] = []

    def slope(*xs: Tree) -> Tensor:
        output, gradients = value_and_grad(function, tuple(range(len(xs))))(*xs)
        terms = tree_leaves(tree_map(lambda g, d: (g * d).sum(), gradients, tuple(directions)))
        outputs.append(output)
        total: Tensor = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    _, pullback = vjp(slope, *primals)
    one = array_module(outputs[0].array).ones((), outputs[0].dtype)
    products = pullback(as_tensor(one))
    return outputs[0].detach(), products[0] if single else products


def jacobian(function: Callable[..., Tensor], argnums: int = 0) -> Callable[..., Tensor]:
    """The Jacobian of `function` with respect to argument `argnums`, row by row.

    Its shape is `output.shape + input.shape`.
    """

    def wrapped(*args: Any) -> Tensor:
        def of_chosen(x: Tensor) -> Tensor:
            return function(*args[:argnums], x, *args[argnums + 1 :])

        output, pullback = vjp(of_chosen, args[argnums])
        xp = array_module(output.array)
        basis = xp.eye(output.array.size, dtype=output.dtype)
        rows = [pullback(as_tensor(row.reshape(output.shape)))[0] for row in basis]
        shape = (*output.shape, *args[argnums].shape)
        if not rows:
            return as_tensor(xp.zeros(shape, output.dtype))
        matrix: Tensor = array_module(rows[0]).stack(rows).reshape(shape)
        return matrix

    return wrapped


jacrev = jacobian


def hessian(function: Callable[..., Tensor], argnums: int = 0) -> Callable[..., Tensor]:
    """The matrix of second derivatives of a scalar function: shape `input.shape + input.shape`."""
    return jacobian(grad(function, argnums), argnums)


def _same_structure(name: str, primals: Tree, tangents: Tree) -> None:
    def check(x: Any, v: Any) -> None:
        if tuple(np.shape(x) if not isinstance(x, Tensor) else x.shape) != tuple(
            np.shape(v) if not isinstance(v, Tensor) else v.shape
        ):
            raise ValueError(
                f"{name}: an input of shape {x.shape} was given a direction of shape {v.shape}"
            )

    tree_map(check, tuple(primals), tuple(tangents))


def functional_call(
    module: Module,
    parameters: dict[str, Tensor],
    args: Any = (),
    kwargs: dict[str, Any] | None = None,
) -> Any:
    """`module(*args, **kwargs)` with the named parameters and buffers replaced by `parameters`,
    for this call only.
    """
    with module.replaced(parameters):
        args = args if isinstance(args, tuple) else (args,)
        return module(*args, **(kwargs or {}))
