"""Models that the tests of edits change, and what they ask of the results."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import dovetail

FLOAT = TensorProto.FLOAT


def info(name: str, shape: Any, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(
    nodes: Any, inputs: Any, outputs: Any, weights: Mapping[str, np.ndarray] | None = None, opset: int = 17, ir: int = 8, **domains: int
) -> dovetail.Model:
    tensors = [numpy_helper.from_array(np.asarray(v), n) for n, v in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in domains.items())]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=ir)
    onnx.checker.check_model(proto)
    return dovetail.Model.load(proto)


def chain() -> dovetail.Model:
    """x[N, 4] → MatMul w → a → Add b → c → Relu → r → Mul s → y; `c` also goes to Sigmoid → z."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="/matmul"),
        helper.make_node("Add", ["a", "b"], ["c"], name="/add"),
        helper.make_node("Relu", ["c"], ["r"], name="/relu"),
        helper.make_node("Mul", ["r", "s"], ["y"], name="/mul"),
        helper.make_node("Sigmoid", ["c"], ["z"], name="/sigmoid"),
    ]
    weights = {
        "w": rng.standard_normal((4, 4)).astype(np.float32),
        "b": rng.standard_normal(4).astype(np.float32),
        "s": np.float32(2.0),
    }
    return model_of(nodes, [info("x", ["N", 4])], [info("y", ["N", 4]), info("z", ["N", 4])], weights)


def with_if() -> dovetail.Model:
    """y = Relu(x) * k if flag else Relu(x), with `r` (a value) and `k` (a weight) captured by the bodies."""
    then = helper.make_graph([helper.make_node("Mul", ["r", "k"], ["m"], name="/then")], "then", [], [info("m", None)])
    other = helper.make_graph([helper.make_node("Identity", ["r"], ["o"], name="/else")], "else", [], [info("o", None)])
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="/relu"),
        helper.make_node("If", ["flag"], ["y"], name="/if", then_branch=then, else_branch=other),
    ]
    inputs = [info("x", ["N", 4]), info("flag", [], TensorProto.BOOL)]
    tensors = [numpy_helper.from_array(np.arange(4, dtype=np.float32), "k")]
    graph = helper.make_graph(nodes, "g", inputs, [info("y", ["N", 4])], tensors)
    return dovetail.Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def run(model: dovetail.Model, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    """By ONNX's own evaluator, which knows nothing of Dovetail."""
    from onnx.reference import ReferenceEvaluator

    names = [v.name for v in model.proto.graph.output]
    return dict(zip(names, ReferenceEvaluator(model.proto).run(None, feeds), strict=True))


def ops(model: dovetail.Model) -> list[str]:
    return [n.op_type for n in model.proto.graph.node]


def inputs(model: dovetail.Model) -> dict[str, str]:
    return {b.name: f"{b.dtype}{[str(d) for d in b.shape]}".replace("'", "") for b in model.inputs}


def outputs(model: dovetail.Model) -> dict[str, str]:
    return {b.name: f"{b.dtype}{[str(d) for d in b.shape]}".replace("'", "") for b in model.outputs}
