"""`tt.utils.data`: datasets in batches, with PyTorch's names and defaults."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor.utils.data import (
    DataLoader,
    Dataset,
    Subset,
    TensorDataset,
    default_collate,
    random_split,
)


class Squares(Dataset):
    """Sample i is (i, i²)."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if not 0 <= i < self.n:
            raise IndexError(i)
        return tt.tensor(float(i)), i * i


@given(n=st.integers(0, 20), size=st.integers(1, 7), drop=st.booleans(), shuffle=st.booleans())
def test_a_pass_gives_every_sample_once(n, size, drop, shuffle):
    loader = DataLoader(Squares(n), batch_size=size, shuffle=shuffle, drop_last=drop)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert [len(x) for x, _ in batches] == [size] * (n // size) + [n % size] * bool(
        n % size and not drop
    )
    seen = [int(i) for x, _ in batches for i in x.tolist()]
    assert len(set(seen)) == len(seen)
    if not drop:
        assert sorted(seen) == list(range(n))
    assert all((x**2 == y).all() for x, y in batches)
    if not shuffle:
        assert seen == sorted(seen)


def test_the_order_is_the_generator_s_and_new_in_each_pass():
    x = tt.arange(50)
    dataset = TensorDataset(x, x * 2)
    loaders = [
        DataLoader(dataset, batch_size=8, shuffle=True, generator=tt.Generator(3)) for _ in range(2)
    ]
    passes = [[[b.tolist() for b in batch] for batch in loader] for loader in loaders]
    assert passes[0] == passes[1]
    assert [[b.tolist() for b in batch] for batch in loaders[0]] != passes[0]
    tt.manual_seed(1)
    first = [b[0].tolist() for b in DataLoader(dataset, shuffle=True)]
    tt.manual_seed(1)
    assert [b[0].tolist() for b in DataLoader(dataset, shuffle=True)] == first


def test_rows_of_tensors_are_what_single_samples_collate_to():
    x, y = tt.randn(11, 3), tt.arange(11)
    rows = list(DataLoader(TensorDataset(x, y), batch_size=4))
    single = list(DataLoader(Subset(TensorDataset(x, y), range(11)), batch_size=4))
    assert type(rows[0]) is type(single[0]) is list
    for one, other in zip(rows, single, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())
            assert a.dtype == b.dtype


def test_samplers_and_a_collate_function_of_one_s_own():
    loader = DataLoader(Squares(10), 2, sampler=[9, 0, 4], collate_fn=lambda batch: batch)
    assert [[y for _, y in batch] for batch in loader] == [[81, 0], [16]]
    assert len(loader) == 2


def test_collating_fields():
    Pair = namedtuple("Pair", "a b")
    found = default_collate([Pair(1, "x"), Pair(2, "y")])
    assert (type(found), found.a.tolist(), found.b) == (Pair, [1, 2], ["x", "y"])
    found = default_collate([{"k": np.ones(2), "l": [1.5]}, {"k": np.zeros(2), "l": [2.5]}])
    assert found["k"].tolist() == [[1, 1], [0, 0]]
    assert found["l"][0].tolist() == [1.5, 2.5]
    with pytest.raises(TypeError, match=r"samples of type object cannot .* collate_fn="):
        default_collate([object()])
    with pytest.raises(ValueError, match="different numbers of fields"):
        default_collate([(1, 2), (1,)])


@given(n=st.integers(1, 40), cut=st.floats(0, 1))
def test_a_random_split_has_every_sample_once(n, cut):
    parts = random_split(Squares(n), [cut, 1 - cut], tt.Generator(1))
    assert sorted(i for part in parts for i in part.indices) == list(range(n))
    assert abs(len(parts[0]) - cut * n) <= 1
    whole = random_split(Squares(n), [n - 1, 1], tt.Generator(1))
    assert [len(part) for part in whole] == [n - 1, 1]
    assert whole[1][0][1] == whole[1].indices[0] ** 2


def test_a_model_learns_from_batches():
    tt.manual_seed(0)
    x = tt.randn(200, 3)
    y = x @ tt.tensor([1.0, -2.0, 0.5])
    model = tt.nn.Linear(3, 1)
    optimizer = tt.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(8):
        for xb, yb in DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True):
            loss = ((model(xb)[:, 0] - yb) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert loss.item() < 1e-2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TensorDataset(), "at least one tensor"),
        (lambda: TensorDataset([1, 2]), "expected tensors, got a list"),
        (lambda: TensorDataset(tt.ones(3), tt.ones(4)), r"one length, but they are \(3,\), \(4,\)"),
        (lambda: TensorDataset(tt.tensor(1.0)), r"one length, but they are \(\)"),
        (lambda: DataLoader(Squares(3), 0), "batch_size must be at least 1, got 0"),
        (lambda: DataLoader(Squares(3), num_workers=2), "leave num_workers at 0, not 2"),
        (lambda: DataLoader(Squares(3), shuffle=True, sampler=[0]), "leave out shuffle=True"),
        (lambda: DataLoader(iter([1])), "a dataset has __len__ and __getitem__"),
        (lambda: random_split(Squares(3), [2, 2]), r"\[2, 2\] do not add up to the 3 samples"),
        (lambda: Dataset()[0], "Dataset does not say what its items are"),
    ],
)
def test_bad_use_gets_a_sentence(make, words):
    with pytest.raises((ValueError, TypeError, NotImplementedError), match=words):
        make()


def test_pinned_batches_are_the_same():
    plain, pinned = (list(DataLoader(Squares(5), 2, pin_memory=pin)) for pin in (False, True))
    for one, other in zip(plain, pinned, strict=True):
        assert all(tt.equal(a, b) for a, b in zip(one, other, strict=True))
