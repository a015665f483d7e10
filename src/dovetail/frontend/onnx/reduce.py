"""Importers of reductions, arg-extrema, cumulative ops, softmax and the normalisations over axes."""

from __future__ import annotations

from collections.abc import Callable

from dovetail.core.dims import product
from dovetail.frontend.onnx.shorthand import (
    cast,
    constant_ints,
    in_wide_float,
    normal_axis,
    required,
    reshape,
    scalar,
)
from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.ir.graph import Value

Axes = tuple[int, ...] | Value
"""Normalised axes, or the tensor that holds them at run time."""


def reduce(ctx: Context, op: str, x: Value, axes: Axes, keepdims: bool) -> Value:
    """The reduction `op` over `axes`."""
    if isinstance(axes, tuple):
        result: Value = ctx.emit(op, x, axes=axes, keepdims=keepdims)
        return result
    count = axes.tensor.size
    rank = x.tensor.rank
    if not keepdims:
        if not isinstance(count, int):
            ctx.unsupported(
                "the number of axes is known at run time only, so the rank of the output is not",
                "give the axes a fixed length, or set keepdims=1",
            )
        rank -= count
    symbols = tuple(ctx.fresh("u") for _ in range(rank))
    dynamic: Value = ctx.emit("ReduceAt", x, axes, function=op, keepdims=keepdims, symbols=symbols)
    return dynamic


def _axes(ctx: Context, node: OnnxNode) -> Axes | None:
    """The axes of a reduction node; None when it is asked to reduce nothing."""
    rank = required(ctx, node, 0).tensor.rank
    given = node.attr("axes")
    value = node.input(1)
    if given is None and value is not None and value.tensor.size != 0:
        given = constant_ints(ctx, value, f"axes of {node.name}")
        if given is None:
            return value
    if not given:
        return None if node.attr("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted({normal_axis(ctx, axis, rank) for axis in given}))


def _reduction(before: str, op: str, after: str) -> Callable[[Context, OnnxNode], Value]:
    """An importer of after(op(before(x))) that works in wide floats if there is an `after`."""

    def importer(ctx: Context, node: OnnxNode) -> Value:
        x, axes, keepdims = required(ctx, node, 0), _axes(ctx, node), bool(node.attr("keepdims", 1))

        def compute(value: Value) -> Value:
            if before == "Square":
                value = ctx.emit("Mul", value, value)
            elif before:
                value = ctx.emit(before, value)
            if axes is not None:
                value = reduce(ctx, op, value, axes, keepdims)
            return ctx.emit(after, value) if after else value

        simple = not after and (not before or x.tensor.dtype.is_int)
        return compute(x) if simple else in_wide_float(ctx, x, compute)

    return importer


for _name, _before, _op, _after in (
    ("ReduceSum", "", "ReduceSum", ""),
    ("ReduceMean", "", "ReduceMean", ""),
    ("ReduceMax", "", "ReduceMax", ""),
    ("ReduceMin", "", "ReduceMin", ""),
    ("ReduceProd", "", "ReduceProd", ""),
    ("ReduceL1", "Abs", "ReduceSum", ""),
    ("ReduceSumSquare", "Square", "ReduceSum", ""),
    ("ReduceL2", "Square", "ReduceSum", "Sqrt"),
    ("ReduceLogSum", "", "ReduceSum", "Log"),
):
    onnx_op(_name)(_reduction(_before, _op, _after))


@onnx_op("ReduceLogSumExp")
def reduce_log_sum_exp(ctx: Context, node: OnnxNode) -> Value:
    """log(sum(exp(x - m))) + m with m the maximum, or 0 where that is infinite."""
    axes, keepdims = _axes(ctx, node), bool(node.attr("keepdims", 1))

    def compute(x: Value) -> Value:
        if axes is None:
            return ctx.emit("Log", ctx.emit("Exp", x))  # type: ignore[no-any-return]
        top = reduce(ctx, "ReduceMax", x, axes, True)
        zero = scalar(ctx, 0, x.tensor.dtype)
        top = ctx.emit("Where", ctx.emit("IsInf", top), zero, top)
        total = reduce(ctx, "ReduceSum", ctx.emit("Exp", ctx.emit("Sub", x, top)), axes, keepdims)
        if not keepdims:
            top = (
                reshape(ctx, top, total.tensor.shape)
                if isinstance(axes, tuple)
                else reduce(ctx, "ReduceMax", top, axes, False)
            )
        return ctx.emit("Add", ctx.emit("Log", total), top)  # type: ignore[no-any-return]

    return in_wide_float(ctx, required(ctx, node, 0), compute)


@onnx_op("ArgMax", "ArgMin")
def arg(ctx: Context, node: OnnxNode) -> Value:
    """The axis is an attribute in every opset."""
    x = required(ctx, node, 0)
    result: Value = ctx.emit(
        node.op_type,
        x,
        axis=normal_axis(ctx, node.attr("axis", 0), x.tensor.rank),
        keepdims=bool(node.attr("keepdims", 1)),
        select_last_index=bool(node.attr("select_last_index", 0)),
    )
    return result


@onnx_op("CumSum", "CumProd")
def cumulative(ctx: Context, node: OnnxNode) -> Value:
    """The axis is an input; where it is not a constant the host does it."""
    x, axis = required(ctx, node, 0), required(ctx, node, 1)
    options = {
        "exclusive": bool(node.attr("exclusive", 0)),
        "reverse": bool(node.attr("reverse", 0)),
    }
    known = constant_ints(ctx, axis, f"axis of {node.name}")
    if known is None:
        dynamic: Value = ctx.emit("CumulateAt", x, axis, function=node.op_type, **options)
        return dynamic
    result: Value = ctx.emit(
        node.op_type, x, axis=normal_axis(ctx, known[0], x.tensor.rank), **options
    )
    return result


def _along(
    ctx: Context, x: Value, axis: int, flatten: bool, compute: Callable[[Value, int], Value]
) -> Value:
    """compute(x, axis), over all of axis, axis + 1, … as one if `flatten` (opsets below 13)."""
    axis = normal_axis(ctx, axis, x.tensor.rank)
    shape = x.tensor.shape
    if not flatten or axis >= x.tensor.rank - 1:
        return compute(x, axis)
    rows = reshape(ctx, x, (product(shape[:axis]), product(shape[axis:])))
    return reshape(ctx, compute(rows, 1), shape)


@onnx_op("Softmax", "LogSoftmax")
def softmax_flat(ctx: Context, node: OnnxNode) -> Value:
    """Before opset 13 the axes from `axis` on are one row."""
    return _along(
        ctx, required(ctx, node, 0), node.attr("axis", 1), True,
        lambda x, axis: ctx.emit(node.op_type, x, axis=axis),
    )  # fmt: skip


@onnx_op("Softmax", "LogSoftmax", since=13)
def softmax(ctx: Context, node: OnnxNode) -> Value:
    """Along one axis."""
    return _along(
        ctx, required(ctx, node, 0), node.attr("axis", -1), False,
        lambda x, axis: ctx.emit(node.op_type, x, axis=axis),
    )  # fmt: skip


def _hardmax(ctx: Context, x: Value, axis: int) -> Value:
    best = ctx.emit("ArgMax", x, axis=axis, keepdims=True)
    extent = x.tensor.shape[axis]
    places = reshape(
        ctx, ctx.emit("Iota", size=extent), (extent, *(1,) * (x.tensor.rank - axis - 1))
    )
    return cast(ctx, ctx.emit("Equal", best, places), x.tensor.dtype)


@onnx_op("Hardmax")
def hardmax_flat(ctx: Context, node: OnnxNode) -> Value:
    """One at the first maximum; before opset 13 the axes from `axis` on are one row."""
    return _along(
        ctx, required(ctx, node, 0), node.attr("axis", 1), True, lambda x, a: _hardmax(ctx, x, a)
    )


@onnx_op("Hardmax", since=13)
def hardmax(ctx: Context, node: OnnxNode) -> Value:
    """One at the first maximum along one axis, else zero."""
    return _along(
        ctx, required(ctx, node, 0), node.attr("axis", -1), False, lambda x, a: _hardmax(ctx, x, a)
    )


@onnx_op("LpNormalization")
def lp_normalization(ctx: Context, node: OnnxNode) -> Value:
    """X / norm, and zero where the norm is zero."""
    order = node.attr("p", 2)
    if order not in (1, 2):
        ctx.unsupported(f"p={order}, expected 1 or 2", "compose the norm from Pow and ReduceSum")

    def compute(x: Value) -> Value:
        axes = (normal_axis(ctx, node.attr("axis", -1), x.tensor.rank),)
        if order == 1:
            norm = reduce(ctx, "ReduceSum", ctx.emit("Abs", x), axes, True)
        else:
            norm = ctx.emit("Sqrt", reduce(ctx, "ReduceSum", ctx.emit("Mul", x, x), axes, True))
        zero = scalar(ctx, 0, x.tensor.dtype)
        empty = ctx.emit("Equal", norm, zero)
        return ctx.emit("Where", empty, zero, ctx.emit("Div", x, norm))  # type: ignore[no-any-return]

    return in_wide_float(ctx, required(ctx, node, 0), compute)


@onnx_op("MeanVarianceNormalization")
def mean_variance_normalization(ctx: Context, node: OnnxNode) -> Value:
    """(x - mean) / (standard deviation + 1e-9)."""

    def compute(x: Value) -> Value:
        given = node.attr("axes", [0, 2, 3])
        axes = tuple(sorted({normal_axis(ctx, a, x.tensor.rank) for a in given}))
        centred = ctx.emit("Sub", x, reduce(ctx, "ReduceMean", x, axes, True))
        variance = reduce(ctx, "ReduceMean", ctx.emit("Mul", centred, centred), axes, True)
        spread = ctx.emit("Add", ctx.emit("Sqrt", variance), scalar(ctx, 1e-9, x.tensor.dtype))
        return ctx.emit("Div", centred, spread)  # type: ignore[no-any-return]

    return in_wide_float(ctx, required(ctx, node, 0), compute)
