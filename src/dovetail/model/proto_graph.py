"""An editable view of an ONNX graph proto: producers, uses, constants, renaming across subgraphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from dovetail.frontend.reader import read_tensor

_NUMBERS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}

def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def made_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Every name that a graph defines itself: inputs, weights, outputs of its nodes."""
    yield from (v.name for v in graph.input)
    yield from (t.name for t in graph.initializer)
    yield from (s.values.name for s in graph.sparse_initializer)
    for node in graph.node:
        yield from (name for name in node.output if name)


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all graphs in the attributes of its nodes."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from all_graphs(inner)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph, each followed by those in its bodies."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from all_nodes(inner)


def unique_name(name: str, taken: set[str]) -> str:
    """`name`, or one with a number behind it, that is not taken yet; from now on it is."""
    candidate, count = name, 0
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    taken.add(candidate)
    return candidate


def reads(node: onnx.NodeProto) -> list[str]:
    """The names that a node needs: its inputs, and what its bodies (of If, Loop, Scan) capture."""
    found = dict.fromkeys(name for name in node.input if name)
    for graph in subgraphs(node):
        own = set(made_names(graph))
        captured = [name for inner in graph.node for name in reads(inner)] + [v.name for v in graph.output]
        found |= dict.fromkeys(name for name in captured if name not in own)
    return list(found)


def redirect(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> None:
    """Let nodes and their bodies read a value instead of a key; what a body defines itself under that name stays."""
    for node in nodes:
        for position, name in enumerate(node.input):
            if name in names:
                node.input[position] = names[name]
        for graph in subgraphs(node):
            own = set(made_names(graph))
            outer = {old: new for old, new in names.items() if old not in own}
            redirect(graph.node, outer)
            for output in graph.output:
                output.name = outer.get(output.name, output.name)


def read_names(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Every name that nodes read, those inside their subgraphs included."""
    for node in nodes:
        yield from (name for name in node.input if name)
        for graph in subgraphs(node):
            yield from read_names(graph.node)
            yield from (output.name for output in graph.output)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of an attribute, or the default."""
    for proto in node.attribute:
        if proto.name == name:
            return onnx.helper.get_attribute_value(proto)
    return default


def constant_value(node: onnx.NodeProto, folder: Path | None) -> np.ndarray[Any, Any] | None:
    """The array that a Constant node holds; None for other nodes, and for texts and sparse tensors."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for proto in node.attribute:
        if proto.name == "value":
            return read_tensor(proto.t, folder)
        if proto.name in _NUMBERS:
            return np.asarray(onnx.helper.get_attribute_value(proto), _NUMBERS[proto.name])
    return None


class ProtoGraph:
    """One graph of a model with what rewrites need to know about it; `refresh` after each round of changes.

    `constants` maps names to tensors: initializers that no caller can override, and for a subgraph those of the graphs around it.
    """

    def __init__(
        self, model: onnx.ModelProto, folder: Path | None = None, graph: onnx.GraphProto | None = None, outer: ProtoGraph | None = None
    ) -> None:
        self.model, self.folder, self.outer = model, folder, outer
        self.graph = model.graph if graph is None else graph
        # Before IR version 4 every initializer of the main graph had to be listed among the inputs.
        self.initializers_are_inputs = model.ir_version < 4 and outer is None
        self._taken: set[str] = set(_all_names(model.graph)) if outer is None else outer._taken
        self.opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
        self.refresh()

    def refresh(self) -> None:
        """Recompute producers, uses and constants."""
        self.producers = {name: node for node in self.graph.node for name in node.output if name}
        self.output_names = {v.name for v in self.graph.output}
        self.uses = Counter(read_names(self.graph.node)) + Counter(v.name for v in self.graph.output)
        self.inputs = {v.name for v in self.graph.input}
        self.constants: dict[str, onnx.TensorProto] = dict(self.outer.constants) if self.outer is not None else {}
        self.constants |= {
            t.name: t
            for t in self.graph.initializer
            if self.initializers_are_inputs or t.name not in self.inputs
        }

    def inner(self) -> Iterator[ProtoGraph]:
        """The graphs in attributes of this graph's nodes."""
        for node in self.graph.node:
            for graph in subgraphs(node):
                yield ProtoGraph(self.model, self.folder, graph, self)

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """The value of a constant."""
        return read_tensor(self.constants[name], self.folder)

    def add_constant(self, name: str, value: np.ndarray[Any, Any]) -> None:
        """Add an initializer."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        self.graph.initializer.append(tensor)
        self.constants[name] = self.graph.initializer[-1]
        if self.initializers_are_inputs:
            info = onnx.helper.make_tensor_value_info(name, tensor.data_type, list(value.shape))
            self.graph.input.append(info)
            self.inputs.add(name)

    def unique(self, name: str) -> str:
        """`name`, or a variation that nothing in the model is called yet; it is taken from now on."""
        candidate, count = name, 0
        while candidate in self._taken or candidate in self.uses:
            count += 1
            candidate = f"{name}_{count}"
        self._taken.add(candidate)
        return candidate

    def remove_nodes(self, dead: Iterable[onnx.NodeProto]) -> None:
        """Remove nodes (by identity)."""
        held = list(dead)  # as long as these live, so do the identities
        gone = {id(node) for node in held}
        for position in reversed(range(len(self.graph.node))) if gone else ():
            if id(self.graph.node[position]) in gone:
                del self.graph.node[position]
        self.refresh()

    def replace_all(self, replacements: dict[str, str]) -> None:
        """Let every reader of a key read its value instead; chains are followed."""
        if not replacements:
            return
        final = {old: _follow(old, replacements) for old in replacements}
        redirect(self.graph.node, final)

    def clean(self) -> None:
        """Remove dead nodes, unused initializers (and their inputs) and stale value_info."""
        while True:
            self.refresh()
            dead = [n for n in self.graph.node if not any(self.uses[name] for name in n.output if name)]
            if not dead:
                break
            self.remove_nodes(dead)
        unused = {t.name for t in self.graph.initializer if not self.uses[t.name]}
        if not self.initializers_are_inputs:
            unused -= self.inputs  # without its default such an input would have to be given
        _keep(self.graph.initializer, lambda t: t.name not in unused)
        _keep(self.graph.sparse_initializer, lambda t: bool(self.uses[t.values.name]))
        if self.initializers_are_inputs:
            _keep(self.graph.input, lambda v: v.name not in unused)
        alive = {name for node in self.graph.node for name in node.output}
        _keep(self.graph.value_info, lambda v: v.name in alive)
        self.refresh()


def _all_names(graph: onnx.GraphProto) -> Iterator[str]:
    for values in (graph.input, graph.output, graph.initializer):
        yield from (v.name for v in values)
    for node in graph.node:
        yield from node.input
        yield from node.output
        for inner in subgraphs(node):
            yield from _all_names(inner)


def _keep(field: Any, wanted: Any) -> None:
    for position in reversed(range(len(field))):
        if not wanted(field[position]):
            del field[position]


def _follow(name: str, replacements: dict[str, str]) -> str:
    while name in replacements:
        name = replacements[name]
    return name
