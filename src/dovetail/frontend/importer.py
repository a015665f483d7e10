"""ONNX to IR: walks the nodes, calls one importer per op, tracks shape contents, and collects every unsupported node."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx

from dovetail.core import dims
from dovetail.core.dims import Dim
from dovetail.core.dtypes import dtype
from dovetail.core.errors import ModelError, UnsupportedOpError, UsageError
from dovetail.core.log import logger
from dovetail.frontend.contents import contents_of
from dovetail.frontend.declared import MOST_ELEMENTS, InputTypes
from dovetail.frontend.functions import expand
from dovetail.frontend.plugins import call_plugin, has_plugin
from dovetail.frontend.protos import densify, domain_of, free_names, plain
from dovetail.frontend.reader import Definition, ModelSource, ShapeOverride, read_model, read_tensor
from dovetail.frontend.registry import TENSORRT, OnnxNode, find_importer
from dovetail.frontend.session import (
    FAILED,
    NO_WAY,
    Body,
    Failed,
    Poisoned,
    Session,
    Unsupported,
    explained,
)
from dovetail.ir.graph import Graph, Guard, Module, Node, Time, Value
from dovetail.ir.types import TensorType, Type
from dovetail.ops.infer import infer
from dovetail.ops.registry import find as find_spec
from dovetail.reference.registry import call

_log = logger("import")
_MAX_CONTENTS = 256


def import_onnx(source: ModelSource, shapes: ShapeOverride | None = None) -> Module:
    """The module of an ONNX model, or of one defined in Python.

    Args:
        source: path, bytes, ModelProto or `Network`.
        shapes: replaces input shapes: an int fixes a dimension, a name makes it that symbol, "1..32" bounds it.

    Raises:
        ModelError: unreadable or invalid model.
        UnsupportedOpError: lists every node that cannot be imported, with op, reason and hint.
    """
    if isinstance(source, Definition):
        return source.module(shapes)
    context = main_context(*read_model(source))
    context.import_main(shapes or {})
    context.session.require_no_problems()
    context.graph.update_times()
    return context.module


def main_context(model: onnx.ModelProto, folder: Path | None) -> ImportContext:
    """The context of a model's main graph, of which nothing is imported yet."""
    session = Session(model, folder)
    return ImportContext(session, Graph("main"), None, session.opsets)


class ImportContext:
    """Imports one graph (the main one or a region); the `Context` that importers see."""

    def __init__(self, session: Session, graph: Graph, parent: ImportContext | None, opsets: Mapping[str, int]) -> None:
        self.session, self.graph, self.parent, self.opsets = session, graph, parent, opsets
        self.module = session.module
        if parent is None:
            self.module.main = graph
        self.scope: dict[str, Value | None | Failed] = {}
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.origin: tuple[str, ...] = ()
        self.node: OnnxNode | None = None
        self.first_node: Node | None = None
        self.busy = ""  # what holds this graph while a body inside of it is traced

    # ------------------------------------------------------------------ the graph
    def import_main(self, shapes: ShapeOverride) -> None:
        """Import the model's top graph."""
        proto = self.session.model.graph
        self.declare_inputs(shapes)
        outputs = self.import_nodes(proto.node, [o.name for o in proto.output])
        self.module.meta |= {"output_names": [o.name for o in proto.output], "opsets": dict(self.opsets)}
        if all(isinstance(v, Value) for v in outputs):
            self.graph.set_outputs([v for v in outputs if isinstance(v, Value)])
        elif not self.session.problems:
            missing = [o.name for o, v in zip(proto.output, outputs, strict=True) if not isinstance(v, Value)]
            raise ModelError(f"model: outputs {missing} are computed by no node")

    def declare_inputs(self, shapes: ShapeOverride) -> None:
        """Add the inputs of the model's top graph, and note its initializers."""
        proto = self.session.model.graph
        self._register_initializers(proto)
        inputs = [v for v in proto.input if v.name not in self.initializers]
        unknown = set(shapes) - {v.name for v in inputs}
        if unknown:
            raise ModelError(f"shapes: got {sorted(unknown)}, expected names of inputs: {[v.name for v in inputs]}")
        types = InputTypes(self.module, self.session.symbols, self.fresh)
        for value in inputs:
            type_ = types.declared(value.type, value.name, shapes.get(value.name))
            if isinstance(type_, TensorType) and (count := math.prod(d for d in type_.shape if isinstance(d, int))) > MOST_ELEMENTS:
                raise ModelError(f"input {value.name!r}: got {count} elements, expected at most {MOST_ELEMENTS}; give sizes (--shapes)")
            if value.name in self.scope:
                raise ModelError(f"model: input {value.name!r} is declared twice")
            self.scope[value.name] = self.graph.add_input(value.name, type_)

    def _register_initializers(self, proto: onnx.GraphProto) -> None:
        for tensor in proto.initializer:
            self.initializers[tensor.name] = tensor
        for sparse in proto.sparse_initializer:
            self.scope[sparse.values.name] = self._weight(sparse.values.name, densify(sparse, self.session.folder))

    def import_nodes(self, nodes: Iterable[onnx.NodeProto], outputs: Sequence[str]) -> list[Value | None | Failed]:
        """Import node protos in order; returns the values named by `outputs` (None where absent)."""
        for proto in nodes:
            self.import_node(proto)
        return [self.look_up(name) if self.defines(name) else None for name in outputs]

    # ------------------------------------------------------------------ names
    def defines(self, name: str) -> bool:
        """Whether a name is visible here."""
        return name in self.scope or name in self.initializers

    def look_up(self, name: str) -> Value | None | Failed:
        """The value of an ONNX name; an initializer becomes a Constant at its first use."""
        if name in self.scope:
            return self.scope[name]
        if name in self.initializers:
            value = self._weight(name, read_tensor(self.initializers[name], self.session.folder))
            self.scope[name] = value
            return value
        raise ModelError(f"model: {name!r} is used before any node computes it; the graph is not in order or is damaged")

    def _weight(self, name: str, array: np.ndarray[Any, Any]) -> Value:
        if name in self.module.weights:  # the same name in several subgraphs
            count = 1
            while f"{name}#{count}" in self.module.weights:
                count += 1
            name = f"{name}#{count}"
        self.module.weights[name] = array
        return self._constant_node(name, array)

    def _constant_node(self, name: str, array: np.ndarray[Any, Any]) -> Value:
        kind = dtype(array.dtype)
        type_ = TensorType(kind, tuple(array.shape))
        # Constants stand in front of everything that may read them, in the order of their first use.
        value = self.graph.add("Constant", (), {"name": name}, types=[type_], names=[name], before=self.first_node).output
        if array.size <= _MAX_CONTENTS and kind.name not in ("str",) and array.dtype.kind in "iubf":
            value.contents = array.astype(object)
        return value

    # ------------------------------------------------------------------ nodes
    def import_node(self, proto: onnx.NodeProto) -> None:
        """Import one node; the values it computes get its names. What is unsupported is noted in the session's problems."""
        domain = domain_of(proto.domain)
        name = proto.name or next((o for o in proto.output if o), proto.op_type)
        opset = self.opset_of(domain)
        where = f"{name} ({f'{domain}::' if domain else ''}{proto.op_type})"
        values: tuple[Any, ...]
        try:
            with explained(where, proto.op_type):
                inputs = [self.look_up(i) if i else None for i in proto.input]
                if any(isinstance(v, Failed) for v in inputs):
                    if find_importer(proto.op_type, opset, domain) is None and not self._known(proto, domain, opset):
                        raise Unsupported(*NO_WAY)
                    raise Poisoned
                node = OnnxNode(
                    proto.op_type, domain, name, opset, [v for v in inputs if not isinstance(v, Failed)], list(proto.output),
                    {a.name: self._attribute(a, where) for a in proto.attribute},
                )  # fmt: skip
            values = self.lower(node)
        except Poisoned:
            values = (FAILED,) * len(proto.output)
        except UnsupportedOpError as error:
            self.session.problems += error.problems
            values = (FAILED,) * len(proto.output)
        self._bind(proto.output, values, where)

    def opset_of(self, domain: str) -> int:
        """The version of a domain's operators here."""
        return self.opsets.get(domain, 1 if domain else onnx.defs.onnx_opset_version())

    def lower(self, node: OnnxNode) -> tuple[Value | None, ...]:
        """The values that a node computes, from the first way that there is: an importer, the IR's op of that name, a function
        body of the model or of ONNX, a plugin of that name.

        Raises:
            UnsupportedOpError: there is no way, or what there is does not cover the node; with one problem or several.
            ModelError: inputs or attributes do not fit the op.
        """
        self.node, self.origin = node, (node.name,)
        with explained(node.where, node.op_type):
            importer = find_importer(node.op_type, node.opset, node.domain)
            results: Any
            if importer is not None:
                results = importer(self, node)
            elif not node.domain and find_spec(node.op_type) is not None:
                results = self.emit(node.op_type, *node.inputs, **{k: plain(v) for k, v in node.attrs.items()})
            else:
                results = expand(node, self)
                if results is None:
                    results = self._plugin(node)
            return tuple(results) if isinstance(results, (tuple, list)) else (results,)

    def _plugin(self, node: OnnxNode) -> Any:
        """An op that nothing else imports is a call of the plugin of that name, or of one that TensorRT brings."""
        fields = dict(node.attrs)
        version, namespace = str(fields.pop("plugin_version", "1")), str(fields.pop("plugin_namespace", ""))
        if not has_plugin(node.op_type, version, namespace):
            known = find_importer(node.op_type, 1, TENSORRT)
            if known is None:
                raise Unsupported(*NO_WAY)
            return known(self, node)
        return call_plugin(self, node.op_type, node.inputs, version, namespace, fields, node.n_outputs)

    def _known(self, proto: onnx.NodeProto, domain: str, opset: int) -> bool:
        if (domain, proto.op_type, getattr(proto, "overload", "")) in self.session.functions:
            return True
        if not domain and find_spec(proto.op_type) is not None:
            return True
        fields = {a.name: a.s.decode("utf-8", "replace") for a in proto.attribute if a.type == onnx.AttributeProto.STRING}
        if find_importer(proto.op_type, 1, TENSORRT) is not None:
            return True
        if has_plugin(proto.op_type, fields.get("plugin_version", "1"), fields.get("plugin_namespace", "")):
            return True
        try:
            return bool(onnx.defs.get_schema(proto.op_type, opset, domain).has_function)
        except onnx.defs.SchemaError:
            return False

    def _bind(self, names: Sequence[str], values: Sequence[Any], where: str) -> None:
        wanted = max((i + 1 for i, n in enumerate(names) if n), default=0)
        if len(values) < wanted:
            raise ModelError(f"{where}: got {wanted} outputs in the model, expected at most {len(values)}")
        for name, value in zip(names, values, strict=False):
            if not name:
                continue
            if name in self.scope:
                raise ModelError(f"{where}: output {name!r} is computed twice")
            self.scope[name] = value
            fresh = isinstance(value, Value) and value.producer is not None and value.producer.op != "Constant"
            if fresh and value.producer.origin == self.origin and value.name != name:
                self.graph.rename(value, name)

    def _attribute(self, proto: onnx.AttributeProto, where: str) -> Any:
        kind = proto.type
        if proto.ref_attr_name:
            raise ModelError(f"{where}: attribute {proto.name!r} refers to {proto.ref_attr_name!r} outside a function")
        if kind == onnx.AttributeProto.TENSOR:
            return read_tensor(proto.t, self.session.folder)
        if kind == onnx.AttributeProto.STRING:
            return proto.s.decode("utf-8", "replace")
        if kind == onnx.AttributeProto.STRINGS:
            return [s.decode("utf-8", "replace") for s in proto.strings]
        if kind == onnx.AttributeProto.SPARSE_TENSOR:
            return densify(proto.sparse_tensor, self.session.folder)
        try:
            value = onnx.helper.get_attribute_value(proto)
        except ValueError as error:
            raise ModelError(f"{where}: attribute {proto.name!r} is damaged ({error})") from error
        return list(value) if kind in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS) else value

    # ------------------------------------------------------------------ what importers use
    def emit(self, op: str, *inputs: Value | None, **attrs: Any) -> Any:
        """Add an IR node with inferred types; one Value, or a tuple of several (empty for none)."""
        attrs = {k: plain(v) for k, v in attrs.items()}
        types = infer(op, inputs, attrs)
        node = self.emit_typed(op, inputs, attrs, types)
        results = self._settled(node) if "symbols" in attrs else node.outputs
        return results[0] if len(results) == 1 else results

    def emit_typed(
        self,
        op: str,
        inputs: Sequence[Value | None],
        attrs: Mapping[str, Any],
        types: Sequence[Type],
        regions: Sequence[Graph] = (),
    ) -> Node:
        """Add an IR node whose output types the caller knows (ops with regions)."""
        given = dict(attrs)
        spec = find_spec(op)
        if spec is not None and spec.impure:
            given["impure"] = True
        node = self.graph.add(op, inputs, given, types=types, regions=regions, origin=self.origin)
        self.first_node = self.first_node or node
        self._track(node)
        return node

    def _settled(self, node: Node) -> tuple[Value, ...]:
        """The results of a node whose extents depend on its data; where these are weights, constants of known extents.

        Runs know the symbols of inputs and those that they define themselves, none that loading defines.
        """
        if not node.outputs or any(v.time != Time.WEIGHT or not isinstance(v.type, TensorType) for v in node.outputs):
            return tuple(node.outputs)
        why = f"{node.op}, whose extents depend on its data"
        settled = tuple(self.const(self._read(v, why)) for v in node.outputs)
        for value in node.outputs:
            del self.session.constants[value]
        if self.first_node is node:
            self.first_node = settled[0].producer
        self.graph.erase(node)
        return settled

    def _track(self, node: Node) -> None:
        known = [v.contents if v is not None else None for v in node.inputs]
        if len(node.outputs) != 1 or not isinstance(node.output.type, TensorType) or node.regions:
            return
        size = node.output.type.size
        if isinstance(size, int) and size <= _MAX_CONTENTS:
            node.output.contents = contents_of(node, known)

    def const(self, array: np.ndarray[Any, Any], hint: str = "") -> Value:
        """A constant of the program; its name starts with "~", which no user weight's does."""
        array = np.asarray(array)
        name = f"~{hint or (self.node.op_type if self.node else 'const')}"
        count = 0
        while (unique := f"{name}.{count}") in self.module.weights:
            count += 1
        self.module.weights[unique] = array
        return self._constant_node(unique, array)

    def initializer(self, name: str, array: np.ndarray[Any, Any]) -> Value:
        """A weight of the model, which a refit may change by its name."""
        return self._weight(name, array)

    def weight(self, name: str, array: np.ndarray[Any, Any]) -> Value:
        """A named weight that the model carries in a node (ONNX Constant) instead of an initializer."""
        value = self._weight(name, np.asarray(array))
        assert value.producer is not None
        self.module.meta.setdefault("node_constants", []).append(value.producer.attrs["name"])
        return value

    def constant(self, value: Value, why: str) -> np.ndarray[Any, Any] | None:
        """The array of a WEIGHT-time value, with a guard on every named weight it depends on; None for later values."""
        if value.time != Time.WEIGHT or not isinstance(value.type, TensorType):
            return None
        return self._read(value, why)

    def _read(self, value: Value, why: str) -> np.ndarray[Any, Any]:
        """The array of a WEIGHT-time value, guarded."""
        array = self._evaluate(value)
        self._guard(value, why)
        return array

    def _evaluate(self, value: Value) -> np.ndarray[Any, Any]:
        memo = self.session.constants
        pending = [value]
        while pending:
            current = pending[-1]
            node = current.producer
            assert node is not None
            if current in memo:
                pending.pop()
            elif node.op == "Constant":
                memo[current] = self.module.weights[node.attrs["name"]]
            elif missing := [v for v in node.operands if v not in memo]:
                pending += missing
            elif unbound := node.symbols() - set(self.session.sizes):
                pending += self._sources(unbound)
            else:
                spec = find_spec(node.op)
                assert spec is not None
                attrs = spec.complete({k: v for k, v in node.attrs.items() if k != "impure"})
                attrs = {k: _evaluated(v, self.session.sizes) for k, v in attrs.items()}
                results = call(node.op, [None if v is None else memo[v] for v in node.inputs], attrs)
                for output, array in zip(node.outputs, results, strict=True):
                    memo[output] = np.asarray(array)
                    self._bind_sizes(output.tensor.shape, memo[output].shape)
        return memo[value]

    def _sources(self, symbols: frozenset[str]) -> list[Value]:
        """The values to evaluate before these symbols, which nodes define from weights, are known."""
        memo, needed = self.session.constants, []
        for node in self.graph.nodes:
            if symbols.isdisjoint(node.attrs.get("symbols", ())):
                continue
            if node.op != "BindSymbols":
                needed.append(node.outputs[0])
            elif node.input(0) not in memo:
                needed.append(node.input(0))
            else:
                data = memo[node.input(0)].reshape(-1)
                self.session.sizes.update(zip(node.attrs["symbols"], map(int, data), strict=True))
        return needed

    def _bind_sizes(self, shape: Sequence[Dim], extents: Sequence[int]) -> None:
        for dim, extent in zip(shape, extents, strict=True):
            if isinstance(dim, dims.Expr) and dims.symbols(dim) == {str(dim)}:
                self.session.sizes.setdefault(str(dim), extent)

    def _guard(self, value: Value, why: str) -> None:
        seen: set[Node] = set()
        pending = [value.producer]
        while pending:
            node = pending.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            pending += [v.producer for v in node.operands]
            if node.op == "Constant" and not node.attrs["name"].startswith("~"):
                name = node.attrs["name"]
                if (name, why) in self.session.guarded:
                    continue
                self.session.guarded.add((name, why))
                array = self.module.weights[name]
                digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() if array.dtype != object else ""
                self.module.guards.append(Guard(name, why, digest, np.array2string(array.reshape(-1)[:8], threshold=8)))

    def dims(self, value: Value) -> tuple[Dim, ...]:
        """The contents of a small integer tensor as dims; run-time data is bound to fresh symbols by a host step."""
        if value.contents is not None:
            self._guard(value, f"shape of {self.origin[0] if self.origin else '?'}")
            return tuple(d if isinstance(d, dims.Expr) else int(d) for d in value.contents.reshape(-1))
        if value.time == Time.WEIGHT:
            array = self.constant(value, f"shape of {self.origin[0] if self.origin else '?'}")
            assert array is not None
            return tuple(int(d) for d in array.reshape(-1))
        size = value.tensor.size
        if not isinstance(size, int):
            self.unsupported(f"%{value.name} drives a shape but has no fixed number of elements", "export with a fixed rank")
        symbols = tuple(self.fresh("u") for _ in range(size))
        self.emit_typed("BindSymbols", (value,), {"symbols": symbols}, ())
        return tuple(dims.sym(s) for s in symbols)

    def fresh(self, prefix: str) -> str:
        """An unused symbol name."""
        count = 0
        while (name := f"{prefix}{count}") in self.session.symbols:
            count += 1
        self.session.symbols.add(name)
        return name

    def trains(self, what: str) -> None:
        """Note that the current node computes as in training, and how."""
        if self.node is not None:
            self.module.meta.setdefault("training", {})[self.node.where] = what

    def unsupported(self, reason: str, hint: str) -> NoReturn:
        """Give up on the current node; the model's other nodes are still checked."""
        raise Unsupported(reason, hint)

    def undo(self, mark: tuple[int, int], last: Node | None, first: Node | None) -> None:
        """Take away what was added since the session's `mark`, when `last` was the last and `first` the first node."""
        names = self.session.undo(mark)
        for node in reversed(self.graph.after(last)):
            self.graph.erase(node)
        for node in self.graph.nodes:  # constants stand in front
            if node.op == "Constant" and node.attrs["name"] in names:
                self.graph.erase(node)
        self.first_node = first

    def adopt(self, value: Value) -> Value:
        """A value in this graph; regions whose captures are not known beforehand capture it.

        Raises:
            UsageError: it belongs to another network.
        """
        if value.graph is not self.graph or (value.producer is not None and value.producer.erased):
            raise UsageError(f"%{value.name}: got a value of another network, or of an op that failed, expected one of this network")
        return value

    # ------------------------------------------------------------------ regions and functions
    def captures(self, *protos: onnx.GraphProto | Body) -> list[Value]:
        """The outer values that subgraphs read, in order of first use, each once; `subgraph` appends those of other bodies."""
        names: dict[str, None] = {}
        for proto in protos:
            if isinstance(proto, onnx.GraphProto):
                free_names(proto, names)
        found: dict[Value, None] = {}
        for name in names:
            value = self.look_up(name)
            if isinstance(value, Failed):
                raise Poisoned
            if value is not None:
                found[value] = None
        return list(found)

    def subgraph(self, proto: onnx.GraphProto | Body, types: Sequence[Type], captures: list[Value]) -> Graph:
        """A region whose inputs are the subgraph's own (of the given types), then the captures.

        Raises:
            UnsupportedOpError: a node of the subgraph cannot be imported (collected with all others).
        """
        if isinstance(proto, Body):
            return proto.region(self, types, captures)
        region = Graph(proto.name or "region")
        inner = ImportContext(self.session, region, self, self.opsets)
        inner.origin = self.origin
        before = len(self.session.problems)
        for info, type_ in zip(proto.input, types, strict=True):
            inner.scope[info.name] = region.add_input(info.name, type_)
        inner_of: dict[Value, Value] = {}
        for value in captures:
            inner_of[value] = add_capture(region, value)
        names: dict[str, None] = {}
        free_names(proto, names)
        for name in names:
            outer = self.look_up(name)
            inner.scope[name] = inner_of[outer] if isinstance(outer, Value) else outer
        inner._register_initializers(proto)
        outputs = inner.import_nodes(proto.node, [o.name for o in proto.output])
        if len(self.session.problems) > before or any(isinstance(v, Failed) for v in outputs):
            raise Poisoned
        missing = [o.name for o, v in zip(proto.output, outputs, strict=True) if v is None]
        if missing:
            raise ModelError(f"subgraph {proto.name!r}: outputs {missing} are computed by no node")
        region.set_outputs([v for v in outputs if isinstance(v, Value)])
        region.update_times()
        return region

    def inline_subgraph(self, proto: onnx.GraphProto | Body) -> list[Value]:
        """Import a subgraph without inputs in place, as the branch of an If that is known to be taken."""
        if isinstance(proto, Body):
            return proto.inline(self)
        outer_names: dict[str, None] = {}
        free_names(proto, outer_names)
        for name in outer_names:
            self.look_up(name)  # resolved here, so that an initializer becomes one Constant for all its readers
        outer = (self.scope, self.initializers, self.origin, self.node)
        before = len(self.session.problems)
        self.scope, self.initializers = dict(self.scope), dict(self.initializers)
        try:
            self._register_initializers(proto)
            results = self.import_nodes(proto.node, [o.name for o in proto.output])
        finally:
            self.scope, self.initializers, self.origin, self.node = outer
        if len(self.session.problems) > before or any(isinstance(v, Failed) for v in results):
            raise Poisoned
        missing = [o.name for o, v in zip(proto.output, results, strict=True) if v is None]
        if missing:
            raise ModelError(f"subgraph {proto.name!r}: outputs {missing} are computed by no node")
        return [v for v in results if isinstance(v, Value)]

    def inline(
        self,
        nodes: Iterable[onnx.NodeProto],
        inputs: Mapping[str, Value | None],
        outputs: Sequence[str],
        opsets: Mapping[str, int],
    ) -> list[Value | None]:
        """Import a function body in a scope of its own; its nodes keep the calling node as origin."""
        outer = (self.scope, self.initializers, self.opsets, self.origin, self.node)
        before = len(self.session.problems)
        self.scope, self.initializers, self.opsets = dict(inputs), {}, {domain_of(k): v for k, v in opsets.items()}
        caller = self.origin
        try:
            for proto in nodes:
                self.import_node(proto)
                self.origin = caller
            results = [self.look_up(name) if name in self.scope else None for name in outputs]
        finally:
            self.scope, self.initializers, self.opsets, self.origin, self.node = outer
        if len(self.session.problems) > before or any(isinstance(v, Failed) for v in results):
            raise Poisoned
        return [v for v in results if not isinstance(v, Failed)]

    def function(self, domain: str, name: str, overload: str = "") -> onnx.FunctionProto | None:
        """A function that the model itself defines."""
        return self.session.functions.get((domain_of(domain), name, overload))


def add_capture(region: Graph, value: Value) -> Value:
    """The input of a region that stands for a value of the graph around it."""
    captured = region.add_input(value.name, value.type)
    captured.contents = value.contents
    captured.time = Time.RUN
    return captured


def _evaluated(attribute: Any, sizes: Mapping[str, int]) -> Any:
    """An attribute with its dims as ints."""
    if isinstance(attribute, dims.Expr):
        return dims.evaluate(attribute, sizes)
    return tuple(_evaluated(a, sizes) for a in attribute) if isinstance(attribute, tuple) else attribute


