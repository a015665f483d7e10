"""Copies of modules: a compiler's passes change what they get, so a module that is to stay is copied first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dovetail.core.dims import Dim, Expr, substitute
from dovetail.ir.graph import Graph, Module, Value
from dovetail.ir.types import SequenceType, TensorType, Type


def clone(module: Module, outputs: Sequence[Value] | None = None, symbols: Mapping[str, Dim] | None = None) -> Module:
    """A copy of a module that shares its weights' arrays and nothing else.

    Args:
        outputs: values of the main graph that the copy returns; default: those of the original.
        symbols: dims that take the place of symbols.
    """
    copied = _Copy(symbols or {})
    graph = copied.graph(module.main, module.main.outputs if outputs is None else outputs)
    return Module(graph, dict(module.weights), list(module.guards), dict(module.meta))


class _Copy:
    """Copies graphs; the values of one are known while it is copied."""

    def __init__(self, symbols: Mapping[str, Dim]) -> None:
        self.symbols = symbols

    def graph(self, source: Graph, outputs: Sequence[Value]) -> Graph:
        """A copy of a graph with other outputs."""
        target, values = Graph(source.name), dict[Value, Value]()
        for value in source.inputs:
            values[value] = self._like(value, target.add_input(value.name, self.type(value.type)))
        for node in source.nodes:
            made = target.add(
                node.op, [None if v is None else values[v] for v in node.inputs],
                {k: self.attribute(v) for k, v in node.attrs.items()},
                types=[self.type(v.type) for v in node.outputs], names=[v.name for v in node.outputs],
                regions=[self.graph(region, region.outputs) for region in node.regions], origin=node.origin,
            )  # fmt: skip
            for old, new in zip(node.outputs, made.outputs, strict=True):
                values[old] = self._like(old, new)
        target.set_outputs([values[v] for v in outputs])
        target.symbol_times = dict(source.symbol_times)
        target.update_times()
        return target

    def _like(self, old: Value, new: Value) -> Value:
        new.time = old.time
        new.contents = self.contents(old.contents)
        return new

    def type(self, type_: Type) -> Type:
        """A type with symbols replaced."""
        if not self.symbols:
            return type_
        if isinstance(type_, SequenceType):
            return SequenceType(self._tensor(type_.element))
        return self._tensor(type_)

    def _tensor(self, type_: TensorType) -> TensorType:
        return TensorType(type_.dtype, tuple(substitute(d, self.symbols) for d in type_.shape), type_.layout)

    def attribute(self, value: Any) -> Any:
        """An attribute with symbols replaced."""
        if isinstance(value, Expr):
            return substitute(value, self.symbols)
        return tuple(map(self.attribute, value)) if isinstance(value, tuple) else value

    def contents(self, contents: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any] | None:
        """Known contents with symbols replaced; not known where they hold more than dims and numbers."""
        if contents is None or not self.symbols:
            return contents
        if not all(isinstance(d, int | float | Expr | np.generic) for d in contents.reshape(-1)):
            return None
        changed = np.empty(contents.shape, object)
        changed.reshape(-1)[:] = [self.attribute(d) for d in contents.reshape(-1)]
        return changed
