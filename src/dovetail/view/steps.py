"""The steps of a run in the model's terms: which nodes each computes, on which values, with which tactic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from dovetail.benchmark.flops import contraction_flops
from dovetail.core import dims
from dovetail.core.dims import Dim
from dovetail.core.dtypes import DType, dtype
from dovetail.engine.plan import ControlSegment, NativeSegment, Plan, Program
from dovetail.ir.graph import Node, Time, Value
from dovetail.ir.parser import parse_module
from dovetail.ir.types import TensorType
from dovetail.ops import POINTWISE, REDUCTION, ROW, WINDOW, spec


@dataclass(frozen=True)
class TensorInfo:
    """A value that steps pass on: named and shaped as in the model, with the element type that the engine keeps it in."""

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
        contractions: operations of those of its nodes that multiply and add, two per pair.
        elementwise: elements that its other nodes compute, each once.
    """

    origin: tuple[str, ...]
    ops: tuple[str, ...]
    kind: str
    tactic: str
    kernel: str
    lane: int = 0
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    contractions: Dim = 0
    elementwise: Dim = 0


class ModelNodes:
    """The nodes of a model's IR by the names that the model gives them.

    Args:
        graph: the model as IR text.
    """

    def __init__(self, graph: str) -> None:
        self._found: dict[str, list[Node]] = {}
        for node in parse_module(graph).main.nodes:
            for name in node.origin:
                self._found.setdefault(name, []).append(node)

    def of(self, origin: tuple[str, ...]) -> list[Node]:
        """The nodes that come from these of the model alone."""
        names = set(origin)
        return list(dict.fromkeys(node for name in origin for node in self._found.get(name, ()) if names.issuperset(node.origin)))

    def step(self, origin: tuple[str, ...], kind: str, tactic: str, kernel: str, lane: int = 0) -> StepInfo:
        """A step that computes these nodes."""
        mine = self.of(origin)
        made = {value for node in mine for value in node.outputs}
        read = (v for node in mine for v in node.inputs if v is not None and v not in made and v.time is not Time.WEIGHT)
        given = (v for v in made if v.is_output or any(node not in mine for node in v.consumers))
        work = [n for n in mine if n.outputs and n.outputs[0].time is Time.RUN]
        return StepInfo(
            origin, tuple(n.op for n in mine), kind, tactic, kernel, lane, _infos(read), _infos(given),
            dims.total([contraction_flops(n) for n in work]), dims.total([_elements(n) for n in work]),
        )  # fmt: skip

    def steps(self, program: Program) -> list[StepInfo]:
        """The steps of a program in order; a loop or a branch is one step."""
        kinds = {tap.name: dtype(tap.tensor.dtype) for tap in program.taps}
        found: list[StepInfo] = []
        for segment in program.segments:
            if isinstance(segment, NativeSegment):
                found += [self.step(s.origin, "kernel", s.tactic, s.kernel, s.lane) for s in segment.steps]
            elif isinstance(segment, ControlSegment):
                found.append(self.step(segment.origin, "control", "host", segment.kind))
            else:
                found.append(self.step(segment.origin, "host", "host", segment.op))
        return [replace(s, inputs=_stored(s.inputs, kinds), outputs=_stored(s.outputs, kinds)) for s in found]


def steps(plan: Plan, graph: str) -> list[StepInfo]:
    """The steps of a run in order; a loop or a branch is one step.

    Args:
        graph: the model as IR text, of which the plan was made.
    """
    return ModelNodes(graph).steps(plan.main)


def _elements(node: Node) -> Dim:
    """Elements that a node computes, which is what its arithmetic is counted by; 0 for contractions and for what only moves data."""
    if contraction_flops(node) != 0 or not isinstance(node.outputs[0].type, TensorType):
        return 0
    kind = spec(node.op).kind
    if kind == POINTWISE:
        return node.outputs[0].tensor.size
    if kind in (REDUCTION, ROW, WINDOW) and node.inputs and node.inputs[0] is not None and isinstance(node.inputs[0].type, TensorType):
        return node.inputs[0].tensor.size
    return 0


def _stored(infos: tuple[TensorInfo, ...], kinds: Mapping[str, DType]) -> tuple[TensorInfo, ...]:
    return tuple(replace(info, dtype=kinds.get(info.name, info.dtype)) for info in infos)


def _infos(values: Iterable[Value]) -> tuple[TensorInfo, ...]:
    tensors = [v for v in dict.fromkeys(values) if isinstance(v.type, TensorType)]
    return tuple(TensorInfo(v.name, v.tensor.dtype, v.tensor.shape) for v in tensors)
