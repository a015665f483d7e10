"""Imports pooling: auto_pad and ceil_mode become explicit pads; the global forms become reductions."""

from __future__ import annotations

from typing import Any

import numpy as np

from dovetail.core.dims import Dim, ceil_div, maximum, minimum
from dovetail.frontend.onnx.contraction import per_axis, require, window_pads
from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.ir.graph import Value


def _window(ctx: Context, node: OnnxNode, x: Value) -> tuple[dict[str, Any], tuple[Dim, ...]]:
    """Window attributes with ceil mode resolved, and what ceil mode added to each high pad."""
    rank, sizes = x.tensor.rank - 2, x.tensor.shape[2:]
    if rank < 1:
        ctx.unsupported(f"input has rank {x.tensor.rank}", "expected [N, C, spatial...]")
    if not node.attr("kernel_shape"):
        ctx.unsupported("kernel_shape is missing", "give the extents of the window")
    kernel = per_axis(ctx, node, "kernel_shape", rank)
    strides = per_axis(ctx, node, "strides", rank)
    dilations = per_axis(ctx, node, "dilations", rank)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = list(window_pads(ctx, node, sizes, spans, strides))
    extra: list[Dim] = [0] * rank
    # The SAME rules fix the output extents themselves, so there is nothing left to round.
    if node.attr("ceil_mode", 0) and not (node.attr("auto_pad", "NOTSET") or "").startswith("SAME"):
        for i in range(rank):
            low, high = pads[i], pads[rank + i]
            out = ceil_div(sizes[i] + low + high - spans[i], strides[i]) + 1
            # The last window must start inside the input or its low pad.
            out = minimum(out, ceil_div(sizes[i] + low, strides[i]))
            pads[rank + i] = (out - 1) * strides[i] + spans[i] - sizes[i] - low
            extra[i] = maximum(pads[rank + i] - high, 0)
    return {"kernel": kernel, "strides": strides, "pads": tuple(pads), "dilations": dilations}, tuple(extra)


@onnx_op("MaxPool")
def max_pool(ctx: Context, node: OnnxNode) -> Any:
    """MaxPool-1 to 22, with Indices if the model uses them."""
    x = require(ctx, node, 0, "X")
    window, _ = _window(ctx, node, x)
    if node.n_outputs < 2:
        return ctx.emit("MaxPool", x, **window)
    return ctx.emit("MaxPool", x, **window, storage_order=int(node.attr("storage_order", 0)), outputs=2)


@onnx_op("AveragePool")
def average_pool(ctx: Context, node: OnnxNode) -> Any:
    """AveragePool-1 to 22."""
    x = require(ctx, node, 0, "X")
    window, extra = _window(ctx, node, x)
    counted = bool(node.attr("count_include_pad", 0))
    if not counted or all(e == 0 for e in extra):
        extra = ()
    return ctx.emit("AveragePool", x, **window, count_include_pad=counted, ceil_extra=extra)


@onnx_op("LpPool")
def lp_pool(ctx: Context, node: OnnxNode) -> Any:
    """LpPool-2 to 22 (opset 1 had a float p)."""
    x = require(ctx, node, 0, "X")
    window, _ = _window(ctx, node, x)
    return ctx.emit("LpPool", x, **window, p=int(node.attr("p", 2)))


def _space(ctx: Context, node: OnnxNode) -> tuple[Value, tuple[int, ...]]:
    x = require(ctx, node, 0, "X")
    return x, tuple(range(2, x.tensor.rank))


@onnx_op("GlobalAveragePool")
def global_average_pool(ctx: Context, node: OnnxNode) -> Any:
    """The mean over space."""
    x, axes = _space(ctx, node)
    return ctx.emit("ReduceMean", x, axes=axes, keepdims=True)


@onnx_op("GlobalMaxPool")
def global_max_pool(ctx: Context, node: OnnxNode) -> Any:
    """The maximum over space."""
    x, axes = _space(ctx, node)
    return ctx.emit("ReduceMax", x, axes=axes, keepdims=True)


@onnx_op("GlobalLpPool")
def global_lp_pool(ctx: Context, node: OnnxNode) -> Any:
    """The p-norm over space."""
    x, axes = _space(ctx, node)
    p = node.attr("p", 2)
    kind = x.tensor.dtype.numpy
    if p == 2:
        powers = ctx.emit("Mul", x, x)
    else:
        powers = ctx.emit("Abs", x)
    if p not in (1, 2):
        powers = ctx.emit("Pow", powers, ctx.const(np.asarray(p, kind), "p"))
    total = ctx.emit("ReduceSum", powers, axes=axes, keepdims=True)
    if p == 1:
        return total
    return ctx.emit("Sqrt", total) if p == 2 else ctx.emit("Pow", total, ctx.const(np.asarray(1 / p, kind), "p"))
