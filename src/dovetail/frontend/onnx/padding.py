"""ONNX importers of Pad and CenterCropPad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dovetail.core.dims import Dim, Expr, floor_div, maximum
from dovetail.core.dtypes import BOOL
from dovetail.core.errors import TypeInferenceError
from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.frontend.shape_inputs import (
    as_i64,
    flat,
    ints,
    known_dims,
    length_of,
    normal_axis,
    present,
    required,
    spread,
    vector,
    wrap_negative,
    zero_of,
)
from dovetail.ir.graph import Value


@onnx_op("Pad")
def pad_attributes(ctx: Context, node: OnnxNode) -> Any:
    """Pad-1 (paddings) and Pad-2 (pads): everything is an attribute."""
    x = required(node, 0)
    pads = node.attr("pads", node.attr("paddings", ()))
    value = node.attr("value", 0.0)
    return ctx.emit("Pad", x, pads=tuple(pads), mode=node.attr("mode", "constant"), value=value)


@onnx_op("Pad", since=11)
def pad_inputs(ctx: Context, node: OnnxNode) -> Any:
    """Pad-11…25: pads, value and axes are inputs."""
    x, mode = required(node, 0), node.attr("mode", "constant")
    pads = _full_pads(ctx, x, required(node, 1), node.input(3))
    fill = present(node, 2) if mode == "constant" else None
    if fill is None:
        return ctx.emit("Pad", x, pads=pads, mode=mode, value=zero_of(x.tensor.dtype))
    number = ctx.constant(fill, "fill value of a Pad")
    if number is not None:
        return ctx.emit("Pad", x, pads=pads, mode=mode, value=np.asarray(number).reshape(-1)[0].item())
    # A fill value computed at run time: pad a mask, and take the value wherever the mask was added.
    inside = ctx.emit("Full", shape=x.tensor.shape, value=True, dtype=BOOL)
    mask = ctx.emit("Pad", inside, pads=pads, mode=mode, value=False)
    padded = ctx.emit("Pad", x, pads=pads, mode=mode, value=zero_of(x.tensor.dtype))
    return ctx.emit("Where", mask, padded, ctx.emit("Reshape", fill, shape=()))


def _full_pads(ctx: Context, x: Value, pads: Value, axes: Value | None) -> tuple[Dim, ...]:
    """Pads of all axes, low ends first."""
    rank = x.tensor.rank
    count = length_of(ctx, pads, "the list of pads") // 2
    where = tuple(range(rank)) if axes is None else known_dims(ctx, axes)
    known = known_dims(ctx, pads)
    if where is not None and not any(isinstance(a, Expr) for a in where):
        if len(where) != count:
            raise TypeInferenceError(
                f"Pad: pads, got {2 * count} values for {len(where)} axes, expected two per axis; correct the pads"
            )
        places = [normal_axis("Pad", int(str(axis)), rank) for axis in where]
        if known is not None:
            given: Sequence[Dim] = known
        else:
            given = _bound_pads(ctx, as_i64(ctx, pads), [x.tensor.shape[place] for place in places])
        result: list[Dim] = [0] * (2 * rank)
        for i, place in enumerate(places):
            result[place], result[rank + place] = given[i], given[count + i]
        return tuple(result)
    assert axes is not None
    moved = wrap_negative(ctx, flat(ctx, axes), ints(ctx, rank))
    both = ctx.emit("Concat", moved, ctx.emit("Add", moved, ints(ctx, rank)), axis=0)
    full = spread(ctx, as_i64(ctx, pads), both, ints(ctx, [0] * (2 * rank)))
    return _bound_pads(ctx, full, x.tensor.shape)


def _bound_pads(ctx: Context, pads: Value, extents: Sequence[Dim]) -> tuple[Dim, ...]:
    """Run-time pads (low ends, then high ends) as dims.

    Symbols are non-negative and pads are not, so a low pad is the difference of two symbols. The padded extent gets a
    symbol of its own, which keeps the output's shape a plain symbol; the high pad follows from it.
    """
    count = len(extents)
    low, high = (
        ctx.emit("Slice", pads, starts=(i * count,), ends=((i + 1) * count,), axes=(0,), steps=(1,)) for i in range(2)
    )
    zero = ints(ctx, 0)
    added = ctx.dims(ctx.emit("Max", low, zero))
    cropped = ctx.dims(ctx.emit("Max", ctx.emit("Neg", low), zero))
    sizes = ctx.dims(ctx.emit("Add", vector(ctx, extents), ctx.emit("Add", low, high)))
    first = [a - c for a, c in zip(added, cropped, strict=True)]
    last = [size - d - f for size, d, f in zip(sizes, extents, first, strict=True)]
    return (*first, *last)


@onnx_op("CenterCropPad")
def center_crop_pad(ctx: Context, node: OnnxNode) -> Any:
    """CenterCropPad-18: one Pad with negative ends where an axis is cropped."""
    x = required(node, 0)
    rank = x.tensor.rank
    axes: Sequence[int] = node.attr("axes", list(range(rank)))
    targets = ctx.dims(required(node, 1))
    pads: list[Dim] = [0] * (2 * rank)
    for axis, target in zip(axes, targets, strict=True):
        place = normal_axis("CenterCropPad", axis, rank)
        extent = x.tensor.shape[place]
        # The odd element of either goes to the high end.
        low = floor_div(maximum(target - extent, 0), 2) - floor_div(maximum(extent - target, 0), 2)
        pads[place], pads[rank + place] = low, target - extent - low
    return ctx.emit("Pad", x, pads=tuple(pads), mode="constant", value=zero_of(x.tensor.dtype))
