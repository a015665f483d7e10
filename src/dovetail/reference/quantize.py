"""NumPy meaning of quantisation."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from dovetail.core.dtypes import U8, DType, dtype
from dovetail.reference.cast import saturate_float
from dovetail.reference.registry import reference
from dovetail.reference.widen import Array, widen


def spread(scale: Array, shape: tuple[int, ...], axis: int, block_size: int) -> Array:
    """A scale or zero point as an array that broadcasts to `shape`.

    Scalars and one-element vectors hold for all; a vector runs along `axis`; with `block_size` the
    scale has the rank of the data and each of its elements holds for a block along `axis`.
    """
    if scale.size == 1 and not block_size:
        return scale.reshape(())
    if not block_size:
        along = [1] * len(shape)
        along[axis] = scale.size
        return scale.reshape(along)
    repeated = np.repeat(scale, block_size, axis=axis)
    return np.take(repeated, range(shape[axis]), axis=axis)


@reference("QuantizeLinear")
def quantize_linear(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    saturate: bool = True,
    output_dtype: DType | None = None,
    precision: DType | None = None,
) -> Array:
    """saturate(round_half_even(x / scale) + zero_point). ONNX QuantizeLinear-28.

    The division runs in `precision`, by default in the common type of x and scale, at least fp32.
    """
    to = dtype(zero_point.dtype) if zero_point is not None else output_dtype or U8
    scales = spread(widen(scale), x.shape, axis, block_size)
    with np.errstate(all="ignore"):
        if precision is not None:
            kind = precision.numpy
            ratio = widen(np.asarray(widen(x).astype(kind) / scales.astype(kind)))
        else:
            ratio = np.asarray(widen(x) / scales)
    if to.is_float:
        if to.bits == 8 and saturate:
            return saturate_float(ratio, to)
        return ratio.astype(to.numpy)
    limits = ml_dtypes.iinfo(to.numpy)
    rounded = np.rint(ratio).astype(np.float64)
    if zero_point is not None:
        rounded = rounded + spread(zero_point.astype(np.float64), x.shape, axis, block_size)
    # NaN has no integer; 0 is as good as any other choice and is the same on every machine.
    bounded = np.clip(np.nan_to_num(rounded, posinf=np.inf, neginf=-np.inf), limits.min, limits.max)
    return bounded.astype(np.int64).astype(to.numpy).reshape(x.shape)


@reference("DequantizeLinear")
def dequantize_linear(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: DType | None = None,
) -> Array:
    """(x - zero_point) * scale in `output_dtype`, by default the scale's. ONNX DequantizeLinear-28."""
    scales = spread(widen(scale), x.shape, axis, block_size)
    kind = output_dtype.numpy if output_dtype is not None else scale.dtype
    wide = np.float64 if dtype(x.dtype).bits >= 32 else np.float32
    offset = x.astype(wide)
    if zero_point is not None and not dtype(x.dtype).is_float:
        offset = offset - spread(zero_point.astype(wide), x.shape, axis, block_size)
    return np.asarray(offset * scales).astype(kind).reshape(x.shape)
