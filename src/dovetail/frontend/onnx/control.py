"""Imports If, Loop and Scan: regions with explicit captures, and result types worked out from their bodies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx

from dovetail.core.dims import Dim, Expr, sym, symbols
from dovetail.core.dtypes import BOOL, I64, DType
from dovetail.frontend.importer import ImportContext, add_capture
from dovetail.frontend.onnx.contraction import require
from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.frontend.session import Body
from dovetail.ir.graph import Graph, Time, Value
from dovetail.ir.types import SequenceType, TensorType, Type

_MAX_ROUNDS = 8
FLAG = TensorType(BOOL, ())
COUNTER = TensorType(I64, ())


def _importer(context: Context) -> ImportContext:
    """The context with what only ops with regions need: captures, subgraphs, explicit types."""
    return cast(ImportContext, context)


class _Results:
    """Types of a control node's results; extents that a region alone knows become symbols of the node."""

    def __init__(self, ctx: ImportContext) -> None:
        self.ctx = ctx
        self.symbols: list[str] = []

    def fresh(self) -> Expr:
        """An extent that is read off the result."""
        name = self.ctx.fresh("c")
        self.symbols.append(name)
        return sym(name)

    def dim(self, options: Sequence[Dim], inner: frozenset[str]) -> Dim:
        """The extent that all options agree on and that holds outside of the region, else a fresh symbol."""
        first = options[0]
        agreed = all(d == first for d in options) and not symbols(first) & inner
        return first if agreed else self.fresh()

    def join(self, types: Sequence[Type], inner: frozenset[str], what: str) -> Type:
        """One type for a result that has any of the given types."""
        first = types[0]
        if isinstance(first, SequenceType) or not all(isinstance(t, TensorType) for t in types):
            if not all(isinstance(t, SequenceType) for t in types):
                self.ctx.unsupported(f"{what} is a tensor or a sequence", "export it as one kind of value")
            return first
        tensors = [t for t in types if isinstance(t, TensorType)]
        if len({t.dtype for t in tensors}) > 1 or len({t.rank for t in tensors}) > 1:
            listing = " or ".join(str(t) for t in dict.fromkeys(tensors))
            self.ctx.unsupported(f"{what} is {listing}", "export it with one element type and one rank")
        shape = tuple(self.dim(dims, inner) for dims in zip(*(t.shape for t in tensors), strict=True))
        return first.with_shape(shape)


def inner_symbols(region: Graph) -> frozenset[str]:
    """Symbols that nodes of a region define (those of nested regions never leave these)."""
    return frozenset(s for node in region.nodes for s in node.attrs.get("symbols", ()))


def _known(ctx: ImportContext, value: Value | None, why: str) -> np.ndarray[Any, Any] | None:
    """The value of a scalar that is fixed at import: by weights (guarded) or by static shapes."""
    if value is None:
        return None
    if value.time == Time.WEIGHT:
        return ctx.constant(value, why)
    if value.contents is not None and not any(isinstance(d, Expr) for d in value.contents.reshape(-1)):
        return np.asarray(value.contents)
    return None


@onnx_op("If")
def if_(context: Context, node: OnnxNode) -> Any:
    """If-1 to 25; a condition that is known at import leaves only its branch."""
    ctx = _importer(context)
    condition = require(ctx, node, 0, "cond")
    branches = (node.attrs["then_branch"], node.attrs["else_branch"])
    known = _known(ctx, condition, f"branch of {node.name}")
    if known is not None:
        return ctx.inline_subgraph(branches[0] if bool(known.reshape(())) else branches[1])
    captures = ctx.captures(*branches)
    regions = [ctx.subgraph(b, [], captures) for b in branches]
    for region in regions:  # a branch may have found captures after the other one was made
        for value in captures[len(region.inputs) :]:
            add_capture(region, value)
    if len(regions[0].outputs) != len(regions[1].outputs):
        ctx.unsupported("its branches return different numbers of values", "let both return the same")
    inner = inner_symbols(regions[0]) | inner_symbols(regions[1])
    results = _Results(ctx)
    types = [
        results.join([a.type, b.type], inner, f"output {i}")
        for i, (a, b) in enumerate(zip(regions[0].outputs, regions[1].outputs, strict=True))
    ]
    attrs = {"symbols": tuple(results.symbols)} if results.symbols else {}
    return ctx.emit_typed("If", (condition, *captures), attrs, types, regions).outputs


@dataclass
class _Body:
    """An imported loop body: its region, captures, and the types that its carried values settle on."""

    region: Graph
    captures: list[Value]
    carried: list[Type]
    inner: frozenset[str]


def _settle(
    ctx: ImportContext,
    proto: onnx.GraphProto | Body,
    before: Sequence[Type],
    carried: Sequence[Type],
    after: Sequence[Type],
    skip: int,
) -> _Body:
    """Import a body whose inputs are `before`, the carried values, `after`; extents that change get fresh symbols.

    The first `skip` outputs of the body are not carried values. The import is repeated with more general
    input types until what comes out fits what went in.
    """
    captures = ctx.captures(proto)
    types, varying = list(carried), set[str]()
    for _ in range(_MAX_ROUNDS):
        # A rejected attempt must leave no weights behind.
        mark = ctx.session.mark()
        region = ctx.subgraph(proto, [*before, *types, *after], captures)
        inner = inner_symbols(region) | varying
        settled = True
        for i, result in enumerate(region.outputs[skip : skip + len(types)]):
            general = _generalise(ctx, types[i], result.type, varying, f"carried value {i}")
            if general != types[i]:
                types[i], settled = general, False
        if settled:
            return _Body(region, captures, types, frozenset(inner))
        ctx.session.undo(mark)
    ctx.unsupported("the shapes of its carried values do not settle", "give them fixed ranks and types")


def _generalise(ctx: ImportContext, given: Type, result: Type, varying: set[str], what: str) -> Type:
    """`given`, with a fresh symbol for each extent that comes out of the body different."""
    if isinstance(given, SequenceType) or isinstance(result, SequenceType):
        if type(given) is not type(result):
            ctx.unsupported(f"{what} enters as {given} and leaves as {result}", "keep its kind")
        return result
    if given.dtype != result.dtype or given.rank != result.rank:
        ctx.unsupported(f"{what} enters as {given} and leaves as {result}", "keep its element type and rank")
    shape = list(given.shape)
    for axis, (old, new) in enumerate(zip(given.shape, result.shape, strict=True)):
        is_varying = isinstance(old, Expr) and symbols(old) <= varying and old == sym(str(old))
        if old != new and not is_varying:
            name = ctx.fresh("v")
            varying.add(name)
            shape[axis] = sym(name)
    return given.with_shape(tuple(shape))


def _elements(values: Sequence[Value], inner: frozenset[str], ctx: ImportContext) -> tuple[tuple[DType, tuple[Dim, ...]], ...]:
    """Dtype and extents of the scan elements, with 0 for an extent only the region knows."""
    found = []
    for value in values:
        if not isinstance(value.type, TensorType):
            ctx.unsupported("a scan output of sequences", "return tensors")
        found.append((value.type.dtype, tuple(0 if symbols(d) & inner else d for d in value.type.shape)))
    return tuple(found)


@onnx_op("Loop")
def loop(context: Context, node: OnnxNode) -> Any:
    """Loop-1 to 25."""
    ctx = _importer(context)
    trip_count, condition = node.input(0), node.input(1)
    proto: onnx.GraphProto | Body = node.attrs["body"]
    initial = [require(ctx, node, i, "carried value") for i in range(2, len(node.inputs))]
    count = len(initial)
    if isinstance(proto, onnx.GraphProto) and len(proto.input) != count + 2:
        ctx.unsupported(f"its body takes {len(proto.input)} values", f"expected {count + 2}")
    body = _settle(ctx, proto, [COUNTER, FLAG], [v.type for v in initial], [], 1)
    returned = body.region.outputs
    results = _Results(ctx)
    types = [
        results.join([start.type, last.type], body.inner, f"carried value {i}")
        for i, (start, last) in enumerate(zip(initial, returned[1 : 1 + count], strict=True))
    ]
    scans = returned[1 + count :]
    trips: Dim | None = None
    if scans:
        trips = _trips(ctx, node, trip_count, condition, body.region)
    for value in scans:
        leading = results.fresh() if trips is None else trips
        shape = tuple(results.dim([d], body.inner) for d in value.tensor.shape)
        types.append(value.tensor.with_shape((leading, *shape)))
    attrs: dict[str, Any] = {"carried": count, "elements": _elements(scans, body.inner, ctx)}
    if results.symbols:
        attrs["symbols"] = tuple(results.symbols)
    inputs = (trip_count, condition, *initial, *body.captures)
    return ctx.emit_typed("Loop", inputs, attrs, types, [body.region]).outputs


def _trips(
    ctx: ImportContext, node: OnnxNode, trip_count: Value | None, condition: Value | None, region: Graph
) -> Dim | None:
    """How often a loop runs, where only the trip count decides and it is known from shapes or weights."""
    if trip_count is None or (trip_count.contents is None and trip_count.time == Time.RUN):
        return None
    if condition is not None:
        starts = _known(ctx, condition, f"condition of {node.name}")
        if starts is None or not bool(starts.reshape(())):
            return None
    more = region.outputs[0]
    stays = more is region.inputs[1] or (
        more.contents is not None and more.contents.size == 1 and bool(more.contents.reshape(())[()]) is True
    )
    if not stays:
        return None
    (count,) = ctx.dims(trip_count)
    return max(count, 0) if isinstance(count, int) else count


def _axes(values: Sequence[int] | None, ranks: Sequence[int]) -> tuple[int, ...]:
    given = list(values or [0] * len(ranks))
    return tuple(axis % rank for axis, rank in zip(given, ranks, strict=True))


@onnx_op("Scan", since=9)
def scan(context: Context, node: OnnxNode) -> Any:
    """Scan-9 to 25."""
    ctx = _importer(context)
    values = [require(ctx, node, i, "state or scanned value") for i in range(len(node.inputs))]
    scans = int(node.attr("num_scan_inputs", 0))
    if not 0 < scans <= len(values):
        ctx.unsupported(f"num_scan_inputs {scans} of {len(values)} inputs", "scan at least one input")
    states = len(values) - scans
    ranks = [v.tensor.rank for v in values[states:]]
    scanning = _Scanning(
        _axes(node.attr("scan_input_axes"), ranks),
        tuple(bool(d) for d in node.attr("scan_input_directions") or [0] * scans),
        node.attr("scan_output_axes"),
        node.attr("scan_output_directions"),
    )
    return _scan(ctx, node.attrs["body"], values, states, scanning)


@dataclass
class _Scanning:
    """Axes and directions of a Scan's inputs and, where given, outputs (whose axes may be negative)."""

    input_axes: tuple[int, ...]
    input_reverse: tuple[bool, ...]
    output_axes: Sequence[int] | None = None
    output_reverse: Sequence[int] | None = None


def _scan(
    ctx: ImportContext, proto: onnx.GraphProto | Body, values: Sequence[Value], states: int, scanning: _Scanning
) -> tuple[Value, ...]:
    slices: list[Type] = []
    for value, axis in zip(values[states:], scanning.input_axes, strict=True):
        shape = value.tensor.shape
        slices.append(value.tensor.with_shape((*shape[:axis], *shape[axis + 1 :])))
    steps = values[states].tensor.shape[scanning.input_axes[0]]
    body = _settle(ctx, proto, [], [v.type for v in values[:states]], slices, 0)
    results, types = _Results(ctx), []
    for i, last in enumerate(body.region.outputs[:states]):
        types.append(results.join([values[i].type, last.type], body.inner, f"state {i}"))
    stacked = body.region.outputs[states:]
    axes = _axes(scanning.output_axes, [v.tensor.rank + 1 for v in stacked])
    for value, axis in zip(stacked, axes, strict=True):
        shape_out = [results.dim([d], body.inner) for d in value.tensor.shape]
        types.append(value.tensor.with_shape((*shape_out[:axis], steps, *shape_out[axis:])))
    attrs: dict[str, Any] = {
        "states": states,
        "scans": len(values) - states,
        "input_axes": scanning.input_axes,
        "input_reverse": scanning.input_reverse,
        "output_axes": axes,
        "output_reverse": tuple(bool(d) for d in scanning.output_reverse or [0] * len(stacked)),
        "elements": _elements(stacked, body.inner, ctx),
    }
    if results.symbols:
        attrs["symbols"] = tuple(results.symbols)
    return ctx.emit_typed("Scan", (*values, *body.captures), attrs, types, [body.region]).outputs


@onnx_op("Scan", since=8)
def scan_8(context: Context, node: OnnxNode) -> Any:
    """Scan-8: every value has a leading batch axis, so this is a scan over the batch around a scan over axis 1."""
    ctx = _importer(context)
    if node.input(0) is not None:
        ctx.unsupported("sequence_lens of Scan-8", "re-export with opset 9 or newer")
    values = [require(ctx, node, i, "state or scanned value") for i in range(1, len(node.inputs))]
    proto: onnx.GraphProto = node.attrs["body"]
    scans = int(node.attr("num_scan_inputs", 0))
    states = len(values) - scans
    reverse = tuple(bool(d) for d in node.attr("directions") or [0] * scans)
    captures = ctx.captures(proto)
    outer = Graph(f"{proto.name or 'scan'}_batch")
    region = ImportContext(ctx.session, outer, ctx, ctx.opsets)
    region.origin, region.node = ctx.origin, node
    rows = [outer.add_input("x", v.tensor.with_shape(v.tensor.shape[1:])) for v in values]
    names: dict[Value, Value] = {}
    for value in captures:
        names[value] = outer.add_input(value.name, value.type)
        names[value].contents = value.contents
    region.scope = {k: names.get(v, v) if isinstance(v, Value) else v for k, v in ctx.scope.items()}
    scanning = _Scanning((0,) * scans, reverse)
    outer.set_outputs(_scan(region, proto, rows, states, scanning))
    outer.update_times()
    inner = inner_symbols(outer)
    results = _Results(ctx)
    batch = values[0].tensor.shape[0]
    types = [
        v.tensor.with_shape((batch, *(results.dim([d], inner) for d in v.tensor.shape))) for v in outer.outputs
    ]
    count = len(outer.outputs)
    attrs: dict[str, Any] = {
        "states": 0,
        "scans": len(values),
        "input_axes": (0,) * len(values),
        "input_reverse": (False,) * len(values),
        "output_axes": (0,) * count,
        "output_reverse": (False,) * count,
        "elements": _elements(outer.outputs, inner, ctx),
    }
    if results.symbols:
        attrs["symbols"] = tuple(results.symbols)
    return ctx.emit_typed("Scan", (*values, *captures), attrs, types, [outer]).outputs
