"""Models whose reports the browser opens."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MARKUP = "</script><img src=x onerror=\"window.hacked=1\"><b>'&"


def small_model() -> onnx.ModelProto:
    """Two residual blocks of convolutions, a pool and a classifier, in scopes; batch of 2."""
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {"fc.weight": rng.standard_normal((16, 10)).astype(np.float32) / 4}
    nodes, value = [], "x"
    for block in ("stem", "body/block0", "body/block1"):
        channels = 3 if block == "stem" else 16
        name = f"{block}.weight"
        weights[name] = (rng.standard_normal((16, channels, 3, 3)) / (3 * channels**0.5)).astype(np.float32)
        nodes.append(helper.make_node("Conv", [value, name], [f"{block}/c"], name=f"/{block}/conv/Conv", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"{block}/c"], [f"{block}/r"], name=f"/{block}/relu/Relu"))
        if block != "stem":
            nodes.append(helper.make_node("Add", [f"{block}/r", value], [f"{block}/a"], name=f"/{block}/Add"))
        value = nodes[-1].output[0]
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pooled"], name="/pool/GlobalAveragePool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="/Flatten"),
        helper.make_node("MatMul", ["flat", "fc.weight"], ["y"], name="/fc/MatMul"),
    ]
    return _model("small", nodes, {"x": [2, 3, 24, 24]}, {"y": [2, 10]}, weights)


def deep_model(count: int) -> onnx.ModelProto:
    """A chain of `count` small products and sums with residuals, nearly each of which is a kernel."""
    rng = np.random.default_rng(0)
    weights = {f"w{k}": (rng.standard_normal((8, 8)) / 4).astype(np.float32) for k in range(8)}
    nodes, value = [], "x"
    for i in range(count // 2):
        scope = f"/stage{i // 250}/block{i // 25}"
        nodes.append(helper.make_node("MatMul", [value, f"w{i % 8}"], [f"m{i}"], name=f"{scope}/matmul{i}"))
        nodes.append(helper.make_node("Add", [f"m{i}", f"m{max(0, i - 3)}"], [f"a{i}"], name=f"{scope}/add{i}"))
        value = f"a{i}"
    return _model("deep", nodes, {"x": [4, 8]}, {value: [4, 8]}, weights)


def hostile_model() -> onnx.ModelProto:
    """A product and a Relu all of whose names are markup that would run a script."""
    weight = (np.eye(8) * 2).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", [f"x{MARKUP}", f"w{MARKUP}"], [f"m{MARKUP}"], name=f"/a{MARKUP}/MatMul"),
        helper.make_node("Softmax", [f"m{MARKUP}"], [f"y{MARKUP}"], name=f"/b{MARKUP}/Softmax"),
    ]
    return _model(f"g{MARKUP}", nodes, {f"x{MARKUP}": [4, 8]}, {f"y{MARKUP}": [4, 8]}, {f"w{MARKUP}": weight})


def _model(
    name: str, nodes: list[onnx.NodeProto], inputs: dict[str, list[int]], outputs: dict[str, list[int]], weights: dict[str, np.ndarray]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, name,
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
