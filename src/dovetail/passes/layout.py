"""Layout assignment: where every run-time value lies, so that views and concats cost nothing and reorders are rare.

Three sweeps over a graph. The first derives preferred axis orders from what tactics want and from dominant inputs. Then
concats are placed, last one first: their inputs become parts of the result's buffer, and a concat of a prefix of another
one's inputs (DenseNet) becomes a view of it. The last sweep fixes all layouts and inserts copies where a tactic or a view
cannot live with what it gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dovetail.codegen.tactic import ANY, CHANNELS_LAST, ROW_MAJOR, ROWS, candidates, wanted_layout
from dovetail.codegen.target import Target
from dovetail.core import dims
from dovetail.ir.graph import Graph, Module, Node, Time, Value
from dovetail.ir.layout import Layout, channels_last, row_major, strided
from dovetail.ir.types import TensorType
from dovetail.passes.fuse import group_of
from dovetail.passes.views import (
    has_dense_rows,
    is_channels_last,
    is_row_major,
    is_view,
    is_whole,
    view_layout,
)


@dataclass
class Placement:
    """Which buffer each value lives in.

    Attributes:
        parents: value → value whose buffer it is part of (a view's source, the concat that holds a part).
        copies: (value, reason) of every inserted copy.
    """

    parents: dict[Value, Value] = field(default_factory=dict)
    copies: list[tuple[str, str]] = field(default_factory=list)

    def root(self, value: Value) -> Value:
        """The value whose buffer holds this one."""
        while value in self.parents:
            value = self.parents[value]
        return value


def fulfils(want: str, type: TensorType) -> bool:
    """Whether a placement word holds for a type."""
    if want == CHANNELS_LAST:
        return is_channels_last(type)
    if want == ROW_MAJOR:
        return is_row_major(type)
    return want == ANY or has_dense_rows(type)


def assign_layouts(module: Module, target: Target, graph: Graph | None = None) -> Placement:
    """Give every run-time value of a graph and its regions a layout, inserting copies where needed."""
    graph = module.main if graph is None else graph  # a region without nodes is falsy
    sweep = _Sweep(graph, target, graph is module.main)
    sweep.forward(insert=False)
    sweep.place_concats()
    sweep.forward(insert=True)
    placement = sweep.placement
    for node in graph.nodes:
        if node.op == "Fusion":
            _type_body(node)
        else:
            for region in node.regions:
                inner = assign_layouts(module, target, region)
                placement.parents |= inner.parents
                placement.copies += inner.copies
    graph.update_times()
    return placement


def _type_body(fusion: Node) -> None:
    body = fusion.regions[0]
    for outer, inner in zip(fusion.operands, body.inputs, strict=True):
        inner.type = outer.type
    for outer, inner in zip(fusion.outputs, body.outputs, strict=True):
        if inner.producer is not None:
            inner.type = outer.type


def _only_casts(node: Node | None) -> bool:
    """Whether a fusion does nothing but change the element type."""
    return node is not None and node.op == "Fusion" and all(n.op == "Cast" for n in node.regions[0].nodes)


def dominant_order(node: Node, output: TensorType) -> Layout:
    """The dense layout that lets a loop stream its largest input: that input's axis order."""
    best: tuple[int, TensorType] | None = None
    for value in node.operands:
        if not isinstance(value.type, TensorType) or value.time != Time.RUN or value.type.rank != output.rank:
            continue
        same = sum(a == b for a, b in zip(value.type.shape, output.shape, strict=True))
        # Of operands that fit alike, images win that are channels-last already, all others that are row-major.
        score = 2 * same + (is_row_major(value.type) != (value.type.rank in (4, 5)))
        if best is None or score > best[0]:
            best = (score, value.type)
    return Layout(best[1].placement.order) if best is not None else row_major(output.rank)


class _Sweep:
    def __init__(self, graph: Graph, target: Target, is_main: bool) -> None:
        self.graph, self.target, self.is_main = graph, target, is_main
        self.placement = Placement()
        self.pins: dict[Value, Layout] = {}
        self.wants: dict[Node, tuple[tuple[str, ...], tuple[str, ...]]] = {}
        self.copied: dict[tuple[Value, str], Value] = {}

    # ------------------------------------------------------------------ forward
    def forward(self, insert: bool) -> None:
        """Set layouts in order; with `insert`, make every want come true by copies."""
        for node in self.graph.nodes:
            if self.graph.time_of(node) != Time.RUN:
                continue
            if is_view(node):
                self._view(node, insert)
            elif node.op == "Concat" and isinstance(node.output.type, TensorType):
                self._concat(node, insert)
            elif node.op == "Fusion":
                self._fusion(node, insert)
            elif node.regions and insert:
                for position, value in enumerate(node.inputs):
                    if value is not None and isinstance(value.type, TensorType):
                        self._demand(node, position, ROW_MAJOR, "control flow takes dense operands")
        if insert:
            self._outputs()

    def _view(self, node: Node, insert: bool) -> None:
        source = node.input(0)
        layout = view_layout(node, source.tensor)
        if layout is None and insert:
            self._demand(node, 0, ROW_MAJOR, f"{node.op} of a strided value moves elements")
            source = node.input(0)
            layout = view_layout(node, source.tensor)
            assert layout is not None, f"{node.where}: a dense value can always be viewed"
        node.output.type = node.output.tensor.with_layout(layout)
        self.placement.parents[node.output] = source

    def _fusion(self, node: Node, insert: bool) -> None:
        if node not in self.wants:
            group = group_of(node)
            able, _ = candidates(group, self.target)
            self.wants[node] = able[0].layouts(group, self.target)
        wanted_inputs, wanted_outputs = self.wants[node]
        if insert:
            for position, want in enumerate(wanted_inputs):
                self._demand(node, position, want, f"{node.attrs['kind']} wants {want}")
        for value, want in zip(node.outputs, wanted_outputs, strict=True):
            type_ = value.tensor
            layout = (
                self.pins.get(value) or self._for_readers(value, want) or wanted_layout(want, type_)
                or self._for_reshapes(value, dominant_order(node, type_))
            )
            value.type = type_.with_layout(layout)

    def _for_readers(self, value: Value, want: str) -> Layout | None:
        """The layout in which the only way this value is read, one Transpose, gives what that one's readers want.

        None if there is no such way. Before the readers' wants are known, dense rows are taken as their wish. A mere change of
        element type is written as its readers want it, too: it reads everything anyway.
        """
        if want == ANY and _only_casts(value.producer):
            read_as = {self.wants[n][0][i] if n in self.wants else "" for n, i in value.uses}
            return channels_last(value.tensor.rank) if read_as == {CHANNELS_LAST} else None
        perms: set[tuple[int, ...]] = {n.attrs["perm"] if n.op == "Transpose" else () for n in value.consumers}
        if want not in (ANY, ROWS) or len(perms) != 1 or () in perms:
            return None
        (perm,) = perms
        rank = len(perm)
        wishes = {
            self.wants[reader][0][position] if reader in self.wants else ANY
            for node in value.consumers
            for reader, position in node.output.uses
        }
        channels = CHANNELS_LAST in wishes and wishes <= {CHANNELS_LAST, ANY}
        order = tuple(perm[axis] for axis in (channels_last(rank).order if channels else range(rank)))
        return None if want == ROWS and order[-1] != rank - 1 else Layout(order)

    def _for_reshapes(self, value: Value, layout: Layout) -> Layout:
        """Row-major in place of an order of which all that is read are Reshapes that it would make copies."""
        type_ = value.tensor.with_layout(layout)
        copies = [n.op == "Reshape" and view_layout(n, type_) is None for n in value.consumers]
        return row_major(type_.rank) if copies and all(copies) else layout

    def _demand(self, node: Node, position: int, want: str, why: str) -> None:
        value = node.inputs[position]
        if value is None or fulfils(want, value.tensor):
            return
        key = (value, CHANNELS_LAST if want == CHANNELS_LAST else ROW_MAJOR)
        if key not in self.copied:
            layout = wanted_layout(want, value.tensor)
            assert layout is not None
            self.copied[key] = self._copy(value, layout, node, why)
        self.graph.set_input(node, position, self.copied[key])

    def _copy(self, value: Value, layout: Layout, before: Node | None, why: str) -> Value:
        body = Graph("body")
        inner = body.add_input(value.name, value.tensor)
        copy = body.add("Copy", (inner,), types=[TensorType(value.tensor.dtype, value.tensor.shape)])
        body.set_outputs([copy.output])
        origin = value.producer.origin if value.producer is not None else ()
        # A weight that is copied to where a run wants it is copied in each run: the place is the run's, and reused within it.
        attrs = {"kind": "loop"} if value.time == Time.RUN else {"kind": "loop", "impure": True}
        fusion = self.graph.add(
            "Fusion", (value,), attrs, types=[TensorType(value.tensor.dtype, value.tensor.shape, layout)],
            names=[f"{value.name}.copy"], regions=[body], origin=origin, before=before,
        )  # fmt: skip
        fusion.output.type = fusion.output.tensor.with_layout(layout)
        self.placement.copies.append((value.name, why))
        return fusion.output

    def _outputs(self) -> None:
        changed: list[Value] = []
        for value in self.graph.outputs:
            kind = value.type
            if isinstance(kind, TensorType) and kind.dtype.kind != "string":
                if value.time == Time.RUN and not is_row_major(kind):
                    value = self._copy(value, row_major(kind.rank), None, "outputs are dense")
                elif self.is_main and self.target.device == "cuda" and not self._is_own(value, changed):
                    value = self._copy(value, row_major(kind.rank), None, "a captured run writes each output itself")
            changed.append(value)
        self.graph.set_outputs(changed)

    def _is_own(self, value: Value, others: Sequence[Value]) -> bool:
        """Whether an output is written straight to where the caller wants it, or by a step on the host, which no copy helps."""
        root = self.placement.root(value)
        node = root.producer
        if node is None or value.time != Time.RUN:
            return False
        shared = any(self.placement.root(v) is root for v in others)
        return node.op not in ("Fusion", "Concat") or (not shared and (value is root or is_whole(value, root)))

    # ------------------------------------------------------------------ concats
    def _parts(self, node: Node, layout: Layout) -> list[Layout]:
        """The layouts of a concat's inputs as parts of its result's buffer."""
        shape = node.output.tensor.shape
        axis = node.attrs["axis"] % len(shape)
        strides, at = layout.strides(shape), layout.base(shape)
        parts = []
        for value in node.operands:
            parts.append(strided(strides, at))
            at = at + strides[axis] * value.tensor.shape[axis]
        return parts

    def place_concats(self) -> None:
        """Decide which values live inside concat buffers; later concats decide first, since they hold more."""
        self.placement.parents.clear()
        for node in reversed(list(self.graph.nodes)):
            if node.op != "Concat" or self.graph.time_of(node) != Time.RUN or not isinstance(node.output.type, TensorType):
                continue
            output = node.output
            holder = self._holder(node)
            if holder is not None and output not in self.pins:
                owner, layout = holder
                self.pins[output] = layout
                self.placement.parents[output] = owner
                continue
            layout = self.pins.get(output) or dominant_order(node, output.tensor)
            self.pins[output] = layout
            for value, part in zip(node.operands, self._parts(node, layout), strict=True):
                if self._known_with(value, output) and self._may_live_inside(value, part):
                    self.pins[value] = part
                    self.placement.parents[value] = output

    def _holder(self, node: Node) -> tuple[Value, Layout] | None:
        """(buffer owner, layout) if all inputs already lie side by side in another concat's buffer."""
        values = node.operands
        if any(v not in self.pins or v not in self.placement.parents for v in values):
            return None
        owners = {self.placement.root(v) for v in values}
        first = self.pins[values[0]]
        layout = strided(first.strides(values[0].tensor.shape), first.base(values[0].tensor.shape))
        parts = self._parts(node, layout)
        if len(owners) != 1 or any(self.pins[v] != p for v, p in zip(values, parts, strict=True)):
            return None
        return owners.pop(), layout

    def _known_with(self, value: Value, output: Value) -> bool:
        """Whether a concat's buffer has a size by the time this operand is written: no later data decides on it."""
        times = self.graph.symbol_times
        late = {s for d in output.tensor.shape for s in dims.symbols(d) if times.get(s) == Time.RUN}
        return late <= {s for d in value.tensor.shape for s in dims.symbols(d)}

    def _may_live_inside(self, value: Value, part: Layout) -> bool:
        node = value.producer
        if node is None or value in self.pins or value.is_output or value.time != Time.RUN:
            return False
        if node.op == "Concat":
            return True
        if node.op != "Fusion":
            return False
        want = self.wants[node][1][value.index]
        return fulfils(want, value.tensor.with_layout(part))

    def _concat(self, node: Node, insert: bool) -> None:
        output = node.output
        layout = self.pins.get(output) or dominant_order(node, output.tensor)
        output.type = output.tensor.with_layout(layout)
        if not insert:
            return
        if all(self.placement.root(v) is self.placement.root(output) for v in node.operands) and self._is_view(node, layout):
            return
        for position, (value, part) in enumerate(zip(node.operands, self._parts(node, layout), strict=True)):
            if self.placement.parents.get(value) is output and self.pins.get(value) == part:
                continue
            copy = self._copy(value, part, node, "concat of a value that lives elsewhere")
            self.placement.parents[copy] = output
            self.graph.set_input(node, position, copy)

    def _is_view(self, node: Node, layout: Layout) -> bool:
        return all(self.pins.get(v) == p for v, p in zip(node.operands, self._parts(node, layout), strict=True))


