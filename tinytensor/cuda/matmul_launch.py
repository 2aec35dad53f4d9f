"""The launches of a matrix product: what each kernel of `matmul.product` is given, in its order.

`Product` is a kernel with its tile and its parts of k; called, it multiplies two axes of a batch in
one launch, and where k was cut adds the parts up in a second one. `matmul.py` chooses.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, array_module
from .kernels import Defines, launch
from .tensor_map import Operand
from .tiles import Tile, limits
from .views import is_aligned, orientation, strides, window

__all__ = ["ADD_TO_C", "BIAS", "GELU", "LINES", "PAIRS", "SAVE", "Axis", "Launch", "Product"]

# What an epilogue does: the constants of kernels/matmul.cuh.
ADD_TO_C, BIAS, GELU, SAVE, PAIRS, LINES = 1, 2, 4, 8, 16, 32

Axis = tuple[int, int, int, int]  # of the batch: length, and strides in a, b and c


class Launch(NamedTuple):
    """What one launch is given: C or its parts, the two factors, and how they lie."""

    target: Array
    before: Array
    a: Array  # (…, m, k)
    b: Array  # (…, k, n)
    flat_a: Array  # the memory from the first matrix on
    flat_b: Array
    bias: Array
    axes: tuple[Axis, Axis]  # of the batch, in `target`
    ldc: int
    part_stride: int
    what: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(m, n, k)"""
        return self.a.shape[-2], self.b.shape[-1], self.a.shape[-1]

    @property
    def batch(self) -> int:
        return self.axes[0][0] * self.axes[1][0]

    @property
    def types(self) -> Defines:
        return (("real", _name(self.a.dtype)), ("out", _name(self.target.dtype)))

    @property
    def arrays(self) -> list[Array]:
        """As the kernels take them that are given pointers."""
        return [self.target, self.before, self.flat_a, self.flat_b, self.bias]

    @property
    def batch_strides(self) -> list[int]:
        """inner, then the outer and inner stride of a, b and c."""
        outer, inner = self.axes
        return [
            inner[0],
            *(stride for pair in zip(outer[1:], inner[1:], strict=True) for stride in pair),
        ]


class Product(NamedTuple):
    """How a product is made: the kernel, its tile, the parts of k, and what is done with C."""

    kernel: str
    tile: Tile
    k_part: int
    parts: int
    what: int
    seed: int | None

    def __call__(
        self,
        a: Array,
        b: Array,
        out: Array,
        bias: Array,
        before: Array,
        places: list[int],
        axes: tuple[Axis, Axis],
    ) -> None:
        """One launch: matrices that begin `places` elements into a, b and out, and the batch."""
        m, n = a.shape[-2], b.shape[-1]
        flat_a, flat_b = window(a)[places[0] :], window(b)[places[1] :]
        c = window(out)[places[2] :]
        saved = None if before is None else window(before)[places[2] :]
        ldc = strides(out)[-2] or n
        if self.parts == 1:
            what = self.what | self._together(c, saved, axes, ldc, 0)
            given = Launch(c, saved, a, b, flat_a, flat_b, bias, axes, ldc, 0, what)
            self._launch(given)
            return
        (outer, a_outer, b_outer, _), (inner, a_inner, b_inner, _) = axes
        sums = array_module(a).empty(outer * inner * self.parts * m * n, np.float32)
        apart = (
            (outer, a_outer, b_outer, inner * self.parts * m * n),
            (inner, a_inner, b_inner, self.parts * m * n),
        )
        what = self._together(sums, None, apart, n, m * n)
        self._launch(Launch(sums, None, a, b, flat_a, flat_b, None, apart, n, m * n, what))
        self._add_parts(sums, c, bias, saved, (m, n), axes, ldc)

    def _together(
        self, c: Array, before: Array, axes: tuple[Axis, Axis], ldc: int, part_stride: int
    ) -> int:
        """How many neighbours of C, and of `before`, can be written at once: PAIRS, LINES or 0."""
        count, flag = (16 // c.itemsize, LINES) if self.kernel == "matmul_wgmma" else (2, PAIRS)
        steps = (ldc, axes[0][3], axes[1][3], part_stride)
        fits = is_aligned(c, steps, count) and (before is None or is_aligned(before, (), count))
        return flag if fits else 0

    def _launch(self, given: Launch) -> None:
        {
            "matmul_wgmma": self._wgmma,
            "matmul_mma": self._mma,
            "matmul_plain": self._plain,
        }[self.kernel](given)

    def _wgmma(self, given: Launch) -> None:
        m, n, k = given.shape
        (outer, a_outer, b_outer, c_outer), (inner, a_inner, b_inner, c_inner) = given.axes
        of_a = Operand.of(given.a, given.flat_a, (outer, a_outer), (inner, a_inner), self.tile.m)
        of_b = Operand.of(
            given.b.swapaxes(-1, -2), given.flat_b, (outer, b_outer), (inner, b_inner), self.tile.n
        )
        defines: Defines = (
            given.types[1],
            ("TILE_N", self.tile.n),
            ("STAGES", self.tile.stages),
            ("TURNS", int(self.tile.turns)),
            ("TRANSPOSE_A", int(not of_a.along_k)),
            ("TRANSPOSE_B", int(of_b.along_k)),
            ("WHAT", given.what),
        )
        tiles = self._tiles(given)
        launch(
            self.kernel,
            (min(tiles * self.parts, limits(array_module(given.a)).processors),),
            (384,),
            [given.target, given.before, of_a.map, of_b.map, given.bias],
            [
                *(m, n, k, tiles, self.parts, inner, *of_a.steps, *of_b.steps),
                *(given.ldc, c_outer, c_inner, self.k_part, given.part_stride),
            ],
            defines=defines,
            shared_bytes=self.tile.wgmma_bytes,
            seed=self.seed,
        )

    def _mma(self, given: Launch) -> None:
        (transpose_a, lda), (transpose_b, ldb) = orientation(given.a), orientation(given.b)
        (_, a_outer, b_outer, _), (_, a_inner, b_inner, _) = given.axes
        aligned = is_aligned(given.flat_a, (lda, a_outer, a_inner)) and is_aligned(
            given.flat_b, (ldb, b_outer, b_inner)
        )
        defines: Defines = (
            *given.types,
            ("TILE_M", self.tile.m),
            ("TILE_N", self.tile.n),
            ("STAGES", self.tile.stages),
            ("TRANSPOSE_A", int(transpose_a)),
            ("TRANSPOSE_B", int(transpose_b)),
            ("ALIGNED", int(aligned)),
        )
        launch(
            self.kernel,
            (self._tiles(given), self.parts),
            (256,),
            given.arrays,
            [*given.shape, lda, ldb, given.ldc, *self._rest(given)],
            defines=defines,
            shared_bytes=self.tile.shared_bytes,
            seed=self.seed,
        )

    def _plain(self, given: Launch) -> None:
        steps = [*strides(given.a)[-2:], *strides(given.b)[-2:]]
        launch(
            self.kernel,
            (self._tiles(given), self.parts),
            (256,),
            given.arrays,
            [*given.shape, *steps, given.ldc, *self._rest(given)],
            defines=(*given.types, ("TILE", self.tile.m)),
            seed=self.seed,
        )

    def _tiles(self, given: Launch) -> int:
        m, n, _ = given.shape
        return given.batch * -(-m // self.tile.m) * -(-n // self.tile.n)

    def _rest(self, given: Launch) -> list[int]:
        return [*given.batch_strides, self.k_part, given.part_stride, given.what]

    def _add_parts(
        self,
        target: Array,
        c: Array,
        bias: Array,
        before: Array,
        shape: tuple[int, int],
        axes: tuple[Axis, Axis],
        ldc: int,
    ) -> None:
        m, n = shape
        (outer, _, _, c_outer), (inner, _, _, c_inner) = axes
        real = c.dtype if bias is None else bias.dtype
        for i, j in itertools.product(range(outer), range(inner)):
            at, size = i * c_outer + j * c_inner, self.parts * m * n
            start = (i * inner + j) * size
            launch(
                "matmul_add_parts",
                (-(-m * n // 256),),
                (256,),
                [
                    c[at:],
                    None if before is None else before[at:],
                    target[start : start + size],
                    bias,
                ],
                [m, n, self.parts, ldc, self.what],
                defines=(("real", _name(real)), ("out", _name(c.dtype))),
                seed=self.seed,
            )


def _name(dtype: Any) -> str:
    return "float" if dtype == np.float32 else "bf16"
