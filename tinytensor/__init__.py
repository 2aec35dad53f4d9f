"""tinytensor: a small autograd engine over NumPy and CuPy arrays, with PyTorch's names.

    import tinytensor as tt
    x = tt.tensor([1.0, 2.0], requires_grad=True)
    (x ** 2).sum().backward()
    x.grad                                   # tensor([2., 4.])

To read it: `tensor.py` (Tensor and @op), `autograd.py` (the graph and the walk), then `ops/`.
"""

from __future__ import annotations

import numpy as _np

from . import autograd, cpu, cuda, func, nn, ops, optim, random
from . import methods as _methods
from .autograd import enable_grad, is_grad_enabled, no_grad, set_grad_enabled
from .backend import bfloat16, device
from .cpu import get_num_threads, set_num_threads
from .creation import *
from .creation import asarray as as_tensor
from .functions import *
from .random import Generator, default_generator, get_rng_state, manual_seed, set_rng_state
from .sampling import *
from .serialization import load, load_file, save, save_file
from .tensor import Operation, Tensor, op, reference_ops, result_type

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

inference_mode = no_grad
