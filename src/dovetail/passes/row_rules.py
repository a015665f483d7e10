"""Reshapes and Transposes move past row-wise ops, to where they cancel or no longer stand between ops that fuse.

Exporters write these movements around products and residual additions, where they would keep the two apart.
"""

from __future__ import annotations

from dovetail.ir.graph import Node, Time, Value
from dovetail.ir.rewriter import Rewrite, rule
from dovetail.ops.registry import POINTWISE, find
from dovetail.passes.clean import replace, used_once
from dovetail.passes.patterns import made_by
from dovetail.passes.rows import (
    comes_from_transpose,
    is_image,
    is_product,
    is_vector,
    leads_to,
    merged_axes,
    moves_rows,
    no_wider,
    row_wise,
    row_wise_above,
    shape_of_rows,
)
from dovetail.passes.split_rules import split_runs


@rule()
def sink_reshape(node: Node, rewrite: Rewrite) -> str | None:
    """A Reshape that only regroups rows moves behind a row-wise op: one that merges axes behind a product, others towards a Reshape.

    A product reads rows that lie apart where they are, and writes them side by side: merged after it, they need no copy.
    """
    reason = "no operand is a Reshape"
    for position, merged in enumerate(node.inputs):
        reshape = made_by(merged, "Reshape")
        if merged is None or reshape is None:
            continue
        way = row_wise(node, position)
        if isinstance(way, str):
            reason = way
            continue
        x = reshape.input(0)
        shape = shape_of_rows(x, merged)
        if shape is None or shape == merged.tensor.shape:
            reason = "the Reshape mixes rows" if shape is None else "the Reshape leaves the rows as they are"
            continue
        merges = node.op == "MatMul" and len(shape) > merged.tensor.rank
        if not merges and not (used_once(merged) and leads_to(node.output, "Reshape")):
            reason = "nothing regroups the rows again"
            continue
        rewrite.origin = reshape.origin
        rows = x if shape == x.tensor.shape else rewrite.emit("Reshape", x, shape=shape)
        y = way.over(rewrite, rows)
        rewrite.origin = reshape.origin
        replace(rewrite, node, rewrite.emit("Reshape", y, name=node.output.name, shape=node.output.tensor.shape))
        return None
    return reason


@rule()
def sink_reshape_of_product(node: Node, rewrite: Rewrite) -> str | None:
    """A Reshape between a product and a pointwise op, such as the bias or a residual, moves behind that op, so that the two fuse.

    Other operands of the result's shape get the product's shape by a Reshape of their own, if it is one that moves no element.
    """
    spec = find(node.op)
    if spec is None or spec.kind is not POINTWISE or len(node.outputs) != 1 or "axis" in node.attrs:
        return "not a pointwise op"
    shape = node.output.tensor.shape
    reason = "no operand is a Reshape of a product"
    for position, value in enumerate(node.inputs):
        reshape = made_by(value, "Reshape")
        if value is None or reshape is None or not used_once(value) or value.tensor.shape != shape:
            continue
        x = reshape.input(0)
        if not is_product(x):
            continue
        others = [v for i, v in enumerate(node.inputs) if v is not None and i != position]
        found = [why for v in others if (why := _not_beside(v, value, x)) is not None]
        if found:
            reason = found[0]
            continue
        rewrite.origin = reshape.origin
        inputs = [x if i == position else _beside(rewrite, v, value, x) for i, v in enumerate(node.inputs)]
        rewrite.origin = node.origin
        y = rewrite.emit(node.op, *inputs, **node.attrs)
        rewrite.origin = reshape.origin
        replace(rewrite, node, rewrite.emit("Reshape", y, name=node.output.name, shape=shape))
        return None
    return reason


def _not_beside(other: Value, value: Value, x: Value) -> str | None:
    """None if another operand of a pointwise op can stand beside x as it does beside its Reshape `value`, else the reason why not."""
    same_rows = shape_of_rows(x, value) == x.tensor.shape
    if all(d == 1 for d in other.tensor.shape) or (same_rows and is_vector(other)):
        return None
    if other.tensor.shape != value.tensor.shape or is_vector(other):
        return "another operand is broadcast along axes that the Reshape changes"
    if split_runs(other.tensor.shape, x.tensor.shape) is not None:
        return None
    while (reshape := made_by(other, "Reshape")) is not None:
        other = reshape.input(0)
    source = other.producer
    if source is not None and (source.op in ("Transpose", "Slice", "Expand") or other.tensor.rank > 3):
        return "another operand may not lie dense, so that its Reshape would copy"
    return None


def _beside(rewrite: Rewrite, other: Value | None, value: Value, x: Value) -> Value | None:
    if other is None or is_vector(other):
        return no_wider(rewrite, other, x)
    return rewrite.emit("Reshape", other, shape=x.tensor.shape)


@rule("Transpose")
def hoist_transpose(node: Node, rewrite: Rewrite) -> str | None:
    """A Transpose of rows moves before row-wise ops and merging Reshapes, up to a Transpose with which it is one."""
    value, perm = node.input(0), node.attrs["perm"]
    inner = value.producer
    if inner is None or inner.op == "Transpose" or value.time != Time.RUN or not used_once(value):
        return "what it reads is not made for it alone"
    if not comes_from_transpose(value, moves_rows(perm)):
        return "no Transpose of what it reads lies before row-wise ops"
    if inner.op == "Reshape":
        runs = merged_axes(inner)
        assert runs is not None
        moved = rewrite.emit("Transpose", inner.input(0), perm=tuple(axis for p in perm for axis in runs[p]))
        rewrite.origin = inner.origin
        replace(rewrite, node, rewrite.emit("Reshape", moved, name=node.output.name, shape=node.output.tensor.shape))
        return None
    way = row_wise_above(inner)
    assert way is not None
    moved = rewrite.emit("Transpose", way.value, perm=perm)
    replace(rewrite, node, way.over(rewrite, moved, name=node.output.name))
    return None


@rule()
def sink_transpose(node: Node, rewrite: Rewrite) -> str | None:
    """A Transpose of rows moves behind row-wise ops, if all that read it so end in Transposes with which it is one."""
    reason = "no operand is a Transpose"
    for position, value in enumerate(node.inputs):
        transpose = made_by(value, "Transpose")
        if value is None or transpose is None:
            continue
        way, perm = row_wise(node, position), transpose.attrs["perm"]
        if isinstance(way, str):
            reason = way
            continue
        if value.is_output or not all(_sinks(reader, at, perm) for reader, at in value.uses):
            reason = "it moves the last axis, or not all that read it end in a Transpose"
            continue
        y = way.over(rewrite, transpose.input(0))
        rewrite.origin = transpose.origin
        replace(rewrite, node, rewrite.emit("Transpose", y, name=node.output.name, perm=perm))
        return None
    return reason


def _sinks(reader: Node, position: int, perm: tuple[int, ...]) -> bool:
    """Whether a Transpose may move behind one of its readers, and a Transpose follows there."""
    way, keeps_last = row_wise(reader, position), moves_rows(perm)
    return not isinstance(way, str) and (keeps_last or not way.last) and leads_to(reader.output, "Transpose", keeps_last)


@rule()
def join_transposes(node: Node, rewrite: Rewrite) -> str | None:
    """A pointwise op of a transposed product and values that are transposed alike is transposed itself, so that it fuses.

    Where the product is put into the order of images, an image that a convolution made counts as transposed: its channels
    lie innermost anyway. So the residual of a block whose products read channels last becomes part of the last product.
    """
    spec = find(node.op)
    if spec is None or spec.kind is not POINTWISE or len(node.outputs) != 1 or node.output.time != Time.RUN or "axis" in node.attrs:
        return "not a pointwise op"
    full = {i: v for i, v in enumerate(node.inputs) if v is not None and any(d != 1 for d in v.tensor.shape)}
    moved = [t for v in full.values() if (t := made_by(v, "Transpose")) is not None]
    product_of = next((t for t in moved if used_once(t.output) and is_product(t.input(0))), None)
    if len(full) < 2 or product_of is None:
        return "not several values, one of them a product that is transposed for it alone"
    perm, shape = product_of.attrs["perm"], node.output.tensor.shape
    rank = len(perm)
    to_image = rank > 2 and perm == (0, rank - 1, *range(1, rank - 1))
    for value in full.values():
        transpose = made_by(value, "Transpose")
        if value.tensor.shape != shape or (transpose is not None and transpose.attrs["perm"] != perm):
            return "its operands are not transposed alike"
        if transpose is None and not (to_image and is_image(value)):
            return "an operand is not transposed"
        if transpose is not None and is_image(transpose.input(0)):
            return "an operand is an image, which lies in the transposed order anyway"
    back = tuple(perm.index(axis) for axis in range(rank))
    moves = tuple(o for t in moved for o in t.origin)
    rewrite.origin = moves
    inputs: list[Value | None] = []
    for i, operand in enumerate(node.inputs):
        transpose = made_by(full[i], "Transpose") if i in full else None
        if transpose is not None:
            operand = transpose.input(0)
        elif i in full:
            operand = rewrite.emit("Transpose", full[i], perm=back)
        inputs.append(operand)
    rewrite.origin = node.origin
    y = rewrite.emit(node.op, *inputs, **node.attrs)
    rewrite.origin = moves
    replace(rewrite, node, rewrite.emit("Transpose", y, name=node.output.name, perm=perm))
    return None


ROW_MOVEMENT_RULES = (sink_reshape, sink_reshape_of_product, hoist_transpose, sink_transpose, join_transposes)
