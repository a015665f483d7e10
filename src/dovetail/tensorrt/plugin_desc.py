"""What a plugin is told of a tensor: `PluginTensorDesc`, `DynamicPluginTensorDesc`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dovetail.tensorrt.dims import Dims, as_dims
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import DataType, TensorFormat


class PluginTensorDesc:
    """Shape, element type, memory format and INT8 scale of a tensor; -1 for extents that are not known."""

    __slots__ = ("_dims", "_format", "_scale", "_type")

    def __init__(self) -> None:
        self._dims, self._type, self._format, self._scale = Dims(), DataType.FLOAT, TensorFormat.LINEAR, 1.0

    @property
    def dims(self) -> Dims:
        """The shape."""
        return self._dims

    @dims.setter
    def dims(self, value: Any) -> None:
        self._dims = as_dims(value, "PluginTensorDesc.dims")

    @property
    def type(self) -> DataType:
        """The element type."""
        return self._type

    @type.setter
    def type(self, value: DataType) -> None:
        self._type = expect(DataType, value, "PluginTensorDesc.type")

    @property
    def format(self) -> TensorFormat:
        """The memory order."""
        return self._format

    @format.setter
    def format(self, value: TensorFormat) -> None:
        self._format = expect(TensorFormat, value, "PluginTensorDesc.format")

    @property
    def scale(self) -> float:
        """What an INT8 element is multiplied by."""
        return self._scale

    @scale.setter
    def scale(self, value: float) -> None:
        self._scale = float(value)

    def __repr__(self) -> str:
        return f"<PluginTensorDesc: {self._type.name}{self._dims} {self._format.name}>"


class DynamicPluginTensorDesc:
    """A tensor with the least, likely and largest shape that it may have."""

    __slots__ = ("_desc", "_max", "_min", "_opt")

    def __init__(self) -> None:
        self._desc, self._min, self._opt, self._max = PluginTensorDesc(), Dims(), Dims(), Dims()

    @property
    def desc(self) -> PluginTensorDesc:
        """What is known of the tensor at any shape."""
        return self._desc

    @desc.setter
    def desc(self, value: PluginTensorDesc) -> None:
        self._desc = expect(PluginTensorDesc, value, "DynamicPluginTensorDesc.desc")

    @property
    def min(self) -> Dims:
        """The least shape."""
        return self._min

    @min.setter
    def min(self, value: Any) -> None:
        self._min = as_dims(value, "DynamicPluginTensorDesc.min")

    @property
    def opt(self) -> Dims:
        """The likely shape."""
        return self._opt

    @opt.setter
    def opt(self, value: Any) -> None:
        self._opt = as_dims(value, "DynamicPluginTensorDesc.opt")

    @property
    def max(self) -> Dims:
        """The largest shape."""
        return self._max

    @max.setter
    def max(self, value: Any) -> None:
        self._max = as_dims(value, "DynamicPluginTensorDesc.max")


def desc(shape: Sequence[int], data_type: DataType, memory: TensorFormat = TensorFormat.LINEAR) -> PluginTensorDesc:
    """A description of a tensor."""
    made = PluginTensorDesc()
    made.dims, made.type, made.format = Dims(shape), data_type, memory
    return made


def dynamic(
    static: PluginTensorDesc, least: Sequence[int], likely: Sequence[int], most: Sequence[int]
) -> DynamicPluginTensorDesc:
    """A description with bounds."""
    made = DynamicPluginTensorDesc()
    made.desc, made.min, made.opt, made.max = static, Dims(least), Dims(likely), Dims(most)
    return made
