"""The error function, which NumPy lacks: W. J. Cody, "Rational Chebyshev approximations for the
error
function", Mathematics of Computation 23 (1969), tables for |x| <= 0.5, <= 4 and beyond. Accurate to
about one unit in the last place of float64.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence

import numpy as np

from ..backend import Array

_SMALL_P = (
    3.20937758913846947e03,
    3.77485237685302021e02,
    1.13864154151050156e02,
    3.16112374387056560e00,
    1.85777706184603153e-1,
)
_SMALL_Q = (
    2.84423683343917062e03,
    1.28261652607737228e03,
    2.44024637934444173e02,
    2.36012909523441209e01,
    1.0,
)
_MIDDLE_P = (
    1.23033935479799725e03,
    2.05107837782607147e03,
    1.71204761263407058e03,
    8.81952221241769090e02,
    2.98635138197400131e02,
    6.61191906371416295e01,
    8.88314979438837594e00,
    5.64188496988670089e-1,
    2.15311535474403846e-8,
)
_MIDDLE_Q = (
    1.23033935480374942e03,
    3.43936767414372164e03,
    4.36261909014324716e03,
    3.29079923573345963e03,
    1.62138957456669019e03,
    5.37181101862009858e02,
    1.17693950891312499e02,
    1.57449261107098347e01,
    1.0,
)
_LARGE_P = (
    6.58749161529837803e-4,
    1.60837851487422766e-2,
    1.25781726111229246e-1,
    3.60344899949804439e-1,
    3.05326634961232344e-1,
    1.63153871373020978e-2,
)
_LARGE_Q = (
    2.33520497626869185e-3,
    6.05183413124413191e-2,
    5.27905102951428412e-1,
    1.87295284992346725e00,
    2.56852019228982242e00,
    1.0,
)


def _polynomial(coefficients: Sequence[float], x: Array) -> Array:
    """c[0] + c[1] x + c[2] x² …, by Horner's rule."""
    total = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


def error_function(x: Array) -> Array:
    """erf(x) for a floating array; the dtype is kept."""
    if not isinstance(x, np.ndarray | np.generic):
        return importlib.import_module("cupyx.scipy.special").erf(x)
    dtype = x.dtype
    a = np.abs(x.astype(np.float64, copy=False))
    square = a * a
    small = np.minimum(square, 0.25)
    middle = np.clip(a, 0.46875, 4.0)
    large = np.clip(a, 4.0, 6.0)  # erfc(6) is below half a unit in the last place of 1
    inverse = 1 / (large * large)
    tail = (
        1 / math.sqrt(math.pi)
        - inverse * _polynomial(_LARGE_P, inverse) / _polynomial(_LARGE_Q, inverse)
    ) / large
    y = np.where(
        a <= 0.46875,
        a * _polynomial(_SMALL_P, small) / _polynomial(_SMALL_Q, small),
        np.where(
            a <= 4.0,
            1
            - np.exp(-middle * middle)
            * _polynomial(_MIDDLE_P, middle)
            / _polynomial(_MIDDLE_Q, middle),
            1 - np.exp(-large * large) * tail,
        ),
    )
    y = np.where(np.isnan(a), a, y)
    return np.copysign(y, x.astype(np.float64, copy=False)).astype(dtype)
