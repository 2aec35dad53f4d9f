"""`nn.functional`: the operations under PyTorch's names, argument order and defaults.

Most lines only hand over to `ops/`; what is composed of several operations here has no fast path of
its own. PyTorch's deprecated arguments (`size_average`, `reduce`, an implicit `dim`) and `inplace`
are not offered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import ops, random
from ..backend import array_module, finfo, is_floating
from ..ops.network import check_reduction as check_reduction
from ..ops.network import check_smoothing, class_shares, reduced
from ..tensor import Tensor, as_tensor

# --- activations ----------------------------------------------------------------------------------


def relu(input: Tensor) -> Tensor:
    """max(x, 0)."""
    return ops.relu(input)  # type: ignore[no-any-return]


def leaky_relu(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, else negative_slope · x."""
    return ops.where(input > 0, input, input * negative_slope)  # type: ignore[no-any-return]


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x · Φ(x), with Φ the normal distribution function (D. Hendrycks, K. Gimpel, 2016).

    approximate="tanh" is 0.5 · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³))), which GPT-2 was
    trained with.
    """
    return ops.gelu(input, approximate)  # type: ignore[no-any-return]


def silu(input: Tensor) -> Tensor:
    """x · sigmoid(x)."""
    return ops.silu(input)  # type: ignore[no-any-return]


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return ops.sigmoid(input)  # type: ignore[no-any-return]


def tanh(input: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return ops.tanh(input)  # type: ignore[no-any-return]


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta · x)) / beta; x itself where beta · x is above `threshold`."""
    x = input * beta
    smooth = (ops.relu(x) + ops.log1p(ops.exp(-abs(x)))) / beta
    return ops.where(x > threshold, input, smooth)  # type: ignore[no-any-return]


def logsigmoid(input: Tensor) -> Tensor:
    """log(sigmoid(x)), exact where sigmoid underflows."""
    return -softplus(-input, threshold=math.inf)


def elu(input: Tensor, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else alpha · (exp(x) - 1) (D.-A. Clevert et al., arXiv 1511.07289)."""
    below = ops.expm1(ops.minimum(input, 0)) * alpha
    return ops.where(input > 0, input, below)  # type: ignore[no-any-return]


def mish(input: Tensor) -> Tensor:
    """x · tanh(softplus(x)) (D. Misra, arXiv 1908.08681)."""
    return input * ops.tanh(softplus(input))  # type: ignore[no-any-return]


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """x between `min_val` and `max_val`, and the nearer of the two elsewhere."""
    if min_val > max_val:
        raise ValueError(f"hardtanh: min_val {min_val} is above max_val {max_val}")
    return ops.clip(input, min_val, max_val)  # type: ignore[no-any-return]


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """a · sigmoid(b), where a and b are the halves of the input along `dim` (arXiv 1612.08083)."""
    if input.size(dim) % 2:
        raise ValueError(
            f"glu: dim {dim} of the input {tuple(input.shape)} cannot be cut into halves"
        )
    a, b = input.chunk(2, dim)
    return a * ops.sigmoid(b)  # type: ignore[no-any-return]


def softmax(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """exp(x) / Σ exp(x) along `dim`; `dtype`, if given, is what the input is converted to first."""
    return ops.softmax(_as_dtype(input, dtype), dim)  # type: ignore[no-any-return]


def log_softmax(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """The logarithm of softmax along `dim`, exact where softmax underflows."""
    return ops.log_softmax(_as_dtype(input, dtype), dim)  # type: ignore[no-any-return]


def _as_dtype(x: Tensor, dtype: Any) -> Tensor:
    return x if dtype is None else ops.astype(x, dtype)


# --- layers ---------------------------------------------------------------------------------------


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weightᵀ + bias, with weight (out, in): (…, in) -> (…, out)."""
    return ops.linear(input, weight, bias)  # type: ignore[no-any-return]


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of a table: input (…) of integers, weight (V, C) -> (…, C).

    The row `padding_idx` receives no gradient; it may be negative, the ids may not.
    """
    return ops.embedding(  # type: ignore[no-any-return]
        weight, input, padding_row(padding_idx, weight.shape[0])
    )


def padding_row(padding_idx: int | None, rows: int) -> int | None:
    """`padding_idx` counted from the start of a table of so many rows."""
    if padding_idx is None:
        return None
    if not -rows <= padding_idx < rows:
        raise ValueError(f"embedding: padding_idx {padding_idx} is not one of the {rows} rows")
    return padding_idx % rows


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / √(variance + eps) · weight + bias over the last axes, of `normalized_shape`."""
    shape = tuple(normalized_shape)
    if tuple(input.shape[-len(shape) :]) != shape:
        raise ValueError(
            f"layer_norm: the last axes of the input {tuple(input.shape)} are not {shape}, "
            "which it normalizes over"
        )
    return ops.layer_norm(input, weight, bias, len(shape), eps)  # type: ignore[no-any-return]


def add_layer_norm(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """(input + residual, its layer norm over the last axis), in one pass over both.

    input (…, C) is what a layer adds to a `residual` stream (…, C); None is a stream that begins
    here. PyTorch has no such function; in flash-attn it is `dropout_add_layer_norm(prenorm=True)`.
    """
    if residual is None:
        return input, layer_norm(input, input.shape[-1:], weight, bias, eps)
    return ops.add_layer_norm(input, residual, weight, bias, eps)  # type: ignore[no-any-return]


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """x / √(mean(x²) + eps) · weight over the last axes, of `normalized_shape` (arXiv 1910.07467).

    `eps` is the dtype's own (the distance from 1 to the next number) unless given. In bfloat16 and
    float16 the mean is taken in float32.
    """
    shape = tuple(normalized_shape)
    if tuple(input.shape[-len(shape) :]) != shape:
        raise ValueError(
            f"rms_norm: the last axes of the input {tuple(input.shape)} are not {shape}, "
            "which it normalizes over"
        )
    wide = input.float() if input.dtype.itemsize < 4 else input
    eps = float(finfo(wide.dtype).eps) if eps is None else eps
    axes = tuple(range(-len(shape), 0))
    y = (wide * ops.rsqrt(ops.mean(wide * wide, axes, True) + eps)).to(input.dtype)
    return y if weight is None else y * weight  # type: ignore[no-any-return]


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer norm over groups of channels (Y. Wu, K. He, arXiv 1803.08494).

    input (N, C, …), weight and bias (C,).
    """
    if input.ndim < 2:
        raise ValueError(f"group_norm: expected (N, C, …), got {tuple(input.shape)}")
    N, C = input.shape[:2]
    if num_groups < 1 or C % num_groups:
        raise ValueError(f"group_norm: {C} channels cannot be cut into {num_groups} groups")
    y = ops.layer_norm(input.reshape(N, num_groups, -1), None, None, 1, eps).reshape(input.shape)
    return _per_channel("group_norm", y, weight, bias)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / √(variance + eps) · weight + bias for each channel of input (N, C, …).

    In training by the batch's own mean and variance (arXiv 1502.03167), which also move the running
    ones, by `momentum` (the variance divided by n - 1 there); else by the running ones.
    """
    if input.ndim < 2:
        raise ValueError(f"batch_norm: expected (N, C, …), got {tuple(input.shape)}")
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running is None and not training:
            raise ValueError(f"batch_norm: without training=True it needs a {name}")
        _check_channels("batch_norm", name, running, input)
    axes = (0, *range(2, input.ndim))
    shape = (1, input.shape[1], *(1,) * (input.ndim - 2))
    if training or running_mean is None or running_var is None:
        n = input.numel() // input.shape[1]
        if n < 2:
            raise ValueError(
                "batch_norm: training needs more than one value per channel, but the input is "
                f"{tuple(input.shape)}"
            )
        mean, var = input.mean(axes), input.var(axes, correction=0)
        if training and running_mean is not None and running_var is not None:
            for running, new in ((running_mean, mean), (running_var, var * (n / (n - 1)))):
                running.copy_(running * (1 - momentum) + new.detach() * momentum)
    else:
        mean, var = running_mean, running_var
    y = (input - mean.reshape(shape)) * ops.rsqrt(var.reshape(shape) + eps)
    return _per_channel("batch_norm", y, weight, bias)


def _check_channels(name: str, what: str, numbers: Tensor | None, x: Tensor) -> None:
    """Raise unless there is one number for each index of axis 1."""
    if numbers is not None and tuple(numbers.shape) != (x.shape[1],):
        raise ValueError(
            f"{name}: the {what} is {tuple(numbers.shape)}, but the input {tuple(x.shape)} has "
            f"{x.shape[1]} channels"
        )


def _per_channel(name: str, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """x · weight + bias, with one weight and bias for each index of axis 1."""
    _check_channels(name, "weight", weight, x)
    _check_channels(name, "bias", bias, x)
    shape = (-1, *(1,) * (x.ndim - 2))
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def dropout(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Each element zeroed with probability p, the rest times 1 / (1 - p); `input` if not training.

    The mask comes from the default generator, and is made again in the backward pass.
    """
    check_probability("dropout", p)
    if not training or p == 0:
        return input
    return ops.dropout(input, p, _mask_draw(input.shape))  # type: ignore[no-any-return]


def _mask_draw(shape: tuple[int, ...]) -> random.Draw:
    return random.default_generator.reserve(-(-math.prod(shape) // 2))  # two elements a word


def check_probability(name: str, p: float) -> None:
    """Raise unless `p` is a probability."""
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: p is a probability, between 0 and 1, but it is {p}")


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """dropout(softmax(scale · query keyᵀ + mask)) value, as one operation.

    query (…, L, D), key (…, S, D), value (…, S, E) -> (…, L, E); `scale` is 1/√D unless given.
    `attn_mask` broadcasts to (…, L, S): boolean, True where a query may attend, or real and added
    to the scores. With `is_causal`, query i sees keys 0, …, i (aligned at the top left where L ≠
    S), and of these only what `attn_mask` allows. Queries that may see nothing get zeros.
    `dropout_p` applies always: pass 0 outside training. With `enable_gqa` the third axis from the
    end is heads, and each head of key and value serves as many heads of query as there are for it.
    """
    check_probability("scaled_dot_product_attention", dropout_p)
    if enable_gqa:
        key, value = _shared_heads(query, key), _shared_heads(query, value)
    draw = random.Draw(0, 0)
    if dropout_p:
        batch = _broadcast_batch(query, key)
        draw = _mask_draw((*batch, query.shape[-2], key.shape[-2]))
    return ops.scaled_dot_product_attention(  # type: ignore[no-any-return]
        query, key, value, attn_mask, is_causal, dropout_p, scale, draw
    )


def _broadcast_batch(query: Tensor, key: Tensor) -> tuple[int, ...]:
    """The axes of the scores before (L, S). The operation refuses sizes that do not match."""
    a, b = query.shape[:-2], key.shape[:-2]
    ndim = max(len(a), len(b))
    a, b = (1,) * (ndim - len(a)) + tuple(a), (1,) * (ndim - len(b)) + tuple(b)
    return tuple(max(pair) for pair in zip(a, b, strict=True))


def _shared_heads(query: Tensor, x: Tensor) -> Tensor:
    """x (…, heads of key, S, D) with each head repeated, (…, heads of query, S, D)."""
    if min(query.ndim, x.ndim) < 3:
        raise ValueError(
            "attention: with enable_gqa, query, key and value are (…, heads, length, size), but "
            f"the query is {tuple(query.shape)} and a key or value {tuple(x.shape)}"
        )
    wanted, given = query.shape[-3], x.shape[-3]
    if wanted % given:
        raise ValueError(
            f"attention: {given} heads of keys and values cannot be shared out evenly among "
            f"{wanted} heads of queries"
        )
    return ops.repeat(x, wanted // given, -3)  # type: ignore[no-any-return]


# --- losses ---------------------------------------------------------------------------------------


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The negative log-likelihood, in nats, of `target` under softmax(input).

    input (V,), (N, V) or (N, V, d₁, …): the classes are on axis 1, or on the only one. target holds
    class numbers, in the shape of input without that axis; or, if floating-point and of input's
    shape, probabilities of the classes, which `ignore_index` does not touch. `weight` (V,) of the
    classes; `label_smoothing` ε mixes the targets with ε/V of every class. The mean over class
    numbers is weighted by `weight`; over probabilities it is the sum divided by the number of rows.
    """
    if input.ndim > 2:  # the operation has its classes on the last axis
        expected = tuple(input.shape[:1] + input.shape[2:])
        if tuple(target.shape) not in (expected, tuple(input.shape)):
            raise ValueError(
                f"cross_entropy: the classes are axis 1 of the input {tuple(input.shape)}, so the "
                f"targets must be {expected}, but they are {tuple(target.shape)}; for classes on "
                "the last axis use cross_entropy(logits.view(-1, V), targets.view(-1))"
            )
        input = _classes_last(input)
        target = _classes_last(target) if target.ndim == input.ndim else target
    if is_floating(target.dtype) and tuple(target.shape) == tuple(input.shape):
        return _soft_cross_entropy(input, target, weight, reduction, label_smoothing)
    return ops.cross_entropy(  # type: ignore[no-any-return]
        input, target, weight, ignore_index, reduction, label_smoothing
    )


def _classes_last(x: Tensor) -> Tensor:
    return ops.transpose(x, (0, *range(2, x.ndim), 1))  # type: ignore[no-any-return]


def _soft_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float
) -> Tensor:
    V = input.shape[-1]
    check_smoothing("cross_entropy", label_smoothing)
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / V
    losses = -(ops.log_softmax(input) * target)
    if weight is not None:
        losses = losses * weight
    return _reduce("cross_entropy", losses.sum(-1), reduction)


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """-input[target], of log-probabilities: `cross_entropy` without its log_softmax."""
    check_reduction("nll_loss", reduction)
    x = _classes_last(input) if input.ndim > 2 else input
    index, valid, _, share = class_shares(
        "nll_loss", x.shape, x.dtype, target, weight, ignore_index
    )
    each = -ops.take_along_axis(x, index, -1)[..., 0] * share
    return reduced(ops.where(valid, each, 0.0), share, reduction)[0]  # type: ignore[no-any-return]


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """cross_entropy(linear(input, linear_weight, linear_bias), target) in little memory.

    input (…, C), linear_weight (V, C), target (…) class numbers. Only some rows' logits exist at a
    time: for a vocabulary of 50,304 they would be the largest array of the whole model.
    """
    return ops.linear_cross_entropy(  # type: ignore[no-any-return]
        input,
        linear_weight,
        linear_bias,
        target,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
    )


def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """(input - target)², reduced. The shapes must be equal: a broadcast here is a mistake."""
    _check_same("mse_loss", input, target)
    difference = input - target
    return _reduce("mse_loss", difference * difference, reduction)


def l1_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """|input - target|, reduced. The shapes must be equal."""
    _check_same("l1_loss", input, target)
    return _reduce("l1_loss", abs(input - target), reduction)


def smooth_l1_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """d² / (2 · beta) where |d| < beta, else |d| - beta / 2, of d = input - target; reduced."""
    if beta < 0:
        raise ValueError(f"smooth_l1_loss: beta must not be negative, but it is {beta}")
    if beta == 0:
        return l1_loss(input, target, reduction)
    return _huber("smooth_l1_loss", input, target, beta, 1 / beta, reduction)


def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0
) -> Tensor:
    """d² / 2 where |d| < delta, else delta · (|d| - delta / 2), of d = input - target; reduced."""
    if delta <= 0:
        raise ValueError(f"huber_loss: delta must be positive, but it is {delta}")
    return _huber("huber_loss", input, target, delta, 1.0, reduction)


def _huber(
    name: str, input: Tensor, target: Tensor, edge: float, scale: float, reduction: str
) -> Tensor:
    _check_same(name, input, target)
    distance = abs(input - target)
    near = ops.minimum(distance, edge)  # near · (distance - near / 2) is both branches at once
    return _reduce(name, near * (distance - near * 0.5) * scale, reduction)


def kl_div(
    input: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False
) -> Tensor:
    """target · (log target - input) with input log-probabilities: the Kullback-Leibler divergence.

    The sum divided by the number of rows, which is the divergence, is reduction="batchmean"; "mean"
    divides by the number of elements, as in PyTorch. 0 · log 0 is 0.
    """
    _check_same("kl_div", input, target)
    if log_target:
        losses = ops.exp(target) * (target - input)
    else:
        some = target > 0
        logarithm = ops.log(ops.where(some, target, 1.0))
        losses = ops.where(some, target * logarithm, 0.0) - target * input
    if reduction == "batchmean":
        return losses.sum() / (input.shape[0] if input.ndim else 1)  # type: ignore[no-any-return]
    return _reduce("kl_div", losses, reduction)


def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """-(t · log p + (1 - t) · log(1 - p)) · weight of probabilities p; logarithms from -100 up.

    Prefer `binary_cross_entropy_with_logits`, which is exact where p rounds to 0 or 1.
    """
    name = "binary_cross_entropy"
    _check_same(name, input, target)
    positive, negative = (ops.maximum(ops.log(p), -100.0) for p in (input, 1 - input))
    losses = -(target * positive + (1 - target) * negative)
    return _reduce(name, losses if weight is None else losses * weight, reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """-(pos_weight · t · log σ(x) + (1 - t) · log(1 - σ(x))) · weight, for targets t in [0, 1]."""
    name = "binary_cross_entropy_with_logits"
    _check_same(name, input, target)
    positive = target if pos_weight is None else target * pos_weight
    # 1 - σ(x) = σ(-x)
    losses = -(positive * logsigmoid(input) + (1 - target) * logsigmoid(-input))
    return _reduce(name, losses if weight is None else losses * weight, reduction)


def _check_same(name: str, input: Tensor, target: Tensor) -> None:
    if tuple(input.shape) != tuple(target.shape):
        raise ValueError(
            f"{name}: the input is {tuple(input.shape)} but the target is {tuple(target.shape)}; "
            "they must have one shape (target.view_as(input), or unsqueeze)"
        )


def _reduce(name: str, losses: Tensor, reduction: str) -> Tensor:
    check_reduction(name, reduction)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean()  # type: ignore[no-any-return]


# --- vectors and shapes ---------------------------------------------------------------------------


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """x / max(‖x‖ₚ, eps), with the norm taken along `dim`."""
    norm = ops.norm(input, ord=p, axis=dim, keepdims=True)
    return ops.divide(input, ops.maximum(norm, eps))  # type: ignore[no-any-return]


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x₁ · x₂ / (max(‖x₁‖, eps) · max(‖x₂‖, eps)) along `dim` of the shape they broadcast to."""
    shape = np.broadcast_shapes(x1.shape, x2.shape)
    x1, x2 = ops.broadcast_to(x1, shape), ops.broadcast_to(x2, shape)
    return (normalize(x1, 2.0, dim, eps) * normalize(x2, 2.0, dim, eps)).sum(dim)  # type: ignore[no-any-return]


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Integers (…) -> (…, num_classes) int64: 1 at each number, else 0.

    num_classes=-1 is one more than the largest number.
    """
    ids = tensor.array
    if ids.dtype.kind not in "iu":
        raise TypeError(f"one_hot: expected class numbers, got {ids.dtype}")
    if num_classes == -1:
        if ids.size == 0:
            raise ValueError("one_hot: num_classes must be given where there is no number to go by")
        num_classes = int(ids.max()) + 1
    if num_classes < 1:
        raise ValueError(f"one_hot: num_classes must be positive, or -1, but it is {num_classes}")
    ops.network.check_range("one_hot", "class", ids, num_classes, "classes")
    hot = ids[..., None] == array_module(ids).arange(num_classes)
    return as_tensor(hot.astype("int64"))


def pad(
    input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """`input` with elements added before and after: pad = (left, right, top, bottom, …).

    The pairs go from the last axis backwards; a negative number cuts elements off. Added elements
    are `value` (0); "constant" is the only mode.
    """
    if mode != "constant":
        raise ValueError(f"pad: mode is {mode!r}, but only 'constant' is offered")
    if len(pad) % 2 or len(pad) // 2 > input.ndim:
        raise ValueError(
            f"pad: expected (before, after) pairs for at most the {input.ndim} axes of the input, "
            f"got {len(pad)} numbers"
        )
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)][::-1]
    pairs = [(0, 0)] * (input.ndim - len(pairs)) + pairs
    if any(
        before + size + after < 0 for (before, after), size in zip(pairs, input.shape, strict=True)
    ):
        raise ValueError(f"pad: {tuple(pad)} cuts more off than the input {tuple(input.shape)} has")
    cut = tuple(
        slice(max(0, -before), size - max(0, -after))
        for (before, after), size in zip(pairs, input.shape, strict=True)
    )
    widths = [(max(0, before), max(0, after)) for before, after in pairs]
    if any(n < 0 for n in pad):
        input = input[cut]
    return ops.pad(input, widths, 0 if value is None else value)  # type: ignore[no-any-return]
