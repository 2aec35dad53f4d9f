"""Counter-based numbers: the cipher, the state, the distributions."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor import random
from tinytensor.random import Draw, Generator


@given(
    key=st.integers(0, 2**64 - 1), counter=st.integers(0, 2**64 - 1000), count=st.integers(0, 50)
)
def test_numpys_cipher_and_the_one_in_array_arithmetic_agree(key, counter, count):
    draw = Draw(key, counter)
    np.testing.assert_array_equal(random.words(draw, count), random.philox_words(draw, count))


def test_philox_matches_its_published_known_answers():
    """The test vectors of the Random123 distribution for philox4x64-10, all-zero input."""
    expected = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert [int(w) for w in random.philox_words(Draw(0, 0), 4)] == expected


def test_any_part_of_a_draw_can_be_made_again():
    whole = random.words(Draw(7, 100), 40)
    np.testing.assert_array_equal(random.words(Draw(7, 103), 8), whole[12:20])


def test_state_is_seed_and_counter_and_can_be_put_back():
    generator = Generator(5)
    random.uniform((13,), generator=generator)
    state = generator.get_state()
    assert state == {"seed": 5, "counter": 2}
    first = random.normal((9,), generator=generator)
    generator.set_state(state)
    np.testing.assert_array_equal(first, random.normal((9,), generator=generator))


def test_two_draws_never_share_words():
    generator = Generator(3)
    a, b = generator.reserve(5), generator.reserve(5)
    assert b.counter - a.counter == 2
    assert not set(random.words(a, 8)) & set(random.words(b, 8))


def test_rows_of_a_draw_are_cut_from_the_whole():
    whole, parts = Generator(5), []
    generator = Generator(5)
    for _ in range(2):
        expected = random.uniform((7, 16), generator=whole)
        here = generator.get_state()
        for start, stop in ((0, 3), (3, 4), (4, 7)):
            generator.set_state(here)
            with generator.of_rows(start, stop, 7):
                parts.append(random.uniform((stop - start, 16), generator=generator))
            assert generator.get_state() == whole.get_state()
        np.testing.assert_array_equal(np.concatenate(parts[-3:]), expected)
    with (
        pytest.raises(RuntimeError, match="of 6 random words for 2 of 7 rows cannot be cut"),
        generator.of_rows(0, 2, 7),
    ):
        generator.reserve(6)


def test_threads_do_not_disturb_each_other():
    draws = [Draw(1, 1000 * i) for i in range(8)]
    expected = [random.words(d, 5000).copy() for d in draws]
    found = [None] * 8

    def work(i):
        found[i] = random.words(draws[i], 5000)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distributions(dtype):
    n, dtype = 200_000, np.dtype(dtype)
    generator = Generator(1)
    u = random.uniform((n,), -2.0, 3.0, dtype, generator)
    assert u.dtype == dtype and u.min() >= -2 and u.max() < 3
    assert abs(u.mean() - 0.5) < 5 * 5 / np.sqrt(12 * n)
    z = random.normal((n,), 1.0, 2.0, dtype, generator).astype(np.float64)
    z = (z - 1) / 2
    moments = [z.mean(), (z**2).mean() - 1, (z**3).mean(), (z**4).mean() - 3]
    for moment, variance in zip(moments, [1, 2, 15, 96], strict=True):
        assert abs(moment) < 5 * np.sqrt(variance / n)
    k = random.integers((n,), -3, 4, generator)
    counts = np.bincount(k + 3, minlength=7)
    assert ((counts - n / 7) ** 2 / (n / 7)).sum() < 30  # chi-squared, 6 degrees of freedom
    keep = random.keep_mask(Draw(1, 1), (n,), 0.3)
    assert abs(keep.mean() - 0.7) < 5 * np.sqrt(0.21 / n)


def test_a_dropout_mask_is_not_stored_and_is_the_same_in_backward():
    x = tt.ones(1000, 100, requires_grad=True)
    tt.manual_seed(0)
    y = tt.nn.functional.dropout(x, 0.4)
    assert sum(a.nbytes for a in y.node.saved()) == 0
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.detach().numpy())
    assert set(np.unique(y.detach().numpy()).round(5)) == {0, np.float32(1 / 0.6).round(5)}


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: tt.manual_seed("7"), TypeError, "the seed must be an integer"),
        (lambda: tt.manual_seed(2**65), ValueError, "does not fit in 64 bits"),
        (lambda: Generator(0).set_state({"seed": 1}), ValueError, "as get_state"),
        (
            lambda: Generator(0).set_state({"seed": 1, "counter": -1}),
            ValueError,
            r"in \[0, 2\*\*64\)",
        ),
        (lambda: random.integers((2,), 3, 3), ValueError, "is empty"),
    ],
)
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
