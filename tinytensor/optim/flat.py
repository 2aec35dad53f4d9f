"""Parameters side by side in one array, and their gradients in another.

A `FlatBuffer` moves the numbers of several parameters into one contiguous array and makes each
parameter a view of its part; the backward pass writes the gradients into views of a second array
(`Leaf.buffer`). An optimizer step is then one pass over four or five long arrays instead of a loop
over hundreds of short ones, clipping is one reduction, and a data-parallel all-reduce one call.

    values      [ wte ........... | wpe .... | h.0.ln_1.weight |-| h.0.attn ...... ]
    gradients   [ d wte ......... | d wpe .. | ............... |-| ............... ]
    state       one such array for each moment that the optimizer keeps

Nothing relies on the views staying in place: `gather_values` and `gather_gradients` look, before
each use, whether everything is still a view of the buffer, and copy it back in where a user (or a
second optimizer) has put something else there. It knows tensors, and no optimizer; `optimizer.py`
is next.
"""

from __future__ import annotations

import math
import operator
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

from ..autograd import Leaf, note_write
from ..backend import Array, DType, array_module, device, device_of
from ..tensor import Tensor, as_tensor

# Each parameter starts on a cache line: vector loads of a kernel never straddle two parameters.
ALIGNMENT = 64  # bytes

_value_of = operator.attrgetter("value")


class Run(NamedTuple):
    """Neighbouring parameters that one pass can update together."""

    first: int  # parameters first, first + 1, ..., last - 1 of the buffer
    last: int
    span: slice  # where they lie, in elements, with the padding between them
    step: int  # how many updates each of them has had


class FlatBuffer:
    """Tensors of one dtype on one device, living in one array, with their gradients in another.

    - `parameters`: the tensors; `spans[i]` is where the i-th lies, in elements.
    - `values`, `gradients`: the two 1-D arrays, of the tensors' dtype.
    - `state`: further 1-D arrays of the same length, by name, in `precision`.
    - `steps[i]`: how many updates the i-th tensor has had.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.dtype: DType = parameters[0].dtype
        self.device: device = parameters[0].device
        # Moments and master weights of the half-precision types are kept in float32.
        self.precision: DType = self.dtype if self.dtype.itemsize >= 4 else np.dtype(np.float32)
        self.spans: list[slice] = []
        unit = ALIGNMENT // self.dtype.itemsize
        start = 0
        for parameter in parameters:
            stop = start + math.prod(parameter.shape)
            self.spans.append(slice(start, stop))
            start = stop + -stop % unit
        self.size = start
        self.steps = [0] * len(self.parameters)
        self.state: dict[str, Array] = {}
        self._xp = array_module(parameters[0].array)
        with self._on_device():
            self.values = aligned_zeros(self._xp, self.size, self.dtype)
        self._value_views: list[Array] = []
        for span, parameter in zip(self.spans, parameters, strict=True):
            view = _owning_view(self.values, span, parameter.shape)
            view[...] = parameter.array
            parameter.value = view
            self._value_views.append(view)
        self.renew_gradients()

    def _on_device(self) -> AbstractContextManager[Any]:
        if self.device.type == "cpu":
            return nullcontext()
        return self._xp.cuda.Device(self.device.index or 0)  # type: ignore[no-any-return]

    # --- gradients ------------------------------------------------------------------------------

    def renew_gradients(self) -> None:
        """New memory for the gradients; the old keeps its numbers for whoever still looks at it."""
        with self._on_device():
            self.gradients = aligned_zeros(self._xp, self.size, self.dtype)
        self._gradient_views = [
            _owning_view(self.gradients, span, view.shape)
            for span, view in zip(self.spans, self._value_views, strict=True)
        ]
        self._attach_all()
        self._references = self._count_references()

    def _attach_all(self) -> None:
        for parameter, view in zip(self.parameters, self._gradient_views, strict=True):
            if isinstance(parameter.node, Leaf):
                self._attach(parameter.node, view)

    def _attach(self, leaf: Leaf, view: Array) -> None:
        leaf.buffer = view
        _home[leaf] = weakref.ref(self)

    def _count_references(self) -> list[int]:
        return list(map(sys.getrefcount, self._gradient_views))

    def drop_gradients(self) -> None:
        """Make every `.grad` None: the next gradient is written, not added.

        PyTorch's users may keep `g = p.grad` over a `zero_grad()` and find the same numbers in it
        later. The memory is therefore left to whoever else holds a gradient (or a view of one) at
        this moment.
        """
        for parameter in self.parameters:
            if isinstance(parameter.node, Leaf):
                parameter.node.grad = None
        counts = zip(self._count_references(), self._references, strict=True)
        if any(now > alone for now, alone in counts):
            self.renew_gradients()

    def clear_gradients(self) -> None:
        """Write zeros into every gradient that there is."""
        for run in self.runs(self.gather_gradients(), by_step=False):
            note_write(self.gradients[run.span])
            self.gradients[run.span] = 0

    # --- keeping the views in place -------------------------------------------------------------

    def settled(self) -> bool:
        """Whether every parameter's numbers still are the view into `values`."""
        return all(map(operator.is_, map(_value_of, self.parameters), self._value_views))

    def fits(self) -> bool:
        """Whether every parameter still has the shape, dtype and device of its place."""
        return self.settled() or all(
            p.value.shape == view.shape
            and p.value.dtype == view.dtype
            and device_of(p.value) == self.device
            for p, view in zip(self.parameters, self._value_views, strict=True)
        )

    def gather_values(self) -> None:
        """Bring parameters that were given other memory (`p.data = ...`) back into the buffer."""
        if self.settled():
            return
        for parameter, view in zip(self.parameters, self._value_views, strict=True):
            if parameter.value is not view:
                note_write(view)
                view[...] = parameter.value
                parameter.value = view

    def gather_gradients(self) -> list[bool]:
        """Bring gradients that are elsewhere into the buffer; answer which parameters have one."""
        present = []
        for parameter, view in zip(self.parameters, self._gradient_views, strict=True):
            leaf = parameter.node
            if not isinstance(leaf, Leaf):
                present.append(False)
                continue
            if leaf.buffer is not view:
                self._attach(leaf, view)
            gradient = leaf.grad
            present.append(gradient is not None)
            if gradient is not None and gradient.value is not view:
                if gradient.shape != view.shape:
                    raise ValueError(
                        f"optimizer: a parameter of shape {view.shape} has a gradient of shape "
                        f"{gradient.shape}; call zero_grad() after giving it other numbers"
                    )
                view[...] = gradient.array
                leaf.grad = as_tensor(view)
        return present

    def runs(self, present: Sequence[bool], by_step: bool = True) -> Iterator[Run]:
        """The parameters marked `present`, in the fewest runs of neighbours (of equal step)."""
        first = None
        for index in range(len(self.parameters) + 1):
            if first is not None and (
                index == len(self.parameters)
                or not present[index]
                or (by_step and self.steps[index] != self.steps[first])
            ):
                yield Run(
                    first,
                    index,
                    slice(self.spans[first].start, self.spans[index - 1].stop),
                    self.steps[first],
                )
                first = None
            if first is None and index < len(self.parameters) and present[index]:
                first = index

    # --- what an optimizer keeps beside each parameter ------------------------------------------

    def state_array(self, name: str) -> Array:
        """The flat array called `name`; zeros when it is first asked for."""
        array = self.state.get(name)
        if array is None:
            with self._on_device():
                array = aligned_zeros(self._xp, self.size, self.precision)
            self.state[name] = array
        return array

    def state_view(self, name: str, index: int) -> Array:
        """The part of `state_array(name)` that belongs to parameter `index`, in its shape."""
        return self.state_array(name)[self.spans[index]].reshape(self._value_views[index].shape)


# Where a leaf's gradient lives. It lets a reduction over many gradients find the few arrays that
# hold them. Weak on both sides: it must keep neither alive.
_home: weakref.WeakKeyDictionary[Leaf, weakref.ref[FlatBuffer]] = weakref.WeakKeyDictionary()


def flat_gradients(parameters: Iterable[Tensor]) -> list[Array]:
    """The gradients of `parameters` in as few arrays as hold them and nothing else.

    Gradients that are neighbours in an optimizer's buffer come as one 1-D array (the padding
    between them is zero), others as they are. Writing into the arrays changes `p.grad`. Parameters
    without a gradient are left out. A clip of GPT-2's 148 gradients is two reductions.
    """
    wanted = {id(parameter): parameter for parameter in parameters}
    arrays: list[Array] = []
    while wanted:
        parameter = next(iter(wanted.values()))
        leaf = parameter.node
        found = _home.get(leaf) if isinstance(leaf, Leaf) else None
        home = found() if found is not None else None
        if (
            home is None
            or not home.fits()
            or not any(parameter is other for other in home.parameters)
        ):
            del wanted[id(parameter)]
            if parameter.grad is not None:
                arrays.append(parameter.grad.array)
            continue
        present = [
            here and wanted.pop(id(other), None) is not None
            for other, here in zip(home.parameters, home.gather_gradients(), strict=True)
        ]
        for other in home.parameters:
            wanted.pop(id(other), None)
        arrays.extend(home.gradients[run.span] for run in home.runs(present, by_step=False))
    return arrays


def aligned_zeros(xp: Any, size: int, dtype: DType) -> Array:
    """`size` zeros whose first one lies on a cache line."""
    if xp is not np:
        return xp.zeros(size, dtype)  # device memory is aligned to 256 bytes and more
    # Zeros straight from the system cost no memory until they are written.
    storage = np.zeros(size * dtype.itemsize + ALIGNMENT, np.uint8)
    offset = -storage.ctypes.data % ALIGNMENT
    return storage[offset : offset + size * dtype.itemsize].view(dtype)


def _owning_view(flat: Array, span: slice, shape: tuple[int, ...]) -> Array:
    """A view of `flat[span]` to which NumPy traces every view that is made of it.

    An ordinary view of a view refers to the array at the bottom, and nobody could tell whose part
    it shows. What `as_strided` makes is itself such a bottom: its reference count tells who looks.
    """
    view = flat[span].reshape(shape)
    return np.lib.stride_tricks.as_strided(view) if isinstance(view, np.ndarray) else view
