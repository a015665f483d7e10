"""Rewrite rules with reasons: each rule names its op, and says why it does not apply.

    @rule("Transpose")
    def drop_identity_transpose(node: Node, rewrite: Rewrite) -> str | None:
        "Transpose by the identity is its input."
        if node.attrs["perm"] != tuple(range(len(node.attrs["perm"]))):
            return "perm is not the identity"
        rewrite.replace(node, node.input(0))
        return None

A rule returns None when it has rewritten, else the reason why not. New nodes are inserted before the rewritten one with
its origin, and their types come from the OpSpecs through the `infer` callable given to `apply_rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dovetail.core.errors import IRError
from dovetail.ir import limit
from dovetail.ir.graph import Graph, Module, Node, Value
from dovetail.ir.types import Type

Infer = Callable[[str, Sequence[Value | None], dict[str, Any]], Sequence[Type]]


class Rewrite:
    """What a rule may do: emit nodes before the current one, and replace values."""

    def __init__(self, module: Module, graph: Graph, infer: Infer) -> None:
        self.module, self.graph, self._infer = module, graph, infer
        self.node: Node | None = None
        self.origin: tuple[str, ...] = ()

    def at(self, node: Node, origin: Sequence[str] | None = None) -> None:
        """Insert what follows before `node`, with its origin unless another is given."""
        self.node, self.origin = node, tuple(origin if origin is not None else node.origin)

    def emit(self, op: str, *inputs: Value | None, name: str = "", **attrs: Any) -> Value:
        """Insert a single-output node before the current node; returns its output."""
        return self.emit_node(op, *inputs, names=(name,), **attrs).output

    def emit_node(self, op: str, *inputs: Value | None, names: Sequence[str] = (), **attrs: Any) -> Node:
        """Insert a node before the current node."""
        types = self._infer(op, inputs, attrs)
        return self.graph.add(op, inputs, attrs, types=types, names=names, origin=self.origin, before=self.node)

    def replace(self, node: Node, *values: Value) -> None:
        """Let users of node's outputs read `values` instead, and erase the node; the user's names of graph outputs stay."""
        for old, new in zip(node.outputs, values, strict=True):
            if old.is_output and not new.is_output and new.producer is not None:
                name, old.name = old.name, self.graph.unique(old.name)
                new.name = name
            self.graph.replace_uses(old, new)
        self.graph.erase(node)


@dataclass(frozen=True)
class Rule:
    """A named rewrite of nodes of some ops; `apply` returns None if it rewrote, else the reason why not."""

    name: str
    ops: tuple[str, ...]
    apply: Callable[[Node, Rewrite], str | None]
    doc: str


def rule(*ops: str) -> Callable[[Callable[[Node, Rewrite], str | None]], Rule]:
    """Make a Rule of a function, for nodes of the given ops (none: every op)."""

    def make(function: Callable[[Node, Rewrite], str | None]) -> Rule:
        return Rule(function.__name__, ops, function, (function.__doc__ or "").strip())

    return make


@dataclass
class RewriteLog:
    """What happened: (rule, node) pairs applied and (rule, node, reason) not applied."""

    applied: list[tuple[str, str]]
    declined: list[tuple[str, str, str]]


def apply_rules(
    module: Module, rules: Sequence[Rule], infer: Infer, *, graph: Graph | None = None, max_rounds: int = 64
) -> RewriteLog:
    """Apply rules over the graph and its regions, in order, until nothing changes.

    Raises:
        IRError: the rules do not come to rest within max_rounds sweeps.
    """
    log = RewriteLog([], [])
    graph = module.main if graph is None else graph  # an empty region is falsy
    by_op: dict[str, list[Rule]] = {}
    general = [r for r in rules if not r.ops]
    for r in rules:
        for op in r.ops:
            by_op.setdefault(op, []).append(r)
    rewrite = Rewrite(module, graph, infer)
    for _ in range(max_rounds):
        changed = False
        declined: list[tuple[str, str, str]] = []
        for node in graph.nodes:
            for r in [*by_op.get(node.op, ()), *general]:
                if limit.exhausted():
                    break
                where = node.where
                rewrite.at(node)
                reason = r.apply(node, rewrite)
                if reason is None:
                    log.applied.append((r.name, where))
                    limit.made(r.name, where)
                    changed = True
                    break
                declined.append((r.name, where, reason))
        graph.update_times()
        if not changed:
            log.declined = declined
            break
    else:
        raise IRError(f"graph {graph.name}: rules still apply after {max_rounds} sweeps: {sorted({a for a, _ in log.applied[-20:]})}")
    for node in graph.nodes:
        for region in node.regions:
            if node.op != "Fusion":
                inner = apply_rules(module, rules, infer, graph=region, max_rounds=max_rounds)
                log.applied += inner.applied
                log.declined += inner.declined
    return log
