"""Floats narrower than fp32 are computed in fp32 and rounded once: the two halves of that rule."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dovetail.core.dtypes import dtype

Array = NDArray[Any]


def widen(x: Array) -> Array:
    """`x` as fp32 if it is a float narrower than that; any other array as it is."""
    if x.dtype in (np.float32, np.float64):
        return x
    kind = dtype(x.dtype)
    return x.astype(np.float32) if kind.is_float and kind.bits < 32 else x


def narrow(y: Array, like: Array) -> Array:
    """`y` rounded to the dtype of `like`: the one rounding at the end of an op."""
    return y if y.dtype == like.dtype else y.astype(like.dtype)
