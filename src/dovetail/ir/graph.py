"""Graph, Node and Value: identity equality, use lists, and mutation through Graph only."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dovetail.core import dims
from dovetail.core.dims import Dim, Expr
from dovetail.core.dtypes import DType
from dovetail.ir.types import TensorType, Type


class Time(enum.IntEnum):
    """When a value becomes known."""

    WEIGHT = 0
    SHAPE = 1
    RUN = 2


class Value:
    """One result of a node, or one input of a graph.

    Attributes:
        name: unique in its graph; the user's tensor name where there is one.
        type: TensorType or SequenceType.
        producer: the node that computes it, None for a graph input.
        index: position among the producer's outputs or the graph's inputs.
        contents: object array of Dims for small integer tensors whose contents are known symbolically, else None.
        time: when it becomes known (kept by `Graph.update_times`).
    """

    __slots__ = ("_uses", "contents", "graph", "index", "name", "producer", "time", "type")

    def __init__(self, graph: Graph, name: str, type: Type, producer: Node | None, index: int) -> None:
        self.graph, self.name, self.type = graph, name, type
        self.producer, self.index = producer, index
        self.contents: np.ndarray[Any, Any] | None = None
        self.time = Time.RUN
        self._uses: dict[tuple[Node, int], None] = {}

    @property
    def uses(self) -> tuple[tuple[Node, int], ...]:
        """(node, input position) pairs that read this value, in order of creation."""
        return tuple(self._uses)

    @property
    def consumers(self) -> tuple[Node, ...]:
        """The distinct nodes that read this value."""
        return tuple(dict.fromkeys(node for node, _ in self._uses))

    @property
    def is_output(self) -> bool:
        """Whether the graph returns this value."""
        return any(v is self for v in self.graph.outputs)

    @property
    def tensor(self) -> TensorType:
        """The type of a tensor value (asserts that it is one)."""
        assert isinstance(self.type, TensorType), f"%{self.name} is a {self.type}"
        return self.type

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The extents of a tensor value (asserts that it is one)."""
        return self.tensor.shape

    @property
    def dtype(self) -> DType:
        """The element type of a tensor value (asserts that it is one)."""
        return self.tensor.dtype

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


class Node:
    """One operation.

    Attributes:
        op: operator name (an OpSpec, "Constant", "Fusion", If, Loop, Scan).
        inputs: values; None for an absent optional input.
        outputs: values.
        attrs: int, float, str, bool, None, DType, Dim and nested tuples of these.
        regions: graphs isolated from above (captures are explicit inputs).
        origin: names of the user's nodes that this one computes.
    """

    __slots__ = ("_inputs", "_mentioned", "attrs", "erased", "graph", "next", "op", "origin", "outputs", "prev", "regions")

    def __init__(self, graph: Graph, op: str, attrs: dict[str, Any], regions: tuple[Graph, ...], origin: tuple[str, ...]) -> None:
        self.graph, self.op, self.attrs, self.regions, self.origin = graph, op, attrs, regions, origin
        self._inputs: list[Value | None] = []
        self.outputs: tuple[Value, ...] = ()
        self.prev: Node | None = None
        self.next: Node | None = None
        self.erased = False
        # Attributes never change, regions may.
        self._mentioned = frozenset[str]().union(*(_symbols(v) for k, v in attrs.items() if k != "symbols"))

    @property
    def inputs(self) -> tuple[Value | None, ...]:
        """The values read, None where an optional input is absent."""
        return tuple(self._inputs)

    @property
    def output(self) -> Value:
        """The only output (asserts that there is one)."""
        assert len(self.outputs) == 1, f"{self.op} has {len(self.outputs)} outputs"
        return self.outputs[0]

    @property
    def operands(self) -> tuple[Value, ...]:
        """The present inputs."""
        return tuple(v for v in self._inputs if v is not None)

    def input(self, position: int) -> Value:
        """The input at position (asserts that it is present)."""
        value = self._inputs[position]
        assert value is not None, f"{self.op} has no input {position}"
        return value

    @property
    def where(self) -> str:
        """How errors name this node: the user's node name and the op."""
        return f"{self.origin[0] if self.origin else self.outputs[0].name if self.outputs else '?'} ({self.op})"

    def symbols(self) -> frozenset[str]:
        """Symbols in the attributes, and those of the graph around it that the regions mention."""
        found = self._mentioned
        for region in self.regions:
            mentioned: set[str] = set()
            defined: set[str] = set()
            for node in region.nodes:
                mentioned |= node.symbols()
                defined.update(node.attrs.get("symbols", ()))
            found |= mentioned - defined
        return found

    def __repr__(self) -> str:
        return f"{', '.join(map(repr, self.outputs))} = {self.op}({', '.join('_' if v is None else '%' + v.name for v in self._inputs)})"


def _symbols(attribute: Any) -> frozenset[str]:
    if isinstance(attribute, Expr):
        return dims.symbols(attribute)
    if isinstance(attribute, tuple):
        return frozenset().union(*(_symbols(a) for a in attribute))
    return frozenset()


class Graph:
    """A list of nodes in execution order with inputs and outputs.

    `symbol_times` says when symbols that nodes define (attribute `symbols`) become known; all others are SHAPE.
    """

    def __init__(self, name: str = "main") -> None:
        self.name = name
        self.inputs: list[Value] = []
        self._outputs: list[Value] = []
        self.symbol_times: dict[str, Time] = {}
        self._first: Node | None = None
        self._last: Node | None = None
        self._count = 0
        self._names: dict[str, int] = {}

    # ------------------------------------------------------------------ reading
    @property
    def outputs(self) -> tuple[Value, ...]:
        """The values the graph returns."""
        return tuple(self._outputs)

    @property
    def nodes(self) -> Iterator[Node]:
        """Nodes in order; the node just yielded may be erased and nodes may be inserted around it."""
        node = self._first
        while node is not None:
            if not node.erased:
                yield node
            node = node.next

    @property
    def last(self) -> Node | None:
        """The last node."""
        return self._last

    def after(self, node: Node | None) -> list[Node]:
        """The nodes behind a node (all for None), in order."""
        found, current = list[Node](), self._last
        while current is not None and current is not node:
            found.append(current)
            current = current.prev
        return found[::-1]

    def __len__(self) -> int:
        return self._count

    def values(self) -> Iterator[Value]:
        """All inputs, then all node outputs."""
        yield from self.inputs
        for node in self.nodes:
            yield from node.outputs

    # ------------------------------------------------------------------ names
    def unique(self, name: str) -> str:
        """`name`, or `name.k` with the first k that makes it unique in this graph; the name is taken."""
        if name not in self._names:
            self._names[name] = 0
            return name
        while True:
            self._names[name] += 1
            candidate = f"{name}.{self._names[name]}"
            if candidate not in self._names:
                self._names[candidate] = 0
                return candidate

    # ------------------------------------------------------------------ mutation
    def add_input(self, name: str, type: Type) -> Value:
        """Append a graph input."""
        value = Value(self, self.unique(name), type, None, len(self.inputs))
        self.inputs.append(value)
        return value

    def remove_input(self, value: Value) -> None:
        """Remove an unused graph input."""
        assert value.producer is None and not value._uses and value not in self._outputs, f"{value!r} is in use"
        self.inputs.remove(value)
        for index, other in enumerate(self.inputs):
            other.index = index

    def set_outputs(self, values: Sequence[Value]) -> None:
        """Replace the list of returned values."""
        assert all(v.graph is self for v in values)
        self._outputs = list(values)

    def add(
        self,
        op: str,
        inputs: Sequence[Value | None] = (),
        attrs: Mapping[str, Any] | None = None,
        *,
        types: Sequence[Type],
        names: Sequence[str] = (),
        regions: Sequence[Graph] = (),
        origin: Iterable[str] = (),
        before: Node | None = None,
    ) -> Node:
        """Insert a node at the end, or before another node.

        Args:
            types: one type per output (`ops.infer` computes them).
            names: preferred names of the outputs.
        """
        node = Node(self, op, dict(attrs or {}), tuple(regions), tuple(dict.fromkeys(origin)))
        for position, value in enumerate(inputs):
            assert value is None or value.graph is self, f"{op}: input {position} {value!r} belongs to another graph"
            node._inputs.append(value)
            if value is not None:
                value._uses[(node, position)] = None
        base = op.lower()
        node.outputs = tuple(
            Value(self, self.unique(names[i] if i < len(names) and names[i] else base), t, node, i) for i, t in enumerate(types)
        )
        self._link(node, before)
        time = self.time_of(node)
        for value in node.outputs:
            value.time = time
        for symbol in node.attrs.get("symbols", ()):
            self.symbol_times[symbol] = time
        return node

    def _link(self, node: Node, before: Node | None) -> None:
        assert before is None or not before.erased, "cannot insert before a node that is gone"
        after = before.prev if before is not None else self._last
        node.prev, node.next = after, before
        if after is None:
            self._first = node
        else:
            after.next = node
        if before is None:
            self._last = node
        else:
            before.prev = node
        self._count += 1

    def _unlink(self, node: Node) -> None:
        if node.prev is None:
            self._first = node.next
        else:
            node.prev.next = node.next
        if node.next is None:
            self._last = node.prev
        else:
            node.next.prev = node.prev
        self._count -= 1

    def move(self, node: Node, before: Node | None) -> None:
        """Move a node before another one (to the end for None)."""
        if before is not node:
            self._unlink(node)
            self._link(node, before)

    def set_input(self, node: Node, position: int, value: Value | None) -> None:
        """Replace one input of a node."""
        old = node._inputs[position]
        if old is not None:
            del old._uses[(node, position)]
        node._inputs[position] = value
        if value is not None:
            assert value.graph is self
            value._uses[(node, position)] = None

    def add_operand(self, node: Node, value: Value | None) -> int:
        """Append an input to a node; returns its position."""
        node._inputs.append(None)
        self.set_input(node, len(node._inputs) - 1, value)
        return len(node._inputs) - 1

    def replace_uses(self, old: Value, new: Value) -> None:
        """Let every reader of old, and the graph's outputs, read new instead."""
        if old is new:
            return
        for node, position in old.uses:
            self.set_input(node, position, new)
        self._outputs = [new if v is old else v for v in self._outputs]

    def rename(self, value: Value, name: str) -> None:
        """Give a value another name (made unique)."""
        value.name = self.unique(name)

    def erase(self, node: Node) -> None:
        """Remove a node whose outputs nobody reads."""
        for value in node.outputs:
            assert not value._uses and not value.is_output, f"{value!r} is in use"
        for position in range(len(node._inputs)):
            self.set_input(node, position, None)
        self._unlink(node)
        # `next` stays, so that an iteration standing on this node can go on from it.
        node.erased = True

    # ------------------------------------------------------------------ times
    def time_of(self, node: Node) -> Time:
        """When the outputs of a node become known, from its inputs' times and attributes."""
        if node.attrs.get("impure"):
            return Time.RUN
        time = max((v.time for v in node.operands), default=Time.WEIGHT)
        for symbol in node.symbols() if node.regions else node._mentioned:
            time = max(time, self.symbol_times.get(symbol, Time.SHAPE))
        # The shapes program hands on no symbols: what defines some does so in the run, whatever a rewrite makes of its inputs later.
        # Of weights alone, they are read at import.
        defined = node.attrs.get("symbols", ())
        if defined and (time == Time.SHAPE or any(self.symbol_times.get(s) == Time.RUN for s in defined)):
            return Time.RUN
        # The shapes program calls references alone: regions run at load or in the run, where there are kernels for their nodes.
        return Time.RUN if node.regions and time == Time.SHAPE else time

    def update_times(self) -> None:
        """Recompute the time of every value, in order."""
        for node in self.nodes:
            time = self.time_of(node)
            for value in node.outputs:
                value.time = time
            for symbol in node.attrs.get("symbols", ()):
                self.symbol_times[symbol] = time


@dataclass(frozen=True)
class Guard:
    """An initializer value that the compiler read; refit may not change it.

    Attributes:
        weight: name of the initializer.
        rewrite: what relied on it.
        digest: sha256 of the value's bytes.
        shown: the value in short, for messages.
    """

    weight: str
    rewrite: str
    digest: str
    shown: str


@dataclass
class Module:
    """A model in the IR: the main graph, named initializers, guards on their values, metadata (JSON types)."""

    main: Graph
    weights: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    guards: list[Guard] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
