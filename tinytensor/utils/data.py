"""`tt.utils.data`: a dataset is anything with a length and items; a `DataLoader` batches it.

    dataset = TensorDataset(x, y)                     # sample i is (x[i], y[i])
    for xb, yb in DataLoader(dataset, batch_size=32, shuffle=True):
        ...

Batches are made in this process, when they are asked for. PyTorch's names and defaults.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..creation import asarray
from ..creation import tensor as make
from ..ops import stack
from ..random import Generator
from ..sampling import randperm
from ..tensor import Tensor

__all__ = ["DataLoader", "Dataset", "Subset", "TensorDataset", "default_collate", "random_split"]


class Dataset:
    """What a dataset of one's own may derive from: `__len__` and `__getitem__` make one."""

    def __getitem__(self, index: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not say what its items are")


class TensorDataset(Dataset):
    """Sample i is `(tensors[0][i], tensors[1][i], …)`: tensors of one length."""

    def __init__(self, *tensors: Tensor) -> None:
        if not tensors:
            raise ValueError("TensorDataset: give it at least one tensor")
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    f"TensorDataset: expected tensors, got a {type(tensor).__name__}; tt.tensor() "
                    "makes one"
                )
        lengths = [len(tensor) if tensor.ndim else None for tensor in tensors]
        if None in lengths or len(set(lengths)) > 1:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            raise ValueError(f"TensorDataset: the tensors need one length, but they are {shapes}")
        self.tensors = tensors

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def __len__(self) -> int:
        return len(self.tensors[0])


class Subset(Dataset):
    """The samples of a dataset that have these indices."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])]

    def __len__(self) -> int:
        return len(self.indices)


def random_split(
    dataset: Any, lengths: Sequence[float], generator: Generator | None = None
) -> list[Subset]:
    """The dataset cut into parts at random: of these lengths, or of these fractions, which add up
    to 1 (what rounding leaves over goes to the first parts, one each).
    """
    size = len(dataset)
    if math.isclose(sum(lengths), 1) and all(0 <= part <= 1 for part in lengths):
        counts = [int(size * part) for part in lengths]
        for i in range(size - sum(counts)):
            counts[i % len(counts)] += 1
    else:
        counts = [int(part) for part in lengths]
    if sum(counts) != size or min(counts) < 0:
        raise ValueError(
            f"random_split: the lengths {list(lengths)} do not add up to the {size} samples"
        )
    order = randperm(size, generator=generator).tolist()
    ends = np.cumsum([0, *counts]).tolist()
    return [Subset(dataset, order[first:last]) for first, last in itertools.pairwise(ends)]


def default_collate(batch: Sequence[Any]) -> Any:
    """One batch of several samples: tensors and arrays are stacked, numbers become a tensor,
    tuples, lists and dicts are collated field by field, and strings stay a list.
    """
    first = batch[0]
    if isinstance(first, Tensor):
        return stack(list(batch))
    if isinstance(first, np.ndarray):
        return asarray(np.stack(batch))
    if isinstance(first, bool | int | float | np.generic):
        return make(list(batch))
    if isinstance(first, str | bytes):
        return list(batch)
    if isinstance(first, Mapping):
        return {key: default_collate([sample[key] for sample in batch]) for key in first}
    if isinstance(first, tuple | list):
        if len({len(sample) for sample in batch}) > 1:
            raise ValueError("DataLoader: the samples of a batch have different numbers of fields")
        fields = [default_collate(list(field)) for field in zip(*batch, strict=True)]
        if hasattr(first, "_fields"):
            return type(first)(*fields)
        return tuple(fields) if isinstance(first, tuple) else fields
    raise TypeError(
        f"DataLoader: samples of type {type(first).__name__} cannot be put into a batch; say how "
        "by collate_fn="
    )


class DataLoader:
    """The samples of a dataset in batches: a new pass each time that it is iterated over.

    `shuffle` puts the samples of each pass in a new order, drawn from `generator` (or the default
    one). `drop_last` leaves out a last batch that is smaller than the others. `collate_fn` makes a
    batch of a list of samples. `sampler` gives the indices of a pass in its stead. `pin_memory` is
    there for PyTorch's sake: CuPy copies through page-locked memory by itself.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        sampler: Iterable[int] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        generator: Generator | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"DataLoader: batch_size must be at least 1, got {batch_size}")
        if num_workers:
            raise ValueError(
                f"DataLoader: batches are made in this process; leave num_workers at 0, not "
                f"{num_workers}"
            )
        if shuffle and sampler is not None:
            raise ValueError("DataLoader: a sampler decides the order; leave out shuffle=True")
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise TypeError(
                f"DataLoader: a dataset has __len__ and __getitem__, and "
                f"{type(dataset).__name__} lacks one"
            )
        self.dataset, self.batch_size, self.shuffle = dataset, batch_size, shuffle
        self.sampler, self.drop_last, self.generator = sampler, drop_last, generator
        self.collate_fn = collate_fn

    def __len__(self) -> int:
        """How many batches a pass has."""
        samples = len(self.dataset if self.sampler is None else self.sampler)  # type: ignore[arg-type]
        whole, rest = divmod(samples, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        order = self._order()
        for first in range(0, len(order), self.batch_size):
            indices = order[first : first + self.batch_size]
            if len(indices) < self.batch_size and self.drop_last:
                return
            if self.collate_fn is None and type(self.dataset) is TensorDataset:
                yield list(self.dataset[indices])  # all rows at once: the same numbers
            else:
                samples = [self.dataset[i] for i in indices]
                yield self._collate(samples)

    def _collate(self, samples: list[Any]) -> Any:
        if self.collate_fn is not None:
            return self.collate_fn(samples)
        found = default_collate(samples)
        return list(found) if type(found) is tuple else found  # PyTorch's batches are lists

    def _order(self) -> list[int]:
        if self.sampler is not None:
            return [int(i) for i in self.sampler]
        size = len(self.dataset)
        if self.shuffle:
            order: list[int] = randperm(size, generator=self.generator).tolist()
            return order
        return list(range(size))
