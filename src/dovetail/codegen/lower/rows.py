"""Lowerings of reductions, softmax, normalisations, arg-extrema and running sums.

Sums of narrow floats accumulate in fp32 over a fixed number of partial sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dovetail.codegen.loop_ir import Expr
from dovetail.codegen.lower.build import (
    add,
    cast,
    const_of,
    div,
    either,
    eq,
    mul,
    ne,
    select,
    sub,
    unary,
)
from dovetail.codegen.lower.context import Context, Index, NotLowerable, lowering
from dovetail.core.dims import Dim, product
from dovetail.core.dtypes import F64, I64, DType
from dovetail.ir.graph import Node

_KINDS = {
    "ReduceSum": "sum", "ReduceMean": "sum", "ReduceProd": "prod", "ReduceMax": "max", "ReduceMin": "min",
}  # fmt: skip


def number(ctx: Context, d: Dim, dtype: DType) -> Expr:
    """A dim as a value."""
    return const_of(d, dtype) if isinstance(d, int) else cast(ctx.index(d), dtype)


@lowering(*_KINDS)
def _reduce(ctx: Context, node: Node, index: Index) -> Expr:
    x = node.input(0)
    shape = x.tensor.shape
    axes = sorted(int(a) % len(shape) for a in node.attrs["axes"])
    rest = iter(index)
    kept: list[Dim] = []
    for d in range(len(shape)):
        if d not in axes:
            kept.append(next(rest))
        else:
            kept.append(0)
            if node.attrs.get("keepdims", True):
                next(rest)

    def element(*inner: Dim) -> Expr:
        at = list(kept)
        for axis, i in zip(axes, inner, strict=True):
            at[axis] = i
        return ctx.load(x, at)

    total = ctx.reduce(_KINDS[node.op], [shape[a] for a in axes], element)
    if node.op != "ReduceMean":
        return total
    return div(total, number(ctx, product(shape[a] for a in axes), total.dtype))


@lowering("ArgMax", "ArgMin")
def _arg(ctx: Context, node: Node, index: Index) -> Expr:
    x = node.input(0)
    shape = x.tensor.shape
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    outer = list(index)
    if not node.attrs.get("keepdims", True):
        outer.insert(axis, 0)

    def element(k: Dim) -> Expr:
        return ctx.load(x, [*outer[:axis], k, *outer[axis + 1 :]])

    element = ctx.reusable([shape[axis]], element)
    best = ctx.reduce("max" if node.op == "ArgMax" else "min", [shape[axis]], element)
    last = bool(node.attrs.get("select_last_index", False))

    def position(k: Dim) -> Expr:
        value = element(k)
        # If the best is NaN, the positions of NaN count.
        hit = eq(value, best)
        if value.dtype.is_float:
            hit = either(hit, ne(value, value))
        miss = -1 if last else 2**63 - 1
        return select(hit, ctx.index(k), const_of(miss, I64))

    return ctx.reduce("max" if last else "min", [shape[axis]], position)


def _along(ctx: Context, node: Node, index: Index, axis: int) -> Callable[[Dim], Expr]:
    x = node.input(0)
    return ctx.reusable(
        [x.tensor.shape[axis]],
        lambda k: ctx.load(x, [*index[:axis], k, *index[axis + 1 :]]),
    )


@lowering("Softmax", "LogSoftmax")
def _softmax(ctx: Context, node: Node, index: Index) -> Expr:
    shape = node.input(0).tensor.shape
    axis = int(node.attrs.get("axis", -1)) % len(shape)
    extent = [shape[axis]]
    key = (node, (*index[:axis], *index[axis + 1 :]))
    x = ctx.once((*key, "x"), lambda: _along(ctx, node, index, axis))
    top = ctx.once((*key, "max"), lambda: ctx.reduce("max", extent, x))

    def shifted(k: Dim) -> Expr:
        return sub(x(k), top)

    if node.op == "LogSoftmax":
        total = ctx.once(
            (*key, "sum"),
            lambda: unary("log", ctx.reduce("sum", extent, lambda k: unary("exp", shifted(k)))),
        )
        return sub(shifted(index[axis]), total)
    exps = ctx.once((*key, "exp"), lambda: ctx.row(extent, lambda k: unary("exp", shifted(k))))
    scale = ctx.once(
        (*key, "sum"), lambda: div(1.0, ctx.reduce("sum", extent, lambda k: exps[k]))
    )
    return mul(exps[index[axis]], scale)


def _moments(
    ctx: Context,
    key: tuple[object, ...],
    extents: Sequence[Dim],
    element: Callable[..., Expr],
    epsilon: float,
) -> tuple[Callable[..., Expr], Expr, Expr]:
    """(element, mean, 1/std) over `extents`, in two passes."""

    def make() -> tuple[Callable[..., Expr], Expr, Expr]:
        x = ctx.reusable(extents, element)
        total = ctx.reduce("sum", extents, x)
        count = number(ctx, product(extents), total.dtype)
        mean = div(total, count)

        def square(*at: Dim) -> Expr:
            centred = sub(x(*at), mean)
            return mul(centred, centred)

        variance = div(ctx.reduce("sum", extents, square), count)
        return x, mean, div(1.0, unary("sqrt", add(variance, epsilon)))

    return ctx.once((*key, "moments"), make)


def _affine(ctx: Context, node: Node, y: Expr, index: Index) -> Expr:
    """y * scale + bias, which broadcast from the last axes."""
    for position, fn in ((1, mul), (2, add)):
        if position < len(node.inputs) and node.inputs[position] is not None:
            y = fn(y, ctx.operand(node, position, index))
    return y


@lowering("LayerNormalization")
def _layer_norm(ctx: Context, node: Node, index: Index) -> Expr:
    x = node.input(0)
    axis = int(node.attrs["axis"]) % x.tensor.rank
    outer = index[:axis]
    element, mean, inverse = _moments(
        ctx,
        (node, outer),
        x.tensor.shape[axis:],
        lambda *inner: ctx.load(x, (*outer, *inner)),
        float(node.attrs.get("epsilon", 1e-5)),
    )
    y = mul(sub(element(*index[axis:]), mean), inverse)
    return _affine(ctx, node, y, index)


@lowering("RMSNormalization")
def _rms_norm(ctx: Context, node: Node, index: Index) -> Expr:
    x = node.input(0)
    axis = int(node.attrs["axis"]) % x.tensor.rank
    extents, outer = x.tensor.shape[axis:], index[:axis]

    def make() -> tuple[Callable[..., Expr], Expr]:
        element = ctx.reusable(extents, lambda *inner: ctx.load(x, (*outer, *inner)))
        total = ctx.reduce("sum", extents, lambda *at: mul(element(*at), element(*at)))
        mean = div(total, number(ctx, product(extents), total.dtype))
        root = unary("sqrt", add(mean, float(node.attrs.get("epsilon", 1e-5))))
        return element, div(1.0, root)

    element, inverse = ctx.once((node, outer, "rms"), make)
    return _affine(ctx, node, mul(element(*index[axis:]), inverse), index)


@lowering("InstanceNormalization")
def _instance_norm(ctx: Context, node: Node, index: Index) -> Expr:
    x = node.input(0)
    outer = index[:2]
    element, mean, inverse = _moments(
        ctx,
        (node, outer),
        x.tensor.shape[2:],
        lambda *inner: ctx.load(x, (*outer, *inner)),
        float(node.attrs.get("epsilon", 1e-5)),
    )
    y = mul(sub(element(*index[2:]), mean), inverse)
    return _per_channel(ctx, node, y, index[1])


def _per_channel(ctx: Context, node: Node, y: Expr, channel: Dim) -> Expr:
    scale, bias = (ctx.load(node.input(i), (channel,)) for i in (1, 2))
    return add(mul(y, scale), bias)


@lowering("GroupNormalization")
def _group_norm(ctx: Context, node: Node, index: Index) -> Expr:
    x = node.input(0)
    shape = x.tensor.shape
    groups = int(node.attrs["num_groups"])
    if not isinstance(shape[1], int) or shape[1] % groups:
        raise NotLowerable("GroupNormalization over a run-time number of channels is not generated")
    size = shape[1] // groups
    batch, group = index[0], ctx.simplify(index[1] // size)
    within = ctx.simplify(index[1] % size)
    element, mean, inverse = _moments(
        ctx,
        (node, batch, group),
        (size, *shape[2:]),
        lambda c, *inner: ctx.load(x, (batch, group * size + c, *inner)),
        float(node.attrs.get("epsilon", 1e-5)),
    )
    y = mul(sub(element(within, *index[2:]), mean), inverse)
    return _per_channel(ctx, node, y, index[1])


@lowering("CumSum")
def _cumsum(ctx: Context, node: Node, index: Index) -> Expr:
    x = node.input(0)
    shape = x.tensor.shape
    axis = int(node.attrs["axis"]) % len(shape)
    extent = shape[axis]
    exclusive, reverse = (bool(node.attrs.get(a, False)) for a in ("exclusive", "reverse"))
    if x.tensor.dtype == F64:
        raise NotLowerable("running sums in double precision are not generated")
    if extent == 1:  # a sum of one element, or of none before it
        value = ctx.load(x, index)
        return const_of(0, value.dtype) if exclusive else value

    def step(k: Dim) -> Expr:
        if not exclusive:
            at = extent - 1 - k if reverse else k
            return ctx.load(x, [*index[:axis], at, *index[axis + 1 :]])
        at = extent - k if reverse else k - 1
        first = eq(ctx.index(k), 0)
        value = ctx.guarded(
            [k - 1], lambda: ctx.load(x, [*index[:axis], at, *index[axis + 1 :]])
        )
        return select(first, const_of(0, value.dtype), value)

    key = (node, (*index[:axis], *index[axis + 1 :]), "scan")
    sums = ctx.once(key, lambda: ctx.row([extent], step, scan=True))
    return sums[extent - 1 - index[axis] if reverse else index[axis]]
