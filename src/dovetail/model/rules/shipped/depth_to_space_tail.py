"""A bias and an activation between two changes of order behind DepthToSpace, as TensorFlow models end a block of sub-pixels.

DepthToSpace, Transpose, Slice, Add, Relu, Transpose: the work in between may be done in DepthToSpace's own order, where one Transpose
remains of two, or none.
"""

from __future__ import annotations

from typing import Any

from dovetail.model.rules.definition import define
from dovetail.model.rules.match import Match, Value
from dovetail.model.rules.shipped.borders import activated, after, transposed


def pattern(
    op: Any, x: Any, c: Any = None, low: Any = None, high: Any = None, starts: Any = None, ends: Any = None, axes: Any = None,
    steps: Any = None,
) -> Any:  # fmt: skip
    """From DepthToSpace to the second Transpose; of Slice, Add and the activation any may be missing."""
    depth = op.DepthToSpace(x).named("depth").shared()
    turned = op.Transpose(depth, perm=op.attribute("perm_in"))
    cut = op.any_of(op.Slice(turned, starts, ends, axes, steps).named("cut"), turned)
    biased = op.any_of(op.Add(cut, c).named("add"), cut)
    return op.Transpose(activated(op, biased, low, high), perm=op.attribute("perm_out"))


def depth_to_space_tail(
    op: Any, c: Any, low: Any, high: Any, starts: Any, ends: Any, axes: Any, steps: Any, perm_in: Any, perm_out: Any, match: Match
) -> Any:
    """The tail of DepthToSpace in its own order of axes."""
    if perm_in is None or perm_out is None:
        return match.decline("a Transpose without perm turns all axes around")
    y = match["depth"]
    if match["cut"] is not None:
        where = match.dims(axes) if axes is not None else tuple(range(len(match.dims(starts) or ())))
        if not where or not all(isinstance(a, int) for a in where):
            return match.decline("the axes of the Slice are not known")
        turned = [perm_in[int(a)] for a in where if isinstance(a, int)]
        y = op.Slice(y, starts, ends, op.constant([*turned], "i64"), steps)
    if c is not None:
        bias = _turned(op, c, perm_in)
        if bias is None:
            return match.decline(f"what is added has the shape {c.shape}, expected a known one of at most four dimensions")
        y = op.Add(y, bias)
    if match["act"] is not None:
        y = op.same(match["act"], y, *([low, high] if match["act"].op == "Clip" else []))
    return transposed(op, y, after(perm_in, perm_out))


def _turned(op: Any, value: Value, perm: list[int]) -> Any:
    """A value that is added behind a Transpose, for adding ahead of it."""
    shape = value.shape
    if shape is None or len(shape) > 4 or not all(isinstance(d, int) for d in shape):
        return None
    if all(d == 1 for d in shape):
        return value
    whole = [1] * (4 - len(shape)) + [int(d) for d in shape if isinstance(d, int)]
    order = [perm.index(axis) for axis in range(4)]
    if sum(d != 1 for d in whole) == 1:  # only where the numbers stand changes
        return op.Reshape(value, op.constant([whole[k] for k in order], "i64"))
    return op.Transpose(op.Reshape(value, op.constant(whole, "i64")), perm=order)


RULE = define([pattern], depth_to_space_tail, "depth-to-space-tail", shipped=True, near=6)
