"""ONNX importers of the selection family: gather, scatter, top-k, and ops with data-dependent sizes."""

from __future__ import annotations

from typing import Any

import numpy as np

from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.frontend.shape_inputs import as_i64, known_dims, normal_axis, present, required
from dovetail.ir.graph import Value


def _axis(node: OnnxNode, x: Value, default: int = 0) -> int:
    return normal_axis(node.op_type, node.attr("axis", default), x.tensor.rank)


@onnx_op("Gather", "GatherElements")
def gather(ctx: Context, node: OnnxNode) -> Any:
    """Gather-1…13, GatherElements-11, 13."""
    x = required(node, 0)
    return ctx.emit(node.op_type, x, required(node, 1), axis=_axis(node, x))


@onnx_op("GatherND")
def gather_nd(ctx: Context, node: OnnxNode) -> Any:
    """GatherND-11 (no batch axes), 12, 13."""
    return ctx.emit("GatherND", required(node, 0), required(node, 1), batch_dims=node.attr("batch_dims", 0))


@onnx_op("Scatter", "ScatterElements")
def scatter_elements(ctx: Context, node: OnnxNode) -> Any:
    """Scatter-9, 11 (the old name) and ScatterElements-11…18."""
    x = required(node, 0)
    return ctx.emit(
        "ScatterElements",
        x,
        required(node, 1),
        required(node, 2),
        axis=_axis(node, x),
        reduction=node.attr("reduction", "none"),
    )


@onnx_op("ScatterND")
def scatter_nd(ctx: Context, node: OnnxNode) -> Any:
    """ScatterND-11…18."""
    inputs = (required(node, i) for i in range(3))
    return ctx.emit("ScatterND", *inputs, reduction=node.attr("reduction", "none"))


@onnx_op("OneHot")
def one_hot(ctx: Context, node: OnnxNode) -> Any:
    """OneHot-9, 11, 28: the depth becomes a dim."""
    indices, depth, values = (required(node, i) for i in range(3))
    if not depth.tensor.dtype.is_int and known_dims(ctx, depth) is None:
        depth = as_i64(ctx, depth)
    axis = normal_axis("OneHot", node.attr("axis", -1), indices.tensor.rank + 1)
    return ctx.emit("OneHot", indices, values, depth=ctx.dims(depth)[0], axis=axis)


@onnx_op("TopK")
def top_k(ctx: Context, node: OnnxNode) -> tuple[Value, Value]:
    """TopK-1 (attribute k), 10, 11, 24 (input k; largest, sorted)."""
    x = required(node, 0)
    k = node.attr("k") if node.opset < 10 else ctx.dims(required(node, 1))[0]
    result: tuple[Value, Value] = ctx.emit(
        "TopK",
        x,
        k=k,
        axis=_axis(node, x, -1),
        largest=bool(node.attr("largest", 1)),
        sorted=bool(node.attr("sorted", 1)),
    )
    return result


@onnx_op("NonZero")
def non_zero(ctx: Context, node: OnnxNode) -> Any:
    """NonZero-9, 13."""
    return ctx.emit("NonZero", required(node, 0), symbols=(ctx.fresh("nonzero"),))


@onnx_op("Compress")
def compress(ctx: Context, node: OnnxNode) -> Any:
    """Compress-9…28."""
    x, axis = required(node, 0), node.attr("axis")
    place = None if axis is None else normal_axis("Compress", axis, x.tensor.rank)
    return ctx.emit("Compress", x, required(node, 1), axis=place, symbols=(ctx.fresh("kept"),))


@onnx_op("Unique")
def unique(ctx: Context, node: OnnxNode) -> Any:
    """Unique-11, 28."""
    x, axis = required(node, 0), node.attr("axis")
    return ctx.emit(
        "Unique",
        x,
        axis=None if axis is None else normal_axis("Unique", axis, x.tensor.rank),
        sorted=bool(node.attr("sorted", 1)),
        outputs=max(node.n_outputs, 1),
        symbols=(ctx.fresh("unique"),),
    )


@onnx_op("NonMaxSuppression")
def non_max_suppression(ctx: Context, node: OnnxNode) -> Any:
    """NonMaxSuppression-10, 11."""
    boxes, scores = required(node, 0), required(node, 1)
    limit = present(node, 2)
    return ctx.emit(
        "NonMaxSuppression",
        boxes,
        scores,
        # Without a maximum ONNX selects nothing.
        ctx.const(np.zeros(1, np.int64)) if limit is None else limit,
        present(node, 3),
        present(node, 4),
        center_point_box=bool(node.attr("center_point_box", 0)),
        symbols=(ctx.fresh("selected"),),
    )


