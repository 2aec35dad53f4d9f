"""`tt.utils`: what PyTorch keeps under this name. So far: `checkpoint`, memory bought with time."""

from __future__ import annotations

from . import checkpoint as checkpoint
