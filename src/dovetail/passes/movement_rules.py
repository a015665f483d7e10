"""Algebra of data movement: Transpose, Reshape, Slice, Concat, Pad and Tile that cancel or combine."""

from __future__ import annotations

from typing import Any

from dovetail.core.dims import Dim, compare
from dovetail.ir.graph import Node, Time, Value
from dovetail.ir.rewriter import Rewrite, rule
from dovetail.passes.clean import replace, used_once
from dovetail.passes.constants import guard, scalar


@rule("Transpose")
def simplify_transpose(node: Node, rewrite: Rewrite) -> str | None:
    """The identity vanishes, two Transposes are one, and moving only axes of extent one is a Reshape."""
    x, perm = node.input(0), node.attrs["perm"]
    if perm == tuple(range(len(perm))):
        replace(rewrite, node, x)
        return None
    inner = x.producer
    if inner is not None and inner.op == "Transpose":
        combined = tuple(inner.attrs["perm"][p] for p in perm)
        rewrite.at(node, (*inner.origin, *node.origin))
        replace(rewrite, node, rewrite.emit("Transpose", inner.input(0), name=node.output.name, perm=combined))
        return None
    real = [p for p in perm if x.tensor.shape[p] != 1]
    if real == sorted(real):
        replace(rewrite, node, rewrite.emit("Reshape", x, name=node.output.name, shape=node.output.tensor.shape))
        return None
    return "it moves axes with more than one element"


@rule("Reshape")
def simplify_reshape(node: Node, rewrite: Rewrite) -> str | None:
    """A Reshape to the own shape vanishes; a Reshape of a Reshape starts from the first value."""
    x = node.input(0)
    if x.tensor.shape == node.output.tensor.shape:
        replace(rewrite, node, x)
        return None
    inner = x.producer
    if inner is not None and inner.op == "Transpose" and (source := _swapped_in_batches(node, inner)) is not None:
        after = node.output.tensor.shape
        rank = len(after)
        rewrite.at(node, (*inner.origin, *node.origin))
        if source.tensor.shape[:-2] != after[:-2]:
            source = rewrite.emit("Reshape", source, shape=(*after[:-2], after[-1], after[-2]))
        swap = (*range(rank - 2), rank - 1, rank - 2)
        replace(rewrite, node, rewrite.emit("Transpose", source, name=node.output.name, perm=swap))
        return None
    if inner is None or inner.op != "Reshape":
        return "the operand is no Reshape"
    rewrite.at(node, (*inner.origin, *node.origin))
    replace(rewrite, node, rewrite.emit("Reshape", inner.input(0), name=node.output.name, **node.attrs))
    return None


def _swapped_in_batches(node: Node, transpose: Node) -> Value | None:
    """x where batch axes are merged, the last two axes swapped, and the batch axes split again."""
    merge = transpose.input(0).producer
    if merge is None or merge.op != "Reshape" or transpose.attrs["perm"] != (0, 2, 1):
        return None
    x = merge.input(0)
    before, merged, after = x.tensor.shape, merge.output.tensor.shape, node.output.tensor.shape
    if len(before) < 3 or len(after) < 3 or before[-2:] != merged[1:] or after[-2:] != (before[-1], before[-2]):
        return None
    return x


def _full(node: Node, i: int) -> bool:
    """Whether entry `i` of a Slice keeps its whole axis."""
    axis = node.attrs["axes"][i]
    extent = node.input(0).tensor.shape[axis]
    return bool(node.attrs["starts"][i] == 0 and node.attrs["ends"][i] == extent and node.attrs["steps"][i] == 1)


def _slice_of(value: Value) -> tuple[Value, int, Dim, Dim] | None:
    """(source, axis, start, end) of a value cut from one axis with step 1."""
    node = value.producer
    if node is None or node.op != "Slice" or len(node.attrs["axes"]) != 1 or node.attrs["steps"] != (1,):
        return None
    return node.input(0), node.attrs["axes"][0], node.attrs["starts"][0], node.attrs["ends"][0]


@rule("Slice")
def simplify_slice(node: Node, rewrite: Rewrite) -> str | None:
    """Entries that keep a whole axis go; slices of slices combine; a slice inside one Concat operand reads that operand."""
    keep = [i for i in range(len(node.attrs["axes"])) if not _full(node, i)]
    x = node.input(0)
    if not keep:
        replace(rewrite, node, x)
        return None
    if len(keep) < len(node.attrs["axes"]):
        attrs = {k: tuple(v[i] for i in keep) for k, v in node.attrs.items()}
        replace(rewrite, node, rewrite.emit("Slice", x, name=node.output.name, **attrs))
        return None
    below = x.producer
    if below is not None and below.op == "Slice" and not set(below.attrs["axes"]) & set(node.attrs["axes"]):
        attrs = {k: (*below.attrs[k], *node.attrs[k]) for k in ("starts", "ends", "axes", "steps")}
        order = sorted(range(len(attrs["axes"])), key=attrs["axes"].__getitem__)
        attrs = {k: tuple(v[i] for i in order) for k, v in attrs.items()}
        rewrite.at(node, (*below.origin, *node.origin))
        replace(rewrite, node, rewrite.emit("Slice", below.input(0), name=node.output.name, **attrs))
        return None
    found = _slice_of(node.output)
    if found is None:
        return "it cuts several axes or takes steps"
    _, axis, start, end = found
    inner = x.producer
    if inner is None or (inner.op == "Concat" and inner.attrs["axis"] != axis):
        return "its operand is no Slice or Concat along the axis"
    if inner.op == "Concat":
        return _slice_of_concat(node, inner, start, end, rewrite)
    outer = _slice_of(x)
    if outer is None or outer[1] != axis:
        return "its operand is no Slice or Concat along the axis"
    attrs = {"starts": (outer[2] + start,), "ends": (outer[2] + end,), "axes": (axis,), "steps": (1,)}
    rewrite.at(node, (*inner.origin, *node.origin))
    replace(rewrite, node, rewrite.emit("Slice", outer[0], name=node.output.name, **attrs))
    return None


def _slice_of_concat(node: Node, concat: Node, start: Dim, end: Dim, rewrite: Rewrite) -> str | None:
    axis = concat.attrs["axis"]
    begin: Dim = 0
    for value in concat.operands:
        after = begin + value.tensor.shape[axis]
        if start == begin and end == after:
            replace(rewrite, node, value)
            return None
        if _at_most(begin, start) and _at_most(end, after):
            attrs = {"starts": (start - begin,), "ends": (end - begin,), "axes": (axis,), "steps": (1,)}
            replace(rewrite, node, rewrite.emit("Slice", value, name=node.output.name, **attrs))
            return None
        begin = after
    return "it spans several operands of the Concat"


def _at_most(a: Dim, b: Dim) -> bool:
    return a == b or compare(a, b) == -1


@rule("Concat")
def simplify_concat(node: Node, rewrite: Rewrite) -> str | None:
    """One operand is the result; nested Concats are one; consecutive slices of one value are one slice."""
    axis, operands = node.attrs["axis"], node.operands
    if len(operands) == 1:
        replace(rewrite, node, operands[0])
        return None
    parts: list[Value] = []
    origin = list(node.origin)
    for value in operands:
        inner = value.producer
        if inner is not None and inner.op == "Concat" and inner.attrs["axis"] == axis and used_once(value):
            parts += inner.operands
            origin += inner.origin
        else:
            parts.append(value)
    joined = _join_slices(parts, axis, rewrite)
    if len(joined) == len(operands):
        return "no operand is a Concat or continues the slice before it"
    rewrite.at(node, origin)
    if len(joined) == 1:
        replace(rewrite, node, joined[0])
    else:
        replace(rewrite, node, rewrite.emit("Concat", *joined, name=node.output.name, axis=axis))
    return None


def _join_slices(parts: list[Value], axis: int, rewrite: Rewrite) -> list[Value]:
    """The parts, with each run of slices that continue each other as one slice, or its whole source."""
    result: list[Value] = []
    at = 0
    while at < len(parts):
        first = _slice_of(parts[at])
        stop = at + 1
        if first is not None and first[1] == axis:
            source, _, start, end = first
            while stop < len(parts):
                following = _slice_of(parts[stop])
                if following is None or following[0] is not source or following[1] != axis or following[2] != end:
                    break
                end = following[3]
                stop += 1
            if stop > at + 1:
                whole = start == 0 and end == source.tensor.shape[axis]
                attrs: dict[str, Any] = {"starts": (start,), "ends": (end,), "axes": (axis,), "steps": (1,)}
                result.append(source if whole else rewrite.emit("Slice", source, **attrs))
                at = stop
                continue
        result.append(parts[at])
        at = stop
    return result


@rule("Gather")
def gather_one_position(node: Node, rewrite: Rewrite) -> str | None:
    """Gather of one fixed position is a Slice and a Reshape, which need no copy."""
    x, indices = node.input(0), node.input(1)
    axis = node.attrs.get("axis", 0) % max(x.tensor.rank, 1)
    extent = x.tensor.shape[axis]
    if x.time != Time.RUN:
        return "it is not computed at run time"
    position = scalar(rewrite.module, indices)
    if position is None:
        return "the position is not one fixed number"
    if position < 0:
        if not isinstance(extent, int):
            return "the position counts from a symbolic end"
        position += extent
    if not isinstance(extent, int) or not 0 <= position < extent:
        return "the position may lie outside of a symbolic extent"
    guard(rewrite.module, indices, "position of Gather")
    at: dict[str, Any] = {"starts": (int(position),), "ends": (int(position) + 1,), "axes": (axis,), "steps": (1,)}
    y = rewrite.emit("Slice", x, **at)
    replace(rewrite, node, rewrite.emit("Reshape", y, name=node.output.name, shape=node.output.tensor.shape))
    return None


@rule("Pad", "Tile")
def drop_empty_movement(node: Node, rewrite: Rewrite) -> str | None:
    """A Pad by nothing and a Tile of one copy are their input."""
    if node.op == "Pad" and any(p != 0 for p in node.attrs["pads"]):
        return "it pads"
    if node.op == "Tile" and any(r != 1 for r in node.attrs["repeats"]):
        return "it repeats"
    replace(rewrite, node, node.input(0))
    return None


@rule("Conv")
def absorb_zero_pad(node: Node, rewrite: Rewrite) -> str | None:
    """A Pad with zeros of the spatial axes only is part of the convolution's own pads."""
    pad = node.input(0).producer
    if pad is None or pad.op != "Pad":
        return "its input is no Pad"
    if pad.attrs.get("mode", "constant") != "constant" or pad.attrs.get("value", 0) != 0:
        return "it does not pad with zeros"
    pads, rank = pad.attrs["pads"], node.input(0).tensor.rank
    axes = (0, 1, rank, rank + 1)
    if any(pads[a] != 0 for a in axes):
        return "it pads batch or channels"
    low = tuple(a + b for a, b in zip(node.attrs["pads"][: rank - 2], pads[2:rank], strict=True))
    high = tuple(a + b for a, b in zip(node.attrs["pads"][rank - 2 :], pads[rank + 2 :], strict=True))
    if any(not isinstance(p, int) or p < 0 for p in (*pads,)):
        return "it crops, or pads by a symbolic amount"
    attrs = dict(node.attrs) | {"pads": (*low, *high)}
    rewrite.at(node, (*pad.origin, *node.origin))
    y = rewrite.emit("Conv", pad.input(0), *node.inputs[1:], name=node.output.name, **attrs)
    replace(rewrite, node, y)
    return None


MOVEMENT_RULES = (
    simplify_transpose,
    simplify_reshape,
    simplify_slice,
    simplify_concat,
    drop_empty_movement,
    absorb_zero_pad,
    gather_one_position,
)
