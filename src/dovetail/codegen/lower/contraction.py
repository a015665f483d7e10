"""Plain loops for contractions: the way out for dtypes and shapes that no template takes."""

from __future__ import annotations

from dovetail.codegen.loop_ir import Expr
from dovetail.codegen.lower.build import add, mul
from dovetail.codegen.lower.context import Context, Index, NotLowerable, broadcast_index, lowering
from dovetail.core.dims import Dim
from dovetail.ir.graph import Node, Value


@lowering("MatMul")
def _matmul(ctx: Context, node: Node, index: Index) -> Expr:
    a, b = node.input(0), node.input(1)
    shape = node.output.tensor.shape
    depth = a.tensor.shape[-1]
    rows = 1 if a.tensor.rank > 1 else 0
    columns = 1 if b.tensor.rank > 1 else 0
    lead = len(shape) - rows - columns

    def batch(value: Value) -> list[Dim]:
        own = value.tensor.shape[:-2]
        skip = lead - len(own)
        pairs = zip(index[skip:lead], own, shape[skip:lead], strict=True)
        return [broadcast_index(i, mine, full) for i, mine, full in pairs]

    left = [*batch(a), *index[lead : lead + rows]]
    right = index[lead + rows :]

    def product(k: Dim) -> Expr:
        x, y = ctx.load(a, [*left, k]), ctx.load(b, [*batch(b), k, *right])
        if x.dtype != y.dtype:
            raise NotLowerable(f"MatMul of {x.dtype} and {y.dtype} is not generated")
        return mul(x, y)

    return ctx.reduce("sum", [depth], product)


@lowering("Conv")
def _conv(ctx: Context, node: Node, index: Index) -> Expr:
    x, w = node.input(0), node.input(1)
    rank = x.tensor.rank - 2
    group = int(node.attrs.get("group", 1))
    per_group, out_channels = w.tensor.shape[1], w.tensor.shape[0]
    if not isinstance(out_channels, int) or not isinstance(per_group, int):
        raise NotLowerable("Conv with a run-time number of channels is not generated")
    strides, pads, dilations = (node.attrs[a] for a in ("strides", "pads", "dilations"))
    first = ctx.simplify(index[1] // (out_channels // group)) * per_group

    def where(*taps: Dim) -> list[Dim]:
        pairs = enumerate(taps[1:])
        return [index[2 + d] * strides[d] - pads[d] + k * dilations[d] for d, k in pairs]

    def inside(*taps: Dim) -> list[Dim]:
        at = where(*taps)
        return [*at, *(n - 1 - p for n, p in zip(x.tensor.shape[2:], at, strict=True))]

    def product(*taps: Dim) -> Expr:
        element = ctx.load(x, [index[0], first + taps[0], *where(*taps)])
        return mul(element, ctx.load(w, [index[1], *taps]))

    total = ctx.reduce("sum", (per_group, *w.tensor.shape[2 : 2 + rank]), product, inside)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        total = add(total, ctx.load(node.input(2), (index[1],)))
    return total
