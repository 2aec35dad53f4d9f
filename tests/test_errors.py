"""Errors that teach: each is one sentence, of a fitting type, with the numbers that explain it.

The table holds what a newcomer gets wrong: a call, the type of the error, and words that must be
in it.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

import tinytensor as tt
from tinytensor import ops
from tinytensor.nn import functional as F
from tinytensor.tensor import op


def ones(*shape, grad=True):
    return tt.ones(*shape, requires_grad=grad)


def after_backward():
    y = (ones(3) * 2).exp().sum()
    y.backward()
    return y


def written_after_use():
    x, c = ones(3), ones(3, grad=False)
    y = (x * c).sum()
    c.add_(1)
    return y


def under_no_grad():
    with tt.no_grad():
        return (ones(3) * 2).sum()


@op
def nonsense(x):
    return x * 2, lambda dy: np.ones(7)


X = tt.ones(2, 3)
GRAPH = {
    "backward of many": (
        lambda: (ones(2, 3) * 2).backward(),
        RuntimeError,
        r"shape \(2, 3\).*gradient=",
    ),
    "backward of a constant": (
        lambda: X.sum().backward(),
        RuntimeError,
        "nothing to differentiate",
    ),
    "backward under no_grad": (lambda: under_no_grad().backward(), RuntimeError, "no_grad"),
    "second backward": (
        lambda: after_backward().backward(),
        RuntimeError,
        "freed.*retain_graph=True",
    ),
    "gradient of another shape": (
        lambda: ones(2, 3).backward(tt.ones(3)),
        ValueError,
        r"\(3,\) but the tensor has shape \(2, 3\)",
    ),
    "create_graph": (lambda: ones(1).backward(create_graph=True), RuntimeError, r"tt\.func\.grad"),
    "create_graph in grad": (
        lambda: tt.autograd.grad(ones(1) * 1, ones(1), create_graph=True),
        RuntimeError,
        r"tt\.func",
    ),
    "grad of a constant": (
        lambda: tt.autograd.grad(X.sum(), ones(3)),
        RuntimeError,
        r"output 0 \(shape \(\)\) does not require",
    ),
    "grad with respect to a constant": (
        lambda: tt.autograd.grad(ones(2), X),
        RuntimeError,
        r"input 0 \(shape \(2, 3\)\) does not require",
    ),
    "leaf that no path reaches": (
        lambda: tt.autograd.grad(ones(2).sum(), [ones(4)]),
        RuntimeError,
        r"no path.*\(4,\).*allow_unused",
    ),
    "grad_outputs of another number": (
        lambda: tt.autograd.grad(ones(2), ones(2), [None, None]),
        ValueError,
        "2 grad_outputs.* 1 outputs",
    ),
    "write after use": (
        lambda: written_after_use().backward(),
        RuntimeError,
        r"multiply \(3,\).*clone\(\)",
    ),
    "write to a leaf": (
        lambda: ones(3).add_(1),
        RuntimeError,
        "leaf that requires a gradient.*no_grad",
    ),
    "assignment into a leaf": (lambda: ones(3).__setitem__(0, 1.0), RuntimeError, "leaf.*no_grad"),
    "write to a result": (
        lambda: (ones(3) * 2).zero_(),
        RuntimeError,
        "result of multiply.*zeros_like",
    ),
    "assignment into a result": (
        lambda: (ones(3) * 2).__setitem__(0, 1.0),
        RuntimeError,
        "result of multiply.*masked_fill",
    ),
    "assignment of a result": (
        lambda: tt.zeros(3).__setitem__(0, ones(1)[0]),
        RuntimeError,
        r"lose.*detach\(\)",
    ),
    "numpy of a leaf": (lambda: ones(3).numpy(), RuntimeError, r"requires a gradient.*detach\(\)"),
    "integer leaf": (lambda: tt.tensor([1, 2]).requires_grad_(), TypeError, r"int64.*x\.float\(\)"),
    "integer leaf from the start": (
        lambda: tt.tensor([1, 2], requires_grad=True),
        TypeError,
        "int64 tensor cannot have a gradient",
    ),
    "boolean leaf": (lambda: tt.tensor([True]).requires_grad_(), TypeError, "bool"),
    "hook on a constant": (
        lambda: X.register_hook(print),
        RuntimeError,
        "does not require a gradient",
    ),
    "VJP of another shape": (
        lambda: nonsense(ones(2, 3)).sum().backward(),
        ValueError,
        r"nonsense.*\(7,\).*\(2, 3\)",
    ),
    "copy of a result": (lambda: __import__("copy").copy(ones(3) * 2), RuntimeError, "only leaf"),
    "data of another dtype": (lambda: setattr(ones(3), "data", [1.0]), TypeError, "got list"),
}

SHAPES = {
    "add": (
        lambda: X + tt.ones(4),
        ValueError,
        r"add: shapes \(2, 3\) and \(4,\) do not broadcast",
    ),
    "where": (lambda: tt.where(X > 0, X, tt.ones(5)), ValueError, r"where.*\(2, 3\).*\(5,\)"),
    "maximum": (lambda: tt.maximum(X, tt.ones(3, 3)), ValueError, r"\(2, 3\) and \(3, 3\)"),
    "matmul": (lambda: X @ tt.ones(2, 3), ValueError, r"\(2, 3\) @ \(2, 3\): 3 columns but 2 rows"),
    "matmul of scalars": (lambda: tt.tensor(1.0) @ X, ValueError, "without axes is not a matrix"),
    "matmul of batches": (
        lambda: tt.ones(4, 2, 3) @ tt.ones(5, 3, 2),
        ValueError,
        r"batch axes \(4,\) and \(5,\)",
    ),
    "linear": (
        lambda: ops.linear(tt.ones(2, 5), tt.ones(3, 4), None),
        ValueError,
        r"linear: x has 5 features but the weight expects 4 \(x is \(2, 5\), weight is \(3, 4\)\)",
    ),
    "linear bias": (
        lambda: ops.linear(X, tt.ones(4, 3), tt.ones(3)),
        ValueError,
        r"bias is \(3,\).* 4 outputs",
    ),
    "reshape": (lambda: X.reshape(4, 2), ValueError, r"\(2, 3\) has 6 elements.*\(4, 2\)"),
    "view": (lambda: X.view(-1, 4), ValueError, r"6 elements.*\(-1, 4\)"),
    "cat": (lambda: tt.cat([X, tt.ones(2, 4)]), ValueError, r"\(2, 3\) and \(2, 4\).* axis 0"),
    "cat of nothing": (lambda: tt.cat([]), ValueError, "at least one tensor"),
    "cat of a tensor": (lambda: tt.cat(tt.tensor(1.0)), TypeError, "expected|iterated over"),
    "stack": (lambda: tt.stack([X, tt.ones(2, 4)]), ValueError, r"\(2, 3\) and \(2, 4\)"),
    "split": (lambda: X.split([1, 1], dim=1), ValueError, r"\[1, 1\].*size 3"),
    "expand": (lambda: X.expand(4, 3), ValueError, r"\(2, 3\).*\(4, 3\)"),
    "transpose": (lambda: X.permute(0, 0), ValueError, r"\(0, 0\).* 2 axes"),
    "einsum sizes": (lambda: tt.einsum("ij,jk->ik", X, X), ValueError, "'j'.*3 and 2"),
    "einsum axes": (lambda: tt.einsum("ijk->i", X), ValueError, r"3 axes.*\(2, 3\)"),
    "einsum operands": (lambda: tt.einsum("ij,jk", X), ValueError, "2 operands but 1"),
    "outer": (lambda: tt.outer(X, X), ValueError, r"two vectors.*\(2, 3\)"),
    "amax of nothing": (lambda: tt.zeros(0, 3).amax(), ValueError, r"\(0, 3\).*no elements"),
    "layer_norm": (lambda: F.layer_norm(X, (4,)), ValueError, r"\(4,\).*\(2, 3\)|\(2, 3\).*\(4,\)"),
    "layer_norm weight": (
        lambda: ops.layer_norm(X, tt.ones(4), None),
        ValueError,
        r"weight is \(4,\).*\(2, 3\)",
    ),
    "attention heads": (
        lambda: F.scaled_dot_product_attention(tt.ones(2, 4), tt.ones(3, 5), tt.ones(3, 5)),
        ValueError,
        "size 4.*size 5",
    ),
    "attention lengths": (
        lambda: F.scaled_dot_product_attention(tt.ones(2, 4), tt.ones(3, 4), tt.ones(5, 4)),
        ValueError,
        "3 keys.*5",
    ),
    "attention mask": (
        lambda: F.scaled_dot_product_attention(
            tt.ones(2, 4), tt.ones(3, 4), tt.ones(3, 4), tt.ones(5, 5)
        ),
        ValueError,
        r"mask \(5, 5\).*\(2, 3\)",
    ),
    "cross_entropy rows": (
        lambda: F.cross_entropy(X, tt.tensor([0, 1, 2])),
        ValueError,
        r"\(2,\).*\(3,\)",
    ),
    "gather": (lambda: tt.gather(X, 1, tt.tensor([0, 1])), ValueError, r"\(2,\).*\(2, 3\)"),
    "item": (lambda: X.item(), ValueError, r"\(2, 3\) and 6 elements"),
    "truth": (lambda: bool(X > 0), ValueError, r"\(2, 3\).*\.any\(\)"),
    "ragged": (lambda: tt.tensor([[1, 2], [3]]), ValueError, "different lengths"),
    "negative size": (lambda: tt.zeros(2, -1), ValueError, r"negative.*\(2, -1\)"),
    "setitem": (lambda: tt.zeros(3).__setitem__(slice(2), tt.ones(3)), ValueError, r"\(3,\)"),
}

INDICES = {
    "index": (lambda: X[5], IndexError, r"5.*\(2, 3\)"),
    "too many": (lambda: X[0, 0, 0], IndexError, r"\(2, 3\)"),
    "float index": (lambda: X[tt.ones(2)], IndexError, "float32"),
    "index by a word": (lambda: X["one"], IndexError, "'one'"),
    "mask of another shape": (
        lambda: X[tt.tensor([True, False, True])],
        IndexError,
        r"3.*\(2, 3\)|\(2, 3\)",
    ),
    "axis": (lambda: X.sum(dim=2), IndexError, r"2.*\(2, 3\)"),
    "dim of softmax": (lambda: X.softmax(dim=3), IndexError, "softmax: .* axis 3 .* 2 axes"),
    "dim of log_softmax": (lambda: X.log_softmax(dim=3), IndexError, "axis 3 .* 2 axes"),
    "dim of transpose": (lambda: X.transpose(0, 4), IndexError, "swapaxes: .* axis 4 .* 2 axes"),
    "mask of another size": (
        lambda: X.masked_select(tt.ones(4, 5) > 0),
        ValueError,
        r"mask \(4, 5\) do not broadcast",
    ),
    "dim of cat": (lambda: tt.cat([X, X], dim=2), IndexError, "axis 2.* 2 axes"),
    "embedding": (
        lambda: F.embedding(tt.tensor([1, 7]), tt.ones(5, 2)),
        IndexError,
        "id 7.* 5 rows",
    ),
    "negative embedding": (
        lambda: F.embedding(tt.tensor([-1]), tt.ones(5, 2)),
        IndexError,
        "id -1",
    ),
    "target": (lambda: F.cross_entropy(X, tt.tensor([0, 3])), IndexError, "target 3.* 3 classes"),
    "negative target": (lambda: F.cross_entropy(X, tt.tensor([0, -1])), IndexError, "target -1"),
}

DTYPES = {
    "linear": (
        lambda: ops.linear(X, tt.ones(4, 3, dtype=tt.float64), None),
        TypeError,
        r"float32, float64.*\.to\(dtype\)",
    ),
    "softmax of integers": (lambda: ops.softmax(tt.tensor([1, 2])), TypeError, r"int64.*float\(\)"),
    "mean of integers": (lambda: tt.tensor([1, 2]).mean(), TypeError, r"int64.*float\(\)"),
    "real targets of integers": (
        lambda: F.cross_entropy(tt.tensor([[1, 2]]), tt.tensor([0])),
        TypeError,
        "int64",
    ),
    "mask of numbers": (lambda: X.masked_fill(X, 0.0), TypeError, "boolean.*float32"),
    "embedding of reals": (lambda: F.embedding(X, X), TypeError, "float32"),
    "a list": (lambda: X + [1.0, 2.0], TypeError, r"tt\.tensor\("),
    "words": (lambda: tt.tensor(["a", "b"]), TypeError, "U1|real numbers"),
    "complex numbers": (lambda: tt.tensor([1j]), TypeError, "complex128"),
    "integer powers": (lambda: tt.tensor([2]) ** -1, ValueError, r"negative.*float\(\)"),
    "division by zero": (lambda: tt.tensor([2]) // 0, ZeroDivisionError, "floor_divide"),
    "missing argument": (lambda: ops.linear(X), TypeError, "linear: missing weight, bias"),
    "gelu": (lambda: F.gelu(X, approximate="erf"), ValueError, "'none' or 'tanh'"),
    "reduction": (
        lambda: F.cross_entropy(X, tt.tensor([0, 1]), reduction="max"),
        ValueError,
        "'max'.*'mean'",
    ),
    "dropout": (lambda: F.dropout(X, 1.5), ValueError, "1.5"),
    "smoothing": (
        lambda: F.cross_entropy(X, tt.tensor([0, 1]), label_smoothing=2.0),
        ValueError,
        "2.0",
    ),
    "device": (lambda: X.to("tpu"), ValueError, "'tpu'.*'cpu'"),
    "dtype": (lambda: X.to(tt.int64).normal_(), TypeError, "int64"),
    "fill": (
        lambda: tt.tensor([1, 2]).masked_fill(tt.tensor([True, False]), 0.5),
        TypeError,
        "0.5",
    ),
    "store": (lambda: tt.tensor([1, 2]).mul_(0.5), TypeError, "float32.*int64"),
}

SAMPLING = {
    "multinomial": (lambda: tt.multinomial(tt.tensor([0.5, -0.5]), 1), ValueError, "negative"),
    "multinomial of zeros": (lambda: tt.multinomial(tt.zeros(3), 1), ValueError, "all zero"),
    "too many samples": (
        lambda: tt.multinomial(tt.tensor([1.0, 0.0]), 2),
        ValueError,
        "2 samples.* 1 ",
    ),
    "bernoulli": (lambda: tt.bernoulli(tt.tensor([1.5])), ValueError, r"\[0, 1\]"),
    "normal": (lambda: tt.normal(0.0, -1.0, (2,)), ValueError, "-1.0"),
    "randint": (lambda: tt.randint(5, 5, (2,)), ValueError, "5"),
    "arange": (lambda: tt.arange(0, 5, -1), ValueError, "-1.*0 to 5"),
    "topk": (lambda: X.topk(4), (ValueError, IndexError), "4"),
    "seed": (lambda: tt.manual_seed("one"), (TypeError, ValueError), "seed|int"),
}

ATTENTION = tt.nn.MultiheadAttention(4, 2)
LAYERS = {
    "requires_grad of a word": (
        lambda: setattr(tt.ones(2), "requires_grad", "x"),
        TypeError,
        "True or False, but it is 'x'",
    ),
    "requires_grad at birth": (lambda: tt.ones(2, requires_grad="x"), TypeError, "True or False"),
    "too much smoothing of probabilities": (
        lambda: F.cross_entropy(X, X, label_smoothing=2.0),
        ValueError,
        "between 0 and 1, but it is 2.0",
    ),
    "batch norm by statistics that are not there": (
        lambda: F.batch_norm(X, None, None),
        ValueError,
        "training=True.*running_mean",
    ),
    "batch norm with another number of channels": (
        lambda: F.batch_norm(X, None, None, tt.ones(2), training=True),
        ValueError,
        r"weight is \(2,\).*3 channels",
    ),
    "group norm with another number of channels": (
        lambda: tt.nn.GroupNorm(2, 4)(tt.ones(1, 6)),
        ValueError,
        r"\(N, 4, …\), got \(1, 6\)",
    ),
    "attention between two batches": (
        lambda: ATTENTION(tt.ones(3, 2, 4), tt.ones(5, 3, 4), tt.ones(5, 3, 4)),
        ValueError,
        r"one batch.*\(3, 2, 4\), \(5, 3, 4\)",
    ),
    "attention with a mask of numbers": (
        lambda: ATTENTION(*[tt.ones(3, 2, 4)] * 3, attn_mask=tt.zeros(3, 3).long()),
        TypeError,
        "attn_mask is int64",
    ),
    "attention with a mask of another shape": (
        lambda: ATTENTION(*[tt.ones(3, 2, 4)] * 3, attn_mask=tt.ones(2, 3).bool()),
        ValueError,
        r"attn_mask is \(2, 3\); here it is \(3, 3\) or \(4, 3, 3\)",
    ),
    "a pad that cuts off more than there is": (
        lambda: F.pad(X, (-2, -2)),
        ValueError,
        r"\(-2, -2\) cuts more off",
    ),
    "hardtanh the wrong way round": (lambda: F.hardtanh(X, 2.0, 1.0), ValueError, "above max_val"),
    "take by booleans": (lambda: tt.take(X, X > 0), TypeError, "index.*bool"),
    "diff backwards": (lambda: tt.diff(X, n=-1), ValueError, "not negative, but it is -1"),
    "tensordot over axes that are not there": (
        lambda: tt.tensordot(X, X, dims=3),
        ValueError,
        "both have, but it is 3",
    ),
    "distances between rows of two lengths": (
        lambda: tt.cdist(X, tt.ones(2, 4)),
        ValueError,
        r"one length.*\(2, 3\) and \(2, 4\)",
    ),
}

# What is no tensor where one belongs, and no number where one does: a function for each stranger.
TAKES_TENSORS = {
    "exp": tt.exp,
    "sum": tt.sum,
    "mean": tt.mean,
    "max": tt.max,
    "topk": lambda x: tt.topk(x, 1),
    "flatten": tt.flatten,
    "unsqueeze": lambda x: tt.unsqueeze(x, 0),
    "numel": tt.numel,
    "diag": tt.diag,
    "add": lambda x: tt.add(X, x),
    "matmul": lambda x: tt.matmul(X, x),
    "mm": lambda x: tt.mm(X, x),
    "cdist": lambda x: tt.cdist(X, x),
    "maximum": lambda x: tt.maximum(X, x),
    "where": lambda x: tt.where(x, X, X),
    "multinomial": lambda x: tt.multinomial(x, 1),
    "linear": lambda x: F.linear(x, X),
    "embedding": lambda x: F.embedding(x, X),
    "cross_entropy": lambda x: F.cross_entropy(X, x),
    "nll_loss": lambda x: F.nll_loss(X, x),
    "mse_loss": lambda x: F.mse_loss(X, x),
    "softmax": lambda x: F.softmax(x, 0),
    "gelu": F.gelu,
    "dropout": F.dropout,
    "layer_norm": lambda x: F.layer_norm(x, (3,)),
    "rms_norm": lambda x: F.rms_norm(x, (3,)),
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "attention": lambda x: F.scaled_dot_product_attention(x, X, X),
    "MultiheadAttention": lambda x: ATTENTION(x, X, X),
    "one_hot": F.one_hot,
    "pad": lambda x: F.pad(x, (1, 1)),
    "init": tt.nn.init.normal_,
    "backward": lambda x: ones(2, 3).exp().backward(x),
    "grad": lambda x: tt.autograd.grad([x], [x]),
}


@pytest.mark.parametrize("stranger", [[1.0, 2.0], "x", object()], ids=["list", "str", "object"])
@pytest.mark.parametrize("name", TAKES_TENSORS)
def test_what_is_no_tensor_is_called_so(name, stranger):
    with pytest.raises(TypeError, match=r"\btensors?\b") as caught:
        TAKES_TENSORS[name](stranger)
    assert type(stranger).__name__ in str(caught.value)
    assert caught.value.__cause__ is None


STRANGE = {
    "None": (lambda: tt.exp(None), TypeError, "exp: expected tensors, got None"),
    "a complex number": (lambda: tt.add(X, 1j), TypeError, "add: expected tensors, got a complex"),
    "a gradient that is a list": (
        lambda: setattr(ones(2), "grad", [1.0, 1.0]),
        TypeError,
        "grad: expected a tensor or None, got a list",
    ),
    "a hook that is none": (lambda: ones(2).register_hook("x"), TypeError, "function .* not 'x'"),
    "an axis that is a word": (lambda: X.sum(dim="a"), TypeError, r"sum: .*\(given 'a', False\)"),
    "a dim that is a word": (lambda: X.softmax(dim="a"), TypeError, "integer, not 'a'"),
    "a dim that is half": (lambda: X.topk(1, dim=0.5), TypeError, "topk: dim is an integer, not"),
    "the size of a word": (lambda: X.size("a"), TypeError, "size: dim is an integer, not 'a'"),
    "a negative size": (lambda: X.reshape(-2, 3), ValueError, r"not negative.*\(-2, 3\)"),
    "a shape of None": (lambda: X.reshape(None), TypeError, r"sizes are integers.*\(None,\)"),
    "pieces of a word": (lambda: X.split("a"), TypeError, "split: expected .* got 'a'"),
    "half a chunk": (lambda: X.chunk(0.5), ValueError, "chunk: .* got 0.5"),
    "a rolled axis": (lambda: X.roll(1, 9), IndexError, r"roll: .* 9 .*\(given 1, 9\)"),
    "a word as fill": (lambda: X.masked_fill(X > 0, "a"), TypeError, "number, not 'a'"),
    "a scale of a word": (
        lambda: F.scaled_dot_product_attention(X, X, X, scale="a"),
        TypeError,
        "scaled_dot_product_attention: .*'a'",
    ),
    "data of a strange dtype": (lambda: tt.tensor(1, dtype=object), TypeError, "object data"),
    "full of a size": (lambda: tt.full(2, 1.0), TypeError, "full: the size is a tuple"),
    "full of a list": (lambda: tt.full((2,), [1, 2]), TypeError, r"a number, not \[1, 2\]"),
    "less than an identity": (lambda: tt.eye(-1), ValueError, "eye: .* negative"),
    "as far as nan": (lambda: tt.arange(float("nan")), ValueError, "finite numbers, not nan"),
    "half a step": (lambda: tt.linspace(0, 1, 2.5), ValueError, "steps is an integer.* 2.5"),
    "half a class": (lambda: F.one_hot(tt.tensor([1]), 2.5), ValueError, "integer, or -1.* 2.5"),
    "the probability of a word": (lambda: F.dropout(X, "a"), ValueError, "between 0 and 1.*'a'"),
    "a pad that is a number": (lambda: F.pad(X, 1), TypeError, "tuple of integers, got 1"),
    "no heads of keys": (
        lambda: F.scaled_dot_product_attention(
            tt.ones(1, 2, 2, 3), *[tt.ones(1, 0, 2, 3)] * 2, enable_gqa=True
        ),
        ValueError,
        "0 heads of keys",
    ),
    "vectors that do not broadcast": (
        lambda: F.cosine_similarity(X, tt.ones(5)),
        ValueError,
        r"\(2, 3\) and \(5,\) do not broadcast",
    ),
    "an integer root mean square": (
        lambda: F.rms_norm(tt.tensor([1, 2]), (2,)),
        TypeError,
        r"rms_norm: .*int64.*x\.float\(\)",
    ),
    "einsum of tensors alone": (lambda: tt.einsum(X, X), TypeError, "einsum: .*a string"),
    "threads in a word": (lambda: tt.set_num_threads("a"), ValueError, "at least 1 thread .*'a'"),
}

CASES = {
    f"{subject}: {name}": case
    for subject, table in {
        "graph": GRAPH,
        "layers": LAYERS,
        "strange": STRANGE,
        "shapes": SHAPES,
        "indices": INDICES,
        "dtypes": DTYPES,
        "sampling": SAMPLING,
    }.items()
    for name, case in table.items()
}


@pytest.mark.parametrize(("call", "error", "words"), CASES.values(), ids=list(CASES))
def test_errors_teach(call, error, words):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert re.search(words, message), message
    # A sentence, not a dump; and not another error in disguise.
    assert 15 < len(message) < 300, message
    assert "\n" not in message, message
    assert caught.value.__cause__ is None, message


def test_an_error_leaves_everything_as_it_was():
    x = ones(3)
    y = (x * x).sum()
    for call in (lambda: x + tt.ones(4), lambda: x.reshape(2, 2), lambda: x[7]):
        with pytest.raises((ValueError, IndexError)):
            call()
    y.backward()
    assert x.grad.tolist() == [2.0, 2.0, 2.0]
    assert tt.is_grad_enabled()


def test_users_errors_inside_operations_keep_their_words():
    @op
    def picky(x):
        raise ValueError("picky: only on Sundays")

    with pytest.raises(ValueError, match="only on Sundays"):
        picky(ones(3))
