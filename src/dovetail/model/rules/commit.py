"""Puts replacements into a graph: new nodes in, old ones out, readers to new names, in an order that works."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from dovetail.core.errors import RuleError
from dovetail.frontend.protos import domain_of
from dovetail.frontend.reader import read_tensor
from dovetail.model.proto_graph import read_names, redirect
from dovetail.model.rules.match import Match
from dovetail.model.rules.scope import Scope


@dataclass
class Plan:
    """A match and what takes its place.

    Attributes:
        nodes: the new ones.
        results: names of the values that stand for the match's outputs.
        unchecked: why types could not be compared; "" if they were.
        chain: the rules that led to this match, its own last.
        gone: the matched nodes that the replacement left nothing to do; known once it is carried out.
    """

    match: Match
    nodes: list[onnx.NodeProto]
    results: list[str]
    unchecked: str
    chain: tuple[str, ...]
    gone: set[int] = field(default_factory=set)

    @property
    def members(self) -> set[int]:
        """The matched nodes."""
        return set(self.match.found.nodes.values())


def commit(model: onnx.ModelProto, graphs: Sequence[Scope], plans: Sequence[Plan]) -> None:
    """Carry out plans that share no node.

    Raises:
        RuleError: what a replacement reads depends on what it computes.
    """
    known = {domain_of(o.domain) for o in model.opset_import}
    for plan in plans:
        for node in plan.nodes:
            if domain_of(node.domain) not in known:
                known.add(domain_of(node.domain))
                model.opset_import.append(helper.make_opsetid(node.domain, 1))
    # Inner graphs first: the nodes of outer ones are copied with what is inside of them.
    for scope in reversed(graphs):
        mine = [p for p in plans if p.match.scope is scope]
        if mine:
            _commit_in(scope, mine)


def _commit_in(scope: Scope, plans: Sequence[Plan]) -> None:
    names: dict[str, str] = {}  # readers of a key read its value instead
    after: dict[int, list[onnx.NodeProto]] = {}
    renamed: set[str] = set()
    members = set[int]().union(*(p.members for p in plans))
    gone: set[str] = set()
    for plan in plans:
        made = {o for n in plan.nodes for o in n.output}
        added = list(plan.nodes)
        for output, result in zip(plan.match.found.outputs, plan.results, strict=True):
            gone.add(output)
            if result in made and result not in renamed:
                renamed.add(result)
                _rename(added, result, output)
            elif output in scope.outputs:
                added.append(helper.make_node("Identity", [_now(result, plan, renamed)], [output], name=f"{output}/{plan.match.rule}"))
            else:
                names[output] = _now(result, plan, renamed)
        after.setdefault(max(plan.members), []).extend(added)
    nodes: list[onnx.NodeProto] = []
    for number, node in enumerate(scope.nodes):
        if number not in members:
            nodes.append(node)
        elif not gone & set(node.output):
            nodes.append(node)  # perhaps still needed: dead ones go below
        nodes += after.get(number, [])
    redirect(nodes, {old: _follow(old, names) for old in names})
    nodes = _alive(nodes, {id(scope.nodes[k]) for k in members}, scope)
    alive = {id(n) for n in nodes}
    for plan in plans:
        plan.gone = {k for k in plan.members if id(scope.nodes[k]) not in alive}
    copies = []
    for node in _ordered(nodes, plans):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del scope.graph.node[:]
    scope.graph.node.extend(copies)


def _now(result: str, plan: Plan, renamed: set[str]) -> str:
    """What a result is called, after it may have taken the name of an output before this one."""
    if result not in renamed:
        return result
    return plan.match.found.outputs[plan.results.index(result)]


def _rename(nodes: Sequence[onnx.NodeProto], old: str, new: str) -> None:
    redirect(nodes, {old: new})
    for node in nodes:
        for position, name in enumerate(node.output):
            if name == old:
                node.output[position] = new


def _follow(name: str, names: Mapping[str, str]) -> str:
    seen = {name}
    while name in names and names[name] not in seen:
        name = names[name]
        seen.add(name)
    return name


def _alive(nodes: Sequence[onnx.NodeProto], doubtful: set[int], scope: Scope) -> list[onnx.NodeProto]:
    """Without those of the doubtful nodes that nothing reads any more."""
    while True:
        read = set(read_names(nodes)) | scope.outputs
        kept = [n for n in nodes if id(n) not in doubtful or read & {o for o in n.output if o}]
        if len(kept) == len(nodes):
            return kept
        nodes = kept


def _ordered(nodes: Sequence[onnx.NodeProto], plans: Sequence[Plan]) -> list[onnx.NodeProto]:
    """The nodes, each behind what it reads; those that are in order stay as they are.

    Raises:
        RuleError: a circle.
    """
    producers = {name: k for k, node in enumerate(nodes) for name in node.output if name}
    needs = [{producers[n] for n in read_names([node]) if n in producers and producers[n] != k} for k, node in enumerate(nodes)]
    if all(not need or max(need) < k for k, need in enumerate(needs)):
        return list(nodes)
    readers: dict[int, list[int]] = {}
    waiting = [len(need) for need in needs]
    for k, need in enumerate(needs):
        for source in need:
            readers.setdefault(source, []).append(k)
    ready = [k for k, count in enumerate(waiting) if not count]
    heapq.heapify(ready)
    order = []
    while ready:
        k = heapq.heappop(ready)
        order.append(nodes[k])
        for reader in readers.get(k, ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        places = ", ".join(f"{p.match.rule!r} at {p.match.nodes[-1]}" for p in plans)
        raise RuleError(f"rules {places}: got replacements that read what depends on them, expected no circle; correct the rules")
    return order


def put_back(work: onnx.ModelProto, proto: onnx.ModelProto, folder: Path | None) -> dict[str, np.ndarray[Any, Any]]:
    """Give a model the nodes of its copy; returns the initializers that nothing reads any more, which go."""
    before = set(read_names(proto.graph.node))
    del proto.graph.node[:]
    proto.graph.node.extend(work.graph.node)
    del proto.opset_import[:]
    proto.opset_import.extend(work.opset_import)
    alive = {o for n in proto.graph.node for o in n.output}
    for position in reversed(range(len(proto.graph.value_info))):
        if proto.graph.value_info[position].name not in alive:
            del proto.graph.value_info[position]
    still = set(read_names(proto.graph.node)) | {v.name for v in proto.graph.output}
    inputs = {v.name for v in proto.graph.input} if proto.ir_version >= 4 else set[str]()
    gone = {
        t.name: read_tensor(t, folder) for t in proto.graph.initializer if t.name in before - still and t.name not in inputs
    }
    for listed in (proto.graph.initializer, *([proto.graph.input] if proto.ir_version < 4 else [])):
        for position in reversed(range(len(listed))):
            if listed[position].name in gone:
                del listed[position]
    return gone
