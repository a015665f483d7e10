"""`dovetail.Network`: a model defined in Python, op by op, in the same IR that the ONNX importer makes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import onnx
from onnx import helper

from dovetail.core import dims
from dovetail.core.dims import Dim, Expr
from dovetail.core.dtypes import dtype as dtype_of
from dovetail.core.errors import ModelError, UsageError
from dovetail.frontend.declared import RANGE, InputTypes
from dovetail.frontend.graph_builder import GraphBuilder
from dovetail.frontend.importer import main_context
from dovetail.frontend.reader import Definition, ModelSource, ShapeOverride, read_model
from dovetail.ir.clone import clone
from dovetail.ir.graph import Graph, Module, Value
from dovetail.ir.types import TensorType

Extent = int | str | Expr | None


class Network(GraphBuilder, Definition):
    """A model defined in Python.

        net = dovetail.Network()
        x = net.input("x", "f32", ("N", 3, 224, 224))
        w = net.weight("conv.w", array)
        y = net.op("Conv", x, w, pads=(1, 1, 1, 1))
        net.output(net.op("Relu", y), "y")
        engine = dovetail.build(net)

    Values know their shape and element type at once, and errors come from the call that is wrong, which then changes nothing.
    A network may be built as often as wanted, and go on growing.
    """

    def __init__(self) -> None:
        newest = helper.make_opsetid("", onnx.defs.onnx_opset_version())
        empty = helper.make_model(helper.make_graph([], "network", [], []), opset_imports=[newest])
        super().__init__(main_context(empty, None))
        self._returned: dict[str, Value] = {}

    @classmethod
    def from_onnx(cls, model: ModelSource, shapes: ShapeOverride | None = None) -> Network:
        """The network of an ONNX model, to which ops and outputs may be added.

        Args:
            model: path, bytes or ModelProto.
            shapes: as of `dovetail.build`.

        Raises:
            ModelError: unreadable or invalid model; UnsupportedOpError lists what cannot be imported.
        """
        made = cls()
        context = main_context(*read_model(model))
        context.import_main(shapes or {})
        context.session.require_no_problems()
        made._context = context
        for node in context.graph.nodes:  # names that are given to later ops are not those of the model's
            for found in filter(None, (re.fullmatch(r"(\w+)_(\d{1,9})", origin) for origin in node.origin)):
                made._counts[found[1]] = max(made._counts[found[1]], int(found[2]) + 1)
        made._returned = dict(zip(context.module.meta["output_names"], context.graph.outputs, strict=True))
        return made

    # ------------------------------------------------------------------ inputs and outputs
    @property
    def inputs(self) -> dict[str, Value]:
        """The inputs by name."""
        return {v.name: v for v in self._context.graph.inputs}

    @property
    def outputs(self) -> dict[str, Value]:
        """The outputs by name, in the order in which they were declared."""
        return dict(self._returned)

    def __getitem__(self, name: str) -> Value:
        """The value of a name: an input, a weight, an output, or what an op computes (as in the ONNX model, or its node's name).

        Raises:
            UsageError: there is none.
        """
        known = self._returned.get(name) or self._context.scope.get(name)
        found = known if isinstance(known, Value) else next((v for v in self._context.graph.values() if v.name == name), None)
        if found is None:
            raise UsageError(f"network: got the name {name!r}, expected that of an input, a weight or what an op computes")
        return found

    def input(self, name: str, dtype: Any, shape: Sequence[Extent]) -> Value:
        """Declare an input.

        Args:
            dtype: element type, such as "f32" or np.float32.
            shape: per axis a size, the name of a symbol (equal names are equal sizes), a range "1..32" or "N=1..32" (with an
                optimum: "1..32@8"), a symbol of another value's shape, or None for any size.

        Raises:
            UsageError: the name is taken or empty.
            ModelError: a dim that is none.
        """
        with self._adding(f"input {name!r}"):
            if not name or name in self.inputs:
                raise UsageError(f"input: got the name {name!r}, expected one that no other input has")
            session = self._context.session
            types = InputTypes(session.module, session.symbols, self._context.fresh)
            extents = tuple(types.dim(_spec(d, name, i), name, i) for i, d in enumerate(shape))
            return self._context.graph.add_input(name, TensorType(dtype_of(dtype), extents))

    def output(self, value: Value, name: str | None = None, *, dtype: Any = None) -> Value:
        """Declare an output; any value may become one, at any time, under several names too.

        Args:
            value: what is returned.
            name: of the output; default: the value's.
            dtype: element type to return it in; default: the value's.

        Raises:
            UsageError: the name is taken, or the value is of another network.
        """
        name = value.name if name is None else name
        with self._adding(f"output {name!r}"):
            if not name or name in self._returned:
                raise UsageError(f"output: got the name {name!r}, expected one that no other output has")
            owned = self._owned(value)
            if self.inputs.get(name, owned) is not owned:
                raise UsageError(f"output: got the name {name!r}, expected one that no other value has as an input")
            if dtype is not None and owned.dtype != dtype_of(dtype):
                owned = self.op("Cast", owned, to=dtype_of(dtype), name=name)
            graph, producer = self._context.graph, owned.producer
            free = producer is not None and producer.op != "Constant" and all(v is not owned for v in self._returned.values())
            if free and owned.name != name:
                self._context.scope.setdefault(owned.name, owned)  # its first name still finds it
                graph.rename(owned, name)
            self._returned[name] = owned
            return owned

    def remove_output(self, name: str) -> None:
        """No longer return an output; its value stays.

        Raises:
            UsageError: there is no such output.
        """
        if name not in self._returned:
            raise UsageError(f"remove_output: got {name!r}, expected one of {list(self._returned)}")
        del self._returned[name]

    # ------------------------------------------------------------------ the module
    def module(self, shapes: ShapeOverride | None = None) -> Module:
        """The network as a module of its own.

        Args:
            shapes: sizes, names or ranges for axes that were declared with a symbol, by the names of inputs.

        Raises:
            ModelError: no outputs, or shapes that do not fit the inputs.
        """
        if not self._returned:
            raise ModelError("network: got no outputs, expected at least one; declare what it returns with net.output(value, name)")
        context = self._context
        symbols, bounds = _overridden(context.module, shapes or {})
        made = clone(context.module, list(self._returned.values()), symbols)
        made.meta |= {"output_names": list(self._returned), "opsets": dict(context.opsets)}
        made.meta.pop("symbol_bounds", None)
        if bounds:
            made.meta["symbol_bounds"] = bounds
        _drop_unread_weights(made.main, made)
        return made


def _spec(extent: Extent, name: str, axis: int) -> int | str:
    """One extent as models declare it."""
    if extent is None:
        return ""
    if isinstance(extent, Expr):
        if dims.symbols(extent) != {str(extent)}:
            raise ModelError(f"input {name!r}: got the size {extent} on axis {axis}, expected a number, a symbol, a range or None")
        return str(extent)
    if isinstance(extent, str):
        if not re.fullmatch(r"\s*[A-Za-z_]\w*\s*", extent) and not RANGE.fullmatch(extent.rpartition("=")[2]):
            raise ModelError(
                f'input {name!r}: got the size {extent!r} on axis {axis}, expected a number, a name, a range such as "1..32", or None'
            )
        return extent.strip()
    return int(extent)


def _overridden(module: Module, shapes: ShapeOverride) -> tuple[dict[str, Dim], dict[str, Any]]:
    """What takes the place of symbols when inputs get these shapes, and the bounds that then hold."""
    inputs = {v.name: v for v in module.main.inputs}
    unknown = set(shapes) - set(inputs)
    if unknown:
        raise ModelError(f"shapes: got {sorted(unknown)}, expected names of inputs: {list(inputs)}")
    draft = Module(Graph(), meta={"symbol_bounds": dict(module.meta.get("symbol_bounds", {}))})
    types = InputTypes(draft, set(), lambda prefix: prefix)
    symbols: dict[str, Dim] = {}
    for name, given in shapes.items():
        declared = inputs[name].tensor.shape
        if len(given) != len(declared):
            raise ModelError(f"shapes: got {len(given)} dimensions for input {name!r}, expected {len(declared)}")
        for axis, (new, old) in enumerate(zip(given, declared, strict=True)):
            if isinstance(old, int):
                if str(new) != str(old):
                    raise ModelError(
                        f"shapes: got {new!r} for axis {axis} of input {name!r}, expected {old}, which the network was defined with; "
                        "declare that axis with a symbol or None"
                    )
                continue
            symbol = str(old)
            text = f"{symbol}={new}" if isinstance(new, str) and RANGE.fullmatch(new) else new
            dim = types.dim(text, name, axis)
            if symbols.setdefault(symbol, dim) != dim:
                raise ModelError(f"shapes: got {symbols[symbol]} and {dim} for {symbol}, expected one; equal names are equal sizes")
    known, bounds = draft.meta["symbol_bounds"], {}
    for symbol, bound in known.items():
        taken = symbols.get(symbol, dims.sym(symbol))
        # A symbol with another name keeps its bounds where that name brings none.
        if isinstance(taken, Expr) and (str(taken) == symbol or str(taken) not in known):
            bounds[str(taken)] = bound
    return {s: d for s, d in symbols.items() if d != dims.sym(s)}, bounds


def _drop_unread_weights(graph: Graph, module: Module) -> None:
    """Weights that nothing has read are no part of a model, as initializers that nothing reads are not."""
    guarded = {guard.weight for guard in module.guards}
    for node in graph.nodes:
        unread = node.op == "Constant" and not node.output.uses and not node.output.is_output
        if unread and node.attrs["name"] not in guarded:
            del module.weights[node.attrs["name"]]
            graph.erase(node)
