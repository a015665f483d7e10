"""Which rows of a large contraction the oracle computes: both borders and the middle.

Kernels always compute all of their result; a crop only spares the oracle. The rows cover a full
tile, the tail and the padding at either end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dovetail.codegen.tactic import Group
from dovetail.ir.graph import Node
from dovetail.ops.registry import OpKind, find

Array = np.ndarray[Any, Any]

_MIN_FLOPS = 20_000_000
_ROWS = {"Conv": 3, "MatMul": 16}


@dataclass(frozen=True)
class Crop:
    """Rows `start` to `stop` on `axis` (counted from the end) of the result.

    Attributes:
        arrays: the body's inputs for these rows.
        override: attributes of the anchor for these rows.
    """

    axis: int
    start: int
    stop: int
    arrays: list[Array]
    override: Mapping[Node, Mapping[str, Any]]

    def of(self, result: Array) -> Array:
        """The rows of a whole result."""
        index = [slice(None)] * result.ndim
        index[self.axis] = slice(self.start, self.stop)
        return result[tuple(index)]


def crops(group: Group, arrays: Sequence[Array], attrs: Mapping[str, Any], shape: Sequence[int], flops: int) -> list[Crop]:
    """Crops that check a group, or none if the whole must be computed.

    Args:
        arrays: the body's inputs.
        attrs: the anchor's attributes, evaluated.
        shape: of the result.
        flops: of the whole.
    """
    anchor = group.anchor
    if flops < _MIN_FLOPS or anchor is None or anchor.op not in _ROWS or not _only_pointwise(group, anchor):
        return []
    axis = 2 - len(shape) if anchor.op == "Conv" else -2
    rows = _ROWS[anchor.op]
    if len(shape) < -axis or shape[axis] <= 4 * rows or (anchor.op == "Conv" and min(attrs["pads"], default=0) < 0):
        return []
    if anchor.input(0).producer is not None or len(anchor.input(0).uses) != 1 or arrays[anchor.input(0).index].ndim != len(shape):
        return []
    extent = shape[axis]
    middle = (extent - rows) // 2
    return [
        _crop(group, anchor, arrays, attrs, axis, extent, start, start + rows) for start in (0, middle, extent - rows)
    ]  # fmt: skip


def _only_pointwise(group: Group, anchor: Node) -> bool:
    for node in group.body.nodes:
        if node is anchor:
            continue
        spec = find(node.op)
        if spec is None or spec.kind != OpKind.POINTWISE or node.output.tensor.shape != anchor.output.tensor.shape:
            return False
    return True


def _crop(
    group: Group, anchor: Node, arrays: Sequence[Array], attrs: Mapping[str, Any], axis: int, extent: int, start: int, stop: int
) -> Crop:
    cut = list(arrays)
    override: dict[Node, Mapping[str, Any]] = {}
    operands = {v for v in anchor.operands if v.producer is None}
    for value in group.body.inputs:
        array = cut[value.index]
        if value not in operands and array.ndim >= -axis and array.shape[axis] == extent:
            cut[value.index] = _rows(array, axis, start, stop)
    source = anchor.input(0).index
    if anchor.op == "MatMul":
        cut[source] = _rows(cut[source], axis, start, stop)
        return Crop(axis, start, stop, cut, override)
    rank = len(attrs["pads"]) // 2
    pads = list(attrs["pads"])
    kernel = arrays[anchor.input(1).index].shape[2]
    first = start * attrs["strides"][0] - pads[0]
    last = (stop - 1) * attrs["strides"][0] - pads[0] + (kernel - 1) * attrs["dilations"][0] + 1
    size = cut[source].shape[axis]
    cut[source] = _rows(cut[source], axis, max(0, first), min(size, last))
    pads[0], pads[rank] = max(0, -first), max(0, last - size)
    override[anchor] = {"pads": tuple(pads)}
    return Crop(axis, start, stop, cut, override)


def _rows(array: Array, axis: int, start: int, stop: int) -> Array:
    index = [slice(None)] * array.ndim
    index[axis] = slice(start, stop)
    return array[tuple(index)]
