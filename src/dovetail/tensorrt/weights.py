"""`Weights`: elements that a layer, a refitter or a constant is given, in an array or at an address."""

from __future__ import annotations

import ctypes
import operator
from typing import Any

import numpy as np

from dovetail.core.dtypes import DType
from dovetail.tensorrt.dtypes import has_nptype, nbytes, to_data_type, to_dtype
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import DataType


class Weights:
    """Elements of one type, without a shape.

    `Weights(array)` holds the array and shares its memory where that is contiguous; `Weights(type, ptr, count)` refers to the
    caller's memory, which must outlive it; `Weights(type)` and `Weights()` are empty.

    Raises:
        TypeError: an element type that TensorRT does not have, or arguments of other kinds.
        ValueError: a negative count, or a null address for more than no elements.
    """

    __slots__ = ("__weakref__", "_array", "_count", "_data_type", "_pointer")

    def __init__(
        self,
        type: DataType | np.ndarray[Any, Any] | np.generic = DataType.FLOAT,
        ptr: int | None = None,
        count: int | None = None,
        *,
        a: np.ndarray[Any, Any] | np.generic | None = None,
    ) -> None:
        source = type if a is None else a
        self._array: np.ndarray[Any, Any] | None = None
        if isinstance(source, (np.ndarray, np.generic)) and ptr is None and count is None:
            array = np.ascontiguousarray(source)
            self._data_type = to_data_type(array.dtype)
            self._array = array.reshape(-1)
            self._count = array.size
            self._pointer = array.ctypes.data if array.size else 0
            return
        if a is not None or (ptr is None) != (count is None):
            raise TypeError("Weights: expected a NumPy array, a DataType, or a DataType with ptr and count")
        self._data_type = expect(DataType, type, "Weights: type")
        self._pointer = _integer(ptr, "ptr")
        self._count = _integer(count, "count")
        if self._count < 0 or (self._count and not self._pointer):
            raise ValueError(f"Weights: got {self._count} elements at address {self._pointer:#x}, expected memory that exists")

    @property
    def dtype(self) -> DataType:
        """The element type."""
        return self._data_type

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._count

    @property
    def nbytes(self) -> int:
        """The size in bytes; 4-bit elements at an address lie two to a byte."""
        return nbytes(self._data_type, max(self._count, 0))

    def numpy(self) -> Any:
        """The elements as a flat array that shares their memory; the Weights themselves where NumPy has no such type."""
        if not has_nptype(self._data_type):
            return self
        return values(self)

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"<Weights: {self._count} x {self._data_type.name}>"


def values(weights: Weights) -> np.ndarray[Any, Any]:
    """The elements as a flat array of Dovetail's NumPy type, shared where it can be; 4-bit elements are unpacked.

    Weights at an address are read when this is called: the address must be one of this process's host memory.

    Raises:
        ValueError: a prototype, which has no elements.
    """
    dtype = to_dtype(weights.dtype)
    if weights._array is not None:
        return weights._array
    if weights.size and not weights._pointer:
        raise ValueError(f"Weights: {weights.size} elements without memory: a prototype has only a type and a size")
    if not weights.size:
        return np.empty(0, dtype.numpy)
    raw = np.frombuffer(memoryview((ctypes.c_uint8 * weights.nbytes).from_address(weights._pointer)), np.uint8)
    return _unpack(raw, weights.size, dtype) if dtype.bits < 8 else raw.view(dtype.numpy)


def prototype(data_type: DataType, size: int) -> Weights:
    """A type and a size without memory: what `Refitter.get_weights_prototype` gives; size -1 for weights that are not there."""
    weights = Weights(data_type)
    weights._count = size
    return weights


def address(weights: Weights) -> int:
    """Where the elements lie; 0 for empty weights."""
    return weights._pointer


def as_weights(value: Any, where: str) -> Weights:
    """Weights, or an array taken as such: TensorRT converts arrays by itself; None is empty float weights.

    Raises:
        TypeError: something else; `where` names the method and the argument.
    """
    if value is None:
        return Weights()
    if isinstance(value, Weights):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return Weights(value)
    raise TypeError(f"{where}: got {type(value).__name__}, expected Weights or a NumPy array")


def _unpack(raw: np.ndarray[Any, Any], count: int, dtype: DType) -> np.ndarray[Any, Any]:
    """Two elements of 4 bits from every byte, the low half first, one per byte as ml_dtypes has them."""
    halves = np.stack([raw & 0xF, raw >> 4], axis=-1).reshape(-1)[:count]
    if dtype.is_int:
        return ((halves.astype(np.int8) ^ 8) - 8).astype(dtype.numpy)
    return halves.view(dtype.numpy)


def _integer(value: Any, what: str) -> int:
    try:
        return 0 if value is None else operator.index(value)
    except TypeError:
        raise TypeError(f"Weights: {what}: got {value!r}, expected an integer") from None
