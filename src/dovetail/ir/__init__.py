"""The intermediate representation: one graph type for every stage of the compiler."""

from dovetail.ir.graph import Graph, Guard, Module, Node, Time, Value
from dovetail.ir.layout import Layout, channels_last
from dovetail.ir.types import SequenceType, TensorType

__all__ = [
    "Graph",
    "Guard",
    "Layout",
    "Module",
    "Node",
    "SequenceType",
    "TensorType",
    "Time",
    "Value",
    "channels_last",
]
