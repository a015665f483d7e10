"""The IR as text: one node per line, ASCII, types on every value, parseable by `ir.parser`.

    dovetail.ir 1
    @weights() {
      %w = Constant() {name="conv1.weight"} : f32[64,3,7,7]
      return %w
    }
    @main(%x: f32[N,3,224,224]) {
      %y = Conv(%x, %w) {strides=(2, 2)} : f32[N,64,112,112]  # "/conv1/Conv"
      return %y
    }

Values are in scope in all later functions: the functions are the partition of one graph by binding time.
"""

from __future__ import annotations

import json
import re
from typing import Any

from dovetail.core.dims import Expr
from dovetail.core.dtypes import DType
from dovetail.ir.graph import Graph, Module, Node, Time, Value

VERSION = 1
_PLAIN = re.compile(r"[A-Za-z0-9_.\-/]+")
_FUNCTIONS = ((Time.WEIGHT, "@weights"), (Time.SHAPE, "@shapes"), (Time.RUN, "@main"))


def print_module(module: Module) -> str:
    """The whole module: version line, then @weights, @shapes and @main."""
    return f"dovetail.ir {VERSION}\n{print_graph(module.main)}"


def print_graph(graph: Graph) -> str:
    """The functions of a top-level graph."""
    text = ""
    for time, name in _FUNCTIONS:
        nodes = [n for n in graph.nodes if _time(n) == time]
        if not nodes and time != Time.RUN:
            continue
        params = ", ".join(f"{_name(v)}: {v.type}" for v in graph.inputs) if time == Time.RUN else ""
        text += f"{name}({params}) {{\n"
        text += "".join(print_node(n, "  ") for n in nodes)
        if time == Time.RUN:
            results = list(graph.outputs)
        else:
            results = [v for n in nodes for v in n.outputs if v.is_output or any(_time(u) > time for u in v.consumers)]
        text += f"  return {', '.join(map(_name, results))}".rstrip() + "\n}\n"
    return text


def _time(node: Node) -> Time:
    return node.outputs[0].time if node.outputs else node.graph.time_of(node)


def print_node(node: Node, indent: str) -> str:
    """One node as one line, its regions indented below it."""
    operands = ", ".join("_" if v is None else _name(v) for v in node.inputs)
    head = f"{', '.join(map(_name, node.outputs))} = " if node.outputs else ""
    text = f"{indent}{head}{node.op}({operands})"
    if node.attrs:
        text += " {" + ", ".join(f"{k}={print_attribute(v)}" for k, v in sorted(node.attrs.items())) + "}"
    if node.outputs:
        text += " : " + ", ".join(str(v.type) for v in node.outputs)
    if node.origin:
        text += "  # " + ", ".join(json.dumps(o) for o in node.origin)
    text += "\n"
    for region in node.regions:
        inner = indent + "  "
        params = ", ".join(f"{_name(v)}: {v.type}" for v in region.inputs)
        text += f"{inner}region {json.dumps(region.name)}({params}) {{\n"
        text += "".join(print_node(n, inner + "  ") for n in region.nodes)
        text += f"{inner}  return {', '.join(map(_name, region.outputs))}".rstrip() + f"\n{inner}}}\n"
    return text


def _name(value: Value) -> str:
    return "%" + (value.name if _PLAIN.fullmatch(value.name) else json.dumps(value.name))


def print_attribute(value: Any) -> str:
    """An attribute as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, DType):
        return value.name
    if isinstance(value, Expr):
        return f"dim({value})"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(print_attribute, value)) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, float):
        return repr(value)
    return str(int(value))
