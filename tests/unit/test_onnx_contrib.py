"""com.microsoft ops against ONNX Runtime, which defines them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from dovetail.frontend.importer import import_onnx
from dovetail.ops.evaluate import evaluate

_CASES: list[tuple[str, list[tuple[int, ...]], dict[str, Any]]] = [
    ("Gelu", [(3, 5)], {}),
    ("BiasGelu", [(3, 5), (5,)], {}),
    ("FastGelu", [(3, 5)], {}),
    ("FastGelu", [(3, 5), (5,)], {}),
    ("QuickGelu", [(3, 5)], {"alpha": 1.5}),
    ("FusedMatMul", [(2, 3, 4), (2, 4, 5)], {"alpha": 0.5}),
    ("FusedMatMul", [(2, 4, 3), (2, 5, 4)], {"transA": 1, "transB": 1}),
    ("FusedMatMul", [(3, 2, 4), (3, 2, 4)], {"transBatchA": 1, "transBatchB": 1, "transB": 1}),
]


@pytest.mark.parametrize(("op", "shapes", "attrs"), _CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(_CASES)])
def test_agrees_with_onnxruntime(op: str, shapes: list[tuple[int, ...]], attrs: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    feeds = {f"x{i}": rng.normal(size=s).astype(np.float32) for i, s in enumerate(shapes)}
    node = helper.make_node(op, list(feeds), ["y"], domain="com.microsoft", **attrs)
    inputs = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, a.shape) for n, a in feeds.items()]
    graph = helper.make_graph([node], "g", inputs, [onnx.ValueInfoProto(name="y")])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    want = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
    got = evaluate(import_onnx(model), feeds)["y"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_sixteen_bit_quantisation() -> None:
    x = np.linspace(-3, 3, 50, dtype=np.float32)
    scale, zero = np.array(1e-3, np.float32), np.array(100, np.int16)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], domain="com.microsoft"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], domain="com.microsoft"),
    ]
    weights = [onnx.numpy_helper.from_array(scale, "s"), onnx.numpy_helper.from_array(zero, "z")]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, ["N"])],
        [onnx.ValueInfoProto(name="q"), onnx.ValueInfoProto(name="y")], weights,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    result = evaluate(import_onnx(helper.make_model(graph, opset_imports=opsets, ir_version=8)), {"x": x})
    assert result["q"].dtype == np.int16
    np.testing.assert_allclose(result["y"], x, atol=5.1e-4)
