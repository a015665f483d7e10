"""`PluginField` and its collection: the attributes of plugins, as named arrays."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from dovetail.tensorrt.dims import Dims
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import PluginFieldType

# CHAR is read as bytes or text by its `tobytes()`; 4-bit elements lie one to a byte.
_NUMPY: dict[PluginFieldType, np.dtype[Any]] = {
    PluginFieldType.FLOAT16: np.dtype(np.float16),
    PluginFieldType.FLOAT32: np.dtype(np.float32),
    PluginFieldType.FLOAT64: np.dtype(np.float64),
    PluginFieldType.INT8: np.dtype(np.int8),
    PluginFieldType.INT16: np.dtype(np.int16),
    PluginFieldType.INT32: np.dtype(np.int32),
    PluginFieldType.INT64: np.dtype(np.int64),
    PluginFieldType.CHAR: np.dtype("S1"),
    PluginFieldType.UNKNOWN: np.dtype(np.int8),
    PluginFieldType.BF16: np.dtype(ml_dtypes.bfloat16),
    PluginFieldType.FP8: np.dtype(ml_dtypes.float8_e4m3fn),
    PluginFieldType.INT4: np.dtype(ml_dtypes.int4),
    PluginFieldType.FP4: np.dtype(ml_dtypes.float4_e2m1fn),
}


class PluginField:
    """A named attribute of a plugin: `PluginField(name, data, type)`, or `PluginField(name)` without data.

    `data` is an array of the element type (None where there is none), the bytes as an array where the type is UNKNOWN, a list of
    Dims where it is DIMS. It may be given as an array, which is converted, as bytes, text, a number, a list, or Dims.

    Raises:
        TypeError: data that cannot be of the type.
    """

    __slots__ = ("_data", "_name", "_size", "_type")

    def __init__(self, name: str = "", data: Any = None, type: PluginFieldType = PluginFieldType.UNKNOWN) -> None:
        self._name = str(name)
        self._type = expect(PluginFieldType, type, "PluginField: type")
        self._data: Any = None
        self._size = 0
        if data is not None:
            self.data = data

    @property
    def name(self) -> str:
        """The name."""
        return self._name

    @name.setter
    def name(self, value: str) -> None:
        self._name = str(value)

    @property
    def data(self) -> Any:
        """The elements: an array, or a list of Dims; None where there are none."""
        return self._data

    @data.setter
    def data(self, value: Any) -> None:
        self._data = None if value is None else _elements(value, self._type, self._name)
        self._size = 0 if value is None else len(self._data)

    @property
    def type(self) -> PluginFieldType:
        """The element type."""
        return self._type

    @type.setter
    def type(self, value: PluginFieldType) -> None:
        self._type = expect(PluginFieldType, value, "PluginField.type")

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._size

    @size.setter
    def size(self, value: int) -> None:
        self._size = operator.index(value)

    def __repr__(self) -> str:
        return f"<PluginField: {self._name!r}, {self._size} x {self._type.name}>"


def _elements(value: Any, kind: PluginFieldType, name: str) -> Any:
    where = f"PluginField {name!r}"
    if kind is PluginFieldType.DIMS:
        several = [value] if isinstance(value, Dims) else list(value)
        return [Dims(d) for d in ([several] if several and not hasattr(several[0], "__iter__") else several)]
    if isinstance(value, str):
        value = value.encode()
    raw = bytes(value) if isinstance(value, (bytes, bytearray, memoryview)) else None
    if kind is PluginFieldType.UNKNOWN:
        raw = raw if raw is not None else _array(value, None, where).tobytes()
    dtype = _NUMPY[kind]
    if raw is not None:
        if len(raw) % dtype.itemsize:
            raise TypeError(f"{where}: got {len(raw)} bytes, expected a multiple of {dtype.itemsize} for elements of {kind.name}")
        return np.frombuffer(raw, dtype).copy()
    return _array(value, dtype, where)


def _array(value: Any, dtype: np.dtype[Any] | None, where: str) -> np.ndarray[Any, Any]:
    try:
        array = np.ascontiguousarray(value).reshape(-1)
        if array.dtype == object:
            raise TypeError(f"elements of {type(value).__name__}")
        if dtype is None or array.dtype == dtype:
            return array.copy()
        if dtype.kind == "S" and array.dtype.itemsize == 1:
            return array.view(dtype).copy()  # characters are bytes, whatever type holds them
        return array.astype(dtype)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{where}: got {value!r} ({error}), expected elements of {dtype}") from error


class PluginFieldCollection(list[PluginField]):
    """A list of `PluginField`s; a slice is one, too.

    Raises:
        TypeError: an element that is no PluginField.
    """

    def __init__(self, fields: Iterable[PluginField] = ()) -> None:
        super().__init__(_field(f) for f in fields)

    def append(self, x: PluginField) -> None:
        """Add a field at the end."""
        super().append(_field(x))

    def extend(self, L: Iterable[PluginField]) -> None:
        """Add several fields at the end."""
        super().extend(_field(f) for f in L)

    def insert(self, i: Any, x: PluginField) -> None:
        """Add a field ahead of an index."""
        super().insert(operator.index(i), _field(x))

    def clear(self) -> None:
        """Remove all fields."""
        super().clear()

    def pop(self, i: Any = -1) -> PluginField:
        """Remove a field and return it."""
        return super().pop(operator.index(i))

    def __repr__(self) -> str:
        return f"PluginFieldCollection{super().__repr__()}"


# The name that bindings of 8 give the type that creators' `field_names` have.
PluginFieldCollection_ = PluginFieldCollection


def _field(value: Any) -> PluginField:
    return expect(PluginField, value, "PluginFieldCollection")


def collection(fields: Any, where: str) -> PluginFieldCollection:
    """A collection, or any sequence of fields taken as one; None is empty.

    Raises:
        TypeError: something else.
    """
    if fields is None:
        return PluginFieldCollection()
    if isinstance(fields, PluginFieldCollection):
        return fields
    if not isinstance(fields, Sequence) or isinstance(fields, (str, bytes)):
        raise TypeError(f"{where}: got {type(fields).__name__}, expected a PluginFieldCollection")
    return PluginFieldCollection(fields)


def to_records(fields: Iterable[PluginField]) -> list[dict[str, Any]]:
    """Fields as attributes of a plugin call: JSON values and arrays."""
    made = []
    for field in fields:
        data: Any = field.data
        if isinstance(data, list):
            data = [list(d) for d in data]
        elif isinstance(data, np.ndarray) and data.dtype.kind == "S":
            data = data.view(np.uint8)
        made.append({"name": field.name, "type": field.type.name, "data": data})
    return made


def from_records(records: Iterable[Mapping[str, Any]]) -> PluginFieldCollection:
    """The fields of what `to_records` gave."""
    fields = PluginFieldCollection()
    for record in records:
        kind: PluginFieldType = getattr(PluginFieldType, record["type"])
        data = record["data"]
        if isinstance(data, np.ndarray) and data.dtype == np.uint8:
            data = data.tobytes()
        fields.append(PluginField(record["name"], data, kind))
    return fields
