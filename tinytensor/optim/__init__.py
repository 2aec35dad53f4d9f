"""Optimizers and learning-rate schedules, with PyTorch's names and meaning.

`flat.py` puts parameters and gradients side by side in memory, `optimizer.py` is what all
optimizers share, `adamw.py` and `sgd.py` the updates, `lr_scheduler.py` the schedules.
"""

from __future__ import annotations

from . import lr_scheduler
from .adamw import Adam, AdamW
from .flat import FlatBuffer, flat_gradients
from .optimizer import Optimizer
from .sgd import SGD

__all__ = ["Optimizer", "AdamW", "Adam", "SGD", "lr_scheduler", "FlatBuffer", "flat_gradients"]
