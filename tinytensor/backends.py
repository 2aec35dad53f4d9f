"""`tt.backends`: the switches that scripts written for PyTorch set here.

`tt.backends.cuda.matmul.allow_tf32 = True` is `tt.set_float32_matmul_precision("high")`. There is
no cuDNN: products, attention and norms are kernels of this package.
"""

from __future__ import annotations

from .cuda.matmul import get_float32_matmul_precision, set_float32_matmul_precision

__all__ = ["cuda", "cudnn"]


class _Matmul:
    """`tt.backends.cuda.matmul`."""

    @property
    def allow_tf32(self) -> bool:
        """Whether float32 products on a GPU may round their inputs to TF32."""
        return get_float32_matmul_precision() != "highest"

    @allow_tf32.setter
    def allow_tf32(self, allowed: bool) -> None:
        set_float32_matmul_precision("high" if allowed else "highest")


class _Cuda:
    """`tt.backends.cuda`."""

    matmul = _Matmul()


class _Cudnn:
    """`tt.backends.cudnn`: a library that is not used here.

    `allow_tf32` (of convolutions, in PyTorch) and `benchmark` may be set, as scripts do, and decide
    nothing. `deterministic` is always True: every kernel adds in a fixed order.
    """

    allow_tf32: bool = False
    benchmark: bool = False

    def is_available(self) -> bool:
        """False."""
        return False

    @property
    def deterministic(self) -> bool:
        """True; it cannot be switched off, and setting it to True is accepted."""
        return True

    @deterministic.setter
    def deterministic(self, wanted: bool) -> None:
        if not wanted:
            raise ValueError(
                "backends.cudnn.deterministic: the kernels here always add in a fixed order; leave "
                "it True"
            )


cuda = _Cuda()
cudnn = _Cudnn()
