"""`nn.functional`: the operations under PyTorch's names, argument order and defaults.

Most lines only hand over to `ops/`; what is composed of several operations here has no fast path of
its own. PyTorch's deprecated arguments (`size_average`, `reduce`, an implicit `dim`) and `inplace`
are not offered. Each file has the functions of the modules in the file of its name next door.
"""

from __future__ import annotations

from .activations import *
from .attention import *
from .convolution import *
from .layers import *
from .losses import *
from .normalization import *
from .shapes import *
