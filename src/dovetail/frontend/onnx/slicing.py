"""ONNX importer of Slice: positions known at import, positions of run-time data, and run-time steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dovetail.core.dims import Dim, Expr, bounds, floor_div, maximum, minimum
from dovetail.core.dtypes import I64
from dovetail.core.errors import TypeInferenceError
from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.frontend.shape_inputs import (
    emit_one,
    fixed_ints,
    flat,
    ints,
    known_dims,
    length_of,
    normal_axis,
    required,
    spread,
    vector,
    wrap_negative,
)
from dovetail.ir.graph import Value

# Exporters write the largest integer of the index type for "to the end".
_END = 2**31 - 1
_HUGE = 2**40


@onnx_op("Slice")
def slice_attributes(ctx: Context, node: OnnxNode) -> Any:
    """Slice-1: starts, ends and axes are attributes."""
    x = required(node, 0)
    starts, ends = node.attr("starts", ()), node.attr("ends", ())
    axes = node.attr("axes", list(range(len(starts))))
    return slice_value(ctx, x, starts, ends, axes, [1] * len(starts))


@onnx_op("Slice", since=10)
def slice_inputs(ctx: Context, node: OnnxNode) -> Any:
    """Slice-10…13: everything is an input."""
    x, starts, ends = (required(node, i) for i in range(3))
    count = length_of(ctx, starts, "the list of starts")
    axes, steps = node.input(3), node.input(4)
    known_axes = tuple(range(count)) if axes is None else known_dims(ctx, axes)
    known_steps = (1,) * count if steps is None else known_dims(ctx, steps)
    if known_axes is None or known_steps is None or any(isinstance(s, Expr) for s in known_steps):
        return _gathered(ctx, x, starts, ends, axes, steps, count)
    fixed_axes = tuple(range(count)) if axes is None else fixed_ints(ctx, axes, "the list of axes")
    fixed_steps = [s for s in known_steps if isinstance(s, int)]
    known_starts, known_ends = known_dims(ctx, starts), known_dims(ctx, ends)
    if known_starts is not None and known_ends is not None:
        return slice_value(ctx, x, known_starts, known_ends, fixed_axes, fixed_steps)
    fixed_axes = tuple(normal_axis("Slice", axis, x.tensor.rank) for axis in fixed_axes)
    extents = vector(ctx, [x.tensor.shape[axis] for axis in fixed_axes])
    low = _bound_positions(ctx, starts, known_starts, extents, fixed_steps, x, fixed_axes, is_end=False)
    high = _bound_positions(ctx, ends, known_ends, extents, fixed_steps, x, fixed_axes, is_end=True)
    return _emit(ctx, x, low, high, fixed_axes, fixed_steps)


def slice_value(
    ctx: Context, x: Value, starts: Sequence[Dim], ends: Sequence[Dim], axes: Sequence[int], steps: Sequence[int]
) -> Value:
    """X sliced at positions with ONNX's meaning (negative counts from the end, out of range is clipped)."""
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise TypeInferenceError(
            f"Slice: got {len(starts)} starts, {len(ends)} ends, {len(axes)} axes and {len(steps)} steps, expected "
            "equal counts; give one of each per sliced axis"
        )
    where = [normal_axis("Slice", axis, x.tensor.rank) for axis in axes]
    extents = [x.tensor.shape[axis] for axis in where]
    low = [clip_start(s, d, step) for s, d, step in zip(starts, extents, steps, strict=True)]
    high = [clip_end(e, d, step) for e, d, step in zip(ends, extents, steps, strict=True)]
    return _emit(ctx, x, low, high, where, steps)


def _emit(
    ctx: Context, x: Value, starts: Sequence[Dim], ends: Sequence[Dim], axes: Sequence[int], steps: Sequence[int]
) -> Value:
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    kept = [i for i in order if not (starts[i] == 0 and ends[i] == x.tensor.shape[axes[i]] and steps[i] == 1)]
    if not kept:
        return x
    return emit_one(
        ctx,
        "Slice",
        x,
        starts=tuple(starts[i] for i in kept),
        ends=tuple(ends[i] for i in kept),
        axes=tuple(axes[i] for i in kept),
        steps=tuple(int(steps[i]) for i in kept),
    )


def _wrapped(position: Dim, extent: Dim) -> Dim:
    """position, plus the extent where it is negative."""
    low, high = bounds(position)
    if low is not None and low >= 0:
        return position
    if high is not None and high < 0:
        return position + extent
    # position // 2^40 is -1 for the negative positions that can occur and 0 for the others.
    return position - extent * floor_div(position, _HUGE)


def clip_start(start: Dim, extent: Dim, step: int) -> Dim:
    """A start position clipped to the axis: [0, D] going up, [0, D - 1] going down."""
    last = extent if step > 0 else extent - 1
    if isinstance(start, int) and start >= _END:
        return last
    if isinstance(start, int) and start <= -_END:
        return 0
    return minimum(maximum(_wrapped(start, extent), 0), last)


def clip_end(end: Dim, extent: Dim, step: int) -> Dim:
    """An end position clipped to the axis: [0, D] going up, [-1, D - 1] going down."""
    lowest, last = (0, extent) if step > 0 else (-1, extent - 1)
    if isinstance(end, int) and end >= _END:
        return last
    if isinstance(end, int) and end <= -_END:
        return lowest
    return minimum(maximum(_wrapped(end, extent), lowest), last)


# ---------------------------------------------------------------------- run-time positions
def _bound_positions(
    ctx: Context,
    positions: Value,
    known: Sequence[Dim] | None,
    extents: Value,
    steps: Sequence[int],
    x: Value,
    axes: Sequence[int],
    *,
    is_end: bool,
) -> list[Dim]:
    clip = clip_end if is_end else clip_start
    if known is not None:
        return [clip(p, x.tensor.shape[axis], step) for p, axis, step in zip(known, axes, steps, strict=True)]
    # Going down, an end may be -1; symbols are non-negative, so it is bound shifted by one.
    lowest = [-1 if step < 0 and is_end else 0 for step in steps]
    last = ctx.emit("Sub", extents, ints(ctx, [0 if step > 0 else 1 for step in steps]))
    clipped = _clipped(ctx, flat(ctx, positions), extents, ints(ctx, lowest), last)
    symbols = ctx.dims(ctx.emit("Sub", clipped, ints(ctx, lowest)))
    return [symbol + low for symbol, low in zip(symbols, lowest, strict=True)]


def _clipped(ctx: Context, positions: Value, extents: Value, lowest: Value, last: Value) -> Value:
    wrapped = wrap_negative(ctx, positions, extents)
    return emit_one(ctx, "Max", ctx.emit("Min", wrapped, last), lowest)


def _gathered(
    ctx: Context, x: Value, starts: Value, ends: Value, axes: Value | None, steps: Value | None, count: int
) -> Value:
    """Axes or steps are run-time data: gather start + step * (0, 1, …) along every axis."""
    rank = x.tensor.rank
    extents = vector(ctx, x.tensor.shape)
    low, high = flat(ctx, starts), flat(ctx, ends)
    stride = ints(ctx, [1] * count) if steps is None else flat(ctx, steps)
    known = tuple(range(count)) if axes is None else known_dims(ctx, axes)
    if known is not None:
        sliced = [normal_axis("Slice", a, rank) for a in known if isinstance(a, int)]
        touched = sliced
        local = vector(ctx, [x.tensor.shape[a] for a in sliced])
    else:
        assert axes is not None
        where = wrap_negative(ctx, flat(ctx, axes), ints(ctx, rank))
        low = spread(ctx, low, where, ints(ctx, [0] * rank))
        high = spread(ctx, high, where, extents)
        stride = spread(ctx, stride, where, ints(ctx, [1] * rank))
        touched, local = list(range(rank)), extents
    zeros = ints(ctx, [0] * len(touched))
    down = ctx.emit("Less", stride, zeros)
    last = ctx.emit("Sub", local, ctx.emit("Cast", down, to=I64))
    low = _clipped(ctx, low, local, zeros, last)
    high = _clipped(ctx, high, local, ctx.emit("Neg", ctx.emit("Cast", down, to=I64)), last)
    # Rounded up towards the next whole step: (|high - low| + |stride| - 1) / |stride|, nothing if it points away.
    size = ctx.emit("Abs", stride)
    span = ctx.emit("Sub", high, low)
    span = ctx.emit("Max", ctx.emit("Where", down, ctx.emit("Neg", span), span), zeros)
    lengths = ctx.emit("Div", ctx.emit("Sub", ctx.emit("Add", span, size), ints(ctx, [1] * len(touched))), size)
    counts = ctx.dims(lengths)
    result = x
    for i, axis in enumerate(touched):
        first, step = (
            ctx.emit("Reshape", ctx.emit("Slice", v, starts=(i,), ends=(i + 1,), axes=(0,), steps=(1,)), shape=())
            for v in (low, stride)
        )
        offsets = ctx.emit("Mul", ctx.emit("Iota", size=counts[i], dtype=I64), step)
        result = ctx.emit("Gather", result, ctx.emit("Add", offsets, first), axis=axis)
    return result



