"""How a matrix product is cut up: which kernel, the tile of C that a block makes, the parts of k.

Shapes and the device decide; nothing here touches an array's elements. `matmul.product` asks
`choose`, and launches what it says.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..backend import DType, bfloat16

__all__ = [
    "LARGE",
    "MIDDLE",
    "SMALL",
    "TURNS",
    "WIDE",
    "Limits",
    "Tile",
    "choose_parts",
    "choose_tile",
    "limits",
    "plan_wgmma",
    "suits_wgmma",
]


class Tile(NamedTuple):
    """Rows and columns of C that a block makes, and slots of shared memory (tensor cores only).

    `turns`: the two multiplying warpgroups of `matmul_wgmma` take turns with tiles.
    """

    m: int
    n: int
    stages: int = 3
    turns: bool = False

    @property
    def shared_bytes(self) -> int:
        """128 bytes of k of each row of A and each column of B, in every slot."""
        return 128 * (self.m + self.n) * self.stages

    @property
    def wgmma_bytes(self) -> int:
        """Shared memory of `matmul_wgmma`: behind the slots 16 lines of 128 bytes for each of eight
        warps, two mbarriers a slot, and two for the turns.
        """
        return self.shared_bytes + 8 * 16 * 128 + 8 * (2 * self.stages + 2)


LARGE, MIDDLE, SMALL = Tile(128, 256), Tile(128, 128), Tile(64, 64)
WIDE, TURNS = Tile(128, 256, 4), Tile(128, 128, 6, turns=True)  # of matmul_wgmma

WORTH_A_PART = 512  # of k: shorter parts cost more in partial sums than they fill the device
MOST_PARTS = 32


class Limits(NamedTuple):
    """What a device has."""

    processors: int
    tensor_cores: bool
    shared_bytes: int
    hopper: bool = False  # wgmma and the tensor-memory accelerator: sm_90a


def limits(xp: Any) -> Limits:
    """What the current device of `xp` has."""
    if xp is np:  # NumPy arrays run in the simulator too; the device is that of "cuda-sim"
        xp = importlib.import_module("tinytensor.cuda.device").sim
    return _limits(xp, int(xp.cuda.Device().id))


@cache
def _limits(xp: Any, number: int) -> Limits:
    device = xp.cuda.Device(number)
    found = device.attributes  # CuPy asks the driver for some hundred of them
    capability = int(device.compute_capability)
    return Limits(
        found["MultiProcessorCount"],
        capability >= 80,
        found["MaxSharedMemoryPerBlockOptin"],
        capability == 90,
    )


def choose_tile(m: int, n: int, batch: int, device: Limits, tensor_cores: bool) -> Tile:
    """The largest tile of which there are still enough to give every multiprocessor one."""
    for tile in (LARGE, MIDDLE) if tensor_cores else (MIDDLE,):
        enough = _tiles(m, n, batch, tile) >= device.processors
        if enough and tile.shared_bytes <= device.shared_bytes and m > 64 and n > 64:
            return tile
    return SMALL if m * n <= 128 * 128 or min(m, n) <= 64 else MIDDLE


def choose_parts(m: int, n: int, k: int, batch: int, tile: Tile, device: Limits) -> int:
    """How many blocks share the sum of one tile: as many as it takes to fill the device twice."""
    tiles = _tiles(m, n, batch, tile)
    return max(1, min(2 * device.processors // tiles, k // WORTH_A_PART, MOST_PARTS))


def suits_wgmma(m: int, n: int, k: int, dtype: DType, device: Limits) -> bool:
    """Whether `matmul_wgmma` is the kernel of choice: its tiles begin at 128 × 128 × 64."""
    return device.hopper and dtype == bfloat16 and m >= 128 and n >= 128 and k >= 64


# Cycles of a multiprocessor, reckoned and not measured: by the data sheet 4,096 operations a cycle;
# from L2 some 40 bytes a cycle, which is what 64 of k wait for; C is stored at 32 bytes a cycle,
# behind the next tile's products where the warpgroups take turns; GELU is two instructions of which
# there are 16 a cycle.
_L2_BYTES, _STORED_BYTES, _GELU, _START = 40, 32, 8, 1000
_MEMORY_BYTES, _LAUNCH = 2800, 5000  # of the whole device; a second kernel adds the parts up


def plan_wgmma(
    m: int, n: int, k: int, batch: int, out_bytes: int, processors: int, gelu: bool = False
) -> tuple[Tile, int]:
    """The tile of `matmul_wgmma` and the parts of k that are reckoned to take the fewest cycles."""

    def cycles(choice: tuple[Tile, int]) -> float:
        tile, parts = choice
        steps = -(-k // parts // 64)
        step = max(tile.m * tile.n * 128 / 4096, 128 * (tile.m + tile.n) / _L2_BYTES)
        stored = tile.m * tile.n * (out_bytes if parts == 1 else 4) / _STORED_BYTES
        stored += tile.m * tile.n / _GELU if gelu and parts == 1 else 0
        each = max(steps * step, stored) if tile.turns else steps * step + stored + _START
        rounds = -(-_tiles(m, n, batch, tile) * parts // processors)
        last = stored + _START if tile.turns else 0  # nothing to hide it behind
        added = _LAUNCH + 4 * parts * batch * m * n / _MEMORY_BYTES if parts > 1 else 0
        return rounds * each + last + added

    most = max(1, min(k // WORTH_A_PART, MOST_PARTS, processors))
    return min(((tile, p) for tile in (WIDE, TURNS) for p in range(1, most + 1)), key=cycles)


def _tiles(m: int, n: int, batch: int, tile: Tile) -> int:
    return -(-m // tile.m) * -(-n // tile.n) * batch
