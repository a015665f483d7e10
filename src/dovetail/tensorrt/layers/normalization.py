"""Normalization: instance, layer and group normalization, by axes and groups."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.core.dims import Dim
from dovetail.core.dtypes import F32
from dovetail.core.errors import ModelError
from dovetail.ir.graph import Value
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import DataType, LayerType
from dovetail.tensorrt.layer import ILayer
from dovetail.tensorrt.layers.reduction import axes_of
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import Scope
from dovetail.tensorrt.settings import Setting, integer, number, of
from dovetail.tensorrt.tensor import ITensor


class INormalizationLayer(ILayer):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, with mean and variance over axes, of each group of channels.

    Scale and bias have the rank of the input and are repeated along extents of 1. With groups, they have an element per group, or
    per channel if the layer is of version 2.
    """

    __slots__ = ()
    _layer_type, _label = LayerType.NORMALIZATION, "Normalization"
    epsilon = Setting[float](number, 1e-5, "What is added to the variance.")
    axes = Setting[int](integer, 0, "The axes of mean and variance, as a mask.")
    num_groups = Setting[int](integer, 1, "The number of groups of channels.")
    compute_precision = Setting[DataType](of(DataType), DataType.FLOAT, "The type of sums; they are FLOAT at least.")

    @property
    def is_v2(self) -> bool:
        """Whether it was made by `add_normalization_v2`."""
        return bool(self._record.values["is_v2"])

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        x, scale, bias = inputs
        assert x is not None and scale is not None and bias is not None
        axes, groups, rank = axes_of(self, self.axes, len(x.shape), net.shift), self.num_groups, len(x.shape)
        wide = net.cast(x, F32)
        if groups == 1:
            return [net.cast(_scaled(net, _normal(net, wide, axes, self.epsilon), scale, bias), x.dtype)]
        channels = x.shape[1]
        if not isinstance(channels, int) or channels % groups:
            raise ModelError(f"{self.name}: got {channels} channels in {groups} groups, expected groups of equal size")
        cut: tuple[Dim, ...] = (x.shape[0], groups, channels // groups, *x.shape[2:])
        inner = sorted({2, *(a + 1 if a > 1 else a for a in axes if a != 1)})
        normal = _normal(net, net.reshape(wide, cut), inner, self.epsilon)
        if self.is_v2:
            return [net.cast(_scaled(net, net.reshape(normal, x.shape), scale, bias), x.dtype)]
        per_group = [net.reshape(v, (1, groups, 1, *(1,) * (rank - 2))) for v in (scale, bias)]
        return [net.cast(net.reshape(_scaled(net, normal, *per_group), x.shape), x.dtype)]


def _normal(net: Scope, x: Value, axes: list[int], epsilon: float) -> Value:
    """Without scale and bias."""
    if axes == list(range(axes[0], len(x.shape))):
        one = net.op("Expand", net.number(1, x), net.extents(x.shape[axes[0] :]))
        layer: Value = net.op("LayerNormalization", x, one, axis=axes[0], epsilon=epsilon)
        return layer
    centred = net.op("Sub", x, net.op("ReduceMean", x, axes, keepdims=1))
    variance = net.op("ReduceMean", net.op("Mul", centred, centred), axes, keepdims=1)
    made: Value = net.op("Div", centred, net.op("Sqrt", net.op("Add", variance, net.number(epsilon, x))))
    return made


def _scaled(net: Scope, x: Value, scale: Value, bias: Value) -> Value:
    made: Value = net.op("Add", net.op("Mul", x, net.cast(scale, x.dtype)), net.cast(bias, x.dtype))
    return made


class AddNormalization(NetworkBase):
    """The `add_*` methods of this family."""

    def add_normalization(self, input: ITensor, scale: ITensor, bias: ITensor, axesMask: int) -> INormalizationLayer | None:
        """Normalize over axes, given as a mask; of groups, scale and bias have an element each."""
        return self._add_normalization(input, scale, bias, axesMask, is_v2=False)

    def add_normalization_v2(self, input: ITensor, scale: ITensor, bias: ITensor, axesMask: int) -> INormalizationLayer | None:
        """Normalize over axes, given as a mask; with groups, scale and bias have an element per channel."""
        return self._add_normalization(input, scale, bias, axesMask, is_v2=True)

    def _add_normalization(self, input: ITensor, scale: ITensor, bias: ITensor, axes: int, is_v2: bool) -> INormalizationLayer | None:
        named = {"input": input, "scale": scale, "bias": bias}
        inputs = [expect(ITensor, t, f"add_normalization: {name}") for name, t in named.items()]
        return self._add(INormalizationLayer, inputs, axes=integer(axes, "add_normalization: axesMask"), is_v2=is_v2)
