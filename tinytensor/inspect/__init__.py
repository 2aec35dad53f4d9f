"""Looking at what the engine does, from outside: the engine does not know that this exists.

`nonfinite.py` finds the operation that made the first nan or infinity of a computation.
"""

from __future__ import annotations

from .nonfinite import Birth as Birth
from .nonfinite import Numbers as Numbers
from .nonfinite import first_nonfinite as first_nonfinite

__all__ = ["Birth", "Numbers", "first_nonfinite"]
