"""What differs between two graphs of operators: nodes are matched by their names, by those of their results, then by structure."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from dovetail.frontend.protos import domain_of
from dovetail.frontend.reader import dtype_name, read_tensor
from dovetail.ir.graph import Graph, Module, Node
from dovetail.model.proto_graph import subgraphs
from dovetail.model.weights import is_external

_ALIGNED = 3000


@dataclass(frozen=True)
class NodeView:
    """A node as the comparison sees it.

    Attributes:
        name: unique in its graph.
        label: what people know it by.
        op: operator, with its domain where that is not ONNX's own.
        attributes: their values as text.
        inputs, outputs: names of values; "" for absent ones.
    """

    name: str
    label: str
    op: str
    attributes: Mapping[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def shape(self) -> Hashable:
        """What two nodes of other names must agree in to be taken for the same."""
        return self.op, tuple(sorted(self.attributes.items())), len(self.inputs), len(self.outputs)

    def json(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        return {"name": self.label, "op": self.op}


@dataclass(frozen=True)
class Change:
    """Two nodes that are the same but for something: what, in words; `rewired` if nothing but where inputs come from."""

    a: NodeView
    b: NodeView
    what: tuple[str, ...]
    rewired: bool

    def json(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        return {"name": self.a.label, "op": self.a.op, "in_b": self.b.label, "what": list(self.what), "rewired": self.rewired}


@dataclass(frozen=True)
class GraphDifference:
    """What differs between two graphs.

    Attributes:
        removed, added: nodes that only the first, or only the second has.
        changed: nodes that both have, with other operators, attributes or inputs.
        renamed: pairs that are equal but for their names.
        same: how many nodes are equal, those of other names included.
        operators: by operator that one has more of, its count in both.
    """

    removed: tuple[NodeView, ...]
    added: tuple[NodeView, ...]
    changed: tuple[Change, ...]
    renamed: tuple[tuple[NodeView, NodeView], ...]
    same: int
    operators: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Whether the graphs are equal but for names."""
        return not (self.removed or self.added or self.changed)

    def json(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        return {
            "equal": self.equal,
            "same": self.same,
            "removed": [n.json() for n in self.removed],
            "added": [n.json() for n in self.added],
            "changed": [c.json() for c in self.changed],
            "renamed": [{"a": a.label, "b": b.label, "op": a.op} for a, b in self.renamed],
            "operators": {op: list(counts) for op, counts in self.operators.items()},
        }


def compare_graphs(a: Sequence[NodeView], b: Sequence[NodeView], inputs: Mapping[str, str] | None = None) -> GraphDifference:
    """Match the nodes of two graphs, and say what differs.

    Args:
        inputs: by input of the first graph what it is called in the second. What else no node computes is a weight, whose name does
            not count.
    """
    pairs = _match(a, b)
    # What each value of a is called in b; where neither is computed (weights), names may differ freely.
    called = dict(inputs or {})
    for first, second in pairs:
        called |= dict(zip(first.outputs, second.outputs, strict=False))
    made_a, made_b = _made(a), _made(b)
    changed = []
    renamed = []
    for first, second in pairs:
        what = _differences(first, second)
        rewired = _rewired(first, second, called, made_a, made_b)
        if what or rewired:
            changed.append(Change(first, second, (*what, *rewired), not what))
        elif first.name != second.name:
            renamed.append((first, second))
    in_a, in_b = {id(x) for x, _ in pairs}, {id(y) for _, y in pairs}
    counts_a, counts_b = Counter(n.op for n in a), Counter(n.op for n in b)
    return GraphDifference(
        tuple(n for n in a if id(n) not in in_a), tuple(n for n in b if id(n) not in in_b), tuple(changed), tuple(renamed),
        len(pairs) - len(changed),
        {op: (counts_a[op], counts_b[op]) for op in sorted(counts_a | counts_b) if counts_a[op] != counts_b[op]},
    )  # fmt: skip


def _made(nodes: Iterable[NodeView]) -> dict[str, NodeView]:
    return {name: node for node in nodes for name in node.outputs if name}


def _match(a: Sequence[NodeView], b: Sequence[NodeView]) -> list[tuple[NodeView, NodeView]]:
    """Pairs in the order of a."""
    partner: dict[int, NodeView] = {}
    left_a, left_b = list(a), list(b)

    def settle(pairs: Iterable[tuple[NodeView, NodeView]]) -> None:
        taken = set()
        for first, second in pairs:
            partner[id(first)] = second
            taken.add(id(second))
        left_a[:] = [n for n in left_a if id(n) not in partner]
        left_b[:] = [n for n in left_b if id(n) not in taken]

    settle(_by(left_a, left_b, lambda n: (n.op, n.name)))
    settle(_by(left_a, left_b, lambda n: (n.op, n.outputs[0] if n.outputs else "")))
    settle(_by(left_a, left_b, lambda n: n.outputs[0] if n.outputs else ""))
    settle(_aligned(left_a, left_b))
    return [(n, partner[id(n)]) for n in a if id(n) in partner]


def _by(a: Sequence[NodeView], b: Sequence[NodeView], key: Callable[[NodeView], Hashable]) -> Iterator[tuple[NodeView, NodeView]]:
    """Pairs of equal keys, where a key is unique on both sides."""
    counts_a, counts_b = Counter(map(key, a)), Counter(map(key, b))
    found = {key(n): n for n in b}
    for node in a:
        if counts_a[key(node)] == counts_b[key(node)] == 1:
            yield node, found[key(node)]


def _aligned(a: Sequence[NodeView], b: Sequence[NodeView]) -> Iterator[tuple[NodeView, NodeView]]:
    """Pairs of what is alike in the longest common order: equal nodes, then nodes of equal operators between them."""
    for key in (lambda n: n.shape, lambda n: n.op):
        pairs = list(_in_order(a, b, key))
        yield from pairs
        taken_a, taken_b = {id(x) for x, _ in pairs}, {id(y) for _, y in pairs}
        a, b = [n for n in a if id(n) not in taken_a], [n for n in b if id(n) not in taken_b]


def _in_order(a: Sequence[NodeView], b: Sequence[NodeView], key: Callable[[NodeView], Hashable]) -> Iterator[tuple[NodeView, NodeView]]:
    if max(len(a), len(b)) > _ALIGNED:
        # The search takes the square of the number: of very many, the common beginning will do.
        for x, y in zip(a, b, strict=False):
            if key(x) != key(y):
                return
            yield x, y
        return
    for block in difflib.SequenceMatcher(None, [*map(key, a)], [*map(key, b)], autojunk=False).get_matching_blocks():
        yield from zip(a[block.a : block.a + block.size], b[block.b : block.b + block.size], strict=True)


def _differences(a: NodeView, b: NodeView) -> list[str]:
    what = [f"operator {a.op} -> {b.op}"] if a.op != b.op else []
    for name in sorted({*a.attributes, *b.attributes}):
        old, new = a.attributes.get(name, "default"), b.attributes.get(name, "default")
        if old != new:
            what.append(f"{name} {old} -> {new}")
    if len(a.inputs) != len(b.inputs):
        what.append(f"{len(a.inputs)} inputs -> {len(b.inputs)}")
    return what


def _rewired(
    a: NodeView, b: NodeView, called: Mapping[str, str], made_a: Mapping[str, NodeView], made_b: Mapping[str, NodeView]
) -> list[str]:
    """Inputs that come from elsewhere."""
    what = []
    for position, (old, new) in enumerate(zip(a.inputs, b.inputs, strict=False)):
        if called.get(old, old) == new or (old and new and old not in made_a and new not in made_b and old not in called):
            continue
        what.append(f"input {position} {_source(old, made_a)} -> {_source(new, made_b)}")
    return what


def _source(name: str, made: Mapping[str, NodeView]) -> str:
    return f"from {made[name].label}" if name in made else name or "none"


# ---------------------------------------------------------------------- views of graphs
def model_nodes(model: onnx.ModelProto) -> list[NodeView]:
    """The nodes of an ONNX model, those of subgraphs too; constants are weights and left out."""
    found: list[NodeView] = []
    _collect(model.graph, "", found)
    names = Counter(n.name for n in found)
    return [
        NodeView(n.outputs[0] if names[n.name] > 1 and n.outputs else n.name, n.label, n.op, n.attributes, n.inputs, n.outputs)
        for n in found
    ]


def _collect(graph: onnx.GraphProto, prefix: str, found: list[NodeView]) -> None:
    for node in graph.node:
        if node.op_type == "Constant" and not domain_of(node.domain):
            continue
        name = prefix + (node.name or next((o for o in node.output if o), node.op_type))
        attributes = {p.name: _text(p) for p in node.attribute if p.type not in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)}
        op = node.op_type if not domain_of(node.domain) else f"{node.domain}:{node.op_type}"
        found.append(NodeView(name, name, op, attributes, _trimmed(node.input), tuple(node.output)))
        for inner in subgraphs(node):
            _collect(inner, f"{name}/", found)


def _trimmed(names: Sequence[str]) -> tuple[str, ...]:
    """Inputs without absent ones at the end."""
    kept = list(names)
    while kept and not kept[-1]:
        kept.pop()
    return tuple(kept)


def _text(attribute: onnx.AttributeProto) -> str:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        plain = value.data_type != onnx.TensorProto.STRING and not is_external(value)  # the same numbers may be stored in two ways
        held = read_tensor(value, None).tobytes() if plain else value.SerializeToString()
        digest = hashlib.sha256(held).hexdigest()[:8]
        return f"{dtype_name(value.data_type)}{list(value.dims)} {digest}"
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Sequence):
        return str([v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in value])
    return hashlib.sha256(value.SerializeToString()).hexdigest()[:8]


def module_nodes(module: Module) -> list[NodeView]:
    """The nodes of an IR module, those of regions too; each is named after its first result."""
    found: list[NodeView] = []
    _collect_ir(module.main, found)
    return found


def _collect_ir(graph: Graph, found: list[NodeView]) -> None:
    for node in graph.nodes:
        if node.op == "Constant":
            continue
        found.append(_view(node))
        for region in node.regions:
            _collect_ir(region, found)


def _view(node: Node) -> NodeView:
    name = node.outputs[0].name if node.outputs else node.where
    attributes = {key: str(value) for key, value in node.attrs.items()}
    label = node.origin[0] if node.origin else name
    inputs = tuple("" if v is None else v.name for v in node.inputs)
    return NodeView(name, label, node.op, attributes, inputs, tuple(v.name for v in node.outputs))
