"""Tensor maps: what the driver is asked for, by a stand-in for it; what it says no to."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from tinytensor.backend import bfloat16
from tinytensor.cuda import tensor_map
from tinytensor.cuda.tensor_map import Operand, TensorMap, refusal
from tinytensor.cuda.views import window


def matrix(*shape):
    """Zeros that begin at a multiple of 64 bytes."""
    size = int(np.prod(shape))
    room = np.zeros(size + 32, bfloat16)
    start = -room.ctypes.data % 64 // 2
    return room[start : start + size].reshape(shape)


class Driver:
    """Stands in for libcuda: keeps what `cuTensorMapEncodeTiled` was asked, fills in a pattern."""

    def __init__(self, code=0):
        self.code, self.asked = code, []

    def cuTensorMapEncodeTiled(self, target, kind, rank, address, *rest):
        assert target.value % 64 == 0
        sizes, strides, box, steps, *flags = rest
        lists = [list(each) for each in (sizes, strides, box, steps)]
        flags = [each.value for each in flags]
        self.asked.append((kind.value, rank.value, address.value, *lists, *flags))
        ctypes.memset(target.value, 0xAB, 128)
        return self.code


@pytest.fixture
def driver(monkeypatch):
    stand_in = Driver()
    monkeypatch.setattr(tensor_map, "driver", lambda: stand_in)
    tensor_map._encode.cache_clear()
    yield stand_in
    tensor_map._encode.cache_clear()


def test_the_driver_is_asked_in_its_own_terms(driver):
    x = matrix(6, 5, 100, 72)  # outer, inner, m, k
    of = Operand.of(x, window(x), (6, 36_000), (5, 7_200), 128)
    assert of.along_k and of.steps == (1, 1)
    made = of.map.encoded()
    assert made.shape == (128,) and made.dtype == np.uint8 and (made == 0xAB).all()
    assert driver.asked == [
        (9, 4, x.ctypes.data, [72, 100, 5, 6], [144, 14_400, 72_000], [64, 128, 1, 1], [1] * 4)
        + (0, 3, 3, 0)
    ]
    of.map.encoded()
    assert len(driver.asked) == 1  # the same map is not made again


def test_a_matrix_that_lies_the_other_way_round_is_cut_in_squares(driver):
    x = matrix(72, 100).T  # m, k
    of = Operand.of(x, window(x), (1, 0), (7, 0), 128)
    assert not of.along_k and of.steps == (0, 0)
    of.map.encoded()
    kind, rank, address, sizes, strides, box, *_ = driver.asked[0]
    # One matrix, which is read for all seven: the axes of the batch have one element.
    assert (kind, rank, address) == (9, 4, x.ctypes.data)
    assert sizes == [100, 72, 1, 1] and strides == [200, 16, 16] and box == [64, 64, 1, 1]


def test_what_the_driver_refuses_is_a_sentence(driver):
    driver.code = 1
    x = matrix(100, 72)
    sentence = r"makes no tensor map \(error 1\).*\(72, 100, 1, 1\) elements"
    with pytest.raises(RuntimeError, match=sentence):
        TensorMap(x.reshape(-1), (72, 100, 1, 1), (144, 0, 0), (64, 64, 1, 1)).encoded()


def test_no_driver_and_an_old_one_are_sentences(monkeypatch):
    x = matrix(8, 8)
    of = TensorMap(x.reshape(-1), (8, 8, 1, 1), (16, 0, 0), (64, 64, 1, 1))
    tensor_map._encode.cache_clear()
    monkeypatch.setattr(tensor_map, "driver", lambda: object())
    with pytest.raises(RuntimeError, match="too old for tensor maps; update it"):
        of.encoded()

    def missing(name):
        raise OSError(f"{name}: not there")

    monkeypatch.undo()
    monkeypatch.setattr(tensor_map.ctypes, "CDLL", missing)
    monkeypatch.setattr(tensor_map.sys, "platform", "linux")
    tensor_map.driver.cache_clear()
    with pytest.raises(RuntimeError, match=r"libcuda.so.1 cannot be loaded: .*not there"):
        of.encoded()


def test_refusals():
    x = matrix(4, 40, 64)
    assert refusal(x, (2560,)) is None
    assert refusal(x.swapaxes(-1, -2), (2560, 0)) is None
    assert "begins at address" in refusal(x[..., 1:], (2560,))
    assert "12 bytes apart" in refusal(matrix(40, 6))
    assert "rows or matrices are 6 bytes" in refusal(x, (3,))
    assert refusal(matrix(1, 6)) is None  # one row: nothing is apart
    broadcast = np.broadcast_to(matrix(1, 64), (40, 64))
    assert "one row, broadcast" in refusal(broadcast)
    assert "one row, broadcast" in refusal(broadcast.T)


def test_the_simulated_map_has_the_layout_of_its_structure():
    x = matrix(3, 100, 72)
    made = Operand.of(x, window(x), (1, 0), (3, 7200), 256).map.simulated()
    assert ctypes.sizeof(made) == 72 <= 128 and type(made).base.offset == 0
    assert list(made.sizes) == [72, 100, 3, 1] and list(made.box) == [64, 256, 1, 1]
    assert list(made.strides) == [144, 14_400, 16]
    assert (made.element_bytes, made.swizzle_bytes) == (2, 128)
