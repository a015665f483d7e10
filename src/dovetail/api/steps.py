"""The steps of a run in the model's terms: which nodes each computes, on which values, with which tactic."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dovetail.core.dims import Dim
from dovetail.core.dtypes import DType
from dovetail.engine.plan import ControlSegment, NativeSegment, Plan
from dovetail.ir.graph import Node, Time, Value
from dovetail.ir.parser import parse_module
from dovetail.ir.types import TensorType


@dataclass(frozen=True)
class TensorInfo:
    """A value that steps pass on, as the model has it."""

    name: str
    dtype: DType
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class StepInfo:
    """One step of a run.

    Attributes:
        origin: names of the model's nodes that it computes, wholly or in part; () for what the compiler added.
        ops: their IR ops, in order.
        kind: "kernel", "host" (on the reference) or "control".
        tactic: how it is computed.
        kernel: entry of the kernel, or the op of a step on the host.
        lane: which chain of kernels it is in.
        inputs, outputs: values that those nodes read and give to others; weights are left out.
    """

    origin: tuple[str, ...]
    ops: tuple[str, ...]
    kind: str
    tactic: str
    kernel: str
    lane: int = 0
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()


def steps(plan: Plan, graph: str) -> list[StepInfo]:
    """The steps of a run in order; a loop or a branch is one step.

    Args:
        graph: the model as IR text, of which the plan was made.
    """
    nodes: dict[str, list[Node]] = {}
    for node in parse_module(graph).main.nodes:
        for name in node.origin:
            nodes.setdefault(name, []).append(node)
    found: list[StepInfo] = []
    for segment in plan.main.segments:
        if isinstance(segment, NativeSegment):
            found += [_step(nodes, s.origin, "kernel", s.tactic, s.kernel, s.lane) for s in segment.steps]
        elif isinstance(segment, ControlSegment):
            found.append(_step(nodes, segment.origin, "control", "host", segment.kind))
        else:
            found.append(_step(nodes, segment.origin, "host", "host", segment.op))
    return found


def _step(nodes: dict[str, list[Node]], origin: tuple[str, ...], kind: str, tactic: str, kernel: str, lane: int = 0) -> StepInfo:
    names = set(origin)
    mine = list(dict.fromkeys(node for name in origin for node in nodes.get(name, ()) if names.issuperset(node.origin)))
    made = {value for node in mine for value in node.outputs}
    read = (v for node in mine for v in node.inputs if v is not None and v not in made and v.time is not Time.WEIGHT)
    given = (v for v in made if v.is_output or any(node not in mine for node in v.consumers))
    return StepInfo(origin, tuple(n.op for n in mine), kind, tactic, kernel, lane, _infos(read), _infos(given))


def _infos(values: Iterable[Value]) -> tuple[TensorInfo, ...]:
    tensors = [v for v in dict.fromkeys(values) if isinstance(v.type, TensorType)]
    return tuple(TensorInfo(v.name, v.tensor.dtype, v.tensor.shape) for v in tensors)
