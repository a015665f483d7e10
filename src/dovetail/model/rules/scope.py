"""The graphs of a model as the matcher sees them: nodes by number, who makes and who reads a name, and constants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dovetail.frontend.protos import domain_of
from dovetail.frontend.reader import read_tensor
from dovetail.model.proto_graph import attribute, constant_value, read_names, subgraphs

Array = np.ndarray[Any, Any]


class Scope:
    """One graph, the main one or a body of an If, Loop or Scan; names of the graphs around it are visible."""

    def __init__(
        self, graph: onnx.GraphProto, outer: Scope | None, path: str, tensors: Mapping[str, onnx.TensorProto], folder: Path | None
    ) -> None:
        self.graph, self.outer, self.path, self.tensors, self.folder = graph, outer, path, tensors, folder
        self.nodes: list[onnx.NodeProto] = list(graph.node)
        self.outputs = {v.name for v in graph.output}
        self.inputs = {v.name for v in graph.input}
        self.producers: dict[str, int] = {}
        self.readers: dict[str, list[int]] = {}
        self.by_type: dict[str, list[int]] = {}
        for number, node in enumerate(self.nodes):
            self.by_type.setdefault(node.op_type, []).append(number)
            for name in node.output:
                if name:
                    self.producers[name] = number
            for name in set(read_names([node])):
                self.readers.setdefault(name, []).append(number)

    def where(self, number: int) -> str:
        """A node as messages name it."""
        node = self.nodes[number]
        return f"{self.path}{node_name(node)} ({title(node)})"

    def defines(self, name: str) -> bool:
        """Whether this graph itself has a value of that name."""
        return name in self.producers or name in self.inputs or name in self.tensors

    def constant(self, name: str) -> tuple[str, Array] | None:
        """(name of the weight, value) of a constant: an initializer that no caller can override, or a Constant node.

        Seen through Identity.
        """
        if name in self.producers:
            node = self.nodes[self.producers[name]]
            if domain_of(node.domain):
                return None
            if node.op_type == "Identity":
                return self.constant(node.input[0])
            value = constant_value(node, self.folder)
            return None if value is None else (name, value)
        if name in self.tensors:
            return name, read_tensor(self.tensors[name], self.folder)
        if name in self.inputs or self.outer is None:
            return None
        return self.outer.constant(name)

    def is_constant(self, name: str) -> bool:
        """Whether `constant` gives something."""
        if name in self.producers:
            return self.constant(name) is not None
        if name in self.tensors or name in self.inputs or self.outer is None:
            return name in self.tensors
        return self.outer.is_constant(name)

    def tensor_type(self, name: str) -> tuple[int, tuple[int, ...]] | None:
        """(ONNX element type, shape) of an initializer of this graph or one around it."""
        if name in self.tensors:
            return self.tensors[name].data_type, tuple(self.tensors[name].dims)
        if self.defines(name) or self.outer is None:
            return None
        return self.outer.tensor_type(name)


def title(node: onnx.NodeProto) -> str:
    """A node's operator with its domain."""
    domain = domain_of(node.domain)
    return f"{domain}::{node.op_type}" if domain else node.op_type


def node_name(node: onnx.NodeProto) -> str:
    """A node's name, or that of its first output."""
    return str(node.name or next((o for o in node.output if o), node.op_type))


def scopes(model: onnx.ModelProto, initializers: Iterable[onnx.TensorProto], folder: Path | None) -> list[Scope]:
    """The main graph of a model and all graphs inside of it, outermost first.

    Args:
        initializers: of the main graph; they may be another proto's.
    """
    overridable = {v.name for v in model.graph.input} if model.ir_version >= 4 else set[str]()
    main = Scope(model.graph, None, "", {t.name: t for t in initializers if t.name not in overridable}, folder)
    found = [main]
    for scope in found:
        for node in scope.nodes:
            for label, graph in labelled_subgraphs(node):
                path = f"{scope.path}{node_name(node)}/{label}/"
                found.append(Scope(graph, scope, path, {t.name: t for t in graph.initializer}, folder))
    return found


def labelled_subgraphs(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs in a node's attributes, with the attributes' names."""
    for proto in node.attribute:
        if proto.type == onnx.AttributeProto.GRAPH:
            yield proto.name, proto.g
        elif proto.type == onnx.AttributeProto.GRAPHS:
            yield from ((f"{proto.name}{i}", g) for i, g in enumerate(proto.graphs))


def operator_types(graph: onnx.GraphProto) -> set[str]:
    """The types of all nodes of a graph and of the graphs inside of it."""
    found = set()
    pending = [graph]
    while pending:
        for node in pending.pop().node:
            found.add(node.op_type)
            if node.attribute:
                pending += subgraphs(node)
    return found


def attribute_or_default(node: onnx.NodeProto, name: str, opset: int) -> Any:
    """An attribute's value, ONNX's default where the node has none, or None."""
    found = attribute(node, name)
    if found is None:
        try:
            default = onnx.defs.get_schema(node.op_type, opset, domain_of(node.domain)).attributes[name].default_value
        except (onnx.defs.SchemaError, KeyError):
            return None
        found = onnx.helper.get_attribute_value(default) if default.type != onnx.AttributeProto.UNDEFINED else None
    if isinstance(found, bytes):
        return found.decode("utf-8", "replace")
    if isinstance(found, onnx.TensorProto):
        return read_tensor(found, None)
    if isinstance(found, list | tuple) or (hasattr(found, "__iter__") and not isinstance(found, str | np.ndarray)):
        return [x.decode("utf-8", "replace") if isinstance(x, bytes) else x for x in found]
    return found
