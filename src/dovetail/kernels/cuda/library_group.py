"""What library tactics ask of a group: an epilogue that is a sum and at most one activation, and nothing else.

A library computes a fixed chain, so a group is either exactly that chain or not for it; the reason says at which node it ends.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from dovetail.codegen.tactic import Group
from dovetail.ir.graph import Node, Value
from dovetail.kernels.fused import Side, attributes, sides


@dataclass(frozen=True)
class Chain:
    """An epilogue: y = activation(anchor + added operands), each operand added once.

    Attributes:
        added: operands of the additions, in order.
        activation: "" or the name of the activation.
    """

    added: tuple[Side, ...]
    activation: str


def activation_name(node: Node) -> str | None:
    """The name under which libraries know an activation; None for another operator."""
    if node.op == "Gelu":
        return "gelu" if attributes(node)["approximate"] == "tanh" else "gelu_erf"
    if node.op == "Swish":
        return "swish" if attributes(node)["alpha"] == 1.0 else None
    if node.op == "Clip":
        bounds = attributes(node)
        return "relu6" if (bounds["min"], bounds["max"]) == (0, 6) else None
    return {"Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh"}.get(node.op)


def chain(group: Group, activations: Collection[str]) -> Chain | str:
    """The epilogue of a group, or why it is no chain of additions and one of the activations."""
    anchor = group.anchor
    assert anchor is not None
    if len(group.outputs) != 1 or len(group.body.outputs) != 1:
        return f"the group has {len(group.outputs)} results"
    known = {side.value: side for side in sides(group)}
    value, added, activation, seen = anchor.output, list[Side](), "", 1
    while value is not group.body.outputs[0]:
        readers = list(value.consumers)
        if len(readers) != 1:
            return f"{value.name} is read by {len(readers)} nodes of the epilogue"
        node = readers[0]
        seen += 1
        name = activation_name(node)
        if node.op == "Cast":
            # Arithmetic is in fp32: wider types change nothing, a narrower one is what the store rounds to.
            source, wanted = value.tensor.dtype, node.output.tensor.dtype
            if not (source.is_float and wanted.is_float) or (wanted.bits < source.bits and node.output is not group.body.outputs[0]):
                return f"the epilogue converts {source.name} to {wanted.name} ({node.where})"
        elif node.op == "Add" and not activation:
            other = _other(node, value)
            if other is None or other not in known:
                return f"{node.where} adds what is computed inside the group"
            if known[other] in added:
                return f"{node.where} adds an operand a second time"
            added.append(known[other])
        elif name in activations and not activation:
            activation = str(name)
        else:
            return f"the epilogue has {node.op} ({node.where}), the library no such step there"
        value = node.output
    if seen != len(list(group.body.nodes)):
        return "the group computes more than a chain behind its anchor"
    return Chain(tuple(added), activation)


def _other(node: Node, value: Value) -> Value | None:
    first, second = node.operands
    if first is second:
        return None
    return second if first is value else first
