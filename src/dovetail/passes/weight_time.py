"""Grouping of what is known at weight time, so that loading and refitting run compiled kernels too.

Runs after selection, when packing nodes are in place. Reshape, Transpose, Slice and Expand become strides over their
source, a concat's parts are copied into its buffer, a packing takes along the factor or the concat in front of it, and
chains of pointwise nodes become one loop each. What later times read stays dense. The rest are host steps.
"""

from __future__ import annotations

from dovetail.codegen.target import Target
from dovetail.core.dtypes import STR, DType
from dovetail.ir.graph import Graph, Module, Node, Time, Value
from dovetail.ir.layout import row_major, strided
from dovetail.ir.types import TensorType
from dovetail.ops.registry import OpKind, find
from dovetail.passes.fuse import Draft, Lowerable, materialise
from dovetail.passes.layout import Placement
from dovetail.passes.views import is_row_major, is_view, view_layout

PACK_OPS = frozenset({"PackGemmB", "PackConv", "PackDepthwise", "PackWinograd"})
_MAX_GROUP = 64
# Bytes of a result from which a source of its own is worth compiling.
_LARGE = 1 << 20


def group_weights(
    module: Module, target: Target, not_lowerable: Lowerable, placement: Placement
) -> list[tuple[str, str]]:
    """Group the weight-time nodes of the main graph into Fusion nodes, in place.

    Args:
        not_lowerable: None if the loop IR has a lowering for a node, else the reason why not.
        placement: gains the views and the parts of concats.

    Returns:
        (node, reason) of what stays a host step.
    """
    grouping = _Grouping(module.main, target, not_lowerable, placement)
    grouping.views()
    grouping.packs()
    grouping.concats()
    grouping.loops()
    module.main.update_times()
    return grouping.host()


def known_at(node: Node) -> Time:
    """When a node runs; the times of the graph must be up to date."""
    return node.outputs[0].time if node.outputs else node.graph.time_of(node)


def needed_at(graph: Graph, time: Time) -> set[Node]:
    """Nodes of a time whose results a later time reads, directly or through nodes of this time; BindSymbols always."""
    needed: set[Node] = set()
    returned = set(graph.outputs)
    for node in reversed(list(graph.nodes)):
        if known_at(node) != time:
            continue
        used = any(v in returned or any(known_at(u) > time or u in needed for u in v.consumers) for v in node.outputs)
        if used or "symbols" in node.attrs:
            needed.add(node)
    return needed


def _sized(value: Value | None) -> bool:
    """Whether a value is a tensor of numbers with a known, positive number of elements."""
    if value is None or not isinstance(value.type, TensorType) or value.type.dtype == STR:
        return False
    return all(isinstance(d, int) and d > 0 for d in value.type.shape)


class _Grouping:
    def __init__(self, graph: Graph, target: Target, not_lowerable: Lowerable, placement: Placement) -> None:
        self.graph, self.target, self.not_lowerable, self.placement = graph, target, not_lowerable, placement
        needed = needed_at(graph, Time.WEIGHT)
        self.nodes = [n for n in graph.nodes if n in needed and n.op != "Constant"]
        self.reasons: dict[Node, str] = {}
        self.copied: dict[DType, bool] = {}
        self.held: dict[Value, list[Value]] = {}  # the values that lie in another one's buffer

    def _later(self, value: Value) -> list[tuple[Node, int]]:
        return [(n, i) for n, i in value.uses if known_at(n) > Time.WEIGHT]

    # ------------------------------------------------------------------ views and copies
    def views(self) -> None:
        """Make views strides; what later times read of them becomes dense again."""
        for node in self.nodes:
            if not is_view(node) or not all(map(_sized, (*node.operands, *node.outputs))) or self._no_copy(node.output):
                continue
            source = node.input(0)
            layout = view_layout(node, source.tensor)
            if layout is None:
                self.graph.set_input(node, 0, self._dense(source, node))
                layout = view_layout(node, node.input(0).tensor)
                assert layout is not None, f"{node.where}: a dense value can always be viewed"
            self._place(node.output, layout.strides(node.output.tensor.shape), layout.offset, node.input(0))
        for node in self.nodes:
            if node.outputs and node.outputs[0] in self.placement.parents and is_view(node):
                self._export(node.output)

    def _no_copy(self, value: Value) -> bool:
        """Whether no kernel could make a dense copy of a value."""
        kind = value.tensor.dtype
        if kind not in self.copied:
            body = Graph("body")
            type_ = TensorType(kind, (2,))
            self.copied[kind] = self.not_lowerable(body.add("Copy", (body.add_input("x", type_),), types=[type_])) is None
        return not self.copied[kind]

    def _place(self, value: Value, strides: tuple[object, ...], offset: object, parent: Value) -> None:
        plain = strides == row_major(value.tensor.rank).strides(value.tensor.shape) and offset == 0
        layout = None if plain else strided(strides, offset)  # type: ignore[arg-type]  # both come from a layout
        value.type = value.tensor.with_layout(layout)
        self._hold(value, parent)

    def _hold(self, value: Value, parent: Value) -> None:
        self.placement.parents[value] = parent
        self.held.setdefault(parent, []).append(value)

    def _fuse(self, draft: Draft) -> tuple[Node | None, str | None]:
        """Make a Fusion of a draft if a tactic computes it; what lies in its result's buffer follows."""
        old = draft.sink.outputs
        fused, reason = materialise(self.graph, draft, self.target)
        if fused is not None:
            for before, after in zip(old, fused.outputs, strict=True):
                for value in self.held.pop(before, ()):
                    self._hold(value, after)
        return fused, reason

    def _export(self, view: Value) -> None:
        """Later times take dense operands: copy a view for them unless it is dense where it is."""
        later = self._later(view)
        if is_row_major(view.tensor) or not (later or view.is_output):
            return
        assert view.producer is not None
        copy = self._dense(view, view.producer.next)
        for node, position in later:
            self.graph.set_input(node, position, copy)
        self.graph.set_outputs([copy if v is view else v for v in self.graph.outputs])

    def _dense(self, value: Value, before: Node | None) -> Value:
        if is_row_major(value.tensor):
            return value
        return self._copy(value, TensorType(value.tensor.dtype, value.tensor.shape), before)

    def _copy(self, value: Value, type_: TensorType, before: Node | None) -> Value:
        """A Copy into another placement: a transposition in blocks where it is one, else a loop."""
        origin = value.producer.origin if value.producer is not None else ()
        copy = self.graph.add(
            "Copy", (value,), types=[type_], names=[f"{value.name}.copy"], origin=origin, before=before
        )
        strides = value.tensor.placement.strides(value.tensor.shape)
        kinds = ("pack", "weight_loop") if value.tensor.rank and strides[-1] != 1 else ("weight_loop",)
        for kind in kinds:
            fused, _ = self._fuse(Draft(copy, kind, {copy: None}))
            if fused is not None:
                fused.output.type = type_
                return fused.output
        raise AssertionError(f"{value!r} has no copy")

    # ------------------------------------------------------------------ concats
    def concats(self) -> None:
        """Copy the parts of concats that no packing has joined into the whole's buffer."""
        for node in self.nodes:
            if node.erased or node.op != "Concat" or not all(map(_sized, (*node.operands, *node.outputs))) or self._no_copy(node.output):
                continue
            output = node.output
            shape = output.tensor.shape
            strides, axis, at = row_major(len(shape)).strides(shape), node.attrs["axis"] % len(shape), 0
            for position, part in enumerate(node.operands):
                extent, step = part.tensor.shape[axis], strides[axis]
                assert isinstance(extent, int) and isinstance(step, int)
                type_ = part.tensor.with_layout(strided(strides, at * step))
                copy = self._copy(part, type_, node)
                self.graph.set_input(node, position, copy)
                self._hold(copy, output)
                at += extent

    def _joined(self, concat: Node) -> bool:
        """Whether the only reader is a packing whose columns the parts are."""
        readers = concat.output.consumers
        if len(readers) != 1 or concat.output.is_output or readers[0].op != "PackGemmB":
            return False
        rank = concat.output.tensor.rank
        return bool(concat.attrs["axis"] % rank == rank - (2 if readers[0].attrs.get("transposed") else 1))

    # ------------------------------------------------------------------ groups
    def packs(self) -> None:
        """Packings, each with the factor or the concat in front of it."""
        for node in self.nodes:
            if node.op not in PACK_OPS:
                continue
            before = node.input(0).producer
            members = {node: None}
            joins = before is not None and (before.op == "Mul" or (before.op == "Concat" and self._joined(before)))
            if before is not None and joins and self._only_for(before, node):
                members[before] = None
            fused, reason = self._fuse(Draft(node, "pack", members))
            if fused is None and len(members) > 1:
                fused, reason = self._fuse(Draft(node, "pack", {node: None}))
            if fused is None:
                self.reasons[node] = reason or ""

    def _only_for(self, producer: Node, reader: Node) -> bool:
        value = producer.output
        return value.consumers == (reader,) and not value.is_output and producer.output.time == Time.WEIGHT

    def loops(self) -> None:
        """Chains of pointwise nodes; large movements one by one."""
        for node in reversed(self.nodes):
            if node.erased or node in self.reasons or self._free(node):
                continue
            reason = self._not_fusable(node)
            if reason is None:
                kind = "weight_loop" if self._pointwise(node) else "loop"
                members = self._chain(node) if kind == "weight_loop" else {node: None}
                fused, reason = self._fuse(Draft(node, kind, members))
                if fused is not None:
                    continue
            self.reasons[node] = reason or ""

    def _free(self, node: Node) -> bool:
        """Views and concats that are placed take no step."""
        parents = self.placement.parents
        if node.op == "Concat":
            return any(parents.get(v) is node.output for v in node.operands)
        return any(v in parents for v in node.outputs)

    def _pointwise(self, node: Node) -> bool:
        spec = find(node.op)
        return spec is not None and spec.kind == OpKind.POINTWISE and "axis" not in node.attrs

    def _not_fusable(self, node: Node) -> str | None:
        spec = find(node.op)
        if spec is None or node.regions or len(node.outputs) != 1:
            return f"{node.op} has no loop form"
        if not all(map(_sized, (*node.operands, *node.outputs))):
            return "its sizes are empty or not known"
        if not self._pointwise(node):
            if spec.kind not in (OpKind.MOVEMENT, OpKind.SELECT):
                return f"{node.op} is computed once per load, by its reference"
            type_ = node.output.tensor
            if isinstance(type_.size, int) and type_.size * type_.dtype.itemsize < _LARGE:
                return "too small for a kernel of its own"
        return self.not_lowerable(node)

    def _chain(self, sink: Node) -> dict[Node, None]:
        """A pointwise node with the producers that only it and other members read."""
        members: dict[Node, None] = {sink: None}
        shape = sink.output.tensor.shape
        pending = list(sink.operands)
        while pending and len(members) < _MAX_GROUP:
            value = pending.pop()
            node = value.producer
            if node is None or node in members or not self._pointwise(node) or value.tensor.shape != shape:
                continue
            if self._free(node) or value.is_output or any(r not in members for r in value.consumers):
                continue
            if self._not_fusable(node) is None:
                members[node] = None
                # A producer that several members read is met again by the last of them.
                pending += node.operands
        return members

    def host(self) -> list[tuple[str, str]]:
        """(node, reason) of what is left."""
        return [(n.where, self.reasons.get(n, "")) for n in self.nodes if not n.erased and not self._free(n)]
