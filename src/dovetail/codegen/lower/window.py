"""Lowerings of pooling."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.codegen.loop_ir import Expr, call
from dovetail.codegen.lower.build import add, const_of, div, mul, unary
from dovetail.codegen.lower.context import Context, Index, NotLowerable, lowering
from dovetail.codegen.lower.rows import number
from dovetail.core.dims import Dim, ceil_div, maximum, minimum
from dovetail.ir.graph import Node


class _Window:
    """Where the taps of a window lie."""

    def __init__(self, node: Node, index: Index) -> None:
        self.x = node.input(0)
        self.rank = len(node.attrs["kernel"])
        self.kernel: Sequence[int] = node.attrs["kernel"]
        self.strides: Sequence[int] = node.attrs["strides"]
        self.pads: Sequence[int] = node.attrs["pads"]
        self.dilations: Sequence[int] = node.attrs["dilations"]
        self.space = self.x.tensor.shape[-self.rank :]
        self.outer, self.at = index[: -self.rank], index[-self.rank :]

    def start(self, axis: int) -> Dim:
        """The input position of tap 0 on a spatial axis; negative in the padding."""
        return self.at[axis] * self.strides[axis] - self.pads[axis]

    def tap(self, taps: Sequence[Dim]) -> list[Dim]:
        """The input positions of a tap."""
        return [self.start(d) + k * self.dilations[d] for d, k in enumerate(taps)]

    def inside(self, *taps: Dim) -> list[Dim]:
        """Dims that are >= 0 where a tap lies on the input."""
        where = self.tap(taps)
        return [*where, *(n - 1 - p for n, p in zip(self.space, where, strict=True))]

    def element(self, ctx: Context, *taps: Dim) -> Expr:
        """The element under a tap."""
        return ctx.load(self.x, (*self.outer, *self.tap(taps)))

    def count(self, ctx: Context, low: Sequence[int], high: Sequence[Dim]) -> Dim:
        """How many taps lie in [-low, space + high) on every axis."""
        total: Dim = 1
        for d in range(self.rank):
            start, step = self.start(d) + low[d], self.dilations[d]
            end = self.space[d] + high[d] + low[d]
            first = maximum(0, ceil_div(0 - start, step))
            last = minimum(self.kernel[d], ceil_div(end - start, step))
            total = total * ctx.simplify(last - first)
        return total


@lowering("MaxPool")
def _max_pool(ctx: Context, node: Node, index: Index) -> Expr:
    window = _Window(node, index)
    return ctx.reduce(
        "max", window.kernel, lambda *taps: window.element(ctx, *taps), window.inside
    )


@lowering("AveragePool")
def _average_pool(ctx: Context, node: Node, index: Index) -> Expr:
    window = _Window(node, index)
    if not window.x.tensor.dtype.is_float:
        raise NotLowerable("AveragePool of integers is not generated")
    total = ctx.reduce(
        "sum", window.kernel, lambda *taps: window.element(ctx, *taps), window.inside
    )
    rank = window.rank
    low: list[int] = [0] * rank
    high: list[Dim] = [0] * rank
    if node.attrs.get("count_include_pad", False):
        extra = tuple(node.attrs.get("ceil_extra", ())) or (0,) * rank
        low = [int(p) for p in window.pads[:rank]]
        high = [p - e for p, e in zip(window.pads[rank:], extra, strict=True)]
    return div(total, number(ctx, window.count(ctx, low, high), total.dtype))


@lowering("LpPool")
def _lp_pool(ctx: Context, node: Node, index: Index) -> Expr:
    window = _Window(node, index)
    p = int(node.attrs.get("p", 2))
    if p not in (1, 2) or not window.x.tensor.dtype.is_float:
        raise NotLowerable(f"LpPool of order {p} on {window.x.tensor.dtype} is not generated")

    def power(*taps: Dim) -> Expr:
        x = window.element(ctx, *taps)
        return unary("abs", x) if p == 1 else mul(x, x)

    total = ctx.reduce("sum", window.kernel, power, window.inside)
    return total if p == 1 else unary("sqrt", total)


@lowering("LRN")
def _lrn(ctx: Context, node: Node, index: Index) -> Expr:
    x = node.input(0)
    size, channels = int(node.attrs["size"]), x.tensor.shape[1]
    low = (size - 1) // 2

    def channel(k: Dim) -> Dim:
        return index[1] + k - low

    def square(k: Dim) -> Expr:
        element = ctx.load(x, [index[0], channel(k), *index[2:]])
        return mul(element, element)

    total = ctx.reduce("sum", [size], square, lambda k: [channel(k), channels - 1 - channel(k)])
    alpha, beta, bias = (
        float(node.attrs.get(name, default))
        for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    base = add(mul(total, alpha / size), bias)
    scale = call("pow", (base, const_of(beta, base.dtype)), base.dtype)
    return div(ctx.load(x, index), scale)
