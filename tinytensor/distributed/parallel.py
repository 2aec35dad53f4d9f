"""One model on many devices: each rank computes gradients from its own data, and all are averaged.

`DistributedDataParallel` cuts the parameters into buckets, the last layers' first, since their
gradients come first. As soon as the last gradient of a bucket is in, its reduction begins in the
lane, while the backward pass goes on with the layers below. The walk ends when the last bucket is
back; then `p.grad` is the average over the ranks, the same bits on each, and clipping and the
optimizer need to know nothing of it.

Gradients of micro-batches are added in the order of a binary tree, and so are those of the ranks:

    1 rank, 4 micro-batches     (g0 + g1) + (g2 + g3)        all inside the rank
    2 ranks, 2 micro-batches    (g0 + g1) | (g2 + g3)        then one sum between the ranks
    4 ranks, 1 micro-batch       g0 | g1 | g2 | g3           then two sums between them

For powers of two that is the same sum, bit for bit. It needs as many more copies of the gradient as
two divides the number of micro-batches. Random numbers are a matter of where one begins to count:
`seed_micro_batch` begins at a place that the micro-batch's number decides, and not the rank.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from ..autograd import Leaf, during_walk, note_write
from ..backend import Array, array_module
from ..nn.module import Module
from ..optim.flat import flat_gradients
from ..random import Generator, default_generator
from ..tensor import Tensor, as_tensor
from . import mpi
from .agreement import check_agreement
from .group import current
from .lane import Work
from .operations import ReduceOp

MEGABYTE = 1 << 20
# Philox blocks of four 64-bit words set aside for each micro-batch: 2^37 numbers of 32 bits.
STRETCH = 1 << 34


def seed_micro_batch(number: int, generator: Generator | None = None) -> None:
    """Go to the stretch of random numbers of micro-batch `number`, counted over the whole training.

    The masks that dropout draws then depend on the seed and on `number`, and not on which rank
    draws them or what it has drawn before. Of `n` micro-batches a step, step s (from 0) begins at
    s·n.
    """
    generator = generator or default_generator
    if number < 0:
        raise ValueError(f"seed_micro_batch: the number must not be negative, got {number}")
    generator.set_state({**generator.get_state(), "counter": number * STRETCH % (1 << 64)})


class Bucket:
    """Parameters whose gradients travel together, and what has become of them in this step."""

    def __init__(self, number: int, parameters: list[Tensor]) -> None:
        self.number = number
        self.parameters = parameters
        self.waiting = len(parameters)  # gradients that this walk still owes
        self.ready: list[bool] = [False] * len(parameters)
        self.seen: list[bool] = [False] * len(parameters)  # by any micro-batch of the step
        # Sums of 1, 2, 4, … micro-batches that are to be added to a sum of as many.
        self.sums: list[tuple[int, list[Array]]] = []
        self.scattered = False  # each rank receives its part of the average only
        self.sent: list[Array] = []
        self.work: Work | None = None

    def begin_walk(self) -> None:
        self.waiting = len(self.parameters)
        self.ready = [False] * len(self.parameters)

    def gradients(self) -> list[Array]:
        """The gradients in as few arrays as hold them; zeros for those that did not come."""
        for i, parameter in enumerate(self.parameters):
            leaf = parameter.node
            assert isinstance(leaf, Leaf)
            if self.ready[i]:
                self.seen[i] = True
            if leaf.grad is None:
                buffer = leaf.buffer
                if buffer is None:
                    buffer = array_module(parameter.array).empty(leaf.shape, leaf.dtype)
                buffer[...] = 0
                leaf.grad = as_tensor(buffer)
        return flat_gradients(self.parameters)

    def forget(self) -> None:
        """Let the next micro-batch write its gradients instead of adding them."""
        for parameter in self.parameters:
            assert isinstance(parameter.node, Leaf)
            parameter.node.grad = None


class _Walks(threading.local):
    """Tells the models of this thread when an outermost backward walk is over."""

    def __init__(self) -> None:
        self.depth = 0
        self.error: BaseException | None = None
        self.touched: list[DistributedDataParallel] = []

    def begin(self) -> None:
        if self.depth == 0:
            self.touched = []
            self.error = sys.exc_info()[1]
        self.depth += 1

    def finish(self) -> None:
        """Nothing computes beside the walk here."""

    def aside(self) -> contextlib.AbstractContextManager[None]:
        """A forward pass inside the walk is like any other."""
        return contextlib.nullcontext()

    def end(self) -> None:
        self.depth -= 1
        if self.depth == 0:
            touched, self.touched = self.touched, []
            failed = sys.exc_info()[1] is not self.error
            self.error = None
            for model in touched:
                model._end_walk(failed)
            for model in list(_alone):
                if not failed:
                    model._end_walk_alone()


_walks = _Walks()
_alone: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()  # models of one process
_told_of_walks: list[_Walks] = []  # `_walks`, once there is a model to tell


class DistributedDataParallel(Module):
    """`module` on every rank, with gradients that are averaged during the backward pass.

    - `bucket_cap_mb`: how many megabytes of gradients travel together. 0 sends each on its own.
    - `find_unused_parameters`: parameters that a rank's forward pass leaves out count as zero
      gradients there; those that no rank used keep `grad = None`. Otherwise one without a gradient
      raises RuntimeError, since it is a slip in most models.
    - `init_sync`: rank 0's parameters and buffers are sent to all at the start.
    - `ordered`: micro-batches inside `no_sync()` are kept apart and added as a tree (see above), so
      that `p.grad` is None until the step is complete. With False they are added to `p.grad` one
      after the other, as in PyTorch.
    - `average`: the gradient is the mean over the ranks, and each rank's loss the mean over its
      micro-batches. With False it is the sum, and each micro-batch's loss is divided by the number
      of all of them: six are then the same on 3 ranks as on 1, bit for bit (1/2 · 1/3 is not 1/6).
    - `check_every`: compare the ranks' parameters after so many steps; 0 never.

        model = DistributedDataParallel(GPT(config))
        for index in range(micro_batches):
            with model.no_sync() if index < micro_batches - 1 else nullcontext():
                (model(x, y)[1] / micro_batches).backward()
    """

    def __init__(
        self,
        module: Module,
        bucket_cap_mb: float = 25.0,
        find_unused_parameters: bool = False,
        init_sync: bool = True,
        ordered: bool = True,
        average: bool = True,
        check_every: int = 0,
    ) -> None:
        super().__init__()
        if bucket_cap_mb < 0:
            raise ValueError(f"DistributedDataParallel: bucket_cap_mb is {bucket_cap_mb}, below 0")
        self.module = module
        self.find_unused_parameters = find_unused_parameters
        self.ordered = ordered
        self.operation = ReduceOp.AVG if average else ReduceOp.SUM
        self.check_every = check_every
        self.steps = 0
        self._group = current()
        self._synchronize = True
        parameters: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError(
                "DistributedDataParallel: no parameter of the module requires a gradient, so there "
                "is nothing to average"
            )
        shapes = {name: (str(p.dtype), p.shape) for name, p in module.named_parameters()}
        check_agreement(configuration=shapes, when="about the model")
        self._buckets = _in_buckets(parameters, bucket_cap_mb * MEGABYTE)
        self._next = 0
        if init_sync:
            self._broadcast_parameters()
        if not _told_of_walks:
            during_walk(_walks)
            _told_of_walks.append(_walks)
        if self._group.size == 1:
            # Nothing is to be sent early: no hooks, which would make the walk wait for its threads.
            _alone.add(self)
            return
        this = weakref.ref(self)
        for bucket in self._buckets:
            for index, parameter in enumerate(bucket.parameters):
                parameter.register_post_accumulate_grad_hook(_Ready(this, bucket, index))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped module's `loss`, of one that finds it without the output of `forward`."""
        loss = getattr(self.module, "loss", None)
        if loss is None:
            raise AttributeError(
                f"DistributedDataParallel: {type(self.module).__name__} has no method loss; call "
                "the model, and make the loss of what it returns"
            )
        return loss(*args, **kwargs)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes inside keep their gradients here; the next one outside sends all."""
        previous, self._synchronize = self._synchronize, False
        try:
            yield
        finally:
            self._synchronize = previous

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, those of an unfinished accumulation too."""
        for bucket in self._buckets:
            bucket.sums.clear()
            bucket.seen = [False] * len(bucket.parameters)
        super().zero_grad(set_to_none)

    def buckets(self) -> list[list[Tensor]]:
        """The parameters of each bucket, in the order in which the buckets are sent."""
        return [list(bucket.parameters) for bucket in self._buckets]

    def scatter_gradients(self, which: Sequence[bool]) -> None:
        """From now on, each rank receives the average of its part only, of the marked buckets."""
        for bucket, scattered in zip(self._buckets, which, strict=True):
            bucket.scattered = scattered

    # --- during the walk ------------------------------------------------------------------------

    def _gradient_ready(self, bucket: Bucket, index: int) -> None:
        if self not in _walks.touched:
            for other in self._buckets:
                other.begin_walk()
            self._next = 0
            _walks.touched.append(self)
        if not bucket.ready[index]:
            bucket.ready[index] = True
            bucket.waiting -= 1
        if self._synchronize:
            # All ranks send their buckets in one order, whichever is complete first.
            while self._next < len(self._buckets) and not self._buckets[self._next].waiting:
                self._send(self._buckets[self._next])
                self._next += 1

    def _end_walk(self, failed: bool) -> None:
        if failed:
            # The error is on its way up, and the other ranks may have met it too: waiting for
            # their part could last for ever. What was begun is left to itself.
            for bucket in self._buckets:
                bucket.work, bucket.sent = None, []
            return
        if not self._synchronize:
            if self.ordered:
                for bucket in self._buckets:
                    self._keep(bucket)
            else:
                for bucket in self._buckets:
                    bucket.seen = [a or b for a, b in zip(bucket.seen, bucket.ready, strict=True)]
            return
        for bucket in self._buckets[self._next :]:
            if self._group.size > 1 or bucket.sums or not all(bucket.ready):
                self._send(bucket)
            else:
                bucket.seen = [True] * len(bucket.parameters)
        self._next = 0
        for bucket in self._buckets:
            self._finish(bucket)
        self._account_for_unused()
        self.steps += 1
        if self.check_every and self.steps % self.check_every == 0:
            when = f"after {self.steps} steps"
            check_agreement(list(self.module.parameters()), code=(), when=when)

    def _end_walk_alone(self) -> None:
        """One process: whatever has a gradient now got it in this walk, or before this step."""
        for bucket in self._buckets:
            bucket.ready = [p.grad is not None for p in bucket.parameters]
        if any(any(bucket.ready) for bucket in self._buckets):
            self._next = 0
            self._end_walk(failed=False)

    def _keep(self, bucket: Bucket) -> None:
        """Adds the micro-batch's gradients to the sums inside the rank."""
        arrays = bucket.gradients()
        count = 1
        if not (bucket.sums and bucket.sums[-1][0] == count):
            bucket.sums.append((count, [array.copy() for array in arrays]))
            bucket.forget()
            return
        while bucket.sums and bucket.sums[-1][0] == count:
            _, earlier = bucket.sums.pop()
            for a, b in zip(earlier, arrays, strict=True):
                a += b
            arrays, count = earlier, 2 * count
        bucket.sums.append((count, arrays))
        bucket.forget()

    def _send(self, bucket: Bucket) -> None:
        arrays = bucket.gradients()
        while bucket.sums:
            _, earlier = bucket.sums.pop()
            for a, b in zip(earlier, arrays, strict=True):
                b += a
        bucket.sent = arrays
        if self._group.size == 1:
            return
        megabytes = sum(array.nbytes for array in arrays) / MEGABYTE
        name = f"the reduction of gradient bucket {bucket.number + 1} of {len(self._buckets)}"
        name += f", {megabytes:.3g} MB"
        if bucket.scattered:
            bucket.work = self._group.launch(
                name, arrays, lambda comm: _reduce_scatter(comm, arrays, self.operation)
            )
        else:
            bucket.work = self._group.launch(
                name, arrays, lambda comm: comm.all_reduce(arrays, self.operation)
            )

    def _finish(self, bucket: Bucket) -> None:
        work, bucket.work = bucket.work, None
        if work is not None:
            work.wait()
        # Not when it is sent: every node that the walk has yet to visit would look at the write.
        for array in bucket.sent:
            note_write(array)
        bucket.sent = []

    def _account_for_unused(self) -> None:
        seen = [used for bucket in self._buckets for used in bucket.seen]
        if self.find_unused_parameters:
            everywhere = self._group.gather_objects(seen, "exchange of unused parameters")
            seen = [any(one) for one in zip(*everywhere, strict=True)]
        parameters = [p for bucket in self._buckets for p in bucket.parameters]
        unused = [p for p, used in zip(parameters, seen, strict=True) if not used]
        for bucket in self._buckets:
            bucket.seen = [False] * len(bucket.parameters)
        for parameter in unused:
            assert isinstance(parameter.node, Leaf)
            parameter.node.grad = None
        # One process cannot tell a walk of this model from that of another one beside it.
        if unused and not self.find_unused_parameters and self._group.size > 1:
            names = {id(p): name for name, p in self.module.named_parameters()}
            listed = ", ".join(names[id(p)] for p in unused[:5])
            more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
            raise RuntimeError(
                f"DistributedDataParallel: the loss does not depend on {listed}{more}; leave them "
                "out, freeze them (requires_grad_(False)), or pass find_unused_parameters=True"
            )

    def _broadcast_parameters(self) -> None:
        if self._group.size == 1:
            return
        tensors = [*self.module.parameters(), *self.module.buffers()]
        for bucket in _in_buckets(tensors, 25 * MEGABYTE):
            arrays = [tensor.array for tensor in bucket.parameters]
            for array in arrays:
                note_write(array)
            whole = [a if a.flags.c_contiguous else a.copy() for a in arrays]
            name = f"broadcast {bucket.number + 1} of the parameters"
            self._group.launch(name, whole, lambda comm, x=whole: comm.broadcast(x, 0)).wait()  # type: ignore[misc]
            for array, sent in zip(arrays, whole, strict=True):
                if array is not sent:
                    array[...] = sent


def _reduce_scatter(comm: Any, arrays: list[Array], op: ReduceOp) -> None:
    for array in arrays:
        comm.reduce_scatter(array, mpi.slices(array.size, comm.size), op)


class _Ready:
    """The hook of one parameter. The model is held weakly: it holds the parameter."""

    def __init__(
        self, model: weakref.ref[DistributedDataParallel], bucket: Bucket, index: int
    ) -> None:
        self._model = model
        self._bucket = bucket
        self._index = index

    def __call__(self, tensor: Tensor) -> None:
        model = self._model()
        if model is not None:
            model._gradient_ready(self._bucket, self._index)


def _in_buckets(tensors: list[Tensor], capacity: float) -> list[Bucket]:
    """The tensors from the last to the first, in buckets of one dtype and device."""
    open_buckets: dict[Any, list[Tensor]] = {}
    sizes: dict[Any, int] = {}
    full: list[list[Tensor]] = []
    for tensor in reversed(tensors):
        kind = (str(tensor.dtype), str(tensor.device))
        size = tensor.numel() * tensor.dtype.itemsize
        if kind in open_buckets and sizes[kind] + size > capacity:
            full.append(open_buckets.pop(kind))
        if kind not in open_buckets:
            open_buckets[kind], sizes[kind] = [], 0
        open_buckets[kind].append(tensor)
        sizes[kind] += size
    full.extend(open_buckets.values())
    return [Bucket(number, parameters) for number, parameters in enumerate(full)]
