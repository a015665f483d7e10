"""A bias and an activation between two changes of order behind DepthToSpace, as TensorFlow models end a block of sub-pixels.

DepthToSpace, Transpose, Slice, Add, Relu, Transpose. Behind a convolution, bias and activation go ahead of DepthToSpace, into that
convolution. Of the Transposes one remains or none, unless convolutions read the result, which want it channels-last anyway: measured
on CPUs, going there by way of DepthToSpace's own order costs more than it saves.
"""

from __future__ import annotations

from typing import Any

from dovetail.model.rules.definition import define
from dovetail.model.rules.match import Match, Value
from dovetail.model.rules.shipped.borders import activated, after, transposed

_PRODUCTS = frozenset({"Conv", "ConvTranspose"})


def pattern(
    op: Any, x: Any, c: Any = None, low: Any = None, high: Any = None, starts: Any = None, ends: Any = None, axes: Any = None,
    steps: Any = None,
) -> Any:  # fmt: skip
    """From DepthToSpace to the second Transpose; Slice may be missing, and Add or the activation."""
    depth = op.DepthToSpace(x).named("depth")
    turned = op.Transpose(depth, perm=op.attribute("perm_in"))
    cut = op.any_of(op.Slice(turned, starts, ends, axes, steps).named("cut"), turned)
    added = op.Add(cut, c).named("add")
    treated = op.any_of(activated(op, op.any_of(added, cut), low, high, always=True), added)
    return op.Transpose(treated, perm=op.attribute("perm_out"))


def depth_to_space_tail(
    op: Any, x: Any, c: Any, low: Any, high: Any, starts: Any, ends: Any, axes: Any, steps: Any, perm_in: Any, perm_out: Any,
    match: Match,
) -> Any:  # fmt: skip
    """The tail of DepthToSpace, with bias and activation in the convolution ahead of it."""
    if perm_in is None or perm_out is None:
        return match.decline("a Transpose without perm turns all axes around")
    ahead = x.op in _PRODUCTS and match.readers(x) == ("DepthToSpace",)
    bias = c if c is None else _ahead(op, c, perm_in, match) if ahead else _turned(op, c, perm_in)
    if c is not None and bias is None:
        wanted = "one number per channel" if ahead else "a known one of at most four dimensions"
        return match.decline(f"what is added is {c.type}, expected {wanted}")

    def treat(value: Value) -> Any:
        value = value if bias is None else op.Add(value, bias)
        return value if match["act"] is None else op.same(match["act"], value, *([low, high] if match["act"].op == "Clip" else []))

    last = match.readers(match.outputs[0])
    if last and set(last) <= _PRODUCTS:
        if not ahead:
            return match.decline("convolutions read the result, and none makes what DepthToSpace reads: nothing gained")
        y = op.Transpose(op.same(match["depth"], treat(x)), perm=perm_in)
        y = y if match["cut"] is None else op.same(match["cut"], y, starts, ends, axes, steps)
        return op.Transpose(y, perm=perm_out)
    y = op.same(match["depth"], treat(x)) if ahead else match["depth"]
    if match["cut"] is not None:
        where = match.dims(axes) if axes is not None else tuple(range(len(match.dims(starts) or ())))
        if not where or not all(isinstance(a, int) for a in where):
            return match.decline("the axes of the Slice are not known")
        y = op.Slice(y, starts, ends, op.constant([perm_in[int(a)] for a in where if isinstance(a, int)], "i64"), steps)
    return transposed(op, y if ahead else treat(y), after(perm_in, perm_out))


def _ahead(op: Any, value: Value, perm: list[int], match: Match) -> Any:
    """What is added per channel behind the Transpose, for adding ahead of DepthToSpace; None where it differs among pixels."""
    shape = value.shape
    if shape is None or len(shape) > 4 or not all(isinstance(d, int) for d in shape):
        return None
    whole = [1] * (4 - len(shape)) + [int(d) for d in shape if isinstance(d, int)]
    order = [whole[perm.index(axis)] for axis in range(4)]
    if all(d == 1 for d in order):
        return value
    if order[2:] != [1, 1] or (order[0] != 1 and order[1] != 1):
        return None
    if order[1] == 1:
        return op.Reshape(value, op.constant(order, "i64"))
    block = match["depth"].attribute("blocksize")
    # Channels of a block: all channels of its first place, then of the next one (DCR), or all places of the first channel (CRD).
    dcr = match["depth"].attribute("mode", "DCR") == "DCR"
    row = op.Reshape(value, op.constant([1, -1] if dcr else [-1, 1], "i64"))
    tiled = op.Tile(row, op.constant([block * block, 1] if dcr else [1, block * block], "i64"))
    return op.Reshape(tiled, op.constant([-1, 1, 1], "i64"))


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
