"""Importer of Einsum: transposes, reshapes, matrix products and sums."""

from __future__ import annotations

from collections import Counter

from dovetail.core.dims import Dim, product
from dovetail.frontend.onnx.shorthand import reshape, scalar
from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.ir.graph import Value

Term = tuple[Value, tuple[str, ...]]
"""An operand and the label of each of its axes; ellipsis axes are labelled "0", "1", … from the right."""


@onnx_op("Einsum")
def einsum(ctx: Context, node: OnnxNode) -> Value:
    """Contracts the operands from the left, two at a time."""
    equation = str(node.attr("equation", "")).replace(" ", "")
    operands = [v for v in node.inputs if v is not None]
    left, arrow, right = equation.partition("->")
    patterns = left.split(",")
    if len(patterns) != len(operands):
        ctx.unsupported(
            f"equation {equation!r} names {len(patterns)} operands but there are {len(operands)}",
            "make them agree",
        )
    terms = [
        (v, _labels(ctx, p, v.tensor.rank)) for v, p in zip(operands, patterns, strict=True)
    ]
    output = _output_labels(terms, right if arrow else None)
    terms = [_diagonal(ctx, term) for term in terms]
    current = _sum_out(ctx, terms[0], _needed(terms[1:], output))
    for position, term in enumerate(terms[1:], 1):
        later = _needed(terms[position + 1 :], output)
        term = _sum_out(ctx, term, later | set(current[1]))
        current = _contract(ctx, current, term, later)
    current = _sum_out(ctx, current, set(output))
    return _arrange(ctx, current, output)


def _labels(ctx: Context, pattern: str, rank: int) -> tuple[str, ...]:
    before, dots, after = pattern.partition("...")
    hidden = rank - len(before) - len(after)
    if hidden < 0 or (hidden and not dots):
        ctx.unsupported(f"term {pattern!r} does not fit an input of rank {rank}", "fix the equation")
    return (*before, *(str(i) for i in reversed(range(hidden))), *after)


def _output_labels(terms: list[Term], right: str | None) -> tuple[str, ...]:
    """The labels of the result; without an arrow, those that occur once, in order."""
    counts = Counter(label for _, labels in terms for label in labels)
    hidden = tuple(sorted((c for c in counts if c.isdigit()), key=int, reverse=True))
    if right is None:
        return (*hidden, *sorted(c for c, n in counts.items() if n == 1 and not c.isdigit()))
    before, dots, after = right.partition("...")
    return (*before, *(hidden if dots else ()), *after)


def _needed(terms: list[Term], output: tuple[str, ...]) -> set[str]:
    return set(output).union(*(labels for _, labels in terms))


def _diagonal(ctx: Context, term: Term) -> Term:
    """Keeps only the diagonal of axes that carry the same label."""
    value, labels = term
    while True:
        repeated = next((c for c in labels if labels.count(c) > 1), None)
        if repeated is None:
            return value, labels
        first = labels.index(repeated)
        second = labels.index(repeated, first + 1)
        rank, extent = len(labels), value.tensor.shape[first]
        kind = value.tensor.dtype
        places = ctx.emit("Iota", size=extent)
        rows = reshape(ctx, places, (extent, *(1,) * (rank - first - 1)))
        columns = reshape(ctx, places, (extent, *(1,) * (rank - second - 1)))
        on = ctx.emit("Equal", rows, columns)
        masked = ctx.emit("Where", on, value, scalar(ctx, 0, kind))
        value = ctx.emit("ReduceSum", masked, axes=(second,), keepdims=False)
        labels = labels[:second] + labels[second + 1 :]


def _sum_out(ctx: Context, term: Term, keep: set[str]) -> Term:
    value, labels = term
    axes = tuple(i for i, c in enumerate(labels) if c not in keep)
    if not axes:
        return term
    value = ctx.emit("ReduceSum", value, axes=axes, keepdims=False)
    return value, tuple(c for c in labels if c in keep)


def _arrange(ctx: Context, term: Term, order: tuple[str, ...]) -> Value:
    value, labels = term
    if labels == order:
        return value
    result: Value = ctx.emit("Transpose", value, perm=tuple(labels.index(c) for c in order))
    return result


def _contract(ctx: Context, a: Term, b: Term, keep: set[str]) -> Term:
    """The product of two terms, summed over shared labels that are not in `keep`."""
    shared = [c for c in a[1] if c in b[1]]
    batch = tuple(c for c in shared if c in keep)
    summed = tuple(c for c in shared if c not in keep)
    rows = tuple(c for c in a[1] if c not in b[1])
    columns = tuple(c for c in b[1] if c not in a[1])
    labels = (*batch, *rows, *columns)
    left = _arrange(ctx, a, (*batch, *rows, *summed))
    right = _arrange(ctx, b, (*batch, *summed, *columns))
    heads = [v.tensor.shape[: len(batch)] for v in (left, right)]
    row_shape = left.tensor.shape[len(batch) : len(batch) + len(rows)]
    column_shape = right.tensor.shape[len(batch) + len(summed) :]
    inner = left.tensor.shape[len(batch) + len(rows) :]
    if not summed:
        left = reshape(ctx, left, (*heads[0], *row_shape, *(1,) * len(columns)))
        right = reshape(ctx, right, (*heads[1], *(1,) * len(rows), *column_shape))
        return ctx.emit("Mul", left, right), labels
    left = reshape(ctx, left, (*heads[0], product(row_shape), product(inner)))
    right = reshape(ctx, right, (*heads[1], product(inner), product(column_shape)))
    value = ctx.emit("MatMul", left, right)
    shape: tuple[Dim, ...] = (*value.tensor.shape[: len(batch)], *row_shape, *column_shape)
    return reshape(ctx, value, shape), labels
