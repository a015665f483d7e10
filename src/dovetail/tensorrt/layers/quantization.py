"""Quantize, dequantize and dynamic quantize layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dovetail.core.dims import Dim, ceil_div
from dovetail.core.dtypes import F32, DType
from dovetail.core.errors import ModelError
from dovetail.ir.graph import Value
from dovetail.tensorrt.dims import Dims
from dovetail.tensorrt.dtypes import to_dtype
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import DataType, LayerType
from dovetail.tensorrt.layer import ILayer
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import Scope
from dovetail.tensorrt.settings import Setting, dims_setting, extents, integer, of
from dovetail.tensorrt.tensor import ITensor


class _Scaled(ILayer):
    """What quantize and dequantize layers share: inputs are the tensor, its scale, and a zero point that may be absent."""

    __slots__ = ()
    _most_inputs = 3
    axis = Setting[int](integer, -1, "The axis along which the scale changes; of no effect for one scale.")
    block_shape = dims_setting((), "How many elements share a scale, per axis; empty where `axis` says it.")


def granularity(layer: _Scaled, x: Value, scale: Value, shift: int) -> dict[str, int]:
    """Axis and block size as ONNX's attributes."""
    if scale.shape in ((), (1,)):
        return {}
    rank = len(x.shape)
    if len(scale.shape) == 1:
        if layer.axis < 0:
            raise ModelError(f"{layer.name}: got no axis for a scale of shape {scale.shape}, expected one; set axis")
        return {"axis": layer.axis + shift}
    blocked = [a for a in range(rank) if scale.shape[a] != x.shape[a]]
    sizes = [block_size(x.shape[a], scale.shape[a]) for a in blocked]
    if len(blocked) > 1 or None in sizes:
        raise ModelError(f"{layer.name}: got a scale of shape {scale.shape} for {x.shape}, expected blocks along one axis")
    # Blocks of one element have a scale each.
    return {"axis": blocked[0], "block_size": int(sizes[0] or 1)} if blocked else {"axis": rank - 1, "block_size": 1}


def block_size(extent: Dim, count: Dim) -> int | None:
    """How many elements share a scale, of an axis with that many scales; None where that is not known before the run."""
    known = isinstance(extent, int) and isinstance(count, int) and count > 0
    return int(str(ceil_div(extent, count))) if known else None


def quantized(net: Scope, x: Value, scale: Value, dtype: DType, attributes: dict[str, int], zero: Value | None = None) -> Value:
    """x / scale in a narrow type, rounded to the nearest and clipped to its range."""
    kind = None if zero is not None else dtype
    made: Value = net.op("QuantizeLinear", x, net.cast(scale, x.dtype), zero, output_dtype=kind, **attributes)
    return made


def dequantized(net: Scope, x: Value, scale: Value, dtype: DType, attributes: dict[str, int], zero: Value | None = None) -> Value:
    """x * scale in a wide type."""
    made: Value = net.op("DequantizeLinear", x, net.cast(scale, dtype), zero, **attributes)
    return made


class IQuantizeLayer(_Scaled):
    """x / scale in a narrow type, rounded to the nearest, ties to even, and clipped to its range."""

    __slots__ = ()
    _layer_type, _label = LayerType.QUANTIZE, "Quantize"
    to_type = Setting[DataType](of(DataType), DataType.INT8, "The narrow type: INT8, FP8, INT4 or FP4.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        x, scale, zero = (*inputs, None)[:3]
        assert x is not None and scale is not None
        return [quantized(net, x, scale, to_dtype(self.to_type), granularity(self, x, scale, net.shift), zero)]


class IDequantizeLayer(_Scaled):
    """x * scale in a wide type."""

    __slots__ = ()
    _layer_type, _label = LayerType.DEQUANTIZE, "Dequantize"
    to_type = Setting[DataType](of(DataType), DataType.FLOAT, "The wide type: FLOAT, HALF or BF16.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        x, scale, zero = (*inputs, None)[:3]
        assert x is not None and scale is not None
        return [dequantized(net, x, scale, to_dtype(self.to_type), granularity(self, x, scale, net.shift), zero)]


class IDynamicQuantizeLayer(ILayer):
    """Blocks of the input in a narrow type, each with a scale that its largest element decides; outputs are data and scales.

    FP4 data have FP8 scales, themselves scaled by input 1 (1 if absent); FP8 data have scales that are powers of two (E8M0).
    """

    __slots__ = ()
    _layer_type, _label, _most_inputs = LayerType.DYNAMIC_QUANTIZE, "DynamicQuantize", 2
    axis = Setting[int](integer, -1, "The axis that is cut into blocks.")
    block_size = Setting[int](integer, 16, "How many elements share a scale.")
    block_shape = dims_setting(None, "How many elements share a scale, per axis; set by add_dynamic_quantize_v2.")
    to_type = Setting[DataType](of(DataType), DataType.FP4, "The narrow type: FP4 or FP8.")
    output_type = Setting[DataType](of(DataType), DataType.FP4, "The old name of `to_type`.", key="to_type")
    scale_type = Setting[DataType](of(DataType), DataType.FP8, "The type of scales: FP8 for FP4 data, E8M0 for FP8 data.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        x, double = (*inputs, None)[:2]
        assert x is not None
        return list(dynamically_quantized(net, self, x, double, self._blocks(x, net.shift), self.to_type, self.scale_type))

    def _blocks(self, x: Value, shift: int) -> tuple[int, ...]:
        """Elements per scale, per axis."""
        rank = len(x.shape)
        kept: tuple[int, ...] | None = self._record.values.get("block_shape")
        if kept is not None:
            if len(kept) > rank:
                raise ModelError(f"{self.name}: got blocks of {len(kept)} axes, expected at most {rank}")
            return (1,) * (rank - len(kept)) + kept
        axis = self.axis % (rank - shift) + shift
        return tuple(self.block_size if a == axis else 1 for a in range(rank))


def dynamically_quantized(
    net: Scope, layer: ILayer, x: Value, double: Value | None, blocks: tuple[int, ...], data: DataType, scale: DataType
) -> tuple[Value, Value]:
    """Data and scales of an input, by blocks of a shape (-1: the whole axis)."""
    sizes = tuple(e if b == -1 else b for e, b in zip(x.shape, blocks, strict=True))
    split: list[Dim] = []
    for extent, size in zip(x.shape, sizes, strict=True):
        if isinstance(extent, int) and isinstance(size, int) and (size < 1 or extent % size):
            raise ModelError(f"{layer.name}: got blocks of {sizes} for {x.shape}, expected sizes that divide it")
        split += [extent // size, size]
    if (data, scale) not in ((DataType.FP4, DataType.FP8), (DataType.FP8, DataType.E8M0), (DataType.FP8, DataType.FLOAT)):
        raise ModelError(f"{layer.name}: got {data.name} data with {scale.name} scales, expected FP4 with FP8, or FP8 with E8M0 or FLOAT")
    top = 6.0 if data is DataType.FP4 else 448.0
    wide = net.reshape(net.cast(x, F32), split)
    inner = list(range(1, len(split), 2))
    largest = net.op("ReduceMax", net.op("Abs", wide), inner, keepdims=1)
    ideal = net.op("Div", largest, np.float32(top))
    if scale is DataType.E8M0:
        # Rounded up to a power of two, so that nothing is clipped; what is all zeros keeps the smallest.
        exponent = net.op("Ceil", net.op("Div", net.op("Log", net.op("Max", ideal, np.float32(2.0**-126))), np.float32(np.log(2.0))))
        kept = net.op("Pow", np.float32(2.0), exponent)
        # Logarithms are not exact: a power of two too small would clip.
        kept = net.op("Where", net.op("Less", kept, ideal), net.op("Mul", kept, np.float32(2)), kept)
        factor = kept
    elif scale is DataType.FLOAT:
        kept = factor = ideal
    else:
        second = net.op("Cast", double, to=F32) if double is not None else np.float32(1)
        kept = net.cast(net.op("Min", net.op("Div", ideal, second), np.float32(448.0)), to_dtype(scale))
        factor = net.op("Mul", net.cast(kept, F32), second)
    safe = net.op("Where", net.op("Equal", factor, np.float32(0)), np.float32(1), factor)
    ratio = net.op("Clip", net.op("Div", wide, safe), np.float32(-top), np.float32(top))
    codes = net.cast(net.reshape(ratio, x.shape), to_dtype(data))
    shape = tuple(split[::2])
    return codes, net.reshape(net.cast(kept, to_dtype(scale)), shape)


def by_blocks(net: Scope, x: Value, factor: Value) -> Value:
    """A tensor times one factor per block."""
    split: list[Dim] = []
    for extent, count in zip(x.shape, factor.shape, strict=True):
        split += [count, extent // count]
    whole: list[Dim] = [d for count in factor.shape for d in (count, 1)]
    made = net.op("Mul", net.reshape(x, split), net.reshape(factor, whole))
    return net.reshape(made, x.shape)


class AddQuantization(NetworkBase):
    """The `add_*` methods of this family."""

    def add_quantize(self, input: ITensor, scale: ITensor, output_type: DataType = DataType.INT8) -> IQuantizeLayer | None:
        """Divide by a scale and round into a narrow type."""
        inputs = [expect(ITensor, input, "add_quantize: input"), expect(ITensor, scale, "add_quantize: scale")]
        return self._add(IQuantizeLayer, inputs, to_type=expect(DataType, output_type, "add_quantize: output_type"))

    def add_dequantize(self, input: ITensor, scale: ITensor, output_type: DataType = DataType.FLOAT) -> IDequantizeLayer | None:
        """Multiply with a scale into a wide type."""
        inputs = [expect(ITensor, input, "add_dequantize: input"), expect(ITensor, scale, "add_dequantize: scale")]
        return self._add(IDequantizeLayer, inputs, to_type=expect(DataType, output_type, "add_dequantize: output_type"))

    def add_dynamic_quantize(
        self, input: ITensor, axis: int, block_size: int, output_type: DataType, scale_type: DataType
    ) -> IDynamicQuantizeLayer | None:
        """Quantize blocks along an axis, with scales that the data decide."""
        return self._add(
            IDynamicQuantizeLayer,
            [expect(ITensor, input, "add_dynamic_quantize: input")],
            outputs=2,
            axis=integer(axis, "add_dynamic_quantize: axis"),
            block_size=integer(block_size, "add_dynamic_quantize: block_size"),
            to_type=expect(DataType, output_type, "add_dynamic_quantize: output_type"),
            scale_type=expect(DataType, scale_type, "add_dynamic_quantize: scale_type"),
        )

    def add_dynamic_quantize_v2(
        self, input: ITensor, block_shape: Any, output_type: DataType, scale_type: DataType
    ) -> IDynamicQuantizeLayer | None:
        """Quantize blocks of a shape, with scales that the data decide."""
        return self._add(
            IDynamicQuantizeLayer,
            [expect(ITensor, input, "add_dynamic_quantize_v2: input")],
            outputs=2,
            block_shape=tuple(Dims(extents(block_shape, "add_dynamic_quantize_v2: block_shape"))),
            to_type=expect(DataType, output_type, "add_dynamic_quantize_v2: output_type"),
            scale_type=expect(DataType, scale_type, "add_dynamic_quantize_v2: scale_type"),
        )
