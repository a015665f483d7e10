"""Imports the normalisations; batch normalisation becomes a per-channel Mul and Add."""

from __future__ import annotations

from typing import Any

import numpy as np

from dovetail.core.dims import floor_div
from dovetail.core.dtypes import BF16, F16, F32, F64, DType
from dovetail.frontend.onnx.contraction import require
from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.ir.graph import Value


def cast(ctx: Context, x: Value, to: DType) -> Value:
    """x in another element type; x itself if it has it."""
    y: Value = x if x.tensor.dtype == to else ctx.emit("Cast", x, to=to)
    return y


def _number(ctx: Context, value: float, like: Value, hint: str) -> Value:
    return ctx.const(np.asarray(value, like.tensor.dtype.numpy), hint)


def _per_channel(ctx: Context, v: Value, rank: int) -> Value:
    column: Value = v if rank <= 2 else ctx.emit("Reshape", v, shape=(v.tensor.shape[0], *[1] * (rank - 2)))
    return column


@onnx_op("BatchNormalization")
def batch_normalization(ctx: Context, node: OnnxNode) -> Any:
    """BatchNormalization-1 to 15: x * scale + shift with both computed from the parameters alone.

    Scale and shift are per channel and known at weight time, so that they can move into a convolution before them.
    """
    x = require(ctx, node, 0, "X")
    names = ("scale", "B", "mean", "var")
    given = [require(ctx, node, i + 1, name) for i, name in enumerate(names)]
    epsilon = float(node.attr("epsilon", 1e-5))
    if node.opset < 9 and not node.attr("spatial", 1):
        return _unsupported_mode(ctx, "spatial=0 (statistics per element)")
    if node.opset >= 14 and node.attr("training_mode", 0):
        return _training(ctx, node, x, given, epsilon)
    if node.n_outputs > 1:
        return _unsupported_mode(ctx, "training outputs")
    # Parameters narrower than fp32 are combined in fp32 and rounded once.
    wide = F64 if x.tensor.dtype == F64 else F32
    scale, bias, mean, var = (cast(ctx, v, wide) for v in given)
    deviation = ctx.emit("Sqrt", ctx.emit("Add", var, _number(ctx, epsilon, var, "epsilon")))
    factor = ctx.emit("Div", scale, deviation)
    shift = ctx.emit("Sub", bias, ctx.emit("Mul", mean, factor))
    rank, kind = x.tensor.rank, x.tensor.dtype
    y = ctx.emit("Mul", x, cast(ctx, _per_channel(ctx, factor, rank), kind))
    return ctx.emit("Add", y, cast(ctx, _per_channel(ctx, shift, rank), kind))


def _unsupported_mode(ctx: Context, what: str) -> Any:
    ctx.unsupported(what, "export the model in inference mode")


def _training(ctx: Context, node: OnnxNode, x: Value, given: list[Value], epsilon: float) -> Any:
    """Training mode: statistics of the batch, and running statistics as further outputs."""
    ctx.trains("statistics of the batch in the place of the trained ones")
    rank, kind = x.tensor.rank, x.tensor.dtype
    wide = F64 if kind == F64 else F32
    axes = (0, *range(2, rank))
    scale, bias, mean, var = (cast(ctx, v, wide) for v in given)
    xs = cast(ctx, x, wide)
    batch_mean = ctx.emit("ReduceMean", xs, axes=axes, keepdims=False)
    centred = ctx.emit("Sub", xs, _per_channel(ctx, batch_mean, rank))
    batch_var = ctx.emit("ReduceMean", ctx.emit("Mul", centred, centred), axes=axes, keepdims=False)
    deviation = ctx.emit("Sqrt", ctx.emit("Add", batch_var, _number(ctx, epsilon, batch_var, "epsilon")))
    factor = ctx.emit("Div", scale, deviation)
    y = ctx.emit("Mul", centred, _per_channel(ctx, factor, rank))
    y = cast(ctx, ctx.emit("Add", y, _per_channel(ctx, bias, rank)), kind)
    momentum = float(node.attr("momentum", 0.9))
    results = [y]
    for running, new, source in ((mean, batch_mean, given[2]), (var, batch_var, given[3])):
        kept = ctx.emit("Mul", running, _number(ctx, momentum, running, "momentum"))
        added = ctx.emit("Mul", new, _number(ctx, 1 - momentum, new, "momentum"))
        results.append(cast(ctx, ctx.emit("Add", kept, added), source.tensor.dtype))
    return tuple(results[: max(node.n_outputs, 1)])


def _axis(ctx: Context, node: OnnxNode, x: Value) -> int:
    axis, rank = int(node.attr("axis", -1)), x.tensor.rank
    if not -rank <= axis < rank:
        ctx.unsupported(f"axis {axis} for rank {rank}", f"use an axis from {-rank} to {rank - 1}")
    return axis % rank


@onnx_op("LayerNormalization")
def layer_normalization(ctx: Context, node: OnnxNode) -> Any:
    """LayerNormalization-17; the statistics are computed in fp32 or wider whatever stash_type says."""
    x, scale = require(ctx, node, 0, "X"), require(ctx, node, 1, "Scale")
    count = max(node.n_outputs, 1)
    results = ctx.emit(
        "LayerNormalization",
        x,
        cast(ctx, scale, x.tensor.dtype),
        *([cast(ctx, b, x.tensor.dtype)] if (b := node.input(2)) is not None else []),
        axis=_axis(ctx, node, x),
        epsilon=float(node.attr("epsilon", 1e-5)),
        outputs=count,
    )
    if count == 1:
        return results
    stash = {1: F32, 10: F16, 11: F64, 16: BF16}.get(int(node.attr("stash_type", 1)))
    if stash is None:
        ctx.unsupported(f"stash_type {node.attr('stash_type')}", "use a float type")
    return (results[0], *(cast(ctx, v, stash) for v in results[1:]))


@onnx_op("RMSNormalization")
def rms_normalization(ctx: Context, node: OnnxNode) -> Any:
    """RMSNormalization-23; the mean square is computed in fp32 or wider."""
    x, scale = require(ctx, node, 0, "X"), require(ctx, node, 1, "scale")
    if scale.tensor.dtype != x.tensor.dtype:
        # The result has the type of the scale; the product is taken in it.
        plain = ctx.emit("RMSNormalization", x, axis=_axis(ctx, node, x), epsilon=float(node.attr("epsilon", 1e-5)))
        return ctx.emit("Mul", cast(ctx, plain, scale.tensor.dtype), scale)
    return ctx.emit(
        "RMSNormalization", x, scale, axis=_axis(ctx, node, x), epsilon=float(node.attr("epsilon", 1e-5))
    )


@onnx_op("InstanceNormalization")
def instance_normalization(ctx: Context, node: OnnxNode) -> Any:
    """InstanceNormalization-1 to 22."""
    inputs = [require(ctx, node, i, name) for i, name in enumerate(("input", "scale", "B"))]
    return ctx.emit("InstanceNormalization", *inputs, epsilon=float(node.attr("epsilon", 1e-5)))


@onnx_op("GroupNormalization", since=18)
def group_normalization_18(ctx: Context, node: OnnxNode) -> Any:
    """GroupNormalization-18: scale and bias are given per group and repeated for its channels."""
    x, scale, bias = (require(ctx, node, i, name) for i, name in enumerate(("X", "scale", "bias")))
    groups = int(node.attr("num_groups", 1))
    channels = x.tensor.shape[1]
    each = floor_div(channels, groups)
    repeated = []
    for v in (scale, bias):
        column = ctx.emit("Reshape", v, shape=(groups, 1))
        rows = ctx.emit("Expand", column, shape=(groups, each))
        repeated.append(ctx.emit("Reshape", rows, shape=(channels,)))
    return ctx.emit(
        "GroupNormalization", x, *repeated, num_groups=groups, epsilon=float(node.attr("epsilon", 1e-5))
    )


@onnx_op("GroupNormalization", since=21)
def group_normalization(ctx: Context, node: OnnxNode) -> Any:
    """GroupNormalization-21: scale and bias per channel."""
    inputs = [require(ctx, node, i, name) for i, name in enumerate(("X", "scale", "bias"))]
    return ctx.emit(
        "GroupNormalization",
        *inputs,
        num_groups=int(node.attr("num_groups", 1)),
        epsilon=float(node.attr("epsilon", 1e-5)),
    )
