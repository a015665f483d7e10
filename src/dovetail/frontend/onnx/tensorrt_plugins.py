"""Operators that TensorRT's own plugins compute, as exporters for TensorRT write them: suppression of boxes, RoiAlign.

They are found by name in every domain, behind plugins of the same name that a user has registered. What they mean is written down in the
READMEs of TensorRT's plugins (efficientNMSPlugin, batchedNMSPlugin, roiAlignPlugin). Two things are ONNX's here: overlap must exceed the
threshold instead of reaching it, and no number of candidates (TensorRT: 4096) limits what is looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dovetail.core.dims import Dim, minimum, product
from dovetail.core.dtypes import F32, I32, I64
from dovetail.frontend.onnx.shorthand import cast, required, reshape, scalar
from dovetail.frontend.registry import TENSORRT, Context, OnnxNode, onnx_op
from dovetail.ir.graph import Value

_LOWEST = float(np.finfo(np.float32).min)


@onnx_op("EfficientNMS_TRT", domain=TENSORRT)
def efficient_nms(ctx: Context, node: OnnxNode) -> tuple[Value, ...]:
    """EfficientNMS_TRT-1: (number i32 [B, 1], boxes [B, K, 4] as corners, scores [B, K], classes i32 [B, K])."""
    boxes, scores = required(ctx, node, 0), required(ctx, node, 1)
    kind = boxes.tensor.dtype
    boxes, scores = _four_axes(ctx, cast(ctx, boxes, F32)), cast(ctx, scores, F32)
    anchors = node.input(2)
    if anchors is not None:
        anchors = reshape(ctx, cast(ctx, anchors, F32), (*anchors.tensor.shape[:2], 1, 4))
    centers = int(node.attr("box_coding", 0)) == 1
    boxes = _corners(ctx, boxes, anchors, centers)
    if node.attr("score_activation", 0):
        scores = ctx.emit("Sigmoid", scores)
    found = _suppress(
        ctx, boxes, _without(ctx, scores, int(node.attr("background_class", -1))), int(node.attr("max_output_boxes", 100)),
        float(node.attr("iou_threshold", 0.5)), float(node.attr("score_threshold", 0.25)), bool(node.attr("class_agnostic", 0)),
    )  # fmt: skip
    count, chosen, best, classes = found
    return count, cast(ctx, chosen, kind), cast(ctx, best, kind), classes


@onnx_op("BatchedNMS_TRT", "BatchedNMSDynamic_TRT", domain=TENSORRT)
def batched_nms(ctx: Context, node: OnnxNode) -> tuple[Value, ...]:
    """BatchedNMS_TRT-1, BatchedNMSDynamic_TRT-1: (number i32 [B, 1], boxes [B, K, 4], scores [B, K], classes [B, K], as floats)."""
    boxes, scores = required(ctx, node, 0), required(ctx, node, 1)
    kind = boxes.tensor.dtype
    if not node.attr("isNormalized", 1):
        ctx.unsupported("boxes in pixels (isNormalized 0) count their last pixel", "divide boxes by the image's size and set isNormalized")
    boxes, scores = _four_axes(ctx, cast(ctx, boxes, F32)), cast(ctx, scores, F32)
    scores = _without(ctx, scores, int(node.attr("backgroundLabelId", -1)))
    candidates, number = int(node.attr("topK", -1)), scores.tensor.shape[1]
    if candidates > 0 and not (isinstance(number, int) and candidates >= number):
        # Of each class, only so many of the best are looked at.
        most = minimum(candidates, number)
        best = ctx.emit("TopK", scores, k=most, axis=1)[0]
        last = ctx.emit("ReduceMin", best, axes=(1,), keepdims=True)
        scores = ctx.emit("Where", ctx.emit("Less", scores, last), scalar(ctx, _LOWEST, F32), scores)
    count, chosen, best, classes = _suppress(
        ctx, boxes, scores, int(node.attr("keepTopK", 100)), float(node.attr("iouThreshold", 0.5)),
        float(node.attr("scoreThreshold", 0.0)), False,
    )  # fmt: skip
    if node.attr("clipBoxes", 1):
        chosen = ctx.emit("Clip", chosen, min=0.0, max=1.0)
    return count, cast(ctx, chosen, kind), cast(ctx, best, kind), cast(ctx, cast(ctx, classes, F32), kind)


@onnx_op("ROIAlign_TRT", domain=TENSORRT)
def roi_align(ctx: Context, node: OnnxNode) -> Value:
    """ROIAlign_TRT-1: (x, regions, batch indices) of ONNX's RoiAlign, with numbers for its modes."""
    regions, indices = required(ctx, node, 1), required(ctx, node, 2)
    result: Value = ctx.emit(
        "RoiAlign",
        required(ctx, node, 0),
        regions,
        cast(ctx, indices, I64),
        output_height=int(node.attr("output_height", 1)),
        output_width=int(node.attr("output_width", 1)),
        sampling_ratio=int(node.attr("sampling_ratio", 0)),
        spatial_scale=float(node.attr("spatial_scale", 1.0)),
        mode="avg" if int(node.attr("mode", 1)) else "max",
        coordinate_transformation_mode="half_pixel" if int(node.attr("coordinate_transformation_mode", 1)) else "output_half_pixel",
    )
    return result


def _four_axes(ctx: Context, boxes: Value) -> Value:
    """[B, N, 4] or [B, N, C, 4] as [B, N, 1 or C, 4]."""
    shape = boxes.tensor.shape
    if len(shape) not in (3, 4) or shape[-1] != 4:
        ctx.unsupported(f"the boxes have the shape {list(map(str, shape))}", "expected [batch, boxes, 4] or [batch, boxes, classes, 4]")
    return boxes if len(shape) == 4 else reshape(ctx, boxes, (*shape[:2], 1, 4))


def _half(ctx: Context, x: Value, second: bool) -> Value:
    """The first or the second two of four coordinates."""
    result: Value = ctx.emit("Slice", x, starts=(2 if second else 0,), ends=(4 if second else 2,), axes=(x.tensor.rank - 1,), steps=(1,))
    return result


def _corners(ctx: Context, boxes: Value, anchors: Value | None, centers: bool) -> Value:
    """Boxes as two corners: decoded where there are anchors, and from centers and sizes."""
    if anchors is not None and not centers:
        moved: Value = ctx.emit("Add", boxes, anchors)
        return moved
    if not centers:
        return boxes
    center, size = _half(ctx, boxes, False), _half(ctx, boxes, True)
    if anchors is not None:
        scale = _half(ctx, anchors, True)
        center = ctx.emit("Add", ctx.emit("Mul", center, scale), _half(ctx, anchors, False))
        size = ctx.emit("Mul", ctx.emit("Exp", size), scale)
    half = ctx.emit("Mul", size, scalar(ctx, 0.5, F32))
    both: Value = ctx.emit("Concat", ctx.emit("Sub", center, half), ctx.emit("Add", center, half), axis=boxes.tensor.rank - 1)
    return both


def _without(ctx: Context, scores: Value, background: int) -> Value:
    """Scores [B, N, C] with one class out of the running."""
    if background < 0:
        return scores
    here = ctx.emit("Equal", ctx.emit("Iota", size=scores.tensor.shape[2], dtype=I64), scalar(ctx, background, I64))
    result: Value = ctx.emit("Where", here, scalar(ctx, _LOWEST, F32), scores)
    return result


def _suppress(
    ctx: Context, boxes: Value, scores: Value, most: int, overlap: float, floor: float, agnostic: bool
) -> tuple[Value, Value, Value, Value]:
    """The `most` best boxes of each image: (number [B, 1], boxes [B, most, 4], scores [B, most], classes [B, most]), zeros behind.

    boxes [B, N, 1 or C, 4] as corners, scores [B, N, C]. Candidates are numbered class by class: c * N + n.
    """
    batch, number, classes = scores.tensor.shape
    shared = boxes.tensor.shape[2] == 1
    by_class = ctx.emit("Transpose", scores, perm=(0, 2, 1))  # [B, C, N]
    table = ctx.emit("Transpose", boxes, perm=(0, 2, 1, 3))  # [B, 1 or C, N, 4]
    best_class: Value | None = None
    if agnostic and shared:
        # A box overlaps itself, so that of its classes only the best survives.
        best_class = ctx.emit("ArgMax", by_class, axis=1, keepdims=False)
        by_class, classes = ctx.emit("ReduceMax", by_class, axes=(1,), keepdims=True), 1
    groups, inside = (1, product((classes, number))) if agnostic else (classes, number)
    flat_scores = reshape(ctx, by_class, (batch, groups, inside))
    if shared:
        places = reshape(ctx, table, (batch, number, 4))
        kept = _kept(ctx, places, flat_scores, most, overlap, floor)
    else:
        places = reshape(ctx, table, (batch, product((classes, number)), 4))
        apart = reshape(ctx, table, (product((batch, groups)), inside, 4))
        kept = _kept(ctx, apart, reshape(ctx, flat_scores, (product((batch, groups)), 1, inside)), most, overlap, floor)
    total = product((classes, number))
    masked = ctx.emit(
        "Where", reshape(ctx, kept, (batch, total)), reshape(ctx, by_class, (batch, total)), scalar(ctx, _LOWEST, F32)
    )  # fmt: skip
    k = minimum(most, total)
    top, at = ctx.emit("TopK", masked, k=k, axis=1)
    valid = ctx.emit("Greater", top, scalar(ctx, _LOWEST, F32))
    count = cast(ctx, ctx.emit("ReduceSum", cast(ctx, valid, I64), axes=(1,), keepdims=True), I32)
    length = scalar(ctx, number, I64) if isinstance(number, int) else reshape(ctx, ctx.emit("DimTensor", values=(number,)), ())
    where = ctx.emit("Mod", at, length) if shared else at
    chosen = ctx.emit("GatherND", places, reshape(ctx, where, (batch, k, 1)), batch_dims=1)
    if best_class is not None:
        label = ctx.emit("GatherND", best_class, reshape(ctx, at, (batch, k, 1)), batch_dims=1)
    else:
        label = ctx.emit("Div", at, length)
    zero = scalar(ctx, 0.0, F32)
    chosen = ctx.emit("Where", reshape(ctx, valid, (batch, k, 1)), chosen, zero)
    top = ctx.emit("Where", valid, top, zero)
    label = cast(ctx, ctx.emit("Where", valid, label, scalar(ctx, 0, I64)), I32)
    return count, _filled(ctx, chosen, most), _filled(ctx, top, most), _filled(ctx, label, most)


def _kept(ctx: Context, boxes: Value, scores: Value, most: int, overlap: float, floor: float) -> Value:
    """Bool [B * C * N]: which candidates survive; boxes [B, N, 4], scores [B, C, N]."""
    batch, classes, number = scores.tensor.shape
    limit = minimum(most, number)
    table, count = ctx.emit(
        "SuppressionTable", boxes, scores, ctx.const(np.array([most], np.int64)), ctx.const(np.array([overlap], np.float32)),
        ctx.const(np.array([floor], np.float32)), limit=limit,
    )  # fmt: skip
    rows = product((batch, classes, limit))
    every = product((batch, classes, number))
    steps = ctx.emit("DimTensor", values=(product((classes, number)), number, 1))
    position = ctx.emit("ReduceSum", ctx.emit("Mul", table, steps), axes=(1,), keepdims=False)
    used = ctx.emit("Less", ctx.emit("Iota", size=rows, dtype=I64), count)
    # Rows that are not used mark a place behind all others.
    behind = reshape(ctx, ctx.emit("DimTensor", values=(every,)), ())
    position = ctx.emit("Where", used, position, behind)
    empty = ctx.emit("Full", shape=(every + 1,), value=0, dtype=I32)
    marks = ctx.emit("ScatterElements", empty, position, ctx.emit("Full", shape=(rows,), value=1, dtype=I32), axis=0)
    marked = ctx.emit("Slice", marks, starts=(0,), ends=(every,), axes=(0,), steps=(1,))
    result: Value = ctx.emit("Greater", marked, scalar(ctx, 0, I32))
    return result


def _filled(ctx: Context, x: Value, most: int) -> Value:
    """X [B, k, …] with zeros up to `most` rows."""
    missing: Dim = most - x.tensor.shape[1]
    if missing == 0:
        return x
    rank = x.tensor.rank
    result: Any = ctx.emit("Pad", x, pads=(*[0] * rank, 0, missing, *[0] * (rank - 2)))
    assert isinstance(result, Value)
    return result
