"""`nn.RNN`, `nn.GRU` and `nn.LSTM`, with PyTorch's weights and arguments.

What the three share is `_Recurrent`; each says how one step goes (`_step`). The products with the
input are made for all steps at once, those with the state one step after the other.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from .. import ops
from ..creation import zeros
from ..tensor import Tensor, check_tensors
from . import functional as F
from . import init
from .functional.layers import check_probability
from .layers import check_size, parameter
from .module import Module

__all__ = ["GRU", "LSTM", "RNN"]

State = tuple[Tensor, ...]


class _Recurrent(Module):
    """`num_layers` layers, each of which reads the outputs of the one before, in time.

    Layer k has `weight_ih_lk` (gates · hidden_size, input), `weight_hh_lk` (gates · hidden_size,
    hidden_size) and, with `bias`, a `bias_ih_lk` and a `bias_hh_lk`; all start uniform on
    ±1/√hidden_size. With `bidirectional` each has a twin, `…_reverse`, that reads from the end, and
    their outputs stand side by side. `dropout` acts between the layers.
    """

    gates: ClassVar[int]
    states: ClassVar[int] = 1  # tensors that are carried from step to step

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_size(name, input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        if hidden_size < 1 or num_layers < 1:
            raise ValueError(
                f"nn.{name}: hidden_size and num_layers must be at least 1, got {hidden_size} and "
                f"{num_layers}"
            )
        check_probability(name, dropout)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = dropout
        self.bidirectional = bidirectional
        rows = self.gates * hidden_size
        for layer in range(num_layers):
            for suffix in self._suffixes(layer):
                inputs = hidden_size * (1 + bidirectional) if layer else input_size
                self._add(f"weight_ih{suffix}", (rows, inputs), device, dtype)
                self._add(f"weight_hh{suffix}", (rows, hidden_size), device, dtype)
                if bias:
                    self._add(f"bias_ih{suffix}", (rows,), device, dtype)
                    self._add(f"bias_hh{suffix}", (rows,), device, dtype)
        self.reset_parameters()

    def _add(self, name: str, shape: tuple[int, ...], device: Any, dtype: Any) -> None:
        self.register_parameter(name, parameter(shape, device, dtype))

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: 1 + self.bidirectional]

    def reset_parameters(self) -> None:
        """Draw the starting values anew."""
        bound = 1 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            init.uniform_(weight, -bound, bound)

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """`(output, last)`: the last layer's outputs at all steps, and every layer's last state.

        input (length, batch, input_size), or (batch, length, …) with `batch_first`, or (length,
        input_size); output the same with hidden_size, twice that if bidirectional. The states to
        begin with, `hx`, and the last ones are (layers, batch, hidden_size), where a bidirectional
        layer counts twice, or a pair of such for an LSTM; without `hx` they are zeros.
        """
        x = self._time_first(input)
        begin = self._begin(hx, x, input.ndim == 3)
        last: list[State] = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            outputs = []
            for suffix in self._suffixes(layer):
                at = slice(len(last), len(last) + 1)
                y, state = self._read(x, tuple(s[at] for s in begin), suffix)
                outputs.append(y)
                last.append(state)
            x = outputs[0] if len(outputs) == 1 else ops.concatenate(outputs, -1)
        ends = [ops.concatenate(states) for states in zip(*last, strict=True)]
        if input.ndim == 2:
            x, ends = x.squeeze(1), [end.squeeze(1) for end in ends]
        elif self.batch_first:
            x = ops.swapaxes(x, 0, 1)
        return x, ends[0] if self.states == 1 else tuple(ends)

    def _time_first(self, x: Tensor) -> Tensor:
        check_tensors(f"nn.{type(self).__name__}", input=x)
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size or 0 in x.shape:
            order = "batch, length" if self.batch_first else "length, batch"
            raise ValueError(
                f"nn.{type(self).__name__}: expected ({order}, {self.input_size}) or (length, "
                f"{self.input_size}), and at least one step, got {tuple(x.shape)}"
            )
        if x.ndim == 2:
            x = x.unsqueeze(1)
        elif self.batch_first:
            x = ops.swapaxes(x, 0, 1)
        return x

    def _begin(self, hx: Any, x: Tensor, batched: bool) -> State:
        """The states to begin with, (layers, batch, hidden_size) each."""
        shape = (self.num_layers * (1 + self.bidirectional), x.shape[1], self.hidden_size)
        if hx is None:
            return (zeros(shape, dtype=x.dtype, device=x.device),) * self.states
        given = (hx,) if self.states == 1 else tuple(hx)
        wanted = shape if batched else (shape[0], shape[2])
        shapes = [tuple(s.shape) for s in given]
        if shapes != [wanted] * self.states:
            raise ValueError(
                f"nn.{type(self).__name__}: hx is {' and '.join(map(str, shapes))}, but it must be "
                f"{' and '.join([str(wanted)] * self.states)}"
            )
        return given if batched else tuple(s.unsqueeze(1) for s in given)

    def _read(self, x: Tensor, state: State, suffix: str) -> tuple[Tensor, State]:
        """The outputs (length, batch, hidden_size) of one layer in one direction, and its end.

        The states are (1, batch, hidden_size), one step of a sequence.
        """
        parts = ("weight_ih", "bias_ih", "weight_hh", "bias_hh")[:: 1 if self.bias else 2]
        own: dict[str, Any] = {part: getattr(self, part + suffix) for part in parts}
        weight_hh, bias_hh = own["weight_hh"], own.get("bias_hh")
        steps = list(F.linear(x, own["weight_ih"], own.get("bias_ih")).split(1))
        backwards = suffix.endswith("_reverse")
        outputs = []
        for step in reversed(steps) if backwards else steps:
            state = self._step(step, F.linear(state[0], weight_hh, bias_hh), state)
            outputs.append(state[0])
        return ops.concatenate(outputs[::-1] if backwards else outputs), state

    def _step(self, a: Tensor, b: Tensor, state: State) -> State:
        """The next state, from a = W_ih x + b_ih and b = W_hh h + b_hh."""
        raise NotImplementedError(f"{type(self).__name__} does not say how a step goes")

    def extra_repr(self) -> str:
        usual = {
            "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0,
            "bidirectional": False,
        }  # fmt: skip
        own = [f"{k}={getattr(self, k)}" for k, v in usual.items() if getattr(self, k) != v]
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *own])


class RNN(_Recurrent):
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu of it: the simplest recurrent network.

    J. Elman, "Finding Structure in Time", Cognitive Science 14 (1990).
    """

    gates: ClassVar[int] = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f'nn.RNN: nonlinearity is "tanh" or "relu", not {nonlinearity!r}')
        super().__init__(input_size, hidden_size, num_layers, *args, **kwargs)
        self.nonlinearity = nonlinearity

    def _step(self, a: Tensor, b: Tensor, state: State) -> State:
        return ((ops.tanh if self.nonlinearity == "tanh" else ops.relu)(a + b),)


class GRU(_Recurrent):
    """Gated recurrent units (K. Cho et al., arXiv 1406.1078), with a = W_ih x + b_ih and
    b = W_hh h + b_hh in three parts each:

        r, z = σ(a_r + b_r), σ(a_z + b_z)
        n = tanh(a_n + r · b_n)
        h' = (1 - z) · n + z · h
    """

    gates: ClassVar[int] = 3

    def _step(self, a: Tensor, b: Tensor, state: State) -> State:
        (h,) = state
        a_r, a_z, a_n = a.chunk(3, -1)
        b_r, b_z, b_n = b.chunk(3, -1)
        r, z = ops.sigmoid(a_r + b_r), ops.sigmoid(a_z + b_z)
        n = ops.tanh(a_n + r * b_n)
        return (n + z * (h - n),)


class LSTM(_Recurrent):
    """Long short-term memory (S. Hochreiter and J. Schmidhuber, Neural Computation 9, 1997), with
    W_ih x + b_ih + W_hh h + b_hh in four parts:

        i, f, o = σ(…_i), σ(…_f), σ(…_o)
        c' = f · c + i · tanh(…_g)
        h' = o · tanh(c')

    The parts lie in the order i, f, g, o; the states are h and c.
    """

    gates: ClassVar[int] = 4
    states: ClassVar[int] = 2

    def _step(self, a: Tensor, b: Tensor, state: State) -> State:
        i, f, g, o = (a + b).chunk(4, -1)
        c = ops.sigmoid(f) * state[1] + ops.sigmoid(i) * ops.tanh(g)
        return ops.sigmoid(o) * ops.tanh(c), c
