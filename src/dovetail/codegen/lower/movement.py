"""Lowerings of movement ops: index arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce as fold

from dovetail.codegen.loop_ir import Expr, Load, compute_dtype
from dovetail.codegen.lower.build import both, cast, const_of, le, lt, select, sub
from dovetail.codegen.lower.context import Context, Index, NotLowerable, lowering
from dovetail.core.dims import Dim, maximum, minimum, product
from dovetail.core.dtypes import BOOL, I64
from dovetail.ir.graph import Node, Value


def where_inside(
    ctx: Context, value: Value, index: Sequence[Dim], guards: Sequence[Dim], otherwise: float | int | bool
) -> Expr:
    """The element of `value` where all guards are >= 0, elsewhere a number."""
    if any(ctx.never(g) for g in guards):
        return const_of(otherwise, ctx.value_dtype(value))
    needed = [ctx.simplify(g) for g in guards if not ctx.always(g)]
    element = ctx.guarded(needed, lambda: ctx.load(value, index))
    if not needed:
        return element
    if isinstance(element, Load) and not otherwise:
        return element  # a guarded load is 0 where it does not load
    inside = [le(0, ctx.index(g)) for g in needed]
    return select(fold(both, inside), element, const_of(otherwise, element.dtype))


@lowering("Transpose")
def _transpose(ctx: Context, node: Node, index: Index) -> Expr:
    source: list[Dim] = [0] * len(index)
    for out, axis in enumerate(node.attrs["perm"]):
        source[axis] = index[out]
    return ctx.load(node.input(0), source)


@lowering("Reshape")
def _reshape(ctx: Context, node: Node, index: Index) -> Expr:
    return ctx.load(node.input(0), reshaped(ctx, index, node.output.tensor.shape, node.input(0).tensor.shape))


def reshaped(ctx: Context, index: Sequence[Dim], shape: Sequence[Dim], source: Sequence[Dim]) -> list[Dim]:
    """The index into an array of shape `source` of the element at `index` of the same array as `shape`."""
    flat: Dim = 0
    for i, extent in zip(index, shape, strict=True):
        flat = flat * extent + i
    result: list[Dim] = []
    for d, extent in enumerate(source):
        stride = product(source[d + 1 :])
        if extent == 1 or stride == 0 or extent == 0:
            result.append(0)
            continue
        quotient = ctx.simplify(flat // stride)
        result.append(quotient if d == 0 else ctx.simplify(quotient % extent))
    return result


@lowering("Expand")
def _expand(ctx: Context, node: Node, index: Index) -> Expr:
    return ctx.operand(node, 0, index)


@lowering("Tile")
def _tile(ctx: Context, node: Node, index: Index) -> Expr:
    x = node.input(0)
    at = [0 if d == 1 else i % d if d != 0 else 0 for i, d in zip(index, x.tensor.shape, strict=True)]
    return ctx.load(x, at)


@lowering("Slice")
def _slice(ctx: Context, node: Node, index: Index) -> Expr:
    at = list(index)
    for start, axis, step in zip(node.attrs["starts"], node.attrs["axes"], node.attrs["steps"], strict=True):
        at[axis] = at[axis] * step + start
    return ctx.load(node.input(0), at)


@lowering("Pad")
def _pad(ctx: Context, node: Node, index: Index) -> Expr:
    x = node.input(0)
    shape, rank = x.tensor.shape, x.tensor.rank
    low, mode = node.attrs["pads"][:rank], node.attrs.get("mode", "constant")
    at = [i - p for i, p in zip(index, low, strict=True)]
    if mode == "constant":
        value = node.attrs.get("value", 0)
        if isinstance(value, str):
            raise NotLowerable("Pad with text is not generated")
        guards = [*at, *(n - 1 - p for n, p in zip(shape, at, strict=True))]
        return where_inside(ctx, x, at, guards, value)
    if any(not isinstance(p, int) or p < 0 for p in node.attrs["pads"]):
        raise NotLowerable(f"Pad in mode {mode} with cropping is not generated")
    return ctx.load(x, [_folded(p, n, mode) for p, n in zip(at, shape, strict=True)])


def _folded(position: Dim, extent: Dim, mode: str) -> Dim:
    """The input position that a padded position copies."""
    if mode == "edge":
        return minimum(maximum(position, 0), extent - 1)
    if mode == "wrap":
        return position % extent
    period = maximum(1, (extent - 1) * 2)
    turned = position % period
    return minimum(turned, period - turned)


@lowering("Concat")
def _concat(ctx: Context, node: Node, index: Index) -> Expr:
    axis = int(node.attrs["axis"]) % len(index)
    start: Dim = 0
    result: Expr | None = None
    for part in node.operands:
        size = part.tensor.shape[axis]
        here = index[axis] - start
        start = start + size
        guards = [here, size - 1 - here]
        if any(ctx.never(g) for g in guards):
            continue
        at = [*index[:axis], here, *index[axis + 1 :]]
        needed = [ctx.simplify(g) for g in guards if not ctx.always(g)]
        element = ctx.guarded(needed, lambda p=part, a=at: ctx.load(p, a))  # type: ignore[misc]
        if not needed or result is None:
            result = element
            if not needed:
                return element
        else:
            # Parts come in order: from this part's start on, it or a later one holds.
            result = select(le(0, ctx.index(here)), element, result)
    return const_of(0, ctx.value_dtype(node.output)) if result is None else result


@lowering("Trilu")
def _trilu(ctx: Context, node: Node, index: Index) -> Expr:
    diagonal = index[-1] - index[-2] - node.attrs.get("k", 0)
    keep = diagonal if node.attrs.get("upper", True) else 0 - diagonal
    return where_inside(ctx, node.input(0), index, [keep], 0)


@lowering("ReverseSequence")
def _reverse_sequence(ctx: Context, node: Node, index: Index) -> Expr:
    batch, time = int(node.attrs.get("batch_axis", 1)), int(node.attrs.get("time_axis", 0))
    length = cast(ctx.load(node.input(1), (index[batch],)), I64)
    step = ctx.index(index[time])
    # A length outside the axis must not lead outside memory either.
    extent = ctx.index(node.input(0).tensor.shape[time])
    length = select(lt(extent, length), extent, length)
    where = ctx.data(select(lt(step, length), sub(sub(length, step), 1), step))
    return ctx.load(node.input(0), [*index[:time], where, *index[time + 1 :]])


@lowering("Iota")
def _iota(ctx: Context, node: Node, index: Index) -> Expr:
    return cast(ctx.index(index[0]), compute_dtype(node.output.tensor.dtype))


@lowering("Full")
def _full(ctx: Context, node: Node, index: Index) -> Expr:
    value = node.attrs.get("value", 0)
    dtype = compute_dtype(node.output.tensor.dtype)
    if isinstance(value, str):
        raise NotLowerable("Full of text is not generated")
    if isinstance(value, float) and dtype.is_int:
        value = int(value)
    return const_of(value, dtype if dtype != BOOL else BOOL)


@lowering("DimTensor")
def _dim_tensor(ctx: Context, node: Node, index: Index) -> Expr:
    values: tuple[Dim, ...] = node.attrs["values"]
    if not values or len(values) > 16:
        raise NotLowerable(f"DimTensor of {len(values)} values is not generated")
    result = ctx.index(values[-1])
    for position in range(len(values) - 2, -1, -1):
        result = select(le(ctx.index(index[0]), position), ctx.index(values[position]), result)
    return result

