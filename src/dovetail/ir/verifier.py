"""Invariants of the IR, checked after every pass in tests and on every graph that is read from a file."""

from __future__ import annotations

from typing import Any

from dovetail.core.dims import Expr
from dovetail.core.dtypes import DType
from dovetail.core.errors import VerifyError
from dovetail.ir.graph import Graph, Module, Node, Time, Value
from dovetail.ir.types import TensorType


def verify(module: Module) -> None:
    """Check ownership, order, use lists, names, types, attributes, times and constants of all graphs.

    Raises:
        VerifyError: naming the node and the broken invariant.
    """
    verify_graph(module.main)
    for node in module.main.nodes:
        if node.op == "Constant":
            name = node.attrs.get("name")
            if module.weights and name not in module.weights:
                raise VerifyError(f"{node.where}: got constant {name!r}, expected the name of an initializer")


def verify_graph(graph: Graph, *, top: bool = True) -> None:
    """Check one graph and its regions (see `verify`)."""
    defined: set[Value] = set(graph.inputs)
    names: set[str] = set()
    for value in graph.inputs:
        _name(value, names)
    count = 0
    for node in graph.nodes:
        count += 1
        _node(graph, node, defined, top)
        for index, value in enumerate(node.outputs):
            if value.producer is not node or value.index != index or value.graph is not graph:
                raise VerifyError(f"{node.where}: output %{value.name} does not point back to its node")
            _name(value, names)
            defined.add(value)
        for region in node.regions:
            verify_graph(region, top=False)
    if count != len(graph):
        raise VerifyError(f"graph {graph.name}: counts {len(graph)} nodes, has {count}")
    for value in graph.outputs:
        if value not in defined:
            raise VerifyError(f"graph {graph.name}: returns %{value.name}, which it does not define")
    for value in defined:
        for user, position in value.uses:
            if user.inputs[position] is not value:
                raise VerifyError(f"{user.where}: use list of %{value.name} is stale")


def _name(value: Value, names: set[str]) -> None:
    if value.name in names:
        raise VerifyError(f"%{value.name} is defined twice")
    names.add(value.name)
    if not isinstance(value.type, TensorType) or value.type.layout is None:
        return
    if sorted(value.type.layout.order) != list(range(value.type.rank)):
        raise VerifyError(f"%{value.name}: layout {value.type.layout} does not fit {value.type}")


def _node(graph: Graph, node: Node, defined: set[Value], top: bool) -> None:
    if node.graph is not graph:
        raise VerifyError(f"{node.where}: belongs to another graph")
    for position, value in enumerate(node.inputs):
        if value is None:
            continue
        if value not in defined:
            raise VerifyError(f"{node.where}: input {position} %{value.name} is not defined before it")
        if (node, position) not in value._uses:
            raise VerifyError(f"{node.where}: missing from the use list of %{value.name}")
    for key, attribute in node.attrs.items():
        if not _is_attribute(attribute):
            raise VerifyError(f"{node.where}: attribute {key} is a {type(attribute).__name__}, expected plain data")
    if top and node.outputs and node.outputs[0].time != graph.time_of(node):
        raise VerifyError(f"{node.where}: time is {node.outputs[0].time.name}, expected {Time(graph.time_of(node)).name}")


def _is_attribute(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_attribute, value))
    return value is None or type(value) in (int, float, str, bool) or isinstance(value, (DType, Expr))
