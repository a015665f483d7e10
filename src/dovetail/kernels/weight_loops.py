"""Weight-time pointwise groups as loops whose sizes and strides are run-time dims, for the tactics of all targets.

The foldings of one model's batch normalisations differ in their sizes only. Axes are merged by their numbers first, then
every extent and stride that is left becomes a symbol: groups of equal structure share one source.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dovetail.codegen.loop_ir import LoopKernel
from dovetail.codegen.lower import lower, reason_not_lowerable
from dovetail.codegen.tactic import Group
from dovetail.core.dims import Dim, sym
from dovetail.core.dtypes import DType
from dovetail.ir.graph import Graph, Value
from dovetail.ir.layout import strided
from dovetail.ir.types import TensorType
from dovetail.ops.registry import POINTWISE, find


@dataclass(frozen=True)
class Structure:
    """All that a source depends on.

    Attributes:
        operands: (dtype, per axis 0 or 1 where that is the stride, else None) of the inputs, then of the output.
        nodes: (op, attributes, operands by number: inputs, then nodes; -1 = absent, dtype of the result).
        rank: axes left.
    """

    operands: tuple[tuple[DType, tuple[int | None, ...]], ...]
    nodes: tuple[tuple[str, tuple[tuple[str, Any], ...], tuple[int, ...], DType], ...]
    rank: int


def reason_against(group: Group) -> str | None:
    """None for pointwise operators that broadcast, over sizes that are known and not empty; else what is in the way."""
    for value in (*group.inputs, *group.outputs):
        extents, strides = value.tensor.shape, _strides(value.tensor)
        if any(not isinstance(d, int) for d in (*extents, *strides)) or 0 in extents:
            return "its sizes are empty or not known"
    for node in group.body.nodes:
        spec = find(node.op)
        if spec is None or spec.kind != POINTWISE or "axis" in node.attrs:
            return f"{node.op} is no broadcasting pointwise operator"
        reason = reason_not_lowerable(node)
        if reason is not None:
            return reason
    return None


def amount(group: Group) -> tuple[int, int]:
    """(arithmetic operations, bytes of memory traffic) of a group."""
    elements = math.prod(_ints(group.outputs[0].tensor.shape))
    traffic = sum(v.tensor.dtype.itemsize * math.prod(_ints(v.tensor.shape)) for v in (*group.inputs, *group.outputs))
    return elements * len(list(group.body.nodes)), traffic


def _ints(values: Sequence[Dim]) -> tuple[int, ...]:
    assert all(isinstance(v, int) for v in values), values
    return tuple(v for v in values if isinstance(v, int))


def _strides(type_: TensorType) -> tuple[Dim, ...]:
    return type_.placement.strides(type_.shape)


def _spread(type_: TensorType, rank: int) -> list[int]:
    """The strides with which a value broadcasts to `rank` axes of the output."""
    own = [0 if n == 1 else s for n, s in zip(type_.shape, _ints(_strides(type_)), strict=True)]
    return [0] * (rank - len(own)) + own


def structure_of(group: Group) -> tuple[Structure, dict[str, int]]:
    """What the group's source depends on, and the values of the source's symbols."""
    out = group.outputs[0].tensor
    extents = list(_ints(out.shape))
    operands = [_spread(v.tensor, out.rank) for v in (*group.inputs, *group.outputs)]
    axis = 0
    while axis < len(extents):
        inner = axis + 1
        if extents[axis] == 1 and len(extents) > 1:
            drop = axis
        elif inner < len(extents) and all(s[axis] == s[inner] * extents[inner] for s in operands):
            extents[inner] *= extents[axis]
            drop = axis
        else:
            axis += 1
            continue
        del extents[drop]
        for strides in operands:
            del strides[drop]
        axis = max(0, axis - 1)
    sizes = {f"n{a}": n for a, n in enumerate(extents)}
    patterns = []
    for number, strides in enumerate(operands):
        patterns.append(tuple(s if s in (0, 1) else None for s in strides))
        sizes |= {f"s{number}_{a}": s for a, s in enumerate(strides) if s not in (0, 1)}
    numbers: dict[Value, int] = {v: i for i, v in enumerate(group.body.inputs)}
    nodes = []
    for node in group.body.nodes:
        reads = tuple(-1 if v is None else numbers[v] for v in node.inputs)
        nodes.append((node.op, tuple(sorted(node.attrs.items())), reads, node.output.tensor.dtype))
        numbers[node.output] = len(numbers)
    dtypes = [v.tensor.dtype for v in (*group.inputs, *group.outputs)]
    return Structure(tuple(zip(dtypes, patterns, strict=True)), tuple(nodes), len(extents)), sizes


def loops_of(structure: Structure) -> LoopKernel:
    """The loops of a structure, over symbols in the place of sizes and strides."""
    shape: tuple[Dim, ...] = tuple(sym(f"n{a}") for a in range(structure.rank))
    types = []
    for number, (kind, pattern) in enumerate(structure.operands):
        strides = tuple(sym(f"s{number}_{a}") if s is None else s for a, s in enumerate(pattern))
        types.append(TensorType(kind, shape, strided(strides, 0)))
    body = Graph("body")
    values = [body.add_input(f"x{number}", type_) for number, type_ in enumerate(types[:-1])]
    for op, attrs, reads, kind in structure.nodes:
        inputs = [None if i < 0 else values[i] for i in reads]
        values.append(body.add(op, inputs, dict(attrs), types=[TensorType(kind, shape)]).output)
    body.set_outputs([values[-1]])
    return lower(body, types[:-1], types[-1:])
