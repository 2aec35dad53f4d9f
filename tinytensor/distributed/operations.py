"""The reductions that ranks can agree on; a name for each, as in PyTorch."""

from __future__ import annotations

import enum


class ReduceOp(enum.Enum):
    """How the arrays of the ranks become one. AVG is the sum divided by the number of ranks."""

    SUM = "sum"
    AVG = "avg"
    MAX = "max"
    MIN = "min"
