"""Horizontal fusion: contractions that share their input become one, over concatenated weights (QKV, parallel 1x1 branches).

The results are slices of the merged result, which are views. Siblings are merged with what follows all of them alike: a
bias that is known at weight time, then one equal pointwise op. Concatenation happens at weight time, so refit by the
original names keeps working.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dovetail.core.dims import Dim
from dovetail.ir import limit
from dovetail.ir.graph import Graph, Module, Node, Time, Value
from dovetail.ir.rewriter import Rewrite
from dovetail.ir.types import TensorType
from dovetail.ops.infer import infer
from dovetail.ops.registry import OpKind, find

_MAX_COLUMNS = 1024  # wider contractions fill the machine on their own


@dataclass(frozen=True)
class _Branch:
    """A contraction, the bias that follows it outside (None: none), and its last node before the branches differ."""

    anchor: Node
    bias: Value | None
    add: Node | None
    activation: Node | None

    @property
    def last(self) -> Node:
        return self.activation or self.add or self.anchor

    @property
    def columns(self) -> Dim:
        return self.anchor.output.tensor.shape[-1 if self.anchor.op == "MatMul" else 1]


def merge_siblings(module: Module) -> list[tuple[str, ...]]:
    """Merge sibling contractions of the main graph; returns the origins of each merged set."""
    graph = module.main
    merged: list[tuple[str, ...]] = []
    hoist_weights(graph)
    rewrite = Rewrite(module, graph, infer)
    for value in list(graph.values()):
        if not isinstance(value.type, TensorType) or value.time != Time.RUN:
            continue
        for branches in _sets(value):
            if limit.exhausted():
                break
            limit.made("one contraction of siblings", ", ".join(b.anchor.where for b in branches))
            merged.append(tuple(o for b in branches for o in b.anchor.origin))
            _merge(graph, rewrite, value, branches)
    graph.update_times()
    return merged


def hoist_weights(graph: Graph) -> None:
    """Move the nodes of weight time to the front, in order, so that any node may read any weight."""
    first = next((n for n in graph.nodes if graph.time_of(n) != Time.WEIGHT), None)
    for node in list(graph.nodes):
        if first is not None and graph.time_of(node) == Time.WEIGHT:
            graph.move(node, first)


def _sets(value: Value) -> list[list[_Branch]]:
    """Branches over one input that may be merged, by what they compute."""
    sets: dict[object, list[_Branch]] = {}
    for node in value.consumers:
        branch = _branch(node, value)
        if branch is None:
            continue
        activation = branch.activation
        key = (
            node.op, tuple(sorted(node.attrs.items(), key=lambda a: a[0])), node.input(1).tensor.shape[2 if node.op == "Conv" else 0 :][:2],
            len(node.operands), branch.bias is not None,
            (activation.op, tuple(activation.attrs.items())) if activation is not None else None,
            node.input(1).tensor.shape[2:] if node.op == "Conv" else node.input(1).tensor.shape[0],
        )  # fmt: skip
        sets.setdefault(key, []).append(branch)
    return [b for b in sets.values() if len(b) > 1]


def _branch(node: Node, value: Value) -> _Branch | None:
    if node.op not in ("MatMul", "Conv") or node.inputs[0] is not value or len(node.outputs) != 1:
        return None
    weight = node.input(1)
    if any(v.time != Time.WEIGHT for v in node.operands[1:]) or node.attrs.get("group", 1) != 1:
        return None
    if node.op == "MatMul" and (weight.tensor.rank != 2 or value.tensor.rank < 2):
        return None
    add = _only_reader(node) if node.op == "MatMul" else None
    bias = None
    if add is not None and add.op == "Add":
        other = add.input(1 if add.input(0) is node.output else 0)
        if other.time == Time.WEIGHT and other.tensor.shape == (weight.tensor.shape[-1],):
            bias = other
    tail = node if bias is None else add
    assert tail is not None
    activation = _only_reader(tail)
    if activation is not None:
        spec = find(activation.op)
        if len(activation.operands) != 1 or spec is None or spec.kind != OpKind.POINTWISE or activation.output.is_output:
            activation = None
    branch = _Branch(node, bias, add if bias is not None else None, activation)
    columns = branch.columns
    if not isinstance(columns, int) or columns > _MAX_COLUMNS or branch.last.output.is_output:
        return None
    # A result that is a part of a concat is written there in place; as a slice of a merged result it would be copied.
    if any(reader.op == "Concat" for reader in branch.last.output.consumers):
        return None
    return branch


def _only_reader(node: Node) -> Node | None:
    readers = node.output.consumers
    return readers[0] if len(readers) == 1 and len(node.output.uses) == 1 and not node.output.is_output else None


def _merge(graph: Graph, rewrite: Rewrite, value: Value, branches: Sequence[_Branch]) -> None:
    anchors = {b.anchor for b in branches}
    first = next(n for n in graph.nodes if n in anchors)
    conv = first.op == "Conv"
    rewrite.at(first, [o for b in branches for o in b.last.origin + b.anchor.origin])
    axis = 0 if conv else 1
    weight = rewrite.emit("Concat", *(b.anchor.input(1) for b in branches), axis=axis)
    operands: list[Value] = [value, weight]
    if len(first.operands) > 2:
        operands.append(rewrite.emit("Concat", *(b.anchor.input(2) for b in branches), axis=0))
    result = rewrite.emit(first.op, *operands, **first.attrs)
    biases = [b.bias for b in branches if b.bias is not None]
    if biases:
        result = rewrite.emit("Add", result, rewrite.emit("Concat", *biases, axis=0))
    activation = branches[0].activation
    if activation is not None:
        result = rewrite.emit(activation.op, result, **activation.attrs)
    channel = 1 if conv else result.tensor.rank - 1
    start: Dim = 0
    parts: list[Value] = []
    for branch in branches:
        end = start + branch.columns
        rewrite.origin = branch.last.origin
        name = branch.last.output.name
        parts.append(rewrite.emit("Slice", result, starts=(start,), ends=(end,), axes=(channel,), steps=(1,), name=name))
        start = end
    # Only now: nodes were inserted before one of those that go.
    for branch, part in zip(branches, parts, strict=True):
        graph.replace_uses(branch.last.output, part)
        for node in (branch.activation, branch.add, branch.anchor):
            if node is not None:
                graph.erase(node)
