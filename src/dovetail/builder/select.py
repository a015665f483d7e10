"""Selection: one tactic and configuration for every fusion, with the operands packed as it wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dovetail.codegen.tactic import Config, Group, Tactic, candidates, require
from dovetail.codegen.target import Target
from dovetail.ir.graph import Graph, Module, Node, Value
from dovetail.ops.infer import infer
from dovetail.passes.fuse import group_of


@dataclass(frozen=True)
class Choice:
    """What computes a fusion.

    Attributes:
        group: the fusion.
        tactic: the way.
        config: its configuration.
        rejected: "name: reason" of the tactics that cannot.
        measured_us: median time per candidate ("tactic config" → microseconds); empty when chosen by rule.
    """

    group: Group
    tactic: Tactic
    config: Config
    rejected: tuple[str, ...] = ()
    measured_us: tuple[tuple[str, float], ...] = ()


Chooser = Callable[[Group, list[Tactic], Target], tuple[Tactic, Config, tuple[tuple[str, float], ...]]]


def by_rule(group: Group, able: list[Tactic], target: Target) -> tuple[Tactic, Config, tuple[tuple[str, float], ...]]:
    """The first tactic's first configuration."""
    return able[0], next(iter(able[0].configs(group, target))), ()


def fusions(graph: Graph) -> Iterator[Node]:
    """All Fusion nodes of a graph and of the regions of its control nodes."""
    for node in graph.nodes:
        if node.op == "Fusion":
            yield node
        else:
            for region in node.regions:
                yield from fusions(region)


def select(module: Module, target: Target, choose: Chooser = by_rule) -> dict[Node, Choice]:
    """Choose for every fusion, and insert the packing nodes that the choices want.

    Raises:
        NoTacticError: a fusion that no tactic computes.
    """
    choices: dict[Node, Choice] = {}
    packed: dict[tuple[Value, str, tuple[tuple[str, object], ...]], Value] = {}
    for node in list(fusions(module.main)):
        group = group_of(node)
        able = require(group, target)
        _, rejected = candidates(group, target)
        tactic, config, measured = choose(group, able, target)
        choices[node] = Choice(group, tactic, config, tuple(rejected), measured)
        graph = node.graph
        for pack in tactic.packs(group, config, target):
            value = node.input(pack.position)
            key = (value, pack.op, pack.attrs)
            if key not in packed:
                attrs = dict(pack.attrs)
                anchor = _after(graph, value)
                packed[key] = graph.add(
                    pack.op, (value,), attrs, types=infer(pack.op, (value,), attrs),
                    names=[f"{value.name}.packed"], origin=node.origin[:1], before=anchor,
                ).output  # fmt: skip
            graph.set_input(node, pack.position, packed[key])
    module.main.update_times()
    return choices


def _after(graph: Graph, value: Value) -> Node | None:
    """The node that follows the producer of value (the first node for an input)."""
    if value.producer is None:
        return next(iter(graph.nodes), None)
    node = value.producer.next
    while node is not None and node.erased:
        node = node.next
    return node
