"""Refit of models that ONNX Runtime's quantiser made: QuantizeLinear and DequantizeLinear compute through dequantised fp32."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import dovetail
from dovetail.core.env import override

F = np.float32
Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with override(home=tmp_path_factory.mktemp("home")):
        yield


def conv_net(seed: int) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    arrays = {
        "c1.weight": rng.standard_normal((8, 3, 3, 3)), "c1.bias": rng.standard_normal(8) * 0.1,
        "c2.weight": rng.standard_normal((5, 8, 1, 1)) * 0.4, "c2.bias": rng.standard_normal(5) * 0.1,
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "c1.weight", "c1.bias"], ["a"], name="c1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"], name="act"),
        helper.make_node("Conv", ["r", "c2.weight", "c2.bias"], ["b"], name="c2"),
        helper.make_node("GlobalAveragePool", ["b"], ["y"], name="pool"),
    ]
    return _model(nodes, arrays, ["N", 3, 9, 11])


def matmul_net(seed: int) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    arrays = {
        "l1.weight": rng.standard_normal((17, 24)) * 0.3, "l1.bias": rng.standard_normal(24) * 0.1,
        "l2.weight": rng.standard_normal((24, 7)) * 0.3, "l2.bias": rng.standard_normal(7) * 0.1,
    }  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "l1.weight"], ["a"], name="l1"),
        helper.make_node("Add", ["a", "l1.bias"], ["c"], name="b1"),
        helper.make_node("Relu", ["c"], ["r"], name="act"),
        helper.make_node("MatMul", ["r", "l2.weight"], ["b"], name="l2"),
        helper.make_node("Add", ["b", "l2.bias"], ["y"], name="b2"),
    ]
    return _model(nodes, arrays, ["N", 17])


def _model(nodes: list[onnx.NodeProto], arrays: Arrays, shape: list[int | str]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v.astype(F), n) for n, v in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def inputs(model: onnx.ModelProto, n: int, seed: int) -> np.ndarray[Any, Any]:
    dims = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(seed).standard_normal((n, *dims[1:])).astype(F)


class Samples(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
    def __init__(self, model: onnx.ModelProto) -> None:
        self.left = [{"x": inputs(model, 4, i)} for i in range(3)]

    def get_next(self) -> dict[str, Any] | None:
        return self.left.pop() if self.left else None


def quantised(model: onnx.ModelProto, folder: Path, per_channel: bool) -> onnx.ModelProto:
    source, target = folder / "float.onnx", folder / "qdq.onnx"
    onnx.save(model, source)
    logging.disable(logging.WARNING)  # it recommends a step of preparation that these nets do not need
    try:
        quantize_static(
            source, target, Samples(model), quant_format=QuantFormat.QDQ, per_channel=per_channel,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(target)


def reference(model: onnx.ModelProto, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """ONNX Runtime without fusions, so that it computes through dequantised fp32 as well."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    (found,) = ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})
    return np.asarray(found)


@pytest.mark.parametrize("net, per_channel", [(conv_net, False), (conv_net, True), (matmul_net, False)], ids=["conv", "channels", "matmul"])
def test_quantised_weights_are_refitted(net: Any, per_channel: bool, tmp_path: Path) -> None:
    old, new = (quantised(net(seed), tmp_path, per_channel) for seed in (0, 1))
    engine, fresh = (dovetail.build(m, verify="off", tune=False) for m in (old, new))
    before = {n: a.copy() for n, a in engine.weights().items()}
    stored = {t.name: t.data_type for t in new.graph.initializer}
    assert TensorProto.INT8 in stored.values() and any(n.endswith("_scale") for n in stored)
    feeds = [inputs(new, n, 7 + n) for n in (1, 3)]
    first = [engine(x) for x in feeds]
    engine.refit(new, strict=True)
    for x in feeds:
        assert engine(x).tobytes() == fresh(x).tobytes()
        # Both round to one of 256 steps; a sum that lies between two may go either way.
        error = np.abs(engine(x) - reference(new, x))
        step = max(a.item() for n, a in fresh.weights().items() if n.endswith("_scale") and a.size == 1)
        assert float(error.max()) <= step and float(np.mean(error > 1e-5)) <= 0.1
    # Scales and zero points are weights like others; so is each quantised array.
    names = [n for n, kind in stored.items() if kind == TensorProto.INT8 and n.endswith("_quantized")]
    engine.refit({n: before[n] for n in stored})
    assert [engine(x).tobytes() for x in feeds] == [y.tobytes() for y in first]
    with engine.refit({names[0]: np.zeros_like(before[names[0]])}):
        assert engine(feeds[0]).tobytes() != first[0].tobytes()
    with pytest.raises(dovetail.RefitError, match="expected int8"):
        engine.refit({names[0]: before[names[0]].astype(F)})
