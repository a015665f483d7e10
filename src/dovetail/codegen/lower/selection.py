"""Lowerings of gathers, one-hot and resize."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from dovetail.codegen.loop_ir import Expr, call
from dovetail.codegen.lower.build import (
    add,
    both,
    cast,
    const_of,
    div,
    eq,
    le,
    lt,
    maximum,
    minimum,
    mul,
    select,
    sub,
    unary,
)
from dovetail.codegen.lower.context import Context, Index, NotLowerable, RowHandle, lowering
from dovetail.codegen.lower.rows import number
from dovetail.core.dims import Dim
from dovetail.core.dtypes import F32, F64, I64, DType
from dovetail.ir.graph import Node


def position(ctx: Context, raw: Expr, extent: Dim) -> Dim:
    """An index read from memory: negative ones count from the end; always inside the axis.

    The reference rejects indices outside; here they are clamped, so that no memory outside is read.
    """
    value, size = cast(raw, I64), number(ctx, extent, I64)
    if raw.dtype.kind == "int":
        value = select(lt(value, 0), add(value, size), value)
    value = maximum(minimum(value, sub(size, 1)), 0)
    return ctx.data(value)


@lowering("Gather")
def _gather(ctx: Context, node: Node, index: Index) -> Expr:
    x, indices = node.input(0), node.input(1)
    axis = int(node.attrs.get("axis", 0)) % x.tensor.rank
    count = indices.tensor.rank
    raw = ctx.load(indices, index[axis : axis + count])
    where = position(ctx, raw, x.tensor.shape[axis])
    return ctx.load(x, [*index[:axis], where, *index[axis + count :]])


@lowering("GatherElements")
def _gather_elements(ctx: Context, node: Node, index: Index) -> Expr:
    x = node.input(0)
    axis = int(node.attrs.get("axis", 0)) % x.tensor.rank
    where = position(ctx, ctx.load(node.input(1), index), x.tensor.shape[axis])
    return ctx.load(x, [*index[:axis], where, *index[axis + 1 :]])


@lowering("GatherND")
def _gather_nd(ctx: Context, node: Node, index: Index) -> Expr:
    x, indices = node.input(0), node.input(1)
    batch = int(node.attrs.get("batch_dims", 0))
    lead = indices.tensor.rank - 1
    depth = indices.tensor.shape[-1]
    if not isinstance(depth, int):
        raise NotLowerable("GatherND with a run-time index length is not generated")
    where = [
        position(ctx, ctx.load(indices, [*index[:lead], d]), x.tensor.shape[batch + d])
        for d in range(depth)
    ]
    return ctx.load(x, [*index[:batch], *where, *index[lead:]])


@lowering("OneHot")
def _one_hot(ctx: Context, node: Node, index: Index) -> Expr:
    indices, values = node.input(0), node.input(1)
    axis = int(node.attrs["axis"]) % len(index)
    raw = ctx.load(indices, [*index[:axis], *index[axis + 1 :]])
    if raw.dtype.is_float:
        raw = unary("trunc", raw)
    where = cast(raw, I64)
    depth = number(ctx, node.attrs["depth"], I64)
    where = select(lt(where, 0), add(where, depth), where)
    hot = eq(where, ctx.index(index[axis]))
    return select(hot, ctx.load(values, (1,)), ctx.load(values, (0,)))


# ---------------------------------------------------------------------- resize
# More terms per element than cubic in three axes has are better left to the separable reference.
_MOST_TAPS = 64


@lowering("Resize")
def _resize(ctx: Context, node: Node, index: Index) -> Expr:
    attrs = node.attrs
    mode = attrs.get("mode", "nearest")
    transform = attrs.get("coordinate_transformation_mode", "half_pixel")
    if any(v is not None for v in node.inputs[1:]):
        raise NotLowerable("Resize with run-time roi or scales is not generated")
    if attrs.get("antialias"):
        raise NotLowerable("Resize with antialiasing is not generated")
    if transform == "tf_crop_and_resize":
        raise NotLowerable("Resize in mode tf_crop_and_resize is not generated")
    x = node.input(0)
    if mode != "nearest" and not x.tensor.dtype.is_float:
        raise NotLowerable(f"Resize of integers in mode {mode} is not generated")
    # Coordinates in the precision of the reference, so that ties fall alike.
    precision = F32 if mode == "nearest" else F64
    taps: list[list[tuple[Dim, Expr | None]]] = []
    scales = attrs.get("scales", ())
    for axis, extent in enumerate(x.tensor.shape):
        size = attrs["sizes"][axis]
        if size == extent and (not scales or float(scales[axis]) == 1.0):
            taps.append([(index[axis], None)])
            continue
        def taps_at(
            out: Dim, axis: int = axis, extent: Dim = extent, size: Dim = size
        ) -> list[tuple[Expr, Expr | None]]:
            scale = scales[axis] if scales else None
            where = _coordinate(ctx, out, extent, size, scale, transform, precision)
            if mode == "nearest":
                return _nearest(ctx, where, extent, attrs)
            return _weighted(ctx, where, extent, attrs)

        taps.append(_tabulated(ctx, node, axis, size, index[axis], taps_at))
    if math.prod(len(t) for t in taps) > _MOST_TAPS:
        raise NotLowerable("Resize over so many axes with so many taps is not generated")
    total: Expr | None = None
    for corner in itertools.product(*taps):
        term = ctx.load(x, [where for where, _ in corner])
        for _, weight in corner:
            if weight is not None:
                term = mul(term, cast(weight, term.dtype))
        total = term if total is None else add(total, term)
    assert total is not None
    return total


def _coordinate(
    ctx: Context, out: Dim, extent: Dim, size: Dim, scale: float | None, mode: str, dtype: DType
) -> Expr:
    """Where an output position lies on the input axis, operation by operation as the reference."""
    o, n, m = cast(ctx.index(out), dtype), number(ctx, extent, dtype), number(ctx, size, dtype)
    if scale is not None:
        factor: Expr = const_of(float(scale), dtype)
    else:
        ratio = div(number(ctx, size, F64), number(ctx, extent, F64))
        factor = cast(ratio, dtype)
    length = mul(factor, n)
    if mode == "asymmetric":
        return div(o, factor)
    if mode == "tf_half_pixel_for_nn":
        return div(add(o, 0.5), factor)
    if mode == "align_corners":
        scaled = div(mul(o, sub(n, 1.0)), sub(length, 1.0))
        return select(eq(length, 1.0), const_of(0, dtype), scaled)
    centre = sub(div(add(o, 0.5), factor), 0.5)
    if mode == "pytorch_half_pixel":
        return select(eq(m, 1.0), const_of(0, dtype), centre)
    if mode == "half_pixel_symmetric":
        shift = mul(div(n, 2.0), sub(1.0, div(m, length)))
        return add(centre, shift)
    if mode != "half_pixel":
        raise NotLowerable(f"Resize in mode {mode} is not generated")
    return centre


Taps = list[tuple[Expr, Expr | None]]


def _tabulated(
    ctx: Context, node: Node, axis: int, size: Dim, at: Dim, taps_at: Callable[[Dim], Taps]
) -> list[tuple[Dim, Expr | None]]:
    """Positions and weights of one axis, computed once per call into tables."""

    def column(tap: int, part: int) -> RowHandle:
        def entry(k: Dim) -> Expr:
            value = taps_at(k)[tap][part]
            assert value is not None
            return cast(value, I64 if part == 0 else F32)

        return ctx.once((node, axis, tap, part), lambda: ctx.row([size], entry))

    result: list[tuple[Dim, Expr | None]] = []
    for tap, (_, weight) in enumerate(taps_at(at)):
        where = ctx.data(column(tap, 0)[at])
        result.append((where, None if weight is None else column(tap, 1)[at]))
    return result


def _clamped(ctx: Context, where: Expr, extent: Dim) -> Expr:
    value = cast(where, I64)
    return maximum(minimum(value, sub(number(ctx, extent, I64), 1)), 0)


def _nearest(ctx: Context, where: Expr, extent: Dim, attrs: dict[str, object]) -> Taps:
    floor = unary("floor", where)
    mode = attrs.get("nearest_mode", "round_prefer_floor")
    if mode == "floor":
        chosen = floor
    elif mode == "ceil":
        chosen = unary("neg", unary("floor", unary("neg", where)))
    else:
        rest = sub(where, floor)
        above = lt(0.5, rest) if mode == "round_prefer_floor" else le(0.5, rest)
        chosen = add(floor, call("cast", (above,), where.dtype))
    return [(_clamped(ctx, chosen, extent), None)]


def _weighted(ctx: Context, where: Expr, extent: Dim, attrs: dict[str, object]) -> Taps:
    """Taps and weights of linear (2) or cubic (4) interpolation."""
    floor = unary("floor", where)
    rest = sub(where, floor)
    if attrs.get("mode") == "cubic":
        a = float(attrs.get("cubic_coeff_a", -0.75))  # type: ignore[arg-type]
        beside, further = sub(1.0, rest), sub(2.0, rest)
        weights = [_far(add(rest, 1.0), a), _near(rest, a), _near(beside, a), _far(further, a)]
        first = -1
    else:
        weights, first = [sub(1.0, rest), rest], 0
    places = [add(floor, float(first + tap)) for tap in range(len(weights))]
    if attrs.get("exclude_outside"):
        last = sub(number(ctx, extent, where.dtype), 1.0)
        inside = [both(le(0.0, p), le(p, last)) for p in places]
        weights = [select(i, w, const_of(0, w.dtype)) for i, w in zip(inside, weights, strict=True)]
        total = weights[0]
        for weight in weights[1:]:
            total = add(total, weight)
        weights = [select(eq(total, 0.0), const_of(0, w.dtype), div(w, total)) for w in weights]
    return [(_clamped(ctx, p, extent), w) for p, w in zip(places, weights, strict=True)]


def _near(d: Expr, a: float) -> Expr:
    """Keys' cubic kernel for distances up to 1."""
    return add(mul(mul(sub(mul(d, a + 2), a + 3), d), d), 1.0)


def _far(d: Expr, a: float) -> Expr:
    """Keys' cubic kernel for distances from 1 to 2."""
    return sub(mul(add(mul(sub(mul(d, a), 5 * a), d), 8 * a), d), 4 * a)
