"""Views: ops that only rename elements of a buffer (Reshape, Transpose, Slice, Expand) as strides, not copies."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.core import dims
from dovetail.core.dims import Dim
from dovetail.ir.graph import Node, Value
from dovetail.ir.layout import Layout, channels_last, row_major, strided
from dovetail.ir.types import TensorType

VIEW_OPS = frozenset({"Reshape", "Transpose", "Slice", "Expand"})


def is_view(node: Node) -> bool:
    """Whether a node may be computed by renaming elements."""
    return node.op in VIEW_OPS


def same_strides(shape: Sequence[Dim], a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """Whether two stride vectors address a shape alike (axes of one element do not count)."""
    return all(d == 1 or x == y for d, x, y in zip(shape, a, b, strict=True))


def has_layout(type: TensorType, layout: Layout) -> bool:
    """Whether a type's elements lie at the strides of `layout` (from whatever offset)."""
    return same_strides(type.shape, type.placement.strides(type.shape), layout.strides(type.shape))


def is_row_major(type: TensorType) -> bool:
    """Whether the elements are dense in logical order."""
    return has_layout(type, row_major(type.rank))


def is_channels_last(type: TensorType) -> bool:
    """Whether [N, C, spatial…] lies as N, spatial…, C with rows of C elements at any fixed pitch."""
    if type.rank < 2:
        return is_row_major(type)
    if has_layout(type, channels_last(type.rank)):
        return True
    strides = type.placement.strides(type.shape)
    if type.shape[1] != 1 and strides[1] != 1:
        return False
    # The innermost axis of more than one element fixes the pitch; outer ones must follow densely from it.
    pitch: Dim | None = None
    for axis in (*range(type.rank - 1, 1, -1), 0):
        if type.shape[axis] == 1:
            continue
        if pitch is None:
            if dims.compare(strides[axis], type.shape[1]) not in (0, 1):
                return False
        elif strides[axis] != pitch:
            return False
        pitch = strides[axis] * type.shape[axis]
    return True


def has_dense_rows(type: TensorType) -> bool:
    """Whether neighbours on the last axis are neighbours in memory."""
    return type.rank == 0 or type.shape[-1] == 1 or type.placement.strides(type.shape)[-1] == 1


def view_layout(node: Node, source: TensorType) -> Layout | None:
    """The layout of a view node's output over its input's buffer, or None if it needs a copy."""
    strides = source.placement.strides(source.shape)
    base = source.placement.base(source.shape)
    if node.op == "Transpose":
        perm = node.attrs["perm"]
        return strided(tuple(strides[a] for a in perm), base)
    if node.op == "Expand":
        shape = node.output.tensor.shape
        lead = len(shape) - source.rank
        expanded: list[Dim] = [0] * lead
        for axis, d in enumerate(source.shape):
            expanded.append(strides[axis] if d == shape[lead + axis] else 0)
        return strided(tuple(expanded), base)
    if node.op == "Slice":
        return _slice(node, strides, base)
    target = node.output.tensor.shape
    result = reshape_strides(source.shape, strides, target)
    if result is None and is_row_major(source):
        # Sizes that only the run can compare (symbols bound to data): dense stays dense under any shape.
        result = row_major(len(target)).strides(target)
    return None if result is None else strided(result, base)


def _slice(node: Node, strides: tuple[Dim, ...], base: Dim) -> Layout:
    new = list(strides)
    for axis, start, step in zip(node.attrs["axes"], node.attrs["starts"], node.attrs["steps"], strict=True):
        base = base + strides[axis] * start
        new[axis] = strides[axis] * step
    return strided(tuple(new), base)


def reshape_strides(shape: Sequence[Dim], strides: Sequence[Dim], target: Sequence[Dim]) -> tuple[Dim, ...] | None:
    """Strides of the reshaped view, or None where elements would have to move.

    Old and new axes are matched in runs of equal products; the old axes of a run must be dense among themselves.
    """
    old = [(d, s) for d, s in zip(shape, strides, strict=True) if d != 1]
    result: list[Dim] = [1] * len(target)
    i = j = 0
    while True:
        while j < len(target) and target[j] == 1:
            j += 1
        if j == len(target) or i == len(old):
            return tuple(result) if j == len(target) and i == len(old) else None
        have, want = old[i][0], target[j]
        run, new = [i], [j]
        while have != want:
            if _advance_new(want, have) and new[-1] + 1 < len(target):
                new.append(new[-1] + 1)
                want = want * target[new[-1]]
            elif run[-1] + 1 < len(old):
                run.append(run[-1] + 1)
                have = have * old[run[-1]][0]
            elif new[-1] + 1 < len(target):
                new.append(new[-1] + 1)
                want = want * target[new[-1]]
            else:
                return None
        for k in run[:-1]:
            if old[k][1] != old[k + 1][0] * old[k + 1][1]:
                return None
        step = old[run[-1]][1]
        for k in reversed(new):
            result[k] = step
            step = step * target[k]
        i, j = run[-1] + 1, new[-1] + 1


def _advance_new(want: Dim, have: Dim) -> bool:
    order = dims.compare(want, have)
    if order is not None:
        return order < 0
    return dims.remainder(have, want) == 0


def is_whole(value: Value, root: Value) -> bool:
    """Whether a value shows all elements of the value whose buffer it lies in, in their order, as a Reshape does."""
    return (
        isinstance(value.type, TensorType)
        and isinstance(root.type, TensorType)
        and is_row_major(value.type)
        and is_row_major(root.type)
        and value.type.dtype == root.type.dtype
        and value.type.size == root.type.size
        and value.type.placement.base(value.type.shape) == 0
    )
