"""What is known of a model's values: element types, sizes with symbols, contents of shape tensors.

Two sources: the import into the IR, node by node so that an unknown operator spoils only what depends on it; and ONNX's own
inference for what the import says nothing about. Types that the model declares for its intermediate values count only for results of
operators that neither knows: after a change of an input's shape they are often stale.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dovetail.core.dims import Dim, sym
from dovetail.core.dtypes import DType
from dovetail.core.errors import Error
from dovetail.core.log import logger
from dovetail.frontend.importer import main_context
from dovetail.frontend.protos import domain_of
from dovetail.frontend.reader import element_type
from dovetail.frontend.session import FAILED
from dovetail.ir.graph import Value
from dovetail.ir.types import TensorType
from dovetail.model.proto_graph import subgraphs
from dovetail.model.weights import with_weights_as_inputs

_log = logger("simplify")


@dataclass
class Facts:
    """Types and contents by name, for one graph; `graphs` has those of subgraphs by (first result of the node, position)."""

    types: dict[str, tuple[DType, tuple[Dim, ...] | None]] = field(default_factory=dict)
    contents: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    graphs: dict[tuple[str, int], Facts] = field(default_factory=dict)
    outer: Facts | None = None

    def shape(self, name: str) -> tuple[Dim, ...] | None:
        """Sizes; None where the rank is unknown. Sizes that are not known are symbols of their own."""
        found = self._find(name)
        return None if found is None else found[1]

    def dtype(self, name: str) -> DType | None:
        """Element type; None where it is unknown."""
        found = self._find(name)
        return None if found is None else found[0]

    def dtype_of(self, tensor: onnx.TensorProto) -> DType:
        """The element type of a constant."""
        return element_type(tensor.data_type, f"initializer {tensor.name!r}")

    def inside(self, node: onnx.NodeProto, position: int) -> Facts:
        """Those of a subgraph."""
        found = self.graphs.get((next(iter(node.output), ""), position))
        return found if found is not None else Facts(outer=self)

    def rename(self, old: str, new: str) -> None:
        """A value has another name now."""
        if old in self.types:
            self.types[new] = self.types[old]
        if old in self.contents:
            self.contents[new] = self.contents[old]

    def _find(self, name: str) -> tuple[DType, tuple[Dim, ...] | None] | None:
        found = self.types.get(name)
        return self.outer._find(name) if found is None and self.outer is not None else found


def facts_of(model: onnx.ModelProto, folder: Path | None) -> Facts:
    """All that can be found out about a model's values without running it."""
    facts = _inferred(model)
    _add_imported(facts, model, folder)
    return facts


# ---------------------------------------------------------------------- by ONNX
def infer(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A small copy of the model, without large weights, with inferred types; None if ONNX cannot infer them."""
    small = with_weights_as_inputs(model)
    known = {o for n in model.graph.node for o in n.output if domain_of(n.domain) == ""}
    for position in reversed(range(len(small.graph.value_info))):
        if small.graph.value_info[position].name in known:
            del small.graph.value_info[position]
    try:
        return onnx.shape_inference.infer_shapes(small, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        _log.debug("no types by ONNX: %s", error)
        return None


def _inferred(model: onnx.ModelProto) -> Facts:
    found = infer(model)
    return Facts() if found is None else _of_graph(found.graph, None, "")


def _of_graph(graph: onnx.GraphProto, outer: Facts | None, prefix: str) -> Facts:
    facts = Facts(outer=outer)
    for value in (*graph.input, *graph.value_info):
        kind = _type(value, prefix)
        if kind is not None:
            facts.types[value.name] = kind
    for node in graph.node:
        for position, inner in enumerate(subgraphs(node)):
            key = next(iter(node.output), "")
            facts.graphs[key, position] = _of_graph(inner, facts, f"{prefix}{key}.{position}.")
    return facts


def _type(value: onnx.ValueInfoProto, prefix: str) -> tuple[DType, tuple[Dim, ...] | None] | None:
    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or not tensor.elem_type:
        return None
    kind = element_type(tensor.elem_type, f"value {value.name!r}")
    if not tensor.HasField("shape"):
        return kind, None
    # Names that ONNX's inference makes up may repeat: only sizes are taken from it, any other extent is a symbol of its own.
    return kind, tuple(
        int(d.dim_value) if d.HasField("dim_value") else sym(f"{prefix}{value.name}.{axis}") for axis, d in enumerate(tensor.shape.dim)
    )


# ---------------------------------------------------------------------- by the import
def _add_imported(facts: Facts, model: onnx.ModelProto, folder: Path | None) -> None:
    """Prefer what the import knows: symbols that hold across values, and contents."""
    small = with_weights_as_inputs(model)
    listed = {v.name for v in model.graph.input}
    if model.ir_version >= 4:
        # What a caller may override is not known.
        for position in reversed(range(len(small.graph.initializer))):
            if small.graph.initializer[position].name in listed:
                del small.graph.initializer[position]
    try:
        context = main_context(small, folder)
        context.declare_inputs({})
    except Error as error:
        _log.debug("no facts from the import: %s", error)
        return
    for node in small.graph.node:
        try:
            context.import_node(node)
        except Error as error:
            _log.debug("no facts from the import of %s: %s", node.op_type, error)
            for name in node.output:
                context.scope.setdefault(name, FAILED)
    for name, value in context.scope.items():
        if isinstance(value, Value) and isinstance(value.type, TensorType):
            facts.types[name] = (value.type.dtype, value.type.shape)
            if value.contents is not None:
                facts.contents[name] = value.contents
