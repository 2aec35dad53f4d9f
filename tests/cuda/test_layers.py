"""The registered operations on "cuda-sim": the kernels run, and agree with the references."""

from __future__ import annotations

import numpy as np
import pytest

import tinytensor as tt
from tests.cuda import bounds
from tests.cuda.kernel_cases import launched, normal, wide
from tinytensor import func, ops
from tinytensor.cuda import capture, layers, pointwise, small_gpt  # registers them
from tinytensor.cuda.device import SimArray, host_copies, sim
from tinytensor.cuda.verify_lab import judge, rounding
from tinytensor.nn import functional as F
from tinytensor.random import Draw

pytestmark = pytest.mark.compiler

X, W, B = normal(0, 6, 20), normal(1, 20), normal(2, 20)
TABLE, IDS = normal(3, 9, 20), np.array([[0, 8, 3], [3, 3, 1]])
TARGET = np.array([0, 4, 19, -100, 7, 7])
DRAW = Draw(5, 6)

# Operation, inputs, options; and how many of the inputs have a gradient.
CASES = [
    (ops.softmax, (X,), {}, 1),
    (ops.log_softmax, (X,), {}, 1),
    (ops.layer_norm, (X, W, B), {"eps": 1e-3}, 3),
    (ops.layer_norm, (X, None, None), {}, 1),
    (ops.add_layer_norm, (X, X[::-1] * 2, W, B), {"eps": 1e-3}, 4),
    (ops.add_layer_norm, (X, X[::-1] * 2, None, None), {}, 2),
    (ops.gelu, (X,), {}, 1),
    (ops.gelu, (X,), {"approximate": "tanh"}, 1),
    *[(curve, (X,), {}, 1) for curve in pointwise.CURVES],
    *[(both, (X, np.abs(X[::-1]) + 1), {}, 2) for both in pointwise.ARITHMETIC],
    (ops.dropout, (X,), {"p": 0.3, "draw": DRAW}, 1),
    (ops.embedding, (TABLE, IDS), {}, 1),
    (ops.embedding, (TABLE, IDS), {"padding_idx": 3}, 1),
    *[
        (
            ops.cross_entropy,
            (X, TARGET, None),
            {"reduction": reduction, "label_smoothing": smoothing},
            1,
        )
        for reduction in ("mean", "sum", "none")
        for smoothing in (0.0, 0.2)
    ],
    (ops.cross_entropy, (X, TARGET, np.abs(W)), {}, 1),
    (
        ops.linear_cross_entropy,
        (X, normal(4, 30, 20), normal(5, 30), TARGET, None),
        {"block": 4},
        3,
    ),
    (
        ops.linear_cross_entropy,
        (X, normal(4, 30, 20), None, TARGET, None),
        {"reduction": "none"},
        2,
    ),
]


def on_sim(x):
    return sim.asarray(x) if isinstance(x, np.ndarray) else x


def dense(gradient):
    return gradient.dense() if hasattr(gradient, "dense") else gradient


def gradients(vjp, dys, number):
    if isinstance(vjp, tuple):
        return [dense(vjp[i](*dys)) for i in range(number)]
    found = vjp(*dys)
    return [dense(g) for g in (found if isinstance(found, tuple) else (found,))[:number]]


def agree(ours, exact, dtype, roundings):
    """`ours` is as near as `judge` says; no sum here is longer than 30. What is float32 for inputs
    of bfloat16 (a loss, a weight's gradient) was made of numbers rounded to those.
    """
    length, unit = (30, 0.0) if ours.dtype == dtype else (1, rounding(dtype))
    error, limit = judge(ours, exact, length, roundings, unit)
    assert error <= limit


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), tt.bfloat16], ids=["float", "bf16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__} {case[2]}")
def test_kernels_agree_with_the_reference(case, dtype):
    operation, inputs, options, number = case
    inputs = [
        x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in inputs
    ]
    exact = [wide(x) if isinstance(x, np.ndarray) and x.dtype == dtype else x for x in inputs]
    expected, reference_vjp = operation.reference(*exact, **options)
    before = host_copies()
    outputs, vjp = operation.implementations[SimArray](*map(on_sim, inputs), **options)
    several = isinstance(outputs, tuple)
    ys, exact = (outputs, expected) if several else ((outputs,), (expected,))
    dys = [normal(9 + i, *y.shape, dtype=dtype) for i, y in enumerate(ys)]
    ours = gradients(vjp, [on_sim(dy) for dy in dys], number)
    assert host_copies() == before
    for y, wanted in zip(ys, exact, strict=True):
        assert y.dtype == (np.float32 if operation is ops.linear_cross_entropy else dtype)
        # A sum in bfloat16 is normalised as it was rounded.
        agree(y.host, wanted, dtype, int(several))
    expected_gradients = gradients(reference_vjp, [wide(dy) for dy in dys], number)
    for got, wanted in zip(ours, expected_gradients, strict=True):
        wanted = wanted.sum(tuple(range(wanted.ndim - got.ndim)))  # as the engine un-broadcasts
        # bfloat16: what backward passes read, softmax's y or dlogits, was rounded before.
        agree(got.host, wanted, dtype, 2)


@pytest.mark.parametrize("used", ["both", "the sum", "its norm"])
@pytest.mark.parametrize("dtype", [tt.float32, tt.bfloat16], ids=str)
def test_a_float_stream_takes_layers_of_any_dtype_in_one_pass(dtype, used, monkeypatch):
    """The sum is float32, the norm and the gradient of x are of x's dtype; nothing is converted."""
    found, names = [], launched(monkeypatch)
    for device in ("cpu", "cuda-sim"):
        x = tt.tensor(X).to(device).to(dtype).requires_grad_()
        residual, weight, bias = (
            tt.tensor(a).to(device).requires_grad_() for a in (X[::-1] * 2, W, B)
        )
        leaves = [x, residual] if used == "the sum" else [x, residual, weight, bias]
        before = host_copies()
        total, normed = F.add_layer_norm(x, residual, weight, bias)
        assert (total.dtype, normed.dtype) == (tt.float32, dtype)
        results = {"both": (total, normed), "the sum": (total,), "its norm": (normed,)}[used]
        dy = tt.tensor(normal(3, *X.shape)).to(device).bfloat16().float()
        sum((y.float() * dy).sum() for y in results).backward()
        assert [a.grad.dtype for a in leaves] == [dtype, *[tt.float32] * (len(leaves) - 1)]
        assert host_copies() == before
        found.append([*(y.detach() for y in results), *(a.grad for a in leaves)])
    assert names.count("layer_norm_forward") == 1
    assert names.count("layer_norm_backward") == (used != "the sum")
    for theirs, ours in zip(*found, strict=True):
        agree(ours.cpu().array, wide(theirs.array), ours.dtype, 1)


@pytest.mark.parametrize(
    ("operation", "inputs", "options"),
    [
        (ops.softmax, (X,), {"axis": 0}),
        (ops.layer_norm, (X, W, B), {"ndim": 2}),
        (ops.layer_norm, (X, W[:3], None), {}),
        (ops.add_layer_norm, (X, W, W, B), {}),
        (ops.add_layer_norm, (X, X, W[:3], None), {}),
        (ops.add_layer_norm, (X, X.astype(tt.bfloat16), W, B), {}),
        (ops.add_layer_norm, (X.astype(np.float64), X, W, B), {}),
        (ops.dropout, (X,), {"p": 1.0}),
        (ops.embedding, (TABLE, IDS.astype(np.int32)), {}),
        (ops.cross_entropy, (X, TARGET, W), {"label_smoothing": 0.1}),
        (ops.softmax, (X.astype(np.float64),), {}),
        (ops.add, (X, W), {}),
        (ops.multiply, (X.T, X.T), {}),
        (ops.divide, (X, 2.0), {}),
        (ops.exp, (X.astype(np.float64),), {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_no_kernel_takes_is_declined(operation, inputs, options):
    found = operation.implementations[SimArray](*map(on_sim, inputs), **options)
    assert found is NotImplemented


@pytest.mark.parametrize(
    ("target", "weight", "options", "sentence"),
    [
        (TARGET[:2], None, {}, r"need one target per row, \(6,\)"),
        (TARGET, W[:3], {}, r"need a weight \(\d+,\), but it is \(3,\)"),
        (TARGET, None, {"reduction": "avg"}, "reduction is 'avg'"),
        (TARGET, None, {"label_smoothing": 1.5}, "label_smoothing is between 0 and 1"),
    ],
)
def test_kernels_refuse_what_the_references_refuse(target, weight, options, sentence):
    x, table, target = map(on_sim, (X, TABLE, target))
    weight = None if weight is None else on_sim(weight)
    for operation, inputs in (
        (ops.cross_entropy, (x, target, weight)),
        (ops.linear_cross_entropy, (x, table, None, target, weight)),
    ):
        with pytest.raises(ValueError, match=f"^{operation.__name__}: .*{sentence}"):
            operation.implementations[SimArray](*inputs, **options)


def test_the_gradient_of_a_table_adds_itself():
    dy = normal(0, 2, 3, 20)
    gradient = layers.EmbeddingGradient(on_sim(dy), on_sim(IDS), TABLE.shape, None)
    buffer = sim.asarray(TABLE)
    gradient.add_to(buffer)
    added = wide(TABLE) + wide(gradient.dense().host)
    bounds.close(buffer.host, added, bounds.U * np.abs(added))
    gradient.write_to(buffer)
    np.testing.assert_array_equal(buffer.host, gradient.dense().host)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda x, y: x + y, ["elementwise"]),
        (lambda x, y: 2.0 * x, ["elementwise"]),
        (lambda x, y: x * 0.5 - y, ["elementwise"] * 2),
        (lambda x, y: (x / y).tanh(), ["elementwise"] * 2),
        (lambda x, y: F.silu(x), ["elementwise"]),
        (lambda x, y: F.gelu(x), ["gelu_forward"]),
    ],
)
@pytest.mark.parametrize("dtype", [tt.float32, tt.bfloat16], ids=str)
def test_expressions_run_kernels_forward_and_backward(made, expected, dtype, monkeypatch):
    results = []
    names = launched(monkeypatch)
    for device in ("cpu", "cuda-sim"):
        x, y = (
            tt.tensor(a).to(device).to(dtype).requires_grad_()
            for a in (X, np.abs(X[::-1]) + np.float32(1))
        )
        z = made(x, y)
        forward = list(names)
        before = host_copies()
        gradients = tt.autograd.grad(z, [x, y], tt.ones_like(z), allow_unused=True)
        assert host_copies() == before
        found = [t for t in (z, *gradients) if t is not None]
        results.append([t.detach().cpu().float().numpy() for t in found])
    assert forward == expected
    assert set(names[len(forward) :]) <= {"elementwise", "gelu_backward"}
    # Each operation rounds once in either; a gradient here is a product of three of them at most.
    unit = 3 * (2.0**-7 if dtype == tt.bfloat16 else 2.0**-21)
    for theirs, ours in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=unit, atol=unit * np.abs(theirs).max())


SEEN = np.random.default_rng(0).random((2, 1, 5, 7)) < 0.6
SEEN[0, 0, 2] = False  # a query that sees nothing
BIAS = np.where(SEEN[:, 0, None], normal(7, 2, 3, 5, 7), -np.inf).astype(np.float32)


@pytest.mark.parametrize(
    ("shapes", "mask", "options"),
    [
        (((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)), SEEN, {}),
        (((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4)), SEEN, {"is_causal": True, "dropout_p": 0.3}),
        (((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)), BIAS, {"scale": 0.3}),
        (((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)), BIAS, {"is_causal": True}),
        (((2, 3, 5, 8), (1, 3, 7, 8), (2, 3, 7, 8)), None, {}),
        (((2, 1, 5, 160), (2, 1, 7, 160), (2, 1, 7, 160)), None, {"is_causal": True}),
        (((5, 8), (7, 8), (7, 8)), SEEN[1, 0], {}),
    ],
)
@pytest.mark.parametrize("dtype", [tt.float32, tt.bfloat16], ids=str)
def test_attention_with_a_mask_or_wide_heads_is_three_kernels(
    shapes, mask, options, dtype, monkeypatch
):
    """Float32 agrees to a few roundings of sums of up to 160; bfloat16 rounds each result, and the
    weights between the products.
    """
    names = launched(monkeypatch)
    results = []
    for device in ("cpu", "cuda-sim"):
        given = [normal(i, *shape) for i, shape in enumerate(shapes)]
        q, k, v = (tt.tensor(x).to(device).to(dtype).requires_grad_() for x in given)
        m = None if mask is None else tt.tensor(mask).to(device)
        leaves = [q, k, v]
        if m is not None and m.dtype != tt.bool:
            leaves.append(m.requires_grad_())
        tt.manual_seed(1)
        before = host_copies()
        y = F.scaled_dot_product_attention(q, k, v, m, **options)
        dy = tt.tensor(normal(5, *y.shape)).to(device).to(dtype)
        found = [y, *tt.autograd.grad(y, leaves, dy)]
        assert host_copies() == before
        results.append([t.detach().cpu().float().numpy() for t in found])
    assert "softmax_forward" in names and "softmax_backward" in names
    unit = 4 * 2.0**-7 if dtype == tt.bfloat16 else (160**0.5) * 2.0**-23
    for theirs, ours in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=unit, atol=unit * np.abs(theirs).max())


@pytest.mark.parametrize("function", [ops.erf, ops.gelu, ops.silu, ops.tanh, ops.exp, ops.multiply])
def test_derivatives_of_derivatives_are_the_cpu_s(function):
    def f(x):
        return (function(x, x) if function is ops.multiply else function(x)).sum()

    x = tt.tensor([0.3, -1.0, 2.0, 4.5])
    for transform in (func.grad, func.hessian):
        before = host_copies()
        ours = transform(f)(x.to("cuda-sim"))
        assert host_copies() == before and str(ours.device) == "cuda-sim"
        np.testing.assert_allclose(
            ours.cpu().numpy(), transform(f)(x).numpy(), rtol=1e-5, atol=1e-5
        )


def test_the_head_s_products_are_bfloat16_under_autocast_and_its_loss_is_float32(monkeypatch):
    given = normal(0, 6, 20), normal(4, 30, 20), normal(5, 30)
    kinds, real_product = [], layers.product

    def product(a, b, **options):
        kinds.append((a.dtype, b.dtype))
        return real_product(a, b, **options)

    monkeypatch.setattr(layers, "product", product)
    losses = []
    for device, enabled in (("cpu", False), ("cpu", True), ("cuda-sim", True)):
        x, weight, bias = (tt.tensor(a).to(device).requires_grad_() for a in given)
        before = host_copies()
        with tt.autocast(device, enabled=enabled):
            loss = F.linear_cross_entropy(x, weight, tt.tensor(TARGET).to(device), linear_bias=bias)
        assert loss.dtype == tt.float32
        loss.backward()
        assert host_copies() == before
        assert {t.grad.dtype for t in (x, weight, bias)} == {tt.float32}
        losses.append([t.detach().cpu().numpy() for t in (loss, x.grad, weight.grad, bias.grad)])
    assert kinds == [(tt.bfloat16, tt.bfloat16)] * 4  # logits twice, dx, dweight
    for exact, cpu, ours in zip(*losses, strict=True):
        # Every factor carries half a unit of 2⁻⁷: logits of 20 products of N(0, 1) are off by as
        # much times √20, and p · (1 - p) of that is what softmax makes of it.
        atol = 2.0**-7 * 20**0.5 * np.abs(exact).max()
        np.testing.assert_allclose(cpu, exact, atol=atol)
        np.testing.assert_allclose(ours, exact, atol=atol)


def test_what_a_block_moves_besides_its_products_and_attention(monkeypatch):
    """Under autocast, a float32 stream between bfloat16 layers: the passes over activations are
    those of norms and GELU, and the gradients of q, k and v are put side by side. Nothing is
    converted, filled with zeros or added on the side.
    """
    B, T, C = 1, 16, 32
    sizes = small_gpt.Sizes(V=16, T=T, layers=1, H=2, C=C)
    model = small_gpt.model_class(tt.nn, F, tt.arange)(sizes).to("cuda-sim")
    block, norm = model.h[0], model.ln_f
    x, residual, dy = (tt.tensor(normal(i, B, T, C)).to("cuda-sim") for i in range(3))
    x, residual, dy = x.bfloat16().requires_grad_(), residual.requires_grad_(), dy.bfloat16()
    kernels, others, made = launched(monkeypatch), [], capture.made

    def noted(function, given, options):
        result = made(function, given, options)
        sources = (*given, getattr(function, "__self__", None))
        activations = isinstance(result, np.ndarray) and result.ndim == 3
        if activations and not any(
            np.may_share_memory(result, a) for a in sources if a is not None
        ):
            others.append(function.__name__)
        return result

    monkeypatch.setattr(capture, "made", noted)
    with tt.autocast("cuda-sim"):
        _, y = F.add_layer_norm(*block(x, residual), norm.weight, norm.bias)
    tt.autograd.grad(y, [x, residual, *block.parameters()], dy)
    passes = [name for name in kernels if not name.startswith(("matmul", "attention"))]
    norm_backward = ["layer_norm_backward", "column_sum", "column_sum"]  # of dweight and dbias
    assert passes == [
        *["layer_norm_forward", "layer_norm_forward", "gelu_forward", "layer_norm_forward"],
        *[*norm_backward, "column_sum", "gelu_backward", "column_sum"],  # of the biases of the MLP
        *[*norm_backward, "column_sum", "column_sum", *norm_backward],  # of those of attention
    ]
    assert [name for name in others if name not in capture.UNWRITTEN] == ["concatenate"]
