"""Names that scripts written for PyTorch use around a model: devices, switches, dtypes, seeds."""

from __future__ import annotations

import contextlib
import types

import pytest

import tinytensor as tt

GPU = {"name": b"NVIDIA H200", "major": 9, "minor": 0}


@pytest.fixture
def gpu(monkeypatch):
    """As much of CuPy as `tt.cuda` asks, with one GPU."""
    entered = []

    class Device:
        id = 0

        def __init__(self, number=0):
            self.number = number

        def __enter__(self):
            entered.append(self.number)

        def __exit__(self, *error): ...

        def use(self):
            entered.append(f"use {self.number}")

    found = types.SimpleNamespace(entered=entered)
    runtime = types.SimpleNamespace(
        getDeviceProperties=lambda number: GPU,
        deviceSynchronize=lambda: entered.append("waited"),
    )
    module = types.SimpleNamespace(cuda=types.SimpleNamespace(Device=Device, runtime=runtime))
    monkeypatch.setattr(tt.cuda, "_gpu", lambda: module)
    monkeypatch.setattr(tt.cuda.memory, "gpu", lambda: module)
    monkeypatch.setattr(tt.cuda, "cuda_device_count", lambda: 1)
    return found


def test_what_the_gpu_is(gpu):
    assert tt.cuda.get_device_name() == tt.cuda.get_device_name("cuda:0") == "NVIDIA H200"
    assert tt.cuda.get_device_capability(0) == (9, 0)
    assert tt.cuda.is_bf16_supported()
    assert tt.cuda.current_device() == 0
    tt.cuda.set_device("cuda:1")
    tt.cuda.synchronize(2)
    assert gpu.entered == ["use 1", 2, "waited"]
    with pytest.raises(ValueError, match="asks about GPUs, and 'cpu' is none"):
        tt.cuda.get_device_name("cpu")


@pytest.mark.skipif(tt.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_there_is_a_sentence():
    assert not tt.cuda.is_bf16_supported()
    with contextlib.suppress(RuntimeError):  # CuPy may be there without a GPU, and says so itself
        tt.cuda.get_device_name()


def test_one_seed_for_all_devices():
    tt.cuda.manual_seed(5)
    first = tt.randn(4).tolist()
    tt.cuda.manual_seed_all(5)
    assert tt.randn(4).tolist() == first
    numbers = [
        tt.rand(3, generator=tt.Generator(device=where).manual_seed(1)).tolist()
        for where in ("cpu", "cuda-sim", tt.device("cuda"))
    ]
    assert numbers[0] == numbers[1] == numbers[2]
    assert tt.Generator(device="cuda:1").device == tt.device("cuda", 1)
    assert tt.Generator().device == tt.device("cpu")
    with pytest.raises(TypeError, match=r"write Generator\(device='cuda'\)"):
        tt.Generator("cuda")
    with pytest.raises(ValueError, match="device 'tpu' is unknown"):
        tt.Generator(device="tpu")


def test_switches():
    assert not tt.backends.cuda.matmul.allow_tf32
    try:
        tt.backends.cuda.matmul.allow_tf32 = True
        assert tt.get_float32_matmul_precision() == "high"
    finally:
        tt.backends.cuda.matmul.allow_tf32 = False
    assert tt.get_float32_matmul_precision() == "highest"
    assert not tt.backends.cudnn.is_available()
    tt.backends.cudnn.deterministic = True
    with pytest.raises(ValueError, match="always add in a fixed order"):
        tt.backends.cudnn.deterministic = False


def test_dtypes():
    assert tt.get_default_dtype() == tt.float32
    tt.set_default_dtype(tt.float32)
    with pytest.raises(ValueError, match=r"stays float32; pass dtype=float64"):
        tt.set_default_dtype(tt.float64)
    x = tt.ones(2, requires_grad=True)
    for name, dtype in (("half", tt.float16), ("bfloat16", tt.bfloat16), ("float", tt.float32)):
        assert getattr(x, name)().dtype == dtype
        model = getattr(tt.nn.Linear(2, 2), name)()
        assert {p.dtype for p in model.parameters()} == {dtype}
    x.half().sum().backward()
    assert x.grad.dtype == tt.float32


def test_memory_of_a_layer_that_is_not_filled(monkeypatch):
    def refuse(layer):
        raise AssertionError("filled")

    monkeypatch.setattr(tt.nn.Linear, "reset_parameters", refuse)
    before = tt.get_rng_state()
    layer = tt.nn.utils.skip_init(tt.nn.Linear, 3, 4, bias=False)
    assert layer.weight.shape == (4, 3)
    assert tt.get_rng_state() == before
    with pytest.raises(AssertionError, match="filled"):
        tt.nn.Linear(3, 4)
    with pytest.raises(TypeError, match="skip_init: expected a class of modules, not 3"):
        tt.nn.utils.skip_init(3)


def test_how_tensors_are_printed(monkeypatch):
    from tinytensor import printing

    monkeypatch.setattr(printing, "options", printing._Options())
    x = tt.tensor([1 / 3, 2.0])
    tt.set_printoptions(precision=2)
    assert repr(x) == "tensor([0.33, 2.00])"
    tt.set_printoptions(threshold=5, edgeitems=1)
    assert repr(tt.arange(6)) == "tensor([0,  ..., 5])"
    assert repr(x) == "tensor([0.33, 2.00])"
    with pytest.raises(ValueError, match="precision must not be negative, got -1"):
        tt.set_printoptions(precision=-1)


def test_gradcheck_has_two_names():
    x = tt.tensor([1.0, 2.0], dtype=tt.float64, requires_grad=True)
    assert tt.autograd.gradcheck(lambda x: x**3, (x,))
    with pytest.raises(AssertionError, match="gradcheck"):
        tt.autograd.gradcheck(lambda x: x + 0 * x.detach() * x.detach() - 2 * x.detach(), (x,))


def test_limits_of_dtypes():
    assert tt.finfo(tt.bfloat16).eps == 2**-7
    assert tt.finfo(tt.float32).max == pytest.approx(3.4028235e38)
    assert tt.iinfo(tt.int32).max == 2**31 - 1
    assert isinstance(tt.float32, tt.dtype) and isinstance(tt.zeros(2, 3).shape, tt.Size)
