"""Optimizer state that is cut up among the ranks: ZeRO, stage 1.

AdamW keeps two float32 numbers for each weight (three for a weight in bfloat16), on every rank the
same ones. Here each rank keeps them for its N-th part only. A step is then

    reduce-scatter    rank r receives the average gradient of its part (during the backward pass)
    update            of its part, by an ordinary optimizer
    all-gather        everybody receives the new weights of everybody's part (during the next
                      forward pass)

and moves as many bytes as the all-reduce that it replaces, half of them beside the forward pass,
where an all-reduce has nothing to send. Weights that a layer reads, or anybody else, have arrived
by then (`arriving.py`). The numbers are the same, since every update is elementwise. (S.
Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models", SC
2020.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..autograd import Leaf, enable_grad, note_write
from ..backend import Array, array_module, to_device
from ..nn.utils import power_sum
from ..optim import Optimizer, saved
from ..optim.flat import FlatBuffer
from ..optim.optimizer import Group, Params
from ..tensor import Tensor, as_tensor
from . import mpi
from .arriving import Delivery
from .group import all_reduce, current
from .lane import Work
from .operations import ReduceOp
from .parallel import MEGABYTE, DistributedDataParallel


class Stretch(NamedTuple):
    """Neighbouring numbers of a flat buffer that are reduced and gathered together."""

    buffer: FlatBuffer
    span: slice
    parts: list[slice]  # each rank's, counted from the beginning of the span


class Share(NamedTuple):
    """The parameters of one bucket, whose stretches travel together."""

    stretches: list[Stretch]
    parameters: list[Tensor]
    divided: bool  # otherwise each rank updates all of it, and nothing is gathered


class Piece(NamedTuple):
    """What this rank updates of one parameter: a tensor that its own optimizer trains."""

    parameter: Tensor
    buffer: FlatBuffer
    place: int  # the parameter's number in the buffer
    span: slice  # in the buffer
    tensor: Tensor

    @property
    def inside(self) -> slice:
        """The span, counted from the parameter's first number."""
        start = self.buffer.spans[self.place].start
        return slice(self.span.start - start, self.span.stop - start)


class Window(FlatBuffer):
    """A rank's part of a stretch as its own optimizer sees it: a flat buffer of `pieces`.

    Their numbers and gradients are those of the whole buffer, in the same memory. Only `state` is
    its own.
    """

    def __init__(self, whole: FlatBuffer, pieces: Sequence[Piece]) -> None:
        self.whole, self.pieces = whole, pieces
        self.place = slice(pieces[0].span.start, pieces[-1].span.stop)
        self.parameters = [piece.tensor for piece in pieces]
        self.dtype, self.device, self.precision = whole.dtype, whole.device, whole.precision
        start = self.place.start
        self.spans = [slice(p.span.start - start, p.span.stop - start) for p in pieces]
        self.size = self.place.stop - start
        self.steps = [0] * len(pieces)
        self.state = {}
        self._xp = array_module(whole.values)
        self.values = whole.values[self.place]
        self.gradients = whole.gradients[self.place]
        self._value_views = [self.values[span] for span in self.spans]

    def gather_gradients(self) -> list[bool]:
        """Which of the parameters have a gradient; it lies where the whole buffer has it now."""
        self.gradients = self.whole.gradients[self.place]
        return [piece.parameter.grad is not None for piece in self.pieces]


class ZeroRedundancyOptimizer(Optimizer):
    """`optimizer_class(params, **options)` with its state divided among the ranks.

    Given the DistributedDataParallel `model`, the gradients are divided as well: after the backward
    pass a rank holds the average of its own part only (the rest of `p.grad` is what its own
    micro-batches left), and clipping is this optimizer's `clip_grad_norm_`. The model's parameters
    must be those of `params`. `state_dict()` is that of the undivided optimizer, whole, so that a
    run may go on with any number of ranks; before it, all ranks call `consolidate_state_dict()`.

    - `overlap`: `step()` returns while the new parameters are gathered, the first layers' first.
      Reading a parameter waits for those of its bucket, and for nothing else; whoever holds a
      parameter's array, or a view of it, over the step makes the step wait for them. With False
      `step()` returns when all are there.
    - `undivided`: about this share of the buckets, from 0 to 1, is kept whole on every rank: the
      gradients are all-reduced and nothing is gathered, for more memory and as many bytes. A
      backward pass takes twice as long as a forward pass; with 1/3 it has twice as much to hide.

        optimizer = ZeroRedundancyOptimizer(
            model.parameters(), tt.optim.AdamW, model=model, lr=3e-4
        )
    """

    def __init__(
        self,
        params: Params,
        optimizer_class: Callable[..., Optimizer],
        model: DistributedDataParallel | None = None,
        overlap: bool = True,
        undivided: float = 0.0,
        **options: Any,
    ) -> None:
        if not 0.0 <= undivided <= 1.0:
            raise ValueError(
                f"ZeroRedundancyOptimizer: undivided is {undivided}, and a share is from 0 to 1"
            )
        # It checks the groups, and arranges parameters and gradients; it never makes a step, and so
        # never has a state.
        self._whole = optimizer_class(params, **options)
        self.defaults = self._whole.defaults
        self.param_groups = self._whole.param_groups
        self._ranks = current()
        self._buffers = self._whole.flat_buffers()
        self._shares = self._cut(model, undivided)
        self._windows, self._counts = self._own_windows()
        self._pieces = [piece for window in self._windows for piece in window.pieces]
        self._own, self._group_numbers = self._own_optimizer(optimizer_class, options)
        self._consolidated: dict[str, Any] | None = None
        self.overlap = overlap
        # A bucket's gradients come the later, the sooner a forward pass needs its parameters.
        self._gathered = [share for share in reversed(self._shares) if share.divided]
        self._deliveries = [
            Delivery(share.parameters, [stretch.buffer for stretch in share.stretches])
            for share in self._gathered
        ]
        if model is not None:
            model.scatter_gradients([share.divided for share in self._shares])

    def add_param_group(self, param_group: Group) -> None:
        raise RuntimeError(
            "ZeroRedundancyOptimizer: the parameters are divided among the ranks once; make a new "
            "optimizer for more of them"
        )

    # --- who has what ---------------------------------------------------------------------------

    def _cut(self, model: DistributedDataParallel | None, undivided: float) -> list[Share]:
        """The flat buffers, cut where the model's buckets end, and each cut among the ranks."""
        everything = [p for group in self.param_groups for p in group["params"]]
        buckets = model.buckets() if model is not None else [everything]
        given = {id(p) for p in everything if p.requires_grad}
        if model is not None and given != {id(p) for bucket in buckets for p in bucket}:
            raise ValueError(
                "ZeroRedundancyOptimizer: the parameters to be optimized are not those of `model`"
            )
        shares = []
        for bucket, divided in zip(buckets, _spread(buckets, undivided), strict=True):
            wanted = set(map(id, bucket))
            stretches = []
            for buffer in self._buffers:
                present = [id(p) in wanted for p in buffer.parameters]
                for run in buffer.runs(present, by_step=False):
                    length = run.span.stop - run.span.start
                    parts = [slice(0, length)] * self._ranks.size
                    if divided:
                        parts = mpi.slices(length, self._ranks.size)
                    stretches.append(Stretch(buffer, run.span, parts))
            shares.append(Share(stretches, bucket, divided))
        return shares

    def _own_windows(self) -> tuple[list[Window], list[bool]]:
        """What this rank updates of each stretch, and whether it is who counts it in the norm."""
        windows, counts = [], []
        rank, size = self._ranks.place.rank, self._ranks.size
        for number, share in enumerate(self._shares):
            for stretch in share.stretches:
                part = stretch.parts[rank]
                start, stop = stretch.span.start + part.start, stretch.span.start + part.stop
                pieces = []
                for index, span in enumerate(stretch.buffer.spans):
                    first, last = max(start, span.start), min(stop, span.stop)
                    if first < last:
                        parameter = stretch.buffer.parameters[index]
                        tensor = Tensor(stretch.buffer.values[first:last], requires_grad=True)
                        place = slice(first, last)
                        pieces.append(Piece(parameter, stretch.buffer, index, place, tensor))
                if pieces:
                    windows.append(Window(stretch.buffer, pieces))
                    counts.append(share.divided or number % size == rank)
        return windows, counts

    def _own_optimizer(
        self, optimizer_class: Callable[..., Optimizer], options: Mapping[str, Any]
    ) -> tuple[Optimizer | None, list[int]]:
        """The one that updates the windows, and which of the groups it knows."""
        windows_of: dict[int, list[Window]] = {}
        for at, group in enumerate(self.param_groups):
            members = set(map(id, group["params"]))
            windows = [w for w in self._windows if id(w.pieces[0].parameter) in members]
            if windows:
                windows_of[at] = windows
        if not windows_of:
            return None, []
        groups = [
            {**self._options(at), "params": [tensor for w in windows for tensor in w.parameters]}
            for at, windows in windows_of.items()
        ]
        own = optimizer_class(groups, **options)
        for number, windows in enumerate(windows_of.values()):
            own.use_buffers(number, windows)
        for piece in self._pieces:
            assert isinstance(piece.tensor.node, Leaf)
            piece.tensor.node.buffer = None  # no backward pass writes there
        return own, list(windows_of)

    def _options(self, at: int) -> Group:
        return {key: value for key, value in self.param_groups[at].items() if key != "params"}

    def divided(self) -> list[bool]:
        """For each bucket of the model, whether its parameters are divided among the ranks."""
        return [share.divided for share in self._shares]

    def flat_buffers(self) -> list[FlatBuffer]:
        """The buffers with all parameters and gradients, which have arrived."""
        if list(map(id, self._whole.flat_buffers())) != list(map(id, self._buffers)):
            raise RuntimeError(
                "ZeroRedundancyOptimizer: a parameter has another shape, dtype or device than when "
                "the parameters were divided among the ranks; make a new optimizer"
            )
        return self._buffers

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or, with `set_to_none=False`, fill them with zeros."""
        for buffer in self._buffers:  # without a look at the parameters, which would wait for them
            if set_to_none:
                buffer.drop_gradients()
            else:
                buffer.clear_gradients()

    # --- the step -------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update this rank's part, then begin to exchange the parts."""
        self._consolidated = None
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        for buffer in self.flat_buffers():
            buffer.gather_values()
            buffer.gather_gradients()
        if self._own is not None:
            for number, group in zip(self._group_numbers, self._own.param_groups, strict=True):
                group.update(self._options(number))
            self._own.step()
        if self._ranks.size > 1:
            self._exchange()
        return loss

    def _exchange(self) -> None:
        """Begin to gather what the ranks have updated; wait for what somebody has in his hands."""
        now = [not self.overlap or delivery.seen() for delivery in self._deliveries]
        works = self._gather({id(b): b.values for b in self._buffers}, "parameters")
        for delivery, work in zip(self._deliveries, works, strict=True):
            delivery.begin(work)
        for delivery, at_once in zip(self._deliveries, now, strict=True):
            if at_once:
                delivery.wait()

    def _gather(self, arrays: Mapping[int, Array], what: str) -> list[Work]:
        """Every rank's part of each share, to all; `arrays[id(buffer)]` has the buffer's layout."""
        works = []
        for number, share in enumerate(self._gathered):
            flats = [arrays[id(stretch.buffer)][stretch.span] for stretch in share.stretches]
            parts = [stretch.parts for stretch in share.stretches]
            for flat in flats:
                note_write(flat)
            megabytes = sum(flat.nbytes for flat in flats) / MEGABYTE
            name = f"the gathering of {what}, bucket {number + 1} of {len(self._gathered)}"
            task = functools.partial(_all_gather, flats=flats, parts=parts)
            works.append(self._ranks.launch(f"{name}, {megabytes:.3g} MB", flats, task))
        return works

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scale all gradients down together so that their joint 2-norm is at most `max_norm`.

        Each rank knows its part of the sum of squares; all scale by the same number. Returns the
        norm as it was.
        """
        for buffer in self._buffers:
            buffer.gather_gradients()
        xp = array_module(self._buffers[0].values)
        total = xp.zeros((), np.float64)
        arrays = []
        for window, counts in zip(self._windows, self._counts, strict=True):
            for run in window.runs(window.gather_gradients(), by_step=False):
                arrays.append(window.gradients[run.span])
                if counts:
                    total += power_sum(arrays[-1], 2.0)
        norm = as_tensor(total)
        all_reduce(norm, ReduceOp.SUM)
        root = xp.sqrt(norm.array).astype(np.float32)
        scale = xp.minimum(max_norm / (root + 1e-6), 1.0)
        if xp is not np or not scale >= 1.0:  # on a GPU, looking would mean waiting
            for array in arrays:
                note_write(array)
                array *= scale.astype(array.dtype)
        return as_tensor(xp.asarray(root))

    # --- state ----------------------------------------------------------------------------------

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """The undivided state; as with `state_dict`, consolidate it first."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        whole = self.state_dict()["state"]
        return {parameters[index]: state for index, state in whole.items()}

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Rank `to` gets the undivided state, until the next step. All ranks call it together."""
        if not 0 <= to < self._ranks.size:
            raise ValueError(
                f"consolidate_state_dict: there is no rank {to} among {self._ranks.size}"
            )
        gathered = self._gathered_state()
        self._consolidated = gathered if self._ranks.place.rank == to else None

    def state_dict(self) -> dict[str, Any]:
        """The state of the undivided optimizer, on the rank that it was consolidated to."""
        if self._ranks.size == 1:
            return self._gathered_state()
        if self._consolidated is None:
            raise RuntimeError(
                "ZeroRedundancyOptimizer: each rank has a part of the state; before state_dict() "
                "on one of them, all call consolidate_state_dict(to=that rank), after the last step"
            )
        return self._consolidated

    def _gathered_state(self) -> dict[str, Any]:
        result = self._whole.state_dict()
        mine = self._own_states()
        about = {index: (state.get("step"), *sorted(state)) for index, state in mine}
        everyone = self._ranks.gather_objects(about, "exchange of the steps made")
        steps = {index: value for one in everyone for index, value in one.items()}
        names = sorted({n for value in steps.values() for n in value[1:]} - {"step"})
        numbers = {
            id(p): number
            for number, p in enumerate(p for g in self.param_groups for p in g["params"])
        }
        states: dict[int, dict[str, Any]] = {}
        for name in names:
            flats = {
                id(b): array_module(b.values).zeros(b.size, b.precision)
                for b in self.flat_buffers()
            }
            for piece, (_, state) in zip(self._pieces, mine, strict=True):
                if name in state:
                    flats[id(piece.buffer)][piece.span] = state[name].array
            for work in self._gather(flats, f"optimizer's {name}"):
                work.wait()
            for buffer in self.flat_buffers():
                for span, parameter in zip(buffer.spans, buffer.parameters, strict=True):
                    number = numbers[id(parameter)]
                    if name in steps.get(number, ())[1:]:
                        array = flats[id(buffer)][span].reshape(parameter.shape)
                        states.setdefault(number, {})[name] = as_tensor(array)
        for number, value in steps.items():
            if value[0] is not None:
                states[number] = {"step": value[0], **states.get(number, {})}
        result["state"] = dict(sorted(states.items()))
        return result

    def _own_states(self) -> list[tuple[int, dict[str, Any]]]:
        """For each piece, its parameter's number and its state."""
        numbers = {
            id(p): number
            for number, p in enumerate(p for g in self.param_groups for p in g["params"])
        }
        states = self._own.state if self._own is not None else {}
        return [(numbers[id(p.parameter)], states.get(p.tensor, {})) for p in self._pieces]

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over an undivided state, whatever number of ranks saved it."""
        self._consolidated = None
        groups, states = saved.checked(self._whole, state_dict)
        for group, new in zip(self.param_groups, groups, strict=True):
            group.clear()
            group.update(new)
        if self._own is None:
            return
        places = {
            id(p): (buffer, index)
            for buffer in self._own.flat_buffers()
            for index, p in enumerate(buffer.parameters)
        }
        for piece in self._pieces:
            buffer, index = places[id(piece.tensor)]
            part = {
                name: self._part(piece, value) if name != "step" else value
                for name, value in states.get(id(piece.parameter), {}).items()
            }
            saved.restore(self._own, buffer, index, part)

    def _part(self, piece: Piece, value: Any) -> Array:
        array = value.array if isinstance(value, Tensor) else np.asarray(value)
        return to_device(array.reshape(-1)[piece.inside], piece.buffer.device)


def _all_gather(comm: Any, flats: list[Array], parts: list[list[slice]]) -> None:
    for flat, each in zip(flats, parts, strict=True):
        comm.all_gather(flat, each)


def _spread(buckets: Sequence[Sequence[Tensor]], undivided: float) -> list[bool]:
    """Which buckets are divided, so that the others are evenly spread and the given share.

    What is to be sent beside each layer then is about the same, in both passes.
    """
    divided, done, whole = [], 0.0, 0.0
    for bucket in buckets:
        size = sum(p.numel() * p.dtype.itemsize for p in bucket)
        done += size
        divided.append(whole + size / 2 > undivided * done)
        whole += 0 if divided[-1] else size
    return divided
