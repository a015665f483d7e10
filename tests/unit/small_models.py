"""Small ONNX models that several tests build."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    outputs: dict[str, list[int | str]],
    weights: dict[str, np.ndarray],
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A checked model of fp32 inputs and outputs."""
    graph = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info(n, kind, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, kind, s) for n, s in outputs.items()],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made)
    return made


def classifier(seed: int = 0) -> onnx.ModelProto:
    """x[N,3,12,12] → Conv, Relu, mean, MatMul, Softmax → y[N,5]."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], name="gap"),
        helper.make_node("Flatten", ["g"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "w2"], ["m"], name="head"),
        helper.make_node("Softmax", ["m"], ["y"], name="softmax"),
    ]
    weights = {
        "w": rng.standard_normal((16, 3, 3, 3), np.float32),
        "b": rng.standard_normal(16, np.float32),
        "w2": rng.standard_normal((16, 5), np.float32),
    }
    return model(nodes, {"x": ["N", 3, 12, 12]}, {"y": ["N", 5]}, weights)


def relu() -> onnx.ModelProto:
    """x[N,8] → Relu → y[N,8]."""
    return model([helper.make_node("Relu", ["x"], ["y"], name="act")], {"x": ["N", 8]}, {"y": ["N", 8]}, {})


def two_outputs() -> onnx.ModelProto:
    """a[N,4], b[N,4] → sum, difference."""
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"], name="add"), helper.make_node("Sub", ["a", "b"], ["diff"], name="sub")]
    return model(nodes, {"a": ["N", 4], "b": ["N", 4]}, {"sum": ["N", 4], "diff": ["N", 4]}, {})
