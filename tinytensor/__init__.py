"""tinytensor: a small autograd engine over NumPy and CuPy arrays, with PyTorch's names.

    import tinytensor as tt
    x = tt.tensor([1.0, 2.0], requires_grad=True)
    (x ** 2).sum().backward()
    x.grad                                   # tensor([2., 4.])

To read it: `tensor.py` (Tensor and @op), `autograd.py` (the graph and the walk), then `ops/`.
"""

from __future__ import annotations

from math import e as e
from math import inf as inf
from math import nan as nan
from math import pi as pi
from typing import Any as _Any

import numpy as _np

# "X as X" tells type checkers that a name is offered here, and not only used.
from . import autograd as autograd
from . import backends as backends
from . import cpu as cpu
from . import cuda as cuda
from . import func as func
from . import methods as _methods
from . import nn as nn
from . import ops as ops
from . import optim as optim
from . import random as random
from . import testing as testing
from . import utils as utils
from .amp import autocast as autocast
from .amp import get_autocast_dtype as get_autocast_dtype
from .amp import is_autocast_enabled as is_autocast_enabled
from .autograd import enable_grad as enable_grad
from .autograd import is_grad_enabled as is_grad_enabled
from .autograd import no_grad as no_grad
from .autograd import set_grad_enabled as set_grad_enabled
from .backend import bfloat16 as bfloat16
from .backend import device as device
from .backend import finfo as finfo
from .cpu import get_num_threads as get_num_threads
from .cpu import set_num_threads as set_num_threads
from .creation import *
from .creation import asarray as _asarray
from .cuda.matmul import get_float32_matmul_precision as get_float32_matmul_precision
from .cuda.matmul import set_float32_matmul_precision as set_float32_matmul_precision
from .functions import *
from .printing import set_printoptions as set_printoptions
from .random import Generator as Generator
from .random import default_generator as default_generator
from .random import get_rng_state as get_rng_state
from .random import manual_seed as manual_seed
from .random import set_rng_state as set_rng_state
from .sampling import *
from .serialization import load as load
from .serialization import load_file as load_file
from .serialization import save as save
from .serialization import save_file as save_file
from .tensor import Operation as Operation
from .tensor import Tensor as Tensor
from .tensor import op as op
from .tensor import reference_ops as reference_ops
from .tensor import result_type as result_type

__version__ = "0.1.0"

float64 = double = _np.dtype(_np.float64)
float32 = float = _np.dtype(_np.float32)
float16 = half = _np.dtype(_np.float16)
int64 = long = _np.dtype(_np.int64)
int32 = int = _np.dtype(_np.int32)
int16 = short = _np.dtype(_np.int16)
int8 = _np.dtype(_np.int8)
uint8 = _np.dtype(_np.uint8)
uint16 = _np.dtype(_np.uint16)
uint32 = _np.dtype(_np.uint32)
uint64 = _np.dtype(_np.uint64)
bool = _np.dtype(_np.bool_)

dtype = _np.dtype
iinfo = _np.iinfo
Size: _Any = tuple

inference_mode = no_grad
as_tensor = _asarray


def __getattr__(name: str) -> _Any:
    # `tt.distributed` is imported when it is first asked for: one process pays nothing for it.
    if name == "distributed":
        from importlib import import_module

        return import_module("tinytensor.distributed")
    raise AttributeError(f"module 'tinytensor' has no attribute {name!r}")
