"""A random model with its inputs and what every value of it is: what the generator makes and the reducer cuts down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dovetail.core.dims import Dim, Expr
from dovetail.frontend.protos import free_names

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Value:
    """One tensor: its type, and per sample what it is and what it is with rounding errors (`twins`)."""

    name: str
    shape: tuple[Dim, ...]
    arrays: tuple[Array, ...]
    twins: tuple[Array, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.arrays[0].dtype

    @property
    def rank(self) -> int:
        return len(self.shape)

    def tolerance(self, sample: int) -> float:
        """How far off an element may be: 0 for integers and booleans, else what rounding on the way did, many times over."""
        want, twin = self.arrays[sample], self.twins[sample]
        if want.dtype.kind in "iub" or not want.size:
            return 0.0
        moved = np.abs(want.astype(np.float64) - twin.astype(np.float64)).max()
        eps = max(1e-5, 8 * float(np.finfo(want.dtype).eps))
        return float(30 * moved + eps * np.abs(want.astype(np.float64)).max() + 1e-6)


@dataclass(frozen=True)
class Case:
    """A model, in parts that can be taken away, and samples of its inputs (of several sizes where it has symbols)."""

    seed: int
    opset: int
    values: Mapping[str, Value]
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    nodes: tuple[onnx.NodeProto, ...]
    outputs: tuple[str, ...]
    samples: int
    listed: frozenset[str] = field(default_factory=frozenset)
    """Initializers that are also declared as inputs."""

    def model(self) -> onnx.ModelProto:
        """The ONNX model."""
        return make_model(
            self.nodes, [self.values[n] for n in (*self.inputs, *sorted(self.listed & set(self.weights)))],
            [self.values[n] for n in self.weights], [self.values[n] for n in self.outputs], self.opset,
        )  # fmt: skip

    def feeds(self, sample: int) -> dict[str, Array]:
        """The inputs of one sample by name."""
        return {n: self.values[n].arrays[sample] for n in self.inputs}

    def pruned(self) -> Case:
        """The case without nodes, inputs and weights that no output needs."""
        needed, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                kept.append(node)
                needed |= set(reads(node))
        inputs, weights = (tuple(n for n in names if n in needed) for names in (self.inputs, self.weights))
        return replace(self, nodes=tuple(reversed(kept)), inputs=inputs, weights=weights)

    def without(self, index: int, *, fixed: bool) -> Case:
        """The case with the results of one node as inputs, or (`fixed`) as initializers.

        Raises:
            ValueError: they cannot be: extents that differ from sample to sample, or are no symbols of their own.
        """
        made = [n for n in self.nodes[index].output if n]
        for name in made:
            value = self.values[name]
            if fixed and self.samples > 1 and value.arrays[0].tobytes() != value.arrays[-1].tobytes():
                raise ValueError(name)
            if not fixed and any(isinstance(d, Expr) and not str(d).isidentifier() for d in value.shape):
                raise ValueError(name)
        nodes = self.nodes[:index] + self.nodes[index + 1 :]
        if fixed:
            return replace(self, nodes=nodes, weights=(*self.weights, *made)).pruned()
        return replace(self, nodes=nodes, inputs=(*self.inputs, *made)).pruned()


def reads(node: onnx.NodeProto) -> list[str]:
    """Names that a node reads, those of its subgraphs included."""
    names = dict.fromkeys(n for n in node.input if n)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            free_names(attribute.g, names)
    return list(names)


def make_model(
    nodes: Iterable[onnx.NodeProto], inputs: Iterable[Value], weights: Iterable[Value], outputs: Iterable[Value | str], opset: int
) -> onnx.ModelProto:
    """A model of some nodes; outputs given by name have no declared type."""
    graph = helper.make_graph(
        list(nodes), "fuzz", [_info(v) for v in inputs],
        [onnx.ValueInfoProto(name=v) if isinstance(v, str) else _info(v) for v in outputs],
        [numpy_helper.from_array(np.asarray(v.arrays[0], order="C"), v.name) for v in weights],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def _info(value: Value) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(value.name, kind, [d if isinstance(d, int) else label(d) for d in value.shape])


def label(dim: Dim) -> str:
    """A symbolic extent as a name; one that is computed gets a name of its own."""
    text = str(dim)
    return text if text.isidentifier() else "s_" + "".join(c if c.isalnum() else f"_{ord(c):x}_" for c in text)
