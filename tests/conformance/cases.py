"""The cases of the ONNX backend suite that ships in the onnx wheel, and the choice called Tier A.

Tier A: plain and function-expanded node tests with deterministic results whose inputs and outputs are tensors of
common dtypes and whose operators are all listed in `tier_a_ops.txt`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

TIER_A = frozenset(Path(__file__).with_name("tier_a_ops.txt").read_text().split())

# Expected values drawn from NumPy's own random stream: nobody else can reproduce them.
_RANDOM = re.compile(r"test_(bernoulli|training_dropout(?!.*zero_ratio))")
_COMMON = {
    getattr(TensorProto, name)
    for name in ("FLOAT", "FLOAT16", "BFLOAT16", "INT8", "UINT8", "INT32", "INT64", "BOOL")
}


@dataclass(frozen=True)
class Case:
    """One test: a model, data sets of (inputs, expected outputs), tolerances."""

    name: str
    model: onnx.ModelProto
    data: list[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float

    @property
    def tier_a(self) -> bool:
        """Whether the case belongs to Tier A."""
        graph = self.model.graph
        common = all(
            v.type.WhichOneof("value") == "tensor_type" and v.type.tensor_type.elem_type in _COMMON
            for v in (*graph.input, *graph.output)
        )
        return common and not _RANDOM.match(self.name) and _operators(self.model) <= TIER_A


def _operators(model: onnx.ModelProto) -> set[str]:
    nodes = [*_nodes(model.graph.node)]
    for function in model.functions:
        nodes += _nodes(function.node)
    return {n.op_type if n.domain in ("", "ai.onnx") else f"{n.domain}:{n.op_type}" for n in nodes}


def _nodes(nodes: Any) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(graph.node)


def _value(value: Any) -> Any:
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def node_cases() -> list[Case]:
    """All node cases (plain and expanded), sorted by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        tests = {t.name: t for t in load_model_tests(kind="node")}
    return [
        Case(
            name,
            t.model,
            [([_value(x) for x in xs], [_value(y) for y in ys]) for xs, ys in t.data_sets],
            t.rtol,
            t.atol,
        )
        for name, t in sorted(tests.items())
    ]
