"""What tests of builders and parsers share: a logger that keeps messages, small networks and models, and runs of engines on the CPU."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import dovetail.tensorrt as trt

FLOAT = TensorProto.FLOAT


class Messages(trt.ILogger):
    """Keeps what it is told."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.all: list[tuple[trt.ILogger.Severity, str]] = []

    def log(self, severity, msg):
        self.all.append((severity, msg))

    def errors(self) -> str:
        """All errors in one text."""
        return "\n".join(m for s, m in self.all if s <= trt.Logger.ERROR)

    def text(self) -> str:
        """All messages in one text."""
        return "\n".join(m for _, m in self.all)


def quick(builder: Any) -> Any:
    """A config that measures nothing."""
    config = builder.create_builder_config()
    config.builder_optimization_level = 0
    return config


def small(builder: Any, batch: int = 2, seed: int = 0) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    """relu(x @ w + b) as a network, x being [batch, 8] (-1: dynamic), and its weights by name."""
    rng = np.random.default_rng(seed)
    weights = {"w": rng.standard_normal((8, 5)).astype(np.float32), "b": rng.standard_normal((1, 5)).astype(np.float32)}
    network = builder.create_network(1)
    x = network.add_input("x", trt.float32, (batch, 8))
    w = network.add_constant((8, 5), weights["w"]).get_output(0)
    b = network.add_constant((1, 5), weights["b"]).get_output(0)
    product = network.add_matrix_multiply(x, trt.MatrixOperation.NONE, w, trt.MatrixOperation.NONE)
    product.name = "product"
    total = network.add_elementwise(product.get_output(0), b, trt.ElementWiseOperation.SUM)
    total.name = "total"
    relu = network.add_activation(total.get_output(0), trt.ActivationType.RELU)
    relu.name = "relu"
    relu.get_output(0).name = "y"
    network.mark_output(relu.get_output(0))
    for name, array in weights.items():
        network.set_weights_name(array, name)
    return network, weights


def expected(x: np.ndarray[Any, Any], weights: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """What the small network computes."""
    return np.maximum(x @ weights["w"] + weights["b"], 0)


def sample(*shape: int, seed: int = 1) -> np.ndarray[Any, Any]:
    """Normal floats."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(engine: Any, **inputs: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """One run by names and host addresses; outputs by name."""
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    arrays = {}
    for name in names:
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            arrays[name] = np.ascontiguousarray(inputs[name])
            assert context.set_input_shape(name, arrays[name].shape)
    for name in names:
        if name not in arrays:
            arrays[name] = np.full(tuple(context.get_tensor_shape(name)), 77, trt.nptype(engine.get_tensor_dtype(name)))
        assert context.set_tensor_address(name, arrays[name].ctypes.data)
    assert context.execute_async_v3(0)
    return {name: a for name, a in arrays.items() if name not in inputs}


def deserialized(data: Any, logger: Any) -> Any:
    """The engine of a serialized one."""
    return trt.Runtime(logger).deserialize_cuda_engine(data)


def classifier(seed: int = 0, batch: int | str = "N") -> onnx.ModelProto:
    """Conv, Relu, Flatten, Gemm with transB, Add of a constant."""
    rng = np.random.default_rng(seed)
    shapes = {"conv.w": (4, 3, 3, 3), "conv.b": (4,), "fc.w": (10, 144), "fc.b": (10,), "k": (10,)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "conv.w", "conv.b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "fc.w", "fc.b"], ["g"], name="fc", transB=1),
        helper.make_node("Add", ["g", "k"], ["y"], name="add"),
    ]
    return model_of(nodes, {"x": [batch, 3, 6, 6]}, {"y": [batch, 10]}, weights)


def model_of(nodes, inputs, outputs, weights=(), opset: int = 17, functions=()) -> onnx.ModelProto:
    """A model of float inputs and outputs by their shapes."""
    graph = helper.make_graph(
        nodes, "graph", [helper.make_tensor_value_info(n, FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, FLOAT, s) for n, s in outputs.items()], list(weights),
    )  # fmt: skip
    domains = sorted({f.domain for f in functions} | {n.domain for n in nodes} - {""})
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))
