"""ONNX importers of the movement family, except Slice (slicing.py) and Pad (padding.py)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from dovetail.core.dims import Dim, Expr, ceil_div, floor_div, minimum, product
from dovetail.core.dtypes import I64
from dovetail.core.errors import TypeInferenceError
from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.frontend.shape_inputs import (
    as_i64,
    emit_one,
    fixed_ints,
    flat,
    ints,
    known_dims,
    length_of,
    normal_axis,
    required,
    scalar,
    spread,
    vector,
    wrap_negative,
    zero_of,
)
from dovetail.ir.graph import Value
from dovetail.ops.movement import shape_text
from dovetail.ops.registry import broadcast


# ---------------------------------------------------------------------- shapes
@onnx_op("Reshape")
def reshape(ctx: Context, node: OnnxNode) -> Any:
    """Reshape-1 (attribute) and Reshape-5…25 (input); 0 copies an extent, -1 is what is left."""
    x = required(node, 0)
    if node.opset < 5:
        return ctx.emit("Reshape", x, shape=resolve_shape(x.tensor.shape, node.attr("shape", ()), False))
    target, exact = required(node, 1), bool(node.attr("allowzero", 0))
    known = known_dims(ctx, target)
    if known is None:
        return ctx.emit("Reshape", x, shape=ctx.dims(_run_time_shape(ctx, x, target, exact)))
    return ctx.emit("Reshape", x, shape=resolve_shape(x.tensor.shape, known, exact))


def resolve_shape(shape: Sequence[Dim], target: Sequence[Dim], allow_zero: bool) -> tuple[Dim, ...]:
    """The target of a reshape with 0 replaced by the input's extent and -1 by the remaining elements."""
    result = list(target)
    if not allow_zero:
        for i, d in enumerate(result):
            if isinstance(d, int) and d == 0:
                if i >= len(shape):
                    raise TypeInferenceError(
                        f"Reshape: shape, got 0 at position {i} of {shape_text(target)}, expected it to copy one of "
                        f"the {len(shape)} axes of {shape_text(shape)}; give a size"
                    )
                result[i] = shape[i]
    free = [i for i, d in enumerate(result) if isinstance(d, int) and d == -1]
    if len(free) > 1:
        raise TypeInferenceError(
            f"Reshape: shape, got {len(free)} times -1 in {shape_text(target)}, expected at most one; give the others"
        )
    if free:
        result[free[0]] = _remaining(shape, [d for i, d in enumerate(result) if i != free[0]])
    return tuple(result)


def _remaining(shape: Sequence[Dim], given: Sequence[Dim]) -> Dim:
    # Equal extents cancel first, so that the quotient stays a polynomial where it can.
    left = list(shape)
    over: list[Dim] = []
    for d in given:
        if isinstance(d, Expr) and d in left:
            left.remove(d)
        else:
            over.append(d)
    total, divisor = product(left), product(over)
    if divisor == 0:
        return 0
    if isinstance(total, int) and isinstance(divisor, int) and total % divisor:
        raise TypeInferenceError(
            f"Reshape: shape, got sizes {shape_text(given)} beside -1 for an input {shape_text(shape)}, expected "
            "them to divide its number of elements; correct the sizes"
        )
    return floor_div(total, divisor)


def _run_time_shape(ctx: Context, x: Value, target: Value, allow_zero: bool) -> Value:
    """The shape vector with 0 and -1 resolved by ordinary ops, so that it can be bound to symbols."""
    shape = as_i64(ctx, target)
    rank = length_of(ctx, target, "the target shape")
    if not allow_zero:
        padded = (*x.tensor.shape, *([1] * rank))[:rank]
        shape = ctx.emit("Where", ctx.emit("Equal", shape, ints(ctx, 0)), vector(ctx, padded), shape)
    free = ctx.emit("Equal", shape, ints(ctx, -1))
    given = ctx.emit("ReduceProd", ctx.emit("Where", free, ints(ctx, 1), shape), axes=(0,), keepdims=True)
    total = vector(ctx, (x.tensor.size,))
    left = ctx.emit("Div", total, ctx.emit("Max", given, ints(ctx, 1)))
    return emit_one(ctx, "Where", free, left, shape)


@onnx_op("Flatten")
def flatten(ctx: Context, node: OnnxNode) -> Any:
    """Flatten-1…25: a matrix split at `axis`."""
    x = required(node, 0)
    rank, axis = x.tensor.rank, node.attr("axis", 1)
    axis = rank if axis == rank else normal_axis("Flatten", axis, rank)
    return ctx.emit("Reshape", x, shape=(product(x.tensor.shape[:axis]), product(x.tensor.shape[axis:])))


@onnx_op("Squeeze")
def squeeze(ctx: Context, node: OnnxNode) -> Any:
    """Squeeze-1, 11 (attribute) and 13…25 (input); without axes, every axis of fixed extent 1 goes."""
    x = required(node, 0)
    rank, shape = x.tensor.rank, x.tensor.shape
    axes = node.attr("axes") if node.opset < 13 else None
    given = node.input(1) if node.opset >= 13 else None
    if given is not None:
        known = known_dims(ctx, given)
        if known is None:
            return ctx.emit("Reshape", x, shape=ctx.dims(_squeezed_at_run_time(ctx, x, given)))
        axes = fixed_ints(ctx, given, "the list of axes")
    if axes is None:
        return ctx.emit("Reshape", x, shape=tuple(d for d in shape if d != 1))
    dropped = {normal_axis("Squeeze", axis, rank) for axis in axes}
    for axis in dropped:
        if isinstance(shape[axis], int) and shape[axis] != 1:
            raise TypeInferenceError(
                f"Squeeze: axis {axis}, got extent {shape[axis]}, expected 1; leave it out of the axes"
            )
    return ctx.emit("Reshape", x, shape=tuple(d for i, d in enumerate(shape) if i not in dropped))


def _squeezed_at_run_time(ctx: Context, x: Value, axes: Value) -> Value:
    rank = x.tensor.rank
    count = length_of(ctx, axes, "the list of axes")
    positions = wrap_negative(ctx, flat(ctx, axes), ints(ctx, rank))
    dropped = spread(ctx, ints(ctx, [rank] * count), positions, ints(ctx, [0] * rank))
    keys = ctx.emit("Add", dropped, ints(ctx, list(range(rank))))
    kept, _ = ctx.emit("TopK", keys, k=rank - count, axis=0, largest=False, sorted=True)
    return emit_one(ctx, "Gather", vector(ctx, x.tensor.shape), kept, axis=0)


@onnx_op("Unsqueeze")
def unsqueeze(ctx: Context, node: OnnxNode) -> Any:
    """Unsqueeze-1, 11 (attribute) and 13…25 (input)."""
    x = required(node, 0)
    if node.opset < 13:
        axes = tuple(node.attr("axes", ()))
    else:
        given = required(node, 1)
        if known_dims(ctx, given) is None:
            return ctx.emit("Reshape", x, shape=ctx.dims(_unsqueezed_at_run_time(ctx, x, given)))
        axes = fixed_ints(ctx, given, "the list of axes")
    rank = x.tensor.rank + len(axes)
    added = {normal_axis("Unsqueeze", axis, rank) for axis in axes}
    if len(added) != len(axes):
        raise TypeInferenceError(f"Unsqueeze: axes, got {axes}, expected different axes; drop the repeated one")
    old = iter(x.tensor.shape)
    return ctx.emit("Reshape", x, shape=tuple(1 if i in added else next(old) for i in range(rank)))


def _unsqueezed_at_run_time(ctx: Context, x: Value, axes: Value) -> Value:
    count = length_of(ctx, axes, "the list of axes")
    rank = x.tensor.rank + count
    positions = wrap_negative(ctx, flat(ctx, axes), ints(ctx, rank))
    old = spread(ctx, ints(ctx, [0] * count), positions, ints(ctx, [1] * rank))
    source = ctx.emit("Sub", ctx.emit("CumSum", old, axis=0), ints(ctx, 1))
    # A new axis before the first old one would read position -1, whose value is not used.
    padded = vector(ctx, (*x.tensor.shape, 1))
    extents = ctx.emit("Gather", padded, source, axis=0)
    return emit_one(ctx, "Where", ctx.emit("Equal", old, ints(ctx, 1)), extents, ints(ctx, 1))


@onnx_op("Transpose")
def transpose(ctx: Context, node: OnnxNode) -> Any:
    """Transpose-1…25; without perm the axes are reversed."""
    x = required(node, 0)
    rank = x.tensor.rank
    perm = node.attr("perm", list(range(rank))[::-1])
    return ctx.emit("Transpose", x, perm=tuple(normal_axis("Transpose", axis, rank) for axis in perm))


@onnx_op("Expand")
def expand(ctx: Context, node: OnnxNode) -> Any:
    """Expand-8, 13: broadcasting in both directions."""
    x = required(node, 0)
    return ctx.emit("Expand", x, shape=broadcast(x.tensor.shape, ctx.dims(required(node, 1))))


@onnx_op("Shape")
def shape_of(ctx: Context, node: OnnxNode) -> Any:
    """Shape-1…25 with start and end."""
    x = required(node, 0)
    # Python's own slicing clamps as ONNX asks.
    return vector(ctx, x.tensor.shape[node.attr("start", 0) : node.attr("end")])


@onnx_op("Size")
def size_of(ctx: Context, node: OnnxNode) -> Any:
    """Size-1…25."""
    return scalar(ctx, required(node, 0).tensor.size)


# ---------------------------------------------------------------------- joining and splitting
@onnx_op("Concat")
def concat(ctx: Context, node: OnnxNode) -> Any:
    """Concat-1 (axis defaults to 1) and 4…13."""
    values = [required(node, i) for i in range(len(node.inputs))]
    if len(values) == 0:
        raise TypeInferenceError("Concat: inputs, got none, expected at least one; connect one")
    axis = normal_axis("Concat", node.attr("axis", 1), values[0].tensor.rank)
    return values[0] if len(values) == 1 else ctx.emit("Concat", *values, axis=axis)


@onnx_op("Split")
def split(ctx: Context, node: OnnxNode) -> tuple[Value, ...]:
    """Split-1, 2, 11 (attribute), 13 (input), 18 (num_outputs); becomes slices."""
    x = required(node, 0)
    axis = normal_axis("Split", node.attr("axis", 0), x.tensor.rank)
    given = node.input(1)
    parts: Sequence[Dim] | None = node.attr("split") or None
    if given is not None:
        parts = ctx.dims(given)
    count = node.attr("num_outputs")
    if parts is None and count is None:
        # Before opset 18 the parts are equal, so the extent is a multiple of their number.
        parts = (floor_div(x.tensor.shape[axis], len(node.outputs)),) * len(node.outputs)
    return split_values(ctx, x, axis, parts, count or len(node.outputs))


def split_values(ctx: Context, x: Value, axis: int, parts: Sequence[Dim] | None, count: int) -> tuple[Value, ...]:
    """Slices of x along `axis`: of the sizes `parts`, or `count` equal ones with a smaller last one."""
    extent = x.tensor.shape[axis]
    if parts is None:
        chunk = ceil_div(extent, count)
        edges: list[Dim] = [minimum(chunk * i, extent) for i in range(count)] + [extent]
    else:
        edges = [0]
        for part in parts:
            edges.append(edges[-1] + part)
        if isinstance(edges[-1], int) and isinstance(extent, int) and edges[-1] != extent:
            raise TypeInferenceError(
                f"Split: sizes, got {shape_text(parts)} for an extent of {extent}, expected them to add up to it; "
                "correct the sizes"
            )
    return tuple(
        ctx.emit("Slice", x, starts=(low,), ends=(high,), axes=(axis,), steps=(1,))
        for low, high in pairwise(edges)
    )


@onnx_op("Tile")
def tile(ctx: Context, node: OnnxNode) -> Any:
    """Tile-1 (count and axis) and 6, 13 (repeats)."""
    x = required(node, 0)
    given = ctx.dims(required(node, 1))
    if node.opset < 6:
        (axis,) = fixed_ints(ctx, required(node, 2), "the axis")
        where = normal_axis("Tile", axis, x.tensor.rank)
        given = tuple(given[0] if i == where else 1 for i in range(x.tensor.rank))
    return ctx.emit("Tile", x, repeats=given)


# ---------------------------------------------------------------------- rearranging
@onnx_op("DepthToSpace")
def depth_to_space(ctx: Context, node: OnnxNode) -> Any:
    """DepthToSpace-1…28: DCR takes the block from the outer channels, CRD from the inner ones."""
    x, block = required(node, 0), node.attr("blocksize")
    n, c, *spatial = _image(node, x)
    h, w = spatial
    channels = floor_div(c, block * block)
    if node.attr("mode", "DCR") == "CRD":
        split_shape, perm = (n, channels, block, block, h, w), (0, 1, 4, 2, 5, 3)
    else:
        split_shape, perm = (n, block, block, channels, h, w), (0, 3, 4, 1, 5, 2)
    moved = ctx.emit("Transpose", ctx.emit("Reshape", x, shape=split_shape), perm=perm)
    return ctx.emit("Reshape", moved, shape=(n, channels, h * block, w * block))


@onnx_op("SpaceToDepth")
def space_to_depth(ctx: Context, node: OnnxNode) -> Any:
    """SpaceToDepth-1…28: the block becomes the outer (DCR) or inner (CRD) channels."""
    x, block = required(node, 0), node.attr("blocksize")
    n, c, *spatial = _image(node, x)
    h, w = (floor_div(d, block) for d in spatial)
    perm = (0, 1, 3, 5, 2, 4) if node.attr("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    blocks = ctx.emit("Reshape", x, shape=(n, c, h, block, w, block))
    return ctx.emit("Reshape", ctx.emit("Transpose", blocks, perm=perm), shape=(n, c * block * block, h, w))


def _image(node: OnnxNode, x: Value) -> tuple[Dim, ...]:
    if x.tensor.rank != 4:
        raise TypeInferenceError(
            f"{node.op_type}: input, got shape {shape_text(x.tensor.shape)}, expected (N, C, H, W); reshape it"
        )
    return x.tensor.shape


@onnx_op("Trilu")
def trilu(ctx: Context, node: OnnxNode) -> Any:
    """Trilu-14."""
    x, upper = required(node, 0), bool(node.attr("upper", 1))
    diagonal = node.input(1)
    known = (0,) if diagonal is None else known_dims(ctx, diagonal)
    if known is not None:
        return ctx.emit("Trilu", x, upper=upper, k=known[0])
    assert diagonal is not None
    rows, columns = x.tensor.shape[-2:]
    row = ctx.emit("Reshape", ctx.emit("Iota", size=rows, dtype=I64), shape=(rows, 1))
    ahead = ctx.emit("Sub", ctx.emit("Iota", size=columns, dtype=I64), row)
    edge = ctx.emit("Reshape", as_i64(ctx, diagonal), shape=())
    keep = ctx.emit("GreaterOrEqual" if upper else "LessOrEqual", ahead, edge)
    kind: Any = x.tensor.dtype
    return ctx.emit("Where", keep, x, ctx.emit("Full", shape=(), value=zero_of(kind), dtype=kind))


@onnx_op("ReverseSequence")
def reverse_sequence(ctx: Context, node: OnnxNode) -> Any:
    """ReverseSequence-10, 28."""
    x = required(node, 0)
    return ctx.emit(
        "ReverseSequence",
        x,
        required(node, 1),
        batch_axis=normal_axis("ReverseSequence", node.attr("batch_axis", 1), x.tensor.rank),
        time_axis=normal_axis("ReverseSequence", node.attr("time_axis", 0), x.tensor.rank),
    )


@onnx_op("TensorScatter")
def tensor_scatter(ctx: Context, node: OnnxNode) -> Any:
    """TensorScatter-24."""
    cache = required(node, 0)
    return ctx.emit(
        "TensorScatter",
        cache,
        required(node, 1),
        node.input(2),
        axis=normal_axis("TensorScatter", node.attr("axis", -2), cache.tensor.rank),
        mode=node.attr("mode", "linear"),
    )
