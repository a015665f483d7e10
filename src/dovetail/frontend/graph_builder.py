"""Adds operators to a graph from Python: what networks, bodies of regions and importers of users are written with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx

from dovetail.core.dims import Dim
from dovetail.core.dtypes import dtype
from dovetail.core.errors import Error, ModelError, UnsupportedOpError, UsageError
from dovetail.frontend.arguments import (
    as_array,
    attributes_of,
    inputs_of,
    output_count,
    schema_of,
    similar_ops,
)
from dovetail.frontend.importer import ImportContext, add_capture
from dovetail.frontend.plugins import call_plugin
from dovetail.frontend.protos import domain_of, free_names
from dovetail.frontend.registry import OnnxNode, Override, find_importer
from dovetail.frontend.session import Body, Failure, Poisoned, Unsupported, explained
from dovetail.ir.graph import Graph, Node, Value
from dovetail.ir.types import Type

Operand = Any
"""An input of an op: a Value, None, an array, or Python numbers (also nested in sequences)."""

BodyFunction = Callable[..., Any]


class GraphBuilder:
    """Adds operators to one graph; every value has its shape and element type at once.

    What fails leaves the graph as it was.
    """

    def __init__(self, context: ImportContext, counts: Counter[str] | None = None, origin: str = "") -> None:
        self._context = context
        self._counts: Counter[str] = Counter() if counts is None else counts
        self._origin = origin

    # ------------------------------------------------------------------ operators
    def op(
        self,
        op: str,
        /,
        *inputs: Operand,
        domain: str = "",
        opset: int | None = None,
        outputs: int | Sequence[str] | None = None,
        name: str = "",
        attributes: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Any:
        """Add an ONNX op.

        Args:
            op: op type, such as "Conv".
            inputs: values; None where an optional one is absent; arrays and numbers become constants (which a refit does not
                know; see `weight`), numbers of the element type that the op wants there.
            domain: of the op; "" is ONNX's own.
            opset: version of the domain; default: the newest.
            outputs: how many results, or their names ("" for one that is not wanted); default: those that the op always has.
            name: of the node, for reports and messages; default: the op's with a number.
            attributes, more: as ONNX defines them; element types also by name ("f16"); None leaves one out.

        Returns:
            A Value, or a tuple of them where there are several (None for an absent one).

        Raises:
            UnsupportedOpError: no importer, function body or plugin for it, or none that covers this use.
            ModelError: inputs or attributes do not fit the op.
            UsageError: an input is no value of this network, nor an array.
        """
        domain = domain_of(domain)
        label = self._label(op, name)
        where = f"{label} ({f'{domain}::' if domain else ''}{op})"
        version = self._opset(domain, opset)
        with self._adding(where):
            schema = schema_of(op, version, domain)
            # An importer of the user's may take what the op's definition does not.
            checked = None if isinstance(find_importer(op, version, domain), Override) else schema
            attrs = attributes_of(checked, {**(attributes or {}), **more}, where)
            given = inputs_of(schema, inputs, where, checked is not None)
            names = [] if outputs is None or isinstance(outputs, int) else list(outputs)
            count = outputs if isinstance(outputs, int) else len(names) or output_count(schema, op, attrs, given)
            if checked is not None and count is not None and not 1 <= count <= checked.max_output:
                raise ModelError(f"{where}: got {count} outputs, expected 1 to {checked.max_output}")
            values = [self._value(v, op) for v in given]
            asked = names or [label if i == 0 else f"{label}.{i}" for i in range(count or 1)]
            node = OnnxNode(op, domain, label, version, values, asked, attrs)
            try:
                results = self._lower(node)
            except UnsupportedOpError as error:
                near = similar_ops(op) if schema is None and not domain else []
                if near:
                    raise UnsupportedOpError(f"{error}; ops of similar names: {', '.join(near)}", error.problems) from None
                raise
            if count is not None and len(results) < count:
                raise ModelError(f"{where}: got {count} outputs asked for, expected at most {len(results)}")
            return _one_or_all(results[:count])

    def plugin(
        self,
        name: str,
        /,
        *inputs: Operand,
        version: str = "1",
        namespace: str = "",
        label: str = "",
        attributes: Mapping[str, Any] | None = None,
        results: Sequence[tuple[Any, Sequence[Dim | None]]] | None = None,
        **more: Any,
    ) -> Any:
        """Add a call of a plugin (`dovetail.plugin`).

        Args:
            inputs: as of `op`.
            version, namespace: of the plugin.
            label: name of the node.
            attributes, more: as the plugin's function takes them.
            results: element type and shape of each result, where the caller knows them (None for an extent that the data decide);
                default: what the plugin's shape rule or trial runs say.

        Returns:
            A Value, or a tuple of them where there are several.

        Raises:
            UnsupportedOpError: there is no such plugin.
            ModelError: inputs or attributes do not fit it.
        """
        label = self._label(name, label)
        where = f"{label} ({f'{namespace}::' if namespace else ''}{name})"
        with self._adding(where):
            values = [self._value(v, name) for v in inputs_of(None, inputs, where)]
            given = {**(attributes or {}), **more}
            node = OnnxNode(name, namespace, label, 1, values, [label], given)
            context, last = self._context, self._context.graph.last
            context.node, context.origin = node, (label,)
            with explained(where, name):
                types = None if results is None else tuple((dtype(kind), tuple(shape)) for kind, shape in results)
                made = call_plugin(context, name, values, version, namespace, given, results=types)
            self._name(made, [label], last)
            return _one_or_all(made)

    def constant(self, array: Any, name: str = "") -> Value:
        """Add a constant of the program: an array or numbers (f32, i64 or bool). A refit does not know it."""
        with self._adding(name or "constant"):
            (value,) = inputs_of(None, [array], "constant")
            made = self._value(value, name or "const")
            if made is None:
                raise UsageError("constant: got None, expected an array or numbers")
            return made

    def weight(self, name: str, array: Any) -> Value:
        """Add a weight of the model, which a refit may change by its name. The array is not copied: leave it as it is.

        Raises:
            UsageError: the name is taken, empty, or starts with "~".
        """
        if not name or name.startswith("~"):
            raise UsageError(f'weight: got the name {name!r}, expected text that does not start with "~"; rename it')
        with self._adding(f"weight {name!r}"):
            if name in self._context.module.weights:
                raise UsageError(f"weight: got the name {name!r} twice, expected another one; use the value of the first call")
            return self._context.initializer(name, as_array(array))

    def node(
        self,
        proto: onnx.NodeProto,
        scope: Mapping[str, Value | None],
        opsets: Mapping[str, int] | None = None,
        *,
        functions: Iterable[onnx.FunctionProto] = (),
        folder: Path | None = None,
    ) -> dict[str, Value]:
        """Add one node of an ONNX graph, subgraphs included.

        Args:
            scope: values by the names that the node and its subgraphs read; more do no harm.
            opsets: versions by domain; default: the newest.
            functions: those that the model defines.
            folder: where external data of its attributes lie.

        Returns:
            The values it computes, by name.

        Raises:
            UnsupportedOpError: it cannot be imported; `problems` lists every node of its subgraphs that cannot.
            ModelError: it is invalid.
        """
        names: dict[str, None] = dict.fromkeys(n for n in proto.input if n)
        for attribute in proto.attribute:
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                free_names(graph, names)
        context, session = self._context, self._context.session
        with self._adding(f"{proto.name or proto.op_type} ({proto.op_type})"):
            known = {n: self._own(scope[n]) for n in names if n in scope}
            before = session.functions, session.folder
            session.functions = {**session.functions, **{(domain_of(f.domain), f.name, getattr(f, "overload", "")): f for f in functions}}
            session.folder = folder or session.folder
            try:
                wanted = [o for o in proto.output if o]
                found = context.inline([proto], known, wanted, opsets or context.opsets)
            finally:
                session.functions, session.folder = before
            return {n: v for n, v in zip(wanted, found, strict=True) if v is not None}

    # ------------------------------------------------------------------ regions
    def if_(self, condition: Operand, then: BodyFunction, otherwise: BodyFunction, *, name: str = "") -> Any:
        """Add an If: `then(net)` and `otherwise(net)` return the same number of values, computed with the net they get.

        Values from outside may be used in them. A condition that weights or shapes decide leaves one of the two.

        Returns:
            A Value, or a tuple of them where there are several.
        """
        return _one_or_all(self._control("If", [condition], name, {
            "then_branch": self._body(then, f"{name or 'if'}.then"), "else_branch": self._body(otherwise, f"{name or 'if'}.else"),
        }))  # fmt: skip

    def loop(
        self, body: BodyFunction, *carried: Operand, trips: Operand = None, condition: Operand = None, name: str = ""
    ) -> tuple[Value, ...]:
        """Add a Loop: `body(net, i, *carried)` returns whether to go on, the carried values of the next iteration, and values
        that are stacked. It may be called more than once, until the types of what is carried settle.

        Args:
            carried: what the first iteration starts with.
            trips: the most iterations, an int64 scalar; None: no limit.
            condition: whether to start at all; None: yes.

        Returns:
            The carried values after the last iteration, then the stacked values (along a new first axis).
        """
        def run(net: GraphBuilder, i: Value, _: Value, *rest: Value) -> Any:
            return body(net, i, *rest)

        run.__qualname__ = getattr(body, "__qualname__", repr(body))
        traced = self._body(run if callable(body) else body, f"{name or 'loop'}.body", 1 + len(carried))
        return self._control("Loop", [trips, condition, *carried], name, {"body": traced})

    def scan(
        self,
        body: BodyFunction,
        states: Sequence[Operand],
        sequences: Sequence[Operand],
        *,
        axes: Sequence[int] | None = None,
        reverse: Sequence[bool] | None = None,
        output_axes: Sequence[int] | None = None,
        output_reverse: Sequence[bool] | None = None,
        name: str = "",
    ) -> tuple[Value, ...]:
        """Add a Scan: `body(net, *states, *slices)` returns the states of the next step, then values that are stacked.

        Args:
            axes, reverse: along which axis the sequences are cut (default: the first), and whether from the end.
            output_axes, output_reverse: along which axis results are stacked, and whether from the end.

        Returns:
            The states after the last step, then the stacked values.
        """
        attributes = {
            "body": self._body(body, f"{name or 'scan'}.body", len(states)), "num_scan_inputs": len(sequences),
            "scan_input_axes": axes, "scan_input_directions": reverse,
            "scan_output_axes": output_axes, "scan_output_directions": output_reverse,
        }  # fmt: skip
        return self._control("Scan", [*states, *sequences], name, {k: v for k, v in attributes.items() if v is not None})

    def _control(self, op: str, inputs: Sequence[Operand], name: str, attributes: Mapping[str, Any]) -> tuple[Value, ...]:
        label = self._label(op, name)
        where = f"{label} ({op})"
        version = self._opset("", None)
        with self._adding(where):
            given = inputs_of(schema_of(op, version, ""), inputs, where)
            values = [self._value(v, op) for v in given]
            return self._lower(OnnxNode(op, "", label, version, values, [label], dict(attributes)))

    def _body(self, function: BodyFunction, name: str, least: int = 0) -> _FunctionBody:
        if not callable(function):
            raise UsageError(f"{name}: got {function!r}, expected a function that builds the body with the net it gets")
        return _FunctionBody(function, name, least, self._counts, self._origin)

    # ------------------------------------------------------------------ what is known
    def read(self, value: Value, why: str) -> np.ndarray[Any, Any] | None:
        """The array of a value that depends on weights alone, which a refit may then not change; None for others.

        Args:
            why: what relies on it, for the message of such a refit.
        """
        return self._context.constant(self._owned(value), why)

    def dims(self, value: Value) -> tuple[Dim, ...]:
        """The elements of a small integer value as dims; where only the run knows them, as symbols that it defines."""
        with self._adding("dims"):
            return self._context.dims(self._owned(value))

    def unsupported(self, reason: str, hint: str) -> NoReturn:
        """Give up on the node that is being imported, saying why and what to do instead."""
        self._context.unsupported(reason, hint)

    def rename(self, value: Value, name: str) -> None:
        """Give what an op computes another name, as taps, comparisons and messages use it; made unique.

        Raises:
            UsageError: an input, a weight, or a value of another network.
        """
        owned = self._owned(value)
        if not name or owned is not value or owned.producer is None or owned.producer.op == "Constant":
            raise UsageError(f"rename: got %{value.name} and the name {name!r}, expected what an op of this network computes, and text")
        if owned.name != name:
            self._context.graph.rename(owned, name)

    @contextmanager
    def named(self, origin: str) -> Iterator[None]:
        """Inside of this, ops that are given no name count as parts of the node `origin`."""
        before, self._origin = self._origin, origin
        try:
            yield
        finally:
            self._origin = before

    # ------------------------------------------------------------------ inside
    def _label(self, op: str, name: str) -> str:
        if name or self._origin:
            return name or self._origin
        label = f"{op}_{self._counts[op]}"
        self._counts[op] += 1
        return label

    def _opset(self, domain: str, opset: int | None) -> int:
        newest = onnx.defs.onnx_opset_version()
        if opset is None:
            return newest if not domain else self._context.opset_of(domain)
        if not domain and not 1 <= opset <= newest:
            raise UsageError(f"opset: got {opset}, expected 1 to {newest}")
        return opset

    def _value(self, value: Value | np.ndarray[Any, Any] | None, hint: str) -> Value | None:
        """An operand in this graph."""
        if isinstance(value, np.ndarray):
            return self._context.const(value, hint)
        return self._own(value)

    def _own(self, value: Value | None) -> Value | None:
        return None if value is None else self._owned(value)

    def _owned(self, value: Value) -> Value:
        if not isinstance(value, Value):
            raise UsageError(f"network: got {value!r}, expected a value of it")
        return self._context.adopt(value)

    def _lower(self, node: OnnxNode) -> tuple[Any, ...]:
        context = self._context
        outer = context.opsets
        context.opsets = {**outer, node.domain: node.opset}
        last = context.graph.last
        try:
            results = context.lower(node)
        finally:
            context.opsets = outer
        self._name(results, node.outputs, last)
        return results

    def _name(self, results: Sequence[Value | None], names: Sequence[str], last: Node | None = None) -> None:
        """Give the results of a new node its name, where it has one of its own."""
        graph, origin = self._context.graph, self._context.origin
        if self._origin and names[0] == self._origin:
            return
        new = set(graph.after(last))
        for position, value in enumerate(results):
            if value is None or value.producer not in new or value.producer.origin != origin or value.producer.op == "Constant":
                continue
            wanted = names[position] if position < len(names) else f"{names[0]}.{position}"
            if wanted and wanted != value.name:
                graph.rename(value, wanted)

    @contextmanager
    def _adding(self, where: str) -> Iterator[None]:
        """What fails inside of this leaves the graph as it was."""
        context, session = self._context, self._context.session
        if context.busy:
            raise UsageError(f"{where}: got a call on a network that is closed, {context.busy}; use the net that the function gets")
        mark, last, problems = session.mark(), context.graph.last, len(session.problems)
        node, origin, first = context.node, context.origin, context.first_node
        try:
            yield
        except BaseException as error:
            context.undo(mark, last, first)
            found = tuple(session.problems[problems:])
            del session.problems[problems:]
            if isinstance(error, Unsupported):
                reason, hint = error.args
                raise UnsupportedOpError(f"{where}: {reason}; {hint}", (f"{where}: {reason}; {hint}",)) from None
            if isinstance(error, Poisoned):
                raise UnsupportedOpError("; ".join(found) or f"{where}: reads what could not be imported", found) from None
            raise
        finally:
            context.node, context.origin = node, origin


def _one_or_all(results: Sequence[Any]) -> Any:
    return results[0] if len(results) == 1 else tuple(results)


class _Region(ImportContext):
    """The context of a region whose captures are found as they are used."""

    def start(self, captures: list[Value]) -> None:
        self.captures_found = captures
        self.inside = {value: add_capture(self.graph, value) for value in captures}

    def adopt(self, value: Value) -> Value:
        if value.graph is self.graph or self.parent is None:
            return super().adopt(value)
        outer = self.parent.adopt(value)
        if outer not in self.inside:
            self.captures_found.append(outer)
            self.inside[outer] = add_capture(self.graph, outer)
        return self.inside[outer]


class _FunctionBody(Body):
    """The body of a region as a Python function, which is called with a builder and the values that enter."""

    def __init__(self, function: BodyFunction, name: str, least: int, counts: Counter[str], origin: str) -> None:
        self.function, self.name, self.least = function, name, least
        self.counts, self.origin = counts, origin

    def region(self, outer: ImportContext, types: Sequence[Type], captures: list[Value]) -> Graph:
        region = Graph(self.name)
        inner = _Region(outer.session, region, outer, outer.opsets)
        inner.origin = outer.origin
        entering = [region.add_input(f"in{i}", t) for i, t in enumerate(types)]
        inner.start(captures)
        if outer.busy:
            raise UsageError(f"{self.name}: got a region inside of a network that is closed, {outer.busy}")
        outer.busy = f"while {self.name} is built"
        try:
            region.set_outputs(self._call(inner, entering))
        finally:
            outer.busy = ""
            inner.busy = f"since {self.name} is built"
        region.update_times()
        return region

    def inline(self, outer: ImportContext) -> list[Value]:
        return self._call(outer, ())

    def _call(self, context: ImportContext, entering: Sequence[Value]) -> list[Value]:
        net = GraphBuilder(context, self.counts, self.origin)
        try:
            returned = self.function(net, *entering)
        except (Error, Failure):
            raise
        except Exception as error:
            title = getattr(self.function, "__qualname__", repr(self.function))
            raise ModelError(
                f"{self.name}: its function {title} failed ({type(error).__name__}: {error}); the fault is in that function"
            ) from error
        results = returned if isinstance(returned, tuple | list) else () if returned is None else (returned,)
        if len(results) < self.least:
            raise UsageError(f"{self.name}: got {len(results)} results of the function, expected at least {self.least}")
        values = []
        for position, value in enumerate(inputs_of(None, results, self.name)):
            made = net._value(value, self.name)
            if made is None:
                raise UsageError(f"{self.name}: got None as result {position}, expected a value or an array")
            values.append(made)
        return values
