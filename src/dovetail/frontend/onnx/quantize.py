"""Importers of quantisation and the integer contractions."""

from __future__ import annotations

from typing import Any

from dovetail.core.dtypes import F32, I32, U8, dtype
from dovetail.frontend.onnx.shorthand import (
    cast,
    dtype_attribute,
    normal_axis,
    required,
    reshape,
    scalar,
)
from dovetail.frontend.registry import Context, OnnxNode, find_importer, onnx_op
from dovetail.ir.graph import Value

_WINDOW_ATTRIBUTES = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def _granularity(ctx: Context, node: OnnxNode, x: Value, scale: Value) -> dict[str, int]:
    """Axis and block_size; a scale of one element has no axis."""
    block_size = int(node.attr("block_size", 0))
    if not block_size and scale.tensor.shape in ((), (1,)):
        return {"axis": 0, "block_size": 0}
    axis = normal_axis(ctx, node.attr("axis", 1), x.tensor.rank)
    return {"axis": axis, "block_size": block_size}


@onnx_op("QuantizeLinear")
def quantize_linear(ctx: Context, node: OnnxNode) -> Value:
    """The output dtype is the zero point's, else `output_dtype`, else u8."""
    x, scale, zero = required(ctx, node, 0), required(ctx, node, 1), node.input(2)
    attributes: dict[str, Any] = _granularity(ctx, node, x, scale)
    if zero is None:
        attributes["output_dtype"] = dtype_attribute(node, "output_dtype", U8)
    if node.attr("precision"):
        attributes["precision"] = dtype_attribute(node, "precision", F32)
    if not node.attr("saturate", 1):
        attributes["saturate"] = False
    result: Value = ctx.emit("QuantizeLinear", x, scale, zero, **attributes)
    return result


@onnx_op("DequantizeLinear")
def dequantize_linear(ctx: Context, node: OnnxNode) -> Value:
    """The output dtype is `output_dtype`, else the scale's."""
    x, scale, zero = required(ctx, node, 0), required(ctx, node, 1), node.input(2)
    attributes: dict[str, Any] = _granularity(ctx, node, x, scale)
    if node.attr("output_dtype"):
        attributes["output_dtype"] = dtype_attribute(node, "output_dtype", F32)
    result: Value = ctx.emit("DequantizeLinear", x, scale, zero, **attributes)
    return result


@onnx_op("DynamicQuantizeLinear")
def dynamic_quantize_linear(ctx: Context, node: OnnxNode) -> tuple[Value, Value, Value]:
    """Quantise to u8 over the range of x, which always takes in 0."""
    x = required(ctx, node, 0)
    axes = tuple(range(x.tensor.rank))
    zero, top = scalar(ctx, 0.0, F32), scalar(ctx, 255.0, F32)
    high = ctx.emit("Max", ctx.emit("ReduceMax", x, axes=axes, keepdims=False), zero)
    low = ctx.emit("Min", ctx.emit("ReduceMin", x, axes=axes, keepdims=False), zero)
    scale = ctx.emit("Div", ctx.emit("Sub", high, low), top)
    ideal = ctx.emit("Sub", zero, ctx.emit("Div", low, scale))
    offset = ctx.emit("Round", ctx.emit("Clip", ideal, min=0.0, max=255.0))
    zero_point = cast(ctx, offset, dtype("u8"))
    return ctx.emit("QuantizeLinear", x, scale, zero_point, axis=0), scale, zero_point


def _centred(ctx: Context, x: Value, zero: Value | None, rows: bool) -> Value:
    """X - zero point in i32 (fp32 for 8-bit floats); a zero point per row gets a column axis."""
    kind = F32 if x.tensor.dtype.is_float else I32
    wide = cast(ctx, x, kind)
    if zero is None or x.tensor.dtype.is_float:
        return wide
    result: Value = ctx.emit("Sub", wide, cast(ctx, _per_row(ctx, zero, x, rows), kind))
    return result


def _per_row(ctx: Context, parameter: Value, x: Value, rows: bool) -> Value:
    """A scale or zero point of a matrix so that it broadcasts: a vector for rows becomes a column."""
    shape = parameter.tensor.shape
    if shape == (1,):
        return reshape(ctx, parameter, ())
    if rows and len(shape) == 1 and x.tensor.rank >= 2:
        return reshape(ctx, parameter, (*shape, 1))
    return parameter


@onnx_op("MatMulInteger")
def matmul_integer(ctx: Context, node: OnnxNode) -> Value:
    """(a - a_zero) @ (b - b_zero) in i32."""
    a, b = required(ctx, node, 0), required(ctx, node, 1)
    left = _centred(ctx, a, node.input(2), rows=True)
    right = _centred(ctx, b, node.input(3), rows=False)
    result: Value = ctx.emit("MatMul", left, right)
    return result


@onnx_op("QLinearMatMul")
def qlinear_matmul(ctx: Context, node: OnnxNode) -> Value:
    """The integer product, rescaled and quantised."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (
        required(ctx, node, i) for i in range(8)
    )
    left = _centred(ctx, a, a_zero, rows=True)
    right = _centred(ctx, b, b_zero, rows=False)
    product = cast(ctx, ctx.emit("MatMul", left, right), F32)
    scales = ctx.emit(
        "Mul",
        cast(ctx, _per_row(ctx, a_scale, a, True), F32),
        cast(ctx, _per_row(ctx, b_scale, b, False), F32),
    )
    factor = ctx.emit("Div", scales, cast(ctx, _per_row(ctx, y_scale, a, True), F32))
    one = scalar(ctx, 1.0, F32)
    result: Value = ctx.emit(
        "QuantizeLinear", ctx.emit("Mul", product, factor), one, reshape(ctx, y_zero, ()), axis=0
    )
    return result


def _convolve(ctx: Context, node: OnnxNode, x: Value, w: Value) -> Value:
    """The nn family's Conv importer on other inputs, with this node's window attributes."""
    importer = find_importer("Conv", node.opset)
    if importer is None:
        ctx.unsupported("there is no importer of Conv", "use a complete installation")
    attributes = {k: v for k, v in node.attrs.items() if k in _WINDOW_ATTRIBUTES}
    inner = OnnxNode("Conv", "", node.name, node.opset, [x, w], node.outputs[:1], attributes)
    result = importer(ctx, inner)
    assert isinstance(result, Value)
    return result


def _centred_weights(ctx: Context, w: Value, zero: Value | None) -> Value:
    """W - zero point in i32; a zero point per output channel runs along axis 0."""
    wide = cast(ctx, w, I32)
    if zero is None:
        return wide
    if zero.tensor.rank == 1:
        zero = reshape(ctx, zero, (*zero.tensor.shape, *(1,) * (w.tensor.rank - 1)))
    result: Value = ctx.emit("Sub", wide, cast(ctx, zero, I32))
    return result


@onnx_op("ConvInteger")
def conv_integer(ctx: Context, node: OnnxNode) -> Value:
    """Conv(x - x_zero, w - w_zero) in i32; padding adds zeros after the subtraction."""
    x, w = required(ctx, node, 0), required(ctx, node, 1)
    left = _centred(ctx, x, node.input(2), rows=False)
    return _convolve(ctx, node, left, _centred_weights(ctx, w, node.input(3)))


@onnx_op("QLinearConv")
def qlinear_conv(ctx: Context, node: OnnxNode) -> Value:
    """The integer convolution plus bias, rescaled and quantised."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (
        required(ctx, node, i) for i in range(8)
    )
    total = _convolve(
        ctx, node, _centred(ctx, x, x_zero, rows=False), _centred_weights(ctx, w, w_zero)
    )
    channels = (-1, *(1,) * (x.tensor.rank - 2))
    bias = node.input(8)
    if bias is not None:
        total = ctx.emit("Add", total, reshape(ctx, bias, (*bias.tensor.shape, *channels[1:])))
    if w_scale.tensor.rank == 1:
        w_scale = reshape(ctx, w_scale, (*w_scale.tensor.shape, *channels[1:]))
    factor = ctx.emit(
        "Div", ctx.emit("Mul", reshape(ctx, x_scale, ()), w_scale), reshape(ctx, y_scale, ())
    )
    scaled = ctx.emit("Mul", cast(ctx, total, F32), factor)
    result: Value = ctx.emit(
        "QuantizeLinear", scaled, scalar(ctx, 1.0, F32), reshape(ctx, y_zero, ()), axis=0
    )
    return result
