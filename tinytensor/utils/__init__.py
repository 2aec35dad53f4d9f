"""`tt.utils`: what PyTorch keeps under this name: `checkpoint`, memory bought with time, and
`data`, datasets in batches.
"""

from __future__ import annotations

from . import checkpoint as checkpoint
from . import data as data
