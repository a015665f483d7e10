"""Element types as records, so that a new format is an addition and not a switch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from dovetail.core.errors import UsageError


@dataclass(frozen=True)
class DType:
    """One element type: name, kind (float, int, uint, bool, string) and width in bits.

    Sub-byte types are stored one element per byte in host arrays.
    """

    name: str
    kind: str
    bits: int

    @property
    def is_float(self) -> bool:
        """Whether this is a floating-point type."""
        return self.kind == "float"

    @property
    def is_int(self) -> bool:
        """Whether this is an integer type, signed or not (bool is not)."""
        return self.kind in ("int", "uint")

    @property
    def itemsize(self) -> int:
        """Bytes per element in host memory."""
        return max(1, self.bits // 8)

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy (or ml_dtypes) dtype of host arrays."""
        return _NUMPY[self.name]

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name


F64 = DType("f64", "float", 64)
F32 = DType("f32", "float", 32)
F16 = DType("f16", "float", 16)
BF16 = DType("bf16", "float", 16)
F8E4M3 = DType("f8e4m3", "float", 8)
F8E5M2 = DType("f8e5m2", "float", 8)
F8E4M3FNUZ = DType("f8e4m3fnuz", "float", 8)
F8E5M2FNUZ = DType("f8e5m2fnuz", "float", 8)
F8E8M0 = DType("f8e8m0", "float", 8)
F4E2M1 = DType("f4e2m1", "float", 4)
I64 = DType("i64", "int", 64)
I32 = DType("i32", "int", 32)
I16 = DType("i16", "int", 16)
I8 = DType("i8", "int", 8)
I4 = DType("i4", "int", 4)
I2 = DType("i2", "int", 2)
U64 = DType("u64", "uint", 64)
U32 = DType("u32", "uint", 32)
U16 = DType("u16", "uint", 16)
U8 = DType("u8", "uint", 8)
U4 = DType("u4", "uint", 4)
U2 = DType("u2", "uint", 2)
BOOL = DType("bool", "bool", 8)
STR = DType("str", "string", 64)
C64 = DType("c64", "complex", 64)
C128 = DType("c128", "complex", 128)

_NUMPY: dict[str, np.dtype[Any]] = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f8e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "f8e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "f8e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "f8e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "f8e8m0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "f4e2m1": np.dtype(ml_dtypes.float4_e2m1fn),
    "i64": np.dtype(np.int64),
    "i32": np.dtype(np.int32),
    "i16": np.dtype(np.int16),
    "i8": np.dtype(np.int8),
    "i4": np.dtype(ml_dtypes.int4),
    "i2": np.dtype(ml_dtypes.int2),
    "u64": np.dtype(np.uint64),
    "u32": np.dtype(np.uint32),
    "u16": np.dtype(np.uint16),
    "u8": np.dtype(np.uint8),
    "u4": np.dtype(ml_dtypes.uint4),
    "u2": np.dtype(ml_dtypes.uint2),
    "bool": np.dtype(np.bool_),
    "str": np.dtype(object),
    "c64": np.dtype(np.complex64),
    "c128": np.dtype(np.complex128),
}

DTYPES: dict[str, DType] = {
    t.name: t
    for t in (
        F64, F32, F16, BF16, F8E4M3, F8E5M2, F8E4M3FNUZ, F8E5M2FNUZ, F8E8M0, F4E2M1,
        I64, I32, I16, I8, I4, I2, U64, U32, U16, U8, U4, U2, BOOL, STR, C64, C128,
    )
}  # fmt: skip
_BY_NUMPY = {v: DTYPES[k] for k, v in _NUMPY.items()}


def dtype(spec: Any) -> DType:
    """The DType for a DType, one of our names, a NumPy dtype, or anything NumPy accepts as one.

    Raises:
        UsageError: no such element type.
    """
    if isinstance(spec, DType):
        return spec
    if isinstance(spec, str) and spec in DTYPES:
        return DTYPES[spec]
    try:
        numpy_dtype = np.dtype(spec)
    except TypeError as error:
        raise UsageError(f"dtype: got {spec!r}, expected one of {', '.join(DTYPES)}") from error
    if numpy_dtype.kind in "USO" or numpy_dtype.kind == "T":
        return STR
    found = _BY_NUMPY.get(numpy_dtype.newbyteorder("="))
    if found is None:
        raise UsageError(f"dtype: got {spec!r}, expected one of {', '.join(DTYPES)}")
    return found


def named(array: np.ndarray[Any, Any], want: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """An array of plain bytes as elements of `want`, where that is a type that files of NumPy have no name for; else the array."""
    plain = array.dtype.type is np.void and array.dtype.names is None and array.dtype.itemsize == want.itemsize
    return array.view(want) if plain and want.kind == "V" else array
