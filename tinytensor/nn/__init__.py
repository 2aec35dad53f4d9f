"""`tt.nn`: modules, layers, losses, initial values; PyTorch's `torch.nn` for a GPT, and the usual
layers of the networks that are taught before one.

`module.py` is where to begin: what a Module is. Layers keep parameters and call `functional/`,
which calls the operations in `ops/`.
"""

from __future__ import annotations

from . import functional, init, utils
from .activations import *
from .attention import *
from .containers import *
from .convolution import *
from .layers import *
from .losses import *
from .module import Module
from .normalization import *
from .parameter import Parameter
from .recurrent import *
from .transformer import *
