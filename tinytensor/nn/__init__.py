"""`tt.nn`: modules, layers, losses, initial values; PyTorch's `torch.nn` for what a GPT needs.

`module.py` is where to begin: what a Module is. Layers keep parameters and call `functional.py`,
which calls the operations in `ops/`.
"""

from __future__ import annotations

from . import functional, init, utils
from .activations import *
from .attention import *
from .containers import *
from .layers import *
from .losses import *
from .module import Module
from .normalization import *
from .parameter import Parameter
