"""`tt.utils`: what PyTorch keeps under this name: `checkpoint`, memory bought with time, and
`data`, datasets in batches; and `DataParallel`, a batch shared out among processes of the CPU.
"""

from __future__ import annotations

from . import checkpoint as checkpoint
from . import data as data
from .data_parallel import DataParallel as DataParallel
from .data_parallel import LostProcessError as LostProcessError
from .data_parallel import can_fork as can_fork
