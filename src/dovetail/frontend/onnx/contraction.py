"""Imports Gemm, Conv and ConvTranspose: every padding rule becomes explicit pads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dovetail.core.dims import Dim, ceil_div, floor_div, maximum
from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.ir.graph import Value


def require(ctx: Context, node: OnnxNode, index: int, what: str) -> Value:
    """Input `index`, or give up on the node naming `what` is missing."""
    value = node.input(index)
    if value is None:
        ctx.unsupported(f"input {index} ({what}) is missing", "give the input or fix the exporter")
    return value


def same_pads(
    sizes: Sequence[Dim], spans: Sequence[Dim], strides: Sequence[int], upper: bool
) -> tuple[Dim, ...]:
    """Pads (lows, then highs) that make every output extent ceil(size / stride); the odd one goes high if `upper`."""
    lows: list[Dim] = []
    highs: list[Dim] = []
    for size, span, stride in zip(sizes, spans, strides, strict=True):
        total: Dim
        if stride == 1:  # also for symbolic sizes this one is a number
            total = maximum(span - 1, 0)
        else:
            total = maximum((ceil_div(size, stride) - 1) * stride + span - size, 0)
        half = floor_div(total, 2)
        lows.append(half if upper else total - half)
        highs.append(total - half if upper else half)
    return (*lows, *highs)


def window_pads(
    ctx: Context, node: OnnxNode, sizes: Sequence[Dim], spans: Sequence[Dim], strides: Sequence[int]
) -> tuple[Dim, ...]:
    """The explicit pads of a windowed op from its `pads` or `auto_pad`."""
    auto = node.attr("auto_pad", "NOTSET") or "NOTSET"
    if auto == "NOTSET":
        pads = tuple(node.attr("pads") or (0,) * (2 * len(sizes)))
        if len(pads) != 2 * len(sizes):
            ctx.unsupported(f"{len(pads)} pads for {len(sizes)} spatial axes", "give a low and a high pad per axis")
        return pads
    if auto == "VALID":
        return (0,) * (2 * len(sizes))
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        ctx.unsupported(f"auto_pad {auto!r} is not known", "use NOTSET, VALID, SAME_UPPER or SAME_LOWER")
    return same_pads(sizes, spans, strides, auto == "SAME_UPPER")


def per_axis(ctx: Context, node: OnnxNode, name: str, rank: int, default: int = 1) -> tuple[int, ...]:
    """An ints attribute with one entry per spatial axis."""
    values = tuple(node.attr(name) or (default,) * rank)
    if len(values) != rank:
        ctx.unsupported(f"{name} has {len(values)} entries for {rank} spatial axes", "give one per axis")
    return values


@onnx_op("Gemm")
def gemm(ctx: Context, node: OnnxNode) -> Any:
    """Gemm-1 to 13: alpha * op(A) op(B) + beta * C as MatMul, Mul and Add."""
    a, b, c = require(ctx, node, 0, "A"), require(ctx, node, 1, "B"), node.input(2)
    if node.attr("transA", 0):
        a = ctx.emit("Transpose", a, perm=(1, 0))
    if node.attr("transB", 0):
        b = ctx.emit("Transpose", b, perm=(1, 0))
    y = scaled(ctx, ctx.emit("MatMul", a, b), float(node.attr("alpha", 1.0)))
    if c is not None:
        y = ctx.emit("Add", y, scaled(ctx, c, float(node.attr("beta", 1.0))))
    return y


def scaled(ctx: Context, x: Value, factor: float) -> Value:
    """x * factor, or x itself for factor 1."""
    if factor == 1.0:
        return x
    y: Value = ctx.emit("Mul", x, ctx.const(np.asarray(factor, x.tensor.dtype.numpy), "scale"))
    return y


@onnx_op("Conv")
def conv(ctx: Context, node: OnnxNode) -> Any:
    """Conv-1 to 22 with auto_pad resolved; symbolic extents give symbolic pads."""
    x, w = require(ctx, node, 0, "X"), require(ctx, node, 1, "W")
    rank = x.tensor.rank - 2
    strides = per_axis(ctx, node, "strides", rank)
    dilations = per_axis(ctx, node, "dilations", rank)
    spans = [(k - 1) * d + 1 for k, d in zip(w.tensor.shape[2:], dilations, strict=True)]
    return ctx.emit(
        "Conv",
        x,
        w,
        *([node.input(2)] if node.input(2) is not None else []),
        strides=strides,
        pads=window_pads(ctx, node, x.tensor.shape[2:], spans, strides),
        dilations=dilations,
        group=int(node.attr("group", 1)),
    )


@onnx_op("ConvTranspose")
def conv_transpose(ctx: Context, node: OnnxNode) -> Any:
    """ConvTranspose-1 to 22; output_shape and auto_pad become pads."""
    x, w = require(ctx, node, 0, "X"), require(ctx, node, 1, "W")
    sizes, rank = x.tensor.shape[2:], x.tensor.rank - 2
    strides = per_axis(ctx, node, "strides", rank)
    dilations = per_axis(ctx, node, "dilations", rank)
    extra: list[Dim] = list(per_axis(ctx, node, "output_padding", rank, 0))
    auto = node.attr("auto_pad", "NOTSET") or "NOTSET"
    wanted: Sequence[Dim] | None = node.attr("output_shape")
    pads: tuple[Dim, ...] = tuple(node.attr("pads") or (0,) * (2 * rank))
    if wanted is not None:
        wanted = wanted[-rank:]
    elif auto.startswith("SAME"):
        wanted = [n * s for n, s in zip(sizes, strides, strict=True)]
    elif auto == "VALID":
        pads = (0,) * (2 * rank)
    if wanted is not None:
        lows: list[Dim] = []
        highs: list[Dim] = []
        spans = [(k - 1) * d + 1 for k, d in zip(w.tensor.shape[2:], dilations, strict=True)]
        for i in range(rank):
            total = (sizes[i] - 1) * strides[i] + extra[i] + spans[i] - wanted[i]
            # A larger result than the windows cover is filled at the high end, like output_padding.
            extra[i] = extra[i] + maximum(0 - total, 0)
            total = maximum(total, 0)
            half = floor_div(total, 2)
            lows.append(half if auto == "SAME_UPPER" else total - half)
            highs.append(total - half if auto == "SAME_UPPER" else half)
        pads = (*lows, *highs)
    return ctx.emit(
        "ConvTranspose",
        x,
        w,
        *([node.input(2)] if node.input(2) is not None else []),
        strides=strides,
        pads=pads,
        dilations=dilations,
        group=int(node.attr("group", 1)),
        output_padding=tuple(extra),
    )
