"""What every template asks of the group that it computes: attributes, epilogue operands and where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dovetail.codegen.lower.epilogue import side_inputs
from dovetail.codegen.tactic import Group
from dovetail.core.dims import Dim
from dovetail.ir.graph import Node, Time, Value
from dovetail.ir.types import TensorType
from dovetail.ops.registry import spec


@dataclass(frozen=True)
class Side:
    """An epilogue operand: body value, kernel input position, strides along the axes of the output (0 = broadcast)."""

    value: Value
    position: int
    strides: tuple[Dim, ...]


def attributes(node: Node) -> dict[str, Any]:
    """A node's attributes with the defaults of its op filled in."""
    declared = spec(node.op)
    return declared.complete({k: v for k, v in node.attrs.items() if k in declared.attributes})


def broadcast_strides(type_: TensorType, rank: int) -> tuple[Dim, ...]:
    """Element strides of an operand along the `rank` axes of a result it is broadcast to."""
    strides = type_.placement.strides(type_.shape)
    own = tuple(0 if d == 1 else s for d, s in zip(type_.shape, strides, strict=True))
    return (0,) * (rank - len(own)) + own


def sides(group: Group) -> list[Side]:
    """The epilogue's operands, in the order of its body."""
    assert group.anchor is not None
    rank = group.anchor.output.tensor.rank
    found = []
    for value in side_inputs(group.body, group.anchor):
        outer = group.inputs[value.index]
        found.append(Side(value, value.index, broadcast_strides(outer.tensor, rank)))
    return found


def is_run_time(group: Group, value: Value) -> bool:
    """Whether a body input is computed in every run (others always lie row-major)."""
    return group.inputs[value.index].time == Time.RUN


def in_place(group: Group, found: Sequence[Side]) -> tuple[tuple[int, int], ...]:
    """(output, input) pairs that may share memory: operands read only where the result is written."""
    assert group.anchor is not None
    read = set(group.anchor.operands)
    shape = group.outputs[0].tensor.shape
    pairs = [(0, s.position) for s in found if s.value not in read and s.value.tensor.shape == shape]
    return tuple(pairs) if len(group.outputs) == 1 else ()
