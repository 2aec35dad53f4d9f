"""The reference operations: one file a family, NumPy's names and semantics.

This package is also the namespace that `array_module(tensor)` answers, so that an operation's body,
`xp.exp(x)` and all, runs unchanged on arrays and on tensors of a lower level.
"""

from __future__ import annotations

import sys

from ..tensor import _register_namespace
from .attention import *
from .choosing import *
from .elementwise import *
from .indexing import *
from .linalg import *
from .network import *
from .reductions import *
from .shaping import *
from .sorting import *
from .trigonometry import *
from .windows import *

_register_namespace(sys.modules[__name__])
