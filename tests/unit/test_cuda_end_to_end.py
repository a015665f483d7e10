"""From ONNX to results on a driver whose kernels Triton's interpreter runs: plan, kernels, memory, graphs and weights together."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from dovetail import builder, runtime
from dovetail.builder.options import BuildOptions
from dovetail.engine.plan import ControlSegment, HostSegment, NativeSegment
from dovetail.runtime.cuda.arrays import DeviceArray

pytest.importorskip("triton")

RNG = np.random.default_rng(0)


def model():
    """A product with its epilogue, a softmax, and a step whose extent depends on data: softmax(relu(x w + b)), its large entries."""
    w, b = (RNG.standard_normal(s).astype(np.float32) for s in ((24, 16), (16,)))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["a"]), helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Softmax", ["r"], ["s"], axis=-1), helper.make_node("Greater", ["s", "limit"], ["g"]),
        helper.make_node("NonZero", ["g"], ["where"]), helper.make_node("Cast", ["where"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["c", "c"], ["squares"]),
    ]  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ["N", 24])],
        [value("s", TensorProto.FLOAT, ["N", 16]), value("squares", TensorProto.FLOAT, [2, "K"])],
        [numpy_helper.from_array(a, n) for n, a in (("w", w), ("b", b), ("limit", np.float32(0.1)))],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    return made, w, b


def reference(x, w, b):
    a = np.maximum(x @ w + b, 0)
    s = np.exp(a - a.max(-1, keepdims=True))
    s /= s.sum(-1, keepdims=True)
    return s, np.square(np.array(np.nonzero(s > 0.1), np.float32))


def test_a_model_builds_and_runs():
    from dovetail.codegen.triton_host import host_driver

    onnx_model, w, b = model()
    built = builder.build(onnx_model, BuildOptions(device="cuda", target="cuda:sm_90"))
    kinds = {type(segment) for segment in built.plan.main.segments}
    assert kinds == {NativeSegment, HostSegment} and ControlSegment not in kinds
    driver = host_driver(built.kernels)
    engine = runtime.make(built.plan, [built.binary], None, built.module.weights, None, None, driver=driver)
    context = engine.context()
    for n in (5, 5, 5, 1, 0):
        x = RNG.standard_normal((n, 24)).astype(np.float32)
        s, squares = reference(x, w, b) if n else (np.empty((0, 16)), np.empty((2, 0)))
        found = context.run({"x": x})
        np.testing.assert_allclose(found["s"], s, atol=1e-6)
        np.testing.assert_array_equal(found["squares"], squares)
        if n:
            found = context.run({"x": DeviceArray.of(driver, x)})
            np.testing.assert_allclose(found["s"].numpy(), s, atol=1e-6)
            np.testing.assert_array_equal(found["squares"].numpy(), squares)
    before = context.run({"x": x})
    engine.set_weights({"w": 2 * w})
    x = RNG.standard_normal((3, 24)).astype(np.float32)
    np.testing.assert_allclose(context.run({"x": x})["s"], reference(x, 2 * w, b)[0], atol=1e-6)
    engine.set_weights({"w": w})
    np.testing.assert_array_equal(before["s"].shape, (0, 16))
    np.testing.assert_allclose(context.run({"x": x})["s"], reference(x, w, b)[0], atol=1e-6)
