"""A graph's structure without its names, so that two ways to make the same graph can be compared."""

from __future__ import annotations

from typing import Any

import numpy as np

from dovetail.ir.graph import Graph, Module, Value


def structure(module: Module) -> Any:
    """What a module computes: inputs, nodes in order with types and attributes, outputs; constants by their contents."""
    return _graph(module, module.main)


def _graph(module: Module, graph: Graph) -> Any:
    places: dict[Value, Any] = {v: ("input", i) for i, v in enumerate(graph.inputs)}
    nodes = []
    for node in graph.nodes:
        if node.op == "Constant":
            array = np.asarray(module.weights[node.attrs["name"]])
            contents = array.tobytes() if array.dtype != object else tuple(array.reshape(-1))
            places[node.output] = ("constant", str(node.output.type), contents)
            continue
        for i, value in enumerate(node.outputs):
            places[value] = ("node", len(nodes), i)
        nodes.append((
            node.op, tuple(None if v is None else places[v] for v in node.inputs),
            tuple(sorted((k, repr(v)) for k, v in node.attrs.items())),
            tuple(str(v.type) for v in node.outputs), tuple(_graph(module, r) for r in node.regions),
        ))  # fmt: skip
    return tuple(str(v.type) for v in graph.inputs), tuple(nodes), tuple(places[v] for v in graph.outputs)
