"""Attributes of decorated plugins as fields: numbers, text, bytes and 1-d arrays, as annotations say."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from dovetail.tensorrt.enums import PluginFieldType
from dovetail.tensorrt.plugin_fields import PluginField, PluginFieldCollection

_PLAIN: dict[type, PluginFieldType] = {
    int: PluginFieldType.INT64, float: PluginFieldType.FLOAT64, bool: PluginFieldType.INT8,
    str: PluginFieldType.CHAR, bytes: PluginFieldType.UNKNOWN,
}  # fmt: skip
_ARRAYS: dict[str, PluginFieldType] = {
    "int8": PluginFieldType.INT8, "int16": PluginFieldType.INT16, "int32": PluginFieldType.INT32, "int64": PluginFieldType.INT64,
    "float16": PluginFieldType.FLOAT16, "float32": PluginFieldType.FLOAT32, "float64": PluginFieldType.FLOAT64,
    "bool": PluginFieldType.INT8,
}  # fmt: skip


def element_type(annotation: Any) -> np.dtype[Any] | None:
    """The element type of an array's annotation `NDArray[…]`; None for any other."""
    origin = typing.get_origin(annotation)
    if isinstance(getattr(origin, "__value__", None), types.GenericAlias):  # from NumPy 2.5 on, NDArray is the name of a type
        annotation = origin.__value__[typing.get_args(annotation)]
    if typing.get_origin(annotation) is not np.ndarray:
        return None
    (kind,) = typing.get_args(typing.get_args(annotation)[1])
    made: np.dtype[Any] = np.dtype(kind)
    return made


def field_type(annotation: Any, where: str) -> PluginFieldType:
    """The type of an attribute's field.

    Raises:
        ValueError: an annotation that attributes cannot have.
    """
    kind = element_type(annotation)
    found = _PLAIN.get(annotation) if kind is None else _ARRAYS.get(kind.name)
    if found is None:
        raise ValueError(f"{where}: got the annotation {annotation!r}, expected int, float, bool, str, bytes or NDArray of numbers")
    return found


def check(value: Any, annotation: Any, where: str) -> None:
    """Refuse a value that is not of an annotation.

    Raises:
        ValueError: it is not.
    """
    kind = element_type(annotation)
    if kind is not None:
        if not isinstance(value, np.ndarray) or value.dtype != kind or value.ndim != 1:
            got = f"{value.dtype} of rank {value.ndim}" if isinstance(value, np.ndarray) else type(value).__name__
            raise ValueError(f"{where}: got {got}, expected an array of {kind} of rank 1")
    elif type(value) is not annotation:
        raise ValueError(f"{where}: got {type(value).__name__}, expected {annotation.__name__}")


def encoded(attributes: Mapping[str, Any]) -> PluginFieldCollection:
    """Attributes as fields."""
    fields = PluginFieldCollection()
    for name, value in attributes.items():
        if isinstance(value, np.ndarray):
            fields.append(PluginField(name, value, _ARRAYS[value.dtype.name]))
        elif isinstance(value, (str, bytes)):
            fields.append(PluginField(name, value, _PLAIN[type(value)]))
        else:
            fields.append(PluginField(name, np.array([value]), _PLAIN[type(value)]))
    return fields


def decoded(fields: PluginFieldCollection, annotations: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of fields.

    Raises:
        ValueError: a field that is no attribute.
    """
    made: dict[str, Any] = {}
    for field in fields:
        if field.name not in annotations:
            raise ValueError(f"got the attribute {field.name!r}, expected one of {', '.join(annotations) or 'none'}")
        annotation = annotations[field.name]
        kind = element_type(annotation)
        if kind is not None:
            made[field.name] = np.asarray(field.data).astype(kind)
        elif annotation is str:
            made[field.name] = field.data.tobytes().decode()
        elif annotation is bytes:
            made[field.name] = field.data.tobytes()
        else:
            made[field.name] = annotation(field.data[0])
    return made
