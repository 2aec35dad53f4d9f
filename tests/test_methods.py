"""Tensor's operators, conversions and Python protocols."""

from __future__ import annotations

import gc
import operator
import weakref

import numpy as np
import pytest

import tinytensor as tt
from tinytensor import functions, methods


def refuses(kind, sentence, call, *args):
    with pytest.raises(kind) as caught:
        call(*args)
    assert sentence in str(caught.value)


# --- operators ------------------------------------------------------------------------------------

BINARY = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow"]
COMPARISONS = ["eq", "ne", "lt", "le", "gt", "ge"]


@pytest.mark.parametrize("name", BINARY + COMPARISONS)
def test_operators_with_numbers_arrays_and_tensors_on_either_side(name):
    function = getattr(operator, name)
    x = np.array([1.5, 2.0, -3.0])
    y = np.array([2.0, 2.0, 2.0])
    for left, right in [(x, y), (x, 2.0), (2.0, y), (x, 2), (3, y), (x, np.float64(2)), (x, y[:1])]:
        expected = function(left, right)
        ways = [
            (as_tensor(left), as_tensor(right)),
            (as_tensor(left), right),
            (left, as_tensor(right)),
        ]
        for one, other in ways:
            if isinstance(one, tt.Tensor) or isinstance(other, tt.Tensor):
                found = function(one, other)
                assert isinstance(found, tt.Tensor)
                np.testing.assert_allclose(found.numpy(), expected, rtol=1e-15)


def as_tensor(x):
    return tt.tensor(x) if isinstance(x, np.ndarray) else x


@pytest.mark.parametrize("name", ["and_", "or_", "xor"])
def test_bits(name):
    function = getattr(operator, name)
    a, b = tt.tensor([True, True, False]), tt.tensor([True, False, False])
    assert function(a, b).tolist() == function(a.numpy(), b.numpy()).tolist()
    assert function(tt.tensor(6), 3).item() == function(6, tt.tensor(3)).item() == function(6, 3)


def test_unary_operators():
    x = tt.tensor([1.0, -2.0])
    assert (-x).tolist() == [-1, 2]
    assert abs(x).tolist() == [1, 2]
    assert +x is x
    assert (~(x > 0)).tolist() == [False, True]
    assert (~tt.tensor([0, 5])).tolist() == [-1, -6]
    assert (~tt.tensor([0, 5], dtype=tt.uint8)).tolist() == [255, 250]
    refuses(TypeError, "expected booleans or integers, got float32", operator.invert, x)


def test_operators_refuse_lists_with_a_sentence():
    x = tt.ones(2)
    for function in (operator.add, operator.mul, operator.eq, operator.lt):
        refuses(TypeError, "wrap it: tt.tensor([1, 2])", function, x, [1, 2])
        refuses(TypeError, "wrap it: tt.tensor((1, 2))", function, (1, 2), x)
    with pytest.raises(TypeError, match="wrap it"):
        x += [1, 2]


def test_operators_leave_other_objects_to_them():
    class Other:
        def __radd__(self, left):
            return "mine"

    x = tt.ones(2)
    assert x + Other() == "mine"
    assert (x == None) is False  # noqa: E711
    assert (x != "text") is True
    for bad in (None, "text", object()):
        with pytest.raises(TypeError, match="unsupported operand"):
            x - bad


def test_hash_is_identity():
    a, b = tt.ones(2), tt.ones(2)
    assert len({a, b, a}) == 2
    assert {a: 1}[a] == 1


def test_gradient_through_operators():
    x = tt.tensor([2.0, 3.0], requires_grad=True)
    y = ((1 - x) / x**2 + 2**x - x % 2 + -x * abs(x)).sum()
    y.backward()
    v = np.array([2.0, 3.0])
    slope = -1 / v**2 - 2 * (1 - v) / v**3 + 2**v * np.log(2) - 1 - 2 * v
    np.testing.assert_allclose(x.grad.numpy(), slope, rtol=1e-6)


# --- Python's protocols ---------------------------------------------------------------------------


def test_numbers():
    assert int(tt.tensor(3.7)) == 3
    assert float(tt.tensor([[2]])) == 2.0
    assert bool(tt.tensor([1.0])) and not bool(tt.tensor(False))
    assert ["a", "b", "c"][tt.tensor(1)] == "b"
    assert list(range(tt.tensor(2))) == [0, 1]
    refuses(TypeError, "not float32", operator.index, tt.tensor(1.0))
    refuses(ValueError, "shape (2,) and 2 elements, not one", float, tt.ones(2))
    refuses(ValueError, "a tensor of shape (2,) is neither true nor false", bool, tt.ones(2))
    refuses(ValueError, "a tensor of shape (0,)", bool, tt.ones(0))


def test_sequences():
    x = tt.arange(6).view(3, 2)
    assert len(x) == 3
    assert [row.tolist() for row in x] == [[0, 1], [2, 3], [4, 5]]
    _, b, _ = x
    assert b.tolist() == [2, 3]
    assert 5 in x and 6 not in x
    for function in (len, list):
        with pytest.raises(TypeError, match="without dimensions"):
            function(tt.tensor(1))


def test_numpy_shares_memory():
    x = tt.zeros(3)
    x.numpy()[0] = 1
    assert x.tolist() == [1, 0, 0]
    assert np.shares_memory(np.asarray(x), x.numpy())
    assert not np.shares_memory(np.array(x), x.numpy())
    assert np.asarray(x, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError):
        np.asarray(x, dtype=np.float64, copy=False)
    assert np.mean(x) == pytest.approx(1 / 3) and np.sum(x, axis=0) == 1
    recorded = tt.ones(2, requires_grad=True) * 2
    refuses(RuntimeError, "call .detach() first", recorded.numpy)
    refuses(RuntimeError, "call .detach() first", np.asarray, recorded)
    assert recorded.numpy(force=True).tolist() == [2, 2]


def test_dlpack():
    x = tt.arange(3)
    y = np.from_dlpack(x)
    assert y.tolist() == [0, 1, 2]
    assert np.shares_memory(y, x.numpy())
    refuses(BufferError, "export x.detach()", np.from_dlpack, tt.ones(2, requires_grad=True))
    refuses(BufferError, "export x.float()", np.from_dlpack, tt.ones(2).bfloat16())
    assert not hasattr(x, "__cuda_array_interface__")


# --- conversions ----------------------------------------------------------------------------------


def test_to():
    x = tt.tensor([1.5, 2.0])
    other = tt.arange(3)
    for same in (
        x.to("cpu"),
        x.to(tt.float32),
        x.to(tt.device("cpu")),
        x.to(None),
        x.cpu(),
        x.float(),
    ):
        assert same is x
    assert x.to(tt.float32, copy=True) is not x
    assert x.to("cpu", tt.int64).tolist() == [1, 2]
    assert x.to(tt.device("cpu"), tt.float64, True).dtype == tt.float64
    assert x.to(device="cpu", dtype=tt.bool).tolist() == [True, True]
    assert x.to(other).dtype == x.type_as(other).dtype == x.type(tt.int64).dtype == tt.int64
    assert x.type() == "float32"
    refuses(ValueError, "device 'gpu' is unknown", x.to, "gpu")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("float", "float32"),
        ("double", "float64"),
        ("bfloat16", "bfloat16"),
        ("long", "int64"),
        ("int", "int32"),
        ("short", "int16"),
        ("byte", "uint8"),
        ("bool", "bool"),
    ],
)
def test_casts(name, dtype):
    x = tt.tensor([1.0, 0.0], dtype=tt.float16)
    y = getattr(x, name)()
    assert str(y.dtype) == dtype
    assert y.tolist() == [1, 0]
    assert getattr(y, name)() is y


def test_gradient_through_casts():
    x = tt.tensor([1.0, 2.0], requires_grad=True)
    (x.double() * 3).sum().backward()
    assert x.grad.dtype == tt.float32
    assert x.grad.tolist() == [3, 3]


def test_item_and_tolist():
    assert tt.tensor([[2.5]]).item() == 2.5
    assert isinstance(tt.tensor(2).item(), int)
    for dtype in (tt.bfloat16, tt.float64):
        assert tt.tensor([[1.5], [2.0]], dtype=dtype).tolist() == [[1.5], [2.0]]
    refuses(ValueError, "item: the tensor has shape (0,) and 0 elements", tt.ones(0).item)


def test_contiguous():
    x = tt.arange(6).view(2, 3)
    assert x.is_contiguous() and x.contiguous() is x
    assert not x.T.is_contiguous()
    assert x.T.contiguous().stride() == (2, 1)
    assert x.stride() == (3, 1) and x.T.stride(0) == 1
    y = tt.ones(2, 3, requires_grad=True)
    (y.T.contiguous() * tt.arange(6).view(3, 2)).sum().backward()
    assert y.grad.tolist() == [[0, 2, 4], [1, 3, 5]]


def test_questions():
    x = tt.zeros(2, 3)
    assert (x.size(), x.size(-1), x.dim(), x.ndimension()) == ((2, 3), 3, 2, 2)
    assert (x.numel(), x.nelement(), x.element_size(), x.itemsize, x.nbytes) == (6, 6, 4, 4, 24)
    assert x.is_floating_point() and not x.is_cuda
    assert x[1:].data_ptr() == x.data_ptr() + 12
    assert x.pin_memory() is x
    refuses(IndexError, "dim 2 does not exist in a tensor of 2 dimensions", x.size, 2)


# --- shape ----------------------------------------------------------------------------------------


def test_sizes_come_as_arguments_or_as_one_tuple():
    x = tt.arange(24).view(2, 3, 4)
    for y in (x.view(4, 6), x.view((4, 6)), x.reshape([4, -1]), x.view_as(tt.zeros(4, 6))):
        assert y.shape == (4, 6)
        assert np.shares_memory(y.numpy(), x.numpy())
    assert x.view(-1).shape == x.view(24).shape == (24,)
    assert x[0, 0, :1].view(()).shape == x[0, 0, :1].reshape(()).shape == ()
    assert x.permute(2, 0, 1).shape == x.permute((2, 0, 1)).shape == (4, 2, 3)
    assert x.flip(0, 1)[0, 0, 0] == x.flip((0, 1))[0, 0, 0] == 20
    assert x.tile(2, 1).shape == x.tile((2, 1)).shape == (2, 6, 4)
    assert x[0].expand(5, -1, -1).shape == x[0].expand((5, 3, 4)).shape == (5, 3, 4)
    assert x.repeat(1, 2, 1).shape == x.repeat((1, 2, 1)).shape == (2, 6, 4)
    assert x.T.shape == (4, 3, 2)
    assert x.mT.shape == (2, 4, 3)
    sizes = tt.tensor([6, 4])
    assert x.view(sizes[0], sizes[1]).shape == (6, 4)
    refuses(TypeError, "x.to(dtype) converts", x.view, tt.float32)
    refuses(ValueError, "mT: expected at least 2 dimensions, got shape (3,)", lambda: tt.ones(3).mT)


def test_new_tensors_like_this_one():
    x = tt.zeros(2, dtype=tt.float64)
    assert x.new_zeros(2, 3).shape == x.new_ones((2, 3)).shape == x.new_empty(2, 3).shape == (2, 3)
    assert x.new_full((2,), 7).tolist() == [7, 7]
    assert x.new_tensor([1, 2]).dtype == x.new_zeros(1).dtype == tt.float64
    assert x.new_zeros(1, dtype=tt.int64).dtype == tt.int64
    assert x.new_ones(1, requires_grad=True).is_leaf


# --- the table ------------------------------------------------------------------------------------


def test_every_function_of_a_tensor_is_a_method():
    for name in functions.__all__:
        assert hasattr(tt.Tensor, name) == (name not in methods._ONLY_FUNCTIONS), name


def test_methods_are_the_functions():
    x = tt.tensor([[3.0, 1.0], [2.0, 4.0]])
    assert x.softmax(-1).tolist() == tt.softmax(x, dim=-1).tolist()
    assert x.max(1).values.tolist() == [3, 4]
    assert x.sum(dim=0, keepdim=True).tolist() == x.sum(axis=0, keepdims=True).tolist() == [[5, 5]]
    assert x.exp().log().allclose(x)
    assert (x @ x).equal(x.matmul(x))


def test_a_tensor_dies_with_its_last_name():
    gc.disable()
    try:
        x = tt.ones(3, requires_grad=True)
        y = (x.view(3, 1) @ x[None]).sum(0).masked_fill(x > 2, 0.0)[1:]
        node = weakref.ref(y.node)
        y += 1
        del y
        assert node() is None
    finally:
        gc.enable()
