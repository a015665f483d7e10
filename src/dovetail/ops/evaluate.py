"""The oracle: runs a module node by node through the NumPy references.

Nothing is fused, planned or compiled, so whatever the compiler makes of a module is checked against this. Every output
is also checked against its inferred type, with the dims evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dovetail.core import dims
from dovetail.core.dims import Expr
from dovetail.core.dtypes import dtype
from dovetail.core.errors import BindingError, Error, ExecutionError, ShapeError
from dovetail.ir.graph import Graph, Module, Node, Value
from dovetail.ir.types import TensorType
from dovetail.ops.registry import find
from dovetail.reference.registry import call

Array = Any
"""An ndarray, or a list of them (a sequence), or None (an empty optional)."""


def evaluate(
    module: Module,
    inputs: Mapping[str, Array],
    *,
    also: Iterable[str] | None = None,
    observe: Callable[[Value, Array], Array] | None = None,
) -> dict[str, Array]:
    """Run the main graph of `module` and return its outputs by name.

    Args:
        module: the model; `Fusion` nodes run as their body.
        inputs: one array per graph input, by name.
        also: IR names of other values of the main graph to return as well.
        observe: called with every value of the main graph and what it is, in the order of execution; what it returns, if anything,
            takes its place.

    Raises:
        BindingError: an input is missing, unknown, or of another dtype or rank.
        ShapeError: shapes do not fit the declared ones or each other.
        ExecutionError: a reference failed, or an output differs from its inferred type.
    """
    graph = module.main
    unknown = set(inputs) - {v.name for v in graph.inputs}
    missing = [v.name for v in graph.inputs if v.name not in inputs]
    if unknown or missing:
        raise BindingError(
            f"evaluate: got inputs {sorted(inputs)}, expected {[v.name for v in graph.inputs]}; "
            f"add {missing} and remove {sorted(unknown)}"
        )
    kept = set(also or ())
    run = _Run(module, graph, {}, keep=kept, observe=observe)
    outputs = run([inputs[v.name] for v in graph.inputs])
    names = module.meta.get("output_names") or [v.name for v in graph.outputs]
    absent = kept - set(run.saved)
    if absent:
        raise BindingError(
            f"evaluate: got {sorted(absent)} to return, expected names of values in the main graph"
        )
    return run.saved | dict(zip(names, outputs, strict=True))


def trace(module: Module, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Every value of the main graph by its IR name; otherwise as `evaluate`."""
    return evaluate(module, inputs, also=[v.name for v in module.main.values()])


class _Run:
    """One execution of one graph: the values so far and the symbols bound so far."""

    def __init__(
        self,
        module: Module,
        graph: Graph,
        symbols: Mapping[str, int],
        keep: set[str] | None = None,
        observe: Callable[[Value, Array], Array] | None = None,
    ) -> None:
        self.module, self.graph, self.observe = module, graph, observe
        self.symbols = dict(symbols)
        self.values: dict[Value, Array] = {}
        self.keep = keep or set()
        self.saved: dict[str, Array] = {}

    def __call__(self, arrays: Sequence[Array]) -> tuple[Array, ...]:
        for value, array in zip(self.graph.inputs, arrays, strict=True):
            self._define(value, array, f"input {value.name!r}")
        left = {v: len(v.uses) for v in self.graph.values()}
        for value in self.graph.outputs:
            left[value] += 1
        for node in self.graph.nodes:
            results = self._node(node)
            for value, array in zip(node.outputs, results, strict=True):
                self._define(value, array, node.where)
            for value in node.operands:
                left[value] -= 1
                if not left[value]:
                    del self.values[value]
        return tuple(self.values[v] for v in self.graph.outputs)

    def _node(self, node: Node) -> tuple[Array, ...]:
        if node.op == "Constant":
            return (self.module.weights[node.attrs["name"]],)
        arrays = [None if v is None else self.values[v] for v in node.inputs]
        if node.op == "BindSymbols":
            self._bind_data(node, arrays[0])
            return ()
        if node.op == "Fusion":
            return self._region(node.regions[0])(*arrays)
        spec = find(node.op)
        attributes = {k: v for k, v in node.attrs.items() if k != "impure"}
        if spec is not None:
            attributes = spec.complete(attributes)
        attributes = {k: self._evaluated(v) for k, v in attributes.items()}
        if node.regions:
            attributes["regions"] = tuple(self._region(g) for g in node.regions)
        try:
            return call(node.op, arrays, attributes)
        except Error as error:
            if node.op == "Plugin":  # the user's code, which knows no nodes
                raise ExecutionError(f"{node.where}: {error}") from error
            raise
        except (ValueError, TypeError, IndexError, ArithmeticError, AssertionError) as error:
            shown = ", ".join("none" if v is None else str(v.type) for v in node.inputs)
            raise ExecutionError(
                f"{node.where}: its reference failed on ({shown}): {error}; check the inputs"
            ) from error

    def _region(self, graph: Graph) -> Callable[..., tuple[Array, ...]]:
        """A region as a function; each call binds its own symbols on top of the outer ones."""

        def run(*arrays: Array) -> tuple[Array, ...]:
            return _Run(self.module, graph, self.symbols)(arrays)

        return run

    def _bind_data(self, node: Node, array: Array) -> None:
        for name, number in zip(node.attrs["symbols"], np.asarray(array).reshape(-1), strict=True):
            if number < 0:
                raise ShapeError(
                    f"{node.where}: got {int(number)} for the size {name}, expected a value >= 0; "
                    "check the tensor that drives the shape"
                )
            self.symbols[name] = int(number)

    def _evaluated(self, attribute: Any) -> Any:
        if isinstance(attribute, Expr):
            return dims.evaluate(attribute, self.symbols)
        if isinstance(attribute, tuple):
            return tuple(self._evaluated(a) for a in attribute)
        return attribute

    def _define(self, value: Value, array: Array, where: str) -> None:
        if isinstance(value.type, TensorType):
            array = np.asarray(array)
            self._check(value.type, array, f"{where}: %{value.name}")
        if self.observe is not None and (replaced := self.observe(value, array)) is not None:
            array = replaced
        self.values[value] = array
        if value.name in self.keep:
            self.saved[value.name] = array

    def _check(self, type_: TensorType, array: np.ndarray[Any, Any], where: str) -> None:
        if dtype(array.dtype) != type_.dtype or array.ndim != type_.rank:
            raise BindingError(
                f"{where}, got {dtype(array.dtype)}{list(array.shape)}, expected {type_}; "
                "convert the array, or correct the type inference"
            )
        for axis, (dim, extent) in enumerate(zip(type_.shape, array.shape, strict=True)):
            if isinstance(dim, Expr):
                free = dims.symbols(dim) - set(self.symbols)
                if free == {str(dim)}:
                    self.symbols[str(dim)] = extent
                    continue
                if free:
                    raise ShapeError(
                        f"{where}, axis {axis} is {dim} but {sorted(free)} is not known yet, "
                        "expected every symbol to be the size of some earlier axis"
                    )
                dim = dims.evaluate(dim, self.symbols)
            if dim != extent:
                raise ShapeError(
                    f"{where}, got size {extent} on axis {axis}, expected {type_.shape[axis]}"
                    f"{'' if type_.shape[axis] is dim else f' = {dim}'}; check the shapes of the inputs"
                )
