"""Plan emission: the graph with layouts and choices becomes buffers, step tables and host calls."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dovetail.builder.select import Choice
from dovetail.codegen.kernel import Kernel, TensorMap
from dovetail.codegen.tactic import Emitted, Operand
from dovetail.codegen.target import Target
from dovetail.core import dims
from dovetail.core.dims import Dim
from dovetail.core.dtypes import dtype
from dovetail.engine.plan import (
    Arg,
    Buffer,
    BufferKind,
    ControlSegment,
    Guard,
    HostSegment,
    KernelRef,
    NativeSegment,
    Plan,
    Port,
    Program,
    Segment,
    Step,
    Symbol,
    SymbolDef,
    Tap,
    TensorMapArg,
    TensorRef,
    WeightSpec,
    attribute,
    digest,
    postfix,
)
from dovetail.ir.graph import Graph, Module, Node, Time, Value
from dovetail.ir.types import SequenceType, TensorType
from dovetail.ops.registry import find
from dovetail.passes.io_formats import ORDERS_KEY
from dovetail.passes.layout import Placement
from dovetail.passes.views import is_row_major, is_view, is_whole, same_strides
from dovetail.passes.weight_time import known_at, needed_at


@dataclass
class Emission:
    """The plan and the kernels it calls, by entry."""

    plan: Plan
    kernels: dict[str, Kernel]


def emit_plan(module: Module, choices: dict[Node, Choice], placement: Placement, target: Target) -> Emission:
    """The plan of a module whose fusions have been chosen and packed."""
    kernels: dict[str, Kernel] = {}
    graph = module.main
    emitted: dict[tuple[object, ...], Emitted] = {}  # by all that kernels depend on
    weights = _MainProgram(graph, choices, placement, target, kernels, emitted, Time.WEIGHT)
    shapes = _HostProgram(graph, Time.SHAPE, placement)
    main = _MainProgram(graph, choices, placement, target, kernels, emitted)
    names = module.meta["output_names"]
    # Weights that a rewrite has read away stay, so that a refit of them is checked against their guard.
    used = dict.fromkeys([*(n.attrs["name"] for n in _constants(graph)), *(g.weight for g in module.guards)])
    specs = tuple(WeightSpec(n, dtype(module.weights[n].dtype).name, module.weights[n].shape) for n in used)
    bounds = module.meta.get("symbol_bounds", {})
    free = sorted({s for v in graph.inputs if isinstance(v.type, TensorType) for d in v.type.shape for s in dims.symbols(d)})
    plan = Plan(
        target=str(target),
        main=_with_orders(
            main.program(graph.inputs, graph.outputs, [v.name for v in graph.inputs], names), module.meta.get(ORDERS_KEY, {})
        ),
        symbols=tuple(Symbol(s, *bounds.get(s, (0, None))[:2]) for s in free),
        weights=specs,
        guards=tuple(
            Guard(g.weight, digest(module.weights[g.weight]), f"{g.rewrite} relied on its value {g.shown}") for g in module.guards
        ),
        weights_program=weights.weights(),
        shapes_program=shapes.program(),
        kernels=tuple(map(_kernel_ref, kernels.values())),
        arch=target.arch,
        cpu_flags=target.cpu_flags,
    )
    return Emission(plan, kernels)


def _with_orders(program: Program, orders: Mapping[str, Sequence[int]]) -> Program:
    """The program with the orders in memory that the caller's arrays have."""
    inputs = tuple(replace(p, order=tuple(orders.get(f"in {i}", ()))) for i, p in enumerate(program.inputs))
    outputs = tuple(replace(p, order=tuple(orders.get(f"out {i}", ()))) for i, p in enumerate(program.outputs))
    return replace(program, inputs=inputs, outputs=outputs)


def _kernel_ref(kernel: Kernel) -> KernelRef:
    """A kernel as the plan names it; what its compiler says of the launch is filled in after compilation."""
    call = json.loads(kernel.source) if kernel.library else {}
    writes = tuple(i for i, p in enumerate(kernel.params) if p.role != "in")
    return KernelRef(kernel.entry, len(kernel.params), len(kernel.dims), library=kernel.library, call=call, writes=writes)


def _constants(graph: Graph) -> list[Node]:
    found: dict[str, Node] = {}
    for node in graph.nodes:
        if node.op == "Constant":
            found.setdefault(node.attrs["name"], node)
        if node.op != "Fusion":
            for region in node.regions:
                for inner in _constants(region):
                    found.setdefault(inner.attrs["name"], inner)
    return list(found.values())


def _shape(type: TensorType) -> tuple[tuple[int | str, ...], ...]:
    return tuple(postfix(d) for d in type.shape)


# Work that one core does in a microsecond or two: less than waking a team and a barrier may cost.
_SMALL_FLOPS, _SMALL_BYTES = 64_000, 32_000


def _with_map(arg: Arg, tensor_map: TensorMap | None) -> Arg:
    if tensor_map is None:
        return arg
    described = TensorMapArg(
        tuple(map(postfix, tensor_map.shape)), tuple(map(postfix, tensor_map.strides)), tensor_map.block
    )
    return replace(arg, map=described)


def _max_threads(kernel: Kernel) -> int:
    """1 for steps too small to share, 0 (the whole team) for the others and where sizes are symbolic."""
    flops, moved = kernel.flops, kernel.bytes
    if isinstance(flops, int) and isinstance(moved, int) and (flops or moved):
        return int(flops < _SMALL_FLOPS and moved < _SMALL_BYTES)
    return 0


def _storage(value: Value) -> tuple[str, Dim]:
    """Dtype and number of elements of a value's buffer; a sequence is opaque and has no size."""
    if isinstance(value.type, SequenceType):
        return value.type.element.dtype.name, 0
    return value.tensor.dtype.name, value.tensor.size


@dataclass
class _Builder:
    """Buffers, segments and taps of one program."""

    graph: Graph
    buffers: list[Buffer] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    taps: list[Tap] = field(default_factory=list)
    ids: dict[Value, int] = field(default_factory=dict)

    def buffer(self, kind: BufferKind, dtype: str, size: Dim, name: str = "", alias: int | None = None) -> int:
        """Append a buffer; returns its id."""
        self.buffers.append(Buffer(len(self.buffers), kind, dtype, postfix(size), name, alias))
        return len(self.buffers) - 1

    def flush(self) -> None:
        """Close the native segment under construction."""
        if self.steps:
            self.segments.append(NativeSegment(tuple(self.steps)))
            self.steps = []

    def known_buffer(self, value: Value) -> int:
        """The buffer of a value that an earlier program computed, or of an initializer."""
        if value not in self.ids:
            node = value.producer
            assert node is not None, f"%{value.name} has no buffer"
            if node.op == "Constant":
                kind: BufferKind = "weight"
                name = node.attrs["name"]
            else:
                kind = "packed" if value.time == Time.WEIGHT else "shape"
                name = value.name
            self.ids[value] = self.buffer(kind, *_storage(value), name)
        return self.ids[value]

    def host_call(self, node: Node, inputs: Sequence[TensorRef | None], outputs: Sequence[TensorRef | None]) -> None:
        """Append a reference call."""
        self.flush()
        spec = find(node.op)
        given = {k: v for k, v in node.attrs.items() if k not in ("impure", "symbols")}
        if spec is not None:
            given = {k: v for k, v in spec.complete({**given, **_symbols(node, spec.attributes)}).items() if k != "symbols"}
        self.segments.append(
            HostSegment(
                node.op, tuple(inputs), tuple(outputs), {k: attribute(v) for k, v in given.items()},
                _definitions(node), node.origin,
            )
        )  # fmt: skip


def _symbols(node: Node, known: Iterable[str]) -> dict[str, object]:
    return {"symbols": node.attrs["symbols"]} if "symbols" in node.attrs and "symbols" in known else {}


def _definitions(node: Node) -> tuple[SymbolDef, ...]:
    """Where a host or control node's symbols come from: elements of its input, or extents of its outputs."""
    result = []
    for index, symbol in enumerate(node.attrs.get("symbols", ())):
        if node.op == "BindSymbols":
            result.append(SymbolDef(symbol, index))
            continue
        for output in node.outputs:
            shape = output.type.shape if isinstance(output.type, TensorType) else ()
            if dims.sym(symbol) in shape:
                result.append(SymbolDef(symbol, shape.index(dims.sym(symbol)), output.index))
                break
    return tuple(result)


class _HostProgram:
    """The shapes program: reference calls whose later-read results are outputs."""

    def __init__(self, graph: Graph, time: Time, placement: Placement) -> None:
        self.builder, self.time, self.placement = _Builder(graph), time, placement

    def program(self) -> Program:
        """All nodes of this time, in order."""
        builder = self.builder
        graph = builder.graph
        needed = needed_at(graph, self.time)
        ports: list[Port] = []
        for node in graph.nodes:
            if known_at(node) != self.time or node.op == "Constant" or node not in needed:
                continue
            outputs = []
            for value in node.outputs:
                exported = value.is_output or any(known_at(u) > self.time for u in value.consumers)
                direct = exported and isinstance(value.type, TensorType)
                kind: BufferKind = "output" if direct else "host"
                builder.ids[value] = builder.buffer(kind, *_storage(value), value.name if exported else "")
                reference = self._reference(value)
                outputs.append(reference)
                if exported:
                    ports.append(Port(value.name, reference))
            inputs = [None if v is None else self._reference(v) for v in node.inputs]
            builder.host_call(node, inputs, outputs)
        return Program(tuple(builder.buffers), (), tuple(ports), tuple(builder.segments))

    def _reference(self, value: Value) -> TensorRef:
        root = self.placement.root(value)
        return _view(self.builder.known_buffer(root), value, root)


def _start(value: Value, root: Value) -> Dim:
    """Where a value begins in its root's buffer, in elements.

    A part without elements may begin outside, in a run whose sizes leave nothing of the whole: it is put inside.
    """
    base = value.tensor.placement.base(value.tensor.shape)
    if value is root or base == 0:
        return base
    return dims.maximum(0, dims.minimum(base, root.tensor.placement.size(root.tensor.shape)))


def _view(buffer: int, value: Value, root: Value) -> TensorRef:
    """A value as a view of its buffer."""
    if isinstance(value.type, SequenceType):
        return TensorRef(buffer, value.type.element.dtype.name, None)
    type_ = value.tensor
    strides = None if is_row_major(type_) else tuple(map(postfix, type_.placement.strides(type_.shape)))
    return TensorRef(buffer, type_.dtype.name, _shape(type_), strides, postfix(_start(value, root)))


class _MainProgram:
    """The main or the weights program, or the program of a region: kernels, host calls and control flow over one arena."""

    def __init__(
        self, graph: Graph, choices: dict[Node, Choice], placement: Placement, target: Target, kernels: dict[str, Kernel],
        emitted: dict[tuple[object, ...], Emitted], time: Time = Time.RUN, top: bool = True,
    ) -> None:  # fmt: skip
        self.graph, self.choices, self.placement, self.target = graph, choices, placement, target
        self.kernels, self.emitted, self.time, self.top = kernels, emitted, time, top
        self.builder = _Builder(graph)
        self.last_use: dict[Value, int] = {}

    def _runs(self, node: Node) -> bool:
        """Whether a node is computed by this program (a region computes all its nodes itself)."""
        return node.op != "Constant" and (not self.top or known_at(node) == self.time)

    def weights(self) -> Program:
        """The program of the weight-time nodes; its outputs are the values whose memory a later time reads."""
        needed = needed_at(self.graph, self.time)
        outputs: dict[Value, None] = {}
        for node in self.graph.nodes:
            if node not in needed:
                continue
            for value in node.outputs:
                root = self.placement.root(value)
                if self._is_read_later(value) and root.producer is not None and root.producer.op != "Constant":
                    outputs[root] = None
        return self.program((), list(outputs), (), [v.name for v in outputs])

    def _is_read_later(self, value: Value) -> bool:
        return value.is_output or any(known_at(u) > self.time for u in value.consumers)

    def program(
        self, inputs: Sequence[Value], outputs: Sequence[Value], input_names: Sequence[str], output_names: Sequence[str]
    ) -> Program:
        """Emit everything in order."""
        builder = self.builder
        nodes = [n for n in self.graph.nodes if self._runs(n)]
        if self.time != Time.RUN:
            needed = needed_at(self.graph, self.time)
            nodes = [n for n in nodes if n in needed]
        for value in inputs:
            builder.ids[value] = builder.buffer("input", *_storage(value), value.name)
        for position, node in enumerate(nodes):
            for value in node.operands:
                self.last_use[self.placement.root(value)] = position
        self._final(outputs)
        for position, node in enumerate(nodes):
            if self._is_free(node):
                continue
            if node.op == "Fusion":
                self._fusion(node, position)
            elif node.regions:
                self._control(node)
            else:
                self._host(node)
        builder.flush()
        ports_in = tuple(Port(n, self.reference(v)) for n, v in zip(input_names, inputs, strict=True))
        ports_out = tuple(Port(n, self.reference(v)) for n, v in zip(output_names, outputs, strict=True))
        return Program(tuple(builder.buffers), ports_in, ports_out, tuple(builder.segments), tuple(builder.taps))

    def _is_free(self, node: Node) -> bool:
        """Views and placed concats take no step."""
        if self.time == Time.RUN:
            if known_at(node) != Time.RUN:
                return False
            return is_view(node) or (node.op == "Concat" and isinstance(node.output.type, TensorType))
        parents = self.placement.parents
        if node.op == "Concat":
            return any(parents.get(v) is node.output for v in node.operands)
        return is_view(node) and node.output in parents

    def _final(self, outputs: Sequence[Value]) -> None:
        """Values that fusions may write straight into the caller's buffers."""
        self.direct: set[Value] = set()
        roots = [self.placement.root(v) for v in outputs]
        for value, root in zip(outputs, roots, strict=True):
            self.last_use[root] = 1 << 60
            if roots.count(root) == 1 and isinstance(value.type, TensorType) and (root is value or is_whole(value, root)):
                node = root.producer
                # Packed weights are aligned whoever makes them; host steps of a run give arrays of their own.
                written = node is not None and (node.op in ("Fusion", "Concat") or self.time == Time.WEIGHT)
                if written and is_row_major(value.tensor) and value.tensor.dtype.kind != "string":
                    self.direct.add(root)

    # ------------------------------------------------------------------ buffers
    def buffer_of(self, value: Value) -> int:
        """The buffer id of the value's root, created at first use."""
        root = self.placement.root(value)
        builder = self.builder
        if root in builder.ids:
            return builder.ids[root]
        node = root.producer
        if node is None or not self._runs(node):
            return builder.known_buffer(root)
        if isinstance(root.type, SequenceType):
            builder.ids[root] = builder.buffer("host", root.type.element.dtype.name, 0)
            return builder.ids[root]
        type_ = root.tensor
        size = type_.placement.size(type_.shape)
        kind: BufferKind = "arena"
        if root in self.direct:
            kind = "output"
        elif not self._is_native(node) or type_.dtype.kind == "string":
            kind = "host"
        builder.ids[root] = builder.buffer(kind, type_.dtype.name, size, root.name if kind == "output" else "")
        return builder.ids[root]

    def _is_native(self, node: Node) -> bool:
        """Whether kernels write a node's results."""
        return node.op == "Fusion" or (node.op == "Concat" and self._is_free(node))

    def reference(self, value: Value) -> TensorRef:
        """A value as a view of its buffer."""
        return _view(self.buffer_of(value), value, self.placement.root(value))

    # ------------------------------------------------------------------ steps
    def _fusion(self, node: Node, position: int) -> None:
        choice = self.choices[node]
        emitted = choice.emit(self.target, self.emitted)
        builder = self.builder
        for output_index, input_index in emitted.in_place:
            self._share(node, output_index, input_index, position)
        temps = [builder.buffer("arena", "u8", size) for size in emitted.temps]
        for index, step in enumerate(emitted.steps):
            kernel = step.kernel
            self.kernels.setdefault(kernel.entry, kernel)
            own: dict[str, int] = {}
            if any(a.role == "workspace" for a in step.args):
                own["workspace"] = builder.buffer("workspace", "u8", kernel.workspace_bytes)
            if any(a.role == "counters" for a in step.args):
                assert kernel.launch is not None
                own["counters"] = builder.buffer("counters", "i32", kernel.launch.counters)
            args = tuple(self._argument(node, a, temps, own) for a in step.args)
            if kernel.launch is not None and kernel.launch.maps:
                args = tuple(map(_with_map, args, kernel.launch.maps))
            name = choice.tactic.name + (f".{index}" if len(emitted.steps) > 1 else "")
            builder.steps.append(
                Step(
                    kernel.entry, args, tuple(map(postfix, kernel.dims)), max_threads=_max_threads(kernel),
                    origin=node.origin, tactic=name, grid=() if kernel.launch is None else tuple(map(postfix, kernel.launch.grid)),
                )
            )  # fmt: skip
        if self.time == Time.RUN:
            for value in node.outputs:
                builder.taps.append(Tap(value.name, self.reference(value), len(builder.segments), len(builder.steps) - 1))

    def _argument(self, node: Node, operand: Operand, temps: list[int], own: dict[str, int]) -> Arg:
        if operand.role == "temp":
            return Arg(temps[operand.index])
        if operand.role in own:
            return Arg(own[operand.role])
        value = node.operands[operand.index] if operand.role == "in" else node.outputs[operand.index]
        offset = _start(value, self.placement.root(value)) * value.tensor.dtype.itemsize
        return Arg(self.buffer_of(value), postfix(offset))

    def _share(self, node: Node, output_index: int, input_index: int, position: int) -> None:
        """Let an output take over its input's memory if nobody reads that afterwards."""
        output, source = node.outputs[output_index], node.operands[input_index]
        builder = self.builder
        if output in builder.ids or output in self.direct or self.placement.root(output) is not output:
            return
        if self.placement.root(source) is not source or source not in builder.ids:
            return
        buffer = builder.buffers[builder.ids[source]]
        same = same_strides(
            output.tensor.shape, output.tensor.placement.strides(output.tensor.shape),
            source.tensor.placement.strides(source.tensor.shape),
        )  # fmt: skip
        if buffer.kind != "arena" or self.last_use.get(source) != position or not same:
            return
        if any(v is not source and self.placement.root(v) is source for v in node.operands):
            return  # a view of the same memory is read at other places than the result is written
        if output.tensor.dtype != source.tensor.dtype or output.tensor.shape != source.tensor.shape:
            return
        size = output.tensor.placement.size(output.tensor.shape)
        builder.ids[output] = builder.buffer("arena", output.tensor.dtype.name, size, alias=buffer.id)

    def _host(self, node: Node) -> None:
        builder = self.builder
        builder.flush()
        inputs = [None if v is None else self.reference(v) for v in node.inputs]
        builder.host_call(node, inputs, [self.reference(v) for v in node.outputs])
        for value in node.outputs:
            if isinstance(value.type, TensorType) and self.time == Time.RUN:
                builder.taps.append(Tap(value.name, self.reference(value), len(builder.segments) - 1))

    def _control(self, node: Node) -> None:
        builder = self.builder
        builder.flush()
        inputs = tuple(None if v is None else self.reference(v) for v in node.inputs)
        outputs = tuple(self.reference(v) for v in node.outputs)
        regions = []
        for region in node.regions:
            inner = _MainProgram(
                region, self.choices, self.placement, self.target, self.kernels, self.emitted, top=False
            )
            regions.append(
                inner.program(
                    region.inputs, region.outputs, [v.name for v in region.inputs],
                    [f"{i}" for i in range(len(region.outputs))],
                )
            )  # fmt: skip
        attrs = node.attrs
        builder.segments.append(
            ControlSegment(
                node.op,  # type: ignore[arg-type]  # If, Loop and Scan are the nodes with regions left
                tuple(regions), inputs, outputs,
                carried=attrs.get("carried", attrs.get("states", 0)),
                scan_inputs=attrs.get("scans", 0),
                scan_input_axes=tuple(attrs.get("input_axes", ())),
                scan_input_directions=tuple(int(r) for r in attrs.get("input_reverse", ())),
                scan_output_axes=tuple(attrs.get("output_axes", ())),
                scan_output_directions=tuple(int(r) for r in attrs.get("output_reverse", ())),
                defines=_definitions(node), origin=node.origin,
            )
        )  # fmt: skip
