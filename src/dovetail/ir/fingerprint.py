"""A hash of what a graph computes: operators, attributes, types and wiring, without names and origins."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from dovetail.ir.graph import Graph, Value
from dovetail.ir.printer import print_attribute


def fingerprint(graph: Graph, sizes: Mapping[str, int]) -> str:
    """The hash of a graph without regions at given symbol sizes."""
    numbers: dict[Value, int] = {}

    def define(values: Sequence[Value]) -> str:
        for value in values:
            numbers[value] = len(numbers)
        return ",".join(str(v.type) for v in values)

    lines = [define(graph.inputs)]
    for node in graph.nodes:
        inputs = ",".join("_" if v is None else str(numbers[v]) for v in node.inputs)
        attrs = ",".join(f"{k}={print_attribute(v)}" for k, v in sorted(node.attrs.items()))
        lines.append(f"{node.op}({inputs}){{{attrs}}}:{define(node.outputs)}")
    lines.append(",".join(str(numbers[v]) for v in graph.outputs))
    lines.append(",".join(f"{k}={v}" for k, v in sorted(sizes.items())))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]
