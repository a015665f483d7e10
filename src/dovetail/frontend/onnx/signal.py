"""Importers of the signal ops."""

from __future__ import annotations

from dovetail.core.dims import Dim
from dovetail.core.dtypes import F32
from dovetail.frontend.onnx.shorthand import (
    constant_ints,
    dtype_attribute,
    normal_axis,
    required,
)
from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.ir.graph import Value


@onnx_op("DFT", since=17)
def dft_17(ctx: Context, node: OnnxNode) -> Value:
    """The axis is an attribute."""
    return _dft(ctx, node, int(node.attr("axis", 1)))


@onnx_op("DFT", since=20)
def dft(ctx: Context, node: OnnxNode) -> Value:
    """The axis is an input; where it is not a constant, the shape is known at run time only."""
    value = node.input(2)
    if value is None:
        return _dft(ctx, node, -2)
    known = constant_ints(ctx, value, f"axis of {node.name}")
    if known is not None:
        return _dft(ctx, node, known[0])
    x = required(ctx, node, 0)
    length = node.input(1)
    dynamic: Value = ctx.emit(
        "DFTAt",
        x,
        value,
        length=None if length is None else ctx.dims(length)[0],
        inverse=bool(node.attr("inverse", 0)),
        onesided=bool(node.attr("onesided", 0)),
        symbols=tuple(ctx.fresh("u") for _ in range(x.tensor.rank - 1)),
    )
    return dynamic


def _dft(ctx: Context, node: OnnxNode, axis: int) -> Value:
    x = required(ctx, node, 0)
    axis = normal_axis(ctx, axis, x.tensor.rank)
    inverse, onesided = bool(node.attr("inverse", 0)), bool(node.attr("onesided", 0))
    given = node.input(1)
    extent = x.tensor.shape[axis]
    default: Dim = 2 * (extent - 1) if inverse and onesided else extent
    length = default if given is None else ctx.dims(given)[0]
    result: Value = ctx.emit(
        "DFT", x, length=length, axis=axis, inverse=inverse, onesided=onesided
    )
    return result


@onnx_op("STFT")
def stft(ctx: Context, node: OnnxNode) -> Value:
    """The frame length is the window's where there is one."""
    window, frame_length = node.input(2), node.input(3)
    if window is not None:
        length = window.tensor.shape[0]
    elif frame_length is not None:
        length = ctx.dims(frame_length)[0]
    else:
        ctx.unsupported("there is neither a window nor a frame length", "give one of them")
    result: Value = ctx.emit(
        "STFT",
        required(ctx, node, 0),
        window,
        frame_step=ctx.dims(required(ctx, node, 1))[0],
        frame_length=length,
        onesided=bool(node.attr("onesided", 1)),
    )
    return result


@onnx_op("MelWeightMatrix")
def mel_weight_matrix(ctx: Context, node: OnnxNode) -> Value:
    """The first two inputs drive the shape."""
    result: Value = ctx.emit(
        "MelWeightMatrix",
        *(required(ctx, node, i) for i in (2, 3, 4)),
        bins=ctx.dims(required(ctx, node, 0))[0],
        dft_length=ctx.dims(required(ctx, node, 1))[0],
        dtype=dtype_attribute(node, "output_datatype", F32),
    )
    return result
