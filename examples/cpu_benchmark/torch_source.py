"""`gpt/model.py` as a PyTorch program: its source, executed once more with other import lines.

The two files that it is built on are executed before it, in the same module.

Knows neither NumPy nor PyTorch before it is called, so that a program may still set how many
threads they take.
"""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

MODEL_SOURCES = [
    Path(__file__).parents[2] / "gpt" / name
    for name in ("language_model.py", "bigram.py", "model.py")
]
# What one of these files imports of the others is there already.
OF_EACH_OTHER = re.compile(
    r"^from gpt\.(language_model|bigram) import (\([^\n]*\n[^)]*\)|[^(\n]*)$", re.MULTILINE
)
IMPORTS = {
    "import tinytensor as tt\n": "import torch as tt\n",
    "from tinytensor import Tensor, nn\n": "from torch import Tensor\n",
    "from tinytensor.nn import functional as F\n": "from torch.nn import functional as F\n",
    "from tinytensor.utils.checkpoint import": "from torch.utils.checkpoint import",
}


def torch_model_module() -> types.ModuleType:
    """A module of its own at each call, whose classes may be changed.

    Its `nn` is PyTorch's with one layer more, which PyTorch does not have (`torch_layers`).
    The look at every token's number is left out: it costs PyTorch a wait, and `torch.compile` a
    break in its graph. A number that is none raises in PyTorch's own lookup.
    """
    module = types.ModuleType("gpt_model_in_torch")
    module.nn = torch_layers()  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module  # dataclasses look their module up
    for path in MODEL_SOURCES:
        source = OF_EACH_OTHER.sub("", path.read_text(encoding="utf-8"))
        for ours, theirs in IMPORTS.items():
            source = source.replace(ours, theirs)
        if "tinytensor import" in source or "import tinytensor" in source:
            raise RuntimeError(f"{path} imports what has no line in IMPORTS")
        exec(compile(source, str(path), "exec"), module.__dict__)
    module.check_vocabulary = lambda what, ids, vocab_size: None  # type: ignore[attr-defined]
    return module


def torch_layers() -> types.SimpleNamespace:
    """`torch.nn` and `AddLayerNorm`: the sum of a layer's output and the stream, and its norm."""
    from torch import Tensor, nn

    class AddLayerNorm(nn.LayerNorm):
        def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
            total = x if residual is None else residual + x
            return total, super().forward(total)

    return types.SimpleNamespace(**vars(nn), AddLayerNorm=AddLayerNorm)
