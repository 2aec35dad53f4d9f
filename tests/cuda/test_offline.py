"""Every kernel compiles for every architecture, with no GPU."""

from __future__ import annotations

import pytest

from tinytensor.cuda.kernels import folder
from tinytensor.cuda.offline import ARCHITECTURES, compile_offline


@pytest.mark.cuda
@pytest.mark.parametrize("path", sorted(folder().glob("*.cu")), ids=lambda path: path.name)
def test_compiles(path):
    for architecture in ARCHITECTURES:
        assert compile_offline(path, architecture).startswith(b"\x7fELF")
