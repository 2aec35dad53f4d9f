"""Optimizers and learning-rate schedules, with PyTorch's names and meaning.

`flat.py` puts parameters and gradients side by side in memory, `optimizer.py` is what all
optimizers share, `adamw.py`, `sgd.py`, `rmsprop.py`, `adagrad.py` and `adadelta.py` the updates,
`lr_scheduler.py` the schedules.
"""

from __future__ import annotations

from . import lr_scheduler
from .adadelta import Adadelta
from .adagrad import Adagrad
from .adamw import Adam, AdamW
from .flat import FlatBuffer, flat_gradients
from .optimizer import Optimizer
from .rmsprop import RMSprop
from .sgd import SGD

__all__ = [
    "Adadelta", "Adagrad", "Adam", "AdamW", "FlatBuffer", "Optimizer", "RMSprop", "SGD",
    "flat_gradients", "lr_scheduler",
]  # fmt: skip
