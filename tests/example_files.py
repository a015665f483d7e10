"""The files that the examples of the pages name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_example(folder: Path) -> None:
    """`model.onnx`, a convolution with Relu and a pool over images of any batch, and `x.npz`, two of them."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((8, 3, 7, 7)).astype(np.float32) * 0.1, "b": rng.standard_normal(8).astype(np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="/conv", strides=[4, 4]),
        helper.make_node("Relu", ["c"], ["r"], name="/relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["y"], name="/pool"),
    ]
    graph = helper.make_graph(
        nodes, "example",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8, 1, 1])],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx")
    np.savez(folder / "x.npz", x=rng.standard_normal((2, 3, 224, 224)).astype(np.float32))
