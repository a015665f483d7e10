"""Weight-time pointwise groups as loops whose sizes and strides are run-time dims.

The foldings of one model's batch normalisations differ in their sizes only. Axes are merged by their numbers first, then
every extent and stride that is left becomes a symbol: groups of equal structure share one source.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dovetail.codegen.kernel import Kernel
from dovetail.codegen.lower import lower, reason_not_lowerable
from dovetail.codegen.print_c import print_kernel
from dovetail.codegen.tactic import Config, Emitted, Group, Tactic, single, tactic
from dovetail.codegen.target import Target
from dovetail.core.dims import Dim, evaluate, sym
from dovetail.core.dtypes import DType
from dovetail.ir.graph import Graph, Value
from dovetail.ir.layout import strided
from dovetail.ir.types import TensorType
from dovetail.ops.registry import POINTWISE, find


@dataclass(frozen=True)
class _Structure:
    """All that a source depends on.

    Attributes:
        operands: (dtype, per axis 0 or 1 where that is the stride, else None) of the inputs, then of the output.
        nodes: (op, attributes, operands by number: inputs, then nodes; -1 = absent, dtype of the result).
        rank: axes left.
    """

    operands: tuple[tuple[DType, tuple[int | None, ...]], ...]
    nodes: tuple[tuple[str, tuple[tuple[str, Any], ...], tuple[int, ...], DType], ...]
    rank: int


@tactic
class WeightLoop(Tactic):
    """One loop nest over any strides, shared by all groups of the same structure."""

    name = "weight_loop"
    kinds = ("weight_loop",)

    def supports(self, group: Group, target: Target) -> str | None:
        """Pointwise operators that broadcast, over sizes that are known and not empty."""
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

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """The shared source, with this group's sizes as run-time dims."""
        structure, sizes = _structure(group)
        kernel = _kernel(structure)
        elements = math.prod(_ints(group.outputs[0].tensor.shape))
        traffic = sum(v.tensor.dtype.itemsize * math.prod(_ints(v.tensor.shape)) for v in (*group.inputs, *group.outputs))
        dims = tuple(evaluate(d, sizes) for d in kernel.dims)
        return single(replace(kernel, dims=dims, flops=elements * len(structure.nodes), bytes=traffic))


def _ints(values: Sequence[Dim]) -> tuple[int, ...]:
    assert all(isinstance(v, int) for v in values), values
    return tuple(v for v in values if isinstance(v, int))


def _strides(type_: TensorType) -> tuple[Dim, ...]:
    return type_.placement.strides(type_.shape)


def _spread(type_: TensorType, rank: int) -> list[int]:
    """The strides with which a value broadcasts to `rank` axes of the output."""
    own = [0 if n == 1 else s for n, s in zip(type_.shape, _ints(_strides(type_)), strict=True)]
    return [0] * (rank - len(own)) + own


def _structure(group: Group) -> tuple[_Structure, dict[str, int]]:
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
    return _Structure(tuple(zip(dtypes, patterns, strict=True)), tuple(nodes), len(extents)), sizes


@functools.lru_cache(maxsize=256)
def _kernel(structure: _Structure) -> Kernel:
    """The source of a structure; its dims are the symbols in their order."""
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
    return print_kernel(lower(body, types[:-1], types[-1:]), tactic=WeightLoop.name)
