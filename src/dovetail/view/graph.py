"""The fused graph of an engine: its steps, the values that they pass on, and what each step computes and moves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from dovetail.core import dims
from dovetail.core.dims import Dim, evaluate, run_program, symbols
from dovetail.core.dtypes import dtype
from dovetail.core.errors import ShapeError
from dovetail.engine import memory
from dovetail.engine.plan import (
    Buffer,
    HostSegment,
    KernelRef,
    NativeSegment,
    Plan,
    Postfix,
    Program,
    Step,
    TensorRef,
)
from dovetail.view.steps import ModelNodes, StepInfo

Sizes = Mapping[str, int]
_CONSTANT = ("weight", "packed", "shape")
_SCRATCH = ("workspace", "counters")
_UNNAMED = "~"  # in names of values that the model has none for


@dataclass(frozen=True)
class Val:
    """A value that a step or the caller gives and steps read.

    Attributes:
        name: the model's, where it has one; else the compiler's.
        shape: None where only a run can tell.
        bytes: 0 where only a run can tell.
        producer: the step that makes it; -1 for an input of the model.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    bytes: int
    producer: int


@dataclass
class GraphStep:
    """One step: what it is, what it reads and writes (places in `FusedGraph.values`), and its work.

    Attributes:
        parent: the control step whose body it is in; -1 for a step of the main program.
        group: its place in the build report's groups; -1 for none.
        dims: extents that the kernel is called with.
        dtype: element type that it computes in; `constant_type` that of most of its constants.
        continued: whether the step behind it computes the same nodes to their end.
        flops: operations of contractions and one per element of other arithmetic; a kernel of several steps counts them at its last.
        read, written, weights: bytes, as far as sizes are known; `weights` is of constants that it reads.
    """

    info: StepInfo
    parent: int
    segment: int
    waits: tuple[int, ...] = ()
    group: int = -1
    dims: tuple[int, ...] = ()
    reads: list[int] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    dtype: str = "f32"
    flops: int = 0
    contraction: bool = False
    continued: bool = False
    constant_type: str = ""
    read: int = 0
    written: int = 0
    weights: int = 0
    depth: int = 0


@dataclass
class FusedGraph:
    """Steps in program order, values, and which values the model gives back."""

    steps: list[GraphStep] = field(default_factory=list)
    values: list[Val] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def edges(self) -> Iterator[tuple[int, int, int]]:
        """(producer, reader, value) of every read; -1 is the caller."""
        for number, step in enumerate(self.steps):
            for value in step.reads:
                yield self.values[value].producer, number, value


def fused_graph(plan: Plan, graph: str, sizes: Sizes) -> FusedGraph:
    """The fused graph of a plan.

    Args:
        graph: the model as IR text, of which the plan was made.
        sizes: symbol values that work and shapes are given for.
    """
    walk = _Walk(plan, ModelNodes(graph), sizes)
    walk.program(plan.main, -1, 0)
    _forget_scratch(walk.found)
    _count_once(walk.found.steps)
    for step in walk.found.steps:
        walk.work(step)
    return walk.found


class _Walk:
    """Goes through a program and the bodies of its control steps, and follows values through buffers."""

    def __init__(self, plan: Plan, nodes: ModelNodes, sizes: Sizes) -> None:
        self.found = FusedGraph()
        self._kernels = {k.entry: k for k in plan.kernels}
        self._nodes = nodes
        self._sizes = sizes
        stored = plan.meta.get("report")
        report: Any = stored if isinstance(stored, dict) else {}
        self._tf32 = report.get("actual", {}).get("precision") == "tf32"
        self._groups: dict[tuple[tuple[str, ...], str], list[int]] = {}
        for number, group in enumerate(report.get("groups", ())):
            self._groups.setdefault((tuple(group["origin"]), group["tactic"]), []).append(number)
        self._last: tuple[Any, int] = (None, -1)

    def program(self, program: Program, parent: int, depth: int) -> None:
        """Add the steps of a program."""
        flow = _Flow(program, self.found, self._sizes, caller=parent)
        for port in program.inputs:
            value = flow.enter(port.name, port.tensor)
            if parent < 0:
                self.found.inputs.append(value)
        for number, segment in enumerate(program.segments):
            if isinstance(segment, NativeSegment):
                first = len(self.found.steps)
                for place, step in enumerate(segment.steps):
                    info = self._nodes.step(step.origin, "kernel", step.tactic, step.kernel, step.lane)
                    waits = tuple(first + w for w in step.waits)
                    extents = _known(step.dims, self._sizes)
                    added = self._add(GraphStep(info, parent, number, waits, self._group(info), extents, depth=depth))
                    self._touch(flow, added, step, (number, place))
                continue
            kind, op = ("host", segment.op) if isinstance(segment, HostSegment) else ("control", segment.kind)
            info = self._nodes.step(segment.origin, kind, "host", op)
            added = self._add(GraphStep(info, parent, number, depth=depth))
            for ref in segment.inputs:
                if ref is not None:
                    flow.read(added, ref.buffer)
            me = len(self.found.steps) - 1
            for ref in segment.outputs:
                if ref is not None:
                    flow.write(added, ref.buffer, ref.offset, (number, 0), ref)
            if not isinstance(segment, HostSegment):
                for region in segment.regions:
                    self.program(region, me, depth + 1)
        if parent < 0:
            for port in program.outputs:
                self.found.outputs += flow.values_of(port.tensor.buffer)

    def _add(self, step: GraphStep) -> GraphStep:
        self.found.steps.append(step)
        return step

    def _group(self, info: StepInfo) -> int:
        """The group that a kernel belongs to: of those of equal nodes and tactic, each in turn."""
        base, _, part = info.tactic.partition(".")
        key = (info.origin, base)
        left = self._groups.get(key, [])
        if part not in ("", "0") and self._last[0] == key:
            return self._last[1]
        number = (left.pop(0) if len(left) > 1 else left[0]) if left else -1
        self._last = (key, number)
        return number

    def _touch(self, flow: _Flow, added: GraphStep, step: Step, place: tuple[int, int]) -> None:
        """What a kernel reads and writes."""
        writes = _written(self._kernels[step.kernel], step, flow)
        for position, arg in enumerate(step.args):
            if position not in writes:
                flow.read(added, arg.buffer)
        for position in sorted(writes):
            flow.write(added, step.args[position].buffer, step.args[position].offset, place, None)

    def work(self, step: GraphStep) -> None:
        """What a step computes and moves, as its values are known."""
        values = self.found.values
        info = step.info
        known = _number(info.contractions, self._sizes)
        step.contraction = known > 0
        step.flops = 0 if step.continued else known + _number(info.elementwise, self._sizes)
        read, written = ([values[i] for i in places] for places in (step.reads, step.writes))
        # A value may be a part of a buffer, or only a part of it be read: the model's shapes then say less.
        step.read = _least(sum(v.bytes for v in read), info.inputs, read, self._sizes)
        step.written = _least(sum(v.bytes for v in written), info.outputs, written, self._sizes)
        if "Gather" in info.ops and not known:  # of a table, what is gathered
            step.weights = min(step.weights, step.written)
        types = [v.dtype for v in (read if step.contraction and read else written) if v.dtype != "u8"]
        step.dtype = types[0] if types else (info.outputs[0].dtype.name if info.outputs else "f32")
        if step.contraction and step.constant_type:
            step.dtype = step.constant_type
        if step.contraction and step.dtype == "f32" and self._tf32:
            step.dtype = "tf32"


class _Flow:
    """Which values lie in the buffers of one program."""

    def __init__(self, program: Program, found: FusedGraph, sizes: Sizes, caller: int) -> None:
        self.buffers: Sequence[Buffer] = program.buffers
        self._found, self._sizes, self._caller = found, sizes, caller
        self._root = memory.roots(program)
        self._here: dict[int, dict[Postfix, int]] = {}  # by buffer, values in it by where they begin
        self._by_root: dict[int, list[int]] = {}
        self._names = {(t.segment, t.step, t.tensor.buffer): (t.name, t.tensor) for t in program.taps}
        self._ports = {p.tensor.buffer: (p.name, p.tensor) for p in program.outputs}

    def enter(self, name: str, tensor: TensorRef) -> int:
        """A value that comes from outside."""
        return self._add(tensor.buffer, name, tensor, self._caller)

    def values_of(self, buffer: int) -> list[int]:
        """Values in a buffer, or where it shares storage with others, in those."""
        here = self._here.get(buffer)
        return list(here.values()) if here else self._by_root.get(self._root[buffer], [])

    def filled(self, buffer: int) -> bool:
        """Whether something was written there already."""
        return buffer in self._here

    def read(self, step: GraphStep, buffer: int) -> None:
        """A step reads a buffer."""
        kind = self.buffers[buffer].kind
        if kind in _CONSTANT:
            found = self.buffers[buffer]
            if not step.constants or (dtype(found.dtype).is_float and self._bytes(buffer) > step.weights):
                step.constant_type = found.dtype
            if found.name not in step.constants:
                step.constants.append(found.name)
            step.weights += self._bytes(buffer)
        else:
            step.reads += [v for v in self.values_of(buffer) if v not in step.reads]

    def write(self, step: GraphStep, buffer: int, offset: Postfix, place: tuple[int, int], ref: TensorRef | None) -> None:
        """A step writes a buffer from an offset on; what begins there already it updates."""
        if self.buffers[buffer].kind in _SCRATCH:
            return
        before = self._here.get(buffer, {}).get(offset)
        if before is not None and before not in step.reads:
            step.reads.append(before)
        name, tensor = self._names.get((*place, buffer)) or self._ports.get(buffer) or ("", ref)
        number = len(self._found.steps) - 1
        if not name:
            only = step.info.outputs[0].name if len(step.info.outputs) == 1 else ""
            # What a step on the host gives has storage of its own, and is a value of the model's even where no tap can name it.
            name = only if only and ref is not None else f"{only or step.info.kernel}{_UNNAMED}{number}.{buffer}"
        step.writes.append(self._add(buffer, name, tensor, number, offset))

    def _add(self, buffer: int, name: str, tensor: TensorRef | None, producer: int, offset: Postfix = (0,)) -> int:
        shape = None if tensor is None or tensor.shape is None else _all_known(tensor.shape, self._sizes)
        element = self.buffers[buffer].dtype if tensor is None else tensor.dtype
        size = self._bytes(buffer) if shape is None else int(dims_product(shape)) * dtype(element).itemsize
        self._found.values.append(Val(name, element, shape, size, producer))
        number = len(self._found.values) - 1
        self._here.setdefault(buffer, {})[offset] = number
        self._by_root.setdefault(self._root[buffer], []).append(number)
        return number

    def _bytes(self, buffer: int) -> int:
        found = self.buffers[buffer]
        known = _known((found.size,), self._sizes)
        return known[0] * dtype(found.dtype).itemsize if known else 0


def _written(kernel: KernelRef, step: Step, flow: _Flow) -> set[int]:
    """Positions that a kernel writes; of one that does not say, its results are what nothing has filled yet."""
    if kernel.writes is not None:
        return set(kernel.writes)
    able = [i for i, arg in enumerate(step.args) if flow.buffers[arg.buffer].kind in ("arena", "output")]
    return {i for i in able if not flow.filled(step.args[i].buffer)} or set(able[-1:])


def _forget_scratch(found: FusedGraph) -> None:
    """Leave out what nobody reads and the model does not name: kernels may use their operands' memory as they like."""
    used = {v for step in found.steps for v in step.reads} | set(found.outputs)
    for step in found.steps:
        step.writes = [v for v in step.writes if v in used or _UNNAMED not in found.values[v].name] or step.writes[:1]


def _count_once(steps: list[GraphStep]) -> None:
    """Of several steps that compute the same nodes one after the other, only the last counts their operations."""
    for step, following in pairwise(steps):
        same = step.info.origin == following.info.origin and step.info.origin and step.parent == following.parent
        if same and step.group == following.group and step.info.tactic != following.info.tactic:
            step.continued = True


def _least(size: int, infos: Sequence[Any], values: Sequence[Val], sizes: Sizes) -> int:
    counts = [_number(dims.product(i.shape), sizes) for i in infos]
    if not all(counts) or not counts or not values or any(_UNNAMED in v.name for v in values):
        return size
    return min(size, sum(counts) * max(dtype(v.dtype).itemsize for v in values)) if size else 0


def dims_product(shape: Sequence[int]) -> int:
    """Number of elements."""
    count = 1
    for extent in shape:
        count *= extent
    return count


def _number(dim: Dim, sizes: Sizes) -> int:
    """A dim at given sizes; 0 where it depends on data."""
    if isinstance(dim, int):
        return dim
    return int(evaluate(dim, sizes)) if all(s in sizes for s in symbols(dim)) else 0


def _known(programs: Sequence[Postfix], sizes: Sizes) -> tuple[int, ...]:
    """Dims at given sizes; those that depend on data are left out."""
    found = []
    for program in programs:
        try:
            found.append(run_program(program, sizes))
        except ShapeError:
            continue
    return tuple(found)


def _all_known(programs: Sequence[Postfix], sizes: Sizes) -> tuple[int, ...] | None:
    found = _known(programs, sizes)
    return found if len(found) == len(programs) else None
