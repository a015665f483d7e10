"""NumPy meaning of conversions between element types."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from dovetail.core.dtypes import DType, dtype
from dovetail.reference.registry import reference
from dovetail.reference.widen import Array, widen

_E8M0_NAN = 0xFF
_E8M0_MAX = 0xFE


@reference("Cast")
def cast(
    x: Array, *, to: DType, saturate: bool = True, round_mode: str = "up", clamp: bool = False
) -> Array:
    """X converted to `to`. ONNX Cast-28.

    `saturate` clamps to the largest finite value of the 8-bit float types instead of giving an
    infinity or NaN; `round_mode` (up, down, nearest) counts for f8e8m0 only. `clamp` keeps finite
    numbers finite in f16 and bf16 and leaves infinities. Integers that do not fit keep their low
    bits; strings are parsed and printed as numbers.
    """
    source = dtype(x.dtype)
    if to.kind == "string":
        return _to_string(x, source)
    if source.kind == "string":
        return _from_string(x, to)
    if to.name == "f8e8m0":
        return to_e8m0(widen(x).astype(np.float32), saturate, round_mode)
    with np.errstate(all="ignore"):
        if clamp:
            wide = widen(x)
            return np.where(np.isinf(wide), wide, clip_to_range(wide, to)).astype(to.numpy)
        if to.is_float and to.bits == 8 and saturate:
            return saturate_float(widen(x), to)
        if to.is_int and to.bits < 8:
            return _to_small_int(widen(x), to)
        if to.kind == "bool":
            return np.asarray(widen(x) != 0)
        wide = widen(x) if to.is_int or to.bits >= 32 else x
        if to.is_int and to.bits < 64 and wide.dtype.kind == "f":
            # Through int64, so that values beyond the range keep their low bits on every machine.
            wide = np.asarray(np.trunc(wide)).astype(np.int64)
        return wide.astype(to.numpy)


def saturate_float(x: Array, to: DType) -> Array:
    """X rounded to a narrow float type, values beyond its range clamped to the largest finite."""
    return clip_to_range(x, to).astype(to.numpy)


def clip_to_range(x: Array, to: DType) -> Array:
    """X with values beyond the range of a narrow float type replaced by its ends, in the dtype of x."""
    limits = ml_dtypes.finfo(to.numpy)
    kind = x.dtype.type
    return np.asarray(np.clip(x, kind(limits.min), kind(limits.max)))


def _to_small_int(x: Array, to: DType) -> Array:
    integers = x if x.dtype.kind in "iub" else np.trunc(x)
    wrapped = np.asarray(np.asarray(integers).astype(np.int64) & ((1 << to.bits) - 1))
    if to.kind == "int":
        sign = 1 << (to.bits - 1)
        wrapped = (wrapped ^ sign) - sign
    # Sub-byte dtypes give scalars for rank 0, so keep an array around them.
    return np.asarray(np.asarray(wrapped).astype(np.int8)).astype(to.numpy)


def to_e8m0(x: Array, saturate: bool, round_mode: str) -> Array:
    """fp32 as a power of two (8 exponent bits, no sign); infinities and NaN become NaN.

    The sign is dropped. Without `saturate`, rounding up from the largest exponent gives NaN.
    """
    bits = np.ascontiguousarray(x).view(np.uint32)
    exponent = ((bits >> 23) & 0xFF).astype(np.int64)
    fraction = (bits & 0x7FFFFF).astype(np.int64)
    special = exponent == 0xFF
    if round_mode == "up":
        up = fraction > 0
    elif round_mode == "nearest":
        # Ties go up, except from the subnormal range where the result would leave it.
        up = (fraction > 0x400000) | ((fraction == 0x400000) & (exponent > 0))
    else:
        up = np.zeros(x.shape, np.bool_)
    rounded = exponent + up
    if saturate:
        rounded = np.minimum(rounded, _E8M0_MAX)
    encoded = np.where(special, _E8M0_NAN, rounded).astype(np.uint8)
    return encoded.reshape(x.shape).view(ml_dtypes.float8_e8m0fnu)


def _to_string(x: Array, source: DType) -> Array:
    if source.kind == "string":
        return x.astype(object)
    texts = [str(v) for v in (widen(x) if source.bits < 16 else x).reshape(-1)]
    result = np.empty(len(texts), dtype=object)
    result[:] = texts
    return result.reshape(x.shape)


def _from_string(x: Array, to: DType) -> Array:
    texts = [v.decode() if isinstance(v, bytes) else str(v) for v in x.reshape(-1)]
    if to.is_int and to.bits >= 8:
        numbers = np.array([_parse_int(t) for t in texts], dtype=object)
        flat = numbers.astype(to.numpy) if texts else np.empty(0, to.numpy)
        return flat.reshape(x.shape)
    flat = np.array([float(t) for t in texts], dtype=np.float64)
    return cast(flat.reshape(x.shape), to=to)


def _parse_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return int(float(text))
