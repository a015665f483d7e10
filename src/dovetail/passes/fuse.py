"""Fusion by grouping: each group of nodes becomes one `Fusion {kind}` node with a body, computed by one tactic.

Groups grow backwards from their last node. A producer joins when every reader of it is in the group already, so a group
never hides a value that others need and never closes a cycle. A group has at most one *anchor*: a contraction with a
template of its own, or a reduction, row or window of the loop IR. What follows the anchor (epilogue) must have its
shape; loop anchors also take pointwise producers (prologue), templates those that a tactic computes as it loads. Views stay
outside: they cost nothing as strides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dovetail.codegen.tactic import Group, candidates, tactics
from dovetail.codegen.target import Target
from dovetail.ir import limit
from dovetail.ir.graph import Graph, Module, Node, Time, Value
from dovetail.ir.types import TensorType
from dovetail.ops.registry import OpKind, find
from dovetail.passes.views import is_view

# Ops with templates of their own, and the kind of the groups around them.
TEMPLATE_KINDS = {
    "Conv": "conv",
    "ConvTranspose": "conv_transpose",
    "MatMul": "matmul",
    "Attention": "attention",
    "MaxPool": "pool",
    "AveragePool": "pool",
    "LSTM": "recurrent",
    "GRU": "recurrent",
    "RNN": "recurrent",
    "TopK": "select",
    "ScatterElements": "select",
    "ScatterND": "select",
    "NonZeroTable": "select",
    "SuppressionTable": "select",
    "Plugin": "plugin",
}
# Kinds of groups that hold their anchor alone.
_ALONE = frozenset({"attention", "recurrent", "select", "plugin"})
# Kinds of loop anchors that may compute their pointwise producers in place of a load, each element about once.
_PROLOGUE_KINDS = frozenset({OpKind.REDUCTION, OpKind.ROW, OpKind.MOVEMENT})
_EXPANDING = frozenset({"Tile", "Resize", "Gather", "GatherND", "GatherElements", "Concat"})
_MAX_GROUP = 64

Lowerable = Callable[[Node], "str | None"]


@dataclass
class Draft:
    """A group under construction: its last node, kind, members and anchor."""

    sink: Node
    kind: str
    nodes: dict[Node, None] = field(default_factory=dict)
    anchor: Node | None = None


@dataclass
class FusionLog:
    """Why producers were not fused: (producer, consumer, reason); and why nodes run on the host: (node, reason)."""

    declined: list[tuple[str, str, str]] = field(default_factory=list)
    host: list[tuple[str, str]] = field(default_factory=list)


def fuse(module: Module, target: Target, not_lowerable: Lowerable, graph: Graph | None = None) -> FusionLog:
    """Group the run-time nodes of a graph (and of its regions) into Fusion nodes.

    Args:
        not_lowerable: None if the loop IR has a lowering for a node, else the reason why not.
    """
    log = FusionLog()
    graph = module.main if graph is None else graph  # a region without nodes is falsy
    grouped: set[Node] = set()
    nodes = list(graph.nodes)
    positions = {node: i for i, node in enumerate(nodes)}
    reasons = {n: _not_fusable(n, not_lowerable) for n in nodes}
    for node in reversed(nodes):
        for region in node.regions:
            inner = fuse(module, target, not_lowerable, region)
            log.declined += inner.declined
            log.host += inner.host
        if node in grouped or is_view(node) or graph.time_of(node) != Time.RUN or is_placed_concat(node):
            continue
        reason = reasons[node]
        draft = None
        if _has_template(node, target) or reason is None:
            draft = _grow(node, positions, reasons, grouped, log, target)
            fused, reason = materialise(graph, draft, target)
            if fused is None and draft.anchor is not None and draft.anchor.op in TEMPLATE_KINDS:
                ahead = [n for n in draft.nodes if n is not draft.anchor and _reaches(n, draft)]
                if ahead:
                    log.declined += [(n.where, draft.anchor.where, reason or "") for n in ahead]
                    draft.nodes = {n: None for n in draft.nodes if n not in ahead}
                    fused, reason = materialise(graph, draft, target)
            if fused is None and len(draft.nodes) > 1:
                log.declined.append((draft.anchor.where if draft.anchor else node.where, node.where, reason or ""))
                draft = Draft(node, _kind(node, reasons), {node: None}, node if _is_anchor(node) else None)
                fused, reason = materialise(graph, draft, target)
            if fused is not None:
                grouped |= set(draft.nodes)
                continue
        if not node.regions and node.op not in ("BindSymbols",):
            log.host.append((node.where, reason or ""))
    graph.update_times()
    return log


def _has_template(node: Node, target: Target) -> bool:
    kind = TEMPLATE_KINDS.get(node.op)
    return kind is not None and (kind != "select" or bool(tactics(kind, target.device)))


def _not_fusable(node: Node, not_lowerable: Lowerable) -> str | None:
    spec = find(node.op)
    if spec is None or node.regions:
        return f"{node.op} is not an operator of the loop IR"
    if len(node.outputs) != 1:
        return f"{node.op} has {len(node.outputs)} results"
    if not all(isinstance(v.type, TensorType) for v in (*node.operands, *node.outputs)):
        return "sequences live in host steps"
    return not_lowerable(node)


def _is_anchor(node: Node) -> bool:
    spec = find(node.op)
    return node.op in TEMPLATE_KINDS or (spec is not None and spec.kind != OpKind.POINTWISE)


def _kind(node: Node, reasons: dict[Node, str | None]) -> str:
    return TEMPLATE_KINDS.get(node.op, "loop")


def _grow(
    sink: Node, positions: dict[Node, int], reasons: dict[Node, str | None], grouped: set[Node], log: FusionLog, target: Target
) -> Draft:
    draft = Draft(sink, _kind(sink, reasons), {sink: None}, sink if _is_anchor(sink) else None)
    tried: set[Node] = set()
    while len(draft.nodes) < _MAX_GROUP:
        producers = {v.producer for n in draft.nodes for v in n.operands if v.producer is not None}
        waiting = [p for p in producers if p not in draft.nodes and p not in tried]
        if not waiting:
            break
        node = max(waiting, key=positions.__getitem__)  # the last one: all its readers have been decided
        tried.add(node)
        reason = _not_absorbed(draft, node, reasons, grouped, target) or ("the limit of rewrites is reached" if limit.exhausted() else None)
        if reason is None:
            draft.nodes[node] = None
            limit.made(f"fusion into {sink.where}", node.where)
            if _is_anchor(node):
                draft.anchor = node
                draft.kind = _kind(node, reasons)
        elif node.outputs and node.outputs[0].time == Time.RUN and not is_view(node):
            log.declined.append((node.where, sink.where, reason))
    return draft


def _not_absorbed(
    draft: Draft, node: Node, reasons: dict[Node, str | None], grouped: set[Node], target: Target
) -> str | None:
    if node.graph.time_of(node) != Time.RUN:
        return "known before the run"
    if node in grouped:
        return "belongs to another group"
    if is_view(node):
        return "is a view"
    if is_placed_concat(node):
        return "its parts are written in place"
    kind = TEMPLATE_KINDS.get(node.op)
    if reasons[node] is not None and (kind is None or kind in _ALONE):
        return reasons[node]
    if kind in _ALONE:
        return f"{node.op} takes no epilogue"
    if len(node.outputs) != 1 or node.output.is_output:
        return "its result is an output of the model"
    readers = node.output.consumers
    if any(r not in draft.nodes for r in readers):
        return f"{len(readers)} nodes read it"
    feeds_anchor = draft.anchor is not None and _reaches(node, draft)
    if _is_anchor(node):
        if draft.anchor is not None:
            return f"the group is built around {draft.anchor.where}"
        shape = node.output.tensor.shape
        if any(n.output.tensor.shape != shape for n in draft.nodes if _follows(n, node, draft)):
            return "the shape changes after it"
        if draft.sink.output.tensor.shape != shape:
            return "the shape changes after it"
        return None
    if feeds_anchor:
        assert draft.anchor is not None
        template_node = _ends_template(node)
        if template_node is not None:
            return f"is an epilogue of {template_node.where}"
        if draft.anchor.op in TEMPLATE_KINDS:
            return _no_prologue(draft.anchor, node, target)
        spec = find(draft.anchor.op)
        if spec is None or spec.kind not in _PROLOGUE_KINDS or draft.anchor.op in _EXPANDING:
            return f"{draft.anchor.op} would compute it several times"
    elif node.output.tensor.shape != draft.sink.output.tensor.shape:
        # A small operand broadcast into the group is cheaper to compute once than once per element.
        return "it is broadcast"
    return None


def _no_prologue(anchor: Node, node: Node, target: Target) -> str | None:
    """None if a tactic computes a node while it loads its anchor's first operand, else the first one's reason why not."""
    if node.output in anchor.operands[1:]:
        return "it computes another operand than the first"
    asked = [t.prologue(anchor, node, target) for t in tactics(TEMPLATE_KINDS[anchor.op], target.device)]
    return None if None in asked else next(iter(asked), f"{anchor.op} has no tactic")


def is_placed_concat(node: Node) -> bool:
    """Whether a concat costs less as a buffer whose parts are written by their producers than as a loop."""
    if node.op != "Concat" or not isinstance(node.output.type, TensorType):
        return False
    return any(
        v.time == Time.RUN and v.producer is not None and not is_view(v.producer) and not v.is_output for v in node.operands
    )


def _ends_template(node: Node) -> Node | None:
    """The contraction that could take a pointwise node as its epilogue, if there is one."""
    shape = node.output.tensor.shape
    pending, seen = [node], set()
    while pending:
        current = pending.pop()
        for value in current.operands:
            producer = value.producer
            if producer is None or producer in seen or value.time != Time.RUN or value.type.shape != shape:  # type: ignore[union-attr]
                continue
            seen.add(producer)
            if len(value.consumers) != 1:
                continue
            spec = find(producer.op)
            if producer.op in ("Conv", "ConvTranspose", "MatMul"):
                return producer
            if spec is not None and spec.kind == OpKind.POINTWISE:
                pending.append(producer)
    return None


def _reaches(node: Node, draft: Draft) -> bool:
    """Whether the anchor reads node through members of the group."""
    pending, seen = [node], set()
    while pending:
        current = pending.pop()
        if current is draft.anchor:
            return True
        if current in seen:
            continue
        seen.add(current)
        pending += [c for c in current.output.consumers if c in draft.nodes]
    return False


def _follows(member: Node, anchor: Node, draft: Draft) -> bool:
    """Whether a member reads the anchor's result, directly or through other members."""
    pending, seen = [anchor], set()
    while pending:
        current = pending.pop()
        for reader in current.output.consumers:
            if reader is member:
                return True
            if reader in draft.nodes and reader not in seen:
                seen.add(reader)
                pending.append(reader)
    return False


def materialise(graph: Graph, draft: Draft, target: Target) -> tuple[Node | None, str | None]:
    """Replace a draft's nodes by a Fusion node if a tactic computes it, else (None, reasons)."""
    members = _in_order(graph, draft)
    group = _group(graph, draft, members)
    fusion, sink = group.node, draft.sink
    able, reasons = candidates(group, target)
    if not able:
        graph.erase(fusion)
        return None, "; ".join(reasons) or f"no tactic for a {draft.kind} group"
    names = [v.name for v in sink.outputs]
    for old, new in zip(sink.outputs, fusion.outputs, strict=True):
        graph.replace_uses(old, new)
    for node in reversed(members):
        graph.erase(node)
    for name, new in zip(names, fusion.outputs, strict=True):
        new.name = name  # the name is free again: its node is gone
    return fusion, None


def declined_alone(node: Node, target: Target) -> str | None:
    """None if a tactic of the target computes a node as a group of its own, else the reasons why none does."""
    draft = Draft(node, TEMPLATE_KINDS.get(node.op, "loop"), {node: None}, node if _is_anchor(node) else None)
    group = _group(node.graph, draft, [node])
    able, reasons = candidates(group, target)
    node.graph.erase(group.node)
    return None if able else "; ".join(reasons) or f"no tactic for a {draft.kind} group"


def _group(graph: Graph, draft: Draft, members: list[Node]) -> Group:
    """A new Fusion node before the draft's last one; nobody reads its results yet."""
    sink = draft.sink
    external: dict[Value, None] = {}
    for node in members:
        for value in node.operands:
            if value.producer not in draft.nodes:
                external[value] = None
    body = Graph("body")
    inner: dict[Value, Value] = {v: body.add_input(v.name, v.tensor) for v in external}
    for value, copy in inner.items():
        copy.contents = value.contents
    anchor = None
    for node in members:
        inputs = [None if v is None else inner[v] for v in node.inputs]
        copy_node = body.add(
            node.op, inputs, node.attrs, types=[v.type for v in node.outputs],
            names=[v.name for v in node.outputs], origin=node.origin,
        )  # fmt: skip
        if node is draft.anchor:
            anchor = copy_node
        for old, new in zip(node.outputs, copy_node.outputs, strict=True):
            inner[old] = new
    body.set_outputs([inner[v] for v in sink.outputs])
    origin = [o for n in members for o in n.origin]
    fusion = graph.add(
        "Fusion", list(external), {"kind": draft.kind}, types=[v.type for v in sink.outputs],
        regions=[body], origin=origin, before=sink,
    )  # fmt: skip
    return Group(fusion, body, anchor)


def _in_order(graph: Graph, draft: Draft) -> list[Node]:
    order: list[Node] = []
    node: Node | None = draft.sink
    left = len(draft.nodes)
    while node is not None and left:
        if node in draft.nodes:
            order.append(node)
            left -= 1
        node = node.prev
    return order[::-1]


def group_of(fusion: Node) -> Group:
    """The Group view of a Fusion node; the anchor is the body's node with a template, else its non-pointwise node."""
    body = fusion.regions[0]
    anchors = [n for n in body.nodes if _is_anchor(n)]
    preferred = [n for n in anchors if TEMPLATE_KINDS.get(n.op) == fusion.attrs["kind"]]
    found = preferred or anchors
    return Group(fusion, body, found[-1] if found else None)
