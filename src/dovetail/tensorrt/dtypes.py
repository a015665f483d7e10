"""Element types between TensorRT's names, Dovetail's and NumPy's; the aliases `float32` …; `volume` and `nptype`."""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from typing import Any

import numpy as np

from dovetail.core import dtypes
from dovetail.core.dtypes import DType
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import DataType

float32 = DataType.FLOAT
float16 = DataType.HALF
bfloat16 = DataType.BF16
int8 = DataType.INT8
int32 = DataType.INT32
int64 = DataType.INT64
bool = DataType.BOOL
uint8 = DataType.UINT8
fp8 = DataType.FP8
int4 = DataType.INT4
fp4 = DataType.FP4
e8m0 = DataType.E8M0

_DTYPES: dict[DataType, DType] = {
    float32: dtypes.F32,
    float16: dtypes.F16,
    bfloat16: dtypes.BF16,
    int8: dtypes.I8,
    int32: dtypes.I32,
    int64: dtypes.I64,
    bool: dtypes.BOOL,
    uint8: dtypes.U8,
    fp8: dtypes.F8E4M3,
    int4: dtypes.I4,
    fp4: dtypes.F4E2M1,
    e8m0: dtypes.F8E8M0,
}
_DATA_TYPES = {dtype: data_type for data_type, dtype in _DTYPES.items()}
_NUMPY: dict[DataType, type[np.generic]] = {
    float32: np.float32,
    float16: np.float16,
    int8: np.int8,
    int32: np.int32,
    int64: np.int64,
    bool: np.bool_,
    uint8: np.uint8,
}


def to_dtype(data_type: DataType) -> DType:
    """Dovetail's element type of a `DataType`."""
    return _DTYPES[data_type]


def to_data_type(dtype: DType | np.dtype[Any]) -> DataType:
    """The `DataType` of an element type of Dovetail or NumPy (bf16, fp8 and the 4-bit types as ml_dtypes has them).

    Raises:
        TypeError: TensorRT has no such type, as float64.
    """
    known = dtype if isinstance(dtype, DType) else _dtype_of(dtype)
    if known not in _DATA_TYPES:
        raise TypeError(f"DataType: got {dtype}, expected one of {', '.join(str(d) for d in _DATA_TYPES)}; convert it first")
    return _DATA_TYPES[known]


def _dtype_of(dtype: np.dtype[Any]) -> DType | None:
    try:
        return dtypes.dtype(np.dtype(dtype))
    except (TypeError, ValueError, KeyError):
        return None


def nptype(trt_type: DataType) -> type[np.generic]:
    """The NumPy type of a `DataType`.

    Raises:
        TypeError: NumPy has none: BF16, FP8, the 4-bit types and E8M0.
    """
    if trt_type not in _NUMPY:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
    return _NUMPY[expect(DataType, trt_type, "nptype: trt_type")]


def has_nptype(data_type: DataType) -> builtins.bool:
    """Whether `nptype` knows the type."""
    return data_type in _NUMPY


def volume(iterable: Iterable[int]) -> int:
    """The product of an iterable of ints, such as a shape; 1 when it is empty."""
    product = 1
    for extent in iterable:
        product *= extent
    return product


def nbytes(data_type: DataType, count: int) -> int:
    """Bytes that so many elements take; 4-bit elements lie two to a byte."""
    return int(np.ceil(count * data_type.itemsize))
