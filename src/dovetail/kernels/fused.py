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


def head_strides(type_: TensorType, heads: int) -> tuple[tuple[Dim, Dim, Dim, Dim], Dim, Dim, Dim]:
    """((batch, head, step, innermost) strides, heads, steps, depth) of an attention operand of rank 4, or packed of rank 3."""
    strides, shape = type_.placement.strides(type_.shape), type_.shape
    if type_.rank == 4:
        return (strides[0], strides[1], strides[2], strides[3]), shape[1], shape[2], shape[3]
    depth = shape[2] // heads
    return (strides[0], depth * strides[2], strides[1], strides[2]), heads, shape[1], depth


def attention_problem(group: Group) -> str | None:
    """None if a group is an Attention alone with one result, else the reason why not."""
    anchor = group.anchor
    if anchor is None or anchor.op != "Attention":
        return "the group is not built around an Attention"
    if any(node is not anchor for node in group.body.nodes):
        return "attention takes no epilogue"
    return "scores are wanted as a result" if len(anchor.outputs) != 1 else None
