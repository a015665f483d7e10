"""Chains of the same kind of movement become one: views, transpositions, casts, slices, concatenations, pads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from dovetail.core.dims import Dim
from dovetail.model.proto_graph import attribute
from dovetail.model.simplify.identities import VIEWS
from dovetail.model.simplify.scope import Scope, describe, set_attribute


def merge_views(scope: Scope) -> list[str]:
    """Reshape, Flatten, Squeeze or Unsqueeze of another of them becomes one Reshape of what that one read."""
    texts = []
    for node in scope.graph.node:
        if not scope.is_op(node, *VIEWS):
            continue
        before = scope.made_by(node.input[0], *VIEWS)
        # A view that others read stays: then nothing is gained unless the second becomes simpler.
        if before is None or not scope.only_use(node.input[0]):
            continue
        target = _own_target(scope, node)
        if target is None:
            target = view_target(scope.shape(before.input[0]), scope.shape(node.output[0]))
        if target is None or (scope.opset < 5 and node.op_type != "Flatten"):
            continue
        name = scope.add_ints(f"{node.output[0]}_shape", target)
        texts.append(f"{describe(node)} after {describe(before)}")
        node.op_type = "Reshape"
        del node.attribute[:]
        node.input[:] = [before.input[0], name]
    return texts


def _own_target(scope: Scope, node: onnx.NodeProto) -> list[int] | None:
    """The target of a Reshape that does not depend on the shape of what it reads."""
    target = scope.ints(node.input[1]) if node.op_type == "Reshape" else None
    return None if target is None or 0 in target else target


def view_target(source: Sequence[Dim] | None, result: Sequence[Dim] | None) -> list[int] | None:
    """A constant target of a Reshape between two shapes; None where no constant can say it."""
    if source is None or result is None:
        return None
    target = []
    for axis, dim in enumerate(result):
        if isinstance(dim, int) and dim != 0:
            target.append(dim)
        elif axis < len(source) and source[axis] == dim:
            target.append(0)
        elif not isinstance(dim, int):
            target.append(-1)
        else:
            return None
    rest = target.count(-1)
    return target if rest == 0 or (rest == 1 and 0 not in target) else None


def merge_transposes(scope: Scope) -> list[str]:
    """A transposition of a transposition is one, or none."""
    texts = []
    for node in scope.graph.node:
        before = scope.made_by(node.input[0], "Transpose") if scope.is_op(node, "Transpose") else None
        if before is None:
            continue
        first, second = attribute(before, "perm"), attribute(node, "perm")
        rank = scope.rank(before.input[0]) if first is None and second is None else len(first or second)
        if rank is None:
            continue
        first, second = (list(reversed(range(rank))) if p is None else list(p) for p in (first, second))
        set_attribute(node, "perm", [first[p] for p in second])
        node.input[0] = before.input[0]
        texts.append(f"{describe(node)} after {describe(before)}")
    return texts


def transposes_of_ones(scope: Scope) -> list[str]:
    """A transposition that only moves axes of size 1, next to a Reshape or the like, is a Reshape (and then part of that one)."""
    readers = {name: node for node in scope.graph.node for name in node.input}
    texts = []
    for node in scope.graph.node:
        if not scope.is_op(node, "Transpose") or scope.opset < 5:
            continue
        shape, result = scope.shape(node.input[0]), scope.shape(node.output[0])
        perm = attribute(node, "perm")
        if shape is None or result is None or perm is None:
            continue
        moved = [p for p in perm if shape[p] != 1]
        beside = scope.only_use(node.output[0]) and scope.is_op(readers.get(node.output[0]), *VIEWS)
        if moved != sorted(moved) or not (beside or scope.made_by(node.input[0], *VIEWS)):
            continue
        target = view_target(shape, result)
        if target is not None:
            node.op_type = "Reshape"
            del node.attribute[:]
            node.input.append(scope.add_ints(f"{node.output[0]}_shape", target))
            texts.append(describe(node))
    return texts


def transposes_of_matrices(scope: Scope) -> list[str]:
    """Reshape to a batch of matrices, their transposition, and Reshape back to the axes before is one transposition."""
    texts = []
    for node in scope.graph.node:
        middle = scope.made_by(node.input[0], "Transpose") if scope.is_op(node, "Reshape") else None
        first = None if middle is None else scope.made_by(middle.input[0], *VIEWS)
        if first is None or middle is None or list(attribute(middle, "perm") or []) != [0, 2, 1] or not scope.only_use(node.input[0]):
            continue
        before, matrices, after = (scope.shape(n) for n in (first.input[0], first.output[0], node.output[0]))
        if before is None or matrices is None or len(before) < 2 or before[-2:] != matrices[-2:]:
            continue
        if after != (*before[:-2], before[-1], before[-2]):
            continue
        rank = len(before)
        texts.append(f"{describe(first)}, {describe(middle)} and {describe(node)}")
        node.op_type = "Transpose"
        node.input[:] = [first.input[0]]
        del node.attribute[:]
        set_attribute(node, "perm", [*range(rank - 2), rank - 1, rank - 2])
    return texts


def merge_casts(scope: Scope) -> list[str]:
    """A cast of a cast that lost nothing is one cast."""
    texts = []
    for node in scope.graph.node:
        before = scope.made_by(node.input[0], "Cast") if scope.is_op(node, "Cast") else None
        if before is None:
            continue
        first, second = scope.dtype(before.input[0]), scope.dtype(before.output[0])
        last = scope.dtype(node.output[0])
        if first is None or second is None or last is None or last.name == "str" or not _lossless(first.numpy, second.numpy):
            continue  # text of a number says which type it was of
        node.input[0] = before.input[0]
        texts.append(f"{describe(node)} after {describe(before)}")
    return texts


def _lossless(first: np.dtype[Any], second: np.dtype[Any]) -> bool:
    plain = all(d.kind in "biuf" for d in (first, second))
    rounds = first.kind in "iu" and second.kind == "f" and first.itemsize >= second.itemsize  # which NumPy calls safe for int64
    return plain and first != second and not rounds and np.can_cast(first, second, "safe")


def merge_slices(scope: Scope) -> list[str]:
    """A slice of a slice along other axes is one slice."""
    texts = []
    for node in scope.graph.node:
        before = scope.made_by(node.input[0], "Slice") if scope.is_op(node, "Slice") else None
        if before is None or not scope.only_use(node.input[0]) or scope.opset < 10:
            continue
        rank = scope.rank(before.input[0])
        first, second = _slice(scope, before, rank), _slice(scope, node, rank)
        if first is None or second is None or {a for *_, a, _ in first} & {a for *_, a, _ in second}:
            continue
        columns = list(zip(*first, *second, strict=True))
        names = ("starts", "ends", "axes", "steps")
        texts.append(f"{describe(node)} after {describe(before)}")
        node.input[:] = [before.input[0], *(scope.add_ints(f"{node.output[0]}_{n}", c) for n, c in zip(names, columns, strict=True))]
    return texts


def _slice(scope: Scope, node: onnx.NodeProto, rank: int | None) -> list[tuple[int, int, int, int]] | None:
    """(start, end, axis, step) for each axis of a Slice with constant bounds."""
    starts, ends = scope.ints(node.input[1]), scope.ints(node.input[2])
    if starts is None or ends is None:
        return None
    axes = scope.ints(node.input[3]) if len(node.input) > 3 and node.input[3] else list(range(len(starts)))
    steps = scope.ints(node.input[4]) if len(node.input) > 4 and node.input[4] else [1] * len(starts)
    if axes is None or steps is None or (rank is None and any(a < 0 for a in axes)):
        return None
    return [(s, e, a if a >= 0 else a + (rank or 0), t) for s, e, a, t in zip(starts, ends, axes, steps, strict=True)]


def merge_concats(scope: Scope) -> list[str]:
    """A concatenation in a concatenation along the same axis is part of it."""
    texts = []
    for node in scope.graph.node:
        if not scope.is_op(node, "Concat"):
            continue
        inputs: list[str] = []
        for name in node.input:
            inner = scope.made_by(name, "Concat")
            if inner is not None and scope.only_use(name) and _same_axis(scope, inner, node):
                inputs += inner.input
                texts.append(f"{describe(inner)} in {describe(node)}")
            else:
                inputs.append(name)
        if len(inputs) != len(node.input):
            node.input[:] = inputs
    return texts


def _same_axis(scope: Scope, a: onnx.NodeProto, b: onnx.NodeProto) -> bool:
    first, second = attribute(a, "axis", 1), attribute(b, "axis", 1)
    if first == second:
        return True
    rank = scope.rank(a.output[0])
    return bool(rank is not None and first % rank == second % rank)


def merge_pads(scope: Scope) -> list[str]:
    """Constant padding of constant padding with the same value is one padding."""
    texts = []
    for node in scope.graph.node:
        before = scope.made_by(node.input[0], "Pad") if scope.is_op(node, "Pad") else None
        if before is None or not scope.only_use(node.input[0]) or scope.opset < 11:
            continue
        inner, outer = constant_pads(scope, before), constant_pads(scope, node)
        if inner is None or outer is None or len(inner[0]) != len(outer[0]) or inner[1] != outer[1]:
            continue
        if min(*inner[0], *outer[0], 0) < 0:  # what one cuts away, the other may have added
            continue
        name = scope.add_ints(f"{node.output[0]}_pads", [a + b for a, b in zip(inner[0], outer[0], strict=True)])
        texts.append(f"{describe(node)} after {describe(before)}")
        node.input[:] = [before.input[0], name, *before.input[2:3]]
    return texts


def constant_pads(scope: Scope, node: onnx.NodeProto) -> tuple[list[int], float] | None:
    """(pads of all axes: lows, then highs; value) of a Pad with known constants; None for anything else."""
    if attribute(node, "mode", b"constant") != b"constant":
        return None
    if scope.opset < 11:
        pads = attribute(node, "pads")
        return None if pads is None else (list(pads), float(attribute(node, "value", 0.0)))
    pads = scope.ints(node.input[1])
    value = 0.0
    if len(node.input) > 2 and node.input[2]:
        given = scope.constant(node.input[2])
        if given is None or given.size != 1:
            return None
        value = float(given.reshape(-1)[0])
    if pads is not None and len(node.input) > 3 and node.input[3]:
        axes, rank = scope.ints(node.input[3]), scope.rank(node.input[0])
        if axes is None or rank is None:
            return None
        full = [0] * (2 * rank)
        for i, axis in enumerate(axes):
            full[axis % rank], full[rank + axis % rank] = pads[i], pads[len(axes) + i]
        pads = full
    return None if pads is None else (pads, value)


MERGES = {
    "merge_views": merge_views,
    "merge_transposes": merge_transposes,
    "transposes_of_matrices": transposes_of_matrices,
    "transposes_of_ones": transposes_of_ones,
    "merge_casts": merge_casts,
    "merge_slices": merge_slices,
    "merge_concats": merge_concats,
    "merge_pads": merge_pads,
}
"""The rewrites of this file by name."""
