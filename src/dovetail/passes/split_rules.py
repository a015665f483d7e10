"""Reshapes that only split axes move up, to where the axes were merged or where a producer can write in the order that is wanted."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.core.dims import Dim, product
from dovetail.ir.graph import Node, Time
from dovetail.ir.rewriter import Rewrite, rule
from dovetail.passes.clean import replace, used_once


def split_runs(shape: Sequence[Dim], target: Sequence[Dim]) -> list[list[int]] | None:
    """For each axis of `shape`, the axes of `target` that it is split into; None if the reshape does anything but split.

    Axes of one element may vanish (an empty list) or appear.
    """
    runs: list[list[int]] = []
    at = 0
    for extent in shape:
        run: list[int] = []
        while at < len(target) and (not run or product(target[n] for n in run) != extent):
            if not run and extent == 1 and target[at] != 1:
                break
            run.append(at)
            at += 1
        if product(target[n] for n in run) != extent:
            return None
        runs.append(run)
    rest = range(at, len(target))
    if any(target[n] != 1 for n in rest) or (rest and not runs):
        return None
    if rest:
        runs[-1] += rest
    return runs


@rule("Reshape")
def split_before_transpose(node: Node, rewrite: Rewrite) -> str | None:
    """Axes transposed and then split are split first where something else moves them ahead or behind.

    Merging axes that lie apart ahead of the Transpose would copy, splitting does not; two Transposes that meet are one.
    """
    transpose = node.input(0).producer
    if transpose is None or transpose.op != "Transpose" or not used_once(node.input(0)):
        return "the operand is no Transpose with this one reader"
    x, perm = transpose.input(0), transpose.attrs["perm"]
    readers = node.output.consumers
    if (x.producer is None or x.producer.op != "Reshape") and [r.op for r in readers] != ["Transpose"]:
        return "no Reshape is before the Transpose, nor another Transpose behind"
    shape = node.output.tensor.shape
    runs = split_runs(transpose.output.tensor.shape, shape)
    if runs is None:
        return "it does not only split axes"
    # Axes of the result in the order in which the axes of x hold them.
    order = [axis for a in range(len(perm)) for axis in runs[perm.index(a)]]
    rewrite.at(node, (*transpose.origin, *node.origin))
    y = rewrite.emit("Reshape", x, shape=tuple(shape[axis] for axis in order))
    new = tuple(order.index(axis) for axis in range(len(shape)))
    replace(rewrite, node, rewrite.emit("Transpose", y, name=node.output.name, perm=new))
    return None


@rule("Reshape")
def split_before_norm(node: Node, rewrite: Rewrite) -> str | None:
    """A norm over the last axis whose leading axes are split and transposed (windows) runs on the split axes.

    Its kernel then writes in the transposed order, which no strides over the merged axes can say.
    """
    norm = node.input(0).producer
    if norm is None or norm.op not in ("LayerNormalization", "RMSNormalization") or not used_once(node.input(0)):
        return "the operand is no norm with this one reader"
    x, shape = norm.input(0), node.output.tensor.shape
    rank = x.tensor.rank
    if len(norm.outputs) != 1 or x.time != Time.RUN or norm.attrs.get("axis", -1) % rank != rank - 1:
        return "the norm is not over the last axis alone"
    if [r.op for r in node.output.consumers] != ["Transpose"]:
        return "no Transpose follows"
    runs = split_runs(x.tensor.shape, shape)
    if runs is None or runs[-1] != [len(shape) - 1]:
        return "it does not only split leading axes"
    y = rewrite.emit("Reshape", x, shape=shape)
    rewrite.origin = norm.origin
    attrs = dict(norm.attrs) | {"axis": len(shape) - 1}
    replace(rewrite, node, rewrite.emit(norm.op, y, *norm.inputs[1:], name=node.output.name, **attrs))
    return None


@rule("Add")
def merge_after_add(node: Node, rewrite: Rewrite) -> str | None:
    """Axes that a Transpose moved are merged after a residual has been added, which reads them where they lie."""
    if node.output.time != Time.RUN:
        return "it is known before the run"
    for position in (0, 1):
        value, other = node.input(position), node.input(1 - position)
        merge = value.producer
        if merge is None or merge.op != "Reshape" or not used_once(value) or other.time != Time.RUN:
            continue
        moved = merge.input(0)
        if moved.producer is None or moved.producer.op != "Transpose" or not used_once(moved):
            continue
        shape = moved.tensor.shape
        if other.type != node.output.type or value.type != node.output.type or split_runs(value.tensor.shape, shape) is None:
            continue
        rewrite.origin = merge.origin
        parts = [rewrite.emit("Reshape", other, shape=shape), moved]
        rewrite.origin = node.origin
        total = rewrite.emit("Add", *(parts if position else parts[::-1]))
        rewrite.origin = merge.origin
        replace(rewrite, node, rewrite.emit("Reshape", total, name=node.output.name, shape=value.tensor.shape))
        return None
    return "no operand is a residual beside axes that a Transpose moved and a Reshape merges"


SPLIT_RULES = (split_before_transpose, split_before_norm, merge_after_add)
