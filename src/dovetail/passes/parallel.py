"""Merges parallel convolutions whose results are added into one: the re-parameterisation of branched networks.

The weights of the sum are computed at weight time from both, so refit by the original names goes on to work.
"""

from __future__ import annotations

from dovetail.ir.graph import Node, Time, Value
from dovetail.ir.rewriter import Rewrite, rule
from dovetail.passes.affine import channel_extent, weight_operand
from dovetail.passes.clean import replace, used_once


def _conv(value: Value) -> Node | None:
    node = value.producer
    if node is None or node.op != "Conv" or not used_once(value) or not value.tensor.dtype.is_float:
        return None
    fixed = all(v.time == Time.WEIGHT for v in node.operands[1:]) and all(isinstance(p, int) for p in node.attrs["pads"])
    return node if fixed and all(isinstance(k, int) for k in node.input(1).tensor.shape) else None


def _offsets(large: Node, small: Node) -> list[tuple[int, int]] | None:
    """Per spatial axis, how many taps of the large kernel lie before and after the small one; None if it does not fit."""
    rank = large.input(1).tensor.rank - 2
    found = []
    for i in range(rank):
        k, inner = large.input(1).tensor.shape[2 + i], small.input(1).tensor.shape[2 + i]
        assert isinstance(k, int) and isinstance(inner, int)
        step = large.attrs["dilations"][i]
        if inner > 1 and small.attrs["dilations"][i] != step:
            return None
        before, rest = divmod(large.attrs["pads"][i] - small.attrs["pads"][i], step)
        if rest or before < 0 or before + inner > k:
            return None
        found.append((before, k - inner - before))
    return found


def _padded(rewrite: Rewrite, w: Value, offsets: list[tuple[int, int]]) -> Value:
    pads = (0, 0, *(a for a, _ in offsets), 0, 0, *(b for _, b in offsets))
    return w if not any(pads) else rewrite.emit("Pad", w, pads=pads)


def _summed(rewrite: Rewrite, a: Value | None, b: Value | None) -> Value | None:
    if a is None or b is None:
        return a if b is None else b
    return rewrite.emit("Add", a, b)


def _bias(conv: Node) -> Value | None:
    return conv.inputs[2] if len(conv.inputs) > 2 else None


@rule("Add")
def merge_parallel_convs(node: Node, rewrite: Rewrite) -> str | None:
    """conv(x, v) + conv(x, w) = conv(x, v + w), the smaller kernel padded with zeros to the larger one."""
    convs = [_conv(v) for v in node.operands]
    a, b = convs if len(convs) == 2 else (None, None)
    if a is None or b is None or a is b:
        return "the operands are not two convolutions with weight-time weights and this one reader"
    same = ("strides", "group")
    if a.input(0) is not b.input(0) or any(a.attrs[k] != b.attrs[k] for k in same) or a.output.type != b.output.type:
        return "the convolutions differ in input, strides, groups or result"
    for large, small in ((a, b), (b, a)):
        offsets = _offsets(large, small)
        if offsets is None:
            continue
        w = rewrite.emit("Add", large.input(1), _padded(rewrite, small.input(1), offsets))
        bias = _summed(rewrite, _bias(large), _bias(small))
        rewrite.at(node, (*large.origin, *small.origin, *node.origin))
        inputs = [large.input(0), w, *([bias] if bias is not None else [])]
        replace(rewrite, node, rewrite.emit("Conv", *inputs, name=node.output.name, **large.attrs))
        return None
    return "neither kernel lies inside the other"


def _scaled_input(value: Value) -> tuple[Value, Value, Value] | None:
    """(x, scale, shift) of x * scale + shift with weight-time vectors over channels, for one reader."""
    add = value.producer
    if add is None or add.op != "Add" or not used_once(value):
        return None
    parts = weight_operand(add)
    mul = parts[0].producer if parts is not None else None
    if parts is None or mul is None or mul.op != "Mul" or not used_once(parts[0]):
        return None
    factors = weight_operand(mul)
    return (factors[0], factors[1], parts[1]) if factors is not None else None


def _identity(rewrite: Rewrite, rows: int, columns: int, like: Value) -> Value:
    """[rows, columns] with a one where column = row modulo columns: the identity within each group of channels."""
    row = rewrite.emit("Iota", size=rows)
    if rows != columns:
        row = rewrite.emit("Mod", row, rewrite.emit("Full", shape=(), value=columns, dtype=row.tensor.dtype))
    row = rewrite.emit("Reshape", row, shape=(rows, 1))
    column = rewrite.emit("Reshape", rewrite.emit("Iota", size=columns), shape=(1, columns))
    return rewrite.emit("Cast", rewrite.emit("Equal", row, column), to=like.tensor.dtype)


@rule("Add")
def merge_scaled_input(node: Node, rewrite: Rewrite) -> str | None:
    """conv(x, w) + (x * s + t) = conv(x, w + diag(s)) + t: the normalised shortcut of a re-parameterised block."""
    for result, other in ((node.input(0), node.input(1)), (node.input(1), node.input(0))):
        conv, shortcut = _conv(result), _scaled_input(other)
        if conv is None or shortcut is None or shortcut[0] is not conv.input(0):
            continue
        x, scale, shift = shortcut
        w, rank = conv.input(1), x.tensor.rank
        rows, columns, *kernel = w.tensor.shape
        if x.type != node.output.type or result.type != node.output.type or any(s != 1 for s in conv.attrs["strides"]):
            continue
        if not isinstance(rows, int) or not isinstance(columns, int) or rows != x.tensor.shape[1]:
            continue
        steps = zip(conv.attrs["pads"][: rank - 2], conv.attrs["dilations"], kernel, strict=True)
        centres = [(low // d, k - 1 - low // d) for low, d, k in steps if low % d == 0 and 0 <= low // d < k]
        if len(centres) != rank - 2 or channel_extent(scale, x, 1) != rows or channel_extent(shift, x, 1) != rows:
            continue
        diagonal = rewrite.emit("Mul", _identity(rewrite, rows, columns, w), rewrite.emit("Reshape", scale, shape=(rows, 1)))
        tap = rewrite.emit("Reshape", diagonal, shape=(rows, columns, *[1] * (rank - 2)))
        total = rewrite.emit("Add", w, _padded(rewrite, tap, centres))
        bias = _summed(rewrite, _bias(conv), rewrite.emit("Reshape", shift, shape=(rows,)))
        assert other.producer is not None
        rewrite.at(node, (*conv.origin, *other.producer.origin, *node.origin))
        replace(rewrite, node, rewrite.emit("Conv", x, total, bias, name=node.output.name, **conv.attrs))
        return None
    return "the operands are not a convolution and its scaled and shifted input"


PARALLEL_RULES = (merge_parallel_convs, merge_scaled_input)
