"""Selection: one tactic and configuration for every fusion, with the operands packed as it wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dovetail.codegen.tactic import Config, Emitted, Group, Tactic, candidates, require
from dovetail.codegen.target import Target
from dovetail.ir.fingerprint import fingerprint
from dovetail.ir.graph import Graph, Module, Node, Time, Value
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
        measured_us: time per candidate ("tactic config" → microseconds); empty when chosen by rule.
    """

    group: Group
    tactic: Tactic
    config: Config
    rejected: tuple[str, ...] = ()
    measured_us: tuple[tuple[str, float], ...] = ()
    _emitted: list[Emitted] = field(default_factory=list, repr=False, compare=False)

    def emit(self, target: Target, known: dict[tuple[object, ...], Emitted] | None = None) -> Emitted:
        """The kernels, once the operands are packed; written once.

        Args:
            known: kernels of other groups by all that they depend on, so that equal layers are written once.
        """
        if not self._emitted:
            key = (
                self.tactic.name, self.config, tuple((v.type, v.time, v.producer is None) for v in self.group.inputs),
                tuple(v.type for v in self.group.outputs),
                fingerprint(self.group.body, {}),
            )  # fmt: skip
            if known is None or key not in known:
                self._emitted.append(self.tactic.emit(self.group, self.config, target))
            else:
                self._emitted.append(known[key])
            if known is not None:
                known[key] = self._emitted[0]
        return self._emitted[0]


Decision = tuple[Tactic, Config, tuple[tuple[str, float], ...]]
"""Tactic, configuration, and the measured times that led to them."""

Chooser = Callable[[Sequence[tuple[Group, list[Tactic]]], Target, Mapping[str, int]], Sequence[Decision]]
"""Decides for all groups of a model at once, each with the tactics that compute it by preference; the mapping says for which sizes
of shape symbols the user wants the engine to be fastest."""


def by_rule(groups: Sequence[tuple[Group, list[Tactic]]], target: Target, sizes: Mapping[str, int]) -> list[Decision]:
    """The first tactic's first configuration."""
    return [(able[0], next(iter(able[0].configs(group, target))), ()) for group, able in groups]


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
    nodes = list(fusions(module.main))
    groups = [group_of(node) for node in nodes]
    found = [candidates(group, target) for group in groups]
    if module.meta.get("strict_fp32"):
        found = [_direct_sums(able, reasons) for able, reasons in found]
    for group, (able, _) in zip(groups, found, strict=True):
        if not able:
            require(group, target)  # raises, with every tactic's reason
    decisions = choose([(group, able) for group, (able, _) in zip(groups, found, strict=True)], target, optima(module))
    for node, group, (_, rejected), (tactic, config, measured) in zip(nodes, groups, found, decisions, strict=True):
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


def choose_weights(module: Module, target: Target) -> dict[Node, Choice]:
    """Choices for the fusions that `passes.weight_time` has made, by rule: they run once per load."""
    graph = module.main
    nodes = [n for n in graph.nodes if n.op == "Fusion" and graph.time_of(n) == Time.WEIGHT]
    groups = [group_of(node) for node in nodes]
    found = [(group, require(group, target)) for group in groups]
    decisions = by_rule(found, target, {})
    return {
        node: Choice(group, tactic, config)
        for node, group, (tactic, config, _) in zip(nodes, groups, decisions, strict=True)
    }


def optima(module: Module) -> dict[str, int]:
    """The size of each bounded symbol that the engine should be fastest at: the declared optimum, or the upper bound."""
    return {name: int(bounds[2]) for name, bounds in module.meta.get("symbol_bounds", {}).items() if bounds[2] is not None}


def _direct_sums(able: list[Tactic], reasons: list[str]) -> tuple[list[Tactic], list[str]]:
    """Without the tactics that transform their operands and lose accuracy by it."""
    kept = [t for t in able if t.relative_error() <= Tactic.relative_error(t)]
    return kept, reasons + [f"{t.name}: strict_fp32 forbids it" for t in able if t not in kept]


def _after(graph: Graph, value: Value) -> Node | None:
    """The node that follows the producer of value (the first node for an input)."""
    if value.producer is None:
        return next(iter(graph.nodes), None)
    node = value.producer.next
    while node is not None and node.erased:
        node = node.next
    return node
