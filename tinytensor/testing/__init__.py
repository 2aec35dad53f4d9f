"""What proves an operation: for users' own operations as much as for the engine's.

- `gradcheck`, `gradgradcheck`: a VJP, and the VJP of that, against finite differences.
- `check_implementations`: fast paths against the reference they stand in for.
- `strategies`: hypothesis strategies for arrays, shapes and indices. Imported on first use, because
  only it needs hypothesis.

The engine does not know that this package exists.
"""

from __future__ import annotations

import importlib
from typing import Any

from .gradcheck import GradcheckError, KinkError, gradcheck, gradgradcheck
from .implementations import check_implementations

__all__ = [
    "gradcheck",
    "gradgradcheck",
    "GradcheckError",
    "KinkError",
    "check_implementations",
]


def __getattr__(name: str) -> Any:
    if name == "strategies":
        return importlib.import_module(".strategies", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
