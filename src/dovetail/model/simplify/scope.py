"""One graph of a model being simplified: the proto, what is known of its values, and small helpers of all rewrites."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dovetail.core.dims import Dim
from dovetail.core.dtypes import DType
from dovetail.frontend.protos import domain_of
from dovetail.model.proto_graph import ProtoGraph, attribute, subgraphs
from dovetail.model.simplify.facts import Facts
from dovetail.model.weights import is_external, stored_bytes

Array = np.ndarray[Any, Any]

FOLD_LIMIT_BYTES = 1 << 20
"""A folded constant may be this large, or as large as what it was computed from."""

MAPPED_LIMIT_BYTES = 64 << 20
"""Weights in files are read into memory to fold them up to this size, each and all of them together."""


class Readings:
    """What has been read of weights: how many bytes in files may still be read into memory, and digests by name."""

    def __init__(self, left: int = MAPPED_LIMIT_BYTES) -> None:
        self.left = left
        self._paid: set[str] = set()
        self.digests: dict[tuple[str, int | None], str] = {}

    def take(self, tensors: Sequence[onnx.TensorProto]) -> bool:
        """Whether these may be read; if so, they count."""
        cost = sum(stored_bytes(t) for t in tensors if is_external(t) and t.name not in self._paid)
        if cost > self.left:
            return False
        self.left -= cost
        self._paid |= {t.name for t in tensors if is_external(t)}
        return True


class Scope(ProtoGraph):
    """A graph with the facts of its values; rewrites keep what every name means, so facts stay true."""

    def __init__(
        self,
        model: onnx.ModelProto,
        folder: Path | None,
        facts: Facts,
        readings: Readings,
        graph: onnx.GraphProto | None = None,
        outer: Scope | None = None,
    ) -> None:
        super().__init__(model, folder, graph, outer)
        self.facts, self.readings = facts, readings

    def scopes(self) -> list[Scope]:
        """This graph and all in it, the innermost first."""
        found: list[Scope] = []
        for node in self.graph.node:
            for position, graph in enumerate(subgraphs(node)):
                facts = self.facts.inside(node, position)
                found += Scope(self.model, self.folder, facts, self.readings, graph, self).scopes()
        return [*found, self]

    # ------------------------------------------------------------------ what is known
    def is_op(self, node: onnx.NodeProto | None, *ops: str) -> bool:
        """Whether a node is one of ONNX's own operators of these names."""
        return node is not None and node.op_type in ops and domain_of(node.domain) == ""

    def made_by(self, name: str, *ops: str) -> onnx.NodeProto | None:
        """The node of this graph that computes a value, if it is one of these operators."""
        node = self.producers.get(name)
        return node if self.is_op(node, *ops) else None

    def only_use(self, name: str) -> bool:
        """Whether one node reads a value, and nothing else."""
        return self.uses[name] == 1 and name not in self.output_names

    def shape(self, name: str) -> tuple[Dim, ...] | None:
        """The sizes of a value, as far as they are known; None where its rank is not."""
        if name in self.constants:
            return tuple(map(int, self.constants[name].dims))
        return self.facts.shape(name)

    def rank(self, name: str) -> int | None:
        """The rank of a value, if it is known."""
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def dtype(self, name: str) -> DType | None:
        """The element type of a value, if it is known."""
        return self.facts.dtype_of(self.constants[name]) if name in self.constants else self.facts.dtype(name)

    def constant(self, name: str) -> Array | None:
        """The value of a constant that is in memory or may be read into it; else None."""
        tensor = self.constants.get(name)
        if tensor is None or not self.readings.take([tensor]):
            return None
        return self.array(name)

    def ints(self, name: str) -> list[int] | None:
        """The elements of a constant list of integers."""
        tensor = self.constants.get(name) if name else None
        if tensor is None or len(tensor.dims) > 1 or stored_bytes(tensor) > FOLD_LIMIT_BYTES:
            return None
        array = self.array(name)
        return [int(x) for x in array.reshape(-1)] if array.dtype.kind in "iu" else None

    def axes(self, node: onnx.NodeProto, position: int, name: str = "axes") -> list[int] | None:
        """A list that is an attribute in old opsets and an input in new ones; None if it is absent or not known."""
        if len(node.input) > position and node.input[position]:
            return self.ints(node.input[position])
        found = attribute(node, name)
        return None if found is None else [int(x) for x in found]

    # ------------------------------------------------------------------ changes
    def add_ints(self, name: str, values: Sequence[int]) -> str:
        """Add a constant list of int64; its name."""
        unique = self.unique(name)
        self.add_constant(unique, np.array(list(values), np.int64))
        return unique

    def take_over(self, source: str, result: str) -> bool:
        """Let the node that computes `source` compute the output `result` under that name; the node that did is to be removed.

        False where `source` is an input, a constant, an outer value or an output itself.
        """
        producer = self.producers.get(source)
        if producer is None or source in self.output_names:
            return False
        for position, name in enumerate(producer.output):
            if name == source:
                producer.output[position] = result
        self.replace_all({source: result})
        self.facts.rename(source, result)
        return True


def describe(node: onnx.NodeProto) -> str:
    """A node as a user finds it: its name, or its first result, and its operator."""
    name = node.name or next((o for o in node.output if o), "")
    return f"{name} ({node.op_type})" if name else node.op_type


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    """Set or replace an attribute."""
    for position, proto in enumerate(node.attribute):
        if proto.name == name:
            del node.attribute[position]
            break
    node.attribute.append(onnx.helper.make_attribute(name, value))
