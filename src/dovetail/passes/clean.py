"""Dead code and common subexpressions."""

from __future__ import annotations

from typing import Any

from dovetail.core.dims import symbols
from dovetail.ir.graph import Graph, Node, Value
from dovetail.ir.rewriter import Rewrite
from dovetail.ir.types import TensorType
from dovetail.ops.registry import find


def replace(rewrite: Rewrite, node: Node, *values: Value) -> None:
    """`rewrite.replace`, then erase what only that node kept alive, so that counts of uses stay true."""
    operands = node.operands
    rewrite.replace(node, *values)
    for old, new in zip(node.outputs, values, strict=True):
        if new.name.rpartition(".")[0] == old.name:
            new.name = old.name  # a new node that asked for the old one's name can have it now
    for value in operands:
        sweep(value)


def sweep(value: Value) -> None:
    """Erase the producer of a value nobody reads, and so on upwards; definitions of symbols stay."""
    pending = [value]
    while pending:
        node = pending.pop().producer
        if node is None or node.erased or not _unread(node) or node.attrs.get("symbols"):
            continue
        operands = node.operands
        node.graph.erase(node)
        pending += operands


def _unread(node: Node) -> bool:
    return bool(node.outputs) and not any(v.uses or v.is_output for v in node.outputs)


def used_once(value: Value) -> bool:
    """Whether exactly one operand in the graph reads the value and the caller does not."""
    return len(value.uses) == 1 and not value.is_output


def _mentioned(graph: Graph, skip: Node | None = None) -> set[str]:
    found: set[str] = set()
    for value in (*graph.inputs, *graph.outputs):
        if isinstance(value.type, TensorType):
            for d in value.type.shape:
                found |= symbols(d)
    for node in graph.nodes:
        found |= node.symbols()
        for value in node.outputs:
            if isinstance(value.type, TensorType):
                for d in value.type.shape:
                    found |= symbols(d) - set(node.attrs.get("symbols", ()))
        for region in node.regions:
            found |= _mentioned(region)
    return found


def drop_dead_code(graph: Graph) -> int:
    """Erase nodes that contribute to no output (and define no symbol in use); returns how many."""
    count = 0
    while True:
        before = count
        mentioned: set[str] | None = None
        for node in reversed(list(graph.nodes)):
            if node.outputs and not _unread(node):
                continue
            if defined := node.attrs.get("symbols"):
                mentioned = _mentioned(graph) if mentioned is None else mentioned
                if mentioned & set(defined):
                    continue
            elif not node.outputs:
                continue
            graph.erase(node)
            count += 1
        if count == before:
            break
    for node in graph.nodes:
        for region in node.regions:
            count += drop_dead_code(region)
    return count


def _key(attribute: Any) -> Any:
    """An attribute as a dictionary key that tells 1, 1.0 and True, and 0.0 and -0.0, apart."""
    if isinstance(attribute, tuple):
        return tuple(map(_key, attribute))
    if isinstance(attribute, (int, float)):
        return type(attribute), repr(attribute)
    return attribute


def merge_common_subexpressions(graph: Graph) -> int:
    """Let nodes of equal op, inputs and attributes share one result; returns how many went.

    Constants merge by name, never by content; random ops and nodes that define symbols stay.
    """
    seen: dict[Any, Node] = {}
    count = 0
    for node in graph.nodes:
        for region in node.regions:
            count += merge_common_subexpressions(region)
        spec = find(node.op)
        if node.regions or node.attrs.get("symbols") or not node.outputs or (spec is not None and spec.impure):
            continue
        if node.attrs.get("impure"):
            continue
        key = (node.op, node.inputs, tuple(sorted((k, _key(v)) for k, v in node.attrs.items())))
        first = seen.setdefault(key, node)
        if first is node or any(a.is_output and b.is_output for a, b in zip(first.outputs, node.outputs, strict=True)):
            continue
        for old, new in zip(node.outputs, first.outputs, strict=True):
            if old.is_output:
                name, old.name = old.name, graph.unique(old.name)
                new.name = name
            graph.replace_uses(old, new)
        graph.erase(node)
        count += 1
    return count
